"""Labels that exclude each other, clip by clip: what a clip keeps, when a bundle keeps a rule, and what breaks it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.files import sha256_of_file
from heads.bundle import load_bundle, save_bundle
from heads.scoring.exclusive import choose_exclusive, predicted_labels, violations
from heads.scoring.metrics import confusion_counts, f1_scores, macro_f1
from heads.workflow.evaluation import evaluate_bundle
from tests.bundle_samples import LABELS as NAMES
from tests.bundle_samples import SPACE, features, held_out, make_bundle

LABELS = ("a", "b", "c")
HALF = np.full(3, 0.5)


def test_a_clip_keeps_the_label_that_is_furthest_above_its_own_threshold() -> None:
    scores, thresholds = np.array([[0.7, 0.6, 0.9], [0.4, 0.6, 0.1], [0.7, 0.1, 0.9]]), np.array([0.5, 0.1, 0.5])
    found = predicted_labels(scores, thresholds, LABELS, [("a", "b")])
    assert found.tolist() == [[False, True, True], [False, True, False], [True, False, True]]


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=9))
def test_rules_only_take_labels_away_and_leave_no_violation(rows: list[tuple[float, ...]]) -> None:
    scores, groups = np.array(rows), [("a", "b"), ("c", "b")]
    free, kept = predicted_labels(scores, HALF), predicted_labels(scores, HALF, LABELS, groups)
    assert (free | ~kept).all()
    assert (free.any(axis=1) == kept.any(axis=1)).all()
    assert [one["clips"] for one in violations(kept, LABELS, groups)] == [0, 0]


def test_a_rule_is_kept_where_it_costs_the_held_out_score_nothing() -> None:
    draw = np.random.default_rng(0)
    which = draw.integers(0, 3, 300)
    apart, together = np.eye(3, dtype=int)[which], np.ones((300, 3), int)
    together[::3] = 0
    for Y, is_kept in ((apart, True), (together, False)):
        scores = np.clip(0.45 + 0.25 * Y + draw.normal(0, 0.1, Y.shape), 0, 1)
        (found,) = choose_exclusive(Y, scores, HALF, labels=LABELS, exclusive=[("a", "c")])
        both = ((scores[:, 0] >= 0.5) & (scores[:, 2] >= 0.5)).sum()
        assert (found["labels"], found["clips"], found["of"], found["kept"]) == (["a", "c"], both, 300, is_kept)
        assert found["macro_f1"] == macro_f1(Y, scores)
        assert (found["macro_f1_with"] > found["macro_f1"]) is is_kept


def test_a_label_without_scores_has_no_part_in_the_choice() -> None:
    Y, scores = np.eye(3, dtype=int), np.array([[0.9, 0.6, np.nan], [0.1, 0.8, np.nan], [0.2, 0.1, np.nan]])
    (found,) = choose_exclusive(Y, scores, HALF, labels=LABELS, exclusive=[("a", "b")])
    assert (found["macro_f1"], found["macro_f1_with"]) == (pytest.approx(5 / 6), 1.0)


def test_a_bundle_that_keeps_a_rule_predicts_by_it_and_is_refused_by_versions_that_do_not_know_rules(
    tmp_path: Path,
) -> None:
    free, rule = make_bundle(), (NAMES[0], NAMES[2])
    bundle = dataclasses.replace(free, exclusive=(rule,))
    save_bundle(free, tmp_path / "free")
    save_bundle(bundle, tmp_path / "bundle")
    formats = [json.loads((tmp_path / name / "bundle.json").read_text())["format"] for name in ("free", "bundle")]
    assert formats == [4, 5]
    assert sha256_of_file(tmp_path / "free" / "head.safetensors") == sha256_of_file(
        tmp_path / "bundle" / "head.safetensors"
    )
    loaded = load_bundle(tmp_path / "bundle")
    scores = loaded.scores(features(), fingerprint=SPACE.fingerprint)
    assert violations(free.predicted(scores), NAMES, [rule])[0]["clips"] > 0
    assert violations(loaded.predicted(scores), NAMES, [rule])[0]["clips"] == 0
    data = held_out()
    found = evaluate_bundle(loaded, data, split="test", fingerprint=SPACE.fingerprint, log=tmp_path / "looks.jsonl")
    own = loaded.predicted(loaded.scores(data.X, fingerprint=SPACE.fingerprint))
    assert found.metrics["macro_f1"] == pytest.approx(np.nanmean(f1_scores(confusion_counts(data.Y, own))))
    assert (found.counts.sum(axis=0) == confusion_counts(data.Y, own)).all()
