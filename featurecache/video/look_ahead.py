"""Which packets of a stream need not be decoded, when only the pictures at some times are wanted.

Two kinds of pictures are left out: those that no other picture refers to, and all that stand between the last wanted
one and an IDR picture, where the coding begins anew. So a camera's stream with a key picture every second is not
decoded where nothing is sampled, and streams with B-frames cost about half. What is decoded comes out bit for bit
the same.

Not here: reading what packets are (`nal_units.py`), and what to do when something unforeseen turns up
(`decoding.py`).
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from av.packet import Packet
from av.video.stream import VideoStream

from featurecache.video.containers import OpenVideo
from featurecache.video.nal_units import PacketReader

LONGEST_REORDERING = 32
"""Packets: 16 pictures in H.264 and HEVC, each perhaps in two fields."""

_MOST_HELD, _MOST_HELD_BYTES = 1000, 32 << 20  # packets that wait for an IDR picture
_MOST_LEFT_OUT = 1000  # in a row: only a picture that is shown lets go of what is known of those before it

_Packet: TypeAlias = "Packet[VideoStream] | None"
"""None: the container could not be read there."""


@dataclass(frozen=True, slots=True)
class _Role:
    """A packet, and why its picture is decoded: itself, or for others that refer to it.

    Attributes:
        packet: The packet.
        is_disposable: No other picture refers to its own.
        is_idr: No picture from this one on refers to one before it.
        is_wanted: Decoded whatever follows.
    """

    packet: _Packet
    is_disposable: bool = False
    is_idr: bool = False
    is_wanted: bool = True


class LookAhead:
    """Says of each packet whether its picture is to be decoded, knowing the packets shortly before and after it.

    A picture stands until the next one in display order. It may be left out if no sample falls on that time, as
    far as the known packets bound it (those not known can only shorten it), and no picture refers to it that is
    to be decoded: because none can, or because the coding begins anew before the next picture that is wanted.
    Whatever is unusual ends the leaving out, a window before it is reached.
    """

    def __init__(self, video: OpenVideo, reader: PacketReader, sample_ticks: Sequence[int]) -> None:
        self.video = video
        self.sample_ticks = sample_ticks
        self.reader = reader
        self.waiting: deque[_Role] = deque()
        self.held: list[_Role] = []
        self.held_bytes = 0
        self.left_out = 0  # in a row
        self.passed: deque[int] = deque()
        self.known: list[int] = []  # times of waiting and passed packets, sorted
        self.first: int | None = None
        self.all_needed = False
        self.end = 0
        # What the decoder holds back to show pictures in order: where that is too few, it drops some.
        self.reorder_depth = video.stream.codec_context.reorder_depth
        self.held_back: list[int] = []
        self.last_released: int | None = None

    def mark(self, packets: Iterator[_Packet]) -> Iterator[tuple[_Packet, bool]]:
        """The packets as they come, and whether each is to be decoded."""
        for role in self._roles(packets):
            if role.is_idr:
                yield from self._let_go(needed=False)
            if role.is_wanted or (role.is_idr and self.left_out > _MOST_LEFT_OUT):
                yield from self._let_go(needed=True)
                self.left_out = 0
                yield role.packet, True
                continue
            self.held.append(role)
            self.held_bytes += role.packet.size if role.packet is not None else 0
            if len(self.held) > _MOST_HELD or self.held_bytes > _MOST_HELD_BYTES:
                yield from self._let_go(needed=True)
        yield from self._let_go(needed=True)

    def _let_go(self, *, needed: bool) -> Iterator[tuple[_Packet, bool]]:
        """The packets since the last wanted one; `needed` where a picture that is wanted may refer to them."""
        for role in self.held:
            is_decoded = needed and not role.is_disposable
            self.left_out = 0 if is_decoded else self.left_out + 1
            yield role.packet, is_decoded
        self.held.clear()
        self.held_bytes = 0

    def _roles(self, packets: Iterator[_Packet]) -> Iterator[_Role]:
        for packet in packets:
            self.waiting.append(self._meet(packet))
            if len(self.waiting) > LONGEST_REORDERING:
                yield self._release()
        if self.video.is_cut_off(self.end):
            self.all_needed = True
        while self.waiting:
            yield self._release()

    def _meet(self, packet: _Packet) -> _Role:
        """Take note of the next packet; not yet of what is wanted."""
        if packet is None or packet.is_corrupt or packet.pts is None:
            self.all_needed = True
        if self.all_needed or packet is None or packet.pts is None:
            return _Role(packet)
        is_disposable = self.reader.is_disposable(bytes(packet))
        if not self.reader.is_consistent:
            self.all_needed = True
        if packet.is_discard:  # decoded, not shown
            return _Role(packet)
        self.end = max(self.end, packet.pts + (packet.duration or 0))
        insort(self.known, packet.pts)
        if len(self.held_back) < self.reorder_depth:
            heapq.heappush(self.held_back, packet.pts)
        else:
            released = heapq.heappushpop(self.held_back, packet.pts)
            if self.last_released is not None and released < self.last_released:
                self.all_needed = True
            self.last_released = released
        return _Role(packet, is_disposable=is_disposable, is_idr=self.reader.is_idr, is_wanted=not self.reader.is_plain)

    def _release(self) -> _Role:
        role = self.waiting.popleft()
        if self.all_needed or role.packet is None or role.packet.pts is None or role.packet.is_discard:
            return _Role(role.packet)
        pts = role.packet.pts
        if self.first is None:
            self.first = self.known[0]
        self.passed.append(pts)
        is_wanted = role.is_wanted or pts == self.first or self._is_sampled(pts)
        if len(self.passed) > LONGEST_REORDERING:
            del self.known[bisect_left(self.known, self.passed.popleft())]
        return replace(role, is_wanted=is_wanted)

    def _is_sampled(self, pts: int) -> bool:
        following = bisect_right(self.known, pts)
        sample = bisect_left(self.sample_ticks, pts)
        if sample == len(self.sample_ticks):
            return False
        return following == len(self.known) or self.sample_ticks[sample] < self.known[following]
