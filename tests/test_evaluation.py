"""Evaluation: what a document says of looks, splits and calibration; comparing bundles; leaving one session out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.clips.clip import Clip, clip_id
from featurecache.errors import BundleError, SettingsError, TrainingDataError
from heads.bundle import Bundle
from heads.data import LabelledFeatures
from heads.engines.fitting import refitting
from heads.scoring.calibration import fit_calibration
from heads.settings import HeadSettings
from heads.workflow.evaluation import (
    Evaluation,
    compare_evaluations,
    compare_with_each,
    evaluate_bundle,
    evaluate_bundles,
    evaluate_without_each_session,
)
from tests.bundle_samples import LABELS, SPACE, held_out, make_bundle

FORCED = {"split_level": "clip", "split_warning": "splits cut sessions"}


def evaluated(bundle: Bundle, data: LabelledFeatures, log: Path, **options: Any) -> Evaluation:
    return evaluate_bundle(bundle, data, split="test", fingerprint=SPACE.fingerprint, log=log, **options)


def followed(bundle: Bundle) -> LabelledFeatures:
    """Held-out clips whose targets are what the bundle says, but for one in five."""
    data = held_out(sessions=8)
    scores = bundle.scores(data.X, fingerprint=SPACE.fingerprint)
    wrong = np.random.default_rng(0).random(scores.shape) < 0.2
    return dataclasses.replace(data, Y=((scores >= bundle.thresholds) ^ wrong).astype(np.int8))


def test_evaluate_bundle_says_in_the_document_which_look_it_was(tmp_path: Path) -> None:
    first, second = (evaluated(make_bundle(seed=seed), held_out(), tmp_path / "looks.jsonl") for seed in range(2))
    assert (first.metrics["looks"], second.metrics["looks"]) == (1, 2)
    assert "looks_warning" not in first.metrics
    assert "optimistically biased" in second.metrics["looks_warning"]


def test_evaluate_bundle_writes_a_forced_split_into_the_document(tmp_path: Path) -> None:
    metrics = evaluated(make_bundle(), held_out(), tmp_path / "looks.jsonl", leakage=FORCED).metrics
    assert metrics.items() >= FORCED.items()


def test_evaluate_bundle_adds_calibration_before_and_after_and_curves(tmp_path: Path) -> None:
    bundle, data = make_bundle(), held_out()
    scores = bundle.scores(data.X, fingerprint=SPACE.fingerprint)
    calibration = fit_calibration(data.Y, scores)
    metrics = evaluated(dataclasses.replace(bundle, calibration=calibration), data, tmp_path / "looks.jsonl").metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["calibration"]["after"]["brier"] < metrics["calibration"]["before"]["brier"]
    assert list(metrics["curves"]) == list(LABELS)
    uncalibrated = dataclasses.replace(bundle, calibration=None)
    assert evaluated(uncalibrated, data, tmp_path / "looks.jsonl").metrics["calibration"]["after"] is None


def test_evaluate_bundle_gives_no_scores_when_the_look_cannot_be_logged(tmp_path: Path) -> None:
    (tmp_path / "looks.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        evaluated(make_bundle(), held_out(), tmp_path / "looks.jsonl")


def test_evaluate_bundle_scores_at_the_bundles_thresholds(tmp_path: Path) -> None:
    data, bundle = held_out(), make_bundle()
    evaluation = evaluated(bundle, data, tmp_path / "looks.jsonl")
    assert [evaluation.metrics["per_class"][label]["threshold"] for label in LABELS] == bundle.thresholds.tolist()
    assert evaluation.metrics["n_sessions"] == 6
    assert len(evaluation.metrics["macro_f1_ci95"]) == 2


def test_evaluate_bundle_looks_at_nothing_when_the_split_is_unusable(tmp_path: Path) -> None:
    data = held_out()
    unlabelled = dataclasses.replace(data, Y=np.where(np.arange(60)[:, None] == 3, -1, data.Y))
    negative = dataclasses.replace(data, Y=np.zeros_like(data.Y))
    for bad, message in ((unlabelled, "first: row 3"), (negative, "none of ventilation")):
        with pytest.raises(TrainingDataError, match=message):
            evaluated(make_bundle(), bad, tmp_path / "looks.jsonl")
    assert not (tmp_path / "looks.jsonl").exists()


def test_a_bundle_is_not_scored_on_a_session_that_trained_it(tmp_path: Path) -> None:
    bundle, data = make_bundle(), held_out()
    assert data.clip_ids is not None
    seen = dataclasses.replace(data, clip_ids=("0" * 16 + "-10000000-13000000", *data.clip_ids[1:]))
    with pytest.raises(BundleError, match=r"has not seen, but 1 of the test split \(patient 0\) trained or tuned it"):
        evaluated(bundle, seen, tmp_path / "looks.jsonl")
    with pytest.raises(BundleError, match="must be known by their ids"):
        evaluated(bundle, dataclasses.replace(data, clip_ids=None), tmp_path / "looks.jsonl")
    assert not (tmp_path / "looks.jsonl").exists()
    assert evaluated(bundle, seen, tmp_path / "looks.jsonl", leakage=FORCED).looks == 1


def test_compare_evaluations_tells_the_better_bundle(tmp_path: Path) -> None:
    good, other = make_bundle(), make_bundle(seed=1)
    data = followed(good)
    ours, theirs = (evaluated(bundle, data, tmp_path / "looks.jsonl") for bundle in (good, other))
    comparison = compare_evaluations(ours, theirs)
    assert comparison["difference"] == pytest.approx(ours.metrics["macro_f1"] - theirs.metrics["macro_f1"])
    assert comparison["difference_ci95"][0] > 0
    assert comparison["p_value"] < 0.01
    assert theirs.looks == 2


def test_compare_evaluations_is_refused_when_sessions_differ(tmp_path: Path) -> None:
    ours, theirs = (evaluated(make_bundle(), held_out(count), tmp_path / "looks.jsonl") for count in (6, 7))
    with pytest.raises(BundleError, match=r"in 6 sessions and the other .* in 7"):
        compare_evaluations(ours, theirs)


def together(pairs: list[tuple[Bundle, LabelledFeatures]], log: Path) -> list[Evaluation]:
    return evaluate_bundles([(bundle, data, SPACE.fingerprint) for bundle, data in pairs], split="test", log=log)


def test_evaluate_bundles_is_one_look_with_a_line_for_each_bundle(tmp_path: Path) -> None:
    log, data = tmp_path / "looks.jsonl", held_out()
    bundles = [make_bundle(), make_bundle(seed=1)]
    both = together([(bundle, data) for bundle in bundles], log)
    assert [one.looks for one in both] == [1, 1]
    assert not any("looks_warning" in one.metrics for one in both)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["bundle"] for line in lines] == [bundle.digest for bundle in bundles]
    assert [line["macro_f1"] for line in lines] == [one.metrics["macro_f1"] for one in both]
    alone = evaluated(bundles[1], data, log)
    assert alone.looks == 1
    seen = {"looks", "looks_warning"}
    assert {**alone.metrics, **dict.fromkeys(seen)} == {**both[1].metrics, **dict.fromkeys(seen)}


@pytest.mark.parametrize("change", ["same bundle", "other clips", "other labels", "other targets", "other features"])
def test_evaluate_bundles_looks_at_nothing_when_not_all_can_be_compared(tmp_path: Path, change: str) -> None:
    log, data = tmp_path / "looks.jsonl", held_out()
    other, theirs, message = {
        "same bundle": (make_bundle(), data, "are the same one"),
        "other clips": (make_bundle(seed=1), held_out(7), "on 60 clips and the other .* on 70"),
        "other labels": (
            dataclasses.replace(make_bundle(seed=1), labels=tuple(reversed(LABELS))),
            data,
            "the same labels and clips",
        ),
        "other targets": (make_bundle(seed=1), dataclasses.replace(data, Y=1 - data.Y), "the same labels and clips"),
        "other features": (make_bundle(seed=1), dataclasses.replace(data, X=data.X[:, :3]), "must have shape"),
    }[change]
    with pytest.raises(BundleError, match=message):
        together([(make_bundle(), data), (other, theirs)], log)
    assert not log.exists()


def test_several_comparisons_are_adjusted_for_each_other(tmp_path: Path) -> None:
    good = make_bundle()
    data = followed(good)
    ours, *others = together([(make_bundle(seed=seed), data) for seed in range(3)], tmp_path / "looks.jsonl")
    found = compare_with_each(ours, others)
    assert [one["difference"] for one in found] == [compare_evaluations(ours, one)["difference"] for one in others]
    assert min(one["p_holm"] for one in found) == pytest.approx(2 * min(one["p_value"] for one in found))
    assert "p_holm" not in compare_with_each(ours, others[:1])[0]


TEST_CLIP = Clip(clip_id("0" * 64, 0, 1), "a.mp4", "patient 1", "test", 0, 1, (1, 0))
SETTINGS = HeadSettings(solver="convex", l2=0.1)


def left_out(data: LabelledFeatures, log: Path, **options: Any) -> dict[str, Any]:
    bundle = dataclasses.replace(make_bundle(), settings=SETTINGS)
    fit_scores = refitting(data, SETTINGS)
    return evaluate_without_each_session(fit_scores, data, bundle, test=[TEST_CLIP], log=log, **options)


def test_evaluate_without_each_session_learns_each_from_the_others_and_counts_as_a_look(tmp_path: Path) -> None:
    log, data = tmp_path / "looks.jsonl", followed(make_bundle())
    metrics = left_out(data, log, leakage=FORCED)
    assert (metrics["split"], metrics["n_sessions"], metrics["looks"]) == ("leave-one-session-out", 8, 1)
    assert metrics["macro_f1"] > 0.5
    assert metrics["split_warning"] == FORCED["split_warning"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert left_out(data, log)["looks"] == 2
    assert evaluated(make_bundle(), dataclasses.replace(data, sessions=np.full(80, "patient 1")), log).looks == 3


def test_evaluate_without_each_session_is_refused_when_there_is_one(tmp_path: Path) -> None:
    data = held_out(sessions=1)
    with pytest.raises(SettingsError, match="of 1 sessions"):
        left_out(data, tmp_path / "looks.jsonl")
    assert not (tmp_path / "looks.jsonl").exists()
