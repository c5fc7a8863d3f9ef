"""A zero-shot method as the command runs it: what it asks, how its cached answers are read, and what it reports.

`prepare_yes_no` and `prepare_lists` check prompts and labels before any weight is loaded, as do `judged.py` and
`words.py`. The object they give turns
cached numbers into candidate scores, heads that a bundle holds, an audit, and the rows of `answers.csv`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.backbones.asking import ActivityList, Asked, YesNoQuestions
from featurecache.backbones.continuation import NOTHING_SAID, SAID
from featurecache.backbones.wording import Wording
from heads.models import Head, LinearHead
from heads.zeroshot.lists import Rules, SaidList, allowed_lists, read_list, spoken
from heads.zeroshot.prompts import Question, read_list_prompt, read_questions
from heads.zeroshot.reading import (
    READINGS,
    audit_of_questions,
    columns_head,
    columns_of,
    reading_head,
    scores_by_wording,
)

Numbers = Mapping[str, npt.NDArray[np.floating]]
"""Cached answers of N clips by tap, each of shape (N, width)."""

LEAST_MASS = 0.5
"""Below this probability of yes and no together, an answer is read by little of what the model would say."""


class ZeroShot(Protocol):
    """A method with its prompts."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels that are asked about."""
        ...

    @property
    def asked(self) -> Asked | None:
        """What the model is asked; None where words are held against clips' embeddings."""
        ...

    @property
    def chooses_jointly(self) -> bool:
        """Whether all labels take the same candidate."""
        ...

    def candidates(self, numbers: Numbers) -> dict[str, npt.NDArray[np.float64]]:
        """Scores to choose among, by name, each (N, C); NaN for a label that a candidate does not score."""
        ...

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, Head]:
        """The tap and the head that give the chosen candidates' scores, choice (C,)."""
        ...

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Labels that the free answers say are on, by the chosen candidates: (N, C)."""
        ...

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:
        """Labels that each sample of drawn answers says are on, each (N, C); none where nothing was drawn."""
        ...

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """What the free answers are like, JSON-ready; no target is read."""
        ...

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """Each clip's rows of `answers.csv`, under `columns`."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `answers.csv` after the clip's own."""
        ...

    def prompts(self) -> list[dict[str, Any]]:
        """The prompts as they were asked, JSON-ready."""
        ...


def kind_of(asking: ZeroShot) -> str:
    """A method by its command's name."""
    return "text" if asking.asked is None else asking.asked.kind


@dataclass(frozen=True, eq=False)
class YesNo:
    """ZS-B: a yes/no question for each label, in one wording or several.

    Attributes:
        labels: The C labels.
        questions: The Q questions, in the order of the answers.
        asked: The same as token ids.
        wording: Makes words of tokens.
    """

    labels: tuple[str, ...]
    questions: tuple[Question, ...]
    asked: YesNoQuestions
    wording: Wording

    chooses_jointly = False
    columns = ("label", "wording", "asks_for", "p_yes", "mass_yes_no", "free_answer", "read_as")

    def candidates(self, numbers: Numbers) -> dict[str, npt.NDArray[np.float64]]:
        """A candidate for each wording; labels that have fewer lack the later ones."""
        odds = np.asarray(numbers["zs-b"], np.float64)
        return scores_by_wording(self.questions, self.labels, 1 / (1 + np.exp(-odds[:, : len(self.questions)])))

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, LinearHead]:
        """One column for each label: that of its wording."""
        return "zs-b", columns_head(columns_of(self.questions, self.labels, of_label), self.asked.widths["zs-b"])

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the most probable first token says yes; an unparsable one says nothing."""
        return np.asarray(self._read(numbers)[:, columns_of(self.questions, self.labels, of_label)] == "yes")

    def _read(self, numbers: Numbers) -> npt.NDArray[np.str_]:
        """What each free first token says: yes, no or unparsable, (N, Q)."""
        said = np.asarray(numbers["zs-b" + SAID], np.int64)
        is_yes, is_no = np.isin(said, self.asked.yes), np.isin(said, self.asked.no)
        return np.where(is_yes, "yes", np.where(is_no, "no", "unparsable"))

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:  # noqa: ARG002
        """Nothing is drawn: the probability of yes is known."""
        return []

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """By question: free answers, the mass on yes and no, and whether the answer is the same for every clip."""
        read = self._read(numbers)
        odds, mass = np.split(np.asarray(numbers["zs-b"], np.float64), 2, axis=1)
        return audit_of_questions(self.questions, read, odds, np.exp(mass), np.exp(mass) < LEAST_MASS)

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """A row for each question."""
        read = self._read(numbers)
        odds, mass = np.split(np.asarray(numbers["zs-b"], np.float64), 2, axis=1)
        words = {int(token): self.wording.text([token]) for token in np.unique(numbers["zs-b" + SAID])}
        for row in range(len(read)):
            yield [
                (
                    one.label,
                    str(one.wording + 1),
                    "absence" if one.is_negated else "presence",
                    f"{1 / (1 + np.exp(-odds[row, at])):.4f}",
                    f"{np.exp(mass[row, at]):.4f}",
                    words[int(numbers["zs-b" + SAID][row, at])],
                    str(read[row, at]),
                )
                for at, one in enumerate(self.questions)
            ]

    def prompts(self) -> list[dict[str, Any]]:
        """Each question."""
        return [asdict(one) for one in self.questions]


@dataclass(frozen=True, eq=False)
class Lists:
    """ZSC-CO: one prompt whose answer is a list of labels.

    Attributes:
        labels: The C labels.
        rules: What they say about each other.
        prompt: The prompt.
        lists: The L allowed lists as they are said.
        asked: The same as token ids.
        wording: Makes words of tokens.
    """

    labels: tuple[str, ...]
    rules: Rules
    prompt: str
    lists: tuple[str, ...]
    asked: ActivityList
    wording: Wording

    chooses_jointly = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The free answer and what is wrong with it, the constrained ones, and each label's probability."""
        fixed = ("free_answer", "is_valid", "hallucinated", "duplicates", "broken_rules", "parsable", "has_ended")
        return (*fixed, "greedy_list", "most_probable_list", "mass_on_allowed", *(f"p {one}" for one in self.labels))

    def candidates(self, numbers: Numbers) -> dict[str, npt.NDArray[np.float64]]:
        """A candidate for each reading."""
        found = {}
        for reading in READINGS:
            tap, head = reading_head(reading, len(self.labels), self.asked.widths)
            weights = head.output.weight.detach().numpy().astype(np.float64)
            found[reading] = 1 / (1 + np.exp(-np.asarray(numbers[tap], np.float64) @ weights.T))
        return found

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, LinearHead]:
        """The head of the chosen reading, which is one for all labels."""
        return reading_head(READINGS[int(of_label[0])], len(self.labels), self.asked.widths)

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:  # noqa: ARG002
        """Labels that the greedy free answer names, whatever else it says and whichever reading was chosen."""
        return np.array([[label in read.on for label in self.labels] for _, read in self.free_answers(numbers)])

    def _members(self, row: npt.NDArray[np.floating], reading: str) -> str:
        first = READINGS.index(reading) * len(self.labels)
        members = tuple(int(one > 0) for one in row[first : first + len(self.labels)])
        return self.lists[self.asked.members.index(members)]

    def free_answers(self, numbers: Numbers, sample: int = 0) -> list[tuple[str, SaidList]]:
        """Each clip's free answer in words and as a list; of sample 0 the greedy one, of others the drawn ones."""
        said = np.asarray(numbers["zsc-co" + SAID], np.int64)
        first = 2 * len(self.labels) + self.asked.samples + sample * self.asked.new_tokens
        found = []
        for row in said[:, first : first + self.asked.new_tokens]:
            has_ended = bool(np.isin(row, self.asked.ends).any())
            text = self.wording.text(row[row != NOTHING_SAID].tolist())
            found.append((text, read_list(text, self.labels, self.rules, has_ended=has_ended)))
        return found

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """Of the free answers: valid ones, and what is wrong with the others, by name."""
        document = _audit_of_lists([read for _, read in self.free_answers(numbers)])
        mass = np.exp(np.asarray(numbers["zsc-co"], np.float64)[:, len(self.labels)])
        greedy = Counter(self._members(row, "greedy") for row in numbers["zsc-co" + SAID])
        document |= {
            "labels_not_in_prompt": [one for one in self.labels if spoken(one).lower() not in self.prompt.lower()],
            "mean_mass_on_allowed": float(mass.mean()),
            "allowed_lists": len(self.lists),
            "constrained_answers": dict(greedy.most_common()),
        }
        if self.asked.samples:
            drawn = range(1, self.asked.samples + 1)
            document["samples"] = [
                _audit_of_lists([read for _, read in self.free_answers(numbers, sample)]) for sample in drawn
            ]
        return document

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:
        """Labels of each sample's drawn list, which is an allowed one: each (N, C)."""
        members = np.array(self.asked.members, bool)  # (L, C)
        first = 2 * len(self.labels)
        places = np.asarray(numbers["zsc-co" + SAID], np.int64)[:, first : first + self.asked.samples]
        return [members[places[:, sample]] for sample in range(self.asked.samples)]

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """One row."""
        count = len(self.labels)
        for row, (text, read) in enumerate(self.free_answers(numbers)):
            said, own = numbers["zsc-co" + SAID][row], np.asarray(numbers["zsc-co"][row], np.float64)
            yield [
                (
                    text,
                    str(int(read.is_valid)),
                    "; ".join(read.hallucinated),
                    "; ".join(read.duplicates),
                    "; ".join(read.broken),
                    str(int(read.is_parsable)),
                    str(int(read.has_ended)),
                    self._members(said, "greedy"),
                    self._members(said, "list"),
                    f"{np.exp(own[count]):.4f}",
                    *(f"{1 / (1 + np.exp(-one)):.4f}" for one in own[:count]),
                )
            ]

    def prompts(self) -> list[dict[str, Any]]:
        """The prompt."""
        return [{"prompt": self.prompt, "lists": list(self.lists)}]


def _audit_of_lists(read: Sequence[SaidList]) -> dict[str, Any]:
    """Counts of clips, and by name of what is said that is no label."""
    return {
        "n_clips": len(read),
        "valid": sum(one.is_valid for one in read),
        "unparsable": sum(not one.is_parsable for one in read),
        "not_ended": sum(not one.has_ended for one in read),
        "hallucinated": sum(bool(one.hallucinated) for one in read),
        "duplicates": sum(bool(one.duplicates) for one in read),
        "violations": sum(bool(one.broken) for one in read),
        "hallucinated_labels": dict(Counter(name for one in read for name in one.hallucinated).most_common()),
        "broken_rules": dict(Counter(rule for one in read for rule in one.broken).most_common()),
    }


def prepare_yes_no(wording: Wording, folder: Path, labels: Sequence[str], recordings: Sequence[str]) -> YesNo:
    """Reads and checks the questions of ZS-B.

    Args:
        wording: The model's tokenizer.
        folder: The folder of prompts.
        labels: The labels that are asked about.
        recordings: Names of recordings, none of which may stand in a prompt.

    Raises:
        SettingsError, UnsupportedModelError: As `read_questions` and `Wording.yes_no`.
    """
    questions = read_questions(folder, labels, recordings)
    asked = wording.yes_no({question.name: question.prompt for question in questions})
    return YesNo(tuple(labels), tuple(questions), asked, wording)


def prepare_lists(
    wording: Wording,
    folder: Path,
    labels: Sequence[str],
    recordings: Sequence[str],
    rules: Rules,
    *,
    new_tokens: int,
    samples: int,
    seed: int,
) -> Lists:
    """Reads and checks the prompt and the labels of ZSC-CO.

    Args:
        wording: The model's tokenizer.
        folder: The folder of prompts.
        labels: The labels that are asked about.
        recordings: Names of recordings, none of which may stand in a prompt.
        rules: What the labels say about each other.
        new_tokens: Tokens of a free answer at most.
        samples: Lists and free answers drawn besides.
        seed: Of the draws.

    Raises:
        SettingsError, UnsupportedModelError: As `allowed_lists`, `read_list_prompt` and `Wording.activity_list`.
    """
    own = rules.among(labels)
    lists = allowed_lists(labels, own)
    prompt = read_list_prompt(folder, labels, own, recordings)
    asked = wording.activity_list(
        prompt, lists, name="the prompt of zsc-co", new_tokens=new_tokens, samples=samples, seed=seed
    )
    return Lists(tuple(labels), own, prompt, tuple(lists), asked, wording)
