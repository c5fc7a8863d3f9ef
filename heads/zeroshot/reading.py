"""From cached answers to scores: each way of reading them is a linear head with fixed weights, so a bundle holds it.

`zs-b`: a question's score is p(yes) / (p(yes) + p(no)), the sigmoid of the log odds that are cached. `zsc-co` has three
readings: `marginal`, each label's probability under the allowed lists; `list`, the most probable list; `greedy`, the
list that is said where only allowed ones can be. The last two give 0 or 1. `zsc-j` has a column for each question that
its judge is asked.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurecache.backbones.continuation import SAID
from heads.models import Front, LinearHead
from heads.zeroshot.prompts import Question

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


def columns_of(questions: Sequence[Question], labels: Sequence[str], of_label: npt.NDArray[np.int64]) -> list[int]:
    """The question that each of C labels is scored by, of the wording that it takes, (C,)."""
    places = {(one.label, one.wording): at for at, one in enumerate(questions) if not one.is_negated}
    return [places[label, wording] for label, wording in zip(labels, of_label.tolist(), strict=True)]


def scores_by_wording(
    questions: Sequence[Question], labels: Sequence[str], scores: Numbers
) -> dict[str, npt.NDArray[np.float64]]:
    """The scores of Q questions, (N, Q), as those of each wording, (N, C); NaN for labels that have fewer wordings."""
    scored = [(at, one) for at, one in enumerate(questions) if not one.is_negated]
    found = {}
    for wording in range(max(one.wording for _, one in scored) + 1):
        own = np.full((len(scores), len(labels)), np.nan)
        for at, one in scored:
            if one.wording == wording:
                own[:, labels.index(one.label)] = scores[:, at]
        found[f"wording {wording + 1}"] = own
    return found


def audit_of_questions(
    questions: Sequence[Question],
    read: npt.NDArray[np.str_],
    odds: Numbers,
    mass: Numbers,
    is_below: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """By question what is said and how probable both answers are, and how questions fit their negations, JSON-ready.

    Args:
        questions: The Q questions.
        read: What each answer says: yes, no or unparsable, shape (N, Q).
        odds: Log odds of yes, shape (N, Q).
        mass: Probability of yes and no together, shape (N, Q).
        is_below: Where that is too little for a score to say much, shape (N, Q).
    """
    return {
        "questions": [
            {
                "label": question.label,
                "wording": question.wording,
                "is_negated": question.is_negated,
                **{name: int((read[:, at] == name).sum()) for name in ("yes", "no", "unparsable")},
                "mean_mass": float(mass[:, at].mean()),
                "below_least_mass": int(is_below[:, at].sum()),
            }
            for at, question in enumerate(questions)
        ],
        "n_clips": len(read),
        "unparsable": int((read == "unparsable").sum()),
        "negation": fitting_negations(questions, odds),
    }


def fitting_negations(questions: Sequence[Question], odds: Numbers) -> dict[str, float]:
    """By label with a negation: the share of clips of which just one is so, the first wording or its opposite.

    Args:
        questions: Q questions.
        odds: Log odds of yes, (N, Q) or wider.
    """
    found = {}
    for at, one in enumerate(questions):
        if one.is_negated and one.wording == 0:
            plain = next(i for i, other in enumerate(questions) if other.label == one.label and not other.is_negated)
            found[one.label] = float(((odds[:, plain] > 0) != (odds[:, at] > 0)).mean())
    return found


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
