"""The loop that joins video, backbone, pooling and store.

Decoder threads, one recording each, run ahead of the model through a bounded queue. They resize each frame as it is
decoded, on the CPU whatever the model's device: every device gets the same pixels, and what is queued and copied does
not grow with the size of a recording's frames. The calling thread makes batches of equal length that cross recordings
and runs the model; a third kind of thread writes. A clip that cannot be extracted is recorded with its reason and the
run goes on. One pass fills every feature space asked for, each clip only those that lack it. Nothing here chooses which
clips are missing: the caller plans.
"""

import contextlib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import clip_id
from featurecache.spec import FeatureSpace, Kept
from featurecache.store import CacheWriter
from featurecache.video.recordings import Recording
from featurecache.video.sampling import ClipFailure, ClipFrames, Fit, read_clips

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone

_QUEUED_CLIPS_PER_DECODER = 1  # beside the one that each decoder holds
# A stalled decoder must not stall the run; a slow machine decoding 4K must not be cut off.
_TIME_LIMIT_S = 60.0
_TIME_LIMIT_PER_SECOND = 20.0

Span = tuple[int, int]
"""A clip's `[start_us, end_us)`."""


@dataclass(frozen=True)
class Work:
    """The clips of one recording that are to be computed, and which selected features each is missing."""

    recording: Recording
    lacking: Mapping[Span, tuple[str, ...]]

    @property
    def spans(self) -> tuple[Span, ...]:
        """The clips."""
        return tuple(self.lacking)


@dataclass(frozen=True)
class FailedClip:
    """A clip without a feature, and why."""

    clip_id: str
    recording: str
    start_us: int
    end_us: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        extracted: Clips whose features are computed.
        failed: Clips that could not be extracted.
        elsewhere: Clips that another process has done meanwhile or has claimed.
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
    elsewhere: int = 0
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
    work: Sequence[Work],
    backbone: "Backbone",
    writers: Mapping[str, CacheWriter],
    *,
    kept: Mapping[str, Kept],
    spaces: Mapping[str, FeatureSpace],
    batch_size: int | Literal["auto"],
    decoders: int,
    device: str,
    begin: Callable[[Work, bool], Work | None] = lambda item, _again: item,
    known_timestamps: Mapping[str, npt.NDArray[np.int64]] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Computes and stores the missing features of the clips in `work`.

    Args:
        work: What to compute, one entry per recording.
        backbone: The loaded model.
        writers: An open writer of each feature space, by the name of the selected feature.
        kept: Tap and pooling, by the same names.
        spaces: The feature spaces, by the same names.
        batch_size: B, clips per forward; halved where memory is not enough.
        decoders: Threads that decode, one recording each.
        device: The backbone's torch device.
        begin: Called by a decoder before a recording: what is still to be computed, or None while another process
            has claimed it. Such a recording is deferred and tried once more at the end, with True.
        known_timestamps: Clip id -> frame timestamps (T,) of an earlier extraction with the same sampling. A clip
            whose frames are now others fails: a decoder has changed, and features would not be comparable.
        on_progress: Called after each batch and each failure.

    Raises:
        CacheWriteError: If features cannot be saved.
    """
    from featurecache.extraction.batches import Batches, ComputedClip, SampledClip
    from featurecache.extraction.saving import Saving

    known = known_timestamps or {}
    began = time.monotonic()
    total = sum(len(item.lacking) for item in work)
    elsewhere, waited_s = 0, 0.0
    failures: list[FailedClip] = []
    batches = Batches(
        backbone,
        kept,
        stored_dtypes={name: space.stored_dtype for name, space in spaces.items()},
        taps=sorted({kept[name].tap for item in work for names in item.lacking.values() for name in names}),
        batch_size=batch_size,
        device=device,
    )
    saving = Saving(writers)
    fit = backbone.inputs.frame_resize.picture

    def fail(recording: Recording, start_us: int, end_us: int, reason: str) -> None:
        name = clip_id(recording.sha256, start_us, end_us)
        failures.append(FailedClip(name, recording.name, start_us, end_us, reason))

    def save(done: Sequence[ComputedClip]) -> None:
        for computed in done:
            clip = computed.clip
            if computed.reason:
                fail(clip.recording, clip.start_us, clip.end_us, computed.reason)
            else:
                saving.put(computed)
        if done:
            on_progress(progress())

    def progress() -> Progress:
        stages = batches.stages
        return Progress(
            extracted=saving.saved,
            failed=len(failures) + len(saving.refused),
            elsewhere=elsewhere,
            total=total,
            elapsed_s=time.monotonic() - began,
            waited_s=waited_s,
            preprocess_s=stages.preprocess_s,
            model_s=stages.model_s,
            write_s=saving.seconds,
            batch_size=batches.batch_size,
            shared_frames=1 - stages.frames_computed / stages.frames if stages.frames else 0.0,
        )

    with saving, _decoding(work, backbone.inputs.frames, fit, decoders, begin) as results:
        ahead: dict[str, _Ahead] = {}
        while True:
            asked = time.monotonic()
            result = next(results, None)
            waited_s += time.monotonic() - asked
            if result is None:
                break
            if isinstance(result, int):
                elsewhere += result
                on_progress(progress())
                continue
            item, clip = result
            recording, span = item.recording, (clip.start_us, clip.end_us)
            needed_from_us = ahead.setdefault(recording.sha256, _Ahead(item.spans)).after(span)
            reason = clip.reason if isinstance(clip, ClipFailure) else _changed_frames(recording, clip, known)
            if isinstance(clip, ClipFailure) or reason:
                fail(recording, *span, reason)
                on_progress(progress())
                continue
            sampled = SampledClip(recording, *span, clip.timestamps_us, item.lacking[span])
            pictures = list(clip.pictures)
            del result, clip  # the pictures are in memory no longer than needed
            save(batches.add(sampled, pictures, needed_from_us))
        save(batches.finish())
    for writer in writers.values():
        writer.commit()
    for computed, reason in saving.refused:
        fail(computed.clip.recording, computed.clip.start_us, computed.clip.end_us, reason)
    saving.refused.clear()
    on_progress(progress())
    return Extraction(progress(), tuple(sorted(failures, key=lambda f: (f.recording, f.start_us, f.end_us))))


class _Ahead:
    """Which clips of a recording are still to come."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._waiting = set(spans)
        self._starts = list(spans)
        heapq.heapify(self._starts)

    def after(self, span: Span) -> int | None:
        """Start of the earliest one that is still to come after `span` has come; None if none is."""
        self._waiting.discard(span)
        while self._starts and self._starts[0] not in self._waiting:
            heapq.heappop(self._starts)
        return self._starts[0][0] if self._starts else None


def _changed_frames(recording: Recording, clip: ClipFrames, known: Mapping[str, npt.NDArray[np.int64]]) -> str:
    """Why a clip's frames are not those of an earlier extraction; empty where they are, or there was none."""
    earlier = known.get(clip_id(recording.sha256, clip.start_us, clip.end_us))
    if earlier is None or np.array_equal(earlier, clip.timestamps_us):
        return ""
    differing = int(np.flatnonzero(earlier != clip.timestamps_us)[0])
    return (
        f"the decoder must choose the frames it chose before, but frame {differing} lies at "
        f"{clip.timestamps_us[differing]} us and lay at {earlier[differing]} us. "
        "Use the PyAV version of the earlier extraction (featurecache cache info --json), or extract into a new cache."
    )


_Result = tuple[Work, ClipFrames | ClipFailure] | int
"""A clip of some work, or the number of clips that are left to another process."""


@contextmanager
def _decoding(
    work: Sequence[Work], frames: int, fit: Fit, decoders: int, begin: Callable[[Work, bool], Work | None]
) -> Iterator[Iterator[_Result]]:
    """Every clip of `work`, decoded by threads that run ahead; the threads have ended when the block has."""
    waiting: queue.SimpleQueue[tuple[Work, bool]] = queue.SimpleQueue()
    for item in work:
        waiting.put((item, False))
    running = max(1, min(decoders, len(work)))
    ready: queue.Queue[_Result | BaseException | None] = queue.Queue(maxsize=_QUEUED_CLIPS_PER_DECODER * running)
    stop = threading.Event()

    def hand_over(result: "_Result | BaseException | None") -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(result, timeout=0.1)
                return

    def decode() -> None:
        try:
            while not stop.is_set():
                item, was_deferred = waiting.get_nowait()
                left = begin(item, was_deferred)
                if left is None and not was_deferred:
                    waiting.put((item, True))
                    continue
                left = left or Work(item.recording, {})
                if len(left.lacking) < len(item.lacking):
                    hand_over(len(item.lacking) - len(left.lacking))
                for clip in clips_of(left, frames, fit):
                    hand_over((left, clip))
                    if stop.is_set():
                        return
        except queue.Empty:
            hand_over(None)
        except BaseException as error:  # raised again in the calling thread
            hand_over(error)

    def results() -> Iterator[_Result]:
        left = running
        while left:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                left -= 1
            else:
                taken, result = [result], None  # waiting here must not keep its pictures
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


def clips_of(item: Work, frames: int, fit: Fit) -> Iterator[ClipFrames | ClipFailure]:
    """Every clip of some work, decoded one after another, in a time that a stalled decoder cannot stretch.

    `fit` is as in `read_clips`.
    """
    limit_s = _TIME_LIMIT_S + _TIME_LIMIT_PER_SECOND * item.recording.info.duration_us / 1e6
    return read_clips(item.recording.path, item.spans, frames, fit=fit, time_limit_s=limit_s)
