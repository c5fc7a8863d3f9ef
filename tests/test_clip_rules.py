"""Clips under other rules: other shares that a label must cover."""

import numpy as np
import pytest

from heads.scoring.metrics import metrics_document
from heads.timelines.clip_rules import SHARES, overlap_sensitivity

LABELS = ("a", "b")
S = 1_000_000


def recording(session: str, seed: int) -> dict[str, object]:
    """Twenty clips of 2 s; label `a` covers 0, 0.5, 1, 1.5 and 2 s of them in turn, `b` all of every fourth."""
    spans = [[2 * at * S, 2 * (at + 1) * S] for at in range(20)]
    covered = {
        "a": [[start, start + at % 5 * S // 2] for at, (start, _) in enumerate(spans) if at % 5],
        "b": [span for at, span in enumerate(spans) if at % 4 == 0],
    }
    scores = np.random.default_rng(seed).random((20, 2))
    return {
        "session": session,
        "clips": {"length_us": 2 * S, "spans_us": spans, "scores": dict(zip(LABELS, scores.T.tolist(), strict=True))},
        "annotated": covered,
    }


def predict(scores: np.ndarray) -> np.ndarray:
    return scores >= [0.4, 0.6]


RECORDINGS = [recording(f"s{at}", at) for at in range(6)]


def test_targets_follow_the_share_and_the_scores_stay() -> None:
    found = {one["share"]: one for one in overlap_sensitivity(RECORDINGS, LABELS, predict, S)}
    assert list(found) == list(SHARES)
    assert [share for share, one in found.items() if one["own"]] == [0.5]
    assert [one["support"]["a"] for one in found.values()] == [96, 96, 72, 48, 24]
    assert {one["support"]["b"] for one in found.values()} == {30}


def test_score_at_the_half_rule_is_that_of_the_metrics() -> None:
    scores = np.concatenate([np.stack([one["clips"]["scores"][label] for label in LABELS], 1) for one in RECORDINGS])
    clips = np.arange(20)
    Y = np.tile(np.stack([clips % 5 >= 2, clips % 4 == 0], axis=1).astype(int), (6, 1))
    sessions = np.repeat([f"s{at}" for at in range(6)], 20)
    document = metrics_document(Y, scores, np.array([0.4, 0.6]), sessions, labels=LABELS, split="test")
    half = overlap_sensitivity(RECORDINGS, LABELS, predict, S)[2]
    assert half["macro_f1"] == pytest.approx(document["macro_f1"])
    assert half["macro_f1_ci95"] == pytest.approx(document["macro_f1_ci95"])


@pytest.mark.parametrize(("own_us", "share"), [(1, 0.0), (S // 5, 0.1), (2 * S, 1.0), (6 * S // 5, 0.6)])
def test_a_rule_of_the_projects_own_has_a_row_of_its_own(own_us: int, share: float) -> None:
    found = overlap_sensitivity(RECORDINGS, LABELS, predict, own_us)
    assert [one["share"] for one in found] == sorted({*SHARES, share})
    (own,) = (one for one in found if one["own"])
    assert own["share"] == share
    of_a = [at % 5 * S // 2 for at in range(20)]  # time that label a covers
    assert own["support"]["a"] == len(RECORDINGS) * sum(covered >= own_us for covered in of_a)
