"""A bundle: a folder that predicts alone. `head.safetensors` holds the numbers, `bundle.json` all the rest.

Notable choices: `bundle.json` carries the sha256 of the head and the complete feature space, so a bundle knows
whether features are its own; the folder is written beside its place and renamed, so it is whole or absent;
nothing is pickled; loading checks every field and names what is wrong.
"""

import hashlib
import json
import platform
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from featurecache.errors import BundleError, FingerprintMismatchError, SettingsError
from featurecache.files import private_folder, write_private
from featurecache.spec import FeatureSpace, canonical_json
from heads.models import Head, LinearHead, MLPHead, head_scores
from heads.settings import HeadSettings

FORMAT = 1
"""Version of the bundle's layout."""

HEAD_NAME, DOCUMENT_NAME = "head.safetensors", "bundle.json"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained head with all that is needed to use it.

    Attributes:
        head: The head; takes features as the cache stores them.
        labels: Names of the C labels.
        thresholds: A label is on where its score is at least this, shape (C,), float64.
        settings: How the head was trained.
        space: The feature space it was trained on.
        versions: Versions of what trained it, by package name.
    """

    head: Head
    labels: tuple[str, ...]
    thresholds: npt.NDArray[np.float64]
    settings: HeadSettings
    space: FeatureSpace
    versions: Mapping[str, str]

    @property
    def feature_width(self) -> int:
        """D, the width of the features it takes."""
        return len(self.head.standardize.mean)

    @property
    def digest(self) -> str:
        """sha256 of the document, which holds the head's: 64 hex digits."""
        return hashlib.sha256(canonical_json(self._document(self._head_bytes())).encode()).hexdigest()

    def scores(self, X: npt.NDArray[np.floating], *, fingerprint: str) -> npt.NDArray[np.float32]:
        """Each label's probability.

        Args:
            X: Features, shape (N, D), float16 or float32.
            fingerprint: Of the feature space that X comes from.

        Returns:
            Probabilities, shape (N, C).

        Raises:
            FingerprintMismatchError: If that is not the space the head was trained on.
            BundleError: If X has another width.
        """
        if fingerprint != self.space.fingerprint:
            raise FingerprintMismatchError(
                f"features must be of the bundle's feature space {self.space.fingerprint[:16]}, but these are of "
                f"{fingerprint[:16]}. Extract with the settings the head was trained on, or train a new head."
            )
        if X.ndim != 2 or X.shape[1] != self.feature_width:
            raise BundleError(
                f"features must have shape (N, {self.feature_width}), but have {X.shape}. Load them from the cache."
            )
        return head_scores(self.head, X)

    def _head_bytes(self) -> bytes:
        tensors = {name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}
        data: bytes = tensors_to_bytes(tensors)
        return data

    def _document(self, head_bytes: bytes) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "labels": list(self.labels),
            "thresholds": self.thresholds.tolist(),
            "settings": self.settings.to_mapping(),
            "tap": self.space.tap,
            "pooling": self.space.pooling,
            "fingerprint": self.space.fingerprint,
            "feature_inputs": dict(self.space.inputs),
            "feature_width": self.feature_width,
            "head_sha256": hashlib.sha256(head_bytes).hexdigest(),
            "versions": dict(self.versions),
        }


def tool_versions() -> dict[str, str]:
    """Versions of what decides a trained head's numbers."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("featurecache", "numpy", "optuna", "torch")},
    }


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Writes a bundle's folder, whole or not at all; one that is there is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    private_folder(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        private_folder(beside)
        head_bytes = bundle._head_bytes()
        write_private(beside / HEAD_NAME, head_bytes)
        text = json.dumps(bundle._document(head_bytes), indent=2, allow_nan=False) + "\n"
        write_private(beside / DOCUMENT_NAME, text.encode())
        if path.exists():
            replaced = path.with_name(f"{beside.name}.replaced")
            path.rename(replaced)
            beside.rename(path)
            shutil.rmtree(replaced)
        else:
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load_bundle(path: Path | str) -> Bundle:
    """Reads a bundle and checks all of it.

    Raises:
        BundleError: If a file is missing, damaged, or does not fit the other; or the format is another.
    """
    path = Path(path)
    try:
        text, head_bytes = (path / DOCUMENT_NAME).read_bytes(), (path / HEAD_NAME).read_bytes()
    except OSError as error:
        raise BundleError(
            f"a bundle must be a folder with {DOCUMENT_NAME} and {HEAD_NAME}, but reading {path} gave: "
            f"{error.strerror}. Make one: featurecache tune, or featurecache train."
        ) from error
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise BundleError(
                f"{path} must be of bundle format {FORMAT}, but it is {document['format']!r}. "
                "Use the version that wrote it, or train again."
            )
        if document["head_sha256"] != hashlib.sha256(head_bytes).hexdigest():
            raise _damaged(path, f"{HEAD_NAME} does not have the sha256 that {DOCUMENT_NAME} names")
        return _parse(document, head_bytes, path)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BundleError):
            raise
        raise _damaged(path, f"reading it gave {type(error).__name__}: {error}") from error


def _parse(document: Mapping[str, Any], head_bytes: bytes, path: Path) -> Bundle:
    labels = tuple(document["labels"])
    thresholds = np.array(document["thresholds"], dtype=np.float64)
    try:
        settings = HeadSettings.from_mapping(document["settings"])
    except SettingsError as error:
        raise _damaged(path, str(error).split(". ")[0]) from error
    space = FeatureSpace(document["feature_inputs"])
    width = document["feature_width"]
    if not labels or len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
        raise _damaged(path, f"labels are {document['labels']!r}, not different names")
    if thresholds.shape != (len(labels),) or not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise _damaged(path, f"thresholds are {document['thresholds']!r}, not one in [0, 1] for each label")
    if (space.fingerprint, space.tap, space.pooling) != tuple(document[k] for k in ("fingerprint", "tap", "pooling")):
        raise _damaged(path, "fingerprint, tap and pooling are not those of its feature_inputs")
    head: Head
    with torch.device("meta"):  # no memory is taken for sizes that the file does not have
        if settings.kind == "linear":
            head = LinearHead(width, len(labels), dropout=settings.dropout)
        else:
            head = MLPHead(width, len(labels), hidden_width=settings.hidden_width, dropout=settings.dropout)
    tensors = tensors_from_bytes(head_bytes)
    head.load_state_dict(tensors, assign=True)
    if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise _damaged(path, f"{HEAD_NAME} holds numbers that are not finite float32")
    return Bundle(head.eval(), labels, thresholds, settings, space, dict(document["versions"]))


def _damaged(path: Path, found: str) -> BundleError:
    return BundleError(f"a bundle must be whole, but {path} is damaged: {found}. Train again, or restore the folder.")
