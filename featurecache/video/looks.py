"""What a recording looks like in a few small frames, to find copies that were converted: other bytes, same pictures.

A fixed camera gives every recording of a room the same background, so what changes over time is compared, not the
pictures alone. What this is not: a search for cut or mirrored copies. Recordings in which nothing moves cannot be told
apart, and are no copies here.
"""

from pathlib import Path

import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from featurecache.errors import FeatureCacheError
from featurecache.video.containers import MAX_PIXELS, OpenVideo, open_video
from featurecache.video.frames import orientation_of

Look = npt.NDArray[np.float32]
"""Small frames at equal distances over a recording, shape (T, H, W, 3)."""

_FRAMES, _SIDE_PX = 8, 16
_MOST_DECODED = 600  # frames from a key frame to the one that is wanted
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
            frames = [_small_frame(video, time_us) for time_us in times]
    except (FeatureCacheError, av.error.FFmpegError, OSError):
        return None
    found = [frame for frame in frames if frame is not None]
    return np.stack(found) if len(found) == _FRAMES else None


def _small_frame(video: OpenVideo, time_us: int) -> Look | None:
    wanted = video.to_ticks(time_us)
    video.container.seek(wanted, stream=video.stream, backward=True)
    chosen = None
    for number, frame in enumerate(video.container.decode(video.stream)):
        if frame.pts is not None and (frame.pts <= wanted or chosen is None):
            chosen = frame
        if number >= _MOST_DECODED or (frame.pts is not None and frame.pts >= wanted):
            break
    if chosen is None:
        return None
    small = VideoReformatter().reformat(
        chosen, width=_SIDE_PX, height=_SIDE_PX, format="rgb24", interpolation=Interpolation.AREA
    )
    picture = np.asarray(small.to_ndarray(), np.uint8)
    return orientation_of(chosen).apply(picture).astype(np.float32)


def are_copies(one: Look, other: Look) -> bool:
    """Whether two looks are of the same pictures, encoded differently.

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
