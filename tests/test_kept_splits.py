"""Splits that stay, by content, and tables that tell when settings or folders are not what they were made from."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.errors import OutdatedTableError, OutdatedTableWarning
from featurecache.files import sha256_of_file
from featurecache.project.settings import Project, open_project
from featurecache.workflow.clips import MadeClips, make_clips
from featurecache.workflow.extraction import extract
from featurecache.workflow.withdrawal import withdraw
from heads.workflow.data import learning_data
from tests.make_videos import write_video
from tests.projects import edit, edited, make_project


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Twelve sessions of four clips, with their table."""
    made = make_project(tmp_path_factory.mktemp("kept") / "project", Path("no model"), sessions=12, clips=4)
    make_clips(made)
    return made


@pytest.fixture
def project(kept: Project, tmp_path: Path) -> Project:
    """A copy of it with the same times of last change."""
    shutil.copytree(kept.root, tmp_path / "project")
    return open_project(tmp_path / "project")


def splits(project: Project) -> dict[str, str]:
    """Content -> split."""
    return {clip.content: clip.split for clip in read_table(project.clips).clips}


def add(project: Project, name: str, take: str = "another") -> None:
    write_video(project.videos / name, count=20, fps=5, metadata={"comment": take})


def rename(project: Project, old: str, new: str) -> None:
    (project.videos / old).rename(project.videos / new)
    edit(project.root / "labels.csv", old, new)


def test_no_session_changes_split_when_annotations_names_or_recordings_change(project: Project) -> None:
    before = splits(project)
    lines = (project.root / "labels.csv").read_text().splitlines(keepends=True)
    (project.root / "labels.csv").write_text("".join([*lines[:3], *lines[4:]]))  # one interval less
    rename(project, "S3.mp4", "A3.mp4")
    (project.videos / "S7.mp4").unlink()
    add(project, "S90.mp4")
    made = make_clips(project)
    after = splits(project)
    assert {content: after.get(content, split) for content, split in before.items()} == before
    assert any("11 sessions keep their splits" in line for line in made.rules)
    assert not any("changed split" in line for line in made.audit.warnings)


def test_a_recording_that_was_away_comes_back_to_its_split_under_another_name(project: Project) -> None:
    before = splits(project)
    away = project.root / "away.mp4"
    (project.videos / "S5.mp4").rename(away)
    make_clips(project)
    away.rename(project.videos / "case5.mp4")
    edit(project.root / "labels.csv", "S5.mp4", "case5.mp4")
    make_clips(project)
    assert splits(project) == before


def test_a_session_whose_recording_was_encoded_again_keeps_its_split_by_its_name(project: Project) -> None:
    of_name = {clip.recording: clip.split for clip in read_table(project.clips).clips}
    for name in list(of_name):
        add(project, name, take=f"{name} again")
    make_clips(edited(project, "[features]", "[splits]\nseed = 5\n[features]"))  # which would assign others
    assert {clip.recording: clip.split for clip in read_table(project.clips).clips} == of_name


def test_new_sessions_are_placed_where_a_split_lacks_their_label(project: Project) -> None:
    labels = project.root / "labels.csv"
    for number in range(3):
        add(project, f"N{number}.mp4", take=f"new {number}")
        labels.write_text(labels.read_text() + f"N{number}.mp4,0,2,rare\n")
    project = edited(project, "'stimulation'", "'stimulation', 'rare'")
    made = make_clips(project)
    assert {split.name: split.positives["rare"] > 0 for split in made.audit.splits} == dict.fromkeys(
        ("train", "validation", "test"), True
    )


def test_splits_written_into_the_table_go_with_it_unless_the_settings_fix_them_and_that_is_told(
    project: Project,
) -> None:
    before = splits(project)
    moved = next(clip for clip in read_table(project.clips).clips if clip.split == "test")
    lines = project.clips.read_text().splitlines(True)
    by_hand = "".join(line.replace(",test,", ",train,") if moved.content in line else line for line in lines)
    project.clips.write_text(by_hand)
    fixed = edited(project, "[features]", f"[splits]\nsessions = {{ {moved.session.lower()} = 'train' }}\n[features]")
    assert not any("changed split" in line for line in make_clips(fixed, force=True).audit.warnings)
    assert splits(project) == {**before, moved.content: "train"}
    free = edited(fixed, f"{moved.session.lower()} = 'train'", "")
    make_clips(free, redeal=True)
    assert splits(project) == before
    project.clips.write_text(by_hand)
    project.table_record.unlink()
    make_clips(free, force=True)
    assert splits(project) == {**before, moved.content: "train"}  # without a record, the table on disk counts


def test_redeal_assigns_as_if_there_had_been_no_table_and_warns(project: Project) -> None:
    before = splits(project)
    reseeded = edited(project, "[features]", "[splits]\nseed = 5\n[features]")
    make_clips(reseeded)
    assert splits(project) == before
    made = make_clips(reseeded, redeal=True)
    assert any("changed split" in line and "tune again" in line for line in made.audit.warnings)
    anew = splits(project)
    project.clips.unlink()
    project.table_record.unlink()
    make_clips(reseeded)
    assert splits(project) == anew != before


def test_a_session_joined_from_several_splits_goes_to_the_one_that_learns_most(project: Project) -> None:
    of_split: dict[str, str] = {}
    for clip in read_table(project.clips).clips:
        of_split.setdefault(clip.split, clip.recording)
    joined = f"same_session = [['{of_split['test']}', '{of_split['validation']}']]"
    made = make_clips(edited(project, "[clips]", f"{joined}\n[clips]"))
    places = {clip.recording: clip.split for clip in read_table(project.clips).clips}
    assert places[of_split["test"]] == places[of_split["validation"]] == "validation"
    assert any("changed split" in line for line in made.audit.warnings)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("length_s = 1", "length_s = 2", "clips.length_s was 1.0 and is 2.0"),
        ("stride_s = 1", "stride_s = 0.5", "clips.stride_s was 1.0 and is 0.5"),
    ],
)
def test_extraction_refuses_a_table_of_other_clips_than_the_settings_say(
    project: Project, old: str, new: str, told: str
) -> None:
    with pytest.raises(OutdatedTableError, match=rf"{told}\. Make it again: featurecache clips; or put that back"):
        extract(edited(project, old, new))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("'ventilation', 'stimulation'", "'ventilation'", "data.labels was"),
        ("[clips]", "[clips]\nmin_overlap = 0.25", "clips.min_overlap was 0.5 and is 0.25"),
        ("[clips]", "unannotated_time = 'until_last_annotation'\n[clips]", "data.unannotated_time was"),
        ("[clips]", "rename.'a' = 'b'\n[clips]", "data.rename was"),
        ("[clips]", "columns.unit = 'ms'\n[clips]", "data.columns.unit was 's' and is 'ms'"),
        ("[features]", "[splits]\nsessions = { S0 = 'test' }\n[features]", "splits.sessions was"),
    ],
)
def test_training_refuses_a_table_of_other_targets_and_extraction_tells(
    project: Project, old: str, new: str, told: str
) -> None:
    changed = edited(project, old, new)
    with pytest.raises(OutdatedTableError, match=told):
        learning_data(changed, ["final/mean"])
    with pytest.warns(OutdatedTableWarning, match=f"{told}.* featurecache clips"):
        check_table(changed, use="windows")


def test_files_that_came_went_changed_or_were_renamed_are_told_and_do_not_stop(project: Project) -> None:
    add(project, "S90.mp4")
    (project.videos / "S1.mp4").unlink()
    add(project, "S2.mp4", take="edited, which made it longer")
    (project.videos / "S3.mp4").rename(project.videos / "A3.mp4")
    labels = project.root / "labels.csv"
    labels.write_text(labels.read_text() + "S2.mp4,0,1,ventilation\n")
    with pytest.warns(OutdatedTableWarning) as found:
        check_table(project, use="targets")
    (told,) = [str(one.message) for one in found]
    for part in ("1 new (S90.mp4)", "1 gone (S1.mp4)", "1 changed (S2.mp4)", "1 renamed (S3.mp4 is A3.mp4)"):
        assert part in told
    assert "annotations: 1 changed (labels.csv)" in told
    assert told.endswith("To take that in: featurecache clips.")


def test_a_setting_that_came_with_a_later_version_is_no_change(project: Project) -> None:
    record = json.loads(project.table_record.read_bytes())
    columns = {name: record["settings"].pop(f"data.columns.{name}") for name in ("recording", "start", "unit")}
    for name in [name for name in record["settings"] if name.startswith("data.columns.")]:
        del record["settings"][name]
    project.table_record.write_text(json.dumps({**record, "settings": {**record["settings"], "data.columns": columns}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_table(project, use="targets")


def test_a_copied_project_is_not_told_as_changed_and_an_edit_that_keeps_the_size_is(project: Project) -> None:
    labels = project.root / "labels.csv"
    for path in (labels, *project.videos.iterdir()):
        os.utime(path, ns=(1, 1))  # as `cp -r` gives files other times
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_table(project, use="targets")
    text = labels.read_text()
    labels.write_text(text.replace("S1.mp4", "S2.mp4", 1))
    with pytest.warns(OutdatedTableWarning, match=r"then annotations: 1 changed \(labels\.csv\)\."):
        check_table(project, use="targets")


def test_other_fractions_or_seeds_are_told_with_the_way_to_use_them(project: Project) -> None:
    with pytest.warns(OutdatedTableWarning, match=r"splits\.seed was 0 and is 3\. .*clips --redeal"):
        check_table(edited(project, "[features]", "[splits]\nseed = 3\n[features]"), use="targets")


def test_a_table_that_is_as_its_record_says_is_used_in_silence(project: Project) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_table(edited(project, "length_s = 1", "length_s = 1.000"), use="targets")
        project.table_record.write_text("torn")
        check_table(edited(project, "length_s = 1", "length_s = 2"), use="targets")


def test_renamed_recordings_are_extracted_by_their_content(project: Project, tiny_model: Path) -> None:
    project = edited(project, "no model", str(tiny_model))
    (project.videos / "S0.mp4").rename(project.videos / "x.mp4")
    (project.videos / "S1.mp4").rename(project.videos / "S0.mp4")
    with pytest.warns(OutdatedTableWarning):
        report = extract(project, limit=8)
    assert report.failed == ()
    assert report.outcome is not None
    assert report.outcome.progress.extracted == 8


def test_a_withdrawn_recording_leaves_the_record_of_the_table(project: Project) -> None:
    digest = sha256_of_file(project.videos / "S1.mp4")
    done = withdraw(project, "S1.mp4", everything=True)
    assert ".featurecache/clips.json" in done.files_cleaned
    text = project.table_record.read_text()
    assert digest[:16] not in text
    assert "S1.mp4" not in text
    assert "S2.mp4" in json.loads(text)["files"]["videos"]
    (project.videos / "S1.mp4").unlink()
    labels = project.root / "labels.csv"
    labels.write_text("".join(line for line in labels.read_text().splitlines(True) if "S1.mp4" not in line))
    assert isinstance(make_clips(project), MadeClips)  # no edit of a person is in the way


def test_forget_knows_recordings_that_were_only_predicted_or_are_only_files(project: Project, tmp_path: Path) -> None:
    add(project, "../case.mp4")
    digest = sha256_of_file(project.root / "case.mp4")
    project.predictions.mkdir()
    document = {"recording": {"name": "case.mp4", "content": digest[:16]}}
    (project.predictions / "case.predicted.json").write_text(json.dumps(document))
    (project.root / "case.mp4").rename(tmp_path / "elsewhere.mp4")
    done = withdraw(project, "case.mp4", everything=True)
    assert done.files_removed == ("predictions/case.predicted.json",)
    assert withdraw(project, str(tmp_path / "elsewhere.mp4")).mark == withdraw(project, digest).mark == done.mark
