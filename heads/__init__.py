"""Learning on cached features: heads, their search, and what predicts.

Importing this package loads no torch; a public name loads its own module when it is first used.
"""

import importlib
from typing import Any

_HOMES = {
    "Bundle": "heads.bundle",
    "CachedFeatures": "heads.cached_features",
    "HeadSettings": "heads.settings",
    "LabelledFeatures": "heads.data",
    "LinearHeadClassifier": "heads.estimator",
    "MLPHeadClassifier": "heads.estimator",
    "SearchSpace": "heads.settings",
    "evaluate_bundle": "heads.scoring.evaluation",
    "fit_heads": "heads.engines.training",
    "load_bundle": "heads.bundle",
    "save_bundle": "heads.bundle",
    "search_heads": "heads.search.search",
    "solve_grid": "heads.engines.convex",
    "train_bundle": "heads.runs",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heads' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
