"""Every family of video language models against the plain forward, and their refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.family import Backbone, TapStates
from featurecache.errors import FeatureCacheError, ModelNotFoundError, SettingsError, UnsupportedModelError
from featurecache.files import sha256_of_file
from tests.plain_forward import PROCESSORS, at_video, plain_batch
from tests.published_layouts import change_config
from tests.tiny_families import FRAMES
from tests.tiny_models import pixels_of
from tests.tiny_video_language import VIDEO_LANGUAGE

FAMILIES = list(VIDEO_LANGUAGE)
PROMPT = "user: describe the hand . <video>"
PROMPTS = {"prompt first": PROMPT, "no text": "<video>", "text after the video": "user: <video> what moves ?"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language")
    return {name: VIDEO_LANGUAGE[name](root / name) for name in FAMILIES}


def _open(folder: Path, prompt: str = PROMPT, *, dtype: str = "float32", **settings: Any) -> Any:
    inputs = open_inputs(folder, **{"prompt": prompt, "frames": FRAMES, "resize": "model", **settings})
    return open_backbone(inputs, dtype=dtype, device="cpu")


def _pixels(backbone: Backbone, clips: int = 2) -> Tensor:
    px = backbone.inputs.image_px
    return torch.randn(clips, FRAMES, 3, px, px, generator=torch.Generator().manual_seed(0))


def _states(backbone: Backbone, pixels: Tensor, taps: list[str]) -> dict[str, TapStates]:
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    return dict(backbone.states(encoded.unflatten(0, pixels.shape[:2]), taps))


def _plain(folder: Path, pixels: Tensor, prompt: str) -> list[Tensor]:
    """`hidden_states` of the class that was saved at the video tokens, each (B, S, D); the last is behind the norm."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    clips = []
    for clip in pixels:
        batch = plain_batch(model.config, tokenizer, clip, prompt)
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        clips.append([one[0, at_video(model.config, batch)] for one in states])
    return [torch.stack(one) for one in zip(*clips, strict=True)]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_equals_the_plain_forward(folders: dict[str, Path], name: str, prompt: str) -> None:
    backbone = _open(folders[name], prompt)
    pixels = _pixels(backbone)
    taps = list(backbone.inputs.taps)
    ours, plain = _states(backbone, pixels, taps), _plain(folders[name], pixels, prompt)
    assert list(ours) == taps == ["vision", *(f"layer_{depth}" for depth in range(len(plain) - 1)), "final"]
    for tap, states in zip(taps[1:], plain, strict=True):
        shape = backbone.inputs.taps[tap]
        assert ours[tap].tokens.shape == (2, shape.steps, shape.tokens_per_step, shape.width)
        assert states.std() > 0.05
        assert (ours[tap].tokens.flatten(1, 2) - states).abs().max() <= 1e-5, tap
    shape = backbone.inputs.taps["vision"]
    assert ours["vision"].tokens.shape == (2, shape.steps, shape.tokens_per_step, shape.width)
    for some in (["final"], ["layer_1"], ["layer_0"]):
        assert (_states(backbone, pixels, some)[some[0]].tokens - ours[some[0]].tokens).abs().max() <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_vision_is_what_makes_the_video_tokens_of_its_own_step_alone(folders: dict[str, Path], name: str) -> None:
    backbone = _open(folders[name])
    pixels = _pixels(backbone, 1)
    other = pixels.clone()
    other[0, -1] += 1  # of two frames that are joined, the second
    for tap in ("vision", "layer_0"):
        before, after = (_states(backbone, each, [tap])[tap].tokens for each in (pixels, other))
        changed = (before != after).any(dim=-1)[0]
        assert not changed[:-1].any()
        assert changed[-1].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_above_the_deepest_tap_is_run(folders: dict[str, Path], name: str) -> None:
    backbone = _open(folders[name])
    pixels = _pixels(backbone, 1)
    whole = _states(backbone, pixels, ["vision", "layer_1"])
    for parameter in backbone.decoder.layers[1:].parameters():
        parameter.fill_(torch.nan)
    shallow = _states(backbone, pixels, ["vision", "layer_1"])
    assert all(torch.equal(shallow[tap].tokens, whole[tap].tokens) for tap in whole)
    assert _states(backbone, pixels, ["final"])["final"].tokens.isnan().any()  # the poison works


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(60, 80), (100, 44), (32, 32)], ids=str)
def test_preprocess_equals_the_models_own_processor_bit_for_bit(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    if name == "llava_onevision":
        pytest.skip("its processor scales in floating point; the next test")
    if name == "qwen2_5_vl":  # above the bound on a frame's pixels
        size = (2 * size[0], 2 * size[1])
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *size, 3), dtype=np.uint8)
    processor = PROCESSORS[name].from_pretrained(folders[name])
    if name.startswith("qwen"):  # the processor keeps a frame's sides; the extraction pads them to a square first
        square = np.empty((FRAMES, max(size), max(size), 3), dtype=np.uint8)
        square[:] = [round(255 * mean) for mean in processor.image_mean]
        top, left = (max(size) - size[0]) // 2, (max(size) - size[1]) // 2
        square[:, top : top + size[0], left : left + size[1]] = frames
        plain = processor([torch.from_numpy(square).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
        ours = pixels_of(_open(folders[name]), frames)
        assert torch.equal(processor.patchify(ours[None], 8, 2, 2)[0][0], plain["pixel_values_videos"])
        return
    plain = processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
    assert torch.equal(pixels_of(_open(folders[name]), frames), next(iter(plain.values()))[0])


def test_llava_onevision_scales_in_eight_bits_within_two_levels_of_its_own_processor(folders: dict[str, Path]) -> None:
    folder = folders["llava_onevision"]
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 15, 20, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    processor = transformers.LlavaOnevisionProcessor.from_pretrained(folder).video_processor
    plain = processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")["pixel_values_videos"][0]
    assert ((pixels_of(_open(folder), frames) - plain) * 0.5 * 255).abs().max() <= 2.01


def test_llava_onevision_reads_the_towers_layer_that_config_json_names(tmp_path: Path) -> None:
    folder = VIDEO_LANGUAGE["llava_onevision"](tmp_path, vision_feature_layer=-2)
    backbone = _open(folder)
    pixels = _pixels(backbone, 1)
    whole = _states(backbone, pixels, ["final"])["final"].tokens
    assert (whole.flatten(1, 2) - _plain(folder, pixels, PROMPT)[-1]).abs().max() <= 1e-5
    for parameter in backbone.model.vision_tower.encoder.layers[-1].parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(_states(backbone, pixels, ["final"])["final"].tokens, whole)


def test_encode_frames_does_the_work_of_tower_and_projector_on_each_frame_alone(folders: dict[str, Path]) -> None:
    backbone = _open(folders["llava_onevision"])
    pixels = _pixels(backbone)
    encoded = backbone.encode_frames(pixels.flatten(0, 1), ["final"])
    assert (encoded[FRAMES + 2] - backbone.encode_frames(pixels[1, 2][None], ["final"])[0]).abs().max() <= 1e-5
    for module in (backbone.model.vision_tower, backbone.model.multi_modal_projector):
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    states = dict(backbone.states(encoded.unflatten(0, (2, FRAMES)), ["final"]))
    assert states["final"].tokens.isfinite().all()


def test_smolvlm_is_told_frames_and_times_as_its_processor_tells_them(folders: dict[str, Path]) -> None:
    num2words = pytest.importorskip("num2words").num2words
    from featurecache.backbones.smolvlm import in_words, video_text

    assert [in_words(number) for number in range(1000)] == [num2words(number) for number in range(1000)]
    folder = folders["smolvlm"]
    processor = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor.from_pretrained(folder),
        video_processor=transformers.SmolVLMVideoProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        image_seq_len=2,
    )
    for frames, clip_s, rate in ((16, 3.0, 16), (4, 130.0, 4)):
        metadata = transformers.video_utils.VideoMetadata(
            total_num_frames=int(clip_s * rate),
            fps=rate,
            duration=clip_s,
            frames_indices=[(k + 0.5) * clip_s / frames * rate for k in range(frames)],
        )
        told = processor.replace_video_token(
            {"pixel_values": np.zeros((1, frames, 3, 8, 8)), "video_metadata": [metadata]}, 0
        )
        assert video_text(frames, clip_s).replace("<video>", "<image>" * 2) == told


def test_qwen3_vl_is_told_times_as_its_processor_tells_them(folders: dict[str, Path]) -> None:
    from featurecache.backbones.qwen3_vl import video_text

    folder, frames = folders["qwen3_vl"], 6
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor.from_pretrained(folder),
        video_processor=transformers.Qwen3VLVideoProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    times = [(k + 0.5) * 3.0 / frames for k in range(frames)]
    metadata = transformers.video_utils.VideoMetadata(
        total_num_frames=90, fps=30, frames_indices=[30 * t for t in times]
    )
    told = processor.replace_video_token(
        {"video_grid_thw": torch.tensor([[frames // 2, 4, 4]]), "video_metadata": [metadata]}, 0
    )
    assert video_text(frames, 2, 3.0).replace("<video>", "<|video_pad|>" * 4) == told


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_changes_when_anything_that_changes_a_taps_values_does_and_with_nothing_else(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    def identity(
        prompt: str = PROMPT,
        tap: str = "final",
        *,
        folder: Path = folders[name],
        dtype: str = "float32",
        **changes: Any,
    ) -> dict[str, Any]:
        settings = {"prompt": prompt, "frames": FRAMES, "resize": "squash", **changes}
        return open_inputs(folder, **settings).identity(tap, dtype, sha256_of_file)

    base = identity()
    assert json.loads(json.dumps(base)) == base
    assert set(base["backbone"]["weights"]) == {"model.safetensors"}
    assert identity("user: what moves ? <video>") != base
    assert identity(PROMPT + " what moves ?") == base
    for changes in ({"frames": 2 * FRAMES}, {"resize": "pad"}, {"dtype": "bfloat16"}):
        assert identity(**changes) != base, changes
    without_times = ("internvl", "llava_next_video", "llava_onevision")
    assert (identity(clip_s=9.0) != base) == (name not in without_times)
    for tap in ("vision", "layer_0"):
        assert identity("user: <video>", tap) == identity(tap=tap) == identity(tap=tap, clip_s=9.0) != base
        assert identity(tap=tap, frames=2 * FRAMES) != identity(tap=tap) != identity(tap=tap, dtype="bfloat16")
    copy = shutil.copytree(folders[name], tmp_path / "copy")
    assert identity(folder=copy) == base
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert (identity(folder=copy) != base) == (name == "llava_next_video")  # of others, the ids that it makes


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_computed_in_the_dtype_that_is_asked_for(
    folders: dict[str, Path], name: str, dtype: str, bound: float
) -> None:
    half, exact = (
        _states(backbone, _pixels(backbone, 1).to(backbone.model.dtype), ["final"])["final"]
        for backbone in (_open(folders[name], dtype=each) for each in (dtype, "float32"))
    )
    assert half.tokens.dtype == getattr(torch, dtype)
    assert 1e-6 < (half.tokens.float() - exact.tokens).norm() / exact.tokens.norm() < bound


def test_internvl_is_told_frames_as_its_processor_tells_them(folders: dict[str, Path]) -> None:
    backbone = _open(folders["internvl"])
    tokenizer = AutoTokenizer.from_pretrained(folders["internvl"])
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    for attribute, token in {**names, "video_token": "<video>"}.items():
        setattr(tokenizer, attribute, token)
        setattr(tokenizer, f"{attribute}_id", tokenizer.convert_tokens_to_ids(token))
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(),
        video_processor=transformers.InternVLVideoProcessor(),
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    told = processor.replace_video_token({"pixel_values_videos": torch.zeros(1, FRAMES, 3, 8, 8)}, 0)
    assert backbone.inputs.architecture.video_text.replace("<video>", "<IMG_CONTEXT>" * 4) == told


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], type[FeatureCacheError], str]] = [
    ("llava_onevision", {"vision_feature_layer": [-2, -1]}, {}, {}, UnsupportedModelError, "one layer is used in full"),
    ("llava_onevision", {"vision_feature_select_strategy": "default"}, {}, {}, UnsupportedModelError, "used in full"),
    ("llava_onevision", {}, {}, {"prompt": "user: describe"}, SettingsError, "exactly once, but it holds it 0 times"),
    ("smolvlm", {"scale_factor": 3}, {}, {}, UnsupportedModelError, "scale_factor must divide 4"),
    ("smolvlm", {"image_token_id": 9000}, {}, {}, FeatureCacheError, "video token must be one"),
    ("smolvlm", {}, {"max_image_size": {"longest_edge": 24}}, {}, UnsupportedModelError, "make 24 px"),
    ("smolvlm", {}, {"size": {"height": 64, "width": 64}}, {}, UnsupportedModelError, "size = "),
    ("smolvlm", {}, {"max_image_size": "large"}, {}, UnsupportedModelError, "max_image_size of a processor must be"),
    ("smolvlm", {}, {"resample": 0}, {}, UnsupportedModelError, "resample = 0"),
    ("smolvlm", {}, {}, {"prompt": "<image> <video>"}, SettingsError, "must not hold '<image>'"),
    ("smolvlm", {}, {}, {"frames": 1000}, SettingsError, "at most 999"),
    ("internvl", {"vision_feature_select_strategy": "full"}, {}, {}, UnsupportedModelError, "without the class token"),
    ("internvl", {"downsample_ratio": 0.3}, {}, {}, UnsupportedModelError, "divides its patches"),
    ("qwen2_5_vl", {}, {}, {"frames": 3}, SettingsError, r"multiple of 2 .*but it is 3\. Set frames = 4"),
    ("qwen2_5_vl", {}, {"max_pixels": 100}, {}, UnsupportedModelError, "size = "),
    ("qwen2_5_vl", {}, {"min_pixels": "few"}, {}, UnsupportedModelError, "min_pixels of a processor must be"),
    ("qwen2_5_vl", {"vision_config": {"window_size": 8}}, {}, {}, UnsupportedModelError, "window_size must hold"),
    ("qwen2_5_vl", {"use_sliding_window": True, "sliding_window": 4}, {}, {}, UnsupportedModelError, "window is 4"),
    ("qwen3_vl", {}, {}, {"frames": 3}, SettingsError, r"multiple of 2 .*but it is 3\. Set frames = 4"),
    ("qwen3_vl", {}, {"patch_size": 16}, {}, UnsupportedModelError, "patch_size = 16"),
    ("qwen3_vl", {}, {"size": {"shortest_edge": 64}}, {}, UnsupportedModelError, "size = "),
    ("qwen3_vl", {}, {"merge_size": "two"}, {}, UnsupportedModelError, "merge_size of a processor must be"),
    ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [3]}}, {}, {}, UnsupportedModelError, "from 0 to 2"),
]


@pytest.mark.parametrize(("name", "config", "processor", "settings", "kind", "message"), REFUSED, ids=str)
def test_open_inputs_refuses_what_it_would_compute_otherwise(
    folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    config: dict[str, Any],
    processor: dict[str, Any],
    settings: dict[str, Any],
    kind: type[FeatureCacheError],
    message: str,
) -> None:
    folder = change_config(shutil.copytree(folders[name], tmp_path / "model"), config)
    if processor:
        (folder / "processor_config.json").unlink(
            missing_ok=True
        )  # the flat files alone, of which each has all settings
        file = next(folder.glob("*preprocessor_config.json"))
        file.write_text(json.dumps({**json.loads(file.read_text()), **processor}))
    with pytest.raises(kind, match=message) as caught:
        _open(folder, **settings)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_tokens_around_a_frame_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["smolvlm"], tmp_path / "model")
    for path in folder.glob("*token*"):
        path.write_text(path.read_text().replace("<global-img>", "<another>"))
    with pytest.raises(ModelNotFoundError, match="must have the token '<global-img>'"):
        _open(folder)
