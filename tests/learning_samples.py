"""Made-up features and targets for tests of learning: what a head can learn, and scores of no head at all."""

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from heads.data import LabelledFeatures
from heads.engines.training import FittedHead, fit_heads
from heads.engines.training_clips import TrainingClips
from heads.settings import HeadSettings

LABELS = ("ventilation", "suction", "stimulation")


def make_clips(
    *, sessions: int = 4, clips_each: int = 50, width: int = 24, seed: int = 0, noise: float = 1.0, prefix: str = "s"
) -> LabelledFeatures:
    """Features of which a fixed direction tells each label, with off-centre, differently scaled columns."""
    direction = np.random.default_rng(123).standard_normal((width, len(LABELS))) / width**0.5
    random = np.random.default_rng(seed)
    z = random.standard_normal((sessions * clips_each, width))
    logits = 3 * z @ direction + noise * random.standard_normal((len(z), len(LABELS))) - np.array([0.0, 1.0, 2.5])
    X = (z * np.linspace(0.5, 2, width) + np.linspace(-1, 1, width)).astype(np.float32)
    names = np.repeat([f"{prefix}{seed}-{number}" for number in range(sessions)], clips_each)
    return LabelledFeatures(X, (logits > 0).astype(np.int8), names)


def make_frames(*, seed: int = 0, frames: int = 5) -> LabelledFeatures:
    """Features (N, T, D) that tell each label in one of the frames only; the other frames are noise."""
    data, random = make_clips(seed=seed), np.random.default_rng(seed + 100)
    X = random.standard_normal((len(data.X), frames, data.X.shape[1])).astype(np.float32) * data.X.std(0)
    X[np.arange(len(X)), random.integers(frames, size=len(X))] = data.X
    return dataclasses.replace(data, X=X)


@st.composite
def targets_and_scores(draw: st.DrawFn, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, so that ties are common; float32 as heads give them."""
    rows = draw(st.integers(1, 40))
    Y = draw(arrays.arrays(np.int8, (rows, columns), elements=st.integers(0, 1)))
    steps = draw(arrays.arrays(np.int8, (rows, columns), elements=st.integers(0, 12)))
    return Y, (steps / 12).astype(np.float32)


def random_predictions(sessions: int, clips_each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rate = np.repeat(random.uniform(0.1, 0.6, (sessions, 3)), clips_each, axis=0)
    Y = (random.random(rate.shape) < rate).astype(np.int8)
    scores = np.clip(0.3 * Y + 0.7 * random.random(rate.shape), 0, 1).astype(np.float32)
    return Y, scores, np.repeat([f"s{number}" for number in range(sessions)], clips_each)


def fit_one(data: LabelledFeatures, *, seed: int = 0, **settings: Any) -> FittedHead:
    (fitted,) = fit_heads(TrainingClips(data.X, data.Y, seed=seed), [HeadSettings(**settings)])
    return fitted


def flat(fitted: FittedHead) -> np.ndarray:
    assert fitted.head is not None
    return torch.cat([parameter.detach().flatten() for parameter in fitted.head.parameters()]).numpy()


def relative_difference(ours: FittedHead, theirs: FittedHead) -> float:
    a, b = flat(ours), flat(theirs)
    return float(np.abs(a - b).max() / np.abs(b).max())
