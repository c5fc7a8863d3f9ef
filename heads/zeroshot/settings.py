"""The section `[zeroshot]` of the settings. Which labels exclude each other stands under `[timeline]`."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class ZeroshotSettings:
    """How `featurecache zeroshot` asks; the questions are files below prompts/.

    Attributes:
        implies: Label -> labels that are on whenever it is; lists that say otherwise are not allowed.
            E.g. `implies."ventilation" = ["baby visible"]`.
        new_tokens: Tokens of a free answer at most.
    """

    implies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    new_tokens: Annotated[int, Field(ge=1, le=1024)] = 48
