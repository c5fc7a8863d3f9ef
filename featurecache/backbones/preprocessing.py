"""What a model's own processor does to a frame, as plain numbers.

Only what all of these processors share is known here: scale the short edge or squash to a square, then crop the centre;
one of two interpolations; 8-bit values scaled; a mean and a standard deviation per channel. A processor that changes
pixels in any other way is refused.

Not here: doing it (`featurecache.backbones.resize`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurecache.backbones.processor_files import processor_settings
from featurecache.backbones.resize import FrameResize
from featurecache.errors import UnsupportedModelError

Resize = Literal["model", "crop", "pad", "squash"]
"""How a frame that is not square becomes one; `model`: as the model's own processor does."""

_LARGEST_PX = 4096

_INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class FrameRule:
    """How a frame becomes what the model sees.

    Attributes:
        image_px: Height and width of a frame as the model sees it.
        squashes: The processor squashes frames to a square; otherwise it crops their centre.
        short_edge_px: The short edge (of a squashed frame both edges) is scaled to this, then the centre is cropped.
        interpolation: Of the scaling, with antialiasing.
        mean: Subtracted from each channel of values in [0, 1]; another scale than 1/255 is counted in.
        std: Each channel is divided by it.
    """

    image_px: int
    squashes: bool
    short_edge_px: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def frame_rule(folder: Path, own: Any) -> FrameRule:
    """The rule of the processor whose settings a model folder holds.

    Fields that change no pixel of a video (padding of frames that are alike, sampling, colour conversion of RGB, output
    layout) are passed over.

    Args:
        folder: The model's files.
        own: The model's own processor class in transformers, image or video.

    Raises:
        ModelNotFoundError: If the folder holds no settings of a processor.
        UnsupportedModelError: If the processor asks for something that is not done here.
    """
    path, settings = processor_settings(folder, own)
    size, crop = _sides(settings.get("size")), _sides(settings.get("crop_size"))
    crops = bool(settings.get("do_center_crop"))
    squashed_px = _square_px(size)  # 0 where the short edge is scaled
    short_edge_px = squashed_px or size.get("shortest_edge", 0)
    image_px = _square_px(crop) if crops else squashed_px
    pads_to = _sides(settings.get("pad_size")) if settings.get("do_pad") else {}
    scale: Any = settings.get("rescale_factor") if settings.get("do_rescale") else 1.0
    normalises = bool(settings.get("do_normalize"))
    mean = _channels(settings.get("image_mean")) if normalises else (0.0,) * 3
    std = _channels(settings.get("image_std")) if normalises else (1.0,) * 3
    refused = {
        "do_resize": not settings.get("do_resize"),
        "resample": settings.get("resample") not in _INTERPOLATIONS,
        "size": not 0 < short_edge_px <= _LARGEST_PX or len(size) > (2 if squashed_px else 1),
        "do_center_crop": image_px == 0 and not crops,
        "crop_size": image_px <= 0 or image_px > short_edge_px,  # no square, or more than there is
        "pad_size": any(side != image_px for side in pads_to.values()),
        "rescale_factor": not isinstance(scale, int | float) or not 0 < scale < math.inf,
        "image_mean": mean is None,
        "image_std": std is None or min(std) <= 0,
    }
    if any(refused.values()) or mean is None or std is None:
        named = next(name for name, is_refused in refused.items() if is_refused)
        raise UnsupportedModelError(
            "the processor must scale frames (bilinear or bicubic) to a square or crop one from them, and normalise "
            f"three channels, but {path} says {named} = {settings.get(named)!r}, which changes pixels in another way. "
            "Use the processor files of the model's own repository, or another model."
        )
    return FrameRule(
        image_px=image_px,
        squashes=squashed_px > 0,
        short_edge_px=short_edge_px,
        interpolation=_INTERPOLATIONS[int(settings["resample"])],
        mean=_of_unit_range(mean, scale),
        std=_of_unit_range(std, scale),
    )


def frame_resize(rule: FrameRule, resize: Resize) -> FrameResize:
    """What makes pixels by this rule, with the setting's way to make a frame square."""
    own: Literal["crop", "squash"] = "squash" if rule.squashes else "crop"
    way = own if resize == "model" else resize
    return FrameResize(
        image_px=rule.image_px,
        resize=way,
        mean=rule.mean,
        std=rule.std,
        interpolation=rule.interpolation,
        short_edge_px=rule.short_edge_px if way in ("crop", own) else None,
    )


def require_size(rule: FrameRule, image_px: int, folder: Path) -> None:
    """Refuses a processor whose frames the model would give wrong or stretched positions.

    Raises:
        UnsupportedModelError: If the model was made for frames of another size.
    """
    if rule.image_px != image_px:
        raise UnsupportedModelError(
            f"the processor must make frames of {image_px} px as the model's config.json says, but the processor files "
            f"in {folder} make {rule.image_px} px. Use the processor files of the model's own repository."
        )


def _square_px(sides: dict[str, int]) -> int:
    """The side of a square; 0 where it is none."""
    return sides["height"] if set(sides) == {"height", "width"} and sides["height"] == sides["width"] else 0


def _sides(size: Any) -> dict[str, int]:
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
