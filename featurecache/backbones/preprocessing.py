"""What a model's own processor does to a frame, read from its files as plain numbers.

Only what all of these processors share is known here: scale the short edge and crop the centre, or squash to a square;
one of two interpolations; 8-bit values divided by 255; a mean and a standard deviation per channel. A processor that
asks for anything else is refused.

Not here: doing it (`featurecache.backbones.resize`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurecache.backbones.resize import FrameResize
from featurecache.errors import UnsupportedModelError

Resize = Literal["model", "crop", "pad", "squash"]
"""How a frame that is not square becomes one; `model`: as the model's own processor does."""

_INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class FrameRule:
    """How a frame becomes what the model sees.

    Attributes:
        image_px: Height and width of a frame as the model sees it.
        squashes: The processor squashes frames to a square; otherwise it crops their centre.
        short_edge_px: A frame that is cropped has its short edge scaled to this before. Where the processor squashes
            frames instead, `image_px`.
        interpolation: Of the scaling, with antialiasing.
        mean: Subtracted from each channel of values in [0, 1].
        std: Each channel is divided by it.
    """

    image_px: int
    squashes: bool
    short_edge_px: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def frame_rule(processor: Any, folder: Path) -> FrameRule:
    """The rule of a processor that transformers has read.

    Args:
        processor: An image or video processor of transformers.
        folder: Where its files are, for the message.

    Raises:
        UnsupportedModelError: If the processor asks for something that is not done here.
    """
    settings = processor.to_dict()
    size, crop = _sides(settings.get("size")), _sides(settings.get("crop_size"))
    squashed_px = _square_px(size)  # 0 where the processor crops
    image_px = _square_px(crop) if settings.get("do_center_crop") else squashed_px
    short_edge_px = squashed_px or size.get("shortest_edge", 0)
    refused = {
        "do_resize": not settings.get("do_resize"),
        "do_rescale": not settings.get("do_rescale"),
        "rescale_factor": abs(settings.get("rescale_factor", 0) - 1 / 255) > 1e-9,
        "do_normalize": not settings.get("do_normalize"),
        "do_pad": bool(settings.get("do_pad")),
        "resample": settings.get("resample") not in _INTERPOLATIONS,
        "size": short_edge_px == 0 or len(size) > (2 if squashed_px else 1),
        "do_center_crop": image_px == 0 and not settings.get("do_center_crop"),
        # no square, more than there is, or a part of a squashed frame
        "crop_size": image_px == 0 or image_px > short_edge_px or image_px != squashed_px > 0,
    }
    if any(refused.values()):
        named = next(name for name, is_refused in refused.items() if is_refused)
        raise UnsupportedModelError(
            "the processor must scale frames (bilinear or bicubic) to a square or crop one from them, divide by 255 "
            f"and normalise, but the processor files in {folder} say {named} = {settings.get(named)!r}. "
            "Copy the processor files of the model's own repository, or use another model."
        )
    return FrameRule(
        image_px=image_px,
        squashes=squashed_px > 0,
        short_edge_px=short_edge_px,
        interpolation=_INTERPOLATIONS[int(settings["resample"])],
        mean=tuple(map(float, settings["image_mean"])),
        std=tuple(map(float, settings["image_std"])),
    )


def frame_resize(rule: FrameRule, resize: Resize) -> FrameResize:
    """What makes pixels by this rule, with the setting's way to make a frame square."""
    if resize == "model":
        resize = "squash" if rule.squashes else "crop"
    return FrameResize(
        image_px=rule.image_px,
        resize=resize,
        mean=rule.mean,
        std=rule.std,
        interpolation=rule.interpolation,
        short_edge_px=rule.short_edge_px if resize == "crop" else None,
    )


def require_size(rule: FrameRule, image_px: int, folder: Path) -> None:
    """Refuses a processor whose frames the model would give wrong or stretched positions.

    Raises:
        UnsupportedModelError: If the model was made for frames of another size.
    """
    if rule.image_px != image_px:
        raise UnsupportedModelError(
            f"the processor must make frames of {image_px} px as the model's config.json says, but the processor files "
            f"in {folder} make {rule.image_px} px. Copy the processor files of the model's own repository."
        )


def _square_px(sides: dict[str, int]) -> int:
    """The side of a square; 0 where it is none."""
    return sides["height"] if set(sides) == {"height", "width"} and sides["height"] == sides["width"] else 0


def _sides(size: Any) -> dict[str, int]:
    """A processor's size as the sides it names."""
    return {name: int(value) for name, value in dict(size or {}).items() if value is not None}
