"""A decoded frame as RGB, upright.

Mirroring and quarter turns of the display matrix are applied. Sample aspect ratio and interlacing are not.
"""

import struct
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData, SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is brought upright: transpose, then mirror."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @property
    def rotation_deg(self) -> int:
        """The clockwise turn to upright; a mirror is not told."""
        if self.transpose:
            return 270 if self.flip_rows else 90
        return 180 if self.flip_rows and self.flip_columns else 0

    def apply(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A view of the frame (H, W, 3), upright."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        if self.flip_rows:
            frame = frame[::-1]
        return frame[:, ::-1] if self.flip_columns else frame


def orientation_of(frame: VideoFrame) -> Orientation:
    """The nearest of the eight upright orientations that the frame's display matrix asks for.

    The matrix maps a stored point (x, y) to (a x + c y, b x + d y), y downwards.
    """
    # `frame.side_data` would make a cycle, in which the frame stays until Python looks for cycles: 53 MB each at 8K.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if matrix is None:
        return Orientation(False, False, False)
    a, b, _, c, d = struct.unpack("=5i", bytes(cast(SideData, matrix))[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """The frame upright as RGB, shape (H, W, 3), contiguous; equal to `frame.to_ndarray(format="rgb24")`.

    Colour matrix and range are those the stream declares, by FFmpeg's defaults where it declares none.
    """
    rgb = np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
    return np.ascontiguousarray(orientation_of(frame).apply(rgb))
