"""Videos as a browser can play them: the file itself where it can, else a private copy that is removed.

H.264 in MP4 and the codecs of WebM are played as they are. Anything else is encoded once, without sound, to H.264 in
a folder of this user alone below the project, which goes when the server ends; what a killed server left goes when the
next one starts. The copy keeps the recording's clock: zero is where the container begins.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from featurecache.errors import FeatureCacheError
from featurecache.files import private_folder
from featurecache.video.containers import MAX_PIXELS, open_video
from featurecache.video.frames import to_rgb

_PLAYED = {"mp4": {"h264"}, "m4v": {"h264"}, "webm": {"vp8", "vp9", "av1"}}
_PLAYED_PIXELS = {"yuv420p", "yuvj420p"}
_MOST_HEIGHT_PX = 720
_TICKS_PER_S = 90_000


@dataclass(frozen=True)
class Playable:
    """Whether a recording can be played now.

    Attributes:
        state: "ready", "preparing" or "failed".
        share: How much of it is encoded, from 0 to 1.
        path: The file that a browser plays; None before it is ready.
        reason: Why it cannot be played; empty where it can.
    """

    state: Literal["ready", "preparing", "failed"]
    share: float = 0.0
    path: Path | None = None
    reason: str = ""


class PlayableVideos:
    """The recordings of a server as files that a browser plays; one is encoded at a time, when it is first asked for.

    Args:
        paths: Id -> the recording.
        folder: Where encoded copies lie; emptied now, and removed by `close`.
    """

    def __init__(self, paths: Mapping[str, Path], folder: Path) -> None:
        self._paths = paths
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        self._states: dict[str, Playable] = {}
        self._guard, self._one_at_a_time = threading.Lock(), threading.Lock()
        self._closing = threading.Event()

    def of(self, content: str) -> Playable:
        """The recording's state; asking starts its encoding, where it needs one."""
        with self._guard:
            if content not in self._states:
                path = self._paths[content]
                try:
                    played = _is_played(path)
                except (FeatureCacheError, OSError) as error:
                    self._states[content] = Playable("failed", reason=str(error))
                else:
                    self._states[content] = Playable("ready", 1.0, path) if played else Playable("preparing")
                    if not played:
                        threading.Thread(target=self._encode, args=(content, path), daemon=True).start()
            return self._states[content]

    def close(self) -> None:
        """Stops encoding and removes every copy."""
        self._closing.set()
        with self._one_at_a_time:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _encode(self, content: str, path: Path) -> None:
        with self._one_at_a_time:
            if self._closing.is_set():
                return
            try:
                descriptor, name = tempfile.mkstemp(".mp4", dir=private_folder(self._folder))  # mode 0600
                os.close(descriptor)
                target = Path(name)
                self._copy(content, path, target)
                state = Playable("ready", 1.0, target)
            except (FeatureCacheError, OSError, av.error.FFmpegError) as error:
                state = Playable("failed", reason=f"it cannot be played here: {error}")
            self._states[content] = state

    def _copy(self, content: str, source: Path, target: Path) -> None:
        with (
            open_video(source, max_pixels=MAX_PIXELS) as video,
            av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as out,
        ):
            rate = video.stream.average_rate or Fraction(25)
            stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23", "g": "25"})
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
            end_us, last, upright = video.declared_end_us or 0, -1, VideoReformatter()
            for frame in video.container.decode(video.stream):
                if self._closing.is_set():
                    return
                if frame.pts is None:
                    continue
                time_us = video.to_us(frame.pts)
                picture = VideoFrame.from_ndarray(np.ascontiguousarray(to_rgb(frame, upright)), format="rgb24")
                if last < 0:
                    stream.width, stream.height = _size(picture)
                small = picture.reformat(stream.width, stream.height, format="yuv420p")
                last = small.pts = max(last + 1, time_us * _TICKS_PER_S // 1_000_000)
                small.time_base = stream.codec_context.time_base
                out.mux(stream.encode(small))
                self._states[content] = Playable("preparing", min(0.99, time_us / end_us) if end_us else 0.0)
            out.mux(stream.encode(None))


def _size(picture: VideoFrame) -> tuple[int, int]:
    """Width and height of the copy: even numbers, no higher than `_MOST_HEIGHT_PX`."""
    scale = min(1.0, _MOST_HEIGHT_PX / picture.height)
    return max(2, 2 * round(picture.width * scale / 2)), max(2, 2 * round(picture.height * scale / 2))


def _is_played(path: Path) -> bool:
    """Whether browsers play the file as it is, with its own clock beginning at zero."""
    with open_video(path, max_pixels=MAX_PIXELS) as video:
        codec = video.stream.codec_context
        known = codec.codec.canonical_name in _PLAYED.get(path.suffix.lower().removeprefix("."), ())
        return known and codec.pix_fmt in _PLAYED_PIXELS and video.zero_us == 0
