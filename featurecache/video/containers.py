"""Opening a local recording safely: its video stream, its clock, and where it ends. Nothing is decoded here.

- Only regular local files of known video containers are opened (`CONTAINERS`): FFmpeg may use no protocol
  but `file`, and `subfile` for the part of a file in front of zeros, so a playlist, a concat script or a URL that
  calls itself .mp4 is refused before it can ask for anything else. External references inside MOV files stay unread,
  which is FFmpeg's default.
- The stream is the one FFmpeg calls best (default flag, then bit rate and frames seen), never a cover
  frame or a thumbnail track.
- One decoding thread: FFmpeg then reports an error for the packet that caused it, and the recordings of a
  project keep the other cores busy.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from featurecache.errors import UnreadableVideoError, UnsafeFileError
from featurecache.files import forbid_core_dumps
from featurecache.video.layout import Layout, lacks_index, layout_of
from featurecache.video.reports import listen, reported

MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded unless asked otherwise: 8K cinema, 106 MB as RGB."""

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,mxf,mxf_opatom,dv,ivf"
_NO_HEADER = frozenset({"mpeg", "mpegts"})  # FFmpeg's durations are estimates there
_NOT_A_RECORDING = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_GENERATE_PTS = 0x0001  # AVFMT_FLAG_GENPTS
_READ_TIMEOUT_S = 60.0  # for one read of the container, where a hostile index could loop for ever
_PADDING_PIXELS = 64 * 16384  # FFmpeg's limit counts rows that are padded to 64 pixels
_CUT_OFF_US = 100_000  # that the header may promise beyond the last packet
_MICROSECONDS = 1_000_000
_METADATA: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""PyAV before 19 fails at names and comments that are not UTF-8, unless it is told otherwise."""


@dataclass(frozen=True)
class OpenVideo:
    """An opened recording and the stream that is read.

    Attributes:
        container: The file.
        stream: Its video stream.
        layout: What the container's top level says of the file.
        is_damaged: The demuxer reported errors in what it read ahead when it opened the file, nobody knows where.
        zero_us: The container's start time, which is zero on the recording's clock.
        time_base: Length of one tick of the stream, in seconds.
    """

    container: InputContainer
    stream: VideoStream
    layout: Layout
    is_damaged: bool
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
            # The formats without a duration per stream count from zero, not from their first frame.
            return self.container.duration - max(self.zero_us, 0)
        return None

    def is_cut_off(self, end: int) -> bool:
        """Whether more was meant to follow after the last packet, which ends at `end` ticks."""
        if self.layout.missing:
            return True
        if self.container.format.name == "mpegts":
            return all(self.container.size % length for length in (188, 192, 204))
        return self.declared_end_us is not None and self.declared_end_us - _CUT_OFF_US > self.to_us(end)

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second, on average; 0 where the rate is unknown."""
        return _fraction(self.stream.average_rate)

    @property
    def frame_interval(self) -> int:
        """One frame at the average rate, in ticks; 0 where the rate is unknown."""
        rate = self.frame_rate
        return round(1 / (rate * self.time_base)) if rate else 0


@contextmanager
def open_video(path: Path, *, max_pixels: int, timeout_s: float = _READ_TIMEOUT_S) -> Iterator[OpenVideo]:
    """Open a local recording and find its video stream; nothing is decoded yet.

    From here on a crash of this process writes no memory to disk: it may hold frames.

    Args:
        path: The file.
        max_pixels: Larger frames are refused.
        timeout_s: Bound on opening the container, and on each read of it.

    Raises:
        UnreadableVideoError: If it is no regular file, no video, or its frames are too large.
        UnsafeFileError: If it is of a kind that may refer to other files or hosts.
    """
    forbid_core_dumps()
    listen()
    layout = _layout_of_file(path)
    url, protocols = f"file:{path.absolute()}", "file"
    if layout.read_to < layout.size:
        url, protocols = f"subfile,,start,0,end,{layout.read_to},,:{url}", "file,subfile"
    try:
        with reported() as reports:
            container = av.open(
                url,
                options={"max_pixels": str(max_pixels + _PADDING_PIXELS)},
                container_options={"protocol_whitelist": protocols, "format_whitelist": CONTAINERS},
                timeout=timeout_s,
                **_METADATA,
            )
    except av.error.ArgumentError as error:
        raise UnsafeFileError(
            f"a recording must be a video file of a known container, but '{path}' is of another kind "
            "(a playlist or an image?) or its header is invalid. Convert it to MP4."
        ) from error
    except av.error.InvalidDataError as error:
        found = f"cannot be opened ({error.strerror})"
        if lacks_index(path):
            found = "has no whole index (moov): it was cut off, or its recording was never finished"
        elif layout.missing:
            found = f"was cut off: it is {layout.missing} bytes shorter than its container says"
        raise UnreadableVideoError(
            f"a recording must be a readable video, but '{path}' {found}. Copy it again."
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
                f"a frame must have at most {max_pixels} pixels, but '{path}' has {width} x {height}."
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.copy_opaque = True
        stream.codec_context.options = {"max_pixels": str(max_pixels + _PADDING_PIXELS)}
        if container.format.name == "avi":
            container.flags &= ~_GENERATE_PTS  # they would be guessed as if no frame were reordered
        time_base = _fraction(stream.time_base) or Fraction(1, _MICROSECONDS)
        is_damaged = container.format.name.startswith("matroska") and reports.come_from(container.format.name)
        yield OpenVideo(container, stream, layout, is_damaged, container.start_time or 0, time_base)


def _fraction(number: Rational | None) -> Fraction:
    """A number of PyAV: a fraction or None before version 19, since then a type of its own, 0 where nothing is said."""
    return Fraction(int(number.numerator), int(number.denominator)) if number else Fraction(0)


def _layout_of_file(path: Path) -> Layout:
    """How a file is laid out, if it is a regular one that is not empty."""
    try:
        layout = layout_of(path) if stat.S_ISREG(path.stat().st_mode) else None
    except OSError as error:
        raise UnreadableVideoError(f"a recording must be a readable file, but {error}.") from error
    if layout is None:
        raise UnreadableVideoError(f"a recording must be a regular file, but '{path}' is a folder, pipe or device.")
    if layout.size == 0:
        raise UnreadableVideoError(f"a recording must hold a video, but '{path}' is empty. Copy it again.")
    return layout


def _choose_stream(container: InputContainer, path: Path) -> VideoStream:
    usable = [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & _NOT_A_RECORDING
    ]
    if not usable:
        raise UnreadableVideoError(f"a recording must hold a video stream that can be decoded, but '{path}' has none.")
    best = container.streams.best("video")
    return best if isinstance(best, VideoStream) and best in usable else usable[0]
