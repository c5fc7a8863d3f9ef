"""Timelines: tuned by held-out scores, and of a split scored on what was scored and annotated."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache import FeatureCache
from featurecache.annotations import Interval
from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.errors import TrainingDataError
from featurecache.extraction.failures import KnownFailures
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from heads.bundle import Bundle, tool_versions
from heads.loading import NONE_KNOWN
from heads.models import Front, LinearHead
from heads.runs import HeldOut
from heads.scoring.calibration import Calibration
from heads.settings import HeadSettings
from heads.timelines.timeline import TimelineSettings
from heads.timelines.tuning import TunedTimeline
from heads.workflow.data import ScoringData
from heads.workflow.timelines import clip_scores, evaluate_timelines, tune_on_held_out
from tests.projects import LABELS, make_project, make_table, write_labels

SECOND = 1_000_000


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("splits") / "project", tiny_model)
    make_table(project)
    run_plan(project, plan_extraction(project))
    return project


@pytest.fixture(scope="module")
def bundle(project: Project) -> Bundle:
    inputs, spaces = project_spaces(project)
    space = next(iter(spaces.values()))
    torch.manual_seed(0)
    head = LinearHead(Front(inputs.taps["final"].width), len(LABELS))
    torch.nn.init.normal_(head.output.weight, std=3)
    return Bundle(head, LABELS, np.array([0.5, 0.4]), HeadSettings(), (space,), tool_versions())


def annotated_with(project: Project, path: Path, intervals: dict[str, list[Interval]]) -> Project:
    write_labels(path, intervals)
    data = dataclasses.replace(project.settings.data, annotations=path)
    return Project(project.root, dataclasses.replace(project.settings, data=data))


def source_of(project: Project, table: ClipTable, known: KnownFailures = NONE_KNOWN) -> ScoringData:
    return ScoringData(table, FeatureCache.open(project.cache), known, {})


def names_of(project: Project, split: str) -> list[str]:
    return sorted({clip.recording for clip in read_table(project.clips).clips if clip.split == split})


def held_out_of(project: Project, bundle: Bundle, *splits: str) -> HeldOut:
    clips = [clip for clip in read_table(project.clips).clips if clip.split in splits]
    ids = tuple(clip.clip_id for clip in clips)
    scores = clip_scores(bundle, FeatureCache.open(project.cache), ids)
    Y, sessions = np.array([clip.targets for clip in clips]), np.array([clip.session for clip in clips])
    return HeldOut("out-of-fold", scores, Y, sessions, ids)


def test_timeline_settings_are_chosen_by_the_clips_with_held_out_scores_alone(project: Project, bundle: Bundle) -> None:
    table, held_out = read_table(project.clips), held_out_of(project, bundle, "train", "validation")
    found = tune_on_held_out(project, bundle, table, held_out)
    assert found.n_recordings == len(names_of(project, "train")) + len(names_of(project, "validation"))
    assert (found.length_us, found.stride_us) == (SECOND, SECOND)
    without_test = dataclasses.replace(table, clips=tuple(c for c in table.clips if c.split != "test"))
    assert tune_on_held_out(project, bundle, without_test, held_out) == found


def test_a_label_without_held_out_scores_has_no_say_in_timeline_settings(project: Project, bundle: Bundle) -> None:
    table, held_out = read_table(project.clips), held_out_of(project, bundle, "train", "validation")
    held_out.scores[:, 1] = np.nan
    found = tune_on_held_out(project, bundle, table, held_out)
    other = dataclasses.replace(bundle, thresholds=np.array([0.5, 0.9]))
    assert tune_on_held_out(project, other, table, held_out) == found


def test_evaluate_timelines_scores_a_perfect_timeline_as_one(project: Project, bundle: Bundle, tmp_path: Path) -> None:
    """The annotation is replaced by what the bundle predicts; then it must agree with itself."""
    table = read_table(project.clips)
    plain = TunedTimeline(TimelineSettings("none", 0, 0.0, 0, 0), 0.0, 0.0, 1, SECOND, SECOND)
    before = evaluate_timelines(project, bundle, source_of(project, table), tuned=plain)
    predicted = {
        one["recording"]["name"]: [
            Interval(start, end, label) for label, own in one["predicted"].items() for start, end, _ in own
        ]
        for one in before["recordings"]
    }
    assert any(predicted.values())
    twin = annotated_with(project, tmp_path / "labels.csv", predicted)
    after = evaluate_timelines(twin, bundle, source_of(twin, table), tuned=plain)
    defined = {value for value in after["scores"]["segment_f1"].values() if value is not None}
    assert defined == {1.0}
    assert after["scores"]["n_recordings"] == len(names_of(project, "test"))
    assert all(one["disagreements"] == [] for one in after["recordings"])
    assert [one["session"] for one in after["recordings"]] == [Path(name).stem for name in names_of(project, "test")]


def test_evaluate_timelines_scores_the_same_intervals_when_calibrated(project: Project, bundle: Bundle) -> None:
    calibration = Calibration(np.array([2.0, 4.0]), np.array([-1.0, -0.5]))
    table, both = read_table(project.clips), (bundle, dataclasses.replace(bundle, calibration=calibration))
    plain, calibrated = (evaluate_timelines(project, one, source_of(project, table), tuned=None) for one in both)
    assert calibrated["scores"] == plain["scores"]
    for one, other in zip(plain["recordings"], calibrated["recordings"], strict=True):
        assert (one["calibrated"], other["calibrated"]) == (False, True)
        assert one["clips"] == other["clips"]
        assert (one["predicted"] != other["predicted"]) == any(one["predicted"].values())


def test_evaluate_timelines_compares_only_what_was_scored(project: Project, bundle: Bundle) -> None:
    table = read_table(project.clips)
    name = names_of(project, "test")[0]
    gone = f"{'f' * 16}-{SECOND}-{2 * SECOND}"
    known = KnownFailures({(gone, bundle.fingerprint): "torn"})
    clips = [
        dataclasses.replace(clip, clip_id=gone) if (clip.recording, clip.start_us) == (name, SECOND) else clip
        for clip in table.clips
    ]
    lacking = ClipTable(table.labels, tuple(clips))
    whole = evaluate_timelines(project, bundle, source_of(project, table), tuned=None)["scores"]["compared_s"]
    part = evaluate_timelines(project, bundle, source_of(project, lacking, known), tuned=None)
    assert part["scores"]["compared_s"] == whole - 1
    assert part["recordings"][0]["scored_us"] == [[0, SECOND], [2 * SECOND, 4 * SECOND]]


def test_evaluate_timelines_refuses_when_no_recording_is_annotated(
    project: Project, bundle: Bundle, tmp_path: Path
) -> None:
    nothing = annotated_with(project, tmp_path / "labels.csv", {"other.mp4": []})
    with pytest.raises(TrainingDataError, match="need an annotated recording"):
        evaluate_timelines(nothing, bundle, source_of(nothing, read_table(project.clips)), tuned=None)
