"""The loop that joins video, backbone, pooling and store.

Decoder threads, one recording each, run ahead of the model through a bounded queue. They resize each frame as it is
decoded, on the CPU whatever the model's device: every device gets the same pixels, and what is queued and copied does
not grow with the size of a recording's frames. The calling thread makes batches of equal length that cross recordings
and runs the model; a third kind of thread writes. A clip that cannot be extracted is recorded with its reason and the
run goes on. One pass fills every feature space asked for, each clip only those that are missing. Which clips are
missing is not decided here: the caller plans.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.decoders import Decoded, Decoders
from featurecache.extraction.failures import FailedClip
from featurecache.store import CacheWriter

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone
    from featurecache.extraction.batches import Batches
    from featurecache.extraction.saving import Saving


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
class WorkerCrash:
    """A worker that ended without a result, and the reason."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Extraction:
    """What a run did, alone or by several workers.

    Attributes:
        progress: Its end. Of several workers `extracted` counts the clips that the cache has gained, and stage times
            are means, so that their share of the elapsed time reads as that of one process does.
        failures: Clips that could not be extracted.
        checked: Stored clips that were computed again at its start, and agreed.
        crashes: Workers that ended without a result.
    """

    progress: Progress
    failures: tuple[FailedClip, ...]
    checked: int = 0
    crashes: tuple[WorkerCrash, ...] = ()


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
    spaces = {name: writer.space for name, writer in writers.items()}
    taps = sorted({spaces[name].tap for clips in work for clip in clips for name in clip.wanted})
    batches = Batches(backbone, spaces, taps=taps, batch_size=batch_size, device=device)
    saving = Saving(writers)
    run = _Pass(batches, saving, sum(map(len, work)), on_progress)
    with saving, Decoders(work, backbone, writers, decoders) as decoded:
        results = iter(decoded)
        while (result := run.wait_for(results)) is not None:
            if isinstance(result, int):
                run.leave(result)
                continue
            clip, frames, needed_from_us = result
            del result  # its frames are in memory no longer than needed
            clip = clip if clip.reason else replace(clip, reason=_changed_frames(clip, known))
            run.save([clip] if clip.reason else batches.add(clip, frames, needed_from_us))
        run.save(batches.finish())
    for writer in writers.values():
        writer.commit()
    return run.end()


class _Pass:
    """What has become of the clips of one extraction so far."""

    def __init__(
        self, batches: "Batches", saving: "Saving", total: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self._batches, self._saving, self._total, self._on_progress = batches, saving, total, on_progress
        self._failures: list[FailedClip] = []
        self._claimed_by_others, self._waited_s = 0, 0.0
        self._began = time.monotonic()

    def wait_for(self, results: Iterator[Decoded | int]) -> Decoded | int | None:
        """The next result, None after the last; the wait is counted."""
        asked = time.monotonic()
        try:
            return next(results, None)
        finally:
            self._waited_s += time.monotonic() - asked

    def leave(self, clips: int) -> None:
        """Counts clips that are left to another process."""
        self._claimed_by_others += clips
        self._on_progress(self._progress())

    def save(self, done: Sequence[ClipRecord]) -> None:
        """Hands computed clips to the writers, and notes those that failed."""
        for clip in done:
            if clip.reason:
                self._fail(clip)
            else:
                self._saving.put(clip)
        if done:
            self._on_progress(self._progress())

    def end(self) -> Extraction:
        """What the extraction did, once all is written; withdrawn recordings that the writers refused are failures."""
        for clip in self._saving.refused:
            self._fail(clip)
        self._saving.refused.clear()
        self._on_progress(self._progress())
        failures = sorted(self._failures, key=lambda one: (one.recording, one.start_us, one.end_us))
        return Extraction(self._progress(), tuple(failures))

    def _fail(self, clip: ClipRecord) -> None:
        self._failures.append(FailedClip(clip.clip_id, clip.recording.name, clip.start_us, clip.end_us, clip.reason))

    def _progress(self) -> Progress:
        stages = self._batches.stages
        return Progress(
            extracted=self._saving.saved,
            failed=len(self._failures) + len(self._saving.refused),
            claimed_by_others=self._claimed_by_others,
            total=self._total,
            elapsed_s=time.monotonic() - self._began,
            waited_s=self._waited_s,
            preprocess_s=stages.preprocess_s,
            model_s=stages.model_s,
            write_s=self._saving.seconds,
            batch_size=self._batches.batch_size,
            shared_frames=1 - stages.frames_computed / stages.frames if stages.frames else 0.0,
        )


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
