"""Sessions: proposed from names, folders and clocks, shown, joined in every spelling, and told across splits."""

import re
from pathlib import Path

import pytest

from featurecache.annotations import Interval, write_eaf
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.clips.relatives import BY_VIEW, named_alike, recorded_together
from featurecache.clips.session_notes import few_in_words
from featurecache.clips.sessions import name_sessions
from featurecache.clips.splits import SPLITS
from featurecache.errors import SettingsError, TrainingDataError
from featurecache.project.settings import DataSettings, Project, open_project
from featurecache.setup.proposal import propose
from featurecache.setup.sessions import propose_sessions
from featurecache.workflow.clips import make_clips
from featurecache.workflow.extraction import extract
from heads.workflow.predicting import predict
from heads.workflow.training import train
from tests.make_videos import write_video
from tests.projects import make_project, write_labels

DAY = 24 * 3600 * 1_000_000


def sessions_of(names: list[str]) -> dict[str, str]:
    """The sessions that the proposal gives."""
    found = propose_sessions(names, {}, {})
    data = DataSettings(Path(), session_from=found.session_from, session_pattern=found.pattern)
    return name_sessions(names, data, {})[0]


@pytest.mark.parametrize(
    "groups",
    [
        [["P01_cam1.mp4", "P01_cam2.mp4"], ["P02_cam1.mp4", "P02_cam2.mp4"]],
        [["P01-Camera A.mp4", "P01.mp4"], ["P02.mp4"], ["P03 left.mp4", "P03 right.MP4"]],
        [["P01cam1.mp4", "p01cam2.mp4"], ["P02cam1.mp4"]],
        [["S1_part1_top.mp4", "S1_part2_top.mp4"], ["S2_part1_top.mp4"]],
        [["cam1/P01.mp4", "cam2/P01.mp4"], ["cam1/P02.mp4", "cam2/P02.mp4"]],
        [["P01/cam1.mp4", "P01/cam2.mp4"], ["P02/cam1.mp4"]],
        [["study/P01/cam1.mp4", "study/P01/a/cam2.mp4"], ["study/P02/cam1.mp4"]],
        [["P01_a.mp4", "P01_b.mp4"], ["P02_a.mp4"]],
        [["P01a.mp4", "P01b.mp4"], ["P02a.mp4"]],
        [["P01.mp4", "P01_lowres.mp4"], ["P02.mp4"]],
        [["P01 vorher.mp4", "P01 nachher.mp4"], ["P02 vorher.mp4"]],
        [["patient1 (1).mp4", "patient1 (2).mp4"], ["patient2 (1).mp4"]],
        [["sub-01_ses-1.mp4", "sub-01_ses-2.mp4"], ["sub-02_ses-1.mp4"]],
        [["front_P01.mp4", "top_P01.mp4"], ["front_P02.mp4", "top_P02.mp4"]],
        [["patient 1.mp4"], ["patient 2.mp4"], ["patient 3.mp4"]],
        [["GX010034.MP4", "GX020034.MP4"], ["GX010035.MP4"]],
        [["session_01.mp4"], ["session_02.mp4"], ["session_03.mp4"]],
        [["s1/CAM0001.MP4"], ["s2/CAM0002.MP4"], ["s5/CAM0009.MP4"]],
        [["cam1.mp4"], ["cam2.mp4"]],
    ],
    ids=lambda groups: groups[0][0],
)
def test_views_and_parts_of_one_patient_are_proposed_as_one_session(groups: list[list[str]]) -> None:
    found = sessions_of([name for group in groups for name in group])
    assert [len({found[name] for name in group}) for group in groups] == [1] * len(groups)
    assert len(set(found.values())) == len(groups)


def test_the_pattern_for_views_needs_no_long_search_in_an_odd_name() -> None:
    assert re.search(BY_VIEW, "1_cam" * 40 + "_") is None


def test_recordings_are_together_when_their_clocks_overlap_and_not_when_no_clock_was_set() -> None:
    hour = DAY // 24
    spans = {
        "a": (0, hour),
        "b": (hour // 2, 2 * hour),
        "next part": (2 * hour + 1_000_000, 3 * hour),
        "later": (5 * hour, 6 * hour),
    }
    assert recorded_together(spans) == [["a", "b", "next part"]]
    assert recorded_together({str(number): (0, hour) for number in range(9)}) == []
    assert recorded_together({str(number): (number * hour, (number + 2) * hour) for number in range(20)}) == []


def test_clock_times_of_the_files_are_proposed_as_sessions_and_used(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, minute in (("front.mp4", 0), ("door.mp4", 0), ("noon.mp4", 30), ("late.mp4", 59)):
        tags = {"comment": name, "creation_time": f"2024-05-06T10:{minute:02d}:00Z"}
        write_video(videos / name, count=20, fps=5, metadata=tags)
    found = propose(tmp_path / "new", videos=videos, annotations=None, model="demo")
    assert open_project(found.path).settings.data.same_session == (("door.mp4", "front.mp4"),)
    assert any("recorded at the same time" in note for note in found.notes)
    made = make_clips(open_project(found.path))
    assert list(made.session_recordings.values()) == [["door.mp4", "front.mp4"], ["late.mp4"], ["noon.mp4"]]


def test_one_session_in_two_spellings_is_one_and_that_is_told() -> None:
    names = ["S01/a.mp4", "s01 /b.mp4", "S01\u200b/c.mp4", "S02/a.mp4"]
    found, notes = name_sessions(names, DataSettings(Path(), session_from="folder"), {})
    assert found == {"S01/a.mp4": "S01", "s01 /b.mp4": "S01", "S01\u200b/c.mp4": "S01", "S02/a.mp4": "S02"}
    assert notes == ["the sessions 'S01' and 's01' are one, called 'S01'."]


def test_same_session_names_recordings_that_are_there() -> None:
    data = DataSettings(Path(), same_session=(("a.mp4", "c.mpg"),))
    with pytest.raises(SettingsError, match=r"same_session must name recordings, but 'c\.mpg' is none\. Did you mean"):
        name_sessions(["a.mp4", "b.mp4", "c.mp4"], data, {})


def test_names_are_alike_in_one_folder_or_in_folders_of_cameras_alone() -> None:
    assert named_alike(["P1_cam1.mp4", "P1_cam2.mp4", "P2_cam1.mp4"]) == [["P1_cam1.mp4", "P1_cam2.mp4"]]
    assert named_alike(["cam1/P1.mp4", "cam2/P1.mp4", "cam1/P2.mp4"]) == [["cam1/P1.mp4", "cam2/P1.mp4"]]
    assert named_alike(["P1/rec1.mp4", "P2/rec1.mp4", "P2/rec2.mp4"]) == []
    assert named_alike(["session_01.mp4", "session_02.mp4"]) == []


def _project(root: Path, recordings: dict[str, str], *, data: str = "", labels: str = "'a'") -> Project:
    (root / "videos").mkdir()
    for name in recordings:
        write_video(root / "videos" / name, count=20, fps=5, metadata={"comment": name})
    write_labels(root / "labels.csv", {name: [Interval(0, 2_000_000, "a")] for name in recordings}, sessions=recordings)
    (root / "featurecache.toml").write_text(
        f"[data]\nvideos = 'videos'\nannotations = 'labels.csv'\nlabels = [{labels}]\nsession_from = 'column'\n{data}\n"
        "[clips]\nlength_s = 1\nstride_s = 1\n[features]\nmodel = 'demo'\n"
    )
    return open_project(root)


def test_clips_shows_sessions_warns_of_names_across_splits_and_joins_them_when_asked(tmp_path: Path) -> None:
    names = {f"P{number}_cam{camera}.mp4": f"s{number}{camera}" for number in (1, 2, 3) for camera in (1, 2)}
    made = make_clips(_project(tmp_path, names))
    assert "each recording is a session of its own (session_from, same_session under [data])." in made.rules
    (warned, *_) = [line for line in made.audit.warnings if "are named alike and lie in different splits" in line]
    line = re.search(r"same_session = (\[.*\])", warned)
    assert line is not None
    settings = tmp_path / "featurecache.toml"
    joined = (
        "same_session = [['P1_cam1.mp4','P1_cam2.mp4'],['P2_cam1.mp4','P2_cam2.mp4'],['P3_cam1.mp4','P3_cam2.mp4']]"
    )
    settings.write_text(settings.read_text().replace("[clips]", f"{joined}\n[clips]"))
    made = make_clips(open_project(tmp_path), redeal=True)
    assert any("3 of 3 sessions have several recordings (s11: P1_cam1.mp4, P1_cam2.mp4;" in rule for rule in made.rules)
    assert not any("named alike" in line for line in made.audit.warnings)
    (few,) = [line for line in made.audit.warnings if "few sessions: test has 1 with 8 clips" in line]
    assert few.endswith("annotate at least 2 more sessions: until then each session's own score is what there is.")


@pytest.mark.parametrize(
    ("validation", "test", "words"), [(4, 6, ""), (1, 5, ""), (4, 4, "--leave-one-session-out"), (5, 0, "")]
)
def test_only_few_test_sessions_are_warned_of(validation: int, test: int, words: str) -> None:
    splits = ["train"] * 5 + ["validation"] * validation + ["test"] * test
    clips = [
        Clip(f"{at:016x}-0-1", f"{at}.mp4", f"s{at}", split, 0, 1_000_000, (1,)) for at, split in enumerate(splits)
    ]
    found = few_in_words(ClipTable(("a",), clips))
    assert bool(found) == bool(words)
    assert all(words in line for line in found)


def test_with_two_annotated_sessions_one_trains_and_one_validates(tmp_path: Path) -> None:
    made = make_clips(_project(tmp_path, {"P1.mp4": "a", "P2.mp4": "b"}))
    assert sorted({clip.split for clip in read_table(made.path).clips}) == ["train", "validation"]
    assert any("2 annotated sessions: one trains, one validates, none tests" in line for line in made.audit.warnings)


def test_one_annotated_session_is_extracted_and_as_a_pilot_labels_its_own_rest(
    tmp_path: Path, tiny_model: Path
) -> None:
    project = make_project(tmp_path / "project", tiny_model, sessions=1, clips=24)
    labels = project.root / "labels.csv"
    labels.write_text(f"{labels.read_text()}S0.mp4,0,18,annotated\n")
    settings = project.path.read_text().replace("[clips]", 'annotated_span = "annotated"\n[clips]', 1)
    project.path.write_text(settings)
    report = extract(open_project(project.root))
    made = read_table(project.clips)
    assert {clip.split for clip in made.clips} == {"train"}
    assert len([clip for clip in made.clips if clip.labelled]) == 18
    assert any("1 annotated session: it trains" in line for line in few_in_words(made))
    with pytest.raises(TrainingDataError, match="validation split must have labelled clips"):
        train(open_project(project.root))
    project.path.write_text(f"{settings}[splits]\nallow_clip_level = true\n")
    make_clips(open_project(project.root))
    parts = {}
    for clip in read_table(project.clips, allow_clip_level=True).clips:
        parts.setdefault(clip.session, []).append(clip)
    assert list(parts) == [f"S0 part {number} of 6" for number in range(1, 7)]
    assert {split for own in parts.values() for split in {clip.split for clip in own}} == set(SPLITS)
    assert all(len({clip.split for clip in own}) == 1 for own in parts.values())
    assert extract(open_project(project.root)).plan.todo == 0
    assert report.failed == ()
    run = train(open_project(project.root))
    assert "splits cut sessions" in run.best["split_warning"]
    (predicted,) = predict(open_project(project.root), [project.videos / "S0.mp4"], bundle=run.bundle).written
    assert predicted[0].duration_us == pytest.approx(24_000_000, abs=300_000)
    make_clips(open_project(project.root))  # a part keeps no split by the recording's content


def test_a_label_of_an_absent_recording_is_not_proposed_and_does_not_stop_clips(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / f"videos/S{number}.mp4", count=20, fps=5, metadata={"comment": f"take {number}"})
    for number in range(4):
        (tmp_path / "elan").mkdir(exist_ok=True)
        rare = [Interval(0, 1_000_000, "rare")] * (number == 3)
        own = [Interval(0, 2_000_000, "a"), Interval(3_000_000, 4_000_000, "b"), *rare]
        write_eaf(tmp_path / f"elan/S{number}.eaf", own, media_name=f"S{number}.mp4", tiers=["a", "b", "rare"])
    found = propose(tmp_path / "new", videos=tmp_path / "videos", annotations=tmp_path / "elan", model="demo")
    assert open_project(found.path).settings.data.labels == ("a", "b")
    assert any("S3.eaf is of no recording here" in note and "rare" in note for note in found.notes)
    found.path.write_text(found.path.read_text().replace('["a", "b"]', '["a", "b", "rare"]'))  # tiers and labels
    made = make_clips(open_project(found.path))
    assert any(line.startswith("rare: used only in") and "(S3.eaf)" in line for line in made.audit.warnings)
    assert read_table(tmp_path / "new/clips.csv").labels == ("a", "b", "rare")


@pytest.mark.parametrize("kind", ["eaf", "csv"])
def test_init_and_clips_say_once_that_no_annotation_is_of_a_recording_here(tmp_path: Path, kind: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "notes").mkdir()
    own = [Interval(0, 1_000_000, label) for label in ("a", "b", "c")]
    for number in range(4):
        write_video(tmp_path / f"videos/T{number}.mp4", count=20, fps=5, metadata={"comment": f"take {number}"})
        if kind == "eaf":
            write_eaf(tmp_path / f"notes/S{number}.eaf", own, media_name=f"S{number}.mp4", tiers=["a", "b", "c"])
        else:
            write_labels(tmp_path / f"notes/S{number}.csv", {f"S{number}.mp4": own})
    found = propose(tmp_path / "new", videos=tmp_path / "videos", annotations=tmp_path / "notes", model="demo")
    (told,) = found.warnings
    assert told.startswith("0 of 4 annotation files name a recording here: they name S0.mp4, ")
    assert "the recordings are T0.mp4, T1.mp4" in told
    made = make_clips(open_project(found.path))
    of_labels = [line for line in made.audit.warnings if "no clip is positive" in line]
    assert [line.startswith("a, b, c: ") for line in of_labels] == [True, True]
    assert "not here" in of_labels[0]
