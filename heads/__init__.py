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
    "compare": "heads.workflow.comparing",
    "evaluate": "heads.workflow.evaluating",
    "evaluate_bundle": "heads.workflow.evaluation",
    "finetune_lora": "heads.workflow.finetuning_lora",
    "finetune_timesformer": "heads.workflow.finetuning_timesformer",
    "fit_heads": "heads.engines.training",
    "leave_one_session_out": "heads.workflow.leaving_out",
    "load_bundle": "heads.bundle",
    "predict": "heads.workflow.predicting",
    "save_bundle": "heads.bundle",
    "search_heads": "heads.search.search",
    "solve_grid": "heads.engines.convex",
    "train": "heads.workflow.training",
    "train_bundle": "heads.runs",
    "tune": "heads.workflow.training",
    "zero_shot": "heads.workflow.zeroshot",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heads' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
