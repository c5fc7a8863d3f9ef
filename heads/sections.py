"""The sections of `featurecache.toml` that learning owns, each with the dataclass it is read into. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from heads.finetuning.settings import FinetuneSettings, LoraSettings
from heads.settings import HeadSettings, SearchSpace
from heads.timelines.rules import TimelineRules
from heads.zeroshot.settings import ZeroshotSettings

SECTIONS: Mapping[str, type[Any]] = {
    "train": HeadSettings,
    "search": SearchSpace,
    "lora": LoraSettings,
    "finetune": FinetuneSettings,
    "zeroshot": ZeroshotSettings,
    "timeline": TimelineRules,
}
"""What `featurecache init` writes settings of, in this order."""
