"""Every family of vision encoders against the plain forward of its real class, and its refusals."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2ForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    LlavaOnevisionVideoProcessor,
    PeAudioVideoModel,
    PeVideoModel,
    PeVideoVideoProcessor,
    Siglip2Model,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
    TimesformerForVideoClassification,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    VideoPrismClipModel,
    VideoPrismVisionModel,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    VJEPA2VideoProcessor,
    XCLIPModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches
from transformers.video_processing_utils import BaseVideoProcessor

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.family import Backbone, TapStates
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from featurecache.files import sha256_of_file
from tests.plain_forward import whole_model
from tests.published_layouts import change_config
from tests.tiny_families import FAMILIES, FRAMES, IMAGE_PX, LAYERS, WIDTH, make_timesformer
from tests.tiny_models import pixels_of

FRAME_ENCODERS = {"clip", "clip vision", "siglip", "siglip vision", "siglip2", "dinov2", "dinov2 registers", "dinov3"}
PERCEPTION = {"pe video", "pe audio video"}
"""Families that embed each frame alone, then join the embeddings of a clip."""
CLIP_ENCODERS = set(FAMILIES) - FRAME_ENCODERS - PERCEPTION
TUBELETS = {"videomae", "videomae pretrained", "vjepa2", "vjepa2 pretrained"}
SIDE = 4  # patches across a frame, of all of them
TAPS = [*(f"layer_{depth}" for depth in range(LAYERS + 1)), "final"]
JOINT = {"clip", "clip vision", "siglip", "videoprism lvt"}

SAVED_AS = {
    "timesformer": (TimesformerForVideoClassification, "timesformer"),
    "clip": (CLIPModel, "vision_model"),
    "clip vision": (CLIPVisionModelWithProjection, "vision_model"),
    "siglip": (SiglipModel, "vision_model"),
    "siglip vision": (SiglipVisionModel, ""),
    "siglip2": (Siglip2Model, "vision_model"),
    "xclip": (XCLIPModel, "vision_model"),
    "dinov2": (Dinov2ForImageClassification, "dinov2"),
    "dinov2 registers": (Dinov2WithRegistersModel, ""),
    "dinov3": (DINOv3ViTModel, ""),
    "videoprism": (VideoPrismVisionModel, ""),
    "videoprism lvt": (VideoPrismClipModel, "video_model"),
    "videomae": (VideoMAEForVideoClassification, "videomae"),
    "videomae pretrained": (VideoMAEForPreTraining, "videomae"),
    "vjepa2": (VJEPA2ForVideoClassification, "vjepa2"),
    "vjepa2 pretrained": (VJEPA2Model, ""),
    "pe video": (PeVideoModel, "video_encoder"),
    "pe audio video": (PeAudioVideoModel, "video_model"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name.replace(" ", "-")) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    """Each opened once, for tests that leave the weights alone."""
    return {name: _open(folder) for name, folder in folders.items()}


def _open(folder: Path, *, frames: int = FRAMES, resize: str = "model", dtype: str = "float32") -> Backbone:
    return open_backbone(open_inputs(folder, prompt="", frames=frames, resize=resize), dtype=dtype, device="cpu")


def _pixels(clips: int = 2, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(clips, frames, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(seed))


def _states(backbone: Backbone, pixels: Tensor, taps: list[str]) -> dict[str, TapStates]:
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    return dict(backbone.states(encoded.unflatten(0, pixels.shape[:2]), taps))


def _plain(name: str, folder: Path, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Each tap by the naive recipe: the class that was saved, every hidden state kept; (tokens, class tokens)."""
    model_class, encoder_name = SAVED_AS[name]
    whole = whole_model(model_class, folder)
    encoder = getattr(whole, encoder_name) if encoder_name else whole
    clips, frames = pixels.shape[:2]
    if name in PERCEPTION:
        return _plain_perception(getattr(encoder, "video_encoder", encoder), pixels)
    with torch.no_grad():
        if name == "siglip2":
            patches = torch.stack([convert_image_to_patches(frame, 8) for frame in pixels.flatten(0, 1)])
            shapes = torch.tensor([[SIDE, SIDE]]).expand(len(patches), -1)
            out = encoder(patches, torch.ones(patches.shape[:2]), shapes, output_hidden_states=True)
        elif name in FRAME_ENCODERS or name == "xclip":
            out = encoder(pixels.flatten(0, 1), output_hidden_states=True)
        else:
            out = encoder(pixels, output_hidden_states=True)
        last = out.last_hidden_state
        if name.startswith("clip") or name == "xclip":  # transformers norms the class token alone
            last = encoder.post_layernorm(out.hidden_states[-1])
            torch.testing.assert_close(last[:, 0], out.pooler_output, rtol=0, atol=0)
    if name.startswith("videoprism"):
        return _plain_videoprism(getattr(encoder, "vision_model", encoder), pixels)
    taps: dict[str, tuple[Tensor, Tensor | None]] = {}
    for tap, states in zip(TAPS, [*out.hidden_states, last], strict=True):
        if name == "timesformer":
            taps[tap] = (states[:, 1:].reshape(clips, SIDE**2, frames, WIDTH).transpose(1, 2), states[:, :1])
        elif name in TUBELETS:
            taps[tap] = (states.reshape(clips, frames // 2, SIDE**2, WIDTH), None)
        elif name.startswith("siglip"):
            taps[tap] = (states.reshape(clips, frames, SIDE**2, WIDTH), None)
        else:
            by_frame = states.reshape(clips, frames, -1, WIDTH)  # a class token, registers, patches
            taps[tap] = (by_frame[:, :, -(SIDE**2) :], by_frame[:, :, 0])
    return taps


def _plain_videoprism(encoder: Any, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Spatial states (B T, P, D), then those in time (B P, T, D), then the last ones behind the norm (B, T P, D)."""
    clips, frames = pixels.shape[:2]
    with torch.no_grad():
        out = encoder(pixels, output_hidden_states=True)
    *spatial, _ = out.hidden_states
    states = [one.reshape(clips, frames, SIDE**2, WIDTH) for one in spatial]
    in_time = out.last_temporal_hidden_state.reshape(clips, SIDE**2, frames, WIDTH).transpose(1, 2)
    last = out.last_hidden_state.reshape(clips, frames, SIDE**2, WIDTH)
    return {tap: (one, None) for tap, one in zip(TAPS, [*states, in_time, last], strict=True)}


def _plain_perception(encoder: Any, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """What the class's own forward gives its first projection, each layer, and the caller."""
    seen: list[Tensor] = []
    encoder.embedder.proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    encoder.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        out = encoder(pixels)
    vision, *states = seen
    last = (out.last_hidden_state[:, :, None], out.pooler_output[:, None])
    depths = {f"layer_{depth}": (one[:, 1:, None], one[:, :1]) for depth, one in enumerate(states)}
    return {"vision": (vision[:, :, None], None), **depths, "final": last}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_equals_the_plain_forward(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str
) -> None:
    backbone, pixels = backbones[name], _pixels()
    taps = ["vision", *TAPS] if name in PERCEPTION else TAPS
    ours, plain = _states(backbone, pixels, taps), _plain(name, folders[name], pixels)
    assert list(ours) == taps
    assert list(backbone.inputs.taps) == taps + ["joint"] * (name in JOINT)
    for tap, (tokens, cls) in plain.items():
        shape = backbone.inputs.taps[tap]
        assert ours[tap].tokens.shape == (2, shape.steps, shape.tokens_per_step, shape.width)
        assert tokens.std() > 0.02 * tokens.abs().max()
        assert (ours[tap].tokens - tokens).abs().max() <= 1e-5, tap
        assert (cls is not None) == shape.has_cls == (ours[tap].cls is not None)
        if cls is not None:
            assert (ours[tap].cls - cls).abs().max() <= 1e-5, tap


@pytest.mark.parametrize("name", sorted(JOINT))
def test_joint_equals_the_embeddings_that_the_whole_model_compares_with_texts(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str
) -> None:
    backbone, pixels = backbones[name], _pixels()
    model: Any = SAVED_AS[name][0].from_pretrained(folders[name], dtype=torch.float32).eval()
    frames, ids = pixels.flatten(0, 1), torch.tensor([[5, 6, 2]])
    with torch.no_grad():
        if name == "clip vision":  # without a text tower its class leaves the length to its caller
            embeds = torch.nn.functional.normalize(model(frames).image_embeds, dim=-1)
        elif name == "videoprism lvt":
            embeds = model(pixel_values_videos=pixels, input_ids=ids).video_embeds
        else:
            embeds = model(pixel_values=frames, input_ids=ids).image_embeds
    assert (embeds.norm(dim=-1) - 1).abs().max() <= 1e-4
    states = _states(backbone, pixels, ["layer_1", "final", "joint"])
    shape = backbone.inputs.taps["joint"]
    assert states["joint"].tokens.shape == (2, shape.steps, shape.tokens_per_step, shape.width)
    assert (states["joint"].tokens.flatten(0, 2) - embeds).abs().max() <= 1e-5
    alone = _states(backbone, pixels, ["joint"])
    assert list(alone) == ["joint"]
    assert torch.equal(alone["joint"].tokens, states["joint"].tokens)
    (final,) = _states(backbone, pixels, ["final"]).values()
    assert torch.equal(states["final"].tokens, final.tokens)


def test_a_clip_has_no_joint_tap_when_its_weights_have_no_projection(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip vision"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert list(_open(folder).inputs.taps) == TAPS


def test_states_equal_the_plain_forward_when_vjepa2_sees_fewer_frames_than_it_was_trained_on(
    folders: dict[str, Path],
) -> None:
    pixels = _pixels(frames=6)
    ours = _states(_open(folders["vjepa2"], frames=6), pixels, ["final"])["final"].tokens
    assert ours.shape[1] == 3
    assert (ours - _plain("vjepa2", folders["vjepa2"], pixels)["final"][0]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - PERCEPTION))
def test_tokens_lie_in_time_and_row_by_row(backbones: dict[str, Backbone], name: str) -> None:
    backbone, pixels = backbones[name], _pixels(1)
    other = pixels.clone()
    patch = IMAGE_PX // SIDE
    other[0, 2, :, patch : 2 * patch, 3 * patch :] += 1  # frame 2, row 1, column 3
    before = _states(backbone, pixels, ["layer_0"])["layer_0"].tokens
    after = _states(backbone, other, ["layer_0"])["layer_0"].tokens
    changed = (before != after).any(dim=-1)[0].nonzero().tolist()
    assert changed == [[1 if name in TUBELETS else 2, SIDE + 3]]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_above_the_deepest_tap_is_run(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str
) -> None:
    pixels = _pixels(1)
    whole = _states(backbones[name], pixels, TAPS)
    backbone: Any = _open(folders[name])
    above = re.compile(r"(layer|layers|spatial_layers)\.[1-9]|temporal_(layers|embeddings)|layernorm2|^norm|^output")
    for key, parameter in backbone.parts.model.named_parameters():
        if above.search(key):
            parameter.fill_(torch.nan)
    shallow = _states(backbone, pixels, ["layer_1", "layer_0"])
    assert list(shallow) == ["layer_0", "layer_1"]
    for tap in shallow:
        assert torch.equal(shallow[tap].tokens, whole[tap].tokens)
    assert _states(backbone, pixels, ["final"])["final"].tokens.isnan().any()  # the poison works


@pytest.mark.parametrize("name", sorted(FRAME_ENCODERS))
def test_encode_frames_does_all_of_a_frame_encoders_work_on_each_frame_alone(
    folders: dict[str, Path], name: str
) -> None:
    backbone: Any = _open(folders[name])
    pixels, taps = _pixels(), ["layer_2", "final"]
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    alone = backbone.encode_frames(pixels[1, 2][None], taps)
    assert (encoded[FRAMES + 2] - alone[0]).abs().max() <= 1e-5
    for parameter in backbone.parts.model.parameters():
        parameter.fill_(torch.nan)
    for _, states in backbone.states(encoded.unflatten(0, (2, FRAMES)), taps):
        assert states.tokens.isfinite().all()


@pytest.mark.parametrize("name", sorted(PERCEPTION))
def test_perception_encoder_embeds_each_frame_alone_and_a_time_step_is_a_frame(
    folders: dict[str, Path], name: str
) -> None:
    backbone: Any = _open(folders[name])
    pixels = _pixels()
    encoded = backbone.encode_frames(pixels.flatten(0, 1), ["final"])
    alone = backbone.encode_frames(pixels[1, 2][None], ["final"])
    assert (encoded[FRAMES + 2] - alone[0]).abs().max() <= 1e-6
    for parameter in backbone.parts.model.embedder.vision_model.parameters():
        parameter.fill_(torch.nan)  # no longer needed
    other = encoded.unflatten(0, (2, FRAMES)).clone()
    other[:, 0] = other[:, 1]
    before, after = (
        dict(backbone.states(one, ["vision", "layer_3"])) for one in (encoded.unflatten(0, (2, FRAMES)), other)
    )
    changed = (before["vision"].tokens != after["vision"].tokens).any(dim=(0, 2, 3))
    assert changed.tolist() == [True, False, False, False]
    assert (before["layer_3"].tokens != after["layer_3"].tokens).any(dim=(0, 2, 3)).all()  # time is joined


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:someone/model"},
        {"architecture": "vit_base_patch16_224"},
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"model_args": {"img_size": [32, 64]}},
        {"model_args": {"depth": 10**6}},
        {"model_args": {"embed_dim": True}},
    ],
    ids=str,
)
def test_perception_encoder_hands_timm_nothing_but_sizes_of_a_known_model(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = shutil.copytree(folders["pe video"], tmp_path / "model")
    change_config(folder, {"video_config": {"vision_config": changes}})
    with pytest.raises(UnsupportedModelError, match=r"frame encoder must be a vit_pe_core_ model of timm") as caught:
        open_inputs(folder, prompt="", frames=FRAMES, resize="model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(CLIP_ENCODERS))
def test_encode_frames_gives_the_pixels_back_when_frames_mix_from_the_first_layer_on(
    backbones: dict[str, Backbone], name: str
) -> None:
    pixels = _pixels()[0]
    assert backbones[name].encode_frames(pixels, TAPS) is pixels


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_states_are_computed_in_the_dtype_that_is_asked_for(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str, dtype: str, bound: float
) -> None:
    frames = _noise(40, 48)
    states = []
    for backbone in (_open(folders[name], dtype=dtype), backbones[name]):
        pixels = pixels_of(backbone, frames)
        assert pixels.dtype == getattr(torch, dtype if not states else "float32")
        states.append(_states(backbone, pixels[None], ["final"])["final"].tokens)
    assert states[0].dtype == getattr(torch, dtype)
    difference = (states[0].float() - states[1]).norm() / states[1].norm()
    assert 1e-6 < difference < bound


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (FRAMES, height // 4, width // 4, 3), dtype=np.uint8)
    return noise.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize(
    ("name", "processor_class"),
    [
        ("timesformer", VideoMAEImageProcessor),
        ("clip", CLIPImageProcessor),
        ("siglip", SiglipImageProcessor),
        ("xclip", VideoMAEImageProcessor),
        ("dinov2", BitImageProcessor),
        ("videoprism", LlavaOnevisionVideoProcessor),
        ("videomae", VideoMAEVideoProcessor),
        ("videomae pretrained", VideoMAEImageProcessor),
        ("vjepa2", VJEPA2VideoProcessor),
        ("pe video", PeVideoVideoProcessor),
    ],
)
def test_preprocess_equals_the_models_own_processor_bit_for_bit(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str, processor_class: Any
) -> None:
    backbone = backbones[name]
    assert backbone.inputs.frame_resize.resize == ("squash" if name in ("siglip", "videoprism", "pe video") else "crop")
    for size in ((60, 80), (100, 44), (32, 32), (240, 428)):
        frames = _noise(*size)
        ours, plain = pixels_of(backbone, frames), _processed(processor_class, folders[name], frames)
        # Without a mean the class multiplies by 1 / 255, where the extraction divides by 255.
        assert (ours - plain).abs().max() <= 1e-7 if name == "videoprism" else torch.equal(ours, plain), size


def _processed(processor_class: Any, folder: Path, frames: np.ndarray) -> Tensor:
    """Pixels (F, 3, image_px, image_px) by the model's own processor, opened by its class."""
    processor = processor_class.from_pretrained(folder)
    if issubclass(processor_class, BaseVideoProcessor):
        plain = processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")
    else:
        plain = processor(list(torch.from_numpy(frames).permute(0, 3, 1, 2)), return_tensors="pt")
    pixels: Tensor = next(iter(plain.values())).reshape(FRAMES, 3, IMAGE_PX, IMAGE_PX)
    return pixels


@pytest.mark.parametrize("size", [(60, 80), (240, 428)], ids=str)
def test_dinov3_scales_in_eight_bits_within_a_level_of_its_own_processor(
    folders: dict[str, Path], backbones: dict[str, Backbone], size: tuple[int, int]
) -> None:
    frames = _noise(*size)
    ours, plain = (
        pixels_of(backbones["dinov3"], frames),
        _processed(DINOv3ViTImageProcessor, folders["dinov3"], frames),
    )
    levels = (ours - plain).abs() * torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255
    assert 0 < levels.max() <= 1.01


@pytest.mark.parametrize("name", ["timesformer", "siglip", "vjepa2"])
def test_preprocess_keeps_the_sides_of_a_wide_frame_when_resize_is_pad_or_squash(
    folders: dict[str, Path], name: str
) -> None:
    frames = np.zeros((FRAMES, 60, 120, 3), dtype=np.uint8)
    frames[:, :, :10] = 255  # a white bar that the centre crop would cut off
    assert pixels_of(_open(folders[name], resize="crop"), frames).max() < 0
    for resize in ("pad", "squash"):
        assert pixels_of(_open(folders[name], resize=resize), frames).max() > 0.9


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_changes_when_anything_that_changes_values_does(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    def identity(folder: Path, *, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
        settings = {"prompt": "words <video>", "frames": FRAMES, "resize": "crop", **changes}
        return open_inputs(folder, **settings).identity("final", dtype, sha256_of_file)

    base = identity(folders[name])
    assert json.loads(json.dumps(base)) == base
    assert identity(folders[name], prompt="other words") == base
    assert identity(folders[name], resize="pad") != base
    assert identity(folders[name], dtype="bfloat16") != base
    assert (
        name.startswith(("timesformer", "videomae", "videoprism", "xclip")) or identity(folders[name], frames=2) != base
    )
    copy = shutil.copytree(folders[name], tmp_path / "copy")
    assert identity(copy) == base
    other = FAMILIES[name](tmp_path / "other", seed=1)
    assert identity(other) != base
    for file in ("config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        if (copy / file).exists():
            (copy / file).write_text((copy / file).read_text() + "\n")
            assert identity(copy) != base
            base = identity(copy)


@pytest.mark.parametrize("name", FAMILIES)
def test_open_backbone_refuses_a_checkpoint_that_lacks_a_weight(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    key = next(
        key
        for key in sorted(weights)
        if ".1." in key and not key.startswith(("text_model", "decoder", "pooler", "audio"))
    )
    weights[key.replace(".1.", ".one.")] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"must hold every weight of \w+, but .* lacks 1, e\.g\. ") as caught:
        _open(folder)
    assert "\n" not in str(caught.value)


def test_open_backbone_says_what_is_wrong_when_weights_are_torn_or_the_device_is_not_here(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"device must be one of this machine, but it is .cuda:99."):
        open_backbone(
            open_inputs(folders["clip"], prompt="", frames=2, resize="crop"), dtype="float32", device="cuda:99"
        )
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is damaged or cut off"):
        _open(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"holds no weights\. Fetch them: hf download"):
        _open(folder)


@pytest.mark.parametrize(
    ("name", "frames", "right"),
    [
        ("timesformer", 8, 4),
        ("videomae", 2, 4),
        ("videoprism", 8, 4),
        ("xclip", 8, 4),
        ("vjepa2", 5, 4),
        ("vjepa2", 1, 2),
        ("vjepa2", 7, 8),
    ],
)
def test_open_inputs_says_the_right_number_when_frames_do_not_fit(
    folders: dict[str, Path], name: str, frames: int, right: int
) -> None:
    with pytest.raises(SettingsError, match=rf"features\.frames must be .*but it is {frames}\. Set frames = {right}\."):
        open_inputs(folders[name], prompt="", frames=frames, resize="crop")


def test_open_inputs_refuses_a_timesformer_without_time(tmp_path: Path) -> None:
    folder = make_timesformer(tmp_path, attention_type="space_only")
    with pytest.raises(UnsupportedModelError, match=r"attention_type must be .*'space_only'"):
        open_inputs(folder, prompt="", frames=FRAMES, resize="crop")


def test_states_equal_the_plain_forward_when_timesformer_attends_jointly(tmp_path: Path) -> None:
    folder, pixels = make_timesformer(tmp_path, attention_type="joint_space_time"), _pixels()
    ours, plain = _states(_open(folder), pixels, TAPS), _plain("timesformer", folder, pixels)
    for tap in TAPS:
        assert (ours[tap].tokens - plain[tap][0]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("timesformer", {"rescale_factor": 0}, "rescale_factor = 0"),
        ("timesformer", {"image_mean": [0.5, 0.5]}, "image_mean"),
        ("clip", {"image_std": [0.2, 0.0, 0.2]}, "image_std"),
        ("clip", {"do_resize": False}, "do_resize"),
        ("clip", {"do_center_crop": False}, "do_center_crop"),
        ("clip", {"resample": 4}, "resample = 4"),
        ("clip", {"do_pad": True, "pad_size": {"height": 40, "width": 40}}, "pad_size"),
        ("clip", {"crop_size": {"height": 32, "width": 16}}, "crop_size"),
        ("clip", {"size": {"shortest_edge": 16}}, "crop_size"),
        ("clip", {"size": {"shortest_edge": 32, "longest_edge": 64}}, "size"),
        ("siglip", {"size": {"height": 32, "width": 64}}, "size"),
        ("siglip", {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}, "make 16 px"),
        ("siglip2", {"max_num_patches": 0}, "max_num_patches = 0"),
        ("siglip2", {"patch_size": 16}, "patch_size = 16"),
        ("siglip2", {"image_processor_type": "SiglipImageProcessor"}, "size = "),
        ("siglip", {"size": "32 pixels"}, "whole numbers by their side"),
        ("clip", {"image_processor_type": "Qwen2VLImageProcessor"}, "names 'Qwen2VLImageProcessor'"),
        ("vjepa2", {"video_processor_type": "Qwen3VLVideoProcessor"}, "names 'Qwen3VLVideoProcessor'"),
        ("videomae", {"crop_size": {"height": 24, "width": 24}}, "must make frames of 32 px .* make 24 px"),
        ("siglip", {"size": {"height": 40, "width": 40}}, "must make frames of 32 px .* make 40 px"),
        ("vjepa2", {"crop_size": {"height": 16, "width": 16}}, "must make frames of 32 px .* make 16 px"),
        ("dinov2", {"crop_size": {"height": 30, "width": 30}}, "whole patches of 8 px"),
    ],
    ids=str,
)
def test_open_inputs_refuses_a_processor_that_asks_for_something_else(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], found: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    file = folder / ("video_preprocessor_config.json" if name == "vjepa2" else "preprocessor_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UnsupportedModelError, match=found) as caught:
        open_inputs(folder, prompt="", frames=FRAMES, resize="crop")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
