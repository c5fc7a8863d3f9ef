"""A recording's pictures in display order, each with its exact time and whether it can be trusted.

Choices worth knowing:

- Only regular local files of known video containers are opened (`CONTAINERS`): FFmpeg may use no protocol
  but `file`, so a playlist, a concat script or a URL that calls itself .mp4 is refused before it can ask
  for anything else. External references inside MOV files stay unread, which is FFmpeg's default.
- The stream is the one FFmpeg calls best (default flag, then bit rate and frames seen), never a cover
  picture or a thumbnail track.
- One decoding thread: FFmpeg then reports an error for the packet that caused it, and the recordings of a
  project keep the other cores busy.
- Damage spreads along references: from a lost or flagged picture on, everything decoded later is distrusted
  until the next clean key picture. This covers the damage that FFmpeg notices; flipped bits that still
  decode, and clusters that the Matroska reader skips, cannot be noticed here.
- A picture whose time runs backwards is left out, as a player does. AVI stores no presentation times: there
  the packets' decoding times, sorted, are taken in display order.
- Mirroring and quarter turns of the display matrix are applied. Sample aspect ratio and interlacing are not.

- Pictures that nobody asked for and that no other picture refers to are not decoded (`decode` with sample
  times): about half of the work where there are B-frames. Which these are is known from the packets a little
  ahead of decoding. The pictures that are decoded come out bit for bit the same. Where something unforeseen turns
  up near a picture that was left out, `NeededAfterAll` asks for the recording to be read again with all of them:
  so damage that is noticed has the same consequences either way. Damage inside a picture that was left out is
  not noticed; nothing rests on it.

It is not a seeker: packets up to the last wanted picture are all read.
"""

import heapq
import math
import stat
import struct
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from featurecache.errors import UnreadableVideoError, UnsafeFileError
from featurecache.nal_units import PacketReader

MAX_PIXELS = 8192 * 4320
"""Largest picture that is decoded unless asked otherwise: 8K cinema, 106 MB as RGB."""

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,mxf,mxf_opatom,dv,ivf"
_ONE_PICTURE_PER_PACKET = frozenset({"hevc", "vp9", "av1"})
_NO_HEADER = frozenset({"mpeg", "mpegts"})  # FFmpeg's durations are estimates there
_NOT_A_RECORDING = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_GENERATE_PTS = 0x0001  # AVFMT_FLAG_GENPTS
_READ_TIMEOUT_S = 60.0  # for one read of the container, where a hostile index could loop for ever
_READ_ERRORS = 16  # in a row, after which the rest of the file is given up
_PADDING_PIXELS = 64 * 16384  # FFmpeg's limit counts rows that are padded to 64 pixels
_CUT_OFF_US = 100_000  # that the header may promise beyond the last packet
_LONGEST_REORDERING = 32  # packets: 16 pictures in H.264 and HEVC, each perhaps in two fields
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class OpenVideo:
    """An opened recording and the stream that is read.

    Attributes:
        container: The file.
        stream: Its video stream.
        zero_us: The container's start time, which is zero on the recording's clock.
        time_base: Length of one tick of the stream, in seconds.
    """

    container: InputContainer
    stream: VideoStream
    zero_us: int
    time_base: Fraction

    def to_us(self, ticks: int) -> int:
        """The stream's ticks on the recording's clock, to the nearest microsecond."""
        unit = 2 * self.time_base.denominator
        return (2 * ticks * self.time_base.numerator * _MICROSECONDS + unit // 2) // unit - self.zero_us

    def to_ticks(self, time: int, parts: int = 1) -> int:
        """The last tick of the stream that is not after `time / parts` microseconds on the recording's clock."""
        scaled = (time + parts * self.zero_us) * self.time_base.denominator
        return scaled // (parts * self.time_base.numerator * _MICROSECONDS)

    @property
    def declared_end_us(self) -> int | None:
        """Where the header says the video (or else the whole file) ends, None where it doesn't say."""
        if self.container.format.name in _NO_HEADER:
            return None
        if self.stream.duration is not None and self.stream.duration > 0:
            return self.to_us((self.stream.start_time or 0) + self.stream.duration)
        if self.container.duration is not None and self.container.duration > self.zero_us:
            # The formats without a duration per stream count from zero, not from their first picture.
            return self.container.duration - max(self.zero_us, 0)
        return None

    def is_cut_off(self, end: int) -> bool:
        """Whether more was meant to follow after the last packet, which ends at `end` ticks."""
        if self.container.format.name == "mpegts":
            return all(self.container.size % length for length in (188, 192, 204))
        return self.declared_end_us is not None and self.declared_end_us - _CUT_OFF_US > self.to_us(end)

    @property
    def frame_interval(self) -> int:
        """One picture at the average rate, in ticks; 0 where the rate is unknown."""
        rate = self.stream.average_rate
        return round(1 / (rate * self.time_base)) if rate else 0


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


@contextmanager
def open_video(path: Path, *, max_pixels: int) -> Iterator[OpenVideo]:
    """Open a local recording and find its video stream; nothing is decoded yet.

    Raises:
        UnreadableVideoError: If it is no regular file, no video, or its pictures are too large.
        UnsafeFileError: If it is of a kind that may refer to other files or hosts.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableVideoError(f"a recording must be a readable file, but {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableVideoError(f"a recording must be a regular file, but '{path}' is a folder, pipe or device.")
    if status.st_size == 0:
        raise UnreadableVideoError(f"a recording must hold a video, but '{path}' is empty. Copy it again.")
    try:
        container = av.open(
            f"file:{path.absolute()}",
            options={"max_pixels": str(max_pixels + _PADDING_PIXELS)},
            container_options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
            metadata_errors="replace",
            timeout=_READ_TIMEOUT_S,
        )
    except av.error.ArgumentError as error:
        raise UnsafeFileError(
            f"a recording must be a video file of a known container, but '{path}' is of another kind "
            "(a playlist or an image?) or its header is invalid. Convert it to MP4."
        ) from error
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(
            f"a recording must be a readable video, but '{path}' cannot be opened ({error.strerror})."
        ) from error
    with container:
        stream = _choose_stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise UnreadableVideoError(
                f"a picture must have at most {max_pixels} pixels, but '{path}' has {width} x {height}."
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.copy_opaque = True
        stream.codec_context.options = {"max_pixels": str(max_pixels + _PADDING_PIXELS)}
        if container.format.name == "avi":
            container.flags &= ~_GENERATE_PTS  # they would be guessed as if no picture were reordered
        yield OpenVideo(container, stream, container.start_time or 0, stream.time_base or Fraction(1, _MICROSECONDS))


def _choose_stream(container: InputContainer, path: Path) -> VideoStream:
    usable = [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & _NOT_A_RECORDING
    ]
    if not usable:
        raise UnreadableVideoError(f"a recording must hold a video stream that can be decoded, but '{path}' has none.")
    best = container.streams.best("video")
    return best if isinstance(best, VideoStream) and best in usable else usable[0]


@dataclass(eq=False, slots=True)
class _Ticket:
    """Travels with a packet through the decoder and comes out with its picture."""

    time: int | None
    order: int
    is_key: bool
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


class _LookAhead:
    """Says of each packet whether its picture is to be decoded, knowing the packets shortly before and after it.

    A picture stands until the next one in display order. It may be left out if no sample falls on that time, as
    far as the known packets bound it (those not known can only shorten it), and no picture refers to it.
    Whatever is unusual ends the leaving out, a window before it is reached.
    """

    def __init__(self, video: OpenVideo, reader: PacketReader, sample_ticks: Sequence[int]) -> None:
        self.video = video
        self.sample_ticks = sample_ticks
        self.reader = reader
        self.waiting: deque[tuple[Packet[VideoStream] | None, bool]] = deque()
        self.passed: deque[int] = deque()
        self.known: list[int] = []  # times of waiting and passed packets, sorted
        self.first: int | None = None
        self.all_needed = False
        self.end = 0
        # What the decoder holds back to show pictures in order: where that is too few, it drops some.
        self.reorder_depth = video.stream.codec_context.reorder_depth
        self.held_back: list[int] = []
        self.last_released: int | None = None

    def mark(
        self, packets: "Iterator[Packet[VideoStream] | None]"
    ) -> "Iterator[tuple[Packet[VideoStream] | None, bool]]":
        for packet in packets:
            self.waiting.append((packet, self._meet(packet)))
            if len(self.waiting) > _LONGEST_REORDERING:
                yield self._release()
        if self.video.is_cut_off(self.end):
            self.all_needed = True
        while self.waiting:
            yield self._release()

    def _meet(self, packet: "Packet[VideoStream] | None") -> bool:
        """Take note of the next packet; whether its picture could be left out."""
        if packet is None or packet.is_corrupt or packet.pts is None:
            self.all_needed = True
        if self.all_needed or packet is None or packet.pts is None:
            return False
        is_disposable = self.reader.is_disposable(bytes(packet))
        if not self.reader.is_consistent:
            self.all_needed = True
        if packet.is_discard:  # decoded, not shown
            return False
        self.end = max(self.end, packet.pts + (packet.duration or 0))
        insort(self.known, packet.pts)
        if len(self.held_back) < self.reorder_depth:
            heapq.heappush(self.held_back, packet.pts)
        else:
            released = heapq.heappushpop(self.held_back, packet.pts)
            if self.last_released is not None and released < self.last_released:
                self.all_needed = True
            self.last_released = released
        return is_disposable

    def _release(self) -> "tuple[Packet[VideoStream] | None, bool]":
        packet, is_disposable = self.waiting.popleft()
        if self.all_needed or packet is None or packet.pts is None or packet.is_discard:
            return packet, True
        if self.first is None:
            self.first = self.known[0]
        self.passed.append(packet.pts)
        needed = not is_disposable or packet.pts == self.first or self._is_sampled(packet.pts)
        if len(self.passed) > _LONGEST_REORDERING:
            del self.known[bisect_left(self.known, self.passed.popleft())]
        return packet, needed

    def _is_sampled(self, pts: int) -> bool:
        following = bisect_right(self.known, pts)
        sample = bisect_left(self.sample_ticks, pts)
        if sample == len(self.sample_ticks):
            return False
        return following == len(self.known) or self.sample_ticks[sample] < self.known[following]


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
    packets_end: int = 0
    cut_off: bool = False
    last_end: int = 0
    last_left_out: int = -_LONGEST_REORDERING

    def __post_init__(self) -> None:
        self.timed_by_decoding = self.video.container.format.name == "avi"
        context = self.video.stream.codec_context
        self.strict = context.codec.canonical_name in _ONE_PICTURE_PER_PACKET
        self.look_ahead: _LookAhead | None = None
        if self.sample_ticks is not None and not self.timed_by_decoding:
            reader = PacketReader(context.codec.canonical_name, context.extradata)
            if reader.disposable_exist:
                self.look_ahead = _LookAhead(self.video, reader, self.sample_ticks)

    def steps(self) -> Iterator[Step | None]:
        """Steps in display order; None where a packet brought no picture, so that the caller may stop."""
        for packet, needed in self._marked():
            if packet is None:
                self._lose(None, self.packets)
                continue
            ticket = _Ticket(packet.dts if self.timed_by_decoding else packet.pts, self.packets, packet.is_keyframe)
            self.packets += 1
            self.unresolved.append(ticket)
            if ticket.time is not None and not packet.is_discard:
                self.packets_end = max(self.packets_end, ticket.time + (packet.duration or 0))
                heapq.heappush(self.pending, (ticket.time, ticket.order, ticket))
            if needed:
                packet.opaque = ticket
                yield from self._show(self._decode(packet, ticket))
            else:
                ticket.left_out = True
                self.last_left_out = ticket.order
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
        if self.packets - self.last_left_out <= _LONGEST_REORDERING:
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
        oldest = self.packets - _LONGEST_REORDERING
        while self.unresolved and (self.unresolved[0].resolved or self.unresolved[0].order < oldest):
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
            if not ticket.failed and order >= shown.order - _LONGEST_REORDERING:
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


def last_packet_ends_us(video: OpenVideo) -> tuple[int | None, int]:
    """Where the video stream's packets end, and where any stream's do, on the recording's clock.

    Reads from the last key packet, or from the start where that finds no picture. Ends the use of `video`.
    """
    for target in (2**62, 0):
        try:
            video.container.seek(target)
        except av.error.FFmpegError:
            if target == 0:
                break
            continue
        video_end, any_end = None, 0
        try:
            for packet in video.container.demux():
                time = packet.pts if packet.pts is not None else packet.dts
                if not packet.size or time is None or packet.time_base is None:
                    continue
                length = packet.duration or 0
                if packet.stream_index == video.stream.index:
                    length = length or video.frame_interval
                ticks_us = (time + length) * packet.time_base * _MICROSECONDS
                end = math.floor(ticks_us + Fraction(1, 2)) - video.zero_us
                any_end = max(any_end, end)
                if packet.stream_index == video.stream.index:
                    video_end = end if video_end is None else max(video_end, end)
        except av.error.FFmpegError:
            pass  # what was read until here is what there is
        if video_end is not None:
            return video_end, any_end
    return None, 0


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is brought upright: transpose, then mirror."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @property
    def rotation_deg(self) -> int:
        """The clockwise turn to upright; a mirror is not told."""
        if self.transpose:
            return 270 if self.flip_rows else 90
        return 180 if self.flip_rows and self.flip_columns else 0

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A view of the picture (H, W, 3), upright."""
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        if self.flip_rows:
            picture = picture[::-1]
        return picture[:, ::-1] if self.flip_columns else picture


def orientation_of(frame: VideoFrame) -> Orientation:
    """The nearest of the eight upright orientations that the frame's display matrix asks for.

    The matrix maps a stored point (x, y) to (a x + c y, b x + d y), y downwards.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(False, False, False)
    a, b, _, c, d = struct.unpack("=5i", bytes(cast(SideData, matrix))[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """The picture upright as RGB, shape (H, W, 3), contiguous; equal to `frame.to_ndarray(format="rgb24")`.

    Colour matrix and range are those the stream declares, by FFmpeg's defaults where it declares none.
    """
    picture = np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
    return np.ascontiguousarray(orientation_of(frame).apply(picture))
