"""What the search tunes: the settings of one head, and the ranges they are searched in.

Notable choices: both are flat frozen dataclasses, so a TOML section, a row of `trials.csv` and
`best.json` hold the same names. Each field carries its own range; it is checked when an object is
made, whoever makes it. The seed is no setting: it is an argument of the run. This file imports no torch.

Two solvers fit heads. `adamw` takes steps and fits every kind. `convex` finds the optimum of a linear head without
dropout, for the penalty `l2`; it takes no steps, so learning rate, weight decay, batch size and epochs are only
carried along: those of the best linear head that was trained by AdamW, where there is one.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from featurecache.errors import SettingsError
from featurecache.project.rules import first_validation_error
from heads.samples.joining import join_of, selected

T = TypeVar("T")


def ordered(bounds: tuple[T, T]) -> tuple[T, T]:
    """A range, for pydantic.

    Raises:
        ValueError: If its lower end is the higher one.
    """
    if bounds[0] > bounds[1]:  # type: ignore[operator]
        raise ValueError("two numbers, the lower one first")
    return bounds


def _different(choices: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(choices)) < len(choices):
        raise ValueError("choices that differ from each other")
    return choices


def _kept_features(inputs: str) -> str:
    parts = selected(inputs)
    if len(set(parts)) < len(parts) or not all(re.fullmatch(r"[^/+()]+/[^/+()]+", part) for part in parts):
        raise ValueError('different selected features as "tap/pooling", joined by "+", or of samples "pair(...)"')
    return inputs


def _in_plain_words(words: str) -> WrapValidator:
    """Says what a setting must be where pydantic would list each of several types."""

    def checked(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(words) from None

    return WrapValidator(checked)


Range = Annotated[tuple[T, T], AfterValidator(ordered)]
"""The lowest and the highest value."""
Several = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_different)]
"""Choices."""
HeadKind = Literal["linear", "mlp", "attention", "weighted", "temporal"]
WEIGHING: tuple[HeadKind, ...] = ("attention", "weighted")
"""Kinds that weigh frames or parts."""
OF_FRAMES: tuple[HeadKind, ...] = (*WEIGHING, "temporal")
"""Kinds that read the features of a clip's frames, or of a sample's parts."""
Solver = Literal["adamw", "convex"]
InputWeights = Literal["equal", "learned"]
HeadPrior = Literal["none", "words"]
Normalization = Literal["none", "standardize", "l2"]
Inputs = Annotated[str, AfterValidator(_kept_features)]
HiddenWidth = Annotated[int, Field(ge=1, le=65536)]
HiddenWidths = Annotated[
    HiddenWidth | Annotated[tuple[HiddenWidth, ...], Field(min_length=1, max_length=8)],
    _in_plain_words("a whole number from 1 to 65536, or a tuple of up to 8, one for each layer (in TOML a list)"),
]
HiddenLayers = Annotated[int, Field(ge=1, le=8)]
Components = Annotated[int, Field(ge=0, le=65536)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
WeightDecay = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
SearchedDecay = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
VarianceExponent = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Exponent = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Exponents = Annotated[
    Exponent | Annotated[tuple[Exponent, ...], Field(min_length=1)],
    _in_plain_words("a number from 0 to 2, or a tuple with one for each label (in TOML a list)"),
]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Patience = Annotated[int, Field(ge=0, le=100_000)]
TeacherWeight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Folds = Annotated[int, Field(ge=2, le=1000)]


@dataclass(frozen=True)
class HeadSettings:
    """The head that `featurecache train` fits.

    Attributes:
        kind: "linear" is the paper's FT-LC; "mlp" has hidden ReLU layers. On features of a clip's frames:
            "attention" weighs frames by a learned query per label, "weighted" by one for all labels; "temporal"
            convolves over three time steps. Of samples of several clips these read the parts.
        inputs: The selected features it reads, concatenated in this order: "final/mean+final/motion"; left out in
            featurecache.toml: the first of features.select. Of samples of several clips, linear heads and "mlp" read
            joined parts: "mean(final/mean)"; "concat(...)" side by side; "pair(...)", which is [a, b, b - a].
        hidden_width: Hidden units of "mlp", several numbers for as many layers ([256, 64]); channels of "temporal"; no
            other kind reads it.
        normalization: What features go through first: "none"; "standardize", centred and scaled by the training clips'
            mean and standard deviation; "l2", each selected feature of each clip scaled to the length sqrt(its width).
        components: Principal components that the normalised features are reduced to; 0 keeps the features.
        solver: "adamw", or "convex": the optimum of a linear head without dropout, for the penalty l2; it takes no
            steps, so that learning_rate, weight_decay, batch_size and epochs do not count.
        input_weights: "equal", or "learned" by the convex solver: a weight for each of several inputs, which sum to 1;
            one that does not help ends at 0.
        l2: Penalty of the convex solver: it minimises the mean loss plus half of l2 times the squared length of w, per
            label, where variance_exponent is 0.
        variance_exponent: That penalty is multiplied, for each principal direction of the features, by (mean variance /
            its variance) to this power: 0 treats all alike, 1 holds weights down where features hardly vary.
        prior: "words": w starts at the weights that words of prompts/text make of joint/mean, and the penalty is on its
            distance to them (zeros for a label or an input without words); "none": zeros.
        learning_rate: Step size of AdamW, constant over the epochs.
        weight_decay: Decoupled decay of weights (never of biases), as in AdamW.
        positive_weight_exponent: The positive term's weight in the loss is (negatives / positives) to this power,
            per label, counted on training clips: 0 weighs nothing, 1 balances fully. One number, or one for each label.
        dropout: Share dropped of what feeds the output layer: features (linear, attention) or hidden units.
        batch_size: Clips per step; never more than there are.
        epochs: Passes over the training clips.
        patience: Epochs without a better validation score after which training ends with the best epoch's head;
            0 trains all epochs.
        teacher_weight: Of heads that weigh parts of samples with findings: how much of the loss is the cross-entropy
            between their weights and how well each part fits the text, by the model's own joint text tower.
    """

    kind: HeadKind = "linear"
    inputs: Inputs = "final/mean"
    hidden_width: HiddenWidths = 128
    normalization: Normalization = "standardize"
    components: Components = 0
    solver: Solver = "adamw"
    input_weights: InputWeights = "equal"
    l2: Penalty = 1e-2
    variance_exponent: VarianceExponent = 0.0
    prior: HeadPrior = "none"
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-2
    positive_weight_exponent: Exponents = 0.5
    dropout: Dropout = 0.0
    batch_size: BatchSize = 256
    epochs: Epochs = 20
    patience: Patience = 0
    teacher_weight: TeacherWeight = 0.0

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.solver == "convex" and (self.kind != "linear" or self.dropout or self.patience):
            raise SettingsError(
                "the convex solver must have a linear head without dropout and patience, but kind is "
                f"{self.kind!r}, dropout {self.dropout:g} and patience {self.patience}. "
                'Set solver = "adamw", or change these.'
            )

        if self.input_weights == "learned" and (
            self.solver != "convex"
            or len(selected(self.inputs)) < 2
            or join_of(self.inputs) not in ("", "mean")
            or self.components
            or self.variance_exponent
        ):
            raise SettingsError(
                'input_weights = "learned" must have several inputs, not joined by concat or pair, the convex solver, '
                f"and components and variance_exponent of 0, but inputs are {self.inputs}, solver is {self.solver!r}, "
                f"components {self.components} and variance_exponent {self.variance_exponent:g}. Change these."
            )
        if self.teacher_weight and self.kind not in WEIGHING:
            raise SettingsError(
                f"a head that is taught weights of parts must be of the kind {' or '.join(WEIGHING)}, but it is "
                f"{self.kind!r} and teacher_weight {self.teacher_weight:g}. Change one of them."
            )
        if self.prior != "none" and (self.solver != "convex" or self.input_weights != "equal" or join_of(self.inputs)):
            raise SettingsError(
                'prior = "words" must have the convex solver, inputs that are not joined and input_weights = "equal", '
                f"but solver is {self.solver!r}, inputs are {self.inputs} and input_weights {self.input_weights!r}. "
                "Change these."
            )
        if self.kind == "temporal" and isinstance(self.hidden_width, tuple):
            raise SettingsError(
                f"a temporal head must have one hidden_width, but it is {self.hidden_width}. Give one number."
            )

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Units of each hidden layer, from the features on."""
        return self.hidden_width if isinstance(self.hidden_width, tuple) else (self.hidden_width,)

    def exponents(self, label_count: int) -> tuple[float, ...]:
        """The exponent of each label.

        Raises:
            SettingsError: If there are some, but of another number of labels.
        """
        given = self.positive_weight_exponent
        if not isinstance(given, tuple):
            return (given,) * label_count
        if len(given) != label_count:
            raise SettingsError(
                f"positive_weight_exponent must be one number or one for each label, but there are {len(given)} for "
                f"{label_count} labels. Give one number, or {label_count}."
            )
        return given

    def of_labels(self, kept: Sequence[bool]) -> "HeadSettings":
        """The settings where only some of the labels, shape (C,), are there."""
        exponents = self.positive_weight_exponent
        if not isinstance(exponents, tuple):
            return self
        return dataclasses.replace(self, positive_weight_exponent=tuple(itertools.compress(exponents, kept)))

    def to_mapping(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return _ready_for_json(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "HeadSettings":
        """The settings that `to_mapping` gave; earlier versions' files name settings that are gone, at defaults.

        Raises:
            SettingsError: If a name is missing or unknown, or a value is out of its range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        gone = (("label_smoothing", 0.0), ("positive_weight_scale", 1.0))
        mapping = {name: value for name, value in mapping.items() if (name, value) not in gone}
        since = {"input_weights": "equal", "teacher_weight": 0.0, "prior": "none"}  # which earlier versions do not name
        mapping = since | mapping
        if set(mapping) != names:
            raise SettingsError(
                f"head settings must name exactly {', '.join(sorted(names))}, but these differ: "
                f"{', '.join(sorted(set(mapping) ^ names))}. Use a file that this version wrote."
            )
        values: dict[str, Any] = dict(mapping)
        for name in ("positive_weight_exponent", "hidden_width"):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class SearchSpace:
    """What `featurecache tune` draws head settings from: [lowest, highest], or all choices.

    Attributes:
        inputs: Left out: each selected feature, means with motions, all means, all; then the best with others.
        hidden_layers: Layers of "mlp", each of a width of its own: [1, 2, 3] tries deeper heads.
        components: Those that are fewer than the features.
        solver: "convex" first, a grid for each choice above, then trials by "adamw".
        prior: "words" is tried where prompts/text holds words of labels and inputs have joint/mean.
        folds: Folds of the sessions that are not test, by which settings are chosen.

    Learning rate, weight decay, l2, hidden width and epochs are drawn on a logarithmic scale. A range whose two ends
    are equal, or a single choice, fixes the setting.

    A trial of the convex solver tries a whole grid of `l2` and `positive_weight_exponent`. It takes the best of them by
    `folds` folds of the sessions that are not test, where labels may differ in their exponents. Each of `inputs`,
    `normalization`, `components` and `variance_exponent` makes trials of its own; of `components`, inputs are tried
    with those that are fewer than they can have, with all their features where none is.
    """

    kind: Several[HeadKind] = ("linear",)
    inputs: Several[Inputs] = ("final/mean",)
    hidden_width: Range[HiddenWidth] = (16, 256)
    hidden_layers: Several[HiddenLayers] = (1,)
    normalization: Several[Normalization] = ("standardize",)
    components: Several[Components] = (0,)
    solver: Several[Solver] = ("convex", "adamw")
    l2: Range[Penalty] = (1e-3, 10.0)
    variance_exponent: Several[VarianceExponent] = (
        0.0,
        1.0,
    )
    prior: Several[HeadPrior] = ("none", "words")
    learning_rate: Range[LearningRate] = (3e-6, 3e-2)
    weight_decay: Range[SearchedDecay] = (1e-5, 1.0)
    positive_weight_exponent: Range[Exponent] = (0.0, 1.0)
    dropout: Range[Dropout] = (0.0, 0.5)
    batch_size: Several[BatchSize] = (128, 256, 512)
    epochs: Range[Epochs] = (5, 60)
    patience: Several[Patience] = (0,)
    folds: Folds = 5

    def __post_init__(self) -> None:
        _check_fields(self)

    def to_mapping(self) -> dict[str, Any]:
        """All ranges by name, ready for JSON."""
        return _ready_for_json(self)


def _ready_for_json(settings: "HeadSettings | SearchSpace") -> dict[str, Any]:
    """All fields by name, as JSON would give them back (lists, no tuples)."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }


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
            _, rule, _ = first_validation_error(error)
            raise SettingsError(f"{name} must be {rule}, but it is {value!r}. Give a value in that range.") from error
