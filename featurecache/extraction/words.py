"""Texts as vectors in the space of the tap `joint`, of a project's model; remembered by what they follow from.

A text's vector is found by its own fingerprint: the model's weights, its tokenizer's files, what the text tower is
computed with, and the words. Remembered are vectors and digests, no words, in `.featurecache/words/`; a file that is
damaged is ignored, and its vectors are computed again.

Clips change the vectors of X-CLIP's texts before the two are compared; remembered is what they are before that.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache.backbones import find_model
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import canonical_json, json_object, sealed, unsealed
from featurecache.video.digests import DigestMemo

if TYPE_CHECKING:
    from featurecache.backbones.xclip_prompts import PromptGenerator

JOINT_FEATURE = "joint/mean"
"""The selected feature that texts are compared with: a clip's mean of unit vectors, so scores are means over frames."""
PROMPTED_FEATURE = "prompted/tokens"
"""The one in its place where clips change the vectors of texts: the clip's vector, and the patches that do it."""

_MOST_TEXTS = 2000


class ProjectWords:
    """The text tower of a project's model.

    Args:
        project: The project.
        allow_download: Whether the model may be fetched from the hub.

    Attributes:
        fingerprint: sha256 of everything but the words that a vector follows from.
        feature: The selected feature that texts are compared with.
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
        self.feature = PROMPTED_FEATURE if self._tower.is_prompted else JOINT_FEATURE
        self._path = project.state / "words" / f"{self.fingerprint[:16]}.json"

    def check(self, texts: Sequence[str]) -> None:
        """Refuses texts that the model cannot read; errors as `TextTower.token_ids`."""
        self._tower.token_ids(texts)

    @cached_property
    def generator(self) -> "PromptGenerator | None":
        """What clips change texts' vectors by; None where they do not."""
        return self._tower.generator

    def vectors(self, texts: Sequence[str], *, remember: bool = True) -> npt.NDArray[np.float32]:
        """Vectors without any clip's part in them, of unit length where `is_unit`; else as `before_clips`."""
        found = self.before_clips(texts, remember=remember)
        return found / np.linalg.norm(found, axis=1, keepdims=True) if self._tower.is_prompted else found

    def similarities(self, text: str, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The cosine of a text and each clip, (N,), of `feature` as floats: (N, D), or (N, 1 + P, D)."""
        if self.generator is not None:
            import torch

            with torch.inference_mode():
                clips = torch.from_numpy(X).float()
                (own,) = self.generator(torch.from_numpy(self.before_clips([text])), clips).unbind(dim=1)
                return np.asarray((clips[:, 0] * own).sum(dim=1), np.float64)
        (vector,) = self.vectors([text]).astype(np.float64)
        X = X.astype(np.float64)
        lengths = 1.0 if self.is_unit else np.linalg.norm(X, axis=1) * np.linalg.norm(vector)
        return np.asarray(X @ vector / lengths)

    def before_clips(self, texts: Sequence[str], *, remember: bool = True) -> npt.NDArray[np.float32]:
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
