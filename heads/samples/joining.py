"""The parts of a sample as what a head reads: all of them, (N, P, D), or joined to one vector a sample.

An absent part is NaN throughout, so that it needs no second array. Heads that weigh parts leave it out. A head on
joined vectors reads the mean of what it was fitted on in its place, and whether each part is there: what a label makes
of an absent part is then learned, which for a linear head is the same as a learned vector in that place.
"""

import re
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError

JOINS = ("mean", "concat", "pair")
"""Mean over the parts that are there; parts side by side; `[a, b, b - a]`."""

_JOINED = re.compile(rf"({'|'.join(JOINS)})\((.+)\)")


def selected(inputs: str) -> list[str]:
    """The selected features that inputs name: `pair(final/mean+final/motion)` -> final/mean, final/motion."""
    found = _JOINED.fullmatch(inputs)
    return (found[2] if found else inputs).split("+")


def join_of(inputs: str) -> str:
    """How inputs join the parts of a sample; "" where they do not."""
    found = _JOINED.fullmatch(inputs)
    return found[1] if found else ""


def present(X: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which parts are there: (N, P, D) -> (N, P)."""
    return np.asarray(~np.isnan(X[..., 0]))


def joined(X: npt.NDArray[np.floating], join: str) -> npt.NDArray[np.floating]:
    """One vector a sample: (N, P, D) -> (N, D) for "mean", (N, P D + P) and (N, 3 D + 2) for the others.

    Raises:
        SettingsError: If "pair" is asked of samples of other than two parts.
    """
    if join == "mean":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of samples without a part, which are refused elsewhere
            return np.asarray(np.nanmean(X, axis=1, dtype=np.float32))
    parts = list(np.moveaxis(X, 1, 0))
    if join == "pair":
        if len(parts) != 2:
            raise SettingsError(
                f"a pair must have two parts, but the samples have {len(parts)}. Read them by concat(...) or mean(...)."
            )
        parts.append((parts[1].astype(np.float32) - parts[0]).astype(X.dtype))
    return np.concatenate([*parts, present(X).astype(X.dtype)], axis=1)


def joined_widths(widths: Sequence[int], places: int, join: str) -> list[int]:
    """Widths of what lies side by side in joined vectors, where a part has these: (P,) places."""
    if join in ("", "mean"):
        return list(widths)
    return [*(list(widths) * (places + (join == "pair"))), *([1] * places)]
