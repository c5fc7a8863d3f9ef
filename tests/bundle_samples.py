"""Bundles of random weights, and clips to score them on."""

import numpy as np
import torch

from featurecache.spec import FeatureSpace
from heads.bundle import Bundle, tool_versions
from heads.data import LabelledFeatures
from heads.models import Front, LinearHead, MLPHead
from heads.scoring.calibration import Calibration
from heads.settings import HeadSettings

SPACE = FeatureSpace({"model": "tiny", "tap": "final", "pooling": "mean", "stored_dtype": "float16"})


MOTION = FeatureSpace({"model": "tiny", "tap": "final", "pooling": "motion", "stored_dtype": "float16"})


LABELS = ("ventilation", "suction, mouth", "Zug (ä)")


CALIBRATION = Calibration(np.array([0.7, 1.0, 1 / 3]), np.array([0.0, -0.1, 2.5]))


def make_bundle(kind: str = "linear", seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    head = LinearHead(Front(10), 3) if kind == "linear" else MLPHead(Front(10), 3, hidden_widths=[6, 5])
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    head.front.mean.normal_()
    head.front.scale.uniform_(0.5, 2)
    settings = HeadSettings(kind=kind, hidden_width=(6, 5))
    thresholds, seen = np.array([0.5, 0.1 + 0.2, 1 / 3]), {"0" * 16: [(0, 3_000_000), (9_000_000, 12_000_000)]}
    return Bundle(head, LABELS, thresholds, settings, (SPACE,), tool_versions(), CALIBRATION, fitted_on=seen)


def features(count: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 10)).astype(np.float16)


def held_out(sessions: int = 6) -> LabelledFeatures:
    X = features(sessions * 10, seed=4)
    Y = (np.random.default_rng(5).random((len(X), 3)) < 0.4).astype(np.int8)
    sessions_of = np.repeat([f"patient {number}" for number in range(sessions)], 10)
    ids = tuple(f"{number:016x}-0-3000000" for number in range(1, len(X) + 1))  # the bundle was fitted on number 0
    return LabelledFeatures(X, Y, sessions_of, ids)
