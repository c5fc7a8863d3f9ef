"""What a recording looks like in a few small frames, to find copies that were converted: other bytes, same frames.

A fixed camera gives every recording of a room the same background, so what changes over time is compared, not the
frames alone. What this is not: a search for cut or mirrored copies. Recordings in which nothing moves cannot be told
apart, and are no copies here.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from featurecache.errors import FeatureCacheError
from featurecache.video.containers import MAX_PIXELS, OpenVideo, open_video
from featurecache.video.frames import orientation_of

Look = npt.NDArray[np.float32]
"""Small frames at equal distances over a recording, shape (T, H, W, 3)."""

_FRAMES, _SIDE_PX = 8, 16
_SHORT_FRAMES = 2000  # that are decoded at a stretch: more than lie between two key frames
_LEAST_CHANGE = 0.5  # of 255 levels, over time
_MOST_DIFFERENCE, _LEAST_CORRELATION = 16.0, 0.8


def look_of(path: Path, duration_us: int) -> Look | None:
    """The look of a recording; None where it cannot be read at all of these times.

    Args:
        path: A local video file.
        duration_us: Its length.
    """
    try:
        with open_video(path, max_pixels=MAX_PIXELS) as video:
            times = [duration_us * (2 * number + 1) // (2 * _FRAMES) for number in range(_FRAMES)]
            frames = [_small(frame) for frame in _frames_at(video, [video.to_ticks(time_us) for time_us in times])]
    except (FeatureCacheError, av.error.FFmpegError, OSError):
        return None
    return np.stack(frames) if len(frames) == _FRAMES else None


def _frames_at(video: OpenVideo, ticks: Sequence[int]) -> Iterator[VideoFrame]:
    """The last frame that is not after each of these ascending times; a short recording is decoded once, throughout."""
    frames = (ticks[-1] - ticks[0]) * video.time_base * video.frame_rate
    is_short = 0 < frames <= _SHORT_FRAMES
    source: Iterator[VideoFrame] = video.container.decode(video.stream)
    chosen, ahead = None, None
    for wanted in ticks:
        if not is_short:
            video.container.seek(wanted, stream=video.stream, backward=True)
            source = islice(video.container.decode(video.stream), _SHORT_FRAMES)
            chosen = ahead = None
        while ahead is None or (ahead.pts or 0) <= wanted:
            chosen = ahead or chosen
            ahead = next(source, None)
            if ahead is None:
                break
        if frame := chosen or ahead:
            yield frame


def _small(frame: VideoFrame) -> Look:
    small = VideoReformatter().reformat(
        frame, width=_SIDE_PX, height=_SIDE_PX, format="rgb24", interpolation=Interpolation.AREA
    )
    pixels = np.asarray(small.to_ndarray(), np.uint8)
    return orientation_of(frame).apply(pixels).astype(np.float32)


def are_copies(one: Look, other: Look) -> bool:
    """Whether two looks are of the same frames, encoded differently.

    Args:
        one: Shape (T, H, W, 3).
        other: Of another recording of the same length.
    """
    level = (one - other).mean(axis=(0, 1, 2))  # a conversion may shift brightness and colour as a whole
    changes = one - one.mean(axis=0), other - other.mean(axis=0)
    powers = [float((change**2).mean()) for change in changes]
    if np.abs(one - other - level).mean() > _MOST_DIFFERENCE or min(powers) < _LEAST_CHANGE**2:
        return False
    return bool((changes[0] * changes[1]).mean() / (powers[0] * powers[1]) ** 0.5 >= _LEAST_CORRELATION)
