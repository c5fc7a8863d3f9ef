"""Recordings and a bundle to timelines, on real videos and a tiny real model."""

import csv
import dataclasses
import json
import re
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
from featurecache import FeatureCache
from featurecache.annotations import Interval, predicted_intervals, read_csv, read_eaf
from featurecache.clips.clip import clip_id, clip_windows, union_of
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
from heads.workflow.predicting import scored_windows
from tests.make_videos import write_video
from tests.prediction_samples import SECOND, make_bundle, predict
from tests.projects import LABELS, edit

CORRUPTED = Path(__file__).parents[1].parent / "shared/data/video/decord_corrupted.mp4"


def with_rules(bundled: Project, exclusive: list[tuple[str, ...]]) -> Project:
    timeline = {"exclusive": tuple(exclusive)}
    return dataclasses.replace(bundled, settings=dataclasses.replace(bundled.settings, timeline=timeline))


# --- scores and files -----------------------------------------------------------------------------


def test_predict_scores_overlapping_clips_as_the_bundle_does(bundled: Project, tmp_path: Path) -> None:
    found = predict(bundled, bundled.videos / "S0.mp4", out=tmp_path / "out")
    ((timeline, files),) = found.written
    assert timeline.spans_us.tolist() == [list(span) for span in clip_windows(4 * SECOND, SECOND, SECOND // 2)]
    bundle, cache = load_bundle(bundled.runs / "tune" / "bundle"), FeatureCache.open(bundled.cache)
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


def test_predict_scores_the_tail_of_a_recording(bundled: Project, tmp_path: Path) -> None:
    write_video(tmp_path / "tail.mp4", count=12, fps=5, metadata={"comment": "a tail"})
    found = predict(bundled, tmp_path / "tail.mp4", out=tmp_path / "out", stride_us=SECOND)
    ((timeline, _),) = found.written
    assert timeline.duration_us == 2_400_000
    assert timeline.spans_us.tolist() == [[0, SECOND], [SECOND, 2 * SECOND], [1_400_000, 2_400_000]]
    assert timeline.scored_us == [(0, timeline.duration_us)]
    assert timeline.failed == []


def test_predict_is_confident_by_calibrated_probabilities_when_the_bundle_has_them(
    bundled: Project, tmp_path: Path
) -> None:
    calibration = Calibration(np.array([2.0, 0.5]), np.array([-1.0, 0.3]))
    own = load_bundle(bundled.runs / "tune" / "bundle")
    save_bundle(dataclasses.replace(own, calibration=calibration), tmp_path / "bundle")
    path = bundled.videos / "S0.mp4"
    ((plain, plain_files),) = predict(bundled, path, out=tmp_path / "plain").written
    found = predict(bundled, path, bundle=tmp_path / "bundle", out=tmp_path / "out", stride_us=SECOND // 2)
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
    bundled: Project, tmp_path: Path
) -> None:
    names = ["final/mean", "final/motion"]
    inputs, spaces = project_spaces(bundled, select=names)
    width = inputs.taps["final"].width
    torch.manual_seed(1)
    head = LinearHead(Front(2 * width, part_widths=(width, width)), len(LABELS))
    torch.nn.init.normal_(head.output.weight)
    settings = HeadSettings(inputs="+".join(names))
    bundle = Bundle(head, LABELS, np.array([0.5, 0.5]), settings, tuple(spaces.values()), tool_versions())
    save_bundle(bundle, tmp_path / "bundle")
    path = bundled.videos / "S2.mp4"
    found = predict(bundled, path, bundle=tmp_path / "bundle", out=tmp_path / "out", stride_us=SECOND // 4)
    ((timeline, _),) = found.written
    cache = FeatureCache.open(bundled.cache)
    assert {(one.tap, one.pooling) for one in cache.spaces} == {("final", "mean"), ("final", "motion")}
    sha256 = next(one[0] for one in cache.clips("final", "motion") if one[0].startswith(timeline.content))
    ids = [clip_id(sha256, *span) for span in timeline.spans_us.tolist()]
    X = np.concatenate([cache.load(ids, "final", pooling) for pooling in ("mean", "motion")], axis=1)
    assert (timeline.scores == bundle.scores(X, fingerprint=bundle.fingerprint)).all()


def test_predict_extracts_only_what_the_cache_lacks_whatever_a_file_is_called(bundled: Project, tmp_path: Path) -> None:
    predict(bundled, bundled.videos / "S0.mp4", out=tmp_path / "out", stride_us=SECOND)
    copy = tmp_path / "elsewhere" / "another name.mp4"
    copy.parent.mkdir()
    shutil.copy(bundled.videos / "S0.mp4", copy)
    found = predict(bundled, copy, out=tmp_path / "out", stride_us=SECOND)
    assert found.extraction.progress.extracted == 0
    ((timeline, files),) = found.written
    assert timeline.recording == "another name.mp4"
    assert files.eaf == tmp_path / "out" / "another name.predicted.eaf"


def test_predict_gives_the_same_timeline_again_and_replaces_its_own_files(bundled: Project, tmp_path: Path) -> None:
    first, second = (predict(bundled, bundled.videos / "S1.mp4", out=tmp_path / "out") for _ in range(2))
    assert first.written[0][0].predicted == second.written[0][0].predicted
    assert second.failed == ()


def test_predict_keeps_the_folders_of_recordings_inside_the_project(bundled: Project, tmp_path: Path) -> None:
    inner = bundled.videos / "day 1"
    inner.mkdir()
    write_video(inner / "S0.mp4", count=10, fps=5, metadata={"comment": "another"})
    try:
        found = predict(bundled, inner / "S0.mp4", bundled.videos / "S0.mp4", out=tmp_path / "out")
    finally:
        shutil.rmtree(inner)
    assert [files.eaf.relative_to(tmp_path / "out").as_posix() for _, files in found.written] == [
        "day 1/S0.predicted.eaf",
        "S0.predicted.eaf",
    ]
    (table,) = (piece for piece in predictions(found) if isinstance(piece, Table))
    assert [*table.columns[2].cells] == ["day 1/S0.predicted.eaf", "S0.predicted.eaf"]


def test_predict_uses_tuned_settings_when_the_bundle_has_them(bundled: Project, tmp_path: Path) -> None:
    bundle = shutil.copytree(bundled.runs / "tune" / "bundle", tmp_path / "bundle")
    settings = TimelineSettings("none", 0, 0.0, 4 * SECOND, 0)
    save_timeline(TunedTimeline(settings, 0.5, 0.4, 3, SECOND, SECOND), bundle)
    found = predict(bundled, bundled.videos / "S0.mp4", bundle=bundle, out=tmp_path / "out", stride_us=SECOND)
    ((timeline, files),) = found.written
    assert timeline.settings == settings
    assert all(one.end_us - one.start_us >= 4 * SECOND for one in timeline.predicted)
    assert json.loads(files.json.read_text())["tuned"] is True


def test_predict_obeys_rules_of_labels_that_exclude_each_other(bundled: Project, tmp_path: Path) -> None:
    always = dataclasses.replace(load_bundle(bundled.runs / "tune" / "bundle"), thresholds=np.zeros(len(LABELS)))
    save_bundle(always, tmp_path / "bundle")

    def spans(exclusive: list[tuple[str, ...]]) -> list[tuple[int, int]]:
        found = predict(
            with_rules(bundled, exclusive),
            bundled.videos / "S2.mp4",
            bundle=tmp_path / "bundle",
            out=tmp_path / "out",
        )
        return sorted((one.start_us, one.end_us) for one in found.written[0][0].predicted)

    assert spans([]) == [(0, 4 * SECOND)] * 2
    apart = spans([LABELS])
    assert all(end <= start for (_, end), (start, _) in pairwise(apart))
    assert sum(end - start for start, end in apart) <= 4 * SECOND
    with pytest.raises(TimelineError, match="'x' is none of ventilation, stimulation"):
        predict(with_rules(bundled, [("ventilation", "x")]), bundled.videos / "S2.mp4", out=tmp_path / "out")


def test_predict_refuses_when_the_project_makes_other_features(bundled: Project, tmp_path: Path) -> None:
    features = dataclasses.replace(bundled.settings.features, prompt="user: what happens here ? <video>")
    other = Project(bundled.root, dataclasses.replace(bundled.settings, features=features))
    with pytest.raises(FingerprintMismatchError, match="the features that the bundle reads, but"):
        predict(other, bundled.videos / "S0.mp4", out=tmp_path / "out")


# --- what goes wrong ------------------------------------------------------------------------------


def test_predict_lists_bad_recordings_with_reasons_and_predicts_the_others(bundled: Project, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    write_video(tmp_path / "short.mp4", count=4, fps=5)
    shutil.copy(bundled.videos / "S0.mp4", tmp_path / "S0.mp4")
    shutil.copy(bundled.videos / "S1.mp4", tmp_path / "twin.mp4")
    paths = [
        bundled.videos / "S1.mp4",
        bundled.videos / "S1.mp4",
        bundled.videos,
        *(tmp_path / name for name in ("text.mp4", "loop.mp4", "short.mp4", "absent.mp4", "twin.mp4")),
        tmp_path,
        tmp_path / "S0.mp4",
    ]
    found = predict(bundled, *paths, out=tmp_path / "out")
    assert [timeline.recording for timeline, _ in found.written] == ["S1.mp4", "S0.mp4"]
    reasons = {one.name: one.reason for one in found.failed}
    assert "shorter than one clip (0.8 s of 1 s)" in reasons["short.mp4"]
    assert "there is no such file" in reasons["absent.mp4"]
    assert "name the recordings in it" in reasons[tmp_path.name]
    assert "name the recordings in it" in reasons["videos"]
    assert "S1.mp4" not in reasons
    assert "S1.mp4 has the same content" in reasons["twin.mp4"]
    assert "text.mp4" in reasons
    assert reasons["loop.mp4"] == "it is a link that leads to no file"


def test_predict_refuses_recordings_whose_files_would_have_one_name(bundled: Project, tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "take.mp4", count=10, fps=5, metadata={"comment": str(number)})
    found = predict(bundled, tmp_path / "a" / "take.mp4", tmp_path / "b" / "take.mp4", out=tmp_path / "out")
    assert len(found.written) == 1
    assert "files of the same name" in found.failed[0].reason


def test_predict_refuses_an_out_that_is_a_file(bundled: Project, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(NotADirectoryError):
        predict(bundled, bundled.videos / "S0.mp4", out=tmp_path / "out")


def test_predict_says_that_clips_are_as_long_as_the_bundles_where_the_settings_say_otherwise(
    bundled: Project, tmp_path: Path
) -> None:
    own = load_bundle(bundled.runs / "tune" / "bundle")
    for length_us, note in (
        (SECOND, ""),
        (3 * SECOND, "clips of 3 s as the bundle was fitted with, not 1 s of the settings"),
    ):
        folder = tmp_path / str(length_us)
        save_bundle(dataclasses.replace(own, clips=ClipRule(length_us, length_us, length_us // 2)), folder)
        found = predict(bundled, bundled.videos / "S0.mp4", bundle=folder, out=folder / "out")
        ((timeline, _),) = found.written
        assert timeline.length_us == length_us
        assert found.to_mapping()["note"] == note
        assert (note in predictions(found)) == bool(note)


def test_predict_refuses_a_recording_whose_frames_would_stay_whole_where_others_are_cut(
    bundled: Project, tmp_path: Path
) -> None:
    write_video(tmp_path / "other.mp4", count=10, fps=5, size=(96, 64))
    for crop, own, words in (
        (
            '{ "176x96" = [0, 0, 0.5, 1] }',
            bundled.videos / "S0.mp4",
            "no box for its frames of 96x64 px, .* Give them one",
        ),
        (
            '{ "S*" = [0, 0, 0.5, 1] }',
            bundled.videos / "S0.mp4",
            r"of other.mp4 of S\* none does. Name the recording as others are",
        ),
    ):
        root = tmp_path / words[:3]
        shutil.copytree(bundled.root, root)
        edit(root / "featurecache.toml", "frames = 4", f"frames = 4\ncrop = {crop}")
        project = open_project(root)
        make_bundle(project, root / "bundle")
        found = predict(project, own, tmp_path / "other.mp4", out=root / "out", bundle=root / "bundle")
        assert [timeline.recording for timeline, _ in found.written] == ["S0.mp4"]
        ((name, reason),) = [(one.name, one.reason) for one in found.failed]
        assert name == "other.mp4"
        assert re.search(words, reason), reason
        alone = predict(project, tmp_path / "other.mp4", out=root / "out", bundle=root / "bundle")
        assert (alone.written, len(alone.failed), alone.is_partial) == ((), 1, True)


@pytest.mark.skipif(not CORRUPTED.exists(), reason="the shared real files are not on this machine")
def test_predict_goes_around_clips_that_could_not_be_extracted_when_a_recording_is_damaged(
    bundled: Project, tmp_path: Path
) -> None:
    settings = dataclasses.replace(bundled.settings.clips, length_s=bundled.settings.clips.length_s / 5)
    short = Project(bundled.root, dataclasses.replace(bundled.settings, clips=settings))
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


def test_predict_command_ends_with_three_and_lists_when_a_recording_fails(bundled: Project, tmp_path: Path) -> None:
    text = (
        bundled.root / "featurecache.toml"
    ).read_text() + '\n[timeline]\nstride_s = 0.5\nexclusive = [["%s", "%s"]]\n'
    root = tmp_path / "project"
    shutil.copytree(bundled.root, root)
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


def test_predict_command_says_what_is_wrong_in_timeline_settings(bundled: Project, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    text = (bundled.root / "featurecache.toml").read_text() + "\n[timeline]\nexclusiv = []\n"
    (root / "featurecache.toml").write_text(text)
    done = CliRunner().invoke(app, ["predict", "a.mp4", "--out", str(tmp_path / "out"), "--config", str(root)])
    assert done.exit_code == 1
    assert "Did you mean 'exclusive'?" in done.output
