"""Frames as a vision tower takes them: cut to a box, resized, cropped, normalised; the same on every device.

The kernel is fixed and is part of the fingerprint: antialiased bicubic (a = -1/2), bilinear or Lanczos (a = 3),
separable, columns before rows, in integers: weights as 16-bit fixed point, sums in 32 bits, 8-bit pixels between the
two passes and after them. Integer sums have no order, so a frame comes out the same bit for bit on a CPU, on a GPU,
alone and in a batch. It is the kernel that torch runs on 8-bit frames on a CPU, which the transformers processors use
there: their result is met exactly.

- `_resize_by_weights` is the definition and runs on any device; it computes only what survives the crop.
- On a CPU torch's own vectorised kernel does the same many times faster. It is used for a frame size after it
  has given the same as the definition on strips of noise of that width and height.
- float32 `interpolate`, which GPUs would be given otherwise, costs ten times as much on a CPU and is off by up to
  one level of 255 on smooth frames and five on noise, where pixels between the passes are cut to 8 bits here.

It is not a decoder, and it changes no colours.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.project.features import Crop, box_px, goes_by_name, of_recording, plain_crop, without_whole

Interpolation = Literal["bicubic", "bilinear", "lanczos"]

KERNEL = "antialiased, separable, 16-bit weights, 8-bit pixels, version 1"
_WEIGHT_BITS = 15
_MOST_PRECISION = 22
_FRAMES_AT_ONCE = 8  # whose 32-bit sums are in memory
_STRIP_PX = 8


class FrameResize:
    """Resizes, crops or pads, and normalises frames.

    Args:
        image_px: Height and width of the result.
        resize: `crop`: the shortest edge becomes `short_edge_px`, then the centre is taken; `squash`: both edges
            become `short_edge_px`, then the centre is taken; `pad`: centred on a square of the mean colour, then both
            edges become `image_px`.
        mean: Mean of each channel in [0, 1], the processor's `image_mean`.
        std: Standard deviation of each channel in [0, 1], the processor's `image_std`.
        interpolation: Always with antialiasing.
        short_edge_px: For `crop` and `squash`; None: `image_px`. At least `image_px`.
        long_edge_px: For `squash`: the longest edge is scaled to this first, keeping the sides' ratio; None: it is not.

    Raises:
        ValueError: If `short_edge_px` is smaller than `image_px`, or is given with `pad`.
    """

    def __init__(
        self,
        *,
        image_px: int,
        resize: Literal["crop", "pad", "squash"],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: Interpolation = "bicubic",
        short_edge_px: int | None = None,
        long_edge_px: int | None = None,
    ) -> None:
        if short_edge_px is not None and (resize == "pad" or short_edge_px < image_px):
            raise ValueError(
                f"short_edge_px must be at least image_px and not be given for resize 'pad', but it is {short_edge_px} "
                f"with image_px {image_px} and resize {resize!r}. Leave it out, or make it larger."
            )
        self.image_px = image_px
        self.resize = resize
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.interpolation: Interpolation = interpolation
        self.short_edge_px = short_edge_px or image_px
        self.long_edge_px = long_edge_px
        self.crop: Crop | None = None

    def of(self, recording: str) -> "FrameResize":
        """The same of a recording of this name, where boxes go by names.

        Raises:
            SettingsError: If no box is of that name, or several are.
        """
        return self.within(of_recording(self.crop, recording)) if goes_by_name(self.crop) else self

    def within(self, crop: Crop | None) -> "FrameResize":
        """The same of a part of each frame, which is cut out first; None: of the whole frame."""
        cut = copy.copy(self)
        cut.crop = crop if goes_by_name(crop) else without_whole(crop)  # a name may have a box that cuts nothing off
        return cut

    def identity(self) -> dict[str, Any]:
        """All that changes a pixel's value, JSON-ready, for the fingerprint."""
        crops = self.resize == "crop" or self.short_edge_px != self.image_px
        first = {} if self.long_edge_px is None else {"long_edge_px": self.long_edge_px}
        boxes = plain_crop(self.crop)
        return {
            **({} if boxes is None else {"crop": boxes}),
            "resize": self.resize,
            **first,
            "image_px": self.image_px,
            "short_edge_px": self.short_edge_px if crops else None,
            "interpolation": self.interpolation,
            "kernel": KERNEL,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __call__(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixels as a vision tower takes them.

        Args:
            frames: RGB, shape (F, H, W, 3), uint8, on any device.
            dtype: Of the result; the arithmetic is float32.

        Returns:
            Shape (F, 3, image_px, image_px), on the frames' device.

        Raises:
            TypeError: If the frames are not uint8: values in [0, 1] would come out near black.
            ValueError: If the shape is another.
        """
        return self.normalized(self.resized(frames), dtype)

    def resized(self, frames: Tensor) -> Tensor:
        """The first half: frames (F, H, W, 3) uint8 -> frames (F, px, px, 3) uint8; errors as for the whole."""
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames must be uint8 in 0 to 255, but they are {frames.dtype}.")
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape[1:]:
            raise ValueError(f"frames must be of shape (F, H, W, 3), but it is {tuple(frames.shape)}.")
        return self._resized(frames)

    def smaller(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """`resized` of one frame (H, W, 3) -> (px, px, 3), in memory of its own: what decoders hand on."""
        return self.resized(torch.from_numpy(frame)[None])[0].clone(memory_format=torch.contiguous_format).numpy()

    def normalized(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Frames (F, px, px, 3) uint8, of the right size, as a vision tower takes them: (F, 3, px, px)."""
        scaled = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return scaled.sub_(_levels(self.mean, frames.device)).div_(_levels(self.std, frames.device)).to(dtype)

    def _resized(self, frames: Tensor) -> Tensor:
        """Frames (F, H, W, 3) -> (F, px, px, 3), uint8."""
        if self.crop is not None:
            rows, columns = box_px(self.crop, frames.shape[2], frames.shape[1])
            frames = frames[:, rows, columns].contiguous()
        if self.resize == "pad":
            frames = self._padded(frames)
        if self.long_edge_px is not None:
            frames = self._scaled(frames, *_of_long_edge(frames.shape[1], frames.shape[2], self.long_edge_px))
        height, width = frames.shape[1:3]
        out_height = out_width = self.short_edge_px
        if self.resize == "crop":
            # The long edge is rounded down, as the processors do.
            out_height = int(self.short_edge_px * height / width) if height > width else self.short_edge_px
            out_width = int(self.short_edge_px * width / height) if width > height else self.short_edge_px
        return self._scaled(frames, out_height, out_width, self.image_px)

    def _scaled(self, frames: Tensor, out_height: int, out_width: int, centre_px: int | None = None) -> Tensor:
        """Frames (F, H, W, 3) scaled to a size; with `centre_px` the square in its centre."""
        height, width = frames.shape[1:3]
        if (out_height, out_width) == (height, width) and centre_px is None:
            return frames
        wanted = (out_height, out_width) if centre_px is None else (centre_px, centre_px)
        top, left = (out_height - wanted[0]) // 2, (out_width - wanted[1]) // 2
        if frames.device.type == "cpu" and _torch_agrees(height, width, out_height, out_width, self.interpolation):
            resized = _resize_by_torch(frames, out_height, out_width, self.interpolation)
            return resized[:, top : top + wanted[0], left : left + wanted[1]]
        rows = _axis_sums(height, out_height, top, wanted[0], self.interpolation, frames.device)
        columns = _axis_sums(width, out_width, left, wanted[1], self.interpolation, frames.device)
        parts = [_resize_by_weights(part, rows, columns) for part in torch.split(frames, _FRAMES_AT_ONCE)]
        return torch.cat(parts) if parts else frames.new_empty(0, *wanted, 3)

    def _padded(self, frames: Tensor) -> Tensor:
        count, height, width = frames.shape[:3]
        side = max(height, width)
        if height == width:
            return frames
        levels = [min(255, max(0, round(255 * channel))) for channel in self.mean]
        colour = torch.tensor(levels, dtype=torch.uint8, device=frames.device)
        square = colour.expand(count, side, side, 3).contiguous()
        top, left = (side - height) // 2, (side - width) // 2
        square[:, top : top + height, left : left + width] = frames
        return square


def _of_long_edge(height: int, width: int, long_edge_px: int) -> tuple[int, int]:
    """Height and width whose longer side is `long_edge_px`, the other made even, as SmolVLM's processor counts it."""
    ratio = width / height
    if width >= height:
        height, width = int(long_edge_px / ratio), long_edge_px
        return max(1, height + height % 2), width
    height, width = long_edge_px, int(long_edge_px * ratio)
    return height, max(1, width + width % 2)


@lru_cache(maxsize=16)
def _levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Per-channel values in [0, 1] as levels of 255, shape (3, 1, 1)."""
    return (torch.tensor(values, dtype=torch.float32) * 255.0).to(device)[:, None, None]


class _AxisSums(NamedTuple):
    """How each of N output pixels along one axis is summed up from K input pixels.

    Attributes:
        begin: The first input pixel that is read.
        end: The last one, exclusive.
        source: The input pixels, counted from `begin`, shape (K, N), int64.
        weights: Their weights in fixed point, zero where there are fewer than K, shape (K, N), int32.
        precision: Bits of the weights behind the point.
    """

    begin: int
    end: int
    source: Tensor
    weights: Tensor
    precision: int


@lru_cache(maxsize=64)
def _axis_sums(
    size: int, out_size: int, start: int, length: int, interpolation: Interpolation, device: torch.device
) -> _AxisSums:
    """The sums of output pixels `start` to `start + length`, on a device."""
    first, weights, precision = _axis_weights(size, out_size, interpolation)
    index = np.minimum(first + np.arange(weights.shape[1])[:, None], size - 1)[:, start : start + length]
    begin, end = int(index.min()), int(index.max()) + 1
    return _AxisSums(
        begin,
        end,
        torch.from_numpy(index - begin).to(device),
        torch.from_numpy(weights.T[:, start : start + length].copy()).to(device),
        precision,
    )


def _axis_weights(
    size: int, out_size: int, interpolation: Interpolation
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
    """Weights of an antialiased resize along one axis, in float64 and then in fixed point.

    An output pixel's centre lies at (i + 1/2) size / out_size; the filter is stretched by the scale where that
    is above 1, cut at the border, and made to sum to 1.

    Returns:
        First input pixel of each output pixel, shape (N,); weights of the input pixels from there on, shape (N, K);
        and the bits of the weights behind the point: as many as 16 bits hold of the largest.
    """
    scale = size / out_size
    stretch = max(scale, 1.0)
    kernel, reach = _KERNELS[interpolation]
    support = stretch * reach
    most = 2 * int(np.ceil(np.float32(support))) + 1
    first = np.zeros(out_size, dtype=np.int64)
    exact = np.zeros((out_size, most))
    for i in range(out_size):
        centre = scale * (i + 0.5)
        begin = max(int(centre - support + 0.5), 0)
        length = min(max(min(int(centre + support + 0.5), size) - begin, 0), most)
        values = [kernel((j + begin - centre + 0.5) * (1.0 / stretch)) for j in range(length)]
        total = 0.0
        for value in values:
            total += value
        first[i] = begin
        exact[i, :length] = [value / total for value in values] if total else values
    largest = exact.max()
    precision = 0
    while precision < _MOST_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < 1 << _WEIGHT_BITS:
        precision += 1
    scaled = exact * (1 << precision)
    weights = np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5)).astype(np.int32)
    used = int(np.flatnonzero(weights.any(axis=0)).max()) + 1
    return first, weights[:, :used], precision


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


_KERNELS: dict[Interpolation, tuple[Callable[[float], float], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
}
"""Each filter with how far it reaches to either side."""


def _resize_by_weights(frames: Tensor, rows: _AxisSums, columns: _AxisSums) -> Tensor:
    """The definition: frames (F, H, W, 3) -> (F, rows, columns, 3), uint8, in integer arithmetic."""
    return _sums_along(1, _sums_along(2, frames[:, rows.begin : rows.end], columns), rows._replace(begin=0))


def _sums_along(axis: int, frames: Tensor, sums: _AxisSums) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    frames = frames.narrow(axis, sums.begin, frames.shape[axis] - sums.begin)
    total = torch.full((), 1 << (sums.precision - 1), dtype=torch.int32, device=frames.device)  # rounds to nearest
    for source, weights in zip(sums.source, sums.weights, strict=True):
        total = frames.index_select(axis, source).to(torch.int32).mul_(weights.view(shape)).add_(total)
    return (total >> sums.precision).clamp_(0, 255).to(torch.uint8)


def _resize_by_torch(frames: Tensor, out_height: int, out_width: int, interpolation: Interpolation) -> Tensor:
    """The whole frame by torch's kernel for 8-bit frames: (F, H, W, 3) -> (F, out_height, out_width, 3)."""
    channels_first = frames.permute(0, 3, 1, 2)  # channels last in memory, which its fast path wants
    resized = torch.nn.functional.interpolate(
        channels_first, size=(out_height, out_width), mode=interpolation, antialias=True
    )
    return resized.permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def _torch_agrees(height: int, width: int, out_height: int, out_width: int, interpolation: Interpolation) -> bool:
    """Whether torch's kernel gives what the definition gives, on strips of noise of this width and height."""
    for strip in ((_STRIP_PX, width, _STRIP_PX, out_width), (height, _STRIP_PX, out_height, _STRIP_PX)):
        noise = np.random.default_rng(0).integers(0, 256, (1, *strip[:2], 3), dtype=np.uint8)
        frame, device = torch.from_numpy(noise), torch.device("cpu")
        rows, columns = (
            _axis_sums(size, out_size, 0, out_size, interpolation, device)
            for size, out_size in zip(strip[:2], strip[2:], strict=True)
        )
        try:
            theirs = _resize_by_torch(frame, *strip[2:], interpolation)
        except (NotImplementedError, ValueError):  # an older torch has no Lanczos of its own
            return False
        if not torch.equal(_resize_by_weights(frame, rows, columns), theirs):
            return False
    return True
