"""The demo's data set: drawn recordings as H.264 files, and what an annotator wrote, as ELAN files.

    videos/S01/S01_a.mp4     a folder per session
    annotations/S01_a.eaf    a tier per label; its clock starts later than the recording's

As with real annotations, the clocks differ: annotation time 0 lies `TIME_ORIGIN` milliseconds into
the recording, a little before the baby arrives. Not here: clips, splits, features.
"""

import io
import itertools
from pathlib import Path

import av
import numpy as np

from featurecache.annotations import Interval, write_eaf
from featurecache.demo.scenes import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, FRAMES_PER_S, Recording, make_recording
from featurecache.demo.script import LABELS, Script
from featurecache.files import private_folder, write_private

FRAMES_AT_ONCE = 100


def make_dataset(
    folder: Path,
    *,
    seed: int = 0,
    sessions: int = 20,
    recordings_per_session: int = 2,
    duration_s: float = 42.0,
) -> None:
    """Write `videos/` and `annotations/` into `folder`, for this user alone; files of the same name are replaced.

    Args:
        folder: Made when missing.
        seed: The same seed gives the same pixels and the same annotations.
        sessions: Number of sessions; each has its own colours, light, noise and camera.
        recordings_per_session: At most 26.
        duration_s: Length of every recording.
    """
    for session, index in itertools.product(range(sessions), range(recordings_per_session)):
        session_name = f"S{session + 1:02d}"
        stem = f"{session_name}_{chr(ord('a') + index)}"
        recording = make_recording("dataset", seed, session, index, duration_s)
        video = private_folder(folder / "videos" / session_name) / f"{stem}.mp4"
        write_private(video, encode_h264(recording))
        write_eaf(
            private_folder(folder / "annotations") / f"{stem}.eaf",
            drawn_intervals(recording.script),
            media_name=f"{session_name}/{stem}.mp4",
            time_origin_ms=time_origin_ms(recording),
            tiers=LABELS,
            replace=True,
        )


def drawn_intervals(script: Script) -> list[Interval]:
    """What is drawn, in media time rounded to the millisecond that ELAN keeps."""
    return [
        Interval(start_us=round(start_s * 1000) * 1000, end_us=round(end_s * 1000) * 1000, label=label)
        for start_s, end_s, label in script.labelled()
    ]


def time_origin_ms(recording: Recording) -> int:
    """Where the annotator's clock starts on the recording's: after it, and before the first annotation."""
    first_s = min(start_s for start_s, _, _ in recording.script.labelled())
    return round(1000 * first_s * np.random.default_rng((*recording.rng_key, 2)).uniform(0.3, 0.9))


def encode_h264(recording: Recording) -> bytes:
    """The recording as an MP4 file: H.264, yuv420p, with B-frames, as cameras and editors write it."""
    frame_count = round(recording.script.duration_s * FRAMES_PER_S)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = FRAME_WIDTH_PX, FRAME_HEIGHT_PX, "yuv420p"
        stream.codec_context.thread_count = 1
        for first in range(0, frame_count, FRAMES_AT_ONCE):
            numbers = np.arange(first, min(first + FRAMES_AT_ONCE, frame_count))
            for pixels in recording.frames(numbers / FRAMES_PER_S):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
