"""The sections `[lora]` and `[finetune]`: how adapters and the supervised baseline are trained. Imports no torch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from featurecache.errors import SettingsError
from heads.settings import Exponent, Range

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Decay = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
SearchedDecay = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Layers = Annotated[int, Field(ge=0, le=1000)]

_MAY_CHANGE = ("micro_batch", "checkpoint_minutes", "gradient_checkpointing", "memory_gb", "model")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How training passes, of both kinds of run.

    Attributes:
        learning_rate: Peak learning rate of the trained part of the backbone (with [lora], of the adapters).
        head_learning_rate: Peak learning rate of the head; not below the backbone's.
        epochs: Epochs at most.
        patience: Epochs without a better one after which training stops; 0 never stops.
        select: What makes an epoch better, on validation: "macro_f1" at 0.5, or "loss".
        batch_size: Clips of a step.
        micro_batch: Clips in the device's memory at once, at most; halved where they do not fit.
        warmup: Share of all steps in which the learning rate rises.
        clip_norm: The gradient's norm, at most.
        gradient_checkpointing: Compute activations again instead of keeping them: less memory, more time.
        checkpoint_minutes: Minutes from one checkpoint to the next.
    """

    learning_rate: Rate
    head_learning_rate: Rate = 1e-3
    epochs: Count
    patience: Annotated[int, Field(ge=0, le=100_000)]
    select: Literal["macro_f1", "loss"] = "macro_f1"
    batch_size: Count
    micro_batch: Count = 4
    warmup: Share
    clip_norm: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    gradient_checkpointing: bool
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1440, allow_inf_nan=False)] = 10.0

    def to_mapping(self) -> dict[str, Any]:
        """All but what trials draw from by name, ready for JSON."""
        fields = dataclasses.asdict(self).items()
        return {name: list(one) if isinstance(one, tuple) else one for name, one in fields if name != "search"}

    def deciding(self) -> dict[str, Any]:
        """What decides a run's numbers, ready for JSON: a run is resumed with the same; a model by its fingerprint."""
        return {name: value for name, value in self.to_mapping().items() if name not in _MAY_CHANGE}

    def of_loop(self) -> dict[str, Any]:
        """What `FineTuning` is told of it, by argument."""
        names = ("epochs", "patience", "select", "batch_size", "micro_batch", "warmup", "clip_norm")
        return {name: getattr(self, name) for name in names}

    def check(self, dtype: str, section: str) -> None:
        """Refuses rates that do not fit each other, and a dtype of the features (`features.dtype`) without a range.

        Raises:
            SettingsError: Naming the setting of the section.
        """
        if dtype == "float16":
            raise SettingsError(
                "fine-tuning must compute in bfloat16 or float32, whose range gradients need, but features.dtype is "
                '"float16". Set features.dtype = "bfloat16", or "float32" on a GPU without it; then extract again.'
            )
        if self.head_learning_rate < self.learning_rate:
            raise SettingsError(
                f"{section}.head_learning_rate must not be below {section}.learning_rate, but they are "
                f"{self.head_learning_rate:g} and {self.learning_rate:g}. Raise the one or lower the other."
            )


def _targets(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("at least one linear layer's name, none of them twice")
    return names


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Schedule):
    """How `featurecache lora-finetune` trains adapters; the defaults are LLaVA's recipe.

    Attributes:
        frozen: The tap whose tokens are stored and trained from: "layer_0"; "vision", the same to the bit and smaller
            where the tower is narrower than the language model; or "layer_24": adapters above layer 24 alone.
        rank: Rank of each update.
        alpha: Updates are scaled by alpha / rank.
        dropout: Share of an adapter's input dropped in training.
        targets: The linear layers with adapters.
        base_weights: "full", or "4bit": the frozen layers that are run take a quarter of the memory, and are rounded.
    """

    frozen: str = "layer_0"
    rank: Count = 128
    alpha: Count = 256
    dropout: Share = 0.05
    targets: Annotated[tuple[str, ...], AfterValidator(_targets)] = ("q_proj", "k_proj", "v_proj", "o_proj")
    base_weights: Literal["full", "4bit"] = "full"
    learning_rate: Rate = 2e-4
    epochs: Count = 5
    patience: Annotated[int, Field(ge=0, le=100_000)] = 2
    batch_size: Count = 32
    warmup: Share = 0.03
    gradient_checkpointing: bool = True


@dataclass(frozen=True)
class TrialRanges:
    """The section `[finetune.search]`: what trials draw from, as (lowest, highest) or as choices.

    Learning rate and weight decay are drawn on a logarithmic scale. No choices: as `[finetune]` says.
    """

    learning_rate: Range[Rate] = (1e-5, 3e-4)
    weight_decay: Range[SearchedDecay] = (1e-3, 0.3)
    positive_weight_exponent: Range[Exponent] = (0.0, 1.0)
    batch_size: tuple[Count, ...] = (8, 16, 32)
    last_layers: tuple[Layers, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Schedule):
    """How `featurecache finetune` trains the supervised baseline.

    Frames are as many as the model was made for.

    Attributes:
        model: TimeSformer's files: a folder, or a hub repository whose snapshot is on this machine.
            E.g. `model = "models/timesformer-base-finetuned-ssv2"`.
        last_layers: Layers that are trained, from the top, with the final norm; 0: the whole model.
        weight_decay: Weight decay of the matrices of model and head.
        positive_weight_exponent: The positive term weighs (negatives / positives) to this power, per label.
        memory_gb: Most decoded frames in memory, in GB; other clips are decoded again in each epoch.
        search: What trials draw from, [lowest, highest] or choices.
    """

    model: str
    last_layers: Layers = 0
    learning_rate: Rate = 5e-5
    weight_decay: Decay = 0.05
    positive_weight_exponent: Exponent = 0.5
    epochs: Count = 15
    patience: Annotated[int, Field(ge=0, le=100_000)] = 3
    batch_size: Count = 8
    warmup: Share = 0.1
    gradient_checkpointing: bool = False
    memory_gb: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] = 8.0
    search: TrialRanges = field(default_factory=TrialRanges)

    def in_words(self) -> str:
        """What trials draw, on one line."""
        return ", ".join(f"{name} {getattr(self, name):.3g}" for name in vars(self.search))
