"""What a judge says of a caption, as the row of numbers that is cached, and back; and how a caption is quoted.

A judge begins its answer with 0 or 1. Where it gives probabilities, the score is p(1) / (p(0) + p(1)), which says
something only where the two have much of the probability together: below `least_mass` the answer is unparsable. An
unparsable answer scores 0, is counted, and is never called a no.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featurecache.backbones.captioning import BLOCKS

Numbers = npt.NDArray[np.floating]

_HARD = 20.0
"""Log odds of a decision, and the most that is kept of others."""
_QUOTE = str.maketrans({'"': "'", "`": "'", "<": "(", ">": ")", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/"})


@dataclass(frozen=True)
class Verdict:
    """One answer.

    Attributes:
        zero: Probability that it begins with 0.
        one: Probability that it begins with 1.
        said: What it begins with; None for neither.
        is_hard: Whether only `said` is known.
    """

    zero: float
    one: float
    said: int | None
    is_hard: bool


class Judge(Protocol):
    """Answers questions."""

    def ask(self, questions: Sequence[str]) -> list[Verdict]:
        """The answers to Q questions about one caption.

        Raises:
            UnansweredError: If there is no answer this time.
        """
        ...


def quoted(caption: str) -> str:
    """A caption that can only be read as one: on one line, without what ends a quotation or makes a special token.

    Chat templates and tokenizers mark turns by text in brackets (`[/INST]`, `<|im_end|>`); a caption keeps no bracket.
    """
    seen = "".join(one if unicodedata.category(one)[0] != "C" else " " for one in caption)
    return " ".join(seen.translate(_QUOTE).split())


def row_of(verdicts: Sequence[Verdict], least_mass: float) -> npt.NDArray[np.float32]:
    """The numbers that are cached of Q verdicts, `BLOCKS` blocks of Q (see `JudgedCaption`), shape (5 Q,)."""
    rows = []
    for one in verdicts:
        if one.is_hard:
            odds, mass = {1: _HARD, 0: -_HARD, None: 0.0}[one.said], float(one.said is not None)
        else:
            mass = one.zero + one.one
            odds = log(one.one + 1e-30) - log(one.zero + 1e-30)
        odds = min(max(odds, -_HARD), _HARD)
        is_parsable = mass >= least_mass
        rows.append((odds if is_parsable else -_HARD, odds, log(max(mass, exp(-_HARD))), one.said, one.is_hard))
    return np.array([[-1.0 if one is None else float(one) for one in row] for row in rows], np.float32).T.ravel()


@dataclass(frozen=True, eq=False)
class Answers:
    """The cached numbers of N clips and Q questions by what they are, each (N, Q).

    Attributes:
        scores: Probability of 1 that serves as score; 0 where unparsable.
        odds: Log odds of `scores`.
        read: p(1) / (p(0) + p(1)) as it was read.
        mass: Probability of 0 and 1 together.
        said: What the answer begins with: 1, 0, or -1 for neither.
        is_hard: Whether only that is known.
        is_parsable: Whether the answer counts as one.
    """

    scores: Numbers
    odds: Numbers
    read: Numbers
    mass: Numbers
    said: npt.NDArray[np.int64]
    is_hard: npt.NDArray[np.bool_]
    is_parsable: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Numbers, least_mass: float) -> "Answers":
        """From cached rows, shape (N, 5 Q)."""
        odds, read, mass, said, hard = np.split(np.asarray(rows, np.float64), BLOCKS, axis=1)
        # The masses are stored in float32: a mass of exactly the least one must not fall below it.
        is_parsable = mass >= np.float32(log(least_mass))
        probable = [1 / (1 + np.exp(-one)) for one in (odds, read)]
        return cls(probable[0], odds, probable[1], np.exp(mass), said.astype(np.int64), hard > 0, is_parsable)
