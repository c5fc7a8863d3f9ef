"""A bundle's two own files, held against the digests in them, and what its document says; no torch is loaded.

So a command that needs a bundle says within a moment that there is none, before the seconds that torch takes.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.backbones.adapter_files import open_adapter
from featurecache.errors import BundleError, ModelNotFoundError, SettingsError
from featurecache.files import private_folder, sha256_of_file
from featurecache.spec import FeatureSpace, json_object, unsealed
from heads.clip_rule import ClipRule
from heads.samples.joining import join_of, selected
from heads.settings import HeadSettings

FORMAT, FORMAT_WITH_RULES = 4, 5
"""Versions of the layout: 5 where clips keep to rules of labels that exclude each other, which 4 does not know.

3 had no digest of the document, 2 no variance exponent, 1 a single feature space."""

HEAD_NAME, DOCUMENT_NAME = "head.safetensors", "bundle.json"
ADAPTER_NAME, BACKBONE_NAME = "adapter", "backbone"


@dataclass(frozen=True)
class Stated:
    """What a bundle's document says that is needed before its head is.

    Attributes:
        labels: Names of the C labels.
        clips: What a clip was when it was fitted; None where that is not known.
        is_zero_shot: Whether nothing was trained.
    """

    labels: tuple[str, ...]
    clips: ClipRule | None
    is_zero_shot: bool


def stated_in(path: Path) -> Stated:
    """Reads a bundle's document.

    Raises:
        BundleError: If the bundle is missing, or its files are not as they were written.
    """
    document, _ = read_files(path)
    try:
        clips = document.get("clips")
        first = next(iter(document["inputs"].values()))
        return Stated(
            tuple(document["labels"]),
            None if clips is None else ClipRule.from_mapping(clips),
            "words" in document or "asked" in first["feature_inputs"],
        )
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise damaged(path, f"reading it gave {type(error).__name__}: {error}") from error


def read_files(path: Path) -> tuple[dict[str, Any], bytes]:
    """The document and the head's bytes, which are as they were written.

    Raises:
        BundleError: If a file is missing or has another digest, or the format is another.
    """
    try:
        text, head_bytes = (path / DOCUMENT_NAME).read_bytes(), (path / HEAD_NAME).read_bytes()
    except OSError as error:
        inside = path / "bundle"
        fix = f"Name {inside}." if (inside / DOCUMENT_NAME).exists() else "Make one: featurecache tune, or train."
        raise BundleError(
            f"a bundle must be a folder with {DOCUMENT_NAME} and {HEAD_NAME}, but reading {path} gave: "
            f"{error.strerror}. {fix}"
        ) from error
    try:
        document = json_object(text)
        if (found := document.get("format", FORMAT)) not in (FORMAT, FORMAT_WITH_RULES):
            raise BundleError(
                f"{path} must be of bundle format {FORMAT} or {FORMAT_WITH_RULES}, but it is {found!r}. "
                "Use the version that wrote it, or train again."
            )
        document = unsealed(document)
    except ValueError as error:
        raise error if isinstance(error, BundleError) else damaged(path, f"{DOCUMENT_NAME}: {error}") from error
    try:
        if document["head_sha256"] != hashlib.sha256(head_bytes).hexdigest():
            raise damaged(path, f"{HEAD_NAME} does not have the sha256 that {DOCUMENT_NAME} names")
    except KeyError as error:
        raise damaged(path, f"reading it gave KeyError: {error}") from error
    return document, head_bytes


def checked_labels(document: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """The C labels of a document and their thresholds, shape (C,)."""
    labels, thresholds = tuple(document["labels"]), np.array(document["thresholds"], dtype=np.float64)
    if not labels or len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
        raise damaged(path, f"labels are {document['labels']!r}, not different names")
    if thresholds.shape != (len(labels),) or not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise damaged(path, f"thresholds are {document['thresholds']!r}, not one in [0, 1] for each label")
    return labels, thresholds


def checked_inputs(document: Mapping[str, Any], path: Path) -> tuple[HeadSettings, tuple[FeatureSpace, ...]]:
    """The settings of a document's head, and the feature spaces that it reads, in their order."""
    try:
        settings = HeadSettings.from_mapping(document["settings"])
    except SettingsError as error:
        raise damaged(path, str(error).split(". ")[0]) from error
    spaces = {name: FeatureSpace(record["feature_inputs"]) for name, record in document["inputs"].items()}
    if list(spaces) != selected(settings.inputs):
        raise damaged(path, f"its head reads {settings.inputs}, but the feature spaces are of {', '.join(spaces)}")
    for name, space in spaces.items():
        if space.fingerprint != document["inputs"][name]["fingerprint"] or f"{space.tap}/{space.pooling}" != name:
            raise damaged(path, f"name and fingerprint of {name} are not those of its feature_inputs")
    width, part_widths = document["feature_width"], document["part_widths"]
    if (len(part_widths) != len(spaces) and not join_of(settings.inputs)) or sum(part_widths) != width:
        raise damaged(path, f"size mismatch: part_widths are {part_widths} where {len(spaces)} parts make {width}")
    return settings, tuple(spaces.values())


def damaged(path: Path, found: str) -> BundleError:
    """What is said of a bundle that is not whole."""
    return BundleError(f"a bundle must be whole, but {path} is damaged: {found}. Train again, or restore the folder.")


def copy_files(folder: Path, names: Iterable[str], to: Path) -> None:
    """Copies these files of a folder into a private one."""
    private_folder(to)
    for name in names:
        Path(shutil.copyfile(folder / name, to / name)).chmod(0o600)


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of each file of a folder, by name."""
    return {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def adapter_in(path: Path, record: Mapping[str, Any] | None) -> Path | None:
    """The folder of a bundle's adapter, held against the digests in its document; None where that has none."""
    if record is None:
        return None
    try:
        found = open_adapter(path / ADAPTER_NAME)
    except ModelNotFoundError as error:
        raise damaged(path, str(error).split(". ")[0]) from error
    if dict(found.sha256) != record:
        raise damaged(path, f"the files in {ADAPTER_NAME} do not have the sha256 that {DOCUMENT_NAME} names")
    return found.folder


def backbone_in(path: Path, record: Mapping[str, Any] | None) -> Path | None:
    """The folder of a bundle's own model; as `adapter_in`."""
    if record is None:
        return None
    if not (path / BACKBONE_NAME).is_dir() or file_digests(path / BACKBONE_NAME) != record:
        raise damaged(path, f"the files in {BACKBONE_NAME} do not have the sha256 that {DOCUMENT_NAME} names")
    return path / BACKBONE_NAME
