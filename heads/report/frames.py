"""One small frame of each of the largest differences, as JPEG, for a report that asks for frames.

Notable choices: the file is entered at the key frame before the wanted time, so a frame at the twelfth hour costs
no twelve hours. The frame is the last one shown by the middle of the difference. A recording that is another by now,
or cannot be opened or decoded there, has no frame, and is named. What this is not: the sampling of clips, which
decodes every frame for exact and checked times (`featurecache.video.sampling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from featurecache.errors import SettingsError, UnreadableVideoError, UnsafeFileError
from featurecache.project.features import Crop, box_px, of_recording
from featurecache.video.containers import MAX_PIXELS, OpenVideo, open_video
from featurecache.video.digests import DigestMemo
from featurecache.video.frames import to_rgb
from heads.report.timelines import Difference

SHOWN = 24
"""Number of the longest differences that get a frame."""

WIDTH_PX = 320
_MOST_FRAMES = 2000  # decoded for one frame: over a minute between key frames is no recording of ours


@dataclass(frozen=True)
class Thumbnail:
    """A frame of a difference.

    Attributes:
        of: The difference.
        time_us: Requested time: the middle of the difference.
        jpeg: The frame as JPEG.
        width_px: Width of the frame.
        height_px: Height of the frame.
    """

    of: Difference
    time_us: int
    jpeg: bytes
    width_px: int
    height_px: int


def thumbnails(
    found: Sequence[Difference], videos: Path, crop: Crop | None = None, memo: Path | None = None
) -> tuple[list[Thumbnail], list[str]]:
    """Frames of the first differences, where they can be decoded.

    Args:
        found: Differences, the longest first.
        videos: The folder of recordings.
        crop: The part of a frame that the model sees, which is all that is shown; None: the whole frame.
        memo: Where digests of recordings are remembered; None: nowhere.

    Returns:
        The frames, and the reason for each recording without one.
    """
    made = []
    without: dict[str, str] = {}
    digests = DigestMemo(memo)
    for one in found[:SHOWN]:
        time_us = (one.start_us + one.end_us) // 2
        is_outside = Path(one.recording).is_absolute() or ".." in Path(one.recording).parts
        if is_outside or not (videos / one.recording).is_file():
            without[one.recording] = "it is not in the folder of recordings"
            continue
        try:
            box = of_recording(crop, one.recording)
        except SettingsError:
            without[one.recording] = "no box of features.crop is its own, or several are"
            continue
        try:
            if digests.sha256(videos / one.recording)[:16] != one.content:
                without[one.recording] = "another video has its name by now"
                continue
            with open_video(videos / one.recording, max_pixels=MAX_PIXELS) as video:
                frame = _frame_at(video, time_us)
        except (UnreadableVideoError, UnsafeFileError, av.error.FFmpegError, OSError):
            frame = None
        if frame is None:
            without[one.recording] = "it cannot be opened or decoded there"
            continue
        upright = to_rgb(frame, VideoReformatter())
        shown = upright[box_px(box, upright.shape[1], upright.shape[0])]
        jpeg, width, height = as_jpeg(np.ascontiguousarray(shown), WIDTH_PX)
        made.append(Thumbnail(one, time_us, jpeg, width, height))
    digests.save()
    return made, [f"frames of {Path(recording).name}: {why}" for recording, why in without.items()]


def _frame_at(video: OpenVideo, time_us: int) -> VideoFrame | None:
    """The last frame shown by a time; the first frame where the file begins later."""
    wanted = video.to_ticks(time_us)
    video.container.seek(max(wanted, 0), stream=video.stream, backward=True)
    last = None
    for count, frame in enumerate(video.container.decode(video.stream)):
        if last is not None and (frame.pts is None or frame.pts > wanted or count > _MOST_FRAMES):
            break
        last = frame
    return last


def as_jpeg(upright: npt.NDArray[np.uint8], width_px: int) -> tuple[bytes, int, int]:
    """A picture as JPEG with its width and height.

    Args:
        upright: Shape (height, width, 3), RGB.
        width_px: Width of the JPEG; an even number.
    """
    height = max(2, 2 * round(upright.shape[0] * width_px / upright.shape[1] / 2))
    small = VideoFrame.from_ndarray(upright, format="rgb24").reformat(width_px, height, format="yuvj420p")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width_px, height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    small.pts = 0
    packets = [*encoder.encode(small), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets), width_px, height
