"""How many recordings are decoded at once, by the memory that their decoders take.

A decoder keeps the frames that others refer to: half a gigabyte at 8192 x 4320 pixels. Decoders share half of the
memory that is free when the first one begins; one that finds no room waits until another has ended, and one that is
too large for all of it runs alone. So a setting of many decoders is safe whatever a recording's size.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_FRAMES = 12  # that others may refer to, or that wait to be shown, at the sizes where memory matters
_RGB_BYTES = 6  # a pixel converted, and once more while it is turned upright
_SHARE_OF_FREE = 0.5
_CONTROL_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class DecodingRoom:
    """Memory that decoders of several threads share.

    A thread that decodes already is never held up, or two recordings read in turn would wait for each other.

    Args:
        total_bytes: What all of them may take together; None: there is no bound.
    """

    def __init__(self, total_bytes: int | None) -> None:
        self._total_bytes = total_bytes
        self._taken: dict[int, int] = defaultdict(int)  # thread -> bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, need_bytes: int) -> Iterator[float]:
        """Waits until there is room, takes it, and says how many seconds it waited."""
        thread, began = threading.get_ident(), time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(thread, need_bytes))
            self._taken[thread] += need_bytes
        try:
            yield time.monotonic() - began
        finally:
            with self._changed:
                self._taken[thread] -= need_bytes
                if not self._taken[thread]:
                    del self._taken[thread]
                self._changed.notify_all()

    def _has_room(self, thread: int, need_bytes: int) -> bool:
        if self._total_bytes is None or not self._taken or thread in self._taken:
            return True
        return sum(self._taken.values()) + need_bytes <= self._total_bytes


@cache
def decoding_room() -> DecodingRoom:
    """The room of this process."""
    free = free_memory_bytes()
    return DecodingRoom(None if free is None else int(_SHARE_OF_FREE * free))


def decoder_bytes(width_px: int, height_px: int, bits_per_pixel: int) -> int:
    """What decoding frames of a size takes at most, one of them converted to RGB included."""
    return width_px * height_px * (_FRAMES * bits_per_pixel // 8 + _RGB_BYTES)


def free_memory_bytes() -> int | None:
    """Main memory that this process can still take; None where the system does not say.

    The control group counts, too: what a container or a job of a batch system may take is less than the machine has.
    """
    free = [*_free_on_the_machine(), *_free_in_control_groups()]
    return max(0, min(free)) if free else None


def _free_on_the_machine() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _free_in_control_groups() -> Iterator[int]:
    """Of the process's control group and those above it that have a limit (version 2)."""
    try:
        own = next(line[3:] for line in _OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = _CONTROL_GROUPS / own.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_CONTROL_GROUPS):
            return
        try:
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            yield int(limit) - int(used) + int(counts.get("inactive_file", 0))  # files it can forget again
