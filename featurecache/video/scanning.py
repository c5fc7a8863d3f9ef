"""What a recording's packets say of it, undecoded: how many there are, where they end, where its clock breaks.

Containers with an index are read from their last key frame on; streams without one, whole, within a bound.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import av.error
from av.packet import Packet
from av.stream import Stream

from featurecache.video.containers import OpenVideo
from featurecache.video.packets import Clock
from featurecache.video.reports import reported

_MICROSECONDS = 1_000_000
_TELL_EVERY = 4096  # packets
_READ_ERRORS = 16


@dataclass
class Scan:
    """What the packets of a recording say.

    Attributes:
        is_whole: Whether they were read from the first to the last, not only from the last key frame on.
        packets: Packets of the video that hold data.
        end_us: Where the video's packets end on the recording's clock, None if there are none.
        any_end_us: Where those of any stream do.
        audio_end_us: Where those of sound do.
        read_to: Byte behind the video's last packet, 0 where the container does not say.
        breaks: Times in microseconds before and behind each break of the clock.
        is_late: The bound was reached before the end.
    """

    is_whole: bool
    packets: int = 0
    end_us: int | None = None
    any_end_us: int = 0
    audio_end_us: int = 0
    read_to: int = 0
    breaks: list[tuple[int, int]] = field(default_factory=list)
    is_late: bool = False


def scan(video: OpenVideo, *, deadline: float, on_progress: Callable[[int], None] = lambda _: None) -> Scan:
    """Read an opened recording's packets; ends the use of `video`.

    Args:
        video: The recording.
        deadline: Of `time.monotonic`, after which no further packet is read.
        on_progress: Called now and then with the byte that was reached.
    """
    if _has_index(video):
        found = _read(video, Scan(False), 2**62, deadline, on_progress)
        if found.packets:
            return found
    return _read(video, Scan(True), 0, deadline, on_progress)


def _has_index(video: OpenVideo) -> bool:
    """Whether the container's end can be sought: it says how long it is and lists its frames."""
    if video.container.format.name == "avi":
        return len(video.stream.index_entries) > 0
    return video.layout.end is not None and (bool(video.stream.frames) or "matroska" in video.container.format.name)


def _read(video: OpenVideo, found: Scan, start: int, deadline: float, on_progress: Callable[[int], None]) -> Scan:
    clock, errors = Clock.of(video), 0
    try:
        video.container.seek(start)
    except av.error.FFmpegError:
        if start:
            return found
    while errors < _READ_ERRORS:
        try:
            with reported():
                for number, packet in enumerate(video.container.demux(), 1):
                    if number % _TELL_EVERY == 0:
                        on_progress(packet.pos or 0)
                    if time.monotonic() > deadline:
                        found.is_late = True
                        return found
                    if packet.size:
                        _note(video, packet, found, clock)
            return found
        except av.error.ExitError:
            found.is_late = True
            return found
        except (av.error.FFmpegError, IndexError):  # IndexError: a stream that turned up inside the file
            errors += 1
    return found


def _note(video: OpenVideo, packet: "Packet[Stream]", found: Scan, clock: Clock) -> None:
    time_us, is_video = packet.pts if packet.pts is not None else packet.dts, packet.stream_index == video.stream.index
    if is_video:
        found.packets += 1
        broken = clock.follow(packet.dts) if packet.dts is not None else None
        if clock.fits(packet.dts):
            found.read_to = max(found.read_to, (packet.pos or 0) + packet.size)
        if broken is not None:
            found.breaks.append((video.to_us(broken[0]), video.to_us(broken[1])))
    if time_us is None or not packet.time_base:
        return
    length = (packet.duration or video.frame_interval) if is_video else packet.duration or 0
    end = math.floor((time_us + length) * packet.time_base * _MICROSECONDS + Fraction(1, 2)) - video.zero_us
    if is_video and clock.fits(packet.dts):
        found.end_us = end if found.end_us is None else max(found.end_us, end)
    found.any_end_us = max(found.any_end_us, end)
    if packet.stream.type == "audio":
        found.audio_end_us = max(found.audio_end_us, end)
