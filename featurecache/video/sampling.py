"""What a recording is, and its clips as frames chosen by presentation time in one sequential pass.

The clock of a recording starts at its container's start time: an audio track may begin before the video.
A clip [start, end) is sampled at t_k = start + (k + 1/2) (end - start) / frame_count, and each sample is
the last frame with a presentation time <= t_k, compared in exact arithmetic in the stream's own ticks.

What is not in the file is a failure, never a repeated frame:

- before the first frame that frame stands in, for at most 0.1 s or one frame interval;
- a frame stands for at most a minute where the container does not say that it stands longer;
- the last frame stands for its own duration, and one frame interval more unless the header promises
  further frames (a file that was cut off);
- a sample inside a damaged stretch, or on a frame that may refer to one, fails its clip; the others go on.

It is not a cache of frames, and resizing them is the caller's business.
"""

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from featurecache.errors import UnreadableVideoError, UnsafeFileError
from featurecache.video.containers import MAX_PIXELS, OpenVideo, open_video
from featurecache.video.decoding import DecodedFrame, SkippedFrameRequired, decode
from featurecache.video.frames import to_rgb
from featurecache.video.memory import decoder_bytes, decoding_room

TIME_LIMIT_S = 4 * 3600.0
"""Own work on one recording after which the rest of it fails: ten hours of HD take about one."""

_FIRST_PICTURE_GRACE_US = 100_000
_LONGEST_STAND_S = 60  # where the container does not say how long a frame stands
_NEVER = 2**62

Fit = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
"""Makes of a frame (H, W, 3) the smaller one (h, w, 3) that is wanted of it."""


@dataclass(frozen=True)
class ClipFrames:
    """A clip's sampled frames.

    A frame that several samples choose, of one clip or of clips that overlap, is converted once and is one
    and the same array wherever it stands: `a.frames[i] is b.frames[j]`. Within one reading of a recording
    frames of equal `timestamps_us` are equal, so a timestamp can key what is computed on a frame alone.

    Attributes:
        start_us: Start of the clip on the recording's clock.
        end_us: End of the clip, exclusive.
        frames: T upright RGB frames of one size, each of shape (H, W, 3), uint8, contiguous, not to be written to;
            or what `fit` made of them.
        timestamps_us: Presentation time of each chosen frame on the recording's clock, shape (T,), int64.
    """

    start_us: int
    end_us: int
    frames: tuple[npt.NDArray[np.uint8], ...]
    timestamps_us: npt.NDArray[np.int64]

    @property
    def stacked(self) -> npt.NDArray[np.uint8]:
        """The frames stacked, shape (T, H, W, 3): a copy, made at each call."""
        return np.stack(self.frames)


@dataclass(frozen=True)
class ClipFailure:
    """A clip that could not be extracted, and why in one line."""

    start_us: int
    end_us: int
    reason: str


@dataclass
class _Clip:
    """A clip in flight."""

    start_us: int
    end_us: int
    size: tuple[int, ...] = ()
    frames: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    timestamps_us: list[int] = field(default_factory=list)
    last_order: int = -1
    last_ticks: int = -1
    reason: str | None = None

    def result(self) -> ClipFrames | ClipFailure:
        if self.reason is not None:
            return ClipFailure(self.start_us, self.end_us, self.reason)
        timestamps_us = np.array(self.timestamps_us, dtype=np.int64)
        return ClipFrames(self.start_us, self.end_us, tuple(self.frames), timestamps_us)

    def forget(self) -> None:
        self.frames.clear()
        self.timestamps_us.clear()


def read_clips(
    path: Path,
    spans: Sequence[tuple[int, int]],
    frame_count: int = 16,
    *,
    fit: Fit | None = None,
    max_pixels: int = MAX_PIXELS,
    time_limit_s: float | None = TIME_LIMIT_S,
    decode_all: bool = False,
) -> Iterator[ClipFrames | ClipFailure]:
    """Sample clips of one recording in one sequential pass; each needed frame is converted once.

    Holds the frames of the clips in flight and nothing else, whatever the length of the recording. Decoding
    ends with the last clip. Frames that no sample falls on and no other frame refers to are not decoded.

    Args:
        path: A local video file.
        spans: Clips as (start_us, end_us) on the recording's clock, in any order; they may overlap.
        frame_count: Frames per clip (T).
        fit: Called once on each needed frame when it is decoded; what it gives stands for the frame from then on.
        max_pixels: Larger frames are refused before they are decoded.
        time_limit_s: Bound on the time spent here, not counting what the consumer does between two items.
        decode_all: Decode every frame up to the last needed one. Gives the same frames more slowly; clips
            next to a frame that is damaged and was not needed fail.

    Yields:
        Exactly one item per span, as soon as it is decided.
    """
    waiting: list[tuple[int, int]] = []
    for start_us, end_us in spans:
        if 0 <= start_us < end_us:
            waiting.append((start_us, end_us))
        else:
            reason = f"a clip must start at 0 or later and end after its start, but it is {start_us} to {end_us} us."
            yield ClipFailure(start_us, end_us, reason)
    reason = "the recording could not be read to its end."
    spent_s, resumed_s = 0.0, time.monotonic()
    while waiting:
        clips = [_Clip(*span) for span in waiting]
        left = dict(enumerate(clips))
        try:
            with (
                open_video(path, max_pixels=max_pixels) as video,
                decoding_room().taken(_needed_bytes(video)) as waited_s,
            ):
                resumed_s += waited_s  # which is no work on this recording
                sampler = _Sampler(video, clips, frame_count, fit, max_pixels)
                for decoded in decode(video, None if decode_all else sampler.ticks):
                    if time_limit_s is not None and spent_s + time.monotonic() - resumed_s > time_limit_s:
                        reason = (
                            f"a recording must be decoded within {time_limit_s:g} s, but '{path.name}' took longer."
                        )
                        break
                    if decoded is None:
                        continue
                    for index in sampler.advance(decoded):
                        item = left.pop(index).result()
                        clips[index].forget()
                        spent_s += time.monotonic() - resumed_s
                        yield item
                        resumed_s = time.monotonic()
                        del item
                    if not left:
                        return
        except SkippedFrameRequired:
            waiting, decode_all = [(clip.start_us, clip.end_us) for clip in left.values()], True
            continue
        except (UnreadableVideoError, UnsafeFileError) as error:
            reason = str(error)
        except av.error.FFmpegError as error:
            reason = f"the recording must be readable, but '{path.name}' failed ({error.strerror})."
        for clip in left.values():
            yield ClipFailure(clip.start_us, clip.end_us, clip.reason or reason)
        return


def _needed_bytes(video: OpenVideo) -> int:
    context = video.stream.codec_context
    bits = context.format.padded_bits_per_pixel if context.format else 24
    return decoder_bytes(context.width, context.height, bits)


class _Sampler:
    """Chooses frames for clips while the recording passes by.

    A frame is chosen when the next one shows how long it stood. A clip is handed out once no frame that
    is still to come can disclose damage behind one of its own (a frame may be shown before its reference).

    Attributes:
        ticks: The samples of all clips in ascending order: the last tick at which a frame may start to be chosen.
    """

    def __init__(self, video: OpenVideo, clips: list[_Clip], frame_count: int, fit: Fit | None, max_pixels: int):
        self.video = video
        self.fit = fit
        self.max_pixels = max_pixels
        self.clips = clips
        self.frame_count = frame_count
        ticks = np.fromiter(self._sample_ticks(), dtype=np.int64, count=len(clips) * frame_count)
        order = np.argsort(ticks, kind="stable")
        self.ticks = array("q", ticks[order].tobytes())
        self.clip_of = array("q", (order // frame_count).tobytes())
        self.next = 0
        self.decided: set[int] = set()
        self.settling: deque[int] = deque()
        self.in_flight: set[int] = set()
        self.reformatter = VideoReformatter()
        self.shown: DecodedFrame | None = None
        self.last_gap = 0
        self.size: tuple[int, ...] = ()  # of the frame converted last, before it was made to fit

    def _sample_ticks(self) -> Iterator[int]:
        parts = 2 * self.frame_count
        for clip in self.clips:
            for k in range(self.frame_count):
                time = parts * clip.start_us + (2 * k + 1) * (clip.end_us - clip.start_us)
                yield min(self.video.to_ticks(time, parts), _NEVER)

    def advance(self, decoded: DecodedFrame) -> list[int]:
        """Take the next frame, or the end; returns the clips that are decided by it.

        Raises:
            SkippedFrameRequired: If a sample falls on a frame that was left out.
        """
        decided = []
        if decoded.damaged_from is not None:
            for index in self.in_flight:
                if self.clips[index].last_order >= decoded.damaged_from:
                    self.clips[index].reason = "a frame of the clip refers to a damaged part of the recording."
        if decoded.late_from is not None:
            for index in self.in_flight:
                if self.clips[index].last_ticks >= decoded.late_from:
                    self.clips[index].reason = "a frame of the clip was handed out too late by the decoder."
        if self.shown is None:
            self._substitute(decoded)
        frame: npt.NDArray[np.uint8] | None = None
        while self.next < len(self.ticks) and (decoded.is_end or self.ticks[self.next] < decoded.pts):
            ticks, index = self.ticks[self.next], self.clip_of[self.next]
            self.next += 1
            if index in self.decided:
                continue
            clip = self.clips[index]
            reason = clip.reason or self._why_not(ticks, decoded)
            if reason is None and frame is None:
                frame, reason = self._convert()
            if reason is None and frame is not None and self.shown is not None:
                if clip.size not in ((), self.size):
                    reason = "all frames of a clip must have one size, but the recording changes its own inside it."
                else:
                    clip.size = self.size
                    clip.frames.append(frame)
                    clip.timestamps_us.append(self.video.to_us(self.shown.pts))
                    clip.last_order = max(clip.last_order, self.shown.order)
                    clip.last_ticks = ticks
            if reason is not None:
                clip.reason = reason
                self.in_flight.discard(index)
                self.decided.add(index)
                decided.append(index)
                continue
            self.in_flight.add(index)
            if len(clip.frames) == self.frame_count:
                self.settling.append(index)
        while self.settling and self.clips[self.settling[0]].last_order <= decoded.resolved:
            index = self.settling.popleft()
            self.in_flight.discard(index)
            decided.append(index)
        self.last_gap = decoded.pts - self.shown.pts if self.shown is not None and not decoded.is_end else self.last_gap
        self.shown = decoded
        return decided

    def _substitute(self, first: DecodedFrame) -> None:
        """Move samples shortly before the first frame onto it."""
        for i in range(self.next, len(self.ticks)):
            if first.is_end or self.ticks[i] >= first.pts:
                return
            if self._may_substitute(self.ticks[i], first):
                self.ticks[i] = first.pts

    def _convert(self) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
        if self.shown is None or self.shown.frame is None:
            return None, "the recording has no frame."
        width, height = self.shown.frame.width, self.shown.frame.height
        if width * height > self.max_pixels:
            return None, f"a frame must have at most {self.max_pixels} pixels, but one has {width} x {height}."
        try:
            frame = to_rgb(self.shown.frame, self.reformatter)
        except (av.error.FFmpegError, ValueError) as error:
            return None, f"a frame must be convertible to RGB, but {self.shown.frame.format.name} is not ({error})."
        self.size = frame.shape
        return (self.fit(frame) if self.fit else frame), None

    def _may_substitute(self, ticks: int, first: DecodedFrame) -> bool:
        gap_us = self.video.to_us(first.pts) - self.video.to_us(ticks)
        interval_us = int(self.video.frame_interval * self.video.time_base * 1_000_000)
        return first.lost_from is None and gap_us <= max(_FIRST_PICTURE_GRACE_US, interval_us)

    def _why_not(self, ticks: int, decoded: DecodedFrame) -> str | None:
        """Why the frame that stands at a sample time must not be used, None if it may."""
        at = f"{self.video.to_us(ticks) / 1e6:.3f} s"
        if decoded.lost_from is not None and decoded.lost_from <= ticks:
            return f"the recording is damaged at {at}."
        if self.shown is None:
            if decoded.is_end:
                return "no frame of the recording can be decoded."
            if decoded.left_out:
                raise SkippedFrameRequired
            return f"the video starts at {self.video.to_us(decoded.pts) / 1e6:.3f} s, after the sample at {at}."
        if self.shown.left_out:
            raise SkippedFrameRequired
        if not self.shown.trusted or (decoded.damaged_from is not None and self.shown.order >= decoded.damaged_from):
            return f"the frame at {at} refers to a damaged part of the recording."
        stood_s = (ticks - self.shown.pts) * self.video.time_base
        if stood_s > _LONGEST_STAND_S and self.shown.frame is not None and not self._lasts_until(ticks):
            return f"the recording has no frame for {float(stood_s):.0f} s before the sample at {at}."
        if decoded.is_end:
            end = self._end_ticks()
            if ticks >= end:
                return f"the video ends at {self.video.to_us(end) / 1e6:.3f} s, before the sample at {at}."
        return None

    def _lasts_until(self, ticks: int) -> bool:
        """Whether the container says that the frame shown stands so long, as an index of every frame does."""
        return (
            self.shown is not None
            and self.shown.frame is not None
            and ticks < self.shown.pts + (self.shown.frame.duration or 0)
        )

    def _end_ticks(self) -> int:
        """Until when the last frame stands."""
        if self.shown is None or self.shown.frame is None:
            return 0
        interval = self.video.frame_interval
        end = self.shown.pts + (self.shown.frame.duration or self.last_gap or interval)
        declared_us = self.video.declared_end_us
        if declared_us is None or declared_us <= self.video.to_us(end + interval):
            end += interval
        return end
