"""The prior of linear heads on `joint/mean`: the weights that words make, which few annotated clips then correct.

Such a head is fitted on labels; under an endless penalty it would be that of `zeroshot text`, unless
`components` cut the prior, too, to the principal axes.

What this is not: the words (`zeroshot/words.py`), or the fit (`engines/convex.py`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError
from featurecache.extraction.words import JOINT_FEATURE
from heads.samples.joining import selected
from heads.settings import HeadSettings

Weights = npt.NDArray[np.float32]

NO_WORDS = (
    'prior = "words" must have words of some label and inputs with joint/mean, but there are none. Write them in '
    "prompts/text (featurecache zeroshot text --dry-run makes the files), and name joint/mean in features.select."
)


@dataclass(frozen=True, eq=False)
class Prior:
    """Weights of `joint/mean` as the cache stores it.

    Attributes:
        weights: Shape (C, D); zeros for a label without words.
        made_of: JSON-ready: the fingerprint of the text tower, and the prompts.
    """

    weights: Weights
    made_of: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the weights, 64 hex digits."""
        return hashlib.sha256(np.ascontiguousarray(self.weights).tobytes()).hexdigest()


def prior_tensors(prior: Prior | None) -> dict[str, Any]:
    """What a bundle's file of numbers holds of a prior, by name."""
    import torch  # it takes seconds

    return {} if prior is None else {"prior": torch.from_numpy(prior.weights)}


def taken_prior(
    tensors: dict[str, Any], document: Mapping[str, Any], settings: HeadSettings, widths: Sequence[int]
) -> Prior | None:
    """Takes a bundle's prior out of its tensors; None where the settings have none.

    Args:
        tensors: The numbers of a bundle.
        document: The content of `bundle.json`.
        settings: Settings of the head.
        widths: As `prior_weights`.

    Raises:
        KeyError: If it is not there.
        ValueError: If its shape, dtype or numbers are not those of the bundle's head.
    """
    if settings.prior == "none":
        return None
    prior = Prior(tensors.pop("prior").numpy(), document["prior"])
    weights, shape = prior_weights(settings, prior, widths), (len(document["labels"]), sum(widths))
    if weights is None or weights.shape != shape or weights.dtype != np.float32 or not np.isfinite(weights).all():
        raise ValueError(f"the prior is {prior.weights.dtype} of shape {prior.weights.shape}")
    return prior


def prior_weights(settings: HeadSettings, prior: Prior | None, widths: Sequence[int]) -> Weights | None:
    """The prior of a head with these settings, (C, D); None where they have none.

    Args:
        settings: Settings of the head.
        prior: What words make; None where there are none.
        widths: Widths of the selected features that the head reads side by side, which sum to D.

    Raises:
        SettingsError: If they have one and there is none.
    """
    if settings.prior == "none":
        return None
    names = selected(settings.inputs)
    if prior is None or JOINT_FEATURE not in names:
        raise SettingsError(NO_WORDS)
    count = len(prior.weights)
    parts = [
        prior.weights if name == JOINT_FEATURE else np.zeros((count, width), np.float32)
        for name, width in zip(names, widths, strict=True)
    ]
    return np.concatenate(parts, axis=1)
