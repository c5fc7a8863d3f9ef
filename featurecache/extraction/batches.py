"""From decoded clips to features: batches that fit in memory, and frames that several clips share computed once.

A frame is known by recording and timestamp. What the model computes on a frame alone is kept as long as a later clip
of the recording may ask for it, so that overlapping clips cost their new frames only; the window is bounded by the
clips that overlap, whatever the length of the recording. The pixels are the same; what is computed from them rounds
as it does in batches of any other size. Frames are 8-bit numbers until the model asks for them.

A batch that does not fit in memory is halved and done again, and later batches are as small; a clip that does not fit
alone fails with that reason. On a CUDA device copies run on a stream of their own while the model runs,
and a batch's features are fetched when the next batch has been launched, so that the device is not left waiting.

Not here: decoding, threads, the store.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.backbones.family import Backbone
from featurecache.backbones.pooling import pool
from featurecache.device import is_out_of_memory
from featurecache.extraction.clip import ClipRecord, Frame
from featurecache.spec import FeatureSpace

CPU_BATCH = 4
"""Clips at once on a CPU under "auto": more are no faster there."""

_CPU_FRAMES = 4  # encoded at once on a CPU: more are slower there, for they leave the processor's caches
_MOST_AUTO = 32
_SHARE_OF_FREE = 0.8  # of the free device memory, for what one measured clip does not show


@dataclass
class Stages:
    """Where the time went, in seconds, and how many frames were needed and computed."""

    preprocess_s: float = 0.0
    model_s: float = 0.0
    frames: int = 0
    frames_computed: int = 0


class Batches:
    """Gathers clips into batches and computes their features.

    Args:
        backbone: The loaded model.
        spaces: The feature space of each selected feature, by name: features that are stored in bfloat16 are handed out
            so, by their bits.
        taps: Those that are run, for every clip.
        batch_size: Clips at once; "auto" measures the first clip's memory on a CUDA device.
        device: The backbone's.

    Attributes:
        batch_size: Clips at once by now.
        stages: Times so far.
    """

    def __init__(
        self,
        backbone: Backbone,
        spaces: Mapping[str, FeatureSpace],
        *,
        taps: Sequence[str],
        batch_size: int | Literal["auto"],
        device: str,
    ) -> None:
        self._backbone, self._spaces = backbone, spaces
        self._taps = [tap for tap in backbone.inputs.taps if tap in taps]
        self._cuda = torch.device(device).type == "cuda"
        self._device = torch.device(device)
        self._measuring = batch_size == "auto" and self._cuda
        self.batch_size = batch_size if batch_size != "auto" else 1 if self._cuda else CPU_BATCH
        self.stages = Stages()
        self._clips: list[ClipRecord] = []
        self._pixels: dict[Frame, Tensor] = {}  # of the batch being gathered, on the device
        self._encoded: dict[Frame, Tensor] = {}  # of earlier batches, for later clips
        self._needed_from_us: dict[str, int] = {}
        self._pending: list[_Launched | ClipRecord] = []
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]

    def add(
        self, clip: ClipRecord, frames: list[npt.NDArray[np.uint8]], needed_from_us: int | None
    ) -> list[ClipRecord]:
        """Takes a clip; computes a batch when it is full.

        Args:
            clip: The clip.
            frames: Its T frames as `frame_resize` makes them, each (px, px, 3). Emptied, so that they are in memory
                no longer than needed.
            needed_from_us: Start of the earliest clip of this recording that is still to come, None after the last.

        Returns:
            Clips that are done by now, in the order taken.
        """
        self.stages.frames += len(clip.times_us)
        done: list[ClipRecord] = []
        is_there = self._take(clip, frames)
        if not is_there and self._clips:
            done = self._run_batch()  # there is room afterwards
            is_there = self._take(clip, frames)
        frames.clear()
        self._needed_from_us.pop(clip.recording.sha256, None)
        if needed_from_us is not None:
            self._needed_from_us[clip.recording.sha256] = needed_from_us
        if not is_there:
            return [*done, replace(clip, reason=_too_large("its frames do not"))]
        self._clips.append(clip)
        return done + self._run_batch() if len(self._clips) >= self.batch_size else done

    def finish(self) -> list[ClipRecord]:
        """Computes what is left; returns every clip that was not handed out."""
        done = self._run_batch() if self._clips else []
        left, self._pending = self._pending, []
        return done + self._fetch(left)

    def _take(self, clip: ClipRecord, frames: Sequence[npt.NDArray[np.uint8]]) -> bool:
        """Hands the frames that are new to the device; False where they do not fit in memory."""
        new = {
            key: frame
            for key, frame in zip(clip.frames, frames, strict=True)
            if key not in self._pixels and key not in self._encoded
        }
        if not new:
            return True
        began = time.perf_counter()
        try:
            with torch.cuda.stream(self._copies) if self._copies else contextlib.nullcontext():
                taken = torch.from_numpy(np.stack(list(new.values()))).to(self._device)  # (F, px, px, 3)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        if self._copies:
            taken.record_stream(torch.cuda.current_stream(self._device))
        self._pixels.update(zip(new, taken, strict=True))
        self.stages.preprocess_s += time.perf_counter() - began
        return True

    def _run_batch(self) -> list[ClipRecord]:
        """Runs the gathered clips; returns those that are done, on a CUDA device the batch before."""
        clips, self._clips = self._clips, []
        ran = self._run(clips)
        self._pixels.clear()
        self._encoded = {frame: self._encoded[frame] for frame in self._wanted_later(self._encoded)}
        due, self._pending = (self._pending, ran) if self._cuda else (ran, [])
        return self._fetch(due)

    def _run(self, clips: list[ClipRecord]) -> "list[_Launched | ClipRecord]":
        """Runs clips at once, or in parts where memory does not allow it."""
        ran: list[_Launched | ClipRecord] = []
        while clips:
            part = clips[: self.batch_size]
            try:
                ran.append(self._forward(part))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                clips = clips[len(part) :]
                continue
            # Only here are the tensors gone that the exception's traceback held.
            self._measuring = False
            if self._cuda:
                torch.cuda.empty_cache()
            if len(part) == 1:
                ran.append(replace(part[0], reason=_too_large("it does not")))
                clips = clips[1:]
            self.batch_size = max(1, len(part) // 2)
        return ran

    @torch.inference_mode()
    def _forward(self, clips: list[ClipRecord]) -> "_Launched":
        """Launches the model on clips whose frames are on the device, as pixels or encoded."""
        if self._copies:
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
        if self._measuring:
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
        began = self._now()
        frames = list(dict.fromkeys(frame for clip in clips for frame in clip.frames))
        new = [frame for frame in frames if frame not in self._encoded]
        earlier = [self._encoded[frame] for frame in frames if frame in self._encoded]
        parts = [torch.stack(earlier)] if earlier else []
        at_once = max(1, len(new)) if self._cuda else _CPU_FRAMES
        for first in range(0, len(new), at_once):
            stacked = torch.stack([self._pixels[frame] for frame in new[first : first + at_once]])
            pixels = self._backbone.normalize(stacked)  # (F, px, px, 3) -> (F, 3, px, px)
            parts.append(self._backbone.encode_frames(pixels, self._taps))  # (F, ...)
            del pixels
        encoded = torch.cat(parts)
        places = {frame: place for place, frame in enumerate([f for f in frames if f in self._encoded] + new)}
        index = torch.tensor([[places[frame] for frame in clip.frames] for clip in clips], device=encoded.device)
        self._encoded |= {frame: encoded[places[frame]].clone() for frame in self._wanted_later(new)}
        of_clips = encoded[index]  # (B, T, ...)
        del encoded, parts, earlier
        wanted = {name: self._spaces[name] for clip in clips for name in clip.wanted}
        features: dict[str, Tensor] = {}
        for tap, states in self._backbone.states(of_clips, self._taps):
            for name, space in wanted.items():
                if space.tap == tap:
                    features[name] = self._to_host(pool(states, space.pooling), space.stored_dtype)
            del states
        self.stages.frames_computed += len(new)
        launched = _Launched(clips, features, began, self._now())
        if self._measuring:
            self._measuring = False
            torch.cuda.synchronize(self._device)
            used = torch.cuda.max_memory_allocated(self._device) - before
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0] + unused
            self.batch_size = fitting_batch(free, used / len(clips))
        return launched

    def _fetch(self, ran: "Iterable[_Launched | ClipRecord]") -> list[ClipRecord]:
        """The features of launched clips as arrays; waits for the device."""
        done: list[ClipRecord] = []
        for item in ran:
            if isinstance(item, ClipRecord):
                done.append(item)
                continue
            if self._cuda:
                item.ended.synchronize()
                self.stages.model_s += item.began.elapsed_time(item.ended) / 1000
            else:
                self.stages.model_s += item.ended - item.began
            arrays = {name: _as_array(feature) for name, feature in item.features.items()}
            done += [
                replace(clip, features={name: arrays[name][row] for name in clip.wanted})
                for row, clip in enumerate(item.clips)
            ]
        return done

    def _wanted_later(self, frames: Iterable[Frame]) -> list[Frame]:
        """Those that a clip still to come may sample: from the last one at or before its start on."""
        times: dict[str, list[int]] = {}
        for sha256, time_us in frames:
            if sha256 in self._needed_from_us:
                times.setdefault(sha256, []).append(time_us)
        wanted = []
        for sha256, found in times.items():
            start_us = self._needed_from_us[sha256]
            first_us = max((time_us for time_us in found if time_us <= start_us), default=start_us)
            wanted += [(sha256, time_us) for time_us in found if time_us >= first_us]
        return wanted

    def _to_host(self, feature: Tensor, stored_dtype: str) -> Tensor:
        """A feature on its way to the host: in bfloat16 where it is stored so, else in float32."""
        feature = feature.to(torch.bfloat16 if stored_dtype == "bfloat16" else torch.float32)
        return feature.to("cpu", non_blocking=True) if self._cuda else feature

    def _now(self) -> Any:
        """A moment in the device's own order of work."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


@dataclass(frozen=True, eq=False)
class _Launched:
    """A batch on its way: features by name, shape (B, ...), there when `ended` has passed."""

    clips: list[ClipRecord]
    features: dict[str, Tensor]
    began: Any
    ended: Any


def fitting_batch(free_bytes: float, clip_bytes: float) -> int:
    """Clips at once under "auto" on a CUDA device, of this much memory each."""
    return min(max(1, int(_SHARE_OF_FREE * free_bytes / max(1.0, clip_bytes))), _MOST_AUTO)


def _too_large(what: str) -> str:
    return f"one clip must fit in memory, but {what}. Set features.frames lower, or use a device with more memory."


def _as_array(feature: Tensor) -> npt.NDArray[Any]:
    """Float32, or bfloat16 by its bits as uint16."""
    array: npt.NDArray[Any] = (feature.view(torch.uint16) if feature.dtype == torch.bfloat16 else feature).numpy()
    return array
