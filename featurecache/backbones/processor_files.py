"""A processor's settings, from a model folder as it was published, whatever revision of whichever year wrote it.

A folder may nest them in `processor_config.json`, keep a file for videos or borrow the one for images, name a class
that no longer exists, write sizes as plain integers, and leave out what was a default. transformers infers a class from
these files, and for some published folders it does not come to an end (huggingface/transformers#42142). Here the files
are read as JSON and only the fields that can change a pixel are handed, by name, to one known class, which fills in
its defaults. Frames that were sampled already are all that a processor would see, so its own sampling never counts.

Not here: what the settings mean (`featurecache.backbones.preprocessing`).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    VideoMAEImageProcessor,
    ViTImageProcessor,
)
from transformers.video_processing_utils import BaseVideoProcessor

from featurecache.backbones.model_folder import PROCESSOR_FILES, read_json
from featurecache.errors import ModelNotFoundError, UnsupportedModelError

PIXEL_FIELDS = (
    "do_resize",
    "size",
    "resample",
    "default_to_square",
    "use_square_size",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
)
"""The fields that change pixels with one or another of the classes below; tests/test_processor_fields.py shows it."""

_PADDING_FIELDS = ("do_pad", "pad_size")

_FOR_VIDEOS = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("video_processor/preprocessor_config.json", None),
)
_FOR_IMAGES = (("processor_config.json", "image_processor"), ("preprocessor_config.json", None))

_NAME_END = re.compile(r"(VideoProcessor|(ImageProcessor|FeatureExtractor)(Fast|Pil)?)$")
_TYPE_KEYS = ("video_processor_type", "image_processor_type", "feature_extractor_type")

_IMAGE_CLASSES: dict[str, Any] = {
    "Bit": BitImageProcessor,
    "CLIP": CLIPImageProcessor,
    "DeiT": DeiTImageProcessor,
    "Siglip": SiglipImageProcessor,
    "ViT": ViTImageProcessor,
    "VideoMAE": VideoMAEImageProcessor,
}
"""Classes that resize, crop the centre, rescale and normalise, and do nothing else to an image."""

_VIDEO_NAMES = {"Llava", "LlavaNext", "LlavaNextVideo", "LlavaOnevision", "VJEPA2", *_IMAGE_CLASSES}
"""Names whose settings a video class may take over; what they do with still images does not count."""


def processor_settings(
    folder: Path, own: Any, *, more_fields: "Mapping[str, Kind] | None" = None, also: Collection[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """The settings that make a model's pixels, complete with the defaults of the class that they are for.

    Args:
        folder: The model's files.
        own: The model's own processor class. A video class is always the one that is used; an image class only where
            the files name none.
        more_fields: Further fields that change pixels with this class alone, and what their values must be.
        also: Names (without `ImageProcessor` and the like) of classes whose settings the own class takes over too.

    Returns:
        The file that they are from, and `PIXEL_FIELDS` as the class completes them (others may be among them).

    Raises:
        ModelNotFoundError: If no file has settings, or one is no JSON.
        UnsupportedModelError: If the files name a class that does something else, or hold what is no setting.
    """
    is_video = issubclass(own, BaseVideoProcessor)
    path, found = _first_found(folder, _FOR_VIDEOS + _FOR_IMAGES[::-1] if is_video else _FOR_IMAGES + _FOR_VIDEOS)
    name = next((str(found[key]) for key in _TYPE_KEYS if found.get(key) is not None), None)
    base = _NAME_END.sub("", name) if name else None
    known = {*(_VIDEO_NAMES if is_video else _IMAGE_CLASSES), *also}
    if base is not None and base not in known:
        raise UnsupportedModelError(
            f"the processor must be of a kind that scales, crops and normalises frames ({', '.join(sorted(known))}), "
            f"but {path} names {name!r}. Use the processor files of the model's own repository, or another model."
        )
    kinds = {**_KINDS, **(more_fields or {})}
    fields_of_pixels = (*PIXEL_FIELDS, *(more_fields or {}))
    _require_kinds(path, found, fields_of_pixels, kinds)
    chosen = own if is_video or base is None or base in also else _IMAGE_CLASSES[base]
    pads = not is_video and chosen is not VideoMAEImageProcessor  # the others carry the fields and leave them unread
    # A null stays a null, which switches a step off; only what is left out becomes the default.
    fields = {key: found[key] for key in fields_of_pixels if key in found and (pads or key not in _PADDING_FIELDS)}
    try:
        settings: dict[str, Any] = chosen(**fields).to_dict()
    except Exception as error:  # transformers checks sizes with whatever exception comes
        raise UnsupportedModelError(
            f"the processor's settings must be sizes, numbers and yes or no, but {chosen.__name__} refuses those of "
            f"{path}: {str(error).strip().partition(chr(10))[0]} Use the processor files of the model's own repository."
        ) from error
    return path, settings


def _require_kinds(path: Path, found: dict[str, Any], fields: Sequence[str], kinds: "Mapping[str, Kind]") -> None:
    """Refuses values that a class would take in some other sense, or fail on without naming the file."""
    for key in (key for key in fields if found.get(key) is not None):
        wanted, is_one = kinds.get(key, _SWITCH)
        if not is_one(found[key]):
            raise UnsupportedModelError(
                f"{key} of a processor must be {wanted}, but {path} says {found[key]!r:.100}. "
                "Use the processor files of the model's own repository."
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_size(value: Any) -> bool:
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(side is None or _is_whole(side) for side in sides)


def _is_statistic(value: Any) -> bool:
    return all(map(_is_number, value if isinstance(value, list) else [value]))


Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""

_SWITCH: Kind = ("true or false", lambda value: isinstance(value, bool))
_STATISTIC: Kind = ("a number, or a list of numbers", _is_statistic)
SIZE: Kind = ("a whole number, or whole numbers by their side", _is_size)
WHOLE: Kind = ("a whole number", _is_whole)
_KINDS: dict[str, Kind] = {
    "size": SIZE,
    "crop_size": SIZE,
    "pad_size": SIZE,
    "resample": WHOLE,
    "rescale_factor": ("a number", _is_number),
    "image_mean": _STATISTIC,
    "image_std": _STATISTIC,
}
"""What a field's value must be; those that are not here are switches."""


def _first_found(folder: Path, places: tuple[tuple[str, str | None], ...]) -> tuple[Path, dict[str, Any]]:
    for name, key in places:
        if not (folder / name).exists():
            continue
        found = read_json(folder / name)
        if key is None:
            return folder / name, found
        nested = found.get(key)
        if isinstance(nested, dict):
            return folder / name, nested
    raise ModelNotFoundError(
        f"a model folder must hold its processor's settings, but {folder} has none of "
        f"{', '.join(PROCESSOR_FILES)} with such settings. "
        "Take these small JSON files from the model's repository; the weights need not be copied again."
    )
