"""FT-C-LoRA on the video language models, each from the tokens that it can go on from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer

from featurecache import FeatureCache
from featurecache.backbones import open_inputs
from featurecache.backbones.adapter import _WHOLE_MODELS
from featurecache.backbones.decoder import decoder_of
from featurecache.errors import SettingsError
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from heads.bundle import load_bundle
from tests.lora_samples import (
    SMALL,
    begin,
    merging_changes,
    network,
    randomize,
    relative,
    starting_scores,
    stored,
    tuned,
)
from tests.plain_forward import at_video, plain_batch
from tests.projects import make_project, make_table
from tests.tiny_families import LAYERS
from tests.tiny_models import pixels_of
from tests.tiny_video_language import VIDEO_LANGUAGE

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly

PROMPT = "user: describe the hand . <video>"
FROZEN = {
    "llava_next_video": "layer_0",
    "llava_onevision": "layer_0",
    "smolvlm": "layer_0",
    "qwen2_5_vl": "layer_0",
    "qwen3_vl": "vision",
    "internvl": "layer_0",
}
"""What each is trained from here."""


@pytest.fixture(scope="module", params=VIDEO_LANGUAGE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return VIDEO_LANGUAGE[request.param](tmp_path_factory.mktemp("language") / request.param)


def frames(clips: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (clips * 4, 40, 40, 3), np.uint8)


def test_network_has_loss_and_gradients_of_the_plain_model_from_pixels(model: Path, tmp_path: Path) -> None:
    tokens = f"{FROZEN[model.name]}/tokens"
    ours = network(model, tokens=tokens)
    randomize(ours)
    rows = stored(ours, frames(), tokens)
    plain: Any = _WHOLE_MODELS[model.name].from_pretrained(model, dtype=torch.float32).eval()
    ours.write_adapter(tmp_path)
    decoder = decoder_of(plain.model)
    adapted = PeftModel.from_pretrained(decoder, tmp_path, is_trainable=True, local_files_only=True)
    tokenizer, features = AutoTokenizer.from_pretrained(model), []
    for clip in pixels_of(ours._backbone[0], frames()).split(4):
        batch = plain_batch(plain.config, tokenizer, clip, PROMPT + " what moves ?")
        states = plain(**batch, output_hidden_states=True).hidden_states[-1]
        features.append(states[0, at_video(plain.config, batch)].mean(0))
    loss, expected = ours(rows).square().mean(), ours.head(torch.stack(features)).square().mean()
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
    with_adapter = {name for name, _ in ours._backbone[0].model.named_parameters() if "lora" in name}
    assert all(name.startswith(("language_model.", "text_model.")) for name in with_adapter)


@pytest.mark.parametrize("prompt", [PROMPT, "<video>"], ids=["words", "no words"])
def test_network_from_a_deeper_layer_has_the_loss_of_the_full_forward(model: Path, prompt: str) -> None:
    losses = []
    resumable = open_inputs(model, prompt=prompt, frames=4, resize="crop").resumable  # type: ignore[attr-defined]
    for tokens in [f"{tap}/tokens" for tap in ("vision", "layer_0", "layer_1") if tap in resumable]:
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
    assert len(losses) == {"llava_next_video": 3, "llava_onevision": 3, "qwen3_vl": 1}.get(model.name, 2)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


def test_run_begins_with_the_tuned_heads_scores_and_ends_with_a_bundle_that_scores_as_it_did(
    tmp_path: Path, model: Path
) -> None:
    frozen = {"llava_onevision": "layer_1"}.get(model.name, FROZEN[model.name])
    project = make_project(tmp_path / "project", model, sessions=6, clips=2)
    make_table(project)
    run_plan(project, plan_extraction(project))
    bundle = tuned(project, "final/mean")
    run = begin(project, bundle, project.runs / "lora", dataclasses.replace(SMALL, frozen=frozen, select="loss"))
    if model.name not in ("llava_onevision", "llava_next_video"):  # which go on from any layer
        with pytest.raises(SettingsError, match=r"lora\.frozen must be vision( or layer_0)?, but it is 'layer_2'"):
            begin(project, bundle, project.runs / "other", dataclasses.replace(SMALL, frozen="layer_2"))
    validation = run.loop.validation
    assert np.abs(run.loop.scores(validation) - starting_scores(project, bundle, validation.clip_ids)).max() < 1e-5
    run.train()
    run.finish()
    fitted = load_bundle(project.runs / "lora" / "bundle")
    X = FeatureCache.open(project.cache).load(validation.clip_ids, "final", "mean", fitted.fingerprint)
    assert np.abs(fitted.scores(X, fingerprint=fitted.fingerprint) - run.loop.scores(validation)).max() < 1e-5
    run.merge(tmp_path / "merged")
    assert merging_changes(model, run.folder / "bundle" / "adapter", tmp_path / "merged") < 1e-5
