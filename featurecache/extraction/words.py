"""Texts as vectors in the space of the tap `joint`, of a project's model; remembered by what they follow from.

A text's vector is found by its own fingerprint: the model's weights, its tokenizer's files, what the text tower is
computed with, and the words. Remembered are vectors and digests, no words, in `.featurecache/words/`; a file that is
damaged is ignored, and its vectors are computed again.
"""

import contextlib
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurecache.backbones import find_model
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import canonical_json, json_object, sealed, unsealed
from featurecache.video.digests import DigestMemo

JOINT_FEATURE = "joint/mean"
"""The selected feature that texts are compared with: a clip's mean of unit vectors, so scores are means over frames."""

_MOST_TEXTS = 2000


class ProjectWords:
    """The text tower of a project's model.

    Args:
        project: The project.
        allow_download: Whether the model may be fetched from the hub.

    Attributes:
        fingerprint: sha256 of everything but the words that a vector follows from.
        is_sigmoid: As `TextTower`, and `is_unit`.
        scale: What a similarity is multiplied by to give the model's logit.
        bias: What is added then.

    Raises:
        FeatureCacheError: As `find_model` and `TextTower`.
    """

    def __init__(self, project: Project, *, allow_download: bool = False) -> None:
        from featurecache.backbones.text_tower import TextTower  # it loads torch

        self._tower = TextTower(find_model(project.settings.features.model, allow_download=allow_download))
        memo = DigestMemo(project.digest_memo)
        self.fingerprint = _digest(canonical_json(self._tower.identity(memo.sha256)))
        memo.save()
        self.is_sigmoid, self.is_unit = self._tower.is_sigmoid, self._tower.is_unit
        self.scale, self.bias = self._tower.scale_and_bias
        self._path = project.state / "words" / f"{self.fingerprint[:16]}.json"

    def check(self, texts: Sequence[str]) -> None:
        """Refuses texts that the model cannot read; errors as `TextTower.token_ids`."""
        self._tower.token_ids(texts)

    def vectors(self, texts: Sequence[str], *, remember: bool = True) -> npt.NDArray[np.float32]:
        """Vectors as `TextTower.embed`, (Q, D); the text tower is loaded if one is not remembered.

        Args:
            texts: The texts.
            remember: Keep their vectors; not of what was written of a patient, which a withdrawal would not find.
        """
        known = self._remembered()
        missing = [text for text in dict.fromkeys(texts) if _digest(text) not in known]
        if missing:
            for text, vector in zip(missing, self._tower.embed(missing), strict=True):
                known[_digest(text)] = vector.tolist()
        if missing and remember:
            kept = dict(list(known.items())[-_MOST_TEXTS:])
            document = sealed({"fingerprint": self.fingerprint, "vectors": kept})
            with contextlib.suppress(OSError):  # without it the next run is slower and no less right
                private_folder(self._path.parent)
                write_private(self._path, canonical_json(document).encode())
        return np.array([known[_digest(text)] for text in texts], np.float32)

    def _remembered(self) -> dict[str, list[float]]:
        """Vectors by the digest of the words."""
        try:
            document = unsealed(json_object(self._path.read_bytes()))
        except (OSError, ValueError):
            return {}
        return dict(document["vectors"]) if document.get("fingerprint") == self.fingerprint else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
