"""What a video is before a clip of it is read: size, duration, average rate, and its first frame."""

import time
from dataclasses import dataclass
from pathlib import Path

from av.video.frame import VideoFrame

from featurecache.errors import UnreadableVideoError
from featurecache.video.containers import MAX_PIXELS, OpenVideo, last_packet_ends_us, open_video
from featurecache.video.decoding import decode
from featurecache.video.frames import orientation_of

_MAX_DURATION_US = 7 * 24 * 3600 * 1_000_000


_CUT_OFF_US = 1_000_000
_PROBE_LIMIT_S = 60.0


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a recording before its clips are read.

    Attributes:
        duration_us: End of the video stream on the recording's clock. The header's word where it has one, so
            that the clips of a missing rest are recorded as failed; else measured on the packets.
        width_px: Width of the upright picture.
        height_px: Height of the upright picture.
        rotation_deg: Clockwise turn that brings the stored picture upright: 0, 90, 180 or 270.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the stored pixels.
        average_fps: Pictures per second over the file, None where unknown.
    """

    duration_us: int
    width_px: int
    height_px: int
    rotation_deg: int
    codec: str
    pixel_format: str
    average_fps: float | None


def probe(path: Path, *, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Look at a recording: opens it, decodes its first picture, and measures its length where no header tells.

    Args:
        path: A local video file.
        max_pixels: Larger pictures are refused.

    Raises:
        UnreadableVideoError: If it cannot be opened, has no picture, or claims to last over a week.
        UnsafeFileError: If it is of a kind that may refer to other files or hosts, such as a playlist.
    """
    with open_video(path, max_pixels=max_pixels) as video:
        frame = _first_picture(video)
        if frame is None:
            raise UnreadableVideoError(f"a recording must hold frames, but none of '{path}' can be decoded.")
        orientation = orientation_of(frame)
        width, height = frame.width, frame.height
        if orientation.transpose:
            width, height = height, width
        rate = video.stream.average_rate
        context = video.stream.codec_context
        return VideoInfo(
            duration_us=_duration_us(video, path),
            width_px=width,
            height_px=height,
            rotation_deg=orientation.rotation_deg,
            codec=context.codec.canonical_name,
            pixel_format=frame.format.name,
            average_fps=float(rate) if rate else None,
        )


def _first_picture(video: OpenVideo) -> VideoFrame | None:
    deadline = time.monotonic() + _PROBE_LIMIT_S
    for step in decode(video):
        if step is not None:
            return step.frame
        if time.monotonic() > deadline:
            break
    return None


def _duration_us(video: OpenVideo, path: Path) -> int:
    duration_us = video.declared_end_us
    if duration_us is None or not video.stream.duration:
        # A header without a duration per stream speaks for the longest one: believed where that was cut off.
        video_end_us, any_end_us = last_packet_ends_us(video)
        if duration_us is None or any_end_us > duration_us - _CUT_OFF_US:
            duration_us = video_end_us
    if duration_us is None or not 0 < duration_us <= _MAX_DURATION_US:
        raise UnreadableVideoError(
            f"a recording must last more than 0 s and at most a week, but '{path}' says {duration_us} microseconds."
        )
    return duration_us
