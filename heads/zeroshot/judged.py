"""ZSC-J as the command runs it: a caption of each clip, and for each label a judge's answer about the caption.

`prepare_judged` checks prompts and judge before any weight is loaded. `audit_judge` asks the judge about perfect
captions, made from targets: a judge that does not agree with them cannot be trusted with real ones.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.backbones.captioning import CAPTION_TAP, JUDGED_TAP, JudgedCaption
from featurecache.backbones.wording import Wording
from featurecache.errors import UnansweredError
from heads.models import LinearHead
from heads.zeroshot.answering import asked_about, caption_texts
from heads.zeroshot.lists import spoken
from heads.zeroshot.methods import LEAST_MASS, Numbers
from heads.zeroshot.prompts import Question
from heads.zeroshot.reading import audit_of_questions, columns_head, columns_of, scores_by_wording
from heads.zeroshot.verdicts import Answers, Judge, row_of

_log = logging.getLogger(__name__)
_WORD_EVERY_S = 5.0
_MOST_AUDITED = 64  # target vectors
_SWAPPED = 0.8
"""A judge whose answers are wrong so often says 0 where it means 1."""


@dataclass(frozen=True, eq=False)
class Judged:
    """ZSC-J: one caption, and a question about it for each label, in one wording or several.

    Attributes:
        labels: The C labels.
        questions: The Q questions that the judge is asked.
        request: What the video language model is asked.
        asked: Both as they are asked.
        wording: Makes words of tokens.
    """

    labels: tuple[str, ...]
    questions: tuple[Question, ...]
    request: str
    asked: JudgedCaption
    wording: Wording

    chooses_jointly = False
    columns = ("caption", "label", "wording", "asks_for", "p_1", "mass_0_1", "probabilities", "read_as")

    def _answers(self, numbers: Numbers) -> Answers:
        return Answers.of(numbers[JUDGED_TAP], self.asked.least_mass)

    def candidates(self, numbers: Numbers) -> dict[str, npt.NDArray[np.float64]]:
        """A candidate for each wording; labels that have fewer lack the later ones."""
        return scores_by_wording(self.questions, self.labels, self._answers(numbers).scores)

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, LinearHead]:
        """One column for each label: the score by its wording."""
        columns = columns_of(self.questions, self.labels, of_label)
        return JUDGED_TAP, columns_head(columns, self.asked.widths[JUDGED_TAP])

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the answer begins with 1; one that begins otherwise says nothing."""
        return np.asarray(self._answers(numbers).said[:, columns_of(self.questions, self.labels, of_label)] == 1)

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:  # noqa: ARG002
        """Nothing is drawn."""
        return []

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """Captions that are alike, and by question what the judge says."""
        answers = self._answers(numbers)
        tokens = np.asarray(numbers[CAPTION_TAP], np.int64)
        captions = Counter(caption_texts(self.wording, tokens))
        below = ~answers.is_parsable & ~answers.is_hard
        return {
            **audit_of_questions(self.questions, _read(answers), answers.odds, answers.mass, below),
            "hard": int(answers.is_hard.sum()),
            "captions": {
                "different": len(captions),
                "most_frequent": max(captions.values(), default=0),
                "not_ended": int((~np.isin(tokens, self.asked.ends).any(axis=1)).sum()),
            },
        }

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """A row for each question."""
        answers = self._answers(numbers)
        read = _read(answers)
        for row, caption in enumerate(caption_texts(self.wording, numbers[CAPTION_TAP])):
            yield [
                (
                    caption,
                    one.label,
                    str(one.wording + 1),
                    "absence" if one.is_negated else "presence",
                    f"{answers.read[row, at]:.4f}",
                    f"{answers.mass[row, at]:.4f}",
                    "not given" if answers.is_hard[row, at] else "given",
                    str(read[row, at]),
                )
                for at, one in enumerate(self.questions)
            ]

    def prompts(self) -> list[dict[str, Any]]:
        """The request, and each question."""
        return [{"prompt": self.request}, *(asdict(one) for one in self.questions)]


def prepare_judged(
    wording: Wording,
    labels: Sequence[str],
    request: str,
    questions: Sequence[Question],
    *,
    judge: Mapping[str, Any],
    caption_tokens: int,
) -> Judged:
    """ZSC-J of checked prompts.

    Args:
        wording: The video language model's tokenizer.
        labels: The labels that are asked about.
        request: What the video language model is asked, around `<video>`.
        questions: What the judge is asked.
        judge: What the judge is (`judge_identity`).
        caption_tokens: Tokens of a caption at most.

    Raises:
        SettingsError, UnsupportedModelError: As `Wording.caption`.
    """
    asked = wording.caption(
        request,
        name="the caption prompt of zsc-j",
        new_tokens=caption_tokens,
        judge=judge,
        questions=tuple(question.prompt for question in questions),
        least_mass=LEAST_MASS,
    )
    return Judged(tuple(labels), tuple(questions), request, asked, wording)


def perfect_caption(labels: Sequence[str], targets: Sequence[int]) -> str:
    """A caption that says what is on, and nothing else."""
    on = [spoken(label) for label, target in zip(labels, targets, strict=True) if target]
    return f"In this clip the following takes place: {', '.join(on) or 'none of the activities'}."


def audit_judge(judge: Judge, asking: Judged, targets: npt.NDArray[np.integer]) -> dict[str, Any]:
    """What a judge says of perfect captions.

    Args:
        judge: The judge.
        asking: The method with its questions.
        targets: Different target vectors, shape (K, C); labels that no clip has make no caption for it.

    Returns:
        JSON-ready: number of `captions`, how often the first wording of each label agrees with its target
        (`agreement`), their mean, `unparsable` answers, and labels of which it always says the same, 0 or 1
        (`constant`), or mostly the opposite (`swapped`) although targets differ. Captions without an
        answer are left out.
    """
    rows, kept = [], []
    due = time.monotonic() + _WORD_EVERY_S
    for number, target in enumerate(targets.tolist()):
        if time.monotonic() >= due:
            _log.info("the judge is tried on perfect captions: %d of %d", number, len(targets))
            due = time.monotonic() + _WORD_EVERY_S
        try:
            rows.append(
                row_of(
                    judge.ask(asked_about(asking.asked.questions, perfect_caption(asking.labels, target))),
                    asking.asked.least_mass,
                )
            )
        except UnansweredError:
            continue
        kept.append(target)
    if not rows:
        return {"captions": 0}
    answers = Answers.of(np.stack(rows), asking.asked.least_mass)
    columns = columns_of(asking.questions, asking.labels, np.zeros(len(asking.labels), np.int64))
    read, on = _read(answers)[:, columns], np.array(kept) == 1  # (K, C) each
    right = np.where(on, read == "yes", read == "no")
    wrong = np.where(on, read == "no", read == "yes")
    agreement = dict(zip(asking.labels, right.mean(axis=0).tolist(), strict=True))
    named: dict[str, list[str]] = {"constant": [], "swapped": []}
    for at, label in enumerate(asking.labels):
        differs = on[:, at].any() and not on[:, at].all()
        if differs and set(read[:, at].tolist()) in ({"yes"}, {"no"}):
            named["constant"].append(label)
        elif differs and wrong[:, at].mean() >= _SWAPPED:
            named["swapped"].append(label)
    return {
        "captions": len(kept),
        "agreement": agreement,
        "mean_agreement": float(right.mean()),
        "unparsable": int((read == "unparsable").sum()),
        **named,
    }


def audited_targets(labels: Sequence[str], Y: npt.NDArray[np.integer] | None) -> npt.NDArray[np.int64]:
    """Target vectors for the audit: the different ones of labelled clips, the frequent first; else each label alone.

    Returns:
        Shape (K, C), K at most 64 where targets are given; every label is on in one and off in another.
    """
    alone = np.vstack([np.zeros((1, len(labels)), np.int64), np.eye(len(labels), dtype=np.int64)])
    if Y is None or not len(Y):
        return alone
    found, counts = np.unique(np.asarray(Y, np.int64), axis=0, return_counts=True)
    found = found[np.argsort(-counts, kind="stable")][:_MOST_AUDITED]
    more = [row for row in alone.tolist() if row not in found.tolist()]
    return np.vstack([found, *([np.array(more)] if more else [])]) if len(found) < _MOST_AUDITED else found


def _read(answers: Answers) -> npt.NDArray[np.str_]:
    """What each answer says, (N, Q): yes, no or unparsable."""
    said = np.where(answers.is_hard, answers.said == 1, answers.odds > 0)
    return np.where(~answers.is_parsable, "unparsable", np.where(said, "yes", "no"))
