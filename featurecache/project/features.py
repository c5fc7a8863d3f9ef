"""The section [features]: what alters the value of a feature, and so is part of its feature space's fingerprint."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator

from featurecache.errors import SettingsError
from featurecache.spelling import caseless, counted, listed

DEFAULT_PROMPT = "USER: Watch the hands and the objects they hold. Which activities take place? <video>"

Box = tuple[float, float, float, float]
"""x, y, width, height of a part of a frame, as shares of its width and height; x and y are of its upper left corner."""
Crop = Box | Mapping[str, Box]
"""One box for all frames; a box for each size of frames, `1920x1080` (width, height); or a box for each pattern of
recordings' names, `*_front*`: where cameras differ by either."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_SMALLEST_SIDE = 0.02
_SIZE = re.compile("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


def goes_by_name(crop: Crop | None) -> bool:
    """Whether boxes are of recordings by their names."""
    return isinstance(crop, Mapping) and any("*" in key for key in crop)


def of_recording(crop: Crop | None, name: str) -> Crop | None:
    """What a recording of this name has of boxes that go by name; others as they are.

    Raises:
        SettingsError: If no pattern fits the name, or several do.
    """
    if not isinstance(crop, Mapping) or not goes_by_name(crop):
        return crop
    fits = [pattern for pattern in crop if _fits(pattern, name)]
    if len(fits) == 1:
        return crop[fits[0]]
    found = f"{', '.join(fits)} do" if fits else f"of {', '.join(crop)} none does"
    raise SettingsError(
        f"one pattern of features.crop must fit a recording's name, but of {name} {found}. Name the recording as "
        "others are; or correct the patterns, which makes features anew. The box [0, 0, 1, 1] keeps frames whole."
    )


def _fits(pattern: str, name: str) -> bool:
    """Whether a name, with its folders, is like a pattern, in which * stands for anything; upper case or lower."""
    parts = (re.escape(part) for part in caseless(pattern).split("*"))
    return re.fullmatch(".*".join(parts), caseless(name), re.DOTALL) is not None


def box_px(crop: Crop | None, width_px: int, height_px: int) -> tuple[slice, slice]:
    """Rows and columns of a frame that are read: each border at the nearest pixel, and one pixel at least.

    Args:
        crop: Boxes that do not go by name.
        width_px: Width of the frame.
        height_px: Its height.
    """
    if goes_by_name(crop):
        raise ValueError("boxes by recordings' names must be those of one recording: of_recording.")
    box = crop.get(f"{width_px}x{height_px}", WHOLE) if isinstance(crop, Mapping) else crop or WHOLE
    x, y, width, height = box
    borders = []
    for start, length, size in ((y, height, height_px), (x, width, width_px)):
        first = min(int(start * size + 0.5), size - 1)
        borders.append(slice(first, max(first + 1, min(int((start + length) * size + 0.5), size))))
    return borders[0], borders[1]


def without_whole(crop: Crop | None) -> Crop | None:
    """The boxes that cut something off; None without any. A box of the whole frame changes no pixel."""
    if isinstance(crop, Mapping):
        return {size: box for size, box in crop.items() if box != WHOLE} or None
    return None if crop == WHOLE else crop


def plain_crop(crop: Crop | None) -> list[float] | dict[str, list[float]] | None:
    """The boxes that cut something off, as the fingerprint has them; None without any."""
    cuts = without_whole(crop)
    if isinstance(cuts, Mapping):
        return {key: list(box) for key, box in cuts.items()}
    return None if cuts is None else list(cuts)


@dataclass(frozen=True)
class BoxMismatch:
    """Boxes by size of frames, or by recordings' names, against the recordings there are.

    Attributes:
        unused: Sizes (`1920x1080`) with a box that no recording has, or patterns that fit none.
        boxless: How many recordings have a size without a box, by size; their frames stay whole.
        unclear: Recordings that no pattern fits, or several; they cannot be extracted.
        renamed: Recordings whose features are of another box than their names say today.
    """

    unused: tuple[str, ...] = ()
    boxless: Mapping[str, int] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()

    @classmethod
    def of(cls, crop: Crop | None, sizes_px: Mapping[str, tuple[int, int]]) -> "BoxMismatch":
        """That of recordings by name with frames of these sizes (width, height); empty where all have one box."""
        if not isinstance(crop, Mapping):
            return cls()
        if goes_by_name(crop):
            fits = {name: [pattern for pattern in crop if _fits(pattern, name)] for name in sizes_px}
            used = {pattern for of_name in fits.values() for pattern in of_name}
            unclear = tuple(name for name, of_name in fits.items() if len(of_name) != 1)
            return cls(tuple(pattern for pattern in crop if pattern not in used), unclear=unclear)
        seen = Counter(f"{width}x{height}" for width, height in sizes_px.values())
        return cls(
            tuple(size for size in crop if size not in seen),
            {size: seen[size] for size in sorted(seen) if size not in crop},
        )

    @property
    def recordings(self) -> tuple[str, ...]:
        """Recordings that cannot be extracted, or not be learned from, until the boxes or their names change."""
        return self.unclear + self.renamed

    def in_words(self) -> str:
        """Both in one line; empty where each box and each recording has its match."""
        found = [
            f"no recording in use has a name like {one}, which has a box"
            if "*" in one
            else f"no recording in use has frames of {one} px, which have a box"
            for one in self.unused
        ]
        if self.unclear:
            found.append(f"none, or more than one, of the patterns fits {listed(self.unclear)}: no extraction")
        if self.renamed:
            found.append(
                f"features of {listed(self.renamed)} are of another box, that of an earlier name, or none is noted"
            )
        found += [
            f"{counted(count, 'recording')} of {size} px {'has' if count == 1 else 'have'} no box and "
            f"{'stays' if count == 1 else 'stay'} whole"
            for size, count in self.boxless.items()
        ]
        return "; ".join(found)


def _selected(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("at least one tap/pooling, e.g. final/mean, none of them twice")
    return names


def _crop(value: object) -> Crop | None:
    if isinstance(value, Mapping):
        are_sizes = [_SIZE.fullmatch(str(key)) is not None for key in value]
        if not all(are_sizes) and (any(are_sizes) or not all("*" in str(key) for key in value)):
            raise ValueError(
                'boxes by the size of frames in pixels, { "1920x1080" = [...] }, or by the names of recordings, '
                '{ "*_front*" = [...] }: keys are all WIDTHxHEIGHT, or all patterns with *'
            )
        boxes = {str(size): box for size, one in sorted(value.items()) if (box := _box(one)) is not None}
        if value and len(boxes) == len(value):
            return boxes
    elif value is None or (box := _box(value)) is not None:
        return None if value is None or box == WHOLE else box
    raise ValueError(
        "[x, y, width, height] as shares of a frame, x + width and y + height up to 1, width and height at least "
        f"{_SMALLEST_SIDE}, e.g. [0.25, 0.1, 0.5, 0.8]; or such a box for a size of frames, "
        '{ "1920x1080" = [...] }, or for a pattern of names, { "*_front*" = [...] }'
    )


def _box(value: object) -> Box | None:
    """Four shares that lie in a frame; None of anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(type(one) in (int, float) for one in value):
        return None
    x, y, width, height = (float(one) + 0.0 for one in value)  # -0.0 is 0.0, and no other feature space
    is_inside = min(x, y) >= 0 and x + width <= 1 + 1e-9 and y + height <= 1 + 1e-9
    width, height = min(width, 1.0), min(height, 1.0)
    return (x, y, width, height) if is_inside and min(width, height) >= _SMALLEST_SIDE else None  # no NaN passes


@dataclass(frozen=True)
class FeatureSettings:
    """What alters feature values; any change but of `select` makes new feature spaces.

    Attributes:
        model: A folder, "org/name" or "org/name@revision" of the hub's cache on this machine, or "demo".
        prompt: What the model reads with the video; text after the video cannot change a feature.
        frames: Frames of a clip that the model sees.
        crop: The part of each frame that the model sees, cut out before `resize`: [x, y, width, height] as shares of
            the frame, for rooms where the action is small; or one for each size of frames, { "1920x1080" = [...] },
            or for each camera by recordings' names, { "*_front*" = [...], "*_top*" = [...] }.
            E.g. `crop = [0.25, 0.1, 0.5, 0.8]`.
        resize: "model": as its processor does (the VLM's crops wide frames, as "crop" does); "pad" and "squash" cut
            nothing off.
        select: The features that one pass computes, as tap/pooling. Taps: vision, layer_0 to the last layer, final;
            poolings: mean, motion, frames, tokens (which take much disk), cls and last where the model has them.
        dtype: What the model computes in: "bfloat16", "float32" or "float16".
        stored_dtype: What features are stored in; tokens are stored in bfloat16 unless this is "float32".
    """

    model: str
    prompt: str = DEFAULT_PROMPT
    frames: Annotated[int, Field(ge=1, le=256)] = 16
    crop: Annotated[Crop | None, PlainValidator(_crop)] = None
    resize: Literal["model", "crop", "pad", "squash"] = "model"
    select: Annotated[tuple[str, ...], AfterValidator(_selected)] = ("final/mean",)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    stored_dtype: Literal["float16", "float32"] = "float16"
