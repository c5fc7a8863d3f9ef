"""A model folder of every family of vision encoders: its preprocessing, its identity, and what is refused."""

import json
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
    DINOv3ViTImageProcessor,
    LlavaOnevisionVideoProcessor,
    PeVideoVideoProcessor,
    SiglipImageProcessor,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    VJEPA2VideoProcessor,
)
from transformers.video_processing_utils import BaseVideoProcessor

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.family import Backbone
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from featurecache.files import sha256_of_file
from tests.family_samples import noise, open_family
from tests.tiny_families import FAMILIES, FRAMES, IMAGE_PX, make_timesformer
from tests.tiny_models import pixels_of


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
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], name: str, processor_class: Any
) -> None:
    backbone = family_backbones[name]
    assert backbone.inputs.frame_resize.resize == ("squash" if name in ("siglip", "videoprism", "pe video") else "crop")
    for size in ((60, 80), (100, 44), (32, 32), (240, 428)):
        frames = noise(*size)
        ours, plain = pixels_of(backbone, frames), _processed(processor_class, family_folders[name], frames)
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
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], size: tuple[int, int]
) -> None:
    frames = noise(*size)
    ours, plain = (
        pixels_of(family_backbones["dinov3"], frames),
        _processed(DINOv3ViTImageProcessor, family_folders["dinov3"], frames),
    )
    levels = (ours - plain).abs() * torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255
    assert 0 < levels.max() <= 1.01


@pytest.mark.parametrize("name", ["timesformer", "siglip", "vjepa2"])
def test_preprocess_keeps_the_sides_of_a_wide_frame_when_resize_is_pad_or_squash(
    family_folders: dict[str, Path], name: str
) -> None:
    frames = np.zeros((FRAMES, 60, 120, 3), dtype=np.uint8)
    frames[:, :, :10] = 255  # a white bar that the centre crop would cut off
    assert pixels_of(open_family(family_folders[name], resize="crop"), frames).max() < 0
    for resize in ("pad", "squash"):
        assert pixels_of(open_family(family_folders[name], resize=resize), frames).max() > 0.9


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_changes_when_anything_that_changes_values_does(
    family_folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    def identity(folder: Path, *, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
        settings = {"prompt": "words <video>", "frames": FRAMES, "resize": "crop", **changes}
        return open_inputs(folder, **settings).identity("final", dtype, sha256_of_file)

    base = identity(family_folders[name])
    assert json.loads(json.dumps(base)) == base
    assert identity(family_folders[name], prompt="other words") == base
    assert identity(family_folders[name], resize="pad") != base
    assert identity(family_folders[name], dtype="bfloat16") != base
    assert (
        name.startswith(("timesformer", "videomae", "videoprism", "xclip"))
        or identity(family_folders[name], frames=2) != base
    )
    copy = shutil.copytree(family_folders[name], tmp_path / "copy")
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
    family_folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(family_folders[name], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    key = next(
        key
        for key in sorted(weights)
        if ".1." in key and not key.startswith(("text_model", "decoder", "pooler", "audio", "prompts_generator"))
    )
    weights[key.replace(".1.", ".one.")] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"must hold every weight of \w+, but .* lacks 1, e\.g\. ") as caught:
        open_family(folder)
    assert "\n" not in str(caught.value)


def test_open_backbone_says_what_is_wrong_when_the_device_is_not_here(family_folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"device must be one of this machine, but it is .cuda:99."):
        open_backbone(
            open_inputs(family_folders["clip"], prompt="", frames=2, resize="crop"), dtype="float32", device="cuda:99"
        )


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
    family_folders: dict[str, Path], name: str, frames: int, right: int
) -> None:
    with pytest.raises(SettingsError, match=rf"features\.frames must be .*but it is {frames}\. Set frames = {right}\."):
        open_inputs(family_folders[name], prompt="", frames=frames, resize="crop")


def test_open_inputs_refuses_a_timesformer_without_time(tmp_path: Path) -> None:
    folder = make_timesformer(tmp_path, attention_type="space_only")
    with pytest.raises(UnsupportedModelError, match=r"attention_type must be .*'space_only'"):
        open_inputs(folder, prompt="", frames=FRAMES, resize="crop")


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
    family_folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], found: str
) -> None:
    folder = shutil.copytree(family_folders[name], tmp_path / "model")
    file = folder / ("video_preprocessor_config.json" if name == "vjepa2" else "preprocessor_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UnsupportedModelError, match=found) as caught:
        open_inputs(folder, prompt="", frames=FRAMES, resize="crop")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
