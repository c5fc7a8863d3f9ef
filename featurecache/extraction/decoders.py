"""Threads that decode recordings ahead of the model, one recording each, through a bounded queue.

Before a recording is decoded, its lease is acquired; one that another process is computing is deferred and tried once
more at the end. What this is not: the loop that runs the model (`pipeline.py`).
"""

import contextlib
import heapq
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.leases import acquire
from featurecache.store import CacheWriter
from featurecache.video.recordings import Recording
from featurecache.video.sampling import ClipFailure, ClipFrames, Fit, read_clips

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone

_QUEUED_CLIPS_PER_DECODER = 1  # besides the one that each decoder holds
# A stalled decoder must not stall the run; a slow machine decoding 4K must not be cut off.
_TIME_LIMIT_S = 60.0
_TIME_LIMIT_PER_SECOND = 20.0

Decoded = tuple[ClipRecord, list[npt.NDArray[np.uint8]], int | None]
"""A decoded clip, its frames as `Batches.add` takes them, and the start of the recording's next clip to come."""


class Decoders:
    """Every clip of `work`, decoded; a context manager, whose threads have ended when its block has.

    Instead of clips that are left to another process comes their number.

    Args:
        work: Clips to decode, those of one recording together.
        backbone: Whose frames they become.
        writers: Of the feature spaces, which hold the leases.
        count: Threads.
    """

    def __init__(
        self, work: Sequence[Sequence[ClipRecord]], backbone: "Backbone", writers: Mapping[str, CacheWriter], count: int
    ) -> None:
        self._inputs, self._writers = backbone.inputs, writers
        self._waiting: queue.SimpleQueue[tuple[Sequence[ClipRecord], bool]] = queue.SimpleQueue()
        for clips in work:
            self._waiting.put((clips, False))
        running = max(1, min(count, len(work)))
        self._ready: queue.Queue[Decoded | int | BaseException | None] = queue.Queue(
            _QUEUED_CLIPS_PER_DECODER * running
        )
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._decode, daemon=True) for _ in range(running)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def __iter__(self) -> Iterator[Decoded | int]:
        """What is decoded, as it comes; errors of the threads are raised here."""
        left = len(self._threads)
        while left:
            result = self._ready.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                left -= 1
            else:
                taken, result = [result], None  # waiting here must not keep its frames
                yield taken.pop()

    def _hand_over(self, result: "Decoded | int | BaseException | None") -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(result, timeout=0.1)
                return

    def _decode(self) -> None:
        """Decodes recordings until none is left; what each thread runs."""
        try:
            while not self._stop.is_set():
                clips, was_deferred = self._waiting.get_nowait()
                left = acquire(clips, self._writers, is_last_try=was_deferred)
                if left is None and not was_deferred:
                    self._waiting.put((clips, True))
                    continue
                if len(left or ()) < len(clips):
                    self._hand_over(len(clips) - len(left or ()))
                fit = self._inputs.frame_resize.of(clips[0].recording.name).smaller
                for decoded in _decoded(left or (), self._inputs.frames, fit):
                    self._hand_over(decoded)
                    if self._stop.is_set():
                        return
        except queue.Empty:
            self._hand_over(None)
        except BaseException as error:  # raised again in the calling thread
            self._hand_over(error)


class _Ahead:
    """Which clips of a recording are still to come."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self._waiting = set(spans)
        self._starts = list(spans)
        heapq.heapify(self._starts)

    def after(self, span: tuple[int, int]) -> int | None:
        """Start of the earliest one that is still to come after `span` has come; None if none is."""
        self._waiting.discard(span)
        while self._starts and self._starts[0] not in self._waiting:
            heapq.heappop(self._starts)
        return self._starts[0][0] if self._starts else None


def _decoded(clips: Sequence[ClipRecord], frames: int, fit: Fit) -> Iterator[Decoded]:
    """Clips of one recording, each as soon as its frames are there."""
    by_span = {clip.span: clip for clip in clips}
    ahead = _Ahead(list(by_span))
    for found in read_in_time(clips[0].recording, list(by_span), frames, fit) if clips else ():
        clip, pixels = by_span[found.start_us, found.end_us], []
        if isinstance(found, ClipFailure):
            clip = replace(clip, reason=found.reason)
        else:
            clip, pixels = replace(clip, timestamps_us=found.timestamps_us), list(found.frames)
        del found  # its frames are in memory no longer than whoever takes them needs
        yield clip, pixels, ahead.after(clip.span)


def read_in_time(
    recording: Recording, spans: Sequence[tuple[int, int]], frames: int, fit: Fit
) -> Iterator[ClipFrames | ClipFailure]:
    """As `read_clips`, in a time that follows from the recording's length: a stalled decoder cannot stretch it."""
    limit_s = _TIME_LIMIT_S + _TIME_LIMIT_PER_SECOND * recording.info.duration_us / 1e6
    return read_clips(recording.path, spans, frames, fit=fit, time_limit_s=limit_s)
