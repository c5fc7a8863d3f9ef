"""A recording's pictures in display order, each with its exact time and whether it can be trusted.

Choices worth knowing:

- Damage spreads along references: from a lost or flagged picture on, everything decoded later is distrusted
  until the next clean key picture. This covers the damage that FFmpeg notices; flipped bits that still
  decode, and clusters that the Matroska reader skips, cannot be noticed here.
- A picture whose time runs backwards is left out, as a player does. AVI stores no presentation times: there
  the packets' decoding times, sorted, are taken in display order.
- Pictures that nobody asked for and that no picture asked for rests on are not decoded (`decode` with sample
  times; `look_ahead.py`). Where something unforeseen turns up near a picture that was left out, `NeededAfterAll` asks
  for the recording to be read again with all of them: so damage that is noticed has the same consequences either
  way. Damage inside a picture that was left out is not noticed; nothing rests on it.

It is not a seeker: packets up to the last wanted picture are all read. Opening is in `containers.py`, conversion to
RGB in `pictures.py`.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import av.error
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from featurecache.video.containers import OpenVideo
from featurecache.video.look_ahead import LONGEST_REORDERING, LookAhead
from featurecache.video.nal_units import PacketReader

_ONE_PICTURE_PER_PACKET = frozenset({"hevc", "vp9", "av1"})
_READ_ERRORS = 16  # in a row, after which the rest of the file is given up


@dataclass(frozen=True, slots=True)
class Step:
    """The next picture in display order, and what went wrong since the one before.

    Attributes:
        frame: The decoded picture; None in the last step, at the end of the recording, and where it was left out.
        pts: Its presentation time in ticks of the stream.
        order: Its number in decoding order; a picture can only refer to lower ones.
        trusted: False if it, or a picture it may refer to, is damaged.
        lost_from: Time of the first picture lost since the step before, None if none was.
        damaged_from: Pictures of earlier steps with this number or a higher one must be distrusted after all.
        resolved: All pictures with a lower number have been shown or reported lost: no later step can tell of
            damage that a picture with at most this number rests on.
        left_out: The picture is there, but it was not decoded.
    """

    frame: VideoFrame | None
    pts: int
    order: int
    trusted: bool
    lost_from: int | None
    damaged_from: int | None
    resolved: int
    left_out: bool = False

    @property
    def is_end(self) -> bool:
        """Whether no picture follows."""
        return self.frame is None and not self.left_out


class NeededAfterAll(Exception):  # noqa: N818 - a request, handled inside the package
    """A picture that was left out may matter: read the recording again and decode all of them."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """Travels with a packet through the decoder and comes out with its picture."""

    time: int | None
    order: int
    is_key: bool
    fed: int = 0  # packets that the decoder had been given before
    failed: bool = False
    shown: bool = False
    left_out: bool = False
    resolved: bool = False


@dataclass
class _Damage:
    """Which pictures may rest on lost data, by decoding order."""

    first: int | None = None
    last: int = -1
    clean_from: int = -1
    unreported: int | None = None

    def note(self, order: int) -> None:
        self.unreported = order if self.unreported is None else min(self.unreported, order)
        if order >= self.clean_from:
            self.first = order if self.first is None else min(self.first, order)
            self.last = max(self.last, order)

    def allows(self, frame: VideoFrame, ticket: _Ticket) -> bool:
        """Whether a picture, taken in display order, rests on whole data only."""
        if self.first is None or ticket.order < self.first:
            return True
        # A key *packet* may start a gradual refresh: only an intra picture restores trust.
        if ticket.order > self.last and ticket.is_key and frame.key_frame and frame.pict_type == PictureType.I:
            self.first, self.clean_from = None, ticket.order
            return True
        return False

    def report(self) -> int | None:
        order, self.unreported = self.unreported, None
        return order


@dataclass
class _Decoder:
    """Decodes one stream packet by packet and accounts for each packet's picture."""

    video: OpenVideo
    sample_ticks: Sequence[int] | None
    damage: _Damage = field(default_factory=_Damage)
    pending: list[tuple[int, int, _Ticket]] = field(default_factory=list)  # heap by time
    unresolved: deque[_Ticket] = field(default_factory=deque)  # by order
    last_pts: int | None = None
    lost_from: int | None = None
    packets: int = 0
    fed: int = 0
    packets_end: int = 0
    cut_off: bool = False
    last_end: int = 0
    fed_at_last_left_out: int = -LONGEST_REORDERING

    def __post_init__(self) -> None:
        self.timed_by_decoding = self.video.container.format.name == "avi"
        context = self.video.stream.codec_context
        self.strict = context.codec.canonical_name in _ONE_PICTURE_PER_PACKET
        self.look_ahead: LookAhead | None = None
        if self.sample_ticks is not None and not self.timed_by_decoding:
            reader = PacketReader(context.codec.canonical_name, context.extradata)
            if reader.disposable_exist:
                self.look_ahead = LookAhead(self.video, reader, self.sample_ticks)

    def steps(self) -> Iterator[Step | None]:
        """Steps in display order; None where a packet brought no picture, so that the caller may stop."""
        for packet, needed in self._marked():
            if packet is None:
                self._lose(None, self.packets)
                continue
            ticket = _Ticket(
                packet.dts if self.timed_by_decoding else packet.pts, self.packets, packet.is_keyframe, self.fed
            )
            self.packets += 1
            self.unresolved.append(ticket)
            if ticket.time is not None and not packet.is_discard:
                self.packets_end = max(self.packets_end, ticket.time + (packet.duration or 0))
                heapq.heappush(self.pending, (ticket.time, ticket.order, ticket))
            if needed:
                self.fed += 1
                packet.opaque = ticket
                yield from self._show(self._decode(packet, ticket))
            else:
                ticket.left_out = True
                self.fed_at_last_left_out = self.fed
                if self.last_pts is not None and ticket.time is not None and ticket.time < self.last_pts:
                    self._something_unforeseen()
            yield None
        if self.packets and self.video.is_cut_off(self.packets_end):
            self.cut_off = True
            self._distrust(self.packets - 1)  # perhaps incomplete, which a decoder may not notice
        try:
            rest = self.video.stream.decode(None)
        except av.error.FFmpegError:
            rest = []
            self._lose(None, self.packets)
        yield from self._show(rest)
        yield from self._drop_pending(None, None)
        yield Step(None, 0, self.packets, False, self.lost_from, self.damage.report(), self.packets)

    def _marked(self) -> "Iterator[tuple[Packet[VideoStream] | None, bool]]":
        """The packets, and whether each is to be decoded."""
        if self.look_ahead is None:
            return ((packet, True) for packet in self._read())
        return self.look_ahead.mark(self._read())

    def _something_unforeseen(self) -> None:
        """Ask for all pictures, unless none that could still be in the decoder was left out."""
        if self.fed - self.fed_at_last_left_out < LONGEST_REORDERING:
            raise NeededAfterAll
        if self.look_ahead is not None:
            self.look_ahead.all_needed = True

    def _distrust(self, order: int) -> None:
        self._something_unforeseen()
        self.damage.note(order)

    def _decode(self, packet: "Packet[VideoStream]", ticket: _Ticket) -> list[VideoFrame]:
        try:
            if not packet.is_corrupt:
                return self.video.stream.decode(packet)
        except av.error.FFmpegError:
            pass  # accounted for below
        ticket.failed = True
        self._distrust(ticket.order)
        if ticket.time is None or self.timed_by_decoding:
            self._lose(None, ticket.order)
        return []

    def _read(self) -> "Iterator[Packet[VideoStream] | None]":
        """The stream's packets that hold data; None where the container could not be read."""
        errors = 0
        while errors < _READ_ERRORS:
            try:
                for packet in self.video.container.demux(self.video.stream):
                    if packet.size:  # none: a repeated picture (AVI), or PyAV's mark of the end
                        errors = 0
                        yield packet
                return
            except av.error.ExitError:
                yield None
                return
            except av.error.FFmpegError:
                errors += 1
                yield None

    def _lose(self, time: int | None, order: int) -> None:
        """Note a lost picture; without a time it may have stood anywhere after the last one."""
        self._distrust(order)
        if time is None:
            time = self.last_pts if self.last_pts is not None else -(2**63)
        self.lost_from = time if self.lost_from is None else min(self.lost_from, time)

    def _resolve(self) -> int:
        """Below which number every picture has been shown or lost; one too old to be shown counts as such."""
        oldest = self.fed - LONGEST_REORDERING  # a decoder that is given nothing shows nothing
        while self.unresolved and (self.unresolved[0].resolved or self.unresolved[0].fed < oldest):
            self.unresolved.popleft()
        return self.unresolved[0].order if self.unresolved else self.packets

    def _show(self, frames: list[VideoFrame]) -> Iterator[Step]:
        for frame in frames:
            ticket = frame.opaque
            if not isinstance(ticket, _Ticket):  # a decoder that loses track: assume the worst order
                ticket = _Ticket(None, self.packets, False)
            ticket.shown = True
            pts = self._time_of(frame, ticket)
            if pts is None:
                self._lose(None, ticket.order)
                continue
            if self.last_pts is None or pts >= self.last_pts:
                yield from self._drop_pending(pts, ticket)
            if frame.is_corrupt:
                self._distrust(ticket.order)
            ticket.resolved = True
            trusted = self.damage.allows(frame, ticket) and not frame.is_corrupt
            if self.last_pts is not None and pts < self.last_pts:
                self._something_unforeseen()
                continue
            if self.cut_off and self.last_pts is not None and self.last_end < pts:
                self._lose(self.last_end, self.packets)  # pictures decoded later, shown earlier, and not in the file
            yield Step(frame, pts, ticket.order, trusted, self.lost_from, self.damage.report(), self._resolve())
            self.last_pts, self.lost_from = pts, None
            self.last_end = pts + (frame.duration or self.video.frame_interval)

    def _time_of(self, frame: VideoFrame, shown: _Ticket) -> int | None:
        if not self.timed_by_decoding:
            return frame.pts if frame.pts is not None else frame.dts
        while self.pending:
            time, order, ticket = heapq.heappop(self.pending)
            if not ticket.failed and order >= shown.order - LONGEST_REORDERING:
                return time
        return None

    def _drop_pending(self, pts: int | None, shown: _Ticket | None) -> Iterator[Step]:
        """Packets whose picture should have come before `pts` (None: before the end) and didn't.

        Yields:
            Steps for those that were left out.
        """
        if self.timed_by_decoding:
            return
        while self.pending and (pts is None or self.pending[0][0] < pts):
            time, order, ticket = heapq.heappop(self.pending)
            ticket.resolved = True
            if ticket.left_out:
                yield Step(
                    None, time, order, True, self.lost_from, self.damage.report(), self._resolve(), left_out=True
                )
                self.last_pts, self.lost_from, self.last_end = time, None, time + self.video.frame_interval
                continue
            if ticket.shown:
                continue
            if not (ticket.failed or self.strict):
                self._something_unforeseen()
                continue
            if self.last_pts is not None and time <= self.last_pts:
                continue
            self.lost_from = time if self.lost_from is None else min(self.lost_from, time)
            # Nothing that is shown after a key picture refers to what is decoded after it and shown before.
            if not (shown is not None and shown.is_key and ticket.order > shown.order):
                self._distrust(ticket.order)


def decode(video: OpenVideo, sample_ticks: Sequence[int] | None = None) -> Iterator[Step | None]:
    """Decode a recording from its first picture on, surviving damaged packets.

    Args:
        video: A recording just opened.
        sample_ticks: Ascending times in ticks of the stream: pictures that stand at none of them may be left out.
            None: every picture is decoded.

    Yields:
        Steps in display order, the last one without a picture; None after each packet, so that the caller
        can look at the clock.

    Raises:
        NeededAfterAll: If a picture was left out that may matter. Read again without `sample_ticks`.
    """
    return _Decoder(video, sample_ticks).steps()
