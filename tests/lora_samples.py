"""Small adapted networks, tuned heads and runs of FT-C-LoRA, for the tests of several backbones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache import FeatureCache
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.adapter import attach_adapter
from featurecache.clips.csv_file import read_table
from featurecache.extraction.run import run_plan
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from heads.bundle import load_bundle
from heads.engines import fitting
from heads.finetuning.adapters import AdaptedNetwork
from heads.finetuning.lora import LoraRun, plan_lora
from heads.finetuning.settings import LoraSettings
from heads.models import Front, LinearHead, head_scores
from heads.runs import train_bundle
from heads.settings import HeadSettings
from tests.tiny_models import IMAGE_PX, pixels_of

PROMPT = "user: describe the hand . <video>"


SMALL = LoraSettings(
    rank=4, alpha=8, dropout=0.1, epochs=2, batch_size=5, micro_batch=2, learning_rate=5e-3, head_learning_rate=1e-2
)


def network(
    model: Path, inputs: str = "final/mean", tokens: str = "layer_0/tokens", prompt: str = PROMPT, **options: Any
) -> AdaptedNetwork:
    backbone = open_backbone(open_inputs(model, prompt=prompt, frames=4, resize="crop"), dtype="float32", device="cpu")
    names = inputs.split("+")
    widths = [backbone.inputs.taps[name.split("/")[0]].width for name in names]
    torch.manual_seed(5)
    head = LinearHead(Front(sum(widths), part_widths=widths), 2)
    nn.init.normal_(head.output.weight)
    chosen = {
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
        "targets": SMALL.targets,
        "gradient_checkpointing": False,
        "seed": 0,
        **options,
    }
    return AdaptedNetwork(backbone, head, inputs=names, tokens=tokens, **chosen)


def randomize(network: nn.Module) -> None:
    """Adapters that change something: B would start at zero."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def frames(clips: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (clips * 4, IMAGE_PX, IMAGE_PX, 3), np.uint8)


def stored(network: AdaptedNetwork, pixels: np.ndarray, *names: str) -> dict[str, Tensor]:
    """Rows as the cache would give them, computed from the frozen model."""
    (backbone,) = network._backbone
    from featurecache.backbones.pooling import pool

    rows = {}
    with network.language_model.disable_adapter(), torch.inference_mode():
        taps = [name.split("/")[0] for name in names]
        encoded = backbone.encode_frames(pixels_of(backbone, pixels), taps).unflatten(0, (-1, 4))
        for tap, states in backbone.states(encoded, taps):
            for name in names:
                if name.split("/")[0] == tap:
                    rows[name] = pool(states, name.split("/")[1])
    return {name: one.clone() for name, one in rows.items()}


def tuned(
    project: Project, inputs: str = "final/mean+final/motion+vision/mean", name: str = "tune", **of_head: Any
) -> Path:
    from heads.data import LearningData
    from heads.loading import load_split

    table = read_table(project.clips)
    names = inputs.split("+")
    _, spaces = project_spaces(project, select=names)
    cache = FeatureCache.open(project.cache)
    train, validation = (load_split(table, split, cache, spaces).data for split in ("train", "validation"))
    settings = HeadSettings(**{"inputs": inputs, "solver": "convex", "l2": 0.01, **of_head})
    data = LearningData(train, validation, table.labels, spaces)
    train_bundle(data, settings=settings, seed=0, folder=project.runs / name)
    return project.runs / name / "bundle"


def starting_scores(project: Project, bundle: Path, clip_ids: Sequence[str]) -> np.ndarray:
    """Scores of cached features by the bundle's settings, fitted on the training split alone."""
    tuned_head, cache, table = load_bundle(bundle), FeatureCache.open(project.cache), read_table(project.clips)

    def features(ids: Sequence[str]) -> np.ndarray:
        parts = [cache.load(ids, one.tap, one.pooling, one.fingerprint) for one in tuned_head.spaces]
        return np.concatenate(parts, axis=1)

    train = [clip for clip in table.clips if clip.split == "train"]
    Y = np.array([clip.targets for clip in train], np.int8)
    head = fitting.fit_head(features([clip.clip_id for clip in train]), Y, tuned_head.settings)
    return head_scores(head, features(clip_ids))


def begin(project: Project, bundle: Path, folder: Path, settings: LoraSettings = SMALL) -> LoraRun:
    plan = plan_lora(project, settings, bundle)
    run_plan(project, plan.extraction)
    return LoraRun(project, plan, seed=1, device="cpu", folder=folder)


def merging_changes(model: Path, adapter: Path, merged: Path) -> float:
    """How far features of merged weights are from those of the model with its adapter, relative to the largest."""
    tokens = []
    for folder, adapts in ((model, True), (merged, False)):
        inputs = open_inputs(folder, prompt=PROMPT, frames=4, resize="crop")
        backbone = open_backbone(inputs, dtype="float32", device="cpu")
        if adapts:
            attach_adapter(backbone, adapter)
        encoded = backbone.encode_frames(pixels_of(backbone, frames()), ["final"]).unflatten(0, (-1, 4))
        ((_, states),) = backbone.states(encoded, ["final"])
        tokens.append(states.tokens)
    return float(relative(*tokens))
