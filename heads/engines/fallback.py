"""Fits that go on with less where the memory of a device is not enough, and say so.

Not here: what less is; callers name it, from the best to the least.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

from featurecache.device import device_of, is_out_of_memory
from featurecache.errors import LowMemoryWarning

T = TypeVar("T")


def first_that_fits(attempts: Sequence[tuple[str, Callable[[], T]]]) -> T:
    """What the first attempt gives that memory is enough for.

    Args:
        attempts: Each with what it runs on, in words, e.g. "cuda with 32 heads at once". At least one. An attempt must
            not rely on what one before it left half done.

    Raises:
        torch.OutOfMemoryError: Or what else the last attempt raised, where memory is not enough for that either.
    """
    for (name, work), (following, _) in pairwise(attempts):
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        # Only here are the tensors gone that the exception's traceback held.
        torch.cuda.empty_cache()  # does nothing where no GPU is used
        warnings.warn(
            f"heads must fit in the memory of {name}, but it gave: {reason}. Continuing with {following}.",
            LowMemoryWarning,
            stacklevel=2,
        )
    return attempts[-1][1]()


def on_device_or_cpu(work: Callable[[str], T], device: str) -> T:
    """`work(device)`, and `work("cpu")` where a GPU's memory is not enough."""
    devices = dict.fromkeys([device_of(device), "cpu"])
    return first_that_fits([(name, lambda name=name: work(name)) for name in devices])  # type: ignore[misc]
