"""What the search tunes: the settings of one head, and the ranges they are searched in.

Notable choices: both are flat frozen dataclasses, so a TOML section, a row of `trials.csv` and
`best.json` hold the same names, and LoRA reuses them as they are. Each field carries its own range;
it is checked when an object is made, whoever makes it. The seed is no setting: it is an argument of
the run. This file imports no torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from featurecache.errors import SettingsError

T = TypeVar("T")


def _ordered(bounds: tuple[T, T]) -> tuple[T, T]:
    if bounds[0] > bounds[1]:  # type: ignore[operator]
        raise ValueError("two numbers, the lower one first")
    return bounds


HeadKind = Literal["linear", "mlp"]
HiddenWidth = Annotated[int, Field(ge=1, le=65536)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
WeightDecay = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
SearchedDecay = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Exponent = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True)
class HeadSettings:
    """How one head is made and trained.

    Attributes:
        kind: `linear` is the paper's FT-LC; `mlp` has one hidden ReLU layer.
        hidden_width: Width of the hidden layer; only `mlp` reads it.
        learning_rate: Step size of AdamW, constant over the epochs.
        weight_decay: Decoupled decay of weights (never of biases), as in AdamW.
        positive_weight_exponent: The positive term's weight in the loss is (negatives / positives) to this power,
            per label, counted on training clips: 0 weighs nothing, 1 balances fully.
        dropout: Share dropped of what feeds the output layer: features (linear) or hidden units (mlp).
        batch_size: Clips per step; never more than there are.
        epochs: Passes over the training clips.
        standardize: Features are centred and scaled by the training clips' mean and standard deviation.
    """

    kind: HeadKind = "linear"
    hidden_width: HiddenWidth = 128
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-2
    positive_weight_exponent: Exponent = 0.5
    dropout: Dropout = 0.0
    batch_size: BatchSize = 256
    epochs: Epochs = 20
    standardize: bool = True

    def __post_init__(self) -> None:
        _check_fields(self)

    def to_mapping(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "HeadSettings":
        """The settings that `to_mapping` gave.

        Raises:
            SettingsError: If a name is missing or unknown, or a value is out of its range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(mapping) != names:
            raise SettingsError(
                f"head settings must name exactly {', '.join(sorted(names))}, but these differ: "
                f"{', '.join(sorted(set(mapping) ^ names))}. Use a file that this version wrote."
            )
        return cls(**mapping)


@dataclass(frozen=True)
class SearchSpace:
    """The ranges that the search draws head settings from: (lowest, highest), or the choices.

    Learning rate, weight decay, hidden width and epochs are drawn on a logarithmic scale. A range whose
    two ends are equal, or a single choice, fixes the setting.
    """

    kind: Annotated[tuple[HeadKind, ...], Field(min_length=1)] = ("linear",)
    hidden_width: Annotated[tuple[HiddenWidth, HiddenWidth], AfterValidator(_ordered)] = (16, 256)
    learning_rate: Annotated[tuple[LearningRate, LearningRate], AfterValidator(_ordered)] = (3e-6, 3e-2)
    weight_decay: Annotated[tuple[SearchedDecay, SearchedDecay], AfterValidator(_ordered)] = (1e-5, 1.0)
    positive_weight_exponent: Annotated[tuple[Exponent, Exponent], AfterValidator(_ordered)] = (0.0, 1.0)
    dropout: Annotated[tuple[Dropout, Dropout], AfterValidator(_ordered)] = (0.0, 0.5)
    batch_size: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (128, 256, 512)
    epochs: Annotated[tuple[Epochs, Epochs], AfterValidator(_ordered)] = (5, 60)
    standardize: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)

    def __post_init__(self) -> None:
        _check_fields(self)

    def to_mapping(self) -> dict[str, Any]:
        """All ranges by name, as JSON would give them back (lists, no tuples)."""
        return {name: list(value) for name, value in dataclasses.asdict(self).items()}


@cache
def _adapters(kind: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(kind)}


def _check_fields(settings: Any) -> None:
    for name, adapter in _adapters(settings.__class__).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            rule = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ").removeprefix("Input should ")
            rule = rule.removeprefix("be ")
            raise SettingsError(f"{name} must be {rule}, but it is {value!r}. Give a value in that range.") from error
