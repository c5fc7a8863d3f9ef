"""From cached answers to scores: each way of reading them is a linear head with fixed weights, so a bundle holds it.

`zs-b`: a question's score is p(yes) / (p(yes) + p(no)), the sigmoid of the log odds that are cached. `zsc-co` has three
readings: `marginal`, each label's probability under the allowed lists; `list`, the most probable list; `greedy`, the
list that is said where only allowed ones can be. The last two give 0 or 1.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from featurecache.backbones.asking import SAID
from heads.models import Front, LinearHead

READINGS = ("greedy", "list", "marginal")

_HARD = 20.0
"""Log odds of a decision."""

Numbers = npt.NDArray[np.floating]


def columns_head(columns: Sequence[int], width: int, *, scale: float = 1.0) -> LinearHead:
    """A head whose score of each of C labels is the sigmoid of one column of its features.

    Args:
        columns: The column of each label, C of them.
        width: D, columns of the features.
        scale: Multiplies the columns.
    """
    head = LinearHead(Front(width), len(columns))
    with torch.no_grad():
        head.output.weight[range(len(columns)), list(columns)] = scale
    return head.eval()


def reading_head(reading: str, label_count: int, widths: dict[str, int]) -> tuple[str, LinearHead]:
    """The tap that a reading of lists reads, and its head.

    Args:
        reading: One of `READINGS`.
        label_count: C.
        widths: Columns of the taps `zsc-co` and `zsc-co_said`.
    """
    if reading == "marginal":
        return "zsc-co", columns_head(range(label_count), widths["zsc-co"])
    first = READINGS.index(reading) * label_count
    tap = "zsc-co" + SAID
    return tap, columns_head(range(first, first + label_count), widths[tap], scale=_HARD)
