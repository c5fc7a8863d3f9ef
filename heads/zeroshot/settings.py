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
        judge: The language model that judges captions: a model folder, or the address of an OpenAI-compatible server on
            this machine. E.g. `judge = "/models/Mistral-7B-Instruct-v0.2"`.
        judge_model: What the server calls the model; empty where it serves one alone.
        caption_tokens: Tokens of a caption at most.
    """

    implies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    new_tokens: Annotated[int, Field(ge=1, le=1024)] = 48
    judge: str = ""
    judge_model: str = ""
    caption_tokens: Annotated[int, Field(ge=1, le=1024)] = 256
