"""What a model's own processor does to a frame, as plain numbers.

Only what all of these processors share is known here: scale the short edge or squash to a square, then crop the centre;
one of three interpolations; 8-bit values scaled; a mean and a standard deviation per channel. Families whose processors
cut frames by rules of their own state the geometry themselves. A processor that changes pixels in any other way is
refused.

Not here: doing it (`featurecache.backbones.resize`).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurecache.backbones.processor_files import Kind, processor_settings
from featurecache.backbones.resize import FrameResize, Interpolation
from featurecache.errors import UnsupportedModelError

Resize = Literal["model", "crop", "pad", "squash"]
"""How a frame that is not square becomes one; `model`: as the model's own processor does."""

LARGEST_PX = 4096
"""The most that a processor may scale an edge to."""

_INTERPOLATIONS: dict[int, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Geometry:
    """How a processor makes a frame a square.

    Attributes:
        image_px: Height and width of a frame as the model sees it.
        way: As the setting `resize`.
        short_edge_px: The short edge (of a squashed frame both edges) is scaled to this, then the centre is cropped.
        long_edge_px: The long edge of a frame that will be squashed is scaled to this first; None: it is not.
        refused: The name of the first setting that asks for something that is not done here; empty where none does.
    """

    image_px: int
    way: Literal["crop", "pad", "squash"]
    short_edge_px: int
    long_edge_px: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class FrameRule:
    """How a frame becomes what the model sees.

    Attributes:
        geometry: How a frame becomes a square.
        interpolation: Of the scaling, with antialiasing.
        mean: Subtracted from each channel of values in [0, 1]; another scale than 1/255 is counted in.
        std: Each channel is divided by it.
    """

    geometry: Geometry
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_px(self) -> int:
        """Height and width of a frame as the model sees it."""
        return self.geometry.image_px


def square_geometry(settings: Mapping[str, Any]) -> Geometry:
    """That of the processors that scale the short edge, or squash, and crop the centre."""
    size, crop = sides(settings.get("size")), sides(settings.get("crop_size"))
    crops = bool(settings.get("do_center_crop"))
    squashed_px = square_px(size)  # 0 where the short edge is scaled
    short_edge_px = squashed_px or size.get("shortest_edge", 0)
    image_px = square_px(crop) if crops else squashed_px
    pads_to = sides(settings.get("pad_size")) if settings.get("do_pad") else {}
    refused = {
        "size": not 0 < short_edge_px <= LARGEST_PX or len(size) > (2 if squashed_px else 1),
        "do_center_crop": image_px == 0 and not crops,
        "crop_size": image_px <= 0 or image_px > short_edge_px,  # no square, or more than there is
        "pad_size": any(side != image_px for side in pads_to.values()),
    }
    named = next((name for name, is_refused in refused.items() if is_refused), "")
    return Geometry(image_px, "squash" if squashed_px else "crop", short_edge_px, refused=named)


def frame_rule(
    folder: Path,
    own: Any,
    geometry: Callable[[Mapping[str, Any]], Geometry] = square_geometry,
    *,
    image_px: int | None = None,
    more_fields: Mapping[str, Kind] | None = None,
    also: Collection[str] = (),
) -> FrameRule:
    """The rule of the processor whose settings a model folder holds.

    Fields that change no pixel of a video (padding of frames that are alike, sampling, colour conversion of RGB, output
    layout) are passed over.

    Args:
        folder: The model's files.
        own: The model's own processor class in transformers, image or video.
        geometry: How a frame becomes a square, from the processor's settings.
        image_px: Size of the frames that the model was made for, of others it would give wrong or stretched positions;
            None: it takes any.
        more_fields: As `processor_settings`.
        also: As `processor_settings`.

    Raises:
        ModelNotFoundError: If the folder holds no settings of a processor.
        UnsupportedModelError: If the processor asks for something that is not done here, or for frames of another size.
    """
    path, settings = processor_settings(folder, own, more_fields=more_fields, also=also)
    square = geometry(settings)
    scale: Any = settings.get("rescale_factor") if settings.get("do_rescale") else 1.0
    normalises = bool(settings.get("do_normalize"))
    mean = _channels(settings.get("image_mean")) if normalises else (0.0,) * 3
    std = _channels(settings.get("image_std")) if normalises else (1.0,) * 3
    refused = {
        "do_resize": not settings.get("do_resize"),
        "resample": settings.get("resample") not in _INTERPOLATIONS,
        square.refused: bool(square.refused),
        "rescale_factor": not isinstance(scale, int | float) or not 0 < scale < math.inf,
        "image_mean": mean is None,
        "image_std": std is None or min(std) <= 0,
    }
    if any(refused.values()) or mean is None or std is None:
        named = next(name for name, is_refused in refused.items() if is_refused)
        raise UnsupportedModelError(
            "the processor must scale frames (bilinear, bicubic or Lanczos) to a square or crop one from them, and "
            f"normalise three channels, but {path} says {named} = {settings.get(named)!r}, which changes pixels in "
            "another way. Use the processor files of the model's own repository, or another model."
        )
    if image_px is not None and square.image_px != image_px:
        raise UnsupportedModelError(
            f"the processor must make frames of {image_px} px as the model's config.json says, but the processor files "
            f"in {folder} make {square.image_px} px. Use the processor files of the model's own repository."
        )
    return FrameRule(
        square,
        interpolation=_INTERPOLATIONS[int(settings["resample"])],
        mean=_of_unit_range(mean, scale),
        std=_of_unit_range(std, scale),
    )


def frame_resize(rule: FrameRule, resize: Resize) -> FrameResize:
    """What makes pixels by this rule, with the setting's way to make a frame square."""
    own = rule.geometry
    way = own.way if resize == "model" else resize
    return FrameResize(
        image_px=rule.image_px,
        resize=way,
        mean=rule.mean,
        std=rule.std,
        interpolation=rule.interpolation,
        short_edge_px=own.short_edge_px if way == "crop" or way == own.way != "pad" else None,
        long_edge_px=own.long_edge_px if way == own.way else None,
    )


def square_px(sides: dict[str, int]) -> int:
    """The side of a square; 0 where it is none."""
    return sides["height"] if set(sides) == {"height", "width"} and sides["height"] == sides["width"] else 0


def sides(size: Any) -> dict[str, int]:
    """A processor's size as the sides it names."""
    return {name: int(value) for name, value in dict(size or {}).items() if value is not None}


def _channels(values: Any) -> tuple[float, ...] | None:
    """A statistic of each of three channels, from one number for all or a list; None where it is of other channels."""
    one = [] if values is None else [values]
    listed = [float(value) for value in (values if isinstance(values, list | tuple) else one)]
    return tuple(listed * 3 if len(listed) == 1 else listed) if len(listed) in (1, 3) else None


def _of_unit_range(values: tuple[float, ...], scale: float) -> tuple[float, ...]:
    """A statistic of 8-bit values times `scale`, as that of values in [0, 1]."""
    stretch = 255 * scale
    return values if abs(stretch - 1) < 1e-7 else tuple(value / stretch for value in values)
