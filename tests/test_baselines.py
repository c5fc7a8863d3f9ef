"""Low-cost baselines beside the methods: what they learn from, and that the table has them."""

import numpy as np
import pytest

from heads.data import LabelledFeatures
from heads.scoring.metrics import macro_f1
from heads.workflow.baselines import baseline_metrics
from tests.learning_samples import LABELS, make_clips


def both(one: LabelledFeatures, other: LabelledFeatures) -> LabelledFeatures:
    parts = [np.concatenate(pair) for pair in zip(*((of.X, of.Y, of.sessions) for of in (one, other)), strict=True)]
    return LabelledFeatures(*parts)


def test_baselines_are_above_every_label_in_every_clip_on_unseen_sessions() -> None:
    fitting, test = both(make_clips(clips_each=60), make_clips(clips_each=60, seed=1)), make_clips(seed=9)
    found = baseline_metrics(fitting, test, LABELS)
    assert list(found) == ["nearest neighbours", "ridge regression"]
    everywhere = macro_f1(test.Y, np.ones(test.Y.shape))
    for metrics in found.values():
        assert metrics["macro_f1"] > everywhere + 0.1
        assert metrics["n_clips"] == len(test.Y)


def test_a_label_that_one_session_alone_has_keeps_the_default_threshold_of_a_baseline() -> None:
    fitting = both(make_clips(clips_each=60), make_clips(clips_each=60, seed=1))
    fitting.Y[fitting.sessions != fitting.sessions[0], 0] = 0
    for metrics in baseline_metrics(fitting, make_clips(seed=9), LABELS).values():
        assert metrics["per_class"][LABELS[0]]["threshold"] == pytest.approx(0.5)
        assert metrics["per_class"][LABELS[1]]["threshold"] != 0.5
