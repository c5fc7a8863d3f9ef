"""Metrics: parity with scikit-learn, undefined labels, intervals over sessions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from heads.scoring.metrics import (
    average_precision,
    confusion_counts,
    f1_scores,
    macro_f1,
    metrics_document,
    session_counts,
)
from tests.learning_samples import random_predictions, targets_and_scores

LABELS = ("ventilation", "suction", "stimulation")


@given(targets_and_scores())
def test_document_equals_scikit_learn_when_scores_are_defined(data: tuple[np.ndarray, np.ndarray]) -> None:
    Y, scores = data
    thresholds = np.array([0.5, 0.25, 0.75])
    document = metrics_document(Y, scores, thresholds, np.full(len(Y), "s"), labels=LABELS, split="test")
    defined = []
    for at, label in enumerate(LABELS):
        y, predicted, ours = Y[:, at], scores[:, at] >= thresholds[at], document["per_class"][label]
        assert ours["support"] == y.sum()
        if not y.any():
            assert label in document["undefined"]
            assert {ours[name] for name in ("f1", "precision", "recall", "average_precision")} == {None}
            continue
        defined.append(f1_score(y, predicted))
        assert ours["f1"] == pytest.approx(defined[-1])
        assert ours["recall"] == pytest.approx(recall_score(y, predicted))
        assert ours["average_precision"] == pytest.approx(average_precision_score(y, scores[:, at]))
        if predicted.any():
            assert ours["precision"] == pytest.approx(precision_score(y, predicted))
        else:
            assert ours["precision"] is None
        if y.all():
            assert ours["auroc"] is ours["specificity"] is None
        else:
            assert ours["auroc"] == pytest.approx(roc_auc_score(y, scores[:, at]))
            assert ours["specificity"] == pytest.approx(recall_score(1 - y, ~predicted))
            if not predicted.all():
                assert ours["npv"] == pytest.approx(precision_score(1 - y, ~predicted))
    if defined:
        assert document["macro_f1"] == pytest.approx(np.mean(defined))
        assert macro_f1(Y, scores, thresholds) == pytest.approx(np.mean(defined))
    else:
        assert document["macro_f1"] is None
        assert np.isnan(macro_f1(Y, scores, thresholds))


def test_f1_scores_work_on_stacks_of_counts() -> None:
    Y, scores, _ = random_predictions(4)
    counts = confusion_counts(Y, scores >= 0.5)
    np.testing.assert_allclose(f1_scores(np.stack([counts, 3 * counts])), np.tile(f1_scores(counts), (2, 1)))


def test_average_precision_is_the_prevalence_when_all_scores_are_equal() -> None:
    y = np.array([1, 0, 0, 1, 0])
    assert average_precision(y, np.full(5, 0.3)) == pytest.approx(0.4)


@given(targets_and_scores(), st.integers(1, 5))
def test_session_counts_add_up_to_those_of_each_session(data: tuple[np.ndarray, np.ndarray], most: int) -> None:
    Y, scores = data
    sessions = np.array([f"s{row * 7 % most}" for row in range(len(Y))])
    both = np.stack([scores >= 0.5, scores >= 0.2])  # two heads
    counts = session_counts(Y, both, sessions)
    for head, predicted in enumerate(both):
        for at, name in enumerate(np.unique(sessions)):
            here = sessions == name
            assert (counts[head, at] == confusion_counts(Y[here], predicted[here])).all()


def test_document_leaves_a_label_undefined_when_it_was_not_scored() -> None:
    Y, scores, sessions = random_predictions(6)
    scores[3, 1] = np.nan
    document = metrics_document(Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="test")
    assert document["undefined"] == ["suction"]
    suction = document["per_class"]["suction"]
    assert suction["support"] == Y[:, 1].sum()
    assert {suction[name] for name in ("f1", "precision", "recall", "average_precision", "threshold")} == {None}
    assert document["macro_f1"] == pytest.approx(macro_f1(Y[:, ::2], scores[:, ::2]))
    assert document["macro_f1_ci95"][0] < document["macro_f1"] < document["macro_f1_ci95"][1]


def test_document_compares_each_clip_with_its_own_thresholds_when_it_has_some() -> None:
    Y, scores, sessions = random_predictions(6)
    own = np.random.default_rng(1).uniform(0.2, 0.8, Y.shape)
    document = metrics_document(Y, scores, own, sessions, labels=LABELS, split="test")
    assert document["macro_f1"] == pytest.approx(f1_score(Y, scores >= own, average="macro"))
    assert document["per_class"]["suction"]["threshold"] == pytest.approx(own[:, 1].mean())


def test_document_has_scores_of_each_session_and_counts_those_with_the_label() -> None:
    Y, scores, sessions = random_predictions(6)
    Y[sessions != "s2", 1] = 0
    document = metrics_document(Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="test")
    assert [one["session"] for one in document["per_session"]] == sorted(set(sessions))
    here = sessions == "s2"
    own = document["per_session"][2]
    assert own["n_clips"] == 40
    assert own["f1"]["suction"] == pytest.approx(f1_score(Y[here, 1], scores[here, 1] >= 0.5))
    assert own["macro_f1"] == pytest.approx(macro_f1(Y[here], scores[here]))
    assert document["per_session"][0]["f1"]["suction"] is None
    assert [document["per_class"][label]["sessions"] for label in LABELS] == [6, 1, 6]


def test_document_has_no_interval_but_a_reason_when_sessions_are_few() -> None:
    Y, scores, sessions = random_predictions(4)
    reasons = {}
    for annotated in (None, 4, 5):
        document = metrics_document(
            Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="test", annotated=annotated
        )
        assert document["macro_f1_ci95"] is None
        reasons[annotated] = document["macro_f1_ci95_reason"]
    assert "at least 5 sessions, but test has 4; score every session" in reasons[5]
    assert "evaluate --leave-one-session-out" in reasons[5]
    assert reasons[4].endswith("annotate at least 1 more session: until then each session's own score is what there is")
    assert reasons[None].endswith("test has 4")


def test_document_is_the_contract_when_written_as_json() -> None:
    Y, scores, sessions = random_predictions(6)
    Y[:, 2] = 0
    document = metrics_document(Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="validation")
    document = json.loads(json.dumps(document, allow_nan=False))
    keys = [
        "macro_f1",
        "macro_f1_ci95",
        "per_class",
        "undefined",
        "n_clips",
        "unit",
        "n_sessions",
        "split",
        "per_session",
    ]
    assert list(document) == keys
    assert document["undefined"] == ["stimulation"]
    assert (document["n_clips"], document["n_sessions"], document["split"]) == (240, 6, "validation")
    per_class = {"f1", "f1_ci95", "precision", "recall", "average_precision", "auroc", "specificity", "npv"}
    per_class |= {"threshold", "support", "sessions"}
    assert [set(document["per_class"][label]) for label in LABELS] == [per_class] * 3
    low, high = document["macro_f1_ci95"]
    assert 0 < low < document["macro_f1"] < high < 1
