"""The backbone against the plain transformers forward, and its refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor

from featurecache.backbones import find_model, open_inputs
from featurecache.backbones.llava_next_video import LlavaNextVideoBackbone, LlavaNextVideoInputs
from featurecache.errors import (
    ModelNotFoundError,
    NoVideoTokensError,
    SettingsError,
    UnsupportedModelError,
)
from featurecache.files import sha256_of_file
from featurecache.pooling import mean_of_tokens

PROMPT = "user: describe the hand . <video>"
FRAMES = 4


def _inputs(folder: Path, prompt: str = PROMPT, **changes) -> LlavaNextVideoInputs:
    return open_inputs(folder, prompt=prompt, **{"frames": FRAMES, "resize": "crop", **changes})


def _open(folder: Path, prompt: str = PROMPT, **changes) -> LlavaNextVideoBackbone:
    return LlavaNextVideoBackbone(_inputs(folder, prompt, **changes), dtype="float32", device="cpu")


def _clip(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (FRAMES, height // 4, width // 4, 3), dtype=np.uint8)
    return noise.repeat(4, axis=1).repeat(4, axis=2)


def _plain_features(folder: Path, clips: list[np.ndarray], prompt: str) -> torch.Tensor:
    """The naive recipe: whole model, every hidden state kept, mask over the video tokens, mean."""
    processor = LlavaNextVideoProcessor.from_pretrained(folder)
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    videos = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
    inputs = processor(
        text=[prompt] * len(clips), videos=videos, do_sample_frames=False, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    is_video = inputs["input_ids"] == processor.video_token_id
    return torch.stack([row[mask].mean(dim=0) for row, mask in zip(states, is_video, strict=True)])


def _features(backbone: LlavaNextVideoBackbone, clips: list[np.ndarray]) -> torch.Tensor:
    return mean_of_tokens(backbone.video_token_states(torch.stack([backbone.preprocess(clip) for clip in clips])))


@pytest.mark.parametrize(
    "prompt",
    [PROMPT, "<video>", "user: <video> what happens here ? assistant:"],
    ids=["prompt first", "no text", "text after the video"],
)
def test_features_equal_the_plain_forward(tiny_model: Path, prompt: str) -> None:
    clips = [_clip(0), _clip(1), _clip(2, height=50, width=50)]
    ours = _features(_open(tiny_model, prompt), clips)
    plain = _plain_features(tiny_model, clips, prompt)
    assert ours.shape == (3, 32)
    assert plain.std() > 0.1
    assert (ours - plain).abs().max() <= 1e-5


def test_features_equal_the_plain_forward_when_the_backbone_is_the_embedded_one() -> None:
    folder = find_model("demo")
    prompt = "USER: Watch the hands. <video>"
    ours = _features(_open(folder, prompt), [_clip(0), _clip(1)])
    assert (ours - _plain_features(folder, [_clip(0), _clip(1)], prompt)).abs().max() <= 1e-5


def test_features_depend_on_words_before_the_video_and_not_on_words_after_it(tiny_model: Path) -> None:
    base = _features(_open(tiny_model, "user: baby <video>"), [_clip()])
    before = _features(_open(tiny_model, "user: hand moves <video>"), [_clip()])
    after = _features(_open(tiny_model, "user: baby <video> the hand moves ."), [_clip()])
    assert (base - before).abs().max() > 1e-3
    assert torch.equal(base, after)


def test_features_do_not_depend_on_the_other_clips_of_a_batch(tiny_model: Path) -> None:
    backbone = _open(tiny_model)
    together = _features(backbone, [_clip(0), _clip(1), _clip(2)])
    assert (together[1] - _features(backbone, [_clip(1)])[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_preprocess_keeps_the_sides_of_a_wide_frame_when_resize_is_not_crop(tiny_model: Path, resize: str) -> None:
    frames = np.zeros((FRAMES, 60, 120, 3), dtype=np.uint8)
    frames[:, :, :10] = 255  # a white bar that the centre crop would cut off
    cropped = _open(tiny_model).preprocess(frames)
    kept = _open(tiny_model, resize=resize).preprocess(frames)
    assert cropped.shape == kept.shape == (FRAMES, 3, 56, 56)
    assert cropped.max() < 0 < 1.5 < kept.max()


def test_preprocess_centres_the_frame_on_the_mean_colour_when_resize_is_pad(tiny_model: Path) -> None:
    pixels = _open(tiny_model, resize="pad").preprocess(np.full((FRAMES, 30, 60, 3), 255, dtype=np.uint8))
    assert pixels[:, :, :12].abs().max() < 0.05
    assert pixels[:, :, -12:].abs().max() < 0.05
    assert pixels[:, :, 20:36].min() > 1.5


def test_mean_of_tokens_neither_overflows_nor_rounds_when_states_are_float16() -> None:
    states = torch.full((1, 2304, 2), 60.0, dtype=torch.float16)
    states[:, ::3] = 61.0  # the mean, 60 and a third, is no float16, and the sum exceeds its range
    assert (mean_of_tokens(states) - (60 + 1 / 3)).abs().max() < 1e-5
    with pytest.raises(NoVideoTokensError, match="at least one video token"):
        mean_of_tokens(states[:, :0])


def test_identity_changes_when_anything_that_changes_values_does(tiny_model: Path, tmp_path: Path) -> None:
    base = _inputs(tiny_model).identity("float32", sha256_of_file)
    assert json.loads(json.dumps(base)) == base
    assert set(base["backbone"]["weights"]) == {"model.safetensors"}
    for changes in ({"prompt": "user: baby <video>"}, {"frames": 8}, {"resize": "pad"}):
        assert _inputs(tiny_model, **changes).identity("float32", sha256_of_file) != base, changes
    assert _inputs(tiny_model).identity("bfloat16", sha256_of_file) != base
    assert _inputs(tiny_model, PROMPT + " what happens ?").identity("float32", sha256_of_file) == base
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert _inputs(copy).identity("float32", sha256_of_file) == base
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert _inputs(copy).identity("float32", sha256_of_file) != base


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_features_are_computed_in_the_dtype_that_is_asked_for(tiny_model: Path, dtype: str, bound: float) -> None:
    backbone = LlavaNextVideoBackbone(_inputs(tiny_model), dtype=dtype, device="cpu")
    assert backbone.model.dtype == getattr(torch, dtype)
    features, exact = _features(backbone, [_clip(0)]), _features(_open(tiny_model), [_clip(0)])
    assert features.dtype == torch.float32
    difference = (features - exact).norm() / exact.norm()
    assert 1e-6 < difference < bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_a_gpu_equal_those_on_the_cpu(tiny_model: Path) -> None:
    backbone = LlavaNextVideoBackbone(_inputs(tiny_model), dtype="float32", device="cuda")
    # The processor resizes 8-bit frames with another kernel there, so pixels may differ by a level.
    assert (_features(backbone, [_clip(0)]).cpu() - _features(_open(tiny_model), [_clip(0)])).abs().max() < 0.02


def test_backbone_is_refused_when_the_device_is_not_here(tiny_model: Path) -> None:
    with pytest.raises(SettingsError, match=r"extract\.device must be"):
        LlavaNextVideoBackbone(_inputs(tiny_model), dtype="float32", device="cuda:99")


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


@pytest.mark.parametrize(
    "damage", ["no config", "torn weights", "no weights", "no tokenizer", "other architecture", "other size"]
)
def test_open_backbone_says_which_file_is_wrong_when_the_folder_is_damaged(
    tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    expected: type[Exception] = ModelNotFoundError
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "torn weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "other architecture":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        expected = UnsupportedModelError
    else:
        processor = json.loads((folder / "processor_config.json").read_text())
        processor["video_processor"]["crop_size"] = {"height": 224, "width": 224}
        (folder / "processor_config.json").write_text(json.dumps(processor))
        expected = UnsupportedModelError
    with pytest.raises(expected) as caught:
        _open(folder)
    assert str(folder) in str(caught.value) or "224" in str(caught.value)
    assert "\n" not in str(caught.value)
