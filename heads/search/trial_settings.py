"""What a trial asks of Optuna, and what the convex solver tries inside one.

Notable choices: a setting that the search space fixes is not asked for, so importances and the sampler see only what
varies. Trials of the two solvers ask for the same names where they mean the same, so the sampler learns from the
quick converged ones which features are good. What lies outside a convex trial's grid (inputs, normalisation,
components, variance exponent, prior) is a list of combinations; each is worth solving once. Inputs of frames have a
name of their own, because a choice must offer the same in every trial. Whatever Optuna calls its parameters, a trial's
settings are `HeadSettings` from here on, and a mapping of its fields on disk.

Where all vectors are offered side by side, so is the one that scores best alone next to each other one, and then the
best with the two that do best next to it, with three, ... So useless ones are left out, and one that tells nothing
alone is found if it helps the best. That takes about three sets a vector, where the subsets double with each; and few
sets are fitted less to chance (RESULTS, few sessions). Not found are two that help the best only together.

What this is not: a search, or training.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import optuna

from featurecache.errors import SettingsError
from featurecache.extraction.words import JOINT_FEATURE
from heads.data import LearningData
from heads.engines.convex import GridPoint, grid_points
from heads.prior import NO_WORDS
from heads.samples.joining import join_of, selected
from heads.settings import OF_FRAMES, HeadPrior, HeadSettings, SearchSpace

Trial = optuna.Trial | optuna.trial.FixedTrial
T = TypeVar("T")

_PENALTIES, _EXPONENTS = 8, 6
_OUTSIDE_GRID = ("inputs", "normalization", "components", "variance_exponent", "prior")


@dataclass(frozen=True)
class Choices:
    """What a search may draw, divided by what fits what.

    Attributes:
        space: The ranges.
        vectors: Inputs that are one vector a clip.
        frames: Inputs of frames.
        rank_of: The most principal components that training features of each inputs can have.
        has_words: Whether there are words that make a prior of `joint/mean`.
    """

    space: SearchSpace
    vectors: tuple[str, ...]
    frames: tuple[str, ...]
    rank_of: Callable[[str], int]
    has_words: bool

    @classmethod
    def of(cls, space: SearchSpace, data: LearningData) -> "Choices":
        """Divides the inputs of a search space.

        Raises:
            SettingsError: If inputs were not loaded, a kind has no inputs that fit it or inputs no kind, the only
                solver has nothing to solve, or the only prior is that of words and there are none.
        """
        frames = tuple(inputs for inputs in space.inputs if data.train.are_frames(inputs))
        vectors = tuple(inputs for inputs in space.inputs if inputs not in frames)
        _check_fit(space, vectors, frames)
        if space.solver == ("convex",) and space.kind != ("linear",):
            raise SettingsError(
                f"the convex solver fits linear heads only, but search.kind is {', '.join(space.kind)}. "
                'Add "adamw" to search.solver, or search linear heads.'
            )
        if "none" not in space.prior and (data.prior is None or not any(map(_has_words, vectors))):
            raise SettingsError(NO_WORDS)
        return cls(space, vectors, frames, data.train.most_components, data.prior is not None)

    def combinations(self, vectors: Sequence[str]) -> list[HeadSettings]:
        """What convex trials of such inputs solve, one after the other; neighbours share a basis."""
        if "convex" not in self.space.solver or "linear" not in self.space.kind:
            return []
        return [
            HeadSettings(
                solver="convex",
                inputs=inputs,
                normalization=normalization,
                components=components,
                variance_exponent=variance_exponent,
                prior=prior,
            )
            for inputs, normalization in itertools.product(vectors, self.space.normalization)
            for components in _fewer_than(self.rank_of(inputs), self.space.components)
            for variance_exponent in self.space.variance_exponent
            for prior in self._priors((inputs,))
        ]

    def _priors(self, of_inputs: Sequence[str]) -> tuple[HeadPrior, ...]:
        """Priors of heads on some inputs; "none" where words make none of them."""
        has_words = self.has_words and any(map(_has_words, of_inputs))
        return tuple(one for one in self.space.prior if has_words or one == "none") or ("none",)

    def leading(self, value_of: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Two steps of forward selection, for vectors that are offered alone and all side by side.

        Args:
            value_of: Score of each vector alone; where one is unknown there are no steps. The second step reads the
                scores of the first one's pairs too.

        Returns:
            The best vector next to each other one; then the best with the two that do best next to it, with the best
            three, ... Without what is offered already, in whatever order its parts are written.
        """
        offered = {(join_of(one), frozenset(selected(one))): one for one in self.vectors}
        pairs: list[str] = []
        sets: list[str] = []
        for join in dict.fromkeys(map(join_of, self.vectors)):
            alone = [one for one in self.vectors if join_of(one) == join and len(selected(one)) == 1]
            if (join, frozenset(name for one in alone for name in selected(one))) not in offered or any(
                one not in value_of for one in alone
            ):
                continue

            def joined(parts: Sequence[str], join: str = join, alone: Sequence[str] = alone) -> str:
                name = _side_by_side([one for one in alone if one in parts], join)
                return offered.get((join, frozenset(selected(name))), name)

            best, *others = sorted(alone, key=lambda one: -value_of[one])
            pair_of = {one: joined([best, one]) for one in others}
            ordered = [best, *sorted(others, key=lambda one: -value_of.get(pair_of[one], 0.0))]
            pairs += pair_of.values()
            sets += [joined(ordered[:count]) for count in range(3, len(alone))]
        known = set(self.vectors)
        return [one for one in pairs if one not in known], [one for one in sets if one not in known]

    @property
    def components(self) -> tuple[int, ...]:
        """Numbers of principal components that some inputs have more of."""
        return _fewer_than(max(map(self.rank_of, self.space.inputs)), self.space.components)

    def grid(self) -> tuple[GridPoint, ...]:
        """What one convex trial tries, each with every combination of `combinations`."""
        space = self.space
        return grid_points(
            l2=_between(space.l2, _PENALTIES, log=True),
            positive_weight_exponent=_between(space.positive_weight_exponent, _EXPONENTS),
        )

    def ask_convex(self, trial: Trial, settings: HeadSettings) -> None:
        """Asks for what lies outside the grid as a combination has it, so that the sampler learns of it."""
        for name, offered in (
            ("inputs", self.vectors),
            ("normalization", self.space.normalization),
            ("components", self.components),
            ("variance_exponent", self.space.variance_exponent),
            ("prior", self._priors(self.vectors)),
        ):
            if getattr(settings, name) in offered:  # leading vectors are not offered to the sampler
                _choice(trial, name, offered)

    def ask(self, trial: Trial) -> HeadSettings:
        """Draws the settings of a head that is trained by AdamW."""
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
            layers = _choice(trial, "hidden_layers", space.hidden_layers) if kind == "mlp" else 1
            names = ["hidden_width", *(f"hidden_width_{layer}" for layer in range(2, layers + 1))]
            widths = tuple(int(_number(trial, name, space.hidden_width, log=True)) for name in names)
            drawn["hidden_width"] = widths if layers > 1 else widths[0]
        for name, log in (
            ("learning_rate", True),
            ("weight_decay", True),
            ("positive_weight_exponent", False),
            ("dropout", False),
            ("epochs", True),
        ):
            drawn[name] = _number(trial, name, getattr(space, name), log=log)
        for name in ("batch_size", "patience", "normalization"):
            drawn[name] = _choice(trial, name, getattr(space, name))
        components = _choice(trial, "components", self.components)
        drawn["components"] = components if components < self.rank_of(drawn["inputs"]) else 0
        return HeadSettings(**drawn)


def combination_name(settings: HeadSettings) -> str:
    """The combination that a convex trial solves, as the journal notes it."""
    name = f"{settings.inputs} {settings.normalization} {settings.components} {settings.variance_exponent:g}"
    return name if settings.prior == "none" else f"{name} {settings.prior}"


def combination_params(settings: HeadSettings) -> dict[str, Any]:
    """The parameters by which Optuna is told to ask for a combination."""
    return {name: getattr(settings, name) for name in _OUTSIDE_GRID}


def _has_words(inputs: str) -> bool:
    """Whether words make a prior of a head on these inputs."""
    return JOINT_FEATURE in inputs.split("+")


def _side_by_side(vectors: Sequence[str], join: str) -> str:
    names = "+".join(name for one in vectors for name in selected(one))
    return f"{join}({names})" if join else names


def _check_fit(space: SearchSpace, vectors: Sequence[str], frames: Sequence[str]) -> None:
    """Refuses inputs that no kind reads, and kinds that no inputs serve.

    Raises:
        SettingsError: Naming what to write.
    """
    of_vectors = [kind for kind in space.kind if kind not in OF_FRAMES]
    of_frames = [kind for kind in space.kind if kind in OF_FRAMES]
    found = f"search.inputs are {_written(space.inputs)} and search.kind is {_written(space.kind)}"
    if frames and not of_frames:
        kinds = [*(of_vectors if vectors else ()), *OF_FRAMES]
        raise SettingsError(
            f"features of frames must have a head that reads frames, {', '.join(OF_FRAMES[:-1])} or "
            f"{OF_FRAMES[-1]}, but {found}. "
            f"Write kind = {_written(kinds)} in [search], or inputs of one vector a clip, such as final/mean."
        )
    if vectors and not of_vectors:
        kinds = ["linear", *(of_frames if frames else ())]
        raise SettingsError(
            "features of one vector a clip must have a head that reads them, linear or mlp, but "
            f"{found}. Write kind = {_written(kinds)} in [search], or inputs of frames, such as final/frames."
        )
    for kinds, inputs, reads, example in (
        (of_vectors, vectors, "one vector a clip", "final/mean"),
        (of_frames, frames, "features of frames", "final/frames"),
    ):
        if kinds and not inputs:
            raise SettingsError(
                f"a head of kind {kinds[0]!r} must have inputs of {reads}, but {found}. "
                f"Add such inputs, e.g. {example} (selected by features.select), or leave "
                f"{' and '.join(kinds)} out of kind."
            )


def _fewer_than(rank: int, components: Sequence[int]) -> tuple[int, ...]:
    """Those that leave some of so many out; where none does, 0, which keeps the features."""
    return tuple(count for count in components if count < rank) or (0,)


def _written(names: Sequence[str]) -> str:
    """A list as TOML has it."""
    return json.dumps(list(names))


def _choice(trial: Trial, name: str, choices: Sequence[T]) -> T:
    if len(choices) == 1:
        return choices[0]
    return trial.suggest_categorical(name, choices)  # type: ignore[arg-type, return-value]


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
    values = np.geomspace(low, high, count) if log else np.linspace(low, high, count).round(12)  # 0.6, not 0.60...01
    return [float(value) for value in values]
