"""bfloat16, which neither numpy nor zarr has: kept by its bits as uint16, which are the upper half of a float32."""

from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "bfloat16"
STORED: np.dtype[Any] = np.dtype("<u2")
NAN = 0x7FC0
"""The bits of not-a-number, with which unwritten places are filled."""

_EXPONENT = 0x7F80


def from_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; infinity where a value is too large."""
    floats = np.ascontiguousarray(values, np.float32)
    bits = floats.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(floats), NAN, rounded).astype(STORED)


def to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The values, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_finite(bits: npt.NDArray[np.uint16]) -> bool:
    """Whether none is infinite or not a number."""
    return not ((bits & _EXPONENT) == _EXPONENT).any()
