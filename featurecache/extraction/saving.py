"""Writing features while the model runs: one thread that hands rows to the writers of their feature spaces.

The queue is bounded, so that a slow disk slows the run instead of filling the memory. What was handed over is with
the writers when the block is left, also when an exception is on its way out; the writers commit. Not here: what a
row is on disk, and when a segment is full.
"""

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from featurecache.errors import NonFiniteFeatureError, WithdrawnRecordingError
from featurecache.extraction.clip import ClipRecord
from featurecache.store import CacheWriter, Row

_QUEUED_CLIPS = 16


class Saving:
    """Takes computed clips; a context manager that ends when all are with the writers.

    Args:
        writers: Writers by the name of the selected feature.

    Attributes:
        saved: Clips whose features are with the writers.
        refused: Clips whose features cannot be stored, with the reason.
        seconds: Time spent writing.
    """

    def __init__(self, writers: Mapping[str, CacheWriter]) -> None:
        self.saved = 0
        self.refused: list[ClipRecord] = []
        self.seconds = 0.0
        self._writers = writers
        self._queue: queue.Queue[ClipRecord | None] = queue.Queue(maxsize=_QUEUED_CLIPS)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def put(self, clip: ClipRecord) -> None:
        """Hands a clip's features over; waits while many are.

        Raises:
            CacheWriteError: If earlier ones cannot be saved.
        """
        self._raise()
        self._queue.put(clip)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (clip := self._queue.get()) is not None:
            if self._error is not None:
                continue  # the queue is emptied, so that nobody waits for it
            began = time.perf_counter()
            try:
                self._add(clip)
            except Exception as error:  # raised again in the calling thread
                self._error = error
            self.seconds += time.perf_counter() - began

    def _add(self, clip: ClipRecord) -> None:
        reason = ""
        for name, feature in (clip.features or {}).items():
            row = Row(clip.recording.sha256, clip.start_us, clip.end_us, feature, clip.times_us)
            try:
                self._writers[name].add(row)
            except (NonFiniteFeatureError, WithdrawnRecordingError) as error:
                reason = reason or str(error)
        if reason:
            self.refused.append(replace(clip, features=None, reason=reason))
        else:
            self.saved += 1
