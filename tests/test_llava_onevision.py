"""LLaVA-OneVision against the plain transformers forward, and its refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.family import Backbone, TapShape, TapStates
from featurecache.backbones.pooling import pool
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from featurecache.files import sha256_of_file
from tests.tiny_families import FRAMES, LAYERS, WIDTH
from tests.tiny_models import pixels_of
from tests.tiny_video_language import make_llava_onevision

IMAGE_PX = 40
PROMPT = "user: describe the hand . <video>"
TAPS = ["vision", *(f"layer_{depth}" for depth in range(LAYERS)), "final"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava_onevision(tmp_path_factory.mktemp("onevision"))


def _open(folder: Path, prompt: str = PROMPT, *, resize: str = "model", dtype: str = "float32") -> Backbone:
    return open_backbone(open_inputs(folder, prompt=prompt, frames=FRAMES, resize=resize), dtype=dtype, device="cpu")


def _pixels(clips: int = 2) -> Tensor:
    return torch.randn(clips, FRAMES, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(0))


def _states(backbone: Backbone, pixels: Tensor, taps: list[str]) -> dict[str, TapStates]:
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    return dict(backbone.states(encoded.unflatten(0, pixels.shape[:2]), taps))


def _plain(folder: Path, pixels: Tensor, prompt: str) -> dict[str, Tensor]:
    """Each tap by the naive recipe: the whole model on prompt and video, every hidden state kept."""
    processor = LlavaOnevisionProcessor.from_pretrained(folder)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    video = torch.zeros(FRAMES, 3, IMAGE_PX, IMAGE_PX, dtype=torch.uint8)
    ids = processor(text=[prompt], videos=[video], return_tensors="pt")["input_ids"].expand(len(pixels), -1)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values_videos=pixels, output_hidden_states=True)
        tower = model.model.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[
            model.config.vision_feature_layer
        ]
    at_video = (ids[0] == processor.video_token_id).nonzero()[:-1, 0]  # the last one is the newline
    states = [hidden[:, at_video].unflatten(1, (FRAMES, -1)) for hidden in out.hidden_states]
    return dict(zip(TAPS, [tower.unflatten(0, (-1, FRAMES)), *states], strict=True))


@pytest.mark.parametrize(
    "prompt", [PROMPT, "<video>", "user: <video> what moves ?"], ids=["prompt first", "no text", "text after the video"]
)
@pytest.mark.parametrize("taps", [TAPS, TAPS[1:], ["vision"], ["vision", "layer_1"]], ids=str)
def test_every_tap_equals_the_plain_forward(folder: Path, prompt: str, taps: list[str]) -> None:
    backbone, pixels = _open(folder, prompt), _pixels()
    assert backbone.inputs.taps["vision"] == TapShape(FRAMES, 25, WIDTH)
    assert backbone.inputs.taps["final"] == TapShape(FRAMES, 9, 32, is_causal=True)
    ours, plain = _states(backbone, pixels, taps), _plain(folder, pixels, prompt)
    assert list(ours) == taps
    for tap, states in ours.items():
        assert plain[tap].std() > 0.05
        assert states.tokens.shape == plain[tap].shape
        assert (states.tokens - plain[tap]).abs().max() <= 1e-5, tap
        assert (pool(states, "last") - plain[tap].flatten(1, 2)[:, -1]).abs().max() <= 1e-5, tap


def test_vision_is_the_towers_layer_that_config_json_names(tmp_path: Path) -> None:
    folder = make_llava_onevision(tmp_path, vision_feature_layer=-2)
    backbone: Any = _open(folder)
    whole = _states(backbone, _pixels(1), ["final"])["final"].tokens
    assert (whole - _plain(folder, _pixels(1), PROMPT)["final"]).abs().max() <= 1e-5
    for parameter in backbone.model.vision_tower.encoder.layers[-1].parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(_states(backbone, _pixels(1), ["final"])["final"].tokens, whole)


def test_no_layer_above_the_deepest_tap_is_run(folder: Path) -> None:
    whole = _states(_open(folder), _pixels(1), TAPS)
    backbone: Any = _open(folder)
    for module in (backbone.model.language_model.layers[1:], backbone.model.vision_tower.post_layernorm):
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    shallow = _states(backbone, _pixels(1), ["layer_1", "vision"])
    assert list(shallow) == ["vision", "layer_1"]
    for tap, states in shallow.items():
        assert torch.equal(states.tokens, whole[tap].tokens)
    assert _states(backbone, _pixels(1), ["final"])["final"].tokens.isnan().any()  # the poison works
    for parameter in backbone.model.language_model.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(_states(backbone, _pixels(1), ["layer_0"])["layer_0"].tokens, whole["layer_0"].tokens)


def test_encode_frames_does_the_work_of_tower_and_projector_on_each_frame_alone(folder: Path) -> None:
    backbone: Any = _open(folder)
    pixels = _pixels()
    encoded = backbone.encode_frames(pixels.flatten(0, 1), ["final"])
    assert encoded.shape == (2 * FRAMES, 9, 32)
    assert (encoded[FRAMES + 2] - backbone.encode_frames(pixels[1, 2][None], ["final"])[0]).abs().max() <= 1e-5
    for module in (backbone.model.vision_tower, backbone.model.multi_modal_projector):
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    states = dict(backbone.states(encoded.unflatten(0, (2, FRAMES)), ["final"]))
    assert states["final"].tokens.isfinite().all()


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_states_are_computed_in_the_dtype_that_is_asked_for(folder: Path, dtype: str, bound: float) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64, 3), dtype=np.uint8)
    half, exact = (_open(folder, dtype=name) for name in (dtype, "float32"))
    ours = _states(half, pixels_of(half, frames)[None], ["final"])["final"].tokens
    plain = _states(exact, pixels_of(exact, frames)[None], ["final"])["final"].tokens
    assert ours.dtype == getattr(torch, dtype)
    assert 1e-6 < (ours.float() - plain).norm() / plain.norm() < bound


def test_preprocess_agrees_with_the_models_own_processor(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 15, 20, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    processor = LlavaOnevisionProcessor.from_pretrained(folder).video_processor
    plain = processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")["pixel_values_videos"][0]
    assert ((pixels_of(_open(folder), frames) - plain) * 0.5 * 255).abs().max() <= 2.01


def test_identity_counts_only_words_before_the_video_and_only_for_the_taps_they_change(folder: Path) -> None:
    def identity(prompt: str, tap: str) -> dict[str, Any]:
        inputs = open_inputs(folder, prompt=prompt, frames=FRAMES, resize="squash")
        return inputs.identity(tap, "float32", sha256_of_file)

    base = identity(PROMPT, "final")
    assert json.loads(json.dumps(base)) == base
    assert identity("user: what moves ? <video>", "final") != base
    assert identity(PROMPT + " what moves ?", "final") == base
    for tap in ("vision", "layer_0"):
        assert identity("user: what moves ? <video>", tap) == identity(PROMPT, tap) != base


@pytest.mark.parametrize(
    ("change", "expected", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, UnsupportedModelError, "one layer is used in full"),
        ({"vision_feature_select_strategy": "default"}, UnsupportedModelError, "one layer is used in full"),
    ],
    ids=str,
)
def test_open_inputs_refuses_another_architecture(
    folder: Path, tmp_path: Path, change: dict[str, Any], expected: type[Exception], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(expected, match=message):
        _open(copy)


def test_open_inputs_refuses_a_prompt_that_does_not_hold_the_video_once(folder: Path) -> None:
    with pytest.raises(SettingsError, match="exactly once, but it holds it 0 times"):
        _open(folder, "user: describe")


def test_open_backbone_refuses_a_checkpoint_that_lacks_a_weight(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(copy / "model.safetensors")
    key = next(key for key in sorted(weights) if "projector" in key)
    del weights[key]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks 1, e\.g\. multi_modal_projector"):
        _open(copy)
