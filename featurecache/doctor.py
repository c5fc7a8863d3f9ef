"""Checks of the machine, the model and the recordings, each failure with its fix."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featurecache.backbones import find_model, open_inputs
from featurecache.errors import FeatureCacheError
from featurecache.project import Project
from featurecache.recordings import find_recordings

_GIB = 1024**3


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
    """Runs every check on a project, the cheap ones first. Opens no weights and changes no file but the digest memo."""
    yield _device(project.settings.extract.device, project.settings.features.dtype)
    yield _disk(project.root)
    yield _network()
    yield from _model(project)
    yield from _recordings(project)


def _device(name: str, dtype: str) -> Check:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found = f"{torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        return Check("device", True, found)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if name.startswith("cuda"):
        return Check(
            "device",
            False,
            f"extract.device is {name!r}, but torch {torch.__version__} sees no CUDA device",
            'Install the NVIDIA driver and a CUDA build of torch, or set extract.device = "cpu".',
        )
    fix = "" if dtype == "float32" else f'Set features.dtype = "float32": {dtype} products are many times slower here.'
    return Check("device", True, f"CPU with {cores} cores, no CUDA device: a 7B model takes minutes per clip here", fix)


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    fix = "" if free > 5 * _GIB else "Free some room: 100,000 clips of 4096 float16 features need 0.8 GiB."
    return Check("disk", free > 5 * _GIB, f"{free / _GIB:.1f} GiB free beside the project", fix)


def _network() -> Check:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return Check(
        "network", True, f"not used unless --allow-download is given (HF_HUB_OFFLINE {'set' if offline else 'not set'})"
    )


def _model(project: Project) -> Iterator[Check]:
    features = project.settings.features
    try:
        folder = find_model(features.model)
        inputs = open_inputs(folder, prompt=features.prompt, frames=features.frames, resize=features.resize)
    except FeatureCacheError as error:
        yield Check("model", False, *_found_and_fix(error))
        return
    index = folder / "model.safetensors.index.json"
    missing = _missing_weights(folder, index)
    if missing:
        yield Check("model", False, f"weight files are missing: {', '.join(missing)}", "Copy the model folder again.")
    else:
        yield Check(
            "model", True, f"LLaVA-NeXT-Video, {inputs.image_px} px frames, {inputs.video_tokens} video tokens a clip"
        )
    if inputs.text_after_video:
        yield Check(
            "prompt",
            True,
            f"the words behind the video ({inputs.text_after_video!r}) cannot change a feature: attention is causal",
            "Move what matters in front of <video>.",
        )


def _missing_weights(folder: Path, index: Path) -> list[str]:
    import json

    if not index.is_file():
        return [] if (folder / "model.safetensors").is_file() else ["model.safetensors"]
    wanted = set(json.loads(index.read_text())["weight_map"].values())
    return sorted(name for name in wanted if not (folder / name).is_file())


def _recordings(project: Project) -> Iterator[Check]:
    try:
        recordings, unusable = find_recordings(project.videos, project.digest_memo)
    except FeatureCacheError as error:
        yield Check("recordings", False, *_found_and_fix(error))
        return
    seconds = sum(recording.info.duration_us for recording in recordings) / 1e6
    yield Check(
        "recordings",
        bool(recordings),
        f"{len(recordings)} usable, {seconds / 3600:.2f} h",
        "" if recordings else "Add videos.",
    )
    for item in unusable:
        yield Check(
            "recording", False, f"{item.name}: {item.reason}", "Repair or remove the file; the run goes on without it."
        )
    if project.settings.features.resize == "crop" and recordings:
        lost = [crop_loss(r.info.width_px, r.info.height_px) for r in recordings]
        if max(lost) > 0.01:
            yield Check(
                "crop",
                True,
                f"the model's centre crop cuts off up to {max(lost):.0%} of a frame",
                'If the action may be there, set features.resize = "pad" or "squash".',
            )


def crop_loss(width_px: int, height_px: int) -> float:
    """Share of a frame that is lost when the shorter edge is fitted and the centre square is cropped."""
    return 1 - min(width_px, height_px) / max(width_px, height_px)


def _found_and_fix(error: FeatureCacheError) -> tuple[str, str]:
    found, _, fix = str(error).rpartition(". ")
    return (found, fix) if found else (str(error), "")
