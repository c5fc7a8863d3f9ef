"""Clips as decoded, resized frames in bounded memory, for training that reads them again in every epoch.

Notable choices:

- A clip is stored as 8-bit frames of the model's size (8 frames of 224 px: 1.2 MB), so that many hours fit. Nothing
  is written: no frame of a recording leaves memory.
- What does not fit is decoded again when it is asked for, together with as many of the clips that come next as the
  bound allows: each such block costs one pass over the recordings it touches, not one for each clip.
- Recordings are decoded side by side, one thread each.

Not here: features, labels, the order of training.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from featurecache.backbones.resize import FrameResize
from featurecache.errors import UnreadableVideoError
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.decoders import read_in_time
from featurecache.video.sampling import ClipFailure


class PixelStore:
    """The decoded frames of any of these clips.

    Args:
        clips: The clips, in any order.
        frames: T, frames of a clip.
        resize: Resizes a decoded frame to the model's size.
        decoders: Threads, one recording each.
        most_bytes: Most bytes of frames in memory; a single batch may take more.
    """

    def __init__(
        self,
        clips: Iterable[ClipRecord],
        *,
        frames: int,
        resize: FrameResize,
        decoders: int,
        most_bytes: float,
    ) -> None:
        self._clips = {clip.clip_id: clip for clip in clips}
        self._frames, self._resize, self._decoders = frames, resize, decoders
        self.clip_bytes = frames * resize.image_px**2 * 3
        self.most = max(1, int(most_bytes // self.clip_bytes))
        """Clips in memory at most."""
        self._held: dict[str, Tensor] = {}
        self._decoded, self._decoding_s = 0, 0.0

    @property
    def clip_s(self) -> float:
        """Seconds that a clip took to decode so far, all threads together; 0 before the first."""
        return self._decoding_s / self._decoded if self._decoded else 0.0

    @property
    def held(self) -> int:
        """Clips in memory now."""
        return len(self._held)

    def examine(self, on_progress: Callable[[int, int], None] = lambda _done, _all: None) -> dict[str, str]:
        """Decodes every clip once, and holds as many in memory as fit.

        Args:
            on_progress: Called with the number of clips done and of all, from any thread.

        Returns:
            The reason for each clip that could not be decoded.
        """
        reasons: dict[str, str] = {}
        done = 0
        lock = threading.Lock()

        def take(name: str, found: Tensor | str) -> None:
            nonlocal done
            with lock:
                done += 1
                if isinstance(found, str):
                    reasons[name] = found
                elif len(self._held) < self.most:
                    self._held[name] = found
            on_progress(done, len(self._clips))

        self._decode(self._clips, take)
        return reasons

    def read(self, clip_ids: Sequence[str], *, coming: Iterable[str] = ()) -> Tensor:
        """Frames of B clips, shape (B, T, px, px, 3), uint8.

        Args:
            clip_ids: The clips.
            coming: Those that will be asked for next, in order.

        Raises:
            UnreadableVideoError: If one cannot be decoded.
        """
        if any(name not in self._held for name in clip_ids):
            self._load(clip_ids, coming)
        return torch.stack([self._held[name] for name in clip_ids])

    def _load(self, clip_ids: Sequence[str], coming: Iterable[str]) -> None:
        wanted = dict.fromkeys([*clip_ids, *islice(coming, max(0, self.most - len(clip_ids)))])
        new = [name for name in wanted if name not in self._held]
        if len(self._held) + len(new) > self.most:
            self._held = {name: one for name, one in self._held.items() if name in wanted}
        reasons: dict[str, str] = {}

        def take(name: str, found: Tensor | str) -> None:
            if isinstance(found, str):
                reasons[name] = found
            else:
                self._held[name] = found

        self._decode(new, take)
        for name, reason in reasons.items():
            raise UnreadableVideoError(
                f"a clip that was decoded before must still be there, but {name} of "
                f"{self._clips[name].recording.name} is not: {reason} Restore the recording and run again."
            )

    def _decode(self, clip_ids: Iterable[str], take: Callable[[str, Tensor | str], None]) -> None:
        """Gives each clip's frames (T, px, px, 3), or the reason why there are none, to `take`, from any thread."""
        by_recording: dict[str, list[ClipRecord]] = defaultdict(list)
        for name in clip_ids:
            by_recording[self._clips[name].recording.sha256].append(self._clips[name])
        stop = threading.Event()
        began = time.monotonic()

        def decode(clips: Sequence[ClipRecord]) -> None:
            names = {clip.span: clip.clip_id for clip in clips}
            fit = self._resize.of(clips[0].recording.name).smaller
            for found in read_in_time(clips[0].recording, list(names), self._frames, fit):
                if stop.is_set():
                    return
                name = names[found.start_us, found.end_us]
                take(name, found.reason if isinstance(found, ClipFailure) else torch.from_numpy(found.stacked))

        with ThreadPoolExecutor(self._decoders) as pool:
            try:
                for _ in pool.map(decode, sorted(by_recording.values(), key=len, reverse=True)):
                    pass
            finally:
                stop.set()
        self._decoded += sum(map(len, by_recording.values()))
        self._decoding_s += time.monotonic() - began
