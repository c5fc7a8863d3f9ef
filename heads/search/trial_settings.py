"""What a trial asks of Optuna, and what the convex solver tries inside one.

Notable choices: a setting that the search space fixes is not asked for, so importances and the sampler see only what
varies. Trials of the two solvers ask for the same names where they mean the same, so the sampler learns from the
quick converged ones which features are good. What lies outside a convex trial's grid (inputs, normalisation,
components) is a list of combinations; each is worth solving once. Inputs of frames have a name of their own, because
a choice must offer the same in every trial.

What this is not: a search, or training.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import optuna

from featurecache.errors import SettingsError
from heads.data import LearningData
from heads.engines.convex import GridPoint, grid_points
from heads.settings import HeadSettings, SearchSpace

Trial = optuna.Trial | optuna.trial.FixedTrial
T = TypeVar("T", str, int)

OF_FRAMES = ("attention", "temporal")
_PENALTIES, _EXPONENTS, _OTHERS = 8, 6, 3


@dataclass(frozen=True)
class Choices:
    """What a search may draw, divided by what fits what.

    Attributes:
        space: The ranges.
        vectors: Inputs that are one vector a clip.
        frames: Inputs of frames.
    """

    space: SearchSpace
    vectors: tuple[str, ...]
    frames: tuple[str, ...]

    @classmethod
    def of(cls, space: SearchSpace, data: LearningData) -> "Choices":
        """Divides the inputs of a search space.

        Raises:
            SettingsError: If inputs were not loaded, a kind has no inputs that fit it or inputs no kind, or the only
                solver has nothing to solve.
        """
        frames = tuple(inputs for inputs in space.inputs if data.train.are_frames(inputs))
        vectors = tuple(inputs for inputs in space.inputs if inputs not in frames)
        for kinds, fitting, what in (
            ([kind for kind in space.kind if kind not in OF_FRAMES], vectors, "one feature vector per clip"),
            ([kind for kind in space.kind if kind in OF_FRAMES], frames, "features of frames"),
        ):
            if bool(kinds) != bool(fitting):
                found = f"kind {kinds[0]!r} is asked for and no such inputs" if kinds else f"no kind reads {fitting[0]}"
                raise SettingsError(
                    f"kinds and inputs of a search must fit each other, but of {what} {found}. "
                    "Change search.kind or search.inputs; keep frames by features.keep."
                )
        if space.solver == ("convex",) and space.kind != ("linear",):
            raise SettingsError(
                f"the convex solver fits linear heads only, but search.kind is {', '.join(space.kind)}. "
                'Add "adamw" to search.solver, or search linear heads.'
            )
        return cls(space, vectors, frames)

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """What a convex trial may ask for, one after the other; neighbours share a basis."""
        if "convex" not in self.space.solver or "linear" not in self.space.kind:
            return []
        every = itertools.product(self.vectors, self.space.normalization, self.space.components)
        return [dict(zip(("inputs", "normalization", "components"), values, strict=True)) for values in every]

    def grid(self) -> tuple[GridPoint, ...]:
        """What one convex trial tries, each with every combination of `combinations`."""
        space = self.space
        return grid_points(
            l2=_between(space.l2, _PENALTIES, log=True),
            positive_weight_exponent=_between(space.positive_weight_exponent, _EXPONENTS),
            positive_weight_scale=_between(space.positive_weight_scale, _OTHERS, log=True),
            label_smoothing=_between(space.label_smoothing, _OTHERS),
        )

    def ask_convex(self, trial: Trial) -> dict[str, Any]:
        """Draws what lies outside the grid."""
        return {
            "inputs": _choice(trial, "inputs", self.vectors),
            "normalization": _choice(trial, "normalization", self.space.normalization),
            "components": _choice(trial, "components", self.space.components),
        }

    def ask(self, trial: Trial) -> HeadSettings:
        """Draws the settings of a head that is trained by steps."""
        space = self.space
        kind = _choice(trial, "kind", space.kind)
        of_frames = kind in OF_FRAMES
        drawn: dict[str, Any] = {
            "kind": kind,
            "inputs": _choice(
                trial, "frame_inputs" if of_frames else "inputs", self.frames if of_frames else self.vectors
            ),
        }
        if kind in ("mlp", "temporal"):
            drawn["hidden_width"] = int(_number(trial, "hidden_width", space.hidden_width, log=True))
        for name, log in (
            ("learning_rate", True),
            ("weight_decay", True),
            ("positive_weight_exponent", False),
            ("positive_weight_scale", True),
            ("label_smoothing", False),
            ("dropout", False),
            ("epochs", True),
        ):
            drawn[name] = _number(trial, name, getattr(space, name), log=log)
        for name in ("batch_size", "patience", "normalization", "components"):
            drawn[name] = _choice(trial, name, getattr(space, name))
        return HeadSettings(**drawn)


def _choice(trial: Trial, name: str, choices: Sequence[T]) -> T:
    if len(choices) == 1:
        return choices[0]
    return trial.suggest_categorical(name, choices)


def _number(trial: Trial, name: str, bounds: tuple[float, float], *, log: bool) -> float:
    """A number of the range; whole where its bounds are."""
    low, high = bounds
    if low == high:
        return low
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _between(bounds: tuple[float, float], count: int, *, log: bool = False) -> list[float]:
    low, high = bounds
    if low == high:
        return [float(low)]
    values: list[float] = (np.geomspace if log else np.linspace)(low, high, count).tolist()
    return values
