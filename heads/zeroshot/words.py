"""Labels given as words: each clip's embedding against those of prompts, in the space that both towers share.

A label's score follows from its wordings' vectors alone (their mean, scaled to unit length where the model's are: an
ensemble), at the model's own scale and bias: of SigLIP and PE the sigmoid of the logit; of CLIP and VideoPrism the
softmax of the label's words against its "not" words, which is the sigmoid of the difference of two logits. Both are
linear in the clip's embedding, so a run is a linear head on `joint/mean`, and its logits are the mean of the frames'
logits by the plain model.

Nothing is asked of a language model: the words that the paper's methods put into prompts stand here by themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurecache.errors import SettingsError
from featurecache.extraction.words import JOINT_FEATURE, ProjectWords
from featurecache.project.settings import Project
from heads.models import Front, LinearHead
from heads.prior import Prior
from heads.zeroshot.methods import Numbers
from heads.zeroshot.prompts import Question, file_name, read_questions

JOINT = JOINT_FEATURE.partition("/")[0]
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

    @cached_property
    def _vectors(self) -> Floats:
        """Of each wording, (Q, D)."""
        return np.asarray(self.tower.vectors([one.prompt for one in self.questions]), np.float64)

    def _words(self, label: str, *, is_negated: bool, wording: int | None = None) -> Floats | None:
        """The vector of one wording of a label, or the mean of all; None where there is none: (D,)."""
        of_label = [one.label == label and one.is_negated == is_negated for one in self.questions]
        own = self._vectors[of_label]
        own = own if wording is None else own[wording : wording + 1]
        if not len(own):
            return None
        mean: Floats = own.mean(axis=0)
        return mean / np.linalg.norm(mean) if self.tower.is_unit else mean

    def linear(self, label: str, candidate: int) -> tuple[Floats, float] | None:
        """Weights (D,) and bias of a label's logit by one candidate: 0 all its wordings, k its k-th; None without."""
        words = self._words(label, is_negated=False, wording=candidate - 1 if candidate else None)
        if words is None or self.tower.is_sigmoid:
            return None if words is None else (self.tower.scale * words, self.tower.bias)
        other = self._words(label, is_negated=True)
        assert other is not None  # noqa: S101  # `prepare_words` looked
        return self.tower.scale * (words - other), 0.0

    def candidates(self, numbers: Numbers) -> dict[str, Floats]:
        """The ensemble of all wordings, then each wording alone where a label has several."""
        X = np.asarray(numbers[JOINT], np.float64)
        most = max(one.wording for one in self.questions if not one.is_negated) + 1
        found = {}
        for candidate in range(most + 1 if most > 1 else 1):
            scores = np.full((len(X), len(self.labels)), np.nan)
            for at, label in enumerate(self.labels):
                if (linear := self.linear(label, candidate)) is not None:
                    scores[:, at] = _sigmoid(X @ linear[0] + linear[1])
            found[f"wording {candidate}" if candidate else "ensemble"] = scores
        return found

    def head(self, of_label: npt.NDArray[np.int64]) -> tuple[str, LinearHead]:
        """Each label's weights by its candidate."""
        head = LinearHead(Front(self._vectors.shape[1]), len(self.labels))
        with torch.no_grad():
            for at, (label, candidate) in enumerate(zip(self.labels, of_label.tolist(), strict=True)):
                weights, bias = self.linear(label, candidate) or (0.0, 0.0)
                head.output.weight[at] = torch.as_tensor(weights)
                head.output.bias[at] = bias
        return JOINT, head.eval()

    def free(self, numbers: Numbers, of_label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the score is at least 0.5, which no label chose."""
        taken = [list(self.candidates(numbers).values())[candidate][:, at] for at, candidate in enumerate(of_label)]
        return np.stack(taken, axis=1) >= 0.5

    def drawn(self, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:  # noqa: ARG002
        """Nothing is drawn."""
        return []

    def audit(self, numbers: Numbers) -> dict[str, Any]:
        """By label: the ensemble's mean score, the clips in which it is above 0.5, and nearer than the "not" words."""
        scores = self.candidates(numbers)["ensemble"]
        words = []
        for at, label in enumerate(self.labels):
            near, far = self._similarities(numbers, label)
            words.append(
                {
                    "label": label,
                    "wordings": sum(one.label == label and not one.is_negated for one in self.questions),
                    "mean_score": float(scores[:, at].mean()),
                    "above_half": int((scores[:, at] >= 0.5).sum()),
                    "nearer_than_not": None if far is None else int((near > far).sum()),
                }
            )
        return {"words": words, "n_clips": len(scores)}

    def _similarities(self, numbers: Numbers, label: str) -> tuple[Floats, Floats | None]:
        """A label's words and its "not" words against each clip's embedding, (N,) each."""
        X = np.asarray(numbers[JOINT], np.float64)
        words, other = (self._words(label, is_negated=is_negated) for is_negated in (False, True))
        assert words is not None  # noqa: S101  # every label has a wording
        return X @ words, None if other is None else X @ other

    def rows(self, numbers: Numbers) -> Iterator[list[tuple[str, ...]]]:
        """A row for each label, of the ensemble."""
        scores = self.candidates(numbers)["ensemble"]
        near = {label: self._similarities(numbers, label) for label in self.labels}
        for row in range(len(scores)):
            yield [
                (
                    label,
                    f"{scores[row, at]:.6f}",
                    f"{near[label][0][row]:.4f}",
                    "" if (other := near[label][1]) is None else f"{other[row]:.4f}",
                )
                for at, label in enumerate(self.labels)
            ]

    @property
    def made_of(self) -> dict[str, Any]:
        """What a bundle says of words that its head comes from."""
        return {"fingerprint": self.tower.fingerprint, "prompts": self.prompts()}

    def prompts(self) -> list[dict[str, Any]]:
        """Each wording."""
        return [
            {"label": one.label, "wording": one.wording, "is_negated": one.is_negated, "prompt": one.prompt}
            for one in self.questions
        ]


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


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
