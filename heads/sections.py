"""The sections of `featurecache.toml` that learning owns, each with the dataclass it is read into. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurecache.project.settings import Seconds
from heads.finetuning.settings import FinetuneSettings, LoraSettings
from heads.settings import HeadSettings, SearchSpace
from heads.zeroshot.settings import ZeroshotSettings


@dataclass(frozen=True)
class TimelineRules:
    """How `featurecache predict` makes intervals of clip scores.

    Attributes:
        stride_s: Seconds from one scored clip's start to the next one's; left out: half a clip. E.g. `stride_s = 1.5`.
        exclusive: Groups of labels of which one at most is on at a time.
            E.g. `exclusive = [["ventilation", "suction"]]`.
    """

    stride_s: Seconds | None = None
    exclusive: tuple[tuple[str, ...], ...] = ()


SECTIONS: Mapping[str, type[Any]] = {
    "train": HeadSettings,
    "search": SearchSpace,
    "lora": LoraSettings,
    "finetune": FinetuneSettings,
    "zeroshot": ZeroshotSettings,
    "timeline": TimelineRules,
}
"""What `featurecache init` writes settings of, in this order."""
