"""Recordings and annotations brought together: origins, rare tiers, contradictions, files left out."""

from pathlib import Path

import pytest

from featurecache.annotations import Interval, write_eaf
from featurecache.clips.annotated import read_files
from featurecache.clips.inventory import take_inventory
from featurecache.clips.table import make_table
from featurecache.errors import AnnotationError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import Project, open_project
from featurecache.setup.proposal import propose
from tests.make_videos import write_video
from tests.projects import write_labels

SHARED = Path(__file__).parents[1].parent / "shared/data"


def _us(start_s: float, end_s: float, label: str) -> Interval:
    return Interval(round(start_s * 1e6), round(end_s * 1e6), label)


def _project(root: Path, data: str = "") -> Project:
    (root / "featurecache.toml").write_text(
        f'[data]\nvideos = "videos"\nannotations = "eaf"\n{data}\n'
        '[clips]\nlength_s = 1\nstride_s = 1\n[features]\nmodel = "demo"\n'
    )
    return open_project(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three annotated recordings of 4 s; S2 has no tier of the rare activity."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "eaf").mkdir()
    for number in range(3):
        write_video(tmp_path / f"videos/S{number}.mp4", count=20, fps=5, metadata={"comment": f"take {number}"})
        own = [_us(1.5, 3, "ventilation")] + ([_us(0.5, 1, "suction")] if number < 2 else [])
        tiers = ["ventilation", "suction"] if number < 2 else ["ventilation"]
        write_eaf(tmp_path / f"eaf/S{number}.eaf", own, media_name=f"S{number}.mp4", time_origin_ms=400, tiers=tiers)
    return tmp_path


def test_inventory_returns_media_time_when_the_annotations_have_an_origin(root: Path) -> None:
    project = _project(root, 'labels = ["ventilation", "suction"]\ntiers = ["ventilation", "suction"]')
    found = take_inventory(project)
    assert found.intervals["S0.mp4"] == [_us(0.5, 1, "suction"), _us(1.5, 3, "ventilation")]
    assert found.intervals["S2.mp4"] == [_us(1.5, 3, "ventilation")]
    assert found.unusable == ()
    assert found.notes == ()
    table, short = make_table(project.settings, found)
    assert short == ()
    first = [clip.targets for clip in table.clips if clip.recording == "S0.mp4"]
    assert first == [(0, 1), (1, 0), (1, 0), (0, 0)]


def test_inventory_names_the_nearest_tier_when_one_is_in_no_file(root: Path) -> None:
    with pytest.raises(AnnotationError, match=r"'sucton' is in none\. Did you mean 'suction'\?"):
        take_inventory(_project(root, 'labels = ["ventilation"]\ntiers = ["ventilation", "sucton"]'))


def test_inventory_refuses_two_files_for_one_recording(root: Path) -> None:
    write_eaf(root / "eaf/second.eaf", [_us(1, 2, "ventilation")], media_name="S0.mp4")
    with pytest.raises(AnnotationError, match=r"'S0\.mp4' has S0\.eaf and second\.eaf, .* Set annotators"):
        take_inventory(_project(root, 'labels = ["ventilation"]'))


def test_inventory_doubts_files_without_a_tier_and_asks_about_another_spelling(root: Path) -> None:
    settings = 'labels = ["ventilation", "suction"]\ntiers = ["ventilation", "suction"]'
    write_eaf(root / "eaf/S2.eaf", [], media_name="S2.mp4", tiers=["something"], replace=True)
    found = take_inventory(_project(root, settings))
    assert found.notes[0].startswith(
        "S2.eaf has none of the tiers ventilation, suction, so its recording counts as unl"
    )
    assert "S2.mp4" not in found.intervals
    write_eaf(root / "eaf/S1.eaf", [], media_name="S1.mp4", tiers=["Ventilation ", "suction"], replace=True)
    with pytest.raises(AnnotationError, match=r"'Ventilation' .* and 'ventilation' .*rename\."):
        take_inventory(_project(root, settings))


def test_inventory_lists_files_that_belong_to_nothing_or_cannot_be_read(root: Path) -> None:
    write_eaf(root / "eaf/other.eaf", [_us(1, 2, "ventilation")], media_name="other.mp4")
    (root / "eaf/torn.eaf").write_text("<ANNOTATION_DOCUMENT>")
    (root / "eaf/._S0.eaf").write_text("left by another system")
    (root / "eaf/S0.predicted.eaf").write_bytes((root / "eaf/S0.eaf").read_bytes())
    found = take_inventory(_project(root, 'labels = ["ventilation"]'))
    assert {item.name for item in found.unusable} == {"other.eaf", "torn.eaf"}
    for item in found.unusable:
        assert item.name not in item.reason, "it stands before the reason already"
        assert item.reason[:1].isalnum()
    assert len(found.intervals) == 3


def test_clips_outside_the_annotated_span_are_unlabelled(root: Path) -> None:
    for number in range(3):
        own = [_us(1.5, 3, "ventilation"), _us(1, 3, "watched")]
        write_eaf(
            root / f"eaf/S{number}.eaf",
            own,
            media_name=f"S{number}.mp4",
            tiers=["ventilation", "watched"],
            replace=True,
        )
    project = _project(root, 'labels = ["ventilation"]\nannotated_span = "watched"')
    table, _ = make_table(project.settings, take_inventory(project))
    assert [clip.targets for clip in table.clips if clip.recording == "S1.mp4"] == [(None,), (1,), (1,), (None,)]


def test_recordings_without_annotations_are_unlabelled(root: Path) -> None:
    write_video(root / "videos/S3.mp4", count=20, fps=5, metadata={"comment": "take 3"})
    project = _project(root, 'labels = ["ventilation"]')
    table, _ = make_table(project.settings, take_inventory(project))
    assert {clip.targets for clip in table.clips if clip.recording == "S3.mp4"} == {(None,)}


def test_a_csv_names_recordings_in_either_form_of_accented_letters(root: Path) -> None:
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    (root / "videos/S0.mp4").rename(root / "videos" / decomposed)
    write_labels(root / "labels.csv", {composed: [_us(1, 2, "ventilation")]}, sessions={composed: "one"})
    project = _project(root, 'labels = ["ventilation"]')
    settings = root / "featurecache.toml"
    settings.write_text(settings.read_text().replace('annotations = "eaf"', 'annotations = "labels.csv"'))
    found = take_inventory(open_project(project.root))
    assert found.intervals == {decomposed: [_us(1, 2, "ventilation")]}


def test_propose_writes_what_the_files_show(root: Path, tmp_path: Path) -> None:
    proposal = propose(tmp_path / "new", videos=root / "videos", annotations=root / "eaf", model="demo")
    settings = open_project(proposal.path).settings
    assert settings.data.labels_from == "tiers"
    assert set(settings.data.labels) == {"ventilation", "suction"}
    assert settings.data.session_from == "file"
    assert take_inventory(open_project(proposal.path)).intervals.keys() == {"S0.mp4", "S1.mp4", "S2.mp4"}


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["P1/a.mp4", "P1/b.mp4", "P2/a.mp4"], "folder"),
        (["P1_a.mp4", "P1_b.mp4", "P2_a.mp4", "P3_a.mp4"], "pattern"),
        (["morning.mp4", "noon.mp4", "night.mp4"], "file"),
    ],
)
def test_propose_groups_recordings_by_what_their_names_share(tmp_path: Path, names: list[str], how: str) -> None:
    for number, name in enumerate(names):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "videos" / name, count=2, fps=5, metadata={"comment": f"take {number}"})
    proposal = propose(tmp_path / "new", videos=tmp_path / "videos", annotations=None, model="demo")
    settings = open_project(proposal.path).settings.data
    assert settings.session_from == how
    sessions = take_inventory(open_project(proposal.path)).sessions
    assert sessions[names[0]] != sessions[names[-1]]
    assert (sessions[names[0]] == sessions[names[1]]) == (how != "file")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared real files are not on this machine")
def test_every_real_eaf_is_read_and_proposed_from(tmp_path: Path) -> None:
    documents, _, unread = read_files(SHARED / "eaf", ColumnSettings())
    assert unread == ()
    counts = {path.name: len(document.tiers) for path, document in documents.items()}
    assert counts == {
        "childproject_example.eaf": 13,
        "pympi_sample_2.8.eaf": 6,
        "speach_blank.eaf": 1,
        "speach_test.eaf": 5,
    }
