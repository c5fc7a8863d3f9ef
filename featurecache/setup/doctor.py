"""Checks of the machine, the model and the recordings, each failure with its fix.

Everything is tried, not guessed: the device gets a tensor, the headers of the weights are read, a clip is decoded, and
memory and disk are held against what the plan needs. No weights are loaded, no network is used, and no file but the
memo of digests is written.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurecache.backbones import find_model, model_type_of, open_inputs
from featurecache.backbones.weight_files import find_weight_files
from featurecache.device import check_dtype, device_of
from featurecache.errors import FeatureCacheError
from featurecache.project.settings import Project
from featurecache.spec import parse_kept
from featurecache.video.recordings import Recording, find_recordings
from featurecache.video.sampling import ClipFailure, read_clips

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs, TapShape

_GIB = 1024**3
_DECODING_LIMIT_S = 60.0
_SPARE_BYTES = 1 * _GIB


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was looked at.
        ok: Whether it holds.
        found: What was found.
        fix: What to do; empty where nothing is to be done.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""


def examine(project: Project) -> Iterator[Check]:
    """Runs every check on a project, the cheap ones first."""
    settings = project.settings
    inputs: Inputs | None = None
    device = _device(settings.extract.device, settings.features.dtype)
    yield device
    yield _network()
    try:
        folder = find_model(settings.features.model)
        opened = open_inputs(
            folder,
            prompt=settings.features.prompt,
            frames=settings.features.frames,
            resize=settings.features.resize,
        )
        taps = sorted({parse_kept(kept, opened.taps).tap for kept in settings.features.keep})
    except FeatureCacheError as error:
        yield Check("model", False, *_found_and_fix(error))
    else:
        inputs = opened
        yield _model(inputs)
        yield (weights := _weights(folder))
        if inputs.text_after_video:
            yield _prompt(inputs.text_after_video)
        if device.ok and weights.ok:
            extract = settings.extract
            yield _memory(inputs, taps, settings.features.dtype, extract.device, extract.batch_size)
    try:
        recordings, unusable = find_recordings(project.videos, project.digest_memo)
    except FeatureCacheError as error:
        yield Check("recordings", False, *_found_and_fix(error))
        return
    seconds = sum(recording.info.duration_us for recording in recordings) / 1e6
    found = f"{len(recordings)} usable, {seconds / 3600:.2f} h"
    yield Check("recordings", bool(recordings), found, "" if recordings else "Add videos.")
    for item in unusable:
        fix = "Repair or remove the file; the run goes on without it."
        yield Check("recording", False, f"{item.name}: {item.reason}", fix)
    if recordings:
        yield _decoding(recordings[0], settings.features.frames)
        if inputs is not None and inputs.frame_resize.resize == "crop":
            yield from _crop(recordings)
    yield _disk(project, is_planned=inputs is not None and bool(recordings))


def _device(name: str, dtype: str) -> Check:
    """Whether the device takes a tensor, and is fit for the dtype."""
    import torch

    from featurecache.extraction.speed import product_rate

    try:
        device = device_of(name)
        torch.zeros(1, device=device)
        check_dtype(dtype, device)
    except FeatureCacheError as error:
        return Check("device", False, *_found_and_fix(error))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        fix = 'Set extract.device = "cpu", or install the driver and a build of torch for this device.'
        return Check("device", False, f"extract.device is {name!r}, but torch {torch.__version__} says: {reason}", fix)
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found, fix = f"{torch.cuda.get_device_name(device)}, {_size(free)} of {_size(total)} free", ""
        if dtype == "float16":
            fix = 'To train adapters set features.dtype = "bfloat16", or "float32" on a GPU without bfloat16.'
        return Check("device", True, found, fix)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found, fix = f"{device.upper()} with {cores} cores: a 7B model takes minutes per clip here", ""
    if dtype != "float32" and product_rate("float32", device) > 2 * product_rate(dtype, device):
        fix = f'Set features.dtype = "float32": {dtype} products are many times slower here.'
    return Check("device", True, found, fix)


def _network() -> Check:
    return Check("network", True, "not used unless --allow-download is given")


def _model(inputs: "Inputs") -> Check:
    taps = ", ".join(_widths(inputs.taps))
    family = model_type_of(inputs.folder)
    return Check("model", True, f"{family}, {inputs.frames} frames of {inputs.image_px} px a clip; taps {taps}")


def _widths(taps: "Mapping[str, TapShape]") -> Iterator[str]:
    """Names of taps with tokens a clip and width, a run of layers of one shape as one."""
    for shape, group in groupby(taps, key=taps.__getitem__):
        names = list(group)
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        yield f"{span} ({shape.steps * shape.tokens_per_step} tokens of {shape.width})"


def _weights(folder: Path) -> Check:
    """Whether every weight file is there and whole: its header fits its size, and it holds what the index says."""
    try:
        weights = find_weight_files(folder)
    except FeatureCacheError as error:
        return Check("weights", False, *_found_and_fix(error))
    files = len(weights.paths)
    return Check("weights", True, f"{files} file{'s' * (files > 1)}, {_size(weights.size_bytes)}, headers whole")


def _prompt(text: str) -> Check:
    found = f"the words behind the video ({text!r}) cannot change a feature: attention is causal"
    return Check("prompt", True, found, "Move what matters in front of <video>.")


def _memory(inputs: "Inputs", taps: Sequence[str], dtype: str, device: str, batch_size: int | Literal["auto"]) -> Check:
    """What model and batch need, against what is free on the device."""
    from featurecache.backbones.cost import clip_cost
    from featurecache.extraction.forecast import device_memory

    try:
        cost = clip_cost(inputs, taps)
    except FeatureCacheError as error:
        return Check("memory", False, *_found_and_fix(error))
    memory = device_memory(inputs, cost, dtype=dtype, device=device_of(device), batch_size=batch_size)
    found = (
        f"{_size(memory.weights_bytes)} of weights in {dtype} and about {_size(memory.batch_bytes)} "
        f"for batches of {memory.batch_size}"
    )
    if memory.free_bytes is not None:
        found += f"; {_size(memory.free_bytes)} are free"
    fix = "" if memory.fits else 'Free memory, set features.dtype = "bfloat16" or a smaller extract.batch_size.'
    return Check("memory", memory.fits, found, fix)


def _decoding(recording: Recording, frames: int) -> Check:
    """Decodes the first three seconds of a recording."""
    info = recording.info
    span = (0, min(3_000_000, info.duration_us))
    began = time.perf_counter()
    (clip,) = read_clips(recording.path, [span], frames, time_limit_s=_DECODING_LIMIT_S)
    spent_s = time.perf_counter() - began
    what = f"{recording.name} ({info.codec}, {info.width_px} x {info.height_px})"
    if isinstance(clip, ClipFailure):
        fix = "Play it to see whether it is whole; convert it: ffmpeg -i RECORDING -c:v libx264 -crf 16 NEW.mp4"
        return Check("decoding", False, f"{what}: {clip.reason}", fix)
    return Check("decoding", True, f"{frames} frames from the first {span[1] / 1e6:.1f} s of {what} in {spent_s:.2f} s")


def _crop(recordings: Sequence[Recording]) -> Iterator[Check]:
    lost = max(crop_loss(recording.info.width_px, recording.info.height_px) for recording in recordings)
    if lost > 0.01:
        found = f"the model's centre crop cuts off up to {lost:.0%} of a frame"
        yield Check("crop", True, found, 'If the action may be there, set features.resize = "pad" or "squash".')


def crop_loss(width_px: int, height_px: int) -> float:
    """Share of a frame that is lost when the shorter edge is fitted and the centre square is cropped."""
    return 1 - min(width_px, height_px) / max(width_px, height_px)


def _disk(project: Project, *, is_planned: bool) -> Check:
    """Free space, against the plan where there is a clip table."""
    from featurecache.extraction.plan import plan_extraction

    free = shutil.disk_usage(project.root).free
    found, needed = f"{_size(free)} free beside the project", 0
    if is_planned and project.clips.exists():
        try:
            plan = plan_extraction(project)
        except FeatureCacheError as error:
            return Check("plan", False, *_found_and_fix(error))
        needed = plan.bytes_to_write
        found += f"; {plan.todo} clips to do need about {_size(needed)}"
    if free > needed + _SPARE_BYTES:
        return Check("disk", True, found)
    fix = "Free room, keep fewer features (tokens take by far the most), or move the project to a larger disk."
    return Check("disk", False, found, fix)


def _size(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 1024**2:.1f} MiB"


def _found_and_fix(error: FeatureCacheError) -> tuple[str, str]:
    found, _, fix = str(error).rpartition(". ")
    return (found, fix) if found else (str(error), "")
