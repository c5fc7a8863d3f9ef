"""4-bit base weights on a CPU: the rounded model is one and the same in training, extraction and merging."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache import FeatureCache
from featurecache.backbones import four_bit, open_backbone, open_inputs
from featurecache.backbones.adapter import attach_adapter
from featurecache.errors import SettingsError
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import open_project
from heads.bundle import load_bundle
from tests.lora_samples import PROMPT, SMALL, begin, frames, network, randomize, relative, stored, tuned
from tests.projects import make_project, make_table
from tests.tiny_models import make_llava_next_video, pixels_of

needs_bitsandbytes = pytest.mark.skipif(
    four_bit._bitsandbytes is None, reason="bitsandbytes is not installed (pip install 'featurecache[4bit]')"
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava_next_video(tmp_path_factory.mktemp("model"), layers=4, hidden=64)


@pytest.fixture(scope="module")
def rounded_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model on disk, its layers from 1 on rounded, as a plain one."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("rounded") / "model"))
    whole = LlavaNextVideoForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    four_bit.round_weights(whole.model.language_model, 1)
    whole.save_pretrained(folder)
    return folder


def opened(folder: Path, dtype: Any = "float32") -> Any:
    inputs = open_inputs(folder, prompt=PROMPT, frames=4, resize="crop")
    return open_backbone(inputs, dtype=dtype, device="cpu")


def final_states(backbone: Any) -> Tensor:
    encoded = backbone.encode_frames(pixels_of(backbone, frames()), ["final"]).unflatten(0, (-1, 4))
    ((_, states),) = backbone.states(encoded, ["final"])
    return states.tokens.float()


@needs_bitsandbytes
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_quantised_layers_compute_with_the_rounded_weights(model: Path, dtype: str, most: float) -> None:
    plain, small, rounded = (opened(model, dtype) for _ in range(3))
    four_bit.quantise(small.model.language_model, 1)
    four_bit.round_weights(rounded.model.language_model, 1)
    assert relative(final_states(small), final_states(rounded)) < most
    assert relative(final_states(small), final_states(plain)) > 0.02
    linear = small.model.language_model.layers[1].self_attn.q_proj
    assert linear.weight.numel() * linear.weight.itemsize * 2 == linear.in_features * linear.out_features
    below = small.model.language_model.layers[0].self_attn.q_proj
    assert type(below) is nn.Linear
    assert torch.equal(below.weight, plain.model.language_model.layers[0].self_attn.q_proj.weight)


@needs_bitsandbytes
def test_gradients_are_those_on_rounded_weights_when_it_was_scored_before(model: Path, rounded_model: Path) -> None:
    gradients, losses = [], []
    for folder, is_small in ((model, True), (rounded_model, False)):
        each = network(folder, tokens="layer_1/tokens", four_bit=is_small)
        randomize(each)
        rows = stored(each, frames(), "layer_1/tokens")
        with torch.no_grad():
            each.eval()(rows)
        loss = each.train()(rows).square().mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: one.grad for name, one in each.named_parameters() if one.requires_grad})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(gradients[0]) == 2 + 3 * 4 * 2
    for name, gradient in gradients[0].items():
        assert relative(gradient, gradients[1][name]) < 1e-4, name


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_run_on_four_bits_writes_a_bundle_that_scores_as_training_did(
    tmp_path: Path, model: Path, dtype: str, most: float
) -> None:
    project = make_project(tmp_path / "project", model, sessions=6, clips=2)
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace('dtype = "float32"', f'dtype = "{dtype}"', 1))
    project = open_project(project.root)
    make_table(project)
    run_plan(project, plan_extraction(project))
    bundle, asked = tuned(project, "final/mean"), dataclasses.replace(SMALL, select="loss", base_weights="4bit")
    run = begin(project, bundle, project.runs / "lora", asked)
    validation, head, cache = run.loop.validation, load_bundle(bundle), FeatureCache.open(project.cache)
    X = cache.load(validation.clip_ids, "final", "mean", head.fingerprint)
    gap = np.abs(run.loop.scores(validation) - head.scores(X, fingerprint=head.fingerprint)).max()
    assert gap > 1e-4, "the base is rounded; random weights feel that much more than trained ones"
    run.train()
    best = run.finish()
    assert best["lora"]["base_weights"] == "4bit"
    fitted = load_bundle(project.runs / "lora" / "bundle")
    assert fitted.fingerprint != head.fingerprint
    X = FeatureCache.open(project.cache).load(validation.clip_ids, "final", "mean", fitted.fingerprint)
    assert np.abs(fitted.scores(X, fingerprint=fitted.fingerprint) - run.loop.scores(validation)).max() < most

    run.merge(tmp_path / "merged")
    adapted = opened(model, dtype)
    attach_adapter(adapted, run.folder / "bundle" / "adapter")
    assert relative(final_states(adapted), final_states(opened(tmp_path / "merged", dtype))) < most


def test_four_bits_are_refused_in_words_when_bitsandbytes_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "_bitsandbytes", None)
    with pytest.raises(SettingsError, match=r"not installed here\. pip install 'featurecache\[4bit\]'"):
        four_bit.require_four_bit()


KERNELS = """
import pathlib
def get_kernel(*names, **options):
    pathlib.Path(__file__).with_name("fetched").touch()
"""
PROGRAM = """
import sys
import featurecache.backbones.adapter
assert {"bitsandbytes", "peft"} <= set(sys.modules)
import kernels
"""


@needs_bitsandbytes
def test_bitsandbytes_is_imported_without_the_package_that_would_fetch_code(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "fetched").exists()
