"""Labels given as words: each clip's embedding against those of prompts, in the space that both towers share.

A label's score follows from its wordings' vectors alone (their mean, scaled to unit length where the model's are: an
ensemble), at the model's own scale and bias: of SigLIP and PE the sigmoid of the logit; of the others the softmax of
the label's words against its "not" words, which is the sigmoid of the difference of two logits. Both are linear in the
clip's embedding, so a run is a linear head on `joint/mean`, and its logits are the mean of the frames' logits by the
plain model. Of X-CLIP each wording's vector depends on the clip, and a run is a head of its own (`PromptedHead`).

Nothing is asked of a language model: the words that the paper's methods put into prompts stand here by themselves.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurecache.errors import SettingsError
from featurecache.extraction.words import ProjectWords
from featurecache.project.settings import Project
from heads.models import Front, LinearHead, PromptedHead, head_scores, word_similarities
from heads.prior import Prior
from heads.zeroshot.methods import Numbers
from heads.zeroshot.prompts import Question, file_name, read_questions

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Words:
    """A label's words and, where it has them, its "not" words.

    Attributes:
        labels: The C labels.
        questions: The Q wordings.
        tower: Makes vectors of them.
    """

    labels: tuple[str, ...]
    questions: tuple[Question, ...]
    tower: ProjectWords

    asked = None
    chooses_jointly = False
    columns = ("label", "score", "similarity", "similarity_not")

    @property
    def tap(self) -> str:
        """The tap that they are compared with."""
        return self.tower.feature.partition("/")[0]

    @cached_property
    def _vectors(self) -> Floats:
        """Of each wording, (Q, D)."""
        return np.asarray(self.tower.vectors([one.prompt for one in self.questions]), np.float64)

    def _wordings(self, label: str, candidate: int = 0, *, is_negated: bool = False) -> list[int]:
        """Places of a label's wordings among the Q: candidate 0 has all, k the k-th; "not" words always are all."""
        own = [k for k, one in enumerate(self.questions) if one.label == label and one.is_negated == is_negated]
        return own[candidate - 1 : candidate] if candidate and not is_negated else own

    def _words(self, label: str, candidate: int = 0, *, is_negated: bool = False) -> Floats | None:
        """The mean vector of these wordings; None where there is none: (D,)."""
        own = self._wordings(label, candidate, is_negated=is_negated)
        if not own:
            return None
        mean: Floats = self._vectors[own].mean(axis=0)
        return mean / np.linalg.norm(mean) if self.tower.is_unit else mean

    def linear(self, label: str, candidate: int) -> tuple[Floats, float] | None:
        """Weights (D,) and bias of a label's logit by one candidate, without any clip's prompt; None without words."""
        words = self._words(label, candidate)
        if words is None or self.tower.is_sigmoid:
            return None if words is None else (self.tower.scale * words, self.tower.bias)
        other = self._words(label, is_negated=True)
        assert other is not None  # noqa: S101  # `prepare_words` looked
        return self.tower.scale * (words - other), 0.0

    def candidates(self, numbers: Numbers) -> dict[str, Floats]:
        """The ensemble of all wordings, then each wording alone where a label has several."""
        most = max(one.wording for one in self.questions if not one.is_negated) + 1
        count = most + 1 if most > 1 else 1
        pairs = list(itertools.product(range(count), self.labels))
        scores = head_scores(self._head(pairs), numbers[self.tap]).astype(np.float64)
        scores[:, [not self._wordings(label, candidate) for candidate, label in pairs]] = np.nan
        each = np.split(scores, count, axis=1)
        return {f"wording {k}" if k else "ensemble": one for k, one in enumerate(each)}

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, LinearHead | PromptedHead]:
        """Each label's words by its candidate."""
        return self.tap, self._head(list(zip(of_label.tolist(), self.labels, strict=True)))

    def _head(self, pairs: Sequence[tuple[int, str]]) -> LinearHead | PromptedHead:
        """An output for each candidate of a label."""
        front = Front(self._vectors.shape[1])
        if self.tower.generator is not None:
            return self._prompted(front, pairs)
        head = LinearHead(front, len(pairs))
        with torch.no_grad():
            for at, (candidate, label) in enumerate(pairs):
                weights, bias = self.linear(label, candidate) or (0.0, 0.0)
                head.output.weight[at] = torch.as_tensor(weights)
                head.output.bias[at] = bias
        return head.eval()

    def _prompted(self, front: Front, pairs: Sequence[tuple[int, str]]) -> PromptedHead:
        assert self.tower.generator is not None  # noqa: S101  # of callers that looked
        head = PromptedHead(front, self.tower.generator, len(pairs), text_count=len(self.questions))
        head.texts[:] = torch.from_numpy(self.tower.before_clips([one.prompt for one in self.questions]))
        head.scale[:] = self.tower.scale
        for at, (candidate, label) in enumerate(pairs):
            for side, is_negated in enumerate((False, True)):
                own = self._wordings(label, candidate, is_negated=is_negated)
                head.shares[side, at, own] = 1 / max(1, len(own))
        return head.eval()

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the score is at least 0.5, which no label chose."""
        taken = [list(self.candidates(numbers).values())[candidate][:, at] for at, candidate in enumerate(of_label)]
        return np.stack(taken, axis=1) >= 0.5

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:  # noqa: ARG002
        """Nothing is drawn."""
        return []

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """By label: the ensemble's mean score, the clips in which it is above 0.5, and nearer than the "not" words."""
        scores, (near, far) = self.candidates(numbers)["ensemble"], self._similarities(numbers)
        words = [
            {
                "label": label,
                "wordings": len(self._wordings(label)),
                "mean_score": float(scores[:, at].mean()),
                "above_half": int((scores[:, at] >= 0.5).sum()),
                "nearer_than_not": None if np.isnan(far[:, at]).any() else int((near > far)[:, at].sum()),
            }
            for at, label in enumerate(self.labels)
        ]
        return {"words": words, "n_clips": len(scores)}

    def _similarities(self, numbers: Numbers) -> Floats:
        """Each clip's with all words of a label and with all its "not" words, NaN where it has none: (2, N, C)."""
        if self.tower.generator is not None:
            head = self._prompted(Front(self._vectors.shape[1]), [(0, label) for label in self.labels])
            return word_similarities(head, numbers[self.tap]).astype(np.float64).swapaxes(0, 1)
        blank = np.full(self._vectors.shape[1], np.nan)
        sides = [[self._words(label, is_negated=side) for label in self.labels] for side in (False, True)]
        words = np.array([[blank if one is None else one for one in side] for side in sides])  # (2, C, D)
        return np.asarray(np.asarray(numbers[self.tap], np.float64) @ words.swapaxes(1, 2))

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """A row for each label, of the ensemble."""
        scores, (near, far) = self.candidates(numbers)["ensemble"], self._similarities(numbers)
        for row in range(len(scores)):
            yield [
                (
                    label,
                    f"{scores[row, at]:.6f}",
                    f"{near[row, at]:.4f}",
                    "" if np.isnan(far[row, at]) else f"{far[row, at]:.4f}",
                )
                for at, label in enumerate(self.labels)
            ]

    @property
    def made_of(self) -> dict[str, Any]:
        """What a bundle says of words that its head comes from."""
        return {"fingerprint": self.tower.fingerprint, "prompts": self.prompts()}

    @property
    def made_with(self) -> dict[str, Any]:
        """What a bundle says besides where clips change the words' vectors: sizes of what does."""
        if self.tower.generator is None:
            return {}
        from featurecache.backbones.xclip_prompts import sizes_of  # it imports transformers

        return {"generator": sizes_of(self.tower.generator)}

    def prompts(self) -> list[dict[str, Any]]:
        """Each wording."""
        return [asdict(one) for one in self.questions]


def prepare_words(tower: ProjectWords, folder: Path, labels: Sequence[str], recordings: Sequence[str]) -> Words:
    """Reads and checks the words of all labels.

    Args:
        tower: Makes vectors of words.
        folder: The folder of prompts.
        labels: The labels that are asked about.
        recordings: Names of recordings, none of which may stand in a prompt.

    Raises:
        SettingsError: As `read_questions`; if words are too long, or those that compete have none to compete with.
        FeatureCacheError: As `ProjectWords.check`.
    """
    questions = read_questions(folder, labels, recordings, method="text")
    tower.check([one.prompt for one in questions])
    for label in labels:
        if not tower.is_sigmoid and not any(one.is_negated and one.label == label for one in questions):
            raise SettingsError(
                f"{folder / 'text' / file_name(label)} must have words for when the label is off, since this model's "
                "score compares with them, but it has none. Write some below a line '--- not', e.g. 'a photo'."
            )
    return Words(tuple(labels), tuple(questions), tower)


def words_prior(
    project: Project, labels: Sequence[str], recordings: Sequence[str], *, allow_download: bool = False
) -> Prior | None:
    """The weights that the words of labels make, each label's by all its wordings; None where no label has words.

    Args:
        project: The project, whose prompts are read.
        labels: The C labels; of one without a file of words the weights are zero.
        recordings: As `prepare_words`.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        FeatureCacheError: As `ProjectWords` and `prepare_words`.
    """
    own = [label for label in labels if (project.prompts / "text" / file_name(label)).is_file()]
    if not own:
        return None
    words = prepare_words(ProjectWords(project, allow_download=allow_download), project.prompts, own, recordings)
    linear = {label: found[0] for label in own if (found := words.linear(label, 0)) is not None}
    blank = np.zeros_like(next(iter(linear.values())))
    return Prior(np.array([linear.get(label, blank) for label in labels], np.float32), words.made_of)
