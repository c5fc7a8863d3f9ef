"""Which of the selected features heads read where the settings name none.

What this is not: a reader of features, or a check that a model has them.
"""

from collections.abc import Sequence

from heads.settings import OF_FRAMES

VECTORS = ("mean", "motion", "cls", "last")
"""Poolings that give one vector a clip."""


def default_inputs(kept: Sequence[str], kinds: Sequence[str] = ("linear",)) -> tuple[str, ...]:
    """What a search chooses from: each vector, each tap's mean and motion, all means, and all vectors side by side.

    To these the search adds the vector that scores best alone next to each other one, and with those that do best next
    to it (`Choices.leading`). Where a kind reads frames, the kept frames of each tap come with them.

    Args:
        kept: Selected features, as `tap/pooling`.
        kinds: Kinds of heads that may be drawn.
    """
    vectors = [name for name in kept if _pooling(name) in VECTORS]
    means = [name for name in vectors if _pooling(name) == "mean"]
    chosen = list(vectors) if set(kinds) - set(OF_FRAMES) else []
    if chosen:
        motions = [(mean, f"{_tap(mean)}/motion") for mean in means]
        chosen += ["+".join(pair) for pair in motions if pair[1] in vectors]
        if len(means) > 1:
            chosen.append("+".join(means))
        chosen.append("+".join(vectors))
    if set(kinds) & set(OF_FRAMES):
        chosen += [name for name in kept if _pooling(name) == "frames"]
    return tuple(dict.fromkeys(chosen)) or tuple(kept[:1])


def sample_inputs(inputs: Sequence[str], rule: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """What a search chooses from where samples have several clips: parts joined as the rule has them, and all parts.

    Args:
        inputs: Inputs of a clip, one vector each.
        rule: `SampleSettings.rule`; "none" leaves the inputs as they are.
        kinds: Kinds of heads that may be drawn.
    """
    if rule == "none":
        return tuple(inputs)
    joins = {"event": ("mean", "concat", "pair"), "moment": ("mean", "concat")}.get(rule, ("mean",))
    of_vectors = [f"{join}({one})" for join in joins for one in inputs] if set(kinds) - set(OF_FRAMES) else []
    return (*of_vectors, *(inputs if set(kinds) & set(OF_FRAMES) else ()))


def _tap(name: str) -> str:
    return name.split("/")[0]


def _pooling(name: str) -> str:
    return name.split("/")[1]
