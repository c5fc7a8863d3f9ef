"""What `doctor` and `init` say of a project's device and model: files, revision, licence, and the memory it needs.

The device gets a tensor, and the headers of the weights are read. No weights are loaded and no network is used.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurecache.backbones import find_model, model_type_of, open_inputs
from featurecache.backbones.obtaining import provenance_of
from featurecache.backbones.weight_files import find_weight_files
from featurecache.device import check_dtype, device_of
from featurecache.errors import FeatureCacheError
from featurecache.project.settings import Settings
from featurecache.setup.checks import Check, failed, size
from featurecache.spec import parse_feature
from featurecache.spelling import counted

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs, TapShape


def check_model(settings: Settings, *, device: Check) -> "tuple[Inputs | None, tuple[Check, ...]]":
    """Looks at the model of some settings.

    Args:
        settings: A project's.
        device: What `check_device` found; memory is looked at only where the device can be used.

    Returns:
        The model without its weights, None where it cannot be opened; and the checks.
    """
    features, extract = settings.features, settings.extract
    try:
        folder = find_model(features.model)
        clip_s = settings.clips.length_us / 1e6
        inputs = open_inputs(
            folder,
            prompt=features.prompt,
            frames=features.frames,
            resize=features.resize,
            crop=features.crop,
            clip_s=clip_s,
        )
        taps = sorted({parse_feature(kept, inputs.taps).tap for kept in features.select})
    except FeatureCacheError as error:
        return None, (failed("model", error),)
    weights = _weights(folder)
    checks = [_model(inputs), weights]
    if inputs.text_after_video:
        checks.append(_prompt(inputs.text_after_video))
    if device.ok and weights.ok:
        checks.append(_memory(inputs, taps, features.dtype, extract.device, extract.batch_size))
    return inputs, tuple(checks)


def check_device(name: str, dtype: str) -> Check:
    """Whether the device takes a tensor, and is fit for the dtype."""
    import torch

    from featurecache.extraction.speed import product_rate

    try:
        device = device_of(name)
        torch.zeros(1, device=device)
        check_dtype(dtype, device)
    except FeatureCacheError as error:
        return failed("device", error)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        fix = 'Set extract.device = "cpu", or install the driver and a build of torch for this device.'
        return Check("device", False, f"extract.device is {name!r}, but torch {torch.__version__} says: {reason}", fix)
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found, fix = f"{torch.cuda.get_device_name(device)}, {size(free)} of {size(total)} free", ""
        if dtype == "float16":
            fix = 'To train adapters set features.dtype = "bfloat16", or "float32" on a GPU without bfloat16.'
        return Check("device", True, found, fix)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found, fix = f"{device.upper()} with {cores} cores: a 7B model takes minutes per clip here", ""
    if dtype != "float32" and product_rate("float32", device) > 2 * product_rate(dtype, device):
        fix = f'Set features.dtype = "float32": {dtype} products are many times slower here.'
    return Check("device", True, found, fix)


def _model(inputs: "Inputs") -> Check:
    taps = ", ".join(_widths(inputs.taps))
    family = model_type_of(inputs.folder)
    return Check(
        "model", True, f"{family}, {counted(inputs.frames, 'frame')} of {inputs.image_px} px a clip; taps {taps}"
    )


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
        return failed("weights", error)
    files, of = len(weights.paths), provenance_of(folder)
    found = (
        f"{counted(files, 'file')}, {size(weights.size_bytes)}, headers whole; "
        f"{f'revision {of.revision}' if of.revision else 'revision not recorded'}; "
        f"{f'licence {of.licence}' if of.licence else 'no licence in the folder'}"
    )
    return Check("weights", True, found)


def _prompt(text: str) -> Check:
    found = f"the text after the video ({text!r}) cannot change a feature: attention is causal"
    return Check("prompt", True, found, "Move what matters in front of <video>.")


def _memory(inputs: "Inputs", taps: Sequence[str], dtype: str, device: str, batch_size: int | Literal["auto"]) -> Check:
    """What model and batch need, against what is free on the device."""
    from featurecache.backbones.cost import clip_cost
    from featurecache.extraction.forecast import device_memory

    try:
        cost = clip_cost(inputs, taps)
    except FeatureCacheError as error:
        return failed("memory", error)
    memory = device_memory(inputs, cost, dtype=dtype, device=device_of(device), batch_size=batch_size)
    found = (
        f"{size(memory.weights_bytes)} of weights in {dtype} and about {size(memory.batch_bytes)} "
        f"for batches of {memory.batch_size}"
    )
    if memory.free_bytes is not None:
        found += f"; {size(memory.free_bytes)} are free"
    fix = ""
    if not memory.fits:
        fix = (
            'Free memory, set features.dtype = "bfloat16" or a smaller extract.batch_size, use a device with '
            f"{size(1.1 * (memory.weights_bytes + memory.batch_bytes))}, or a smaller model (docs/backbones.md)."
        )
    return Check("memory", memory.fits, found, fix)
