"""Predictions next to what annotators wrote: read, added to, never replaced."""

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest

from featurecache import make_clips
from featurecache.annotations import Interval, predicted_intervals, read_csv, read_eaf, resolve_times, write_eaf
from featurecache.clips.clip import clip_targets, clip_windows
from featurecache.project.settings import Project, open_project
from tests.make_videos import write_video
from tests.prediction_samples import SECOND, predict, with_annotations
from tests.projects import LABELS

# --- annotations ----------------------------------------------------------------------------------


def test_predict_adds_to_the_annotators_document_and_leaves_the_original(bundled: Project, tmp_path: Path) -> None:
    eaf = tmp_path / "elan" / "case 7.eaf"
    eaf.parent.mkdir()
    own = [Interval(SECOND, 2 * SECOND, "ventilation")]
    write_eaf(eaf, own, media_name="S0.mp4", time_origin_ms=400, tiers=["notes", "ventilation"])
    before = eaf.read_bytes()
    data = dataclasses.replace(bundled.settings.data, annotations=eaf.parent, tiers=("ventilation",))
    annotated = Project(bundled.root, dataclasses.replace(bundled.settings, data=data))
    found = predict(annotated, bundled.videos / "S0.mp4", bundled.videos / "S1.mp4", out=tmp_path / "out")

    assert eaf.read_bytes() == before
    (timeline, files), (other, _) = found.written
    assert timeline.annotated == tuple(own)
    assert timeline.annotated_us == [(0, 4 * SECOND)]
    assert other.annotated is None
    document = read_eaf(files.eaf)
    assert list(document.tiers) == [
        "notes",
        "ventilation",
        "ventilation (predicted)",
        "stimulation (predicted)",
    ]
    assert [one for one in resolve_times(document) if one.tier == "ventilation"] == resolve_times(read_eaf(eaf))
    assert [media.time_origin_ms for media in document.media] == [400]
    assert document.media[0].media_url == f"file://{(bundled.videos / 'S0.mp4').as_posix()}"
    assert (files.eaf.parent / str(document.media[0].relative_media_url)).samefile(bundled.videos / "S0.mp4")
    for one in predicted_intervals(document, time_origin_ms=400):
        assert one.start_us >= 400_000


@pytest.mark.parametrize("way", ["tiers are renamed", "tiers are mapped", "nothing is done"])
def test_a_corrected_prediction_becomes_the_annotation_that_it_shows_and_an_uncorrected_one_none(
    bundled: Project, tmp_path: Path, way: str
) -> None:
    shutil.copytree(bundled.root, tmp_path / "project", ignore=shutil.ignore_patterns("clips.csv"))
    settings = tmp_path / "project" / "featurecache.toml"
    ((timeline, files),) = predict(bundled, bundled.videos / "S0.mp4", out=tmp_path / "out").written
    assert timeline.predicted
    eaf = tmp_path / "project" / "annotations" / "S0.eaf"
    eaf.parent.mkdir()
    saved = files.eaf.read_text(encoding="utf-8")
    eaf.write_text(saved.replace(" (predicted)", "") if way == "tiers are renamed" else saved, encoding="utf-8")
    write_video(tmp_path / "project" / "videos" / "S3.mp4", count=20, fps=5)
    for name in ("S1", "S2", "S3"):
        own = [Interval(0, SECOND, label) for label in LABELS]
        write_eaf(eaf.with_name(f"{name}.eaf"), own, media_name=f"{name}.mp4", tiers=LABELS)
    mapping = "".join(f'mapping."{label} (predicted)" = {{ "*" = "{label}" }}\n' for label in LABELS)
    text = settings.read_text().replace("labels.csv", "annotations")
    settings.write_text(text.replace("[clips]", mapping + "[clips]") if way == "tiers are mapped" else text)
    made = make_clips(open_project(tmp_path / "project"))
    assert any("S0.eaf has no tier but predictions" in note for note in made.audit.warnings) == (
        way == "nothing is done"
    )
    shown = predicted_intervals(read_eaf(files.eaf), time_origin_ms=0)
    with (tmp_path / "project" / "clips.csv").open(newline="") as table:
        found = [tuple(row[label] for label in LABELS) for row in csv.DictReader(table) if row["recording"] == "S0.mp4"]
    expected = clip_targets(clip_windows(4 * SECOND, SECOND, SECOND), shown, LABELS)
    assert any(map(any, expected))
    assert found == ([("", "")] * 4 if way == "nothing is done" else [tuple(map(str, row)) for row in expected])


def test_predict_takes_intervals_from_a_table_when_annotations_are_one(bundled: Project, tmp_path: Path) -> None:
    ((timeline, files),) = predict(bundled, bundled.videos / "S0.mp4", out=tmp_path / "out").written
    assert timeline.annotated == tuple(sorted(read_csv(bundled.annotations).intervals["S0.mp4"]))
    assert list(read_eaf(files.eaf).tiers) == [f"{label} (predicted)" for label in LABELS]


def test_predict_lists_annotations_that_it_cannot_use_and_continues(bundled: Project, tmp_path: Path) -> None:
    folder = tmp_path / "elan"
    folder.mkdir()
    (folder / "S0.eaf").write_text("<not an eaf")
    for name in ("one.eaf", "two.eaf"):
        write_eaf(folder / name, [Interval(0, 1_000_000, "ventilation")], media_name="S1.mp4")
    annotated = with_annotations(bundled, folder)
    found = predict(annotated, bundled.videos / "S0.mp4", bundled.videos / "S1.mp4", out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S0.mp4"]
    assert [(one.name, "line 1" in one.reason) for one in found.left_out] == [("S0.eaf", True)]
    ((failed),) = found.failed
    assert failed.name == "S1.mp4"
    assert "must have one annotation, but 'S1.mp4' has one.eaf and two.eaf" in failed.reason


def test_predict_lists_the_recording_when_a_persons_file_is_in_the_way(bundled: Project, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "S0.predicted.eaf").write_text("reviewed by hand")
    found = predict(bundled, bundled.videos / "S0.mp4", bundled.videos / "S1.mp4", out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S1.mp4"]
    assert "not as predict wrote it" in found.failed[0].reason
    assert (tmp_path / "out" / "S0.predicted.eaf").read_text() == "reviewed by hand"
