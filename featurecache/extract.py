"""The loop that joins video, backbone, pooling and store.

Decoder threads, one recording each, run ahead of the model through a bounded queue; the calling
thread preprocesses on the model's device, runs batches of equal length that cross recordings, and
hands features to the writer. A clip that cannot be had is recorded with its reason and the run goes
on. Nothing here chooses which clips are missing: the caller plans.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.clips import clip_id
from featurecache.errors import NonFiniteFeatureError
from featurecache.recordings import Recording
from featurecache.spec import NUMERICS_VERSION, FeatureSpace
from featurecache.store import CacheWriter, Row
from featurecache.video import ClipFailure, ClipFrames, read_clips

if TYPE_CHECKING:
    from featurecache.backbones.llava_next_video import LlavaNextVideoBackbone, LlavaNextVideoInputs

_QUEUED_CLIPS_PER_DECODER = 2
# A stalled decoder must not stall the run; a slow machine decoding 4K must not be cut off.
_TIME_LIMIT_S = 60.0
_TIME_LIMIT_PER_SECOND = 20.0


@dataclass(frozen=True)
class Work:
    """The clips of one recording that are to be computed, as `[start_us, end_us)` spans."""

    recording: Recording
    spans: tuple[tuple[int, int], ...]


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
        failed: Clips that cannot be had.
        elsewhere: Clips that another process has done meanwhile or is working on.
        total: Clips of this run.
        elapsed_s: Seconds since the run began.
        waited_s: Seconds the model waited for video.
    """

    extracted: int
    failed: int
    elsewhere: int
    total: int
    elapsed_s: float
    waited_s: float


@dataclass(frozen=True)
class Extraction:
    """What a run did."""

    progress: Progress
    failures: tuple[FailedClip, ...]


def feature_space(
    inputs: "LlavaNextVideoInputs", *, dtype: str, stored_dtype: str, sha256_of: Callable[[Path], str]
) -> FeatureSpace:
    """The feature space that these inputs compute: tap `final`, pooling `mean`."""
    identity: dict[str, Any] = inputs.identity(dtype, sha256_of)
    return FeatureSpace(
        {
            "numerics_version": NUMERICS_VERSION,
            **identity,
            "tap": "final",
            "pooling": "mean",
            "stored_dtype": stored_dtype,
        }
    )


def extract(
    work: Sequence[Work],
    backbone: "LlavaNextVideoBackbone",
    writer: CacheWriter,
    *,
    batch_size: int,
    decoders: int,
    begin: Callable[[Work], Work | None] = lambda item: item,
    known_timestamps: Mapping[str, npt.NDArray[np.int64]] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Computes and stores the features of all clips in `work`.

    Args:
        work: What to compute, one entry per recording.
        backbone: The loaded model.
        writer: An open writer of the backbone's feature space.
        batch_size: B, clips per forward.
        decoders: Threads that decode, one recording each.
        begin: Called by a decoder before a recording: the clips that are still to be computed, or None while
            another process is at it. Such a recording is asked for once more at the end.
        known_timestamps: Clip id -> frame timestamps (T,) of an earlier extraction with the same sampling. A clip
            whose frames are now others fails: a decoder has changed, and features would not be comparable.
        on_progress: Called after each batch and each failure.

    Raises:
        CacheWriteError: If features cannot be saved.
    """
    import torch

    from featurecache.pooling import mean_of_tokens

    known = known_timestamps or {}
    began = time.monotonic()
    total = sum(len(item.spans) for item in work)
    extracted, elsewhere, waited_s = 0, 0, 0.0
    failures: list[FailedClip] = []
    batch: list[tuple[_Sampled, torch.Tensor]] = []  # without the frames, which are large

    def fail(recording: Recording, start_us: int, end_us: int, reason: str) -> None:
        name = clip_id(recording.sha256, start_us, end_us)
        failures.append(FailedClip(name, recording.name, start_us, end_us, reason))

    def progress() -> Progress:
        return Progress(extracted, len(failures), elsewhere, total, time.monotonic() - began, waited_s)

    def run_batch() -> None:
        nonlocal extracted
        pixels = torch.stack([pixels for _, pixels in batch])  # (B, T, 3, H, W)
        features = mean_of_tokens(backbone.video_token_states(pixels)).cpu().numpy()  # (B, D)
        for ((recording, start_us, end_us, timestamps_us), _), feature in zip(batch, features, strict=True):
            try:
                writer.add(Row(recording.sha256, start_us, end_us, feature, timestamps_us))
                extracted += 1
            except NonFiniteFeatureError as error:
                fail(recording, start_us, end_us, str(error))
        batch.clear()

    with _decoding(work, backbone.inputs.frames, decoders, begin) as results:
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
            recording, clip = result
            reason = clip.reason if isinstance(clip, ClipFailure) else _changed_frames(recording, clip, known)
            if isinstance(clip, ClipFailure) or reason:
                fail(recording, clip.start_us, clip.end_us, reason)
                on_progress(progress())
                continue
            sampled = (recording, clip.start_us, clip.end_us, clip.timestamps_us)
            batch.append((sampled, backbone.preprocess(clip.frames)))
            if len(batch) == batch_size:
                run_batch()
                on_progress(progress())
        if batch:
            run_batch()
    writer.commit()
    on_progress(progress())
    return Extraction(progress(), tuple(sorted(failures, key=lambda f: (f.recording, f.start_us, f.end_us))))


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


_Sampled = tuple[Recording, int, int, npt.NDArray[np.int64]]
_Result = tuple[Recording, ClipFrames | ClipFailure] | int
"""A clip, or the number of clips that are left to another process."""


@contextmanager
def _decoding(
    work: Sequence[Work], frames: int, decoders: int, begin: Callable[[Work], Work | None]
) -> Iterator[Iterator[_Result]]:
    """Every clip of `work`, decoded by threads that run ahead; the threads have ended when the block has."""
    waiting: queue.SimpleQueue[tuple[Work, bool]] = queue.SimpleQueue()
    for item in work:
        waiting.put((item, False))
    ready: queue.Queue[_Result | BaseException | None] = queue.Queue(maxsize=_QUEUED_CLIPS_PER_DECODER * decoders)
    stop = threading.Event()

    def hand_over(result: "_Result | BaseException | None") -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(result, timeout=0.1)
                return

    def decode() -> None:
        try:
            while not stop.is_set():
                item, was_put_off = waiting.get_nowait()
                left = begin(item)
                if left is None and not was_put_off:
                    waiting.put((item, True))
                    continue
                spans = left.spans if left is not None else ()
                if len(spans) < len(item.spans):
                    hand_over(len(item.spans) - len(spans))
                for clip in _clips_of(Work(item.recording, spans), frames):
                    hand_over((item.recording, clip))
                    if stop.is_set():
                        return
        except queue.Empty:
            hand_over(None)
        except BaseException as error:  # raised again in the calling thread
            hand_over(error)

    def results() -> Iterator[_Result]:
        running = len(threads)
        while running:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                running -= 1
            else:
                yield result

    threads = [threading.Thread(target=decode, daemon=True) for _ in range(max(1, min(decoders, len(work))))]
    try:
        for thread in threads:
            thread.start()
        yield results()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _clips_of(item: Work, frames: int) -> Iterator[ClipFrames | ClipFailure]:
    limit_s = _TIME_LIMIT_S + _TIME_LIMIT_PER_SECOND * item.recording.info.duration_us / 1e6
    return read_clips(item.recording.path, item.spans, frames, time_limit_s=limit_s)
