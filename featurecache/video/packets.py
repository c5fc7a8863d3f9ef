"""A recording's packets in the order of the file, where some are missing, and where its clock breaks.

A clock breaks where files were joined end to end (the parts of a camcorder's recording): what stands behind has times
of its own. One packet whose time fits neither those before it nor those behind it is damage, not a break. A transport
stream whose 33 bits of clock overflow does not break: FFmpeg goes on counting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import av.error
from av.packet import Packet
from av.video.stream import VideoStream

from featurecache.errors import UnreadableVideoError
from featurecache.video.containers import OpenVideo
from featurecache.video.reports import reported

_READ_AHEAD_BYTES = 5_000_000  # FFmpeg's `probesize`: what it reads at most to tell what the streams are
_READ_ERRORS = 16  # in a row, after which the rest of the file is given up
_LONGEST_STEP_BACK_S = 0.2  # of decoding times, which never run backwards in a sound file
_LONGEST_STEP_S = 60
_MOST_CHUNK_HEADER = 8  # bytes between an index entry of an AVI and its packet


@dataclass
class Clock:
    """Follows the decoding times of a stream and tells a break from a damaged time.

    Attributes:
        back: The longest step back that is no break, in ticks.
        forward: The longest step forward that is none.
        last: The last time that fitted.
    """

    back: int
    forward: int
    last: int | None = None
    _suspect: int | None = None

    @classmethod
    def of(cls, video: OpenVideo) -> "Clock":
        """The clock of an opened recording's video stream."""
        return cls(int(_LONGEST_STEP_BACK_S / video.time_base), int(_LONGEST_STEP_S / video.time_base))

    def follow(self, time: int) -> tuple[int, int] | None:
        """Take the next packet's time; the times before and behind a break that it proves, else None."""
        suspect, self._suspect = self._suspect, None
        if self.last is None or self._fits(self.last, time):
            self.last = time
        elif suspect is not None and self._fits(suspect, time):
            broken = self.last, suspect
            self.last = time
            return broken
        else:
            self._suspect = time
        return None

    def fits(self, time: int | None) -> bool:
        """Whether a packet's time, just taken, belongs to those before it; one that is missing does."""
        return time is None or self._suspect is None

    def _fits(self, before: int, time: int) -> bool:
        return -self.back <= time - before <= self.forward


def read_packets(video: OpenVideo) -> "Iterator[Packet[VideoStream] | None]":
    """The video stream's packets that hold data; None where something before the next one could not be read.

    Raises:
        UnreadableVideoError: If the clock restarts, or an AVI's index shows that frames are missing: no time of what
            is behind can be known.
    """
    clock, index = Clock.of(video), _AviIndex(video)
    errors = 0
    while errors < _READ_ERRORS:
        packets = video.container.demux(video.stream)
        while True:
            try:
                with reported() as reports:
                    packet = next(packets, None)
            except av.error.ExitError:
                yield None
                return
            except (av.error.FFmpegError, IndexError):  # IndexError: a stream that turned up inside the file
                errors += 1
                yield None
                break
            if reports or (video.is_damaged and packet is not None and (packet.pos or 0) < _READ_AHEAD_BYTES):
                yield None
            if packet is None:
                return
            if not packet.size:  # a repeated frame (AVI), or PyAV's mark of the end
                continue
            errors = 0
            if not index.agrees(packet):
                raise UnreadableVideoError(
                    "the frames of an AVI must lie where its index has them, but from "
                    f"{video.to_us(packet.dts or 0) / 1e6:.2f} s on they do not, and their times are unknown."
                )
            broken = clock.follow(packet.dts) if packet.dts is not None else None
            if broken is not None and broken[1] < broken[0]:
                raise UnreadableVideoError(
                    "a recording must have one clock, but its own restarts after "
                    f"{video.to_us(broken[0]) / 1e6:.2f} s: files were joined there end to end."
                )
            yield packet


class _AviIndex:
    """The index at the end of an AVI, held against its packets: they carry no times, so that a lost one shifts all."""

    def __init__(self, video: OpenVideo) -> None:
        self.entries = video.stream.index_entries if video.container.format.name == "avi" else ()
        self.count = len(self.entries)
        self.next = 0

    def agrees(self, packet: "Packet[VideoStream]") -> bool:
        """Whether a packet's place and its time belong together; so too where the index has neither."""
        if packet.pos is None or packet.dts is None:
            return True
        first = packet.pos - _MOST_CHUNK_HEADER
        while self.next < self.count:
            entry = self.entries[self.next]
            if entry.timestamp >= packet.dts or entry.pos >= first:
                return (entry.timestamp == packet.dts) == (first <= entry.pos <= packet.pos)
            self.next += 1
        return True
