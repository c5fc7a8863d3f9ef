"""Recordings and a bundle to timelines, on real videos and a tiny real model."""

import csv
import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from cli import app
from featurecache import FeatureCache, make_clips
from featurecache.annotations import Interval, predicted_intervals, read_csv, read_eaf, resolve_times, write_eaf
from featurecache.clips.clip import clip_id, clip_targets, clip_windows, union_of
from featurecache.errors import FingerprintMismatchError, TimelineError
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project, open_project
from heads.bundle import Bundle, load_bundle, save_bundle, tool_versions
from heads.clip_rule import ClipRule
from heads.models import Front, LinearHead
from heads.scoring.calibration import Calibration
from heads.settings import HeadSettings
from heads.terminal.predictions import predictions
from heads.timelines.timeline import TimelineSettings, predict_intervals
from heads.timelines.tuning import TunedTimeline, save_timeline
from heads.workflow import predicting
from heads.workflow.predicting import Predictions, scored_windows
from tests.make_videos import write_video
from tests.projects import LABELS, make_project

SECOND = 1_000_000
CORRUPTED = Path(__file__).parents[1].parent / "shared/data/video/decord_corrupted.mp4"


def make_bundle(project: Project, folder: Path) -> Path:
    inputs, spaces = project_spaces(project)
    space = next(iter(spaces.values()))
    torch.manual_seed(0)
    head = LinearHead(Front(inputs.taps["final"].width), len(LABELS))
    torch.nn.init.normal_(head.output.weight, std=3)
    save_bundle(Bundle(head, LABELS, np.array([0.5, 0.4]), HeadSettings(), (space,), tool_versions()), folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("predict") / "project", tiny_model, sessions=3, clips=4)
    make_bundle(project, project.runs / "tune" / "bundle")
    return project


def predict(
    project: Project, *paths: Path, out: Path, stride_us: int = SECOND // 2, bundle: Path | None = None
) -> Predictions:
    return predicting.predict(project, paths, bundle=bundle, out=out, stride_s=stride_us / SECOND)


def with_annotations(project: Project, folder: Path) -> Project:
    data = dataclasses.replace(project.settings.data, annotations=folder)
    return Project(project.root, dataclasses.replace(project.settings, data=data))


def with_rules(project: Project, exclusive: list[tuple[str, ...]]) -> Project:
    timeline = {"exclusive": tuple(exclusive)}
    return dataclasses.replace(project, settings=dataclasses.replace(project.settings, timeline=timeline))


# --- scores and files -----------------------------------------------------------------------------


def test_predict_scores_overlapping_clips_as_the_bundle_does(project: Project, tmp_path: Path) -> None:
    found = predict(project, project.videos / "S0.mp4", out=tmp_path / "out")
    ((timeline, files),) = found.written
    assert timeline.spans_us.tolist() == [list(span) for span in clip_windows(4 * SECOND, SECOND, SECOND // 2)]
    bundle, cache = load_bundle(project.runs / "tune" / "bundle"), FeatureCache.open(project.cache)
    sha256 = next(one[0] for one in cache.clips() if one[0].startswith(timeline.content))
    X = cache.load([clip_id(sha256, *span) for span in timeline.spans_us.tolist()])
    assert (timeline.scores == bundle.scores(X, fingerprint=bundle.fingerprint)).all()
    assert found.tuned is None
    assert timeline.settings.smoothing_us == SECOND
    document = json.loads(files.json.read_text())
    assert document["tuned"] is False
    assert document["bundle"] == bundle.digest
    intervals = [one.interval for one in timeline.predicted]
    assert sorted(read_csv(files.csv).intervals["S0.mp4"]) == sorted(intervals)
    to_ms = sorted(
        Interval(1000 * ((one.start_us + 500) // 1000), 1000 * ((one.end_us + 500) // 1000), one.label)
        for one in intervals
    )
    assert predicted_intervals(read_eaf(files.eaf), time_origin_ms=0) == to_ms


@given(st.integers(1, 300), st.integers(0, 2000), st.data())
def test_scored_windows_cover_every_instant_by_clips_of_one_length(length: int, more: int, data: st.DataObject) -> None:
    duration, stride = length + more, data.draw(st.integers(1, length))
    windows = scored_windows(duration, length, stride)
    assert union_of(windows) == [(0, duration)]
    assert {end - start for start, end in windows} == {length}
    assert all(0 < after - before <= stride for (before, _), (after, _) in pairwise(windows))
    assert windows[: len(clip_windows(duration, length, stride))] == clip_windows(duration, length, stride)


def test_predict_scores_the_tail_of_a_recording(project: Project, tmp_path: Path) -> None:
    write_video(tmp_path / "tail.mp4", count=12, fps=5, metadata={"comment": "a tail"})
    found = predict(project, tmp_path / "tail.mp4", out=tmp_path / "out", stride_us=SECOND)
    ((timeline, _),) = found.written
    assert timeline.duration_us == 2_400_000
    assert timeline.spans_us.tolist() == [[0, SECOND], [SECOND, 2 * SECOND], [1_400_000, 2_400_000]]
    assert timeline.scored_us == [(0, timeline.duration_us)]
    assert timeline.failed == []


def test_predict_is_confident_by_calibrated_probabilities_when_the_bundle_has_them(
    project: Project, tmp_path: Path
) -> None:
    calibration = Calibration(np.array([2.0, 0.5]), np.array([-1.0, 0.3]))
    own = load_bundle(project.runs / "tune" / "bundle")
    save_bundle(dataclasses.replace(own, calibration=calibration), tmp_path / "bundle")
    path = project.videos / "S0.mp4"
    ((plain, plain_files),) = predict(project, path, out=tmp_path / "plain").written
    found = predict(project, path, bundle=tmp_path / "bundle", out=tmp_path / "out", stride_us=SECOND // 2)
    ((timeline, files),) = found.written
    assert timeline.predicted
    assert [one.interval for one in timeline.predicted] == [one.interval for one in plain.predicted]
    expected = predict_intervals(
        timeline.spans_us,
        timeline.scores,
        timeline.settings,
        labels=LABELS,
        thresholds=timeline.thresholds,
        calibrated=calibration.apply(plain.scores),
    )
    assert timeline.predicted == expected
    assert all(a.confidence != b.confidence for a, b in zip(timeline.predicted, plain.predicted, strict=True))
    document, plain_document = (json.loads(one.json.read_text()) for one in (files, plain_files))
    assert (document["calibrated"], plain_document["calibrated"]) == (True, False)
    assert document["clips"] == plain_document["clips"]
    with files.csv.open(newline="") as table:
        shown = [row["confidence"] for row in csv.DictReader(table)]
    assert shown == [f"{one.confidence:.4f}" for one in timeline.predicted]


def test_predict_extracts_all_that_a_bundle_reads_side_by_side_and_nothing_else(
    project: Project, tmp_path: Path
) -> None:
    names = ["final/mean", "final/motion"]
    inputs, spaces = project_spaces(project, select=names)
    width = inputs.taps["final"].width
    torch.manual_seed(1)
    head = LinearHead(Front(2 * width, part_widths=(width, width)), len(LABELS))
    torch.nn.init.normal_(head.output.weight)
    settings = HeadSettings(inputs="+".join(names))
    bundle = Bundle(head, LABELS, np.array([0.5, 0.5]), settings, tuple(spaces.values()), tool_versions())
    save_bundle(bundle, tmp_path / "bundle")
    path = project.videos / "S2.mp4"
    found = predict(project, path, bundle=tmp_path / "bundle", out=tmp_path / "out", stride_us=SECOND // 4)
    ((timeline, _),) = found.written
    cache = FeatureCache.open(project.cache)
    assert {(one.tap, one.pooling) for one in cache.spaces} == {("final", "mean"), ("final", "motion")}
    sha256 = next(one[0] for one in cache.clips("final", "motion") if one[0].startswith(timeline.content))
    ids = [clip_id(sha256, *span) for span in timeline.spans_us.tolist()]
    X = np.concatenate([cache.load(ids, "final", pooling) for pooling in ("mean", "motion")], axis=1)
    assert (timeline.scores == bundle.scores(X, fingerprint=bundle.fingerprint)).all()


def test_predict_extracts_only_what_the_cache_lacks_whatever_a_file_is_called(project: Project, tmp_path: Path) -> None:
    predict(project, project.videos / "S0.mp4", out=tmp_path / "out", stride_us=SECOND)
    copy = tmp_path / "elsewhere" / "another name.mp4"
    copy.parent.mkdir()
    shutil.copy(project.videos / "S0.mp4", copy)
    found = predict(project, copy, out=tmp_path / "out", stride_us=SECOND)
    assert found.extraction.progress.extracted == 0
    ((timeline, files),) = found.written
    assert timeline.recording == "another name.mp4"
    assert files.eaf == tmp_path / "out" / "another name.predicted.eaf"


def test_predict_gives_the_same_timeline_again_and_replaces_its_own_files(project: Project, tmp_path: Path) -> None:
    first, second = (predict(project, project.videos / "S1.mp4", out=tmp_path / "out") for _ in range(2))
    assert first.written[0][0].predicted == second.written[0][0].predicted
    assert second.failed == ()


def test_predict_keeps_the_folders_of_recordings_inside_the_project(project: Project, tmp_path: Path) -> None:
    inner = project.videos / "day 1"
    inner.mkdir()
    write_video(inner / "S0.mp4", count=10, fps=5, metadata={"comment": "another"})
    try:
        found = predict(project, inner / "S0.mp4", project.videos / "S0.mp4", out=tmp_path / "out")
    finally:
        shutil.rmtree(inner)
    assert [files.eaf.relative_to(tmp_path / "out").as_posix() for _, files in found.written] == [
        "day 1/S0.predicted.eaf",
        "S0.predicted.eaf",
    ]
    (table,) = (piece for piece in predictions(found) if isinstance(piece, Table))
    assert [*table.columns[2].cells] == ["day 1/S0.predicted.eaf", "S0.predicted.eaf"]


def test_predict_uses_tuned_settings_when_the_bundle_has_them(project: Project, tmp_path: Path) -> None:
    bundle = shutil.copytree(project.runs / "tune" / "bundle", tmp_path / "bundle")
    settings = TimelineSettings("none", 0, 0.0, 4 * SECOND, 0)
    save_timeline(TunedTimeline(settings, 0.5, 0.4, 3, SECOND, SECOND), bundle)
    found = predict(project, project.videos / "S0.mp4", bundle=bundle, out=tmp_path / "out", stride_us=SECOND)
    ((timeline, files),) = found.written
    assert timeline.settings == settings
    assert all(one.end_us - one.start_us >= 4 * SECOND for one in timeline.predicted)
    assert json.loads(files.json.read_text())["tuned"] is True


def test_predict_obeys_rules_of_labels_that_exclude_each_other(project: Project, tmp_path: Path) -> None:
    always = dataclasses.replace(load_bundle(project.runs / "tune" / "bundle"), thresholds=np.zeros(len(LABELS)))
    save_bundle(always, tmp_path / "bundle")

    def spans(exclusive: list[tuple[str, ...]]) -> list[tuple[int, int]]:
        found = predict(
            with_rules(project, exclusive),
            project.videos / "S2.mp4",
            bundle=tmp_path / "bundle",
            out=tmp_path / "out",
        )
        return sorted((one.start_us, one.end_us) for one in found.written[0][0].predicted)

    assert spans([]) == [(0, 4 * SECOND)] * 2
    apart = spans([LABELS])
    assert all(end <= start for (_, end), (start, _) in pairwise(apart))
    assert sum(end - start for start, end in apart) <= 4 * SECOND
    with pytest.raises(TimelineError, match="'x' is none of ventilation, stimulation"):
        predict(with_rules(project, [("ventilation", "x")]), project.videos / "S2.mp4", out=tmp_path / "out")


def test_predict_refuses_when_the_project_makes_other_features(project: Project, tmp_path: Path) -> None:
    features = dataclasses.replace(project.settings.features, prompt="user: what happens here ? <video>")
    other = Project(project.root, dataclasses.replace(project.settings, features=features))
    with pytest.raises(FingerprintMismatchError, match="the features that the bundle reads, but"):
        predict(other, project.videos / "S0.mp4", out=tmp_path / "out")


# --- annotations ----------------------------------------------------------------------------------


def test_predict_adds_to_the_annotators_document_and_leaves_the_original(project: Project, tmp_path: Path) -> None:
    eaf = tmp_path / "elan" / "case 7.eaf"
    eaf.parent.mkdir()
    own = [Interval(SECOND, 2 * SECOND, "ventilation")]
    write_eaf(eaf, own, media_name="S0.mp4", time_origin_ms=400, tiers=["notes", "ventilation"])
    before = eaf.read_bytes()
    data = dataclasses.replace(project.settings.data, annotations=eaf.parent, tiers=("ventilation",))
    annotated = Project(project.root, dataclasses.replace(project.settings, data=data))
    found = predict(annotated, project.videos / "S0.mp4", project.videos / "S1.mp4", out=tmp_path / "out")

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
    assert document.media[0].media_url == f"file://{(project.videos / 'S0.mp4').as_posix()}"
    assert (files.eaf.parent / str(document.media[0].relative_media_url)).samefile(project.videos / "S0.mp4")
    for one in predicted_intervals(document, time_origin_ms=400):
        assert one.start_us >= 400_000


@pytest.mark.parametrize("way", ["tiers are renamed", "tiers are mapped", "nothing is done"])
def test_a_corrected_prediction_becomes_the_annotation_that_it_shows_and_an_uncorrected_one_none(
    project: Project, tmp_path: Path, way: str
) -> None:
    shutil.copytree(project.root, tmp_path / "project", ignore=shutil.ignore_patterns("clips.csv"))
    settings = tmp_path / "project" / "featurecache.toml"
    ((timeline, files),) = predict(project, project.videos / "S0.mp4", out=tmp_path / "out").written
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


def test_predict_takes_intervals_from_a_table_when_annotations_are_one(project: Project, tmp_path: Path) -> None:
    ((timeline, files),) = predict(project, project.videos / "S0.mp4", out=tmp_path / "out").written
    assert timeline.annotated == tuple(sorted(read_csv(project.annotations).intervals["S0.mp4"]))
    assert list(read_eaf(files.eaf).tiers) == [f"{label} (predicted)" for label in LABELS]


def test_predict_lists_annotations_that_it_cannot_use_and_goes_on(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "elan"
    folder.mkdir()
    (folder / "S0.eaf").write_text("<not an eaf")
    for name in ("one.eaf", "two.eaf"):
        write_eaf(folder / name, [Interval(0, 1_000_000, "ventilation")], media_name="S1.mp4")
    annotated = with_annotations(project, folder)
    found = predict(annotated, project.videos / "S0.mp4", project.videos / "S1.mp4", out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S0.mp4"]
    assert [(one.name, "line 1" in one.reason) for one in found.left_out] == [("S0.eaf", True)]
    ((failed),) = found.failed
    assert failed.name == "S1.mp4"
    assert "must have one annotation, but 'S1.mp4' has one.eaf and two.eaf" in failed.reason


# --- what goes wrong ------------------------------------------------------------------------------


def test_predict_lists_bad_recordings_with_reasons_and_predicts_the_others(project: Project, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "short.mp4", count=4, fps=5)
    shutil.copy(project.videos / "S0.mp4", tmp_path / "S0.mp4")
    shutil.copy(project.videos / "S1.mp4", tmp_path / "twin.mp4")
    paths = [
        project.videos / "S1.mp4",
        project.videos / "S1.mp4",
        project.videos,
        *(tmp_path / name for name in ("text.mp4", "short.mp4", "absent.mp4", "twin.mp4")),
        tmp_path,
        tmp_path / "S0.mp4",
    ]
    found = predict(project, *paths, out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S1.mp4", "S0.mp4"]
    reasons = {one.name: one.reason for one in found.failed}
    assert "shorter than one clip (0.8 s of 1 s)" in reasons["short.mp4"]
    assert "there is no such file" in reasons["absent.mp4"]
    assert "name the recordings in it" in reasons[tmp_path.name]
    assert "name the recordings in it" in reasons["videos"]
    assert "S1.mp4" not in reasons
    assert "S1.mp4 has the same content" in reasons["twin.mp4"]
    assert "text.mp4" in reasons


def test_predict_lists_a_link_that_leads_in_a_circle_and_predicts_the_others(project: Project, tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    found = predict(project, tmp_path / "loop.mp4", project.videos / "S1.mp4", out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S1.mp4"]
    assert [(one.name, one.reason) for one in found.failed] == [("loop.mp4", "it is a link that leads to no file")]


def test_predict_refuses_recordings_whose_files_would_have_one_name(project: Project, tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "take.mp4", count=10, fps=5, metadata={"comment": str(number)})
    found = predict(project, tmp_path / "a" / "take.mp4", tmp_path / "b" / "take.mp4", out=tmp_path / "out")
    assert len(found.written) == 1
    assert "files of the same name" in found.failed[0].reason


def test_predict_lists_the_recording_when_a_persons_file_is_in_the_way(project: Project, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "S0.predicted.eaf").write_text("reviewed by hand")
    found = predict(project, project.videos / "S0.mp4", project.videos / "S1.mp4", out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S1.mp4"]
    assert "not as predict wrote it" in found.failed[0].reason
    assert (tmp_path / "out" / "S0.predicted.eaf").read_text() == "reviewed by hand"


def test_predict_refuses_an_out_that_is_a_file(project: Project, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(NotADirectoryError):
        predict(project, project.videos / "S0.mp4", out=tmp_path / "out")


def test_predict_says_that_clips_are_as_long_as_the_bundles_where_the_settings_say_otherwise(
    project: Project, tmp_path: Path
) -> None:
    own = load_bundle(project.runs / "tune" / "bundle")
    for length_us, note in (
        (SECOND, ""),
        (3 * SECOND, "clips of 3 s as the bundle was fitted with, not 1 s of the settings"),
    ):
        folder = tmp_path / str(length_us)
        save_bundle(dataclasses.replace(own, clips=ClipRule(length_us, length_us, length_us // 2)), folder)
        found = predict(project, project.videos / "S0.mp4", bundle=folder, out=folder / "out")
        ((timeline, _),) = found.written
        assert timeline.length_us == length_us
        assert found.to_mapping()["note"] == note
        assert (note in predictions(found)) == bool(note)


def test_predict_is_empty_handed_when_no_recording_is_usable(project: Project, tmp_path: Path) -> None:
    found = predict(project, tmp_path / "absent.mp4", out=tmp_path / "out")
    assert found.written == ()
    assert len(found.failed) == 1


@pytest.mark.skipif(not CORRUPTED.exists(), reason="the shared real files are not on this machine")
def test_predict_goes_around_clips_that_cannot_be_had_when_a_recording_is_damaged(
    project: Project, tmp_path: Path
) -> None:
    settings = dataclasses.replace(project.settings.clips, length_s=project.settings.clips.length_s / 5)
    short = Project(project.root, dataclasses.replace(project.settings, clips=settings))
    found = predict(short, CORRUPTED, out=tmp_path / "out", stride_us=SECOND // 10)
    ((timeline, files),) = found.written
    assert timeline.failed
    assert len(timeline.failed) + len(timeline.spans_us) == len(
        scored_windows(timeline.duration_us, SECOND // 5, SECOND // 10)
    )
    assert json.loads(files.json.read_text())["failed"][0][2]
    covered = timeline.scored_us
    for one in timeline.predicted:
        assert any(start <= one.start_us and one.end_us <= end for start, end in covered)


# --- the command ----------------------------------------------------------------------------------


def test_predict_command_ends_with_three_and_lists_when_a_recording_fails(project: Project, tmp_path: Path) -> None:
    text = (
        project.root / "featurecache.toml"
    ).read_text() + '\n[timeline]\nstride_s = 0.5\nexclusive = [["%s", "%s"]]\n'
    root = tmp_path / "project"
    shutil.copytree(project.root, root)
    (root / "featurecache.toml").write_text(text % LABELS)
    assert open_project(root).settings.timeline["stride_s"] == 0.5
    command = ["predict", str(root / "videos" / "S0.mp4"), str(tmp_path / "absent.mp4")]
    options = ["--out", str(tmp_path / "out"), "--config", str(root)]
    done = CliRunner().invoke(app, [*command, *options, "--json"])
    assert done.exit_code == 3
    document = json.loads(done.stdout)
    assert [one["recording"] for one in document["written"]] == ["S0.mp4"]
    assert document["failed"] == [{"name": "absent.mp4", "reason": "there is no such file"}]
    written = json.loads(Path(document["written"][0]["json"]).read_text())
    assert written["clips"]["stride_us"] == SECOND // 2
    assert written["exclusive"] == [list(LABELS)]
    plain = CliRunner().invoke(app, [*command[:2], *options, "--stride", "1"])
    assert plain.exit_code == 0, plain.output
    assert " S0.predicted.eaf " in plain.stdout
    assert f"wrote them to {tmp_path / 'out'}. " in plain.stdout


def test_predict_command_says_what_is_wrong_in_timeline_settings(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    text = (project.root / "featurecache.toml").read_text() + "\n[timeline]\nexclusiv = []\n"
    (root / "featurecache.toml").write_text(text)
    done = CliRunner().invoke(app, ["predict", "a.mp4", "--out", str(tmp_path / "out"), "--config", str(root)])
    assert done.exit_code == 1
    assert "Did you mean 'exclusive'?" in done.output
