"""What commands and notebooks call, from features to results: every guard of honest evaluation stands inside.

Each function takes a project, does what the command of that name does, and returns a document. Importing this
package loads no torch; a name loads its own module when it is first used.
"""

import importlib
from typing import Any

_HOMES = {
    "compare": "heads.workflow.comparing",
    "evaluate": "heads.workflow.evaluating",
    "finetune_lora": "heads.workflow.finetuning_lora",
    "finetune_timesformer": "heads.workflow.finetuning_timesformer",
    "leave_one_session_out": "heads.workflow.leaving_out",
    "predict": "heads.workflow.predicting",
    "report": "heads.workflow.reporting",
    "review": "heads.workflow.reviewing",
    "train": "heads.workflow.training",
    "tune": "heads.workflow.training",
    "zero_shot": "heads.workflow.zeroshot",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heads.workflow' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
