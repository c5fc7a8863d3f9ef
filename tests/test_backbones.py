"""LLaVA-NeXT-Video against the plain transformers forward, and what it refuses."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoModel

from featurecache.backbones import decoder, find_model, open_backbone, open_inputs
from featurecache.backbones.decoder import Embedded, hidden_states
from featurecache.backbones.files import load_frozen
from featurecache.backbones.video_language import VideoLanguageBackbone, VideoLanguageInputs
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from tests.published_layouts import change_config
from tests.tiny_models import make_llava_next_video, pixels_of, plain_processor

PROMPT = "user: describe the hand . <video>"
WORDS_AFTER = "user: describe the hand . <video> what happens here ? assistant:"
FRAMES = 4
OVERFLOWING = torch.finfo(torch.float32).max
"""A weight that is finite, but whose products are not."""


def _inputs(folder: Path, prompt: str = PROMPT, **changes) -> VideoLanguageInputs:
    inputs = open_inputs(folder, prompt=prompt, **{"frames": FRAMES, "resize": "crop", **changes})
    assert isinstance(inputs, VideoLanguageInputs)
    return inputs


def _open(folder: Path, prompt: str = PROMPT, *, dtype: str = "float32", **changes) -> VideoLanguageBackbone:
    backbone = open_backbone(_inputs(folder, prompt, **changes), dtype=dtype, device="cpu")
    assert isinstance(backbone, VideoLanguageBackbone)
    return backbone


def _clip(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (FRAMES, height // 4, width // 4, 3), dtype=np.uint8)
    return noise.repeat(4, axis=1).repeat(4, axis=2)


def _plain_states(folder: Path, clips: list[np.ndarray], prompt: str) -> dict[str, torch.Tensor]:
    """The naive recipe: whole model, every hidden state kept, states of the video tokens, by tap, each (B, S, D)."""
    processor = plain_processor(folder)
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    videos = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
    inputs = processor(
        text=[prompt] * len(clips), videos=videos, do_sample_frames=False, return_tensors="pt", padding=True
    )
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    is_video = inputs["input_ids"] == processor.video_token_id
    names = [f"layer_{depth}" for depth in range(len(states) - 1)] + ["final"]
    taps = {name: at[is_video].unflatten(0, (len(clips), -1)) for name, at in zip(names, states, strict=True)}
    return {"vision": seen[0].unflatten(0, (len(clips), -1)).flatten(1, 2), **taps}


def _states(
    backbone: VideoLanguageBackbone, clips: list[np.ndarray], taps: tuple[str, ...] = ("final",)
) -> dict[str, torch.Tensor]:
    """The extraction's way: frames encoded one by one, states by tap, each (B, S, D)."""
    encoded = [backbone.encode_frames(pixels_of(backbone, clip)) for clip in clips]
    found = {tap: states.tokens for tap, states in backbone.states(torch.stack(encoded), taps)}
    for tap, tokens in found.items():
        shape = backbone.inputs.taps[tap]
        assert tokens.shape == (len(clips), shape.steps, shape.tokens_per_step, shape.width)
    return {tap: tokens.flatten(1, 2) for tap, tokens in found.items()}


def _final(backbone: VideoLanguageBackbone, clips: list[np.ndarray]) -> torch.Tensor:
    return _states(backbone, clips)["final"].mean(dim=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, fewer heads for keys than for queries, two layers of the tower used."""
    return make_llava_next_video(tmp_path_factory.mktemp("deep"), layers=5, key_heads=2, vision_feature_layer=[-3, -2])


@pytest.mark.parametrize("prompt", [WORDS_AFTER, "<video>"], ids=["words before and after", "no words"])
def test_every_tap_equals_the_plain_forward_when_two_layers_of_the_tower_are_used(
    deep_model: Path, prompt: str
) -> None:
    clips = [_clip(0), _clip(1), _clip(2, height=50, width=50)]
    backbone = _open(deep_model, prompt)
    plain = _plain_states(deep_model, clips, prompt)
    assert list(plain) == list(backbone.inputs.taps)
    ours = _states(backbone, clips, tuple(plain))
    for tap, states in plain.items():
        assert states.std() > 0.1
        assert ours[tap].shape == states.shape
        assert (ours[tap] - states).abs().max() <= 1e-5, tap


@pytest.mark.parametrize("taps", [("final",), ("layer_3", "vision"), ("layer_0",), ("vision",)])
def test_states_come_in_order_of_depth_and_do_not_depend_on_what_else_is_asked_for(
    deep_model: Path, taps: tuple[str, ...]
) -> None:
    backbone = _open(deep_model)
    every = _states(backbone, [_clip()], tuple(backbone.inputs.taps))
    some = _states(backbone, [_clip()], taps)
    assert list(some) == [tap for tap in backbone.inputs.taps if tap in taps]
    assert all(torch.equal(some[tap], every[tap]) for tap in taps)


def test_features_equal_the_plain_forward_when_the_backbone_is_the_embedded_one() -> None:
    folder = find_model("demo")
    prompt = "USER: Watch the hands. <video>"
    backbone = _open(folder, prompt)
    ours = _states(backbone, [_clip(0), _clip(1)], tuple(backbone.inputs.taps))
    for tap, states in _plain_states(folder, [_clip(0), _clip(1)], prompt).items():
        assert (ours[tap] - states).abs().max() <= 1e-5 * max(1.0, float(states.abs().max())), tap


def test_no_layer_above_the_deepest_tap_and_no_unused_layer_of_the_tower_is_run(
    deep_model: Path, tmp_path: Path
) -> None:
    expected = _states(_open(deep_model), [_clip()], ("layer_2",))["layer_2"]
    poisoned = shutil.copytree(deep_model, tmp_path / "model")
    weights = load_file(poisoned / "model.safetensors")
    never_run = r"encoder\.layers\.2\.|post_layernorm|language_model.*(layers\.[234]\.|\.norm\.weight)|lm_head"
    for name in [name for name in weights if re.search(never_run, name)]:
        weights[name] = torch.full_like(weights[name], OVERFLOWING)
    assert sum(bool((weight == OVERFLOWING).all()) for weight in weights.values()) == 16 + 2 + 3 * 9 + 2
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    backbone = _open(poisoned)
    assert torch.equal(_states(backbone, [_clip()], ("layer_2",))["layer_2"], expected)
    ran = []
    for depth, layer in enumerate(backbone.model.language_model.layers):
        layer.self_attn.register_forward_pre_hook(lambda _module, _args, depth=depth: ran.append(depth))
    _states(backbone, [_clip()], ("vision",))
    _states(backbone, [_clip()], ("layer_0", "vision"))
    assert ran == []
    _states(backbone, [_clip()], ("layer_2", "layer_0"))
    assert ran == [0, 1]
    assert not _states(backbone, [_clip()], ("layer_3",))["layer_3"].isfinite().any(), "the poison works"
    assert len(backbone.model.vision_tower.encoder.layers) == 2, "an unused layer takes no memory"


def test_states_are_the_same_when_an_mlp_sees_some_tokens_at_a_time(
    deep_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_TOKENS_AT_ONCE", 3)
    backbone = _open(deep_model)
    whole = backbone.model.language_model
    seen = []
    whole.layers[0].mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    states = torch.randn(2, 11, whole.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_parts = list(hidden_states(whole, Embedded(states)))  # kept: a later layer must not change an earlier state
    assert seen == [3, 3, 3, 2]
    with torch.enable_grad():
        at_once = list(hidden_states(whole, Embedded(states)))
    assert seen[4:] == [11]
    assert len(by_parts) == len(at_once) == len(whole.layers) + 1
    for one, other in zip(by_parts, at_once, strict=True):
        assert (one - other).abs().max() <= 1e-5


def test_states_go_on_from_cached_tokens_of_a_layer_with_the_same_result_and_gradient(deep_model: Path) -> None:
    backbone = _open(deep_model)
    states = _states(backbone, [_clip(0), _clip(1)], ("layer_3", "final"))
    cached = states["layer_3"].clone()
    decoder = backbone.model.language_model
    decoder.layers[4].self_attn.q_proj.weight.requires_grad_()
    before = backbone.prefix_states(3).expand(2, -1, -1)
    final = list(hidden_states(decoder, Embedded(torch.cat([before, cached], dim=1)), first=3))[-1]
    assert (backbone.at_video(final).flatten(1, 2) - states["final"]).abs().max() <= 1e-5
    final.sum().backward()
    assert decoder.layers[4].self_attn.q_proj.weight.grad.abs().max() > 0


def test_features_depend_on_words_before_the_video_and_not_on_words_after_it(tiny_model: Path) -> None:
    base = _final(_open(tiny_model, "user: baby <video>"), [_clip()])
    before = _final(_open(tiny_model, "user: hand moves <video>"), [_clip()])
    after = _final(_open(tiny_model, "user: baby <video> the hand moves ."), [_clip()])
    assert (base - before).abs().max() > 1e-3
    assert torch.equal(base, after)


def test_features_do_not_depend_on_the_other_clips_of_a_batch(tiny_model: Path) -> None:
    backbone = _open(tiny_model)
    together = _final(backbone, [_clip(0), _clip(1), _clip(2)])
    assert (together[1] - _final(backbone, [_clip(1)])[0]).abs().max() <= 1e-5


def test_preprocess_keeps_the_sides_of_a_wide_frame_on_the_mean_colour_when_resize_is_pad(tiny_model: Path) -> None:
    white = np.full((FRAMES, 30, 60, 3), 255, dtype=np.uint8)
    assert pixels_of(_open(tiny_model), white).min() > 1.5
    pixels = pixels_of(_open(tiny_model, resize="pad"), white)
    assert pixels[:, :, :12].abs().max() < 0.05
    assert pixels[:, :, -12:].abs().max() < 0.05
    assert pixels[:, :, 20:36].min() > 1.5


def test_backbone_is_refused_when_the_device_is_not_here(tiny_model: Path) -> None:
    config, far = _inputs(tiny_model).config, "cuda:99"
    with pytest.raises(SettingsError, match=r"extract\.device must"):
        load_frozen(
            LlavaNextVideoModel, tiny_model, family="a", dtype="float32", device=far, attention="sdpa", config=config
        )


FIXED_ROPES: list[dict[str, Any]] = [
    {"type": "default", "factor": None},
    {"type": "linear", "factor": 2.5},
    {"rope_type": "yarn", "type": None, "factor": 4.0, "original_max_position_embeddings": 24},
    {
        "rope_type": "llama3",
        "type": None,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
]
ROPES_THAT_FOLLOW_THE_LENGTH: list[dict[str, Any]] = [
    {"type": "dynamic", "factor": 2.0},
    {
        "rope_type": "longrope",
        "type": None,
        "factor": 2.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 24,
    },
]


def _with_rope(folder: Path, rope: dict[str, Any]) -> Path:
    """A model of 24 positions, of which the video and the text before it take 23: text after it goes beyond."""
    make_llava_next_video(folder)
    text = {"rope_scaling": rope, "max_position_embeddings": 24, "type": None}
    return change_config(folder, {"text_config": text})


@pytest.mark.parametrize("rope", FIXED_ROPES, ids=str)
def test_features_equal_the_plain_forward_when_text_after_the_video_goes_beyond_the_positions(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    folder = _with_rope(tmp_path, rope)
    ours = _states(_open(folder, WORDS_AFTER), [_clip()])["final"]
    assert (ours - _plain_states(folder, [_clip()], WORDS_AFTER)["final"]).abs().max() <= 1e-5


@pytest.mark.parametrize("rope", ROPES_THAT_FOLLOW_THE_LENGTH, ids=str)
def test_model_is_refused_when_text_after_the_video_would_change_the_video_tokens(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    folder = _with_rope(tmp_path, rope)
    short, long = (_plain_states(folder, [_clip()], prompt)["final"] for prompt in (PROMPT, WORDS_AFTER))
    assert (short - long).abs().max() > 1e-3  # what running the video alone would get wrong
    with pytest.raises(UnsupportedModelError, match=r"must not depend on the length .* text after the video") as caught:
        _open(folder)
    assert "\n" not in str(caught.value)


def test_prompt_is_refused_when_it_does_not_hold_the_video_once(tiny_model: Path) -> None:
    for prompt in ("user: baby", "<video> <video>"):
        with pytest.raises(SettingsError, match=r"exactly once, but it holds it (0|2) times"):
            _open(tiny_model, prompt)
    with pytest.raises(SettingsError, match="must not begin with '<s>'"):
        _open(tiny_model, "<s> user: <video>")


def test_find_model_names_what_is_missing_when_there_is_no_such_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in (str(tmp_path / "nowhere"), "no-such-group/no-such-model", "./a/b"):
        with pytest.raises(ModelNotFoundError, match=r"features\.model|on this machine"):
            find_model(model)
