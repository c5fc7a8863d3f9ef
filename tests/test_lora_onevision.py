"""FT-C-LoRA on LLaVA-OneVision: a SigLIP tower, tokens pooled after the projector, a Qwen2 with biases."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

from featurecache import FeatureCache
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.adapter import attach_adapter
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from heads.bundle import load_bundle
from tests.lora_samples import SMALL, begin, network, randomize, relative, starting_scores, stored, tuned
from tests.projects import make_project, make_table
from tests.tiny_families import LAYERS, make_llava_onevision
from tests.tiny_models import pixels_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly

PROMPT = "user: describe the hand . <video>"
IMAGE_PX = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava_onevision(tmp_path_factory.mktemp("onevision") / "model", image_px=IMAGE_PX)


def frames(clips: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (clips * 4, IMAGE_PX, IMAGE_PX, 3), np.uint8)


def test_network_has_loss_and_gradients_of_the_plain_model_from_pixels(model: Path, tmp_path: Path) -> None:
    ours = network(model)
    randomize(ours)
    rows = stored(ours, frames(), "layer_0/tokens")
    plain = LlavaOnevisionForConditionalGeneration.from_pretrained(model).eval()
    ours.write_adapter(tmp_path)
    adapted = PeftModel.from_pretrained(plain.model.language_model, tmp_path, is_trainable=True, local_files_only=True)
    processor = LlavaOnevisionProcessor.from_pretrained(model)
    videos = list(torch.from_numpy(frames()).permute(0, 3, 1, 2).split(4))
    batch = processor(text=[PROMPT + " what moves ?"] * 3, videos=videos, do_sample_frames=False, return_tensors="pt")
    states = plain(**batch, output_hidden_states=True).hidden_states[-1]
    at_video = (batch["input_ids"] == processor.video_token_id).nonzero()[:, 1].view(3, -1)[:, :-1]  # no newline
    features = torch.stack([one[where].mean(0) for one, where in zip(states, at_video, strict=True)])
    loss, expected = ours(rows).square().mean(), ours.head(features).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    ours.head.zero_grad()
    expected.backward()
    theirs = dict(adapted.named_parameters())
    trained = [(name, one) for name, one in ours.language_model.named_parameters() if one.requires_grad]
    for name, parameter in trained:
        assert relative(parameter.grad, theirs[name].grad) < 1e-4, name
        assert parameter.grad.abs().max() > 1e-5
    assert len(trained) == LAYERS * 4 * 2
    assert {name.split(".")[-4] for name, _ in trained} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not [name for name, _ in ours._backbone[0].model.vision_tower.named_parameters() if "lora" in name]


@pytest.mark.parametrize("prompt", [PROMPT, "<video>"], ids=["words", "no words"])
def test_network_from_a_deeper_layer_has_the_loss_of_the_full_forward(model: Path, prompt: str) -> None:
    losses = []
    for tokens in ("vision/tokens", "layer_0/tokens", "layer_1/tokens"):
        each = network(model, tokens=tokens, prompt=prompt)
        randomize(each)
        if each.first_layer == 0:  # the same adapters above layer 1, none below
            with torch.no_grad():
                for name, parameter in each.language_model.named_parameters():
                    if "lora_B" in name and ".layers.0." in name:
                        parameter.zero_()
        with torch.no_grad():
            for name, parameter in each.language_model.named_parameters():
                if "lora" in name and ".layers.0." not in name:
                    nn.init.constant_(parameter, 0.05)
        losses.append(each(stored(each, frames(), tokens)).square().mean().item())
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("frozen", ["layer_0", "layer_1"])
def test_run_begins_with_the_tuned_heads_scores_and_ends_with_a_bundle_that_scores_as_it_did(
    tmp_path: Path, model: Path, frozen: str
) -> None:
    project = make_project(tmp_path / "project", model, sessions=6, clips=2)
    make_table(project)
    run_plan(project, plan_extraction(project))
    bundle = tuned(project, "final/mean")
    run = begin(project, bundle, project.runs / "lora", dataclasses.replace(SMALL, frozen=frozen, select="loss"))
    validation = run.loop.validation
    assert np.abs(run.loop.scores(validation) - starting_scores(project, bundle, validation.clip_ids)).max() < 1e-5
    run.train()
    run.finish()
    fitted = load_bundle(project.runs / "lora" / "bundle")
    X = FeatureCache.open(project.cache).load(validation.clip_ids, "final", "mean", fitted.fingerprint)
    assert np.abs(fitted.scores(X, fingerprint=fitted.fingerprint) - run.loop.scores(validation)).max() < 1e-5
    run.merge(tmp_path / "merged")
    pooled: list[Any] = []
    for folder, adapter in ((model, run.folder / "bundle" / "adapter"), (tmp_path / "merged", None)):
        backbone = open_backbone(
            open_inputs(folder, prompt=PROMPT, frames=4, resize="crop"), dtype="float32", device="cpu"
        )
        if adapter is not None:
            attach_adapter(backbone, adapter)
        encoded = backbone.encode_frames(pixels_of(backbone, frames()), ["final"]).unflatten(0, (-1, 4))
        ((_, states),) = backbone.states(encoded, ["final"])
        pooled.append(states.tokens)
    assert relative(*pooled) < 1e-5
