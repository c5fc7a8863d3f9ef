"""Soft-edged ellipses and capsules on a small float canvas, in numpy.

World units: the frame's height is 1, the origin is its centre, x runs right and y runs down, so the
square that a centre crop keeps is [-0.5, 0.5] x [-0.5, 0.5]. A camera (offset, rotation, scale) maps
the world to pixels. Every shape touches only its own bounding box, and shapes outside the frame cost
nothing, which is what makes a thousand frames a second possible. Not a general renderer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Colour = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Camera:
    """World to pixels: scale, then rotate, then shift.

    Attributes:
        shift_x: Shift to the right, in frame heights.
        shift_y: Shift downwards, in frame heights.
        rotation_rad: Clockwise as seen on the screen.
        scale: Pixels per world unit, over the frame's height.
    """

    shift_x: float = 0.0
    shift_y: float = 0.0
    rotation_rad: float = 0.0
    scale: float = 1.0

    def project(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """World points, shape (..., 2), to frame heights from the frame's centre, shape (..., 2)."""
        cosine, sine = np.cos(self.rotation_rad), np.sin(self.rotation_rad)
        rotation = self.scale * np.array([[cosine, sine], [-sine, cosine]])
        return np.asarray(points @ rotation + np.array([self.shift_x, self.shift_y]))


class Canvas:
    """Draws in world units onto one frame.

    Args:
        width_px: Frame width.
        height_px: Frame height.
        camera: Where the world stands in the frame.
    """

    def __init__(self, width_px: int, height_px: int, camera: Camera) -> None:
        self._width, self._height, self._camera = width_px, height_px, camera
        self._x = np.arange(width_px, dtype=np.float32) + 0.5
        self._y = (np.arange(height_px, dtype=np.float32) + 0.5)[:, None]

    def ellipse(
        self, image: Image, centre: NDArray[np.floating], radii: tuple[float, float], angle_rad: float, colour: Colour
    ) -> None:
        """Fill an ellipse that is a little darker towards its edge.

        Args:
            image: Drawn on in place, shape (H, W, 3).
            centre: World point, shape (2,).
            radii: World lengths of the half axes.
            angle_rad: Direction of the first half axis in the world.
            colour: Shape (3,), levels 0 to 255.
        """
        (x, y), unit = self._to_pixels(centre), self._camera.scale * self._height
        major, minor = radii[0] * unit, radii[1] * unit
        box = self._box(x, y, x, y, max(major, minor) + 1)
        if box is None:
            return
        rows, columns = box
        angle = angle_rad + self._camera.rotation_rad
        cosine, sine = float(np.cos(angle)), float(np.sin(angle))
        dx, dy = self._x[columns] - x, self._y[rows] - y
        radius = np.sqrt(((cosine * dx + sine * dy) / major) ** 2 + ((cosine * dy - sine * dx) / minor) ** 2)
        cover = np.clip((1 - radius) * min(major, minor) + 0.5, 0, 1)[:, :, None]
        shade = (1.08 - 0.22 * np.minimum(radius, 1))[:, :, None]
        patch = image[rows, columns]
        patch += cover * (shade * colour - patch)

    def capsule(
        self,
        image: Image,
        start: NDArray[np.floating],
        end: NDArray[np.floating],
        radius: float,
        colour: Colour,
    ) -> None:
        """Fill a thick line with round ends, from world point `start` to `end`, shape (2,) each."""
        (x0, y0), (x1, y1) = self._to_pixels(start), self._to_pixels(end)
        radius_px = radius * self._camera.scale * self._height
        box = self._box(x0, y0, x1, y1, radius_px + 1)
        if box is None:
            return
        rows, columns = box
        dx, dy = self._x[columns] - x0, self._y[rows] - y0
        along_x, along_y = x1 - x0, y1 - y0
        length_squared = max(along_x**2 + along_y**2, 1e-6)
        share = np.clip((dx * along_x + dy * along_y) / length_squared, 0, 1)
        distance = np.hypot(dx - share * along_x, dy - share * along_y)
        cover = np.clip(radius_px - distance + 0.5, 0, 1)[:, :, None]
        patch = image[rows, columns]
        patch += cover * (colour - patch)

    def _to_pixels(self, point: NDArray[np.floating]) -> tuple[float, float]:
        x, y = self._camera.project(point)
        return float(x) * self._height + self._width / 2, float(y) * self._height + self._height / 2

    def _box(self, x0: float, y0: float, x1: float, y1: float, margin: float) -> tuple[slice, slice] | None:
        left, right = max(0, int(min(x0, x1) - margin)), min(self._width, int(max(x0, x1) + margin) + 1)
        top, bottom = max(0, int(min(y0, y1) - margin)), min(self._height, int(max(y0, y1) + margin) + 1)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)
