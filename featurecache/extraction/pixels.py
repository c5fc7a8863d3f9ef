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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from featurecache.backbones.resize import FrameResize
from featurecache.clips.clip import clip_id
from featurecache.errors import UnreadableVideoError
from featurecache.extraction.pipeline import Span, Work, clips_of
from featurecache.video.recordings import Recording
from featurecache.video.sampling import ClipFailure


class PixelStore:
    """The decoded frames of any of these clips.

    Args:
        clips: Recording and span of each clip, by its id.
        frames: T, frames of a clip.
        resize: Resizes a decoded frame to the model's size.
        decoders: Threads, one recording each.
        most_bytes: Most bytes of frames in memory; a single batch may take more.
    """

    def __init__(
        self,
        clips: Mapping[str, tuple[Recording, Span]],
        *,
        frames: int,
        resize: FrameResize,
        decoders: int,
        most_bytes: float,
    ) -> None:
        self._clips, self._frames, self._resize, self._decoders = clips, frames, resize, decoders
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
                f"{self._clips[name][0].name} is not: {reason} Restore the recording and run again."
            )

    def _decode(self, clip_ids: Iterable[str], take: Callable[[str, Tensor | str], None]) -> None:
        """Gives each clip's frames (T, px, px, 3), or the reason why there are none, to `take`, from any thread."""
        by_recording: dict[str, list[Span]] = defaultdict(list)
        recordings: dict[str, Recording] = {}
        for name in clip_ids:
            recording, span = self._clips[name]
            recordings[recording.sha256] = recording
            by_recording[recording.sha256].append(span)
        stop = threading.Event()
        began = time.monotonic()

        def decode(recording: Recording, spans: Sequence[Span]) -> None:
            for clip in clips_of(Work(recording, dict.fromkeys(spans, ())), self._frames, self._resize.picture):
                if stop.is_set():
                    return
                name = clip_id(recording.sha256, clip.start_us, clip.end_us)
                if isinstance(clip, ClipFailure):
                    take(name, clip.reason)
                else:
                    take(name, torch.from_numpy(clip.frames))

        longest_first = sorted(by_recording, key=lambda sha256: len(by_recording[sha256]), reverse=True)
        with ThreadPoolExecutor(self._decoders) as pool:
            try:
                for _ in pool.map(lambda one: decode(recordings[one], by_recording[one]), longest_first):
                    pass
            finally:
                stop.set()
        self._decoded += sum(len(spans) for spans in by_recording.values())
        self._decoding_s += time.monotonic() - began
