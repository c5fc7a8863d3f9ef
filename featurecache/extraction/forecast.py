"""What an extraction will take, said before it begins and without weights.

How many operations a clip needs is counted (`featurecache.backbones.cost`); how fast they go is measured here and now
(`featurecache.extraction.speed`).

The time is a range. At its lower end the model runs at the speed of its products alone, and decoding runs in parallel
(on a CPU: on the same cores). At its upper end the model takes `_SLOWEST` times as long (norms, activations, launches)
and nothing overlaps. Memory is an estimate too: the weights, and what is held where a layer is widest.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from featurecache.backbones.cost import Cost, clip_cost
from featurecache.backbones.family import Inputs
from featurecache.device import device_of
from featurecache.extraction.batches import CPU_BATCH, fitting_batch
from featurecache.extraction.plan import Plan
from featurecache.extraction.speed import DTYPES, PartCost, product_rate, time_decoding, time_parts, time_resizing
from featurecache.project.settings import Project
from featurecache.video.memory import free_memory_bytes

_SLOWEST = 2.0
_QUICK_FLOP = 1e13  # no more than minutes on any CPU


@dataclass(frozen=True)
class Memory:
    """Device memory that a run needs.

    Attributes:
        batch_size: Clips at once.
        weights_bytes: The loaded model.
        batch_bytes: What a batch needs besides.
        free_bytes: What is free on the device now, None where unknown.
    """

    batch_size: int
    weights_bytes: int
    batch_bytes: int
    free_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether the model and a batch have room, as far as is known."""
        return self.free_bytes is None or self.weights_bytes + self.batch_bytes <= self.free_bytes


@dataclass(frozen=True)
class Outlook:
    """What is known of an extraction before it begins.

    Attributes:
        device: The torch device.
        clips: To compute.
        model_s: The model alone on a CPU; 0 on a GPU, and where it is a matter of minutes.
        memory: Memory of the device.
    """

    device: str
    clips: int
    model_s: float
    memory: Memory


@dataclass(frozen=True)
class Forecast:
    """What an extraction will take.

    Attributes:
        device: The torch device.
        device_name: What people call it.
        dtype: The dtype the model computes in.
        decoders: Threads that decode.
        clips: To compute.
        parts: Parts of the model, for one clip that shares no frame.
        tflop_per_clip: Their sum.
        tflop_per_s: The measured speed over the model's own mix of products.
        shared_frames: Share of the frames that overlapping clips have in common, computed once.
        memory: Memory of the device.
        bytes_of: What each selected feature adds to the cache, by name.
        disk_free_bytes: Free on the cache's disk.
        model_s: All clips at the speed of the products.
        preprocess_s: Resizing all frames, by all decoders together.
        decode_s: Decoding with all decoders; None where no clip could be decoded.
        video_per_decoder: Seconds of video that one decoder passes in a second, None likewise.
        decode_problem: Why no clip could be decoded; empty where one was.
        shortest_s: Lower end of the time in all.
        longest_s: Its upper end.
        limit: What takes longer, the model or decoding (with resizing).
    """

    device: str
    device_name: str
    dtype: str
    decoders: int
    clips: int
    parts: tuple[PartCost, ...]
    tflop_per_clip: float
    tflop_per_s: float
    shared_frames: float
    memory: Memory
    bytes_of: Mapping[str, int]
    disk_free_bytes: int
    model_s: float
    preprocess_s: float
    decode_s: float | None
    video_per_decoder: float | None
    decode_problem: str
    shortest_s: float
    longest_s: float
    limit: Literal["model", "decoding"]


def forecast_plan(project: Project, plan: Plan) -> Forecast:
    """Measures and reckons what a plan of a project will take; takes a few seconds and loads no weights.

    Args:
        project: The project, whose settings say how it is carried out.
        plan: What is to be done; at least one clip.

    Raises:
        SettingsError: If the device is not here.
    """
    dtype, extract = project.settings.features.dtype, project.settings.extract
    device, decoders = device_of(extract.device), extract.decoders
    inputs = plan.model.open()
    cost = clip_cost(inputs, plan.taps)
    memory = device_memory(inputs, cost, dtype=dtype, device=device, batch_size=extract.batch_size)
    costs = time_parts(cost.parts, dtype=dtype, device=device, batch_size=memory.batch_size)
    longest = max(plan.work, key=lambda clips: clips[0].recording.info.duration_us)
    decoding = time_decoding(longest[0].recording, [clip.span for clip in longest], inputs.frames)
    frame_s = 0.0
    if decoding.frames is not None:
        frame_s = time_resizing(inputs.frame_resize.of(longest[0].recording.name), decoding.frames)

    distinct = 1 - plan.shared_frames
    model_s = plan.todo * sum(part.seconds * (distinct if part.per_frame else 1.0) for part in costs)
    threads = min(decoders, _cores())
    preprocess_alone_s = plan.todo * inputs.frames * distinct * frame_s
    preprocess_s = preprocess_alone_s / threads
    passed_s = [max(clip.end_us for clip in clips) / 1e6 for clips in plan.work]  # of video, from its beginning
    decode_s = decode_alone_s = 0.0
    if decoding.video_per_s:
        decode_alone_s = sum(passed_s) / decoding.video_per_s
        decode_s = max(decode_alone_s / threads, max(passed_s) / decoding.video_per_s)
    best_s = model_s
    if torch.device(device).type == "cpu":
        best_s += (preprocess_alone_s + decode_alone_s) / _cores()
    tflop = sum(part.tflop for part in costs)
    return Forecast(
        device=device,
        device_name=torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device.upper(),
        dtype=dtype,
        decoders=decoders,
        clips=plan.todo,
        parts=costs,
        tflop_per_clip=tflop,
        tflop_per_s=tflop / sum(part.seconds for part in costs),
        shared_frames=plan.shared_frames,
        memory=memory,
        bytes_of=plan.bytes_of,
        disk_free_bytes=shutil.disk_usage(project.root).free,
        model_s=model_s,
        preprocess_s=preprocess_s,
        decode_s=decode_s if decoding.video_per_s else None,
        video_per_decoder=decoding.video_per_s,
        decode_problem=decoding.problem,
        shortest_s=max(best_s, decode_s + preprocess_s),
        longest_s=_SLOWEST * model_s + preprocess_s + decode_s,
        limit="decoding" if decode_s + preprocess_s > model_s else "model",
    )


def outlook(project: Project, plan: Plan) -> Outlook:
    """What can be said within a second of a plan with clips to compute, before it begins.

    Raises:
        SettingsError: If the device is not here.
    """
    features, extract = project.settings.features, project.settings.extract
    device = device_of(extract.device)
    inputs = plan.model.open()
    cost = clip_cost(inputs, plan.taps)
    memory = device_memory(inputs, cost, dtype=features.dtype, device=device, batch_size=extract.batch_size)
    distinct = 1 - plan.shared_frames
    flop = plan.todo * sum(part.flop * (distinct if part.per_frame else 1.0) for part in cost.parts)
    model_s = 0.0
    if device == "cpu" and flop > _QUICK_FLOP:
        model_s = flop / product_rate(features.dtype, device)
    return Outlook(device, plan.todo, model_s, memory)


def device_memory(inputs: Inputs, cost: Cost, *, dtype: str, device: str, batch_size: int | Literal["auto"]) -> Memory:
    """About what a model and a batch need on a device.

    Args:
        inputs: The model without its weights.
        cost: What is run for a clip.
        dtype: The dtype the model computes in.
        device: A torch device.
        batch_size: Clips at once; "auto" as an extraction chooses it.

    Raises:
        SettingsError: If the device is not here.
    """
    item_bytes = DTYPES[dtype].itemsize
    weights_bytes = cost.weights * item_bytes
    pixels = inputs.frames * 3 * inputs.image_px**2
    clip_bytes = item_bytes * (cost.held + 2 * pixels)
    free_bytes = _free_bytes(device)
    if batch_size == "auto":
        is_cuda = torch.device(device).type == "cuda"
        batch_size = fitting_batch((free_bytes or 0) - weights_bytes, clip_bytes) if is_cuda else CPU_BATCH
    return Memory(batch_size, weights_bytes, clip_bytes * batch_size, free_bytes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_bytes(device: str) -> int | None:
    """Memory that is free on a device now; None where the system does not say."""
    if torch.device(device_of(device)).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes()
