"""What a video is before a clip of it is read: size, duration, average rate, and its first frame."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from av.video.frame import VideoFrame

from featurecache.errors import UnreadableVideoError
from featurecache.video.containers import MAX_PIXELS, OpenVideo, open_video
from featurecache.video.decoding import decode
from featurecache.video.frames import orientation_of
from featurecache.video.layout import begins_again
from featurecache.video.scanning import Scan, scan

PROBE_VERSION = 4
"""Raised when `probe` says something else of the same file: what an earlier one said is then asked for again."""

_MAX_DURATION_US = 7 * 24 * 3600 * 1_000_000
_CUT_OFF_US = 1_000_000
_UNSET_CLOCKS_UNTIL = 1990
_LIMIT_S, _SLOWEST_BYTES_PER_S = 60.0, 10e6
_LONGEST_READ_S = 20.0
_UNREAD_SHARE, _UNREAD_WARNED_SHARE = 0.1, 0.25
_UNREAD_FRAMES = 3  # of mean size: a stream may be stuffed behind its last one
_FEWEST_FRAMES_SHARE = 0.8
_HIGHEST_RATE = 1000  # raw DV says 60,000, which is the clock of NTSC
_ONE_CLOCK = frozenset({"mpeg", "mpegts"})  # streams whose clock cannot leap by itself: there a leap is a joint too


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a recording before its clips are read.

    Attributes:
        duration_us: End of the video stream on the recording's clock. The header's word where it has one, so
            that the clips of a missing rest are recorded as failed; else measured on the packets.
        width_px: Width of the upright frame.
        height_px: Height of the upright frame.
        rotation_deg: Clockwise turn that brings the stored frame upright: 0, 90, 180 or 270.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the stored pixels.
        average_fps: Frames per second over the file, None where unknown.
        warnings: What a person should know of the file, each with what to do.
        recorded_at_us: When recording began by the camera's clock, in microseconds since 1970; None where not told.
    """

    duration_us: int
    width_px: int
    height_px: int
    rotation_deg: int
    codec: str
    pixel_format: str
    average_fps: float | None
    warnings: tuple[str, ...] = ()
    recorded_at_us: int | None = None


def probe(
    path: Path, *, max_pixels: int = MAX_PIXELS, on_progress: Callable[[int], None] = lambda _: None
) -> VideoInfo:
    """Look at a recording: decodes its first frame, and reads its packets as far as its container tells too little.

    All of it ends within 60 s and a second more for each 10 MB of the file.

    Args:
        path: A local video file.
        max_pixels: Larger frames are refused.
        on_progress: Called now and then with the byte that was reached.

    Raises:
        UnreadableVideoError: If it cannot be opened, has no frame, was joined of several files, cannot be read within
            the bound, or claims to last over a week.
        UnsafeFileError: If it is of a kind that may refer to other files or hosts, such as a playlist.
    """
    began = time.monotonic()
    with open_video(path, max_pixels=max_pixels, timeout_s=_LONGEST_READ_S) as video:
        limit_s = _LIMIT_S + video.layout.read_to / _SLOWEST_BYTES_PER_S
        if video.layout.joined_at is not None:
            raise _joined(path, f"another one begins at byte {video.layout.joined_at}", video)
        frame = _first_picture(video, began + limit_s)
        if frame is None and time.monotonic() > began + limit_s:
            raise _too_slow(path, limit_s)
        if frame is None:
            raise UnreadableVideoError(f"a recording must hold frames, but none of '{path}' can be decoded.")
        orientation = orientation_of(frame)
        width, height = frame.width, frame.height
        if orientation.transpose:
            width, height = height, width
        rate = video.frame_rate
        context = video.stream.codec_context
        found = scan(video, deadline=began + limit_s, on_progress=on_progress)
        if found.is_late:
            raise _too_slow(path, limit_s)
        _refuse_joints(path, video, found)
        duration_us = _duration_us(video, path, found)
        return VideoInfo(
            duration_us=duration_us,
            width_px=width,
            height_px=height,
            rotation_deg=orientation.rotation_deg,
            codec=context.codec.canonical_name,
            pixel_format=frame.format.name,
            average_fps=float(rate) if rate else None,
            warnings=tuple(_warnings(video, found, duration_us)),
            recorded_at_us=_recorded_at_us(video),
        )


def _too_slow(path: Path, limit_s: float) -> UnreadableVideoError:
    return UnreadableVideoError(
        f"a recording must be readable within {limit_s:.0f} s, but '{path}' was not. Play it to see where "
        "it is damaged, and convert it: ffmpeg -i RECORDING -c copy NEW.mkv"
    )


def _recorded_at_us(video: OpenVideo) -> int | None:
    """What the tag `creation_time` says; clocks that were never set (1904, 1970, 1980) say nothing."""
    for tags in (video.container.metadata, video.stream.metadata):
        try:
            moment = datetime.fromisoformat(tags.get("creation_time", ""))
        except ValueError:
            continue
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment.year > _UNSET_CLOCKS_UNTIL:
            return round(moment.timestamp() * 1_000_000)
    return None


def _first_picture(video: OpenVideo, deadline: float) -> VideoFrame | None:
    for decoded in decode(video):
        if decoded is not None and not (decoded.frame is None and not decoded.is_end):
            return decoded.frame
        if time.monotonic() > deadline:
            break
    return None


def _duration_us(video: OpenVideo, path: Path, found: Scan) -> int:
    duration_us = video.declared_end_us
    # A header without a duration per stream speaks for the longest one: believed where that was cut off.
    if duration_us is None or (not video.stream.duration and found.any_end_us > duration_us - _CUT_OFF_US):
        duration_us = found.end_us
    elif video.layout.missing and found.end_us is not None:
        # FFmpeg guesses what a cut AVI holds by its size; all that is there is used.
        duration_us = max(duration_us, found.end_us)
    if duration_us is None or not 0 < duration_us <= _MAX_DURATION_US:
        raise UnreadableVideoError(
            f"a recording must last more than 0 s and at most a week, but '{path}' says {duration_us} microseconds."
        )
    return duration_us


def _refuse_joints(path: Path, video: OpenVideo, found: Scan) -> None:
    for before_us, after_us in found.breaks:
        if after_us < before_us or video.container.format.name in _ONE_CLOCK:
            raise _joined(path, f"its clock goes from {before_us / 1e6:.2f} s to {after_us / 1e6:.2f} s", video)
    if not found.is_whole or not found.read_to:
        return
    # A transport stream may go on in streams of other numbers, whose packets nobody is given.
    is_stream = video.container.format.name in _ONE_CLOCK and found.audio_end_us - (found.end_us or 0) < _CUT_OFF_US
    unread = video.layout.data_to - found.read_to
    expected = max(_UNREAD_SHARE * video.layout.data_to, _UNREAD_FRAMES * found.read_to / found.packets)
    if (is_stream and unread > expected) or begins_again(path, found.read_to):
        raise _joined(path, f"another one begins behind byte {found.read_to}", video)


def _joined(path: Path, how: str, video: OpenVideo) -> UnreadableVideoError:
    fix = (
        "ffmpeg -fflags +genpts -i JOINED -map 0 -c copy NEW.mkv gives it one clock"
        if video.container.format.name in _ONE_CLOCK
        else "ffmpeg -f concat -safe 0 -i LIST -c copy NEW.mkv joins them, with a line file 'PART' for each in LIST"
    )
    return UnreadableVideoError(
        f"a recording must be one file with one clock, but '{path}' was joined of several end to end: {how}. "
        f"Give the parts as recordings of their own; or {fix}, whose annotations must fit the new file."
    )


def _warnings(video: OpenVideo, found: Scan, duration_us: int) -> Iterator[str]:
    layout = video.layout
    if layout.missing:
        yield f"the file is {layout.missing} bytes shorter than its container says: it was cut off. Copy it again."
    if layout.read_to < layout.size:
        yield f"the last {layout.size - layout.data_to} bytes hold nothing but zeros. Copy it again if they should not."
    if found.end_us is not None and abs(found.end_us - duration_us) > _CUT_OFF_US:
        yield (
            f"the header promises {duration_us / 1e6:.1f} s of video, but it ends at {found.end_us / 1e6:.1f} s; "
            + ("clips behind cannot be extracted." if found.end_us < duration_us else "what is behind is not used.")
        )
    for before_us, after_us in found.breaks:
        yield f"there is no frame from {before_us / 1e6:.1f} s to {after_us / 1e6:.1f} s: the recorder's clock leaped."
    if found.is_whole and found.read_to and layout.data_to - found.read_to > _UNREAD_WARNED_SHARE * layout.data_to:
        yield (
            f"the last {layout.data_to - found.read_to} of {layout.data_to} bytes hold no frame of its video. Play it "
            "to see whether it is one recording to its end."
        )
    rate = video.frame_rate
    if (
        found.is_whole
        and rate
        and rate <= _HIGHEST_RATE
        and not found.breaks
        and found.packets < _FEWEST_FRAMES_SHARE * duration_us / 1e6 * float(rate)
    ):
        yield (
            f"it holds {found.packets} frames in {duration_us / 1e6:.1f} s, and says that there are {float(rate):.2f} "
            "a second: frames are missing, or its rate varies."
        )
