"""A recording's pictures in display order, each with its exact time and whether it can be trusted.

Choices worth knowing:

- Damage spreads along references: from a lost or flagged picture on, everything decoded later is distrusted
  until the next clean key picture. This covers the damage that FFmpeg notices; flipped bits that still
  decode, and clusters that the Matroska reader skips, cannot be noticed here.
- A picture whose time runs backwards is left out, as a player does. AVI stores no presentation times: there
  the packets' decoding times, sorted, are taken in display order.
- Pictures that nobody asked for and that no picture asked for rests on are not decoded (`decode` with sample
  times; `look_ahead.py`). Where something unforeseen turns up near a picture that was left out,
  `SkippedFrameRequired` asks for the recording to be read again with all of them: so damage that is noticed has the
  same consequences either way. Damage inside a picture that was left out is not noticed; nothing rests on it.

It is not a seeker: packets up to the last wanted picture are all read. Opening is in `containers.py`, conversion to
RGB in `pictures.py`.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import av.error
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from featurecache.video.containers import OpenVideo
from featurecache.video.damage import Damage, PacketState
from featurecache.video.look_ahead import LONGEST_REORDERING, LookAhead
from featurecache.video.nal_units import PacketReader
from featurecache.video.packets import read_packets
from featurecache.video.reports import reported

_UNUSUAL = 1.5  # times the distance between the pictures before
_ONE_PICTURE_PER_PACKET = frozenset({"hevc", "vp9", "av1"})


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """The next picture in display order, and what went wrong since the one before.

    Attributes:
        frame: The decoded picture; None in the last one, at the end of the recording, and where it was left out.
        pts: Its presentation time in ticks of the stream.
        order: Its number in decoding order; a picture can only refer to lower ones.
        trusted: False if it, or a picture it may refer to, is damaged.
        lost_from: Time of the first picture lost since the frame before, None if none was.
        damaged_from: Pictures of earlier frames with this number or a higher one must be distrusted after all.
        resolved: All pictures with a lower number have been shown or reported lost: no later frame can tell of
            damage that a picture with at most this number rests on.
        late_from: Time of the earliest picture that the decoder handed out too late since the frame before, when one
            behind it had been shown: samples from there on got the wrong one. None if none was.
        left_out: The picture is there, but it was not decoded.
    """

    frame: VideoFrame | None
    pts: int
    order: int
    trusted: bool
    lost_from: int | None
    damaged_from: int | None
    resolved: int
    late_from: int | None = None
    left_out: bool = False

    @property
    def is_end(self) -> bool:
        """Whether no picture follows."""
        return self.frame is None and not self.left_out


class SkippedFrameRequired(Exception):  # noqa: N818 - a request, handled inside the package
    """A picture that was left out may matter: read the recording again and decode all of them."""


@dataclass
class _Decoder:
    """Decodes one stream packet by packet and accounts for each packet's picture."""

    video: OpenVideo
    sample_ticks: Sequence[int] | None
    damage: Damage = field(default_factory=Damage)
    pending: list[tuple[int, int, PacketState]] = field(default_factory=list)  # heap by time
    unresolved: deque[PacketState] = field(default_factory=deque)  # by order
    last_pts: int | None = None
    lost_from: int | None = None
    late_from: int | None = None
    key: PacketState | None = None
    habits: frozenset[str] = frozenset()  # what FFmpeg reports of every frame of this stream
    usual_gap: int | None = None
    gap: tuple[int, int] | None = None  # time of the picture before the last unusual gap, and `submitted` by then
    hole: int | None = None  # number of the packet in front of which something is missing
    packets: int = 0
    submitted: int = 0
    packets_end: int = 0
    cut_off: bool = False
    last_end: int = 0
    submitted_at_last_left_out: int = -LONGEST_REORDERING

    def __post_init__(self) -> None:
        self.timed_by_decoding = self.video.container.format.name == "avi"
        context = self.video.stream.codec_context
        reader = PacketReader(context.codec.canonical_name, context.extradata)
        self.strict = context.codec.canonical_name in _ONE_PICTURE_PER_PACKET or reader.only_frames
        self.look_ahead: LookAhead | None = None
        if self.sample_ticks is not None and not self.timed_by_decoding and reader.disposable_exist:
            self.look_ahead = LookAhead(self.video, reader, self.sample_ticks)

    def frames(self) -> Iterator[DecodedFrame | None]:
        """Steps in display order; None where a packet brought no picture, so that the caller may stop."""
        for packet, needed in self._marked():
            if packet is None:
                self._lose_after(self.packets)
                continue
            state = PacketState(
                packet.dts if self.timed_by_decoding else packet.pts, self.packets, packet.is_keyframe, self.submitted
            )
            self.packets += 1
            self.unresolved.append(state)
            if state.time is not None and not packet.is_discard:
                self.packets_end = max(self.packets_end, state.time + (packet.duration or 0))
                heapq.heappush(self.pending, (state.time, state.order, state))
            if state.is_key and state.time is not None:
                self.key = state
            if needed:
                self.submitted += 1
                packet.opaque = state
                yield from self._show(self._decode(packet, state))
            else:
                state.left_out = True
                self.submitted_at_last_left_out = self.submitted
                if self.last_pts is not None and state.time is not None and state.time < self.last_pts:
                    self._something_unforeseen()
            yield None
        if self.packets and self.video.is_cut_off(self.packets_end):
            self.cut_off = True
            self._distrust(self.packets - 1)  # perhaps incomplete, which a decoder may not notice
        try:
            rest = self.video.stream.decode(None)
        except av.error.FFmpegError:
            rest = []
            self._lose_after(self.packets)
        yield from self._show(rest)
        yield from self._drop_pending(None, None)
        yield replace(self._decoded(None, 0, self.packets, False), resolved=self.packets)

    def _marked(self) -> "Iterator[tuple[Packet[VideoStream] | None, bool]]":
        """The packets, and whether each is to be decoded."""
        if self.look_ahead is None:
            return ((packet, True) for packet in read_packets(self.video))
        return self.look_ahead.mark(read_packets(self.video))

    def _something_unforeseen(self) -> None:
        """Ask for all pictures, unless none that could still be in the decoder was left out."""
        if self.submitted - self.submitted_at_last_left_out < LONGEST_REORDERING:
            raise SkippedFrameRequired
        if self.look_ahead is not None:
            self.look_ahead.all_needed = True

    def _distrust_coded(self, state: PacketState) -> None:
        """Distrust a picture whose decoding brought a report, and those that may refer to it."""
        key = self.key
        if key is None or key.time is None or state.time is None or state.time >= key.time:
            self._distrust(state.order)
            return
        # It leads a key picture: what is shown from that one on refers to none of those that lead it.
        self._something_unforeseen()
        self.damage.note_leading(state.order, key.order, key.time)

    def _distrust(self, order: int) -> None:
        self._something_unforeseen()
        self._recall_gap()
        self.damage.note(order, order)

    def _decode(self, packet: "Packet[VideoStream]", state: PacketState) -> list[VideoFrame]:
        frames: list[VideoFrame] = []
        try:
            if not packet.is_corrupt:
                with reported() as reports:
                    frames = self.video.stream.decode(packet)
                if state.order == 0:
                    self.habits = reports.habits()
                if reports.concern(self.habits):
                    self._distrust_coded(state)
                return frames
        except av.error.FFmpegError:
            pass  # accounted for below
        state.failed = True
        self._distrust(state.order)
        if state.time is None or self.timed_by_decoding or packet.is_corrupt:
            self._lose_after(state.order)
        return frames

    def _lose(self, time: int, order: int) -> None:
        """Note a picture that is lost, or shown too late."""
        self._distrust(order)
        self.lost_from = time if self.lost_from is None else min(self.lost_from, time)

    def _lose_after(self, order: int) -> None:
        """Note that pictures are lost in front of packet `order`, nobody knows how many and when they stood."""
        self._something_unforeseen()
        self._recall_gap()
        self.damage.note(order, order - 1)
        self.hole = order

    def _resolve(self) -> int:
        """Below which number every picture has been shown or lost; one too old to be shown counts as such."""
        oldest = self.submitted - LONGEST_REORDERING  # a decoder that is given nothing shows nothing
        while self.unresolved and (self.unresolved[0].resolved or self.unresolved[0].submitted < oldest):
            self.unresolved.popleft()
        return self.unresolved[0].order if self.unresolved else self.packets

    def _show(self, frames: list[VideoFrame]) -> Iterator[DecodedFrame]:
        for frame in frames:
            state = frame.opaque
            if not isinstance(state, PacketState):  # a decoder that loses track: assume the worst order
                state = PacketState(None, self.packets, False)
            state.shown = True
            pts = self._time_of(frame, state)
            if pts is None:
                self._lose_after(state.order)
                continue
            if self.last_pts is None or pts >= self.last_pts:
                yield from self._drop_pending(pts, state)
            if frame.is_corrupt:
                self._distrust(state.order)
            state.resolved = True
            trusted = self.damage.allows(frame, state) and not frame.is_corrupt
            if self.last_pts is not None and pts < self.last_pts:
                self._something_unforeseen()
                self.late_from = pts if self.late_from is None else min(self.late_from, pts)
                continue
            if self.cut_off and self.last_pts is not None and self.last_end < pts:
                self._lose(self.last_end, self.packets)  # pictures decoded later, shown earlier, and not in the file
            self._note_gap(pts)
            yield self._decoded(frame, pts, state.order, trusted)
            if self.hole is not None and state.order >= self.hole and trusted:
                self.hole = None
            self.last_end = pts + (frame.duration or self.video.frame_interval)

    def _note_gap(self, pts: int) -> None:
        """Note an unusual distance between two pictures: beside damage it is taken for lost ones."""
        if self.last_pts is None:
            return
        if self.usual_gap is not None and pts - self.last_pts > _UNUSUAL * self.usual_gap:
            self.gap = self.last_pts, self.submitted
            if self.damage.first is not None:
                self.lost_from = self.last_pts if self.lost_from is None else min(self.lost_from, self.last_pts)
        else:
            self.usual_gap = pts - self.last_pts

    def _recall_gap(self) -> None:
        """Damage has turned up: what was shown last in front of an unusual gap may have stood for lost pictures."""
        if self.gap is not None and self.submitted - self.gap[1] < LONGEST_REORDERING:
            self.late_from = self.gap[0] if self.late_from is None else min(self.late_from, self.gap[0])

    def _decoded(
        self, frame: VideoFrame | None, pts: int, order: int, trusted: bool, *, left_out: bool = False
    ) -> DecodedFrame:
        """The next frame, with whatever went wrong since the last one."""
        if self.hole is not None:  # what is missing may have stood anywhere after the last picture
            self.lost_from = self.last_pts if self.last_pts is not None else -(2**63)
        decoded = DecodedFrame(
            frame,
            pts,
            order,
            trusted,
            self.lost_from,
            self.damage.report(),
            self._resolve(),
            late_from=self.late_from,
            left_out=left_out,
        )
        self.last_pts, self.lost_from, self.late_from = pts, None, None
        return decoded

    def _time_of(self, frame: VideoFrame, shown: PacketState) -> int | None:
        if not self.timed_by_decoding:
            return frame.pts if frame.pts is not None else frame.dts
        if self.damage.ends_with(frame, shown):
            # The decoder may have dropped pictures without a word: all decoded before this one are shown before it.
            ahead = sum(state.shown and state.order > shown.order for state in self.unresolved)
            number = shown.order + ahead
            own = next((state.time for state in self.unresolved if state.order == number), None)
            while own is not None and self.pending and self.pending[0][0] < own:
                heapq.heappop(self.pending)
        while self.pending:
            time, order, state = heapq.heappop(self.pending)
            if not state.failed and order >= shown.order - LONGEST_REORDERING:
                return time
        return None

    def _drop_pending(self, pts: int | None, shown: PacketState | None) -> Iterator[DecodedFrame]:
        """Packets whose picture should have come before `pts` (None: before the end) and didn't.

        Yields:
            Steps for those that were left out.
        """
        if self.timed_by_decoding:
            return
        while self.pending and (pts is None or self.pending[0][0] < pts):
            time, order, state = heapq.heappop(self.pending)
            state.resolved = True
            if state.left_out:
                yield self._decoded(None, time, order, True, left_out=True)
                self.last_end = time + self.video.frame_interval
                continue
            if state.shown:
                continue
            if not (state.failed or self.strict or self.damage.first is not None):
                self._something_unforeseen()
                continue
            if self.last_pts is not None and time <= self.last_pts:
                continue
            self.lost_from = time if self.lost_from is None else min(self.lost_from, time)
            # Nothing that is shown after a key picture refers to what is decoded after it and shown before.
            if not (shown is not None and shown.is_key and state.order > shown.order):
                self._distrust(state.order)


def decode(video: OpenVideo, sample_ticks: Sequence[int] | None = None) -> Iterator[DecodedFrame | None]:
    """Decode a recording from its first picture on, surviving damaged packets.

    Args:
        video: A recording just opened.
        sample_ticks: Ascending times in ticks of the stream: pictures that stand at none of them may be left out.
            None: every picture is decoded.

    Yields:
        Steps in display order, the last one without a picture; None after each packet, so that the caller
        can look at the clock.

    Raises:
        SkippedFrameRequired: If a picture was left out that may matter. Read again without `sample_ticks`.
    """
    return _Decoder(video, sample_ticks).frames()
