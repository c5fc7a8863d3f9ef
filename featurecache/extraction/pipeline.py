"""The loop that joins video, backbone, pooling and store.

Decoder threads, one recording each, run ahead of the model through a bounded queue. They resize each frame as it is
decoded, on the CPU whatever the model's device: every device gets the same pixels, and what is queued and copied does
not grow with the size of a recording's frames. The calling thread makes batches of equal length that cross recordings
and runs the model; a third kind of thread writes. A clip that cannot be extracted is recorded with its reason and the
run goes on. One pass fills every feature space asked for, each clip only those that are missing. Which clips are
missing is not decided here: the caller plans.
"""

import contextlib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.failures import FailedClip
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


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        extracted: Clips whose features are computed.
        failed: Clips that could not be extracted.
        claimed_by_others: Clips that another process has done meanwhile or has claimed.
        total: Clips of this run.
        elapsed_s: Seconds since the run began.
        waited_s: Seconds in which the model's thread waited for video.
        preprocess_s: Seconds it spent bringing frames to the device. Resizing counts as decoding, normalising as the
            model's.
        model_s: Seconds the model ran, by the device's own clock.
        write_s: Seconds spent writing, in parallel with the model.
        batch_size: Clips at once by now.
        shared_frames: Share of the sampled frames that were computed already, for a clip that overlaps.
    """

    extracted: int = 0
    failed: int = 0
    claimed_by_others: int = 0
    total: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    preprocess_s: float = 0.0
    model_s: float = 0.0
    write_s: float = 0.0
    batch_size: int = 0
    shared_frames: float = 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time in which the model did not run, whatever it waited for."""
        return max(0.0, 1 - self.model_s / self.elapsed_s) if self.elapsed_s else 0.0


@dataclass(frozen=True)
class Extraction:
    """What a run did.

    Attributes:
        progress: Its end.
        failures: Clips that could not be extracted.
        checked: Stored clips that were computed again at its start, and agreed.
    """

    progress: Progress
    failures: tuple[FailedClip, ...]
    checked: int = 0


def extract(
    work: Sequence[Sequence[ClipRecord]],
    backbone: "Backbone",
    writers: Mapping[str, CacheWriter],
    *,
    batch_size: int | Literal["auto"],
    decoders: int,
    device: str,
    known_timestamps: Mapping[str, npt.NDArray[np.int64]] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Computes and stores the missing features of the clips in `work`.

    Before a recording is decoded, its lease is acquired; one that another process is computing is deferred and tried
    once more at the end.

    Args:
        work: Clips to compute, those of one recording together.
        backbone: The loaded model.
        writers: An open writer of each feature space, by the name of the selected feature (`tap/pooling`).
        batch_size: B, clips per forward; halved where memory is not enough.
        decoders: Threads that decode, one recording each.
        device: The backbone's torch device.
        known_timestamps: Clip id -> frame timestamps (T,) of an earlier extraction with the same sampling. A clip
            whose frames are now others fails: a decoder has changed, and features would not be comparable.
        on_progress: Called after each batch and each failure.

    Raises:
        CacheWriteError: If features cannot be saved.
    """
    from featurecache.extraction.batches import Batches
    from featurecache.extraction.saving import Saving

    known = known_timestamps or {}
    began = time.monotonic()
    total = sum(map(len, work))
    claimed_by_others, waited_s = 0, 0.0
    failures: list[FailedClip] = []
    spaces = {name: writer.space for name, writer in writers.items()}
    batches = Batches(
        backbone,
        spaces,
        taps=sorted({spaces[name].tap for clips in work for clip in clips for name in clip.wanted}),
        batch_size=batch_size,
        device=device,
    )
    saving = Saving(writers)

    def fail(clip: ClipRecord) -> None:
        failures.append(FailedClip(clip.clip_id, clip.recording.name, clip.start_us, clip.end_us, clip.reason))

    def save(done: Sequence[ClipRecord]) -> None:
        for clip in done:
            if clip.reason:
                fail(clip)
            else:
                saving.put(clip)
        if done:
            on_progress(progress())

    def progress() -> Progress:
        stages = batches.stages
        return Progress(
            extracted=saving.saved,
            failed=len(failures) + len(saving.refused),
            claimed_by_others=claimed_by_others,
            total=total,
            elapsed_s=time.monotonic() - began,
            waited_s=waited_s,
            preprocess_s=stages.preprocess_s,
            model_s=stages.model_s,
            write_s=saving.seconds,
            batch_size=batches.batch_size,
            shared_frames=1 - stages.frames_computed / stages.frames if stages.frames else 0.0,
        )

    with saving, _decoding(work, backbone, writers, decoders) as results:
        while True:
            asked = time.monotonic()
            result = next(results, None)
            waited_s += time.monotonic() - asked
            if result is None:
                break
            if isinstance(result, int):
                claimed_by_others += result
                on_progress(progress())
                continue
            clip, frames, needed_from_us = result
            del result  # its frames are in memory no longer than needed
            clip = clip if clip.reason else replace(clip, reason=_changed_frames(clip, known))
            save([clip] if clip.reason else batches.add(clip, frames, needed_from_us))
        save(batches.finish())
    for writer in writers.values():
        writer.commit()
    for clip in saving.refused:
        fail(clip)
    saving.refused.clear()
    on_progress(progress())
    return Extraction(progress(), tuple(sorted(failures, key=lambda f: (f.recording, f.start_us, f.end_us))))


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


def _changed_frames(clip: ClipRecord, known: Mapping[str, npt.NDArray[np.int64]]) -> str:
    """Why a clip's frames are not those of an earlier extraction; empty where they are, or there was none."""
    earlier, now = known.get(clip.clip_id), clip.times_us
    if earlier is None or np.array_equal(earlier, now):
        return ""
    differing = int(np.flatnonzero(earlier != now)[0])
    return (
        f"the decoder must choose the frames it chose before, but frame {differing} lies at "
        f"{now[differing]} us and lay at {earlier[differing]} us. "
        "Use the PyAV version of the earlier extraction (featurecache cache info --json), or extract into a new cache."
    )


_Decoded = tuple[ClipRecord, list[npt.NDArray[np.uint8]], int | None]
"""A decoded clip, its frames as `Batches.add` takes them, and the start of the recording's next clip to come."""


@contextmanager
def _decoding(
    work: Sequence[Sequence[ClipRecord]], backbone: "Backbone", writers: Mapping[str, CacheWriter], decoders: int
) -> Iterator[Iterator[_Decoded | int]]:
    """Every clip of `work`, decoded by threads that run ahead; the threads have ended when the block has.

    Instead of clips that are left to another process comes their number.
    """
    waiting: queue.SimpleQueue[tuple[Sequence[ClipRecord], bool]] = queue.SimpleQueue()
    for clips in work:
        waiting.put((clips, False))
    running = max(1, min(decoders, len(work)))
    ready: queue.Queue[_Decoded | int | BaseException | None] = queue.Queue(_QUEUED_CLIPS_PER_DECODER * running)
    stop = threading.Event()

    def hand_over(result: "_Decoded | int | BaseException | None") -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(result, timeout=0.1)
                return

    def decode() -> None:
        try:
            while not stop.is_set():
                clips, was_deferred = waiting.get_nowait()
                left = acquire(clips, writers, is_last_try=was_deferred)
                if left is None and not was_deferred:
                    waiting.put((clips, True))
                    continue
                if len(left or ()) < len(clips):
                    hand_over(len(clips) - len(left or ()))
                for decoded in _decoded(left or (), backbone.inputs.frames, backbone.inputs.frame_resize.picture):
                    hand_over(decoded)
                    if stop.is_set():
                        return
        except queue.Empty:
            hand_over(None)
        except BaseException as error:  # raised again in the calling thread
            hand_over(error)

    def results() -> Iterator[_Decoded | int]:
        left = running
        while left:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                left -= 1
            else:
                taken, result = [result], None  # waiting here must not keep its frames
                yield taken.pop()

    threads = [threading.Thread(target=decode, daemon=True) for _ in range(running)]
    try:
        for thread in threads:
            thread.start()
        yield results()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _decoded(clips: Sequence[ClipRecord], frames: int, fit: Fit) -> Iterator[_Decoded]:
    """Clips of one recording, each as soon as its frames are there."""
    by_span = {clip.span: clip for clip in clips}
    ahead = _Ahead(list(by_span))
    for found in read_in_time(clips[0].recording, list(by_span), frames, fit) if clips else ():
        clip, pixels = by_span[found.start_us, found.end_us], []
        if isinstance(found, ClipFailure):
            clip = replace(clip, reason=found.reason)
        else:
            clip, pixels = replace(clip, timestamps_us=found.timestamps_us), list(found.pictures)
        del found  # its frames are in memory no longer than whoever takes them needs
        yield clip, pixels, ahead.after(clip.span)


def read_in_time(
    recording: Recording, spans: Sequence[tuple[int, int]], frames: int, fit: Fit
) -> Iterator[ClipFrames | ClipFailure]:
    """As `read_clips`, in a time that follows from the recording's length: a stalled decoder cannot stretch it."""
    limit_s = _TIME_LIMIT_S + _TIME_LIMIT_PER_SECOND * recording.info.duration_us / 1e6
    return read_clips(recording.path, spans, frames, fit=fit, time_limit_s=limit_s)
