"""Which fields of a processor's settings change a frame's pixels: each is honoured, passed over, or refused.

The reference is the processor class itself on decoded frames. Whatever transformers adds as a field must be added here.
"""

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionVideoProcessor,
    SiglipImageProcessor,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    ViTImageProcessor,
    VJEPA2VideoProcessor,
)
from transformers.video_processing_utils import BaseVideoProcessor

from featurecache.backbones.preprocessing import frame_resize, frame_rule
from featurecache.errors import ModelNotFoundError, UnsupportedModelError
from tests.make_videos import write_video

CLASSES = [
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    VideoMAEImageProcessor,
    ViTImageProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionVideoProcessor,
    VideoMAEVideoProcessor,
    VJEPA2VideoProcessor,
]
SQUARE = {"height": 56, "width": 56}
CROPS = {"size": {"shortest_edge": 64}, "crop_size": SQUARE, "do_center_crop": True}
SQUASHES = {"size": SQUARE}
SHARED = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
    "resample": 3,
}
VARIANTS: dict[str, list[Any]] = {
    "do_convert_rgb": [True, False, None],
    "do_resize": [False, None],
    "size": [{"shortest_edge": 90}, 56, {"height": 70, "width": 70}, {"height": 56, "width": 64}, {"longest_edge": 56}],
    "default_to_square": [True, False, None],
    "crop_size": [48, {"height": 48, "width": 48}, {"height": 48, "width": 56}, {"height": 90, "width": 90}, None],
    "resample": [0, 1, 2, 3, None],
    "do_rescale": [False, None],
    "rescale_factor": [1 / 127.5, 1.0, None],
    "do_normalize": [False, None],
    "image_mean": [0.5, [0.5], [0.1, 0.2, 0.3], [0.1, 0.2], [float("nan")] * 3, None],
    "image_std": [0.5, [0.5], [0.1, 0.2, 0.3], None],
    "do_pad": [True, False, None],
    "pad_size": [SQUARE, {"height": 64, "width": 64}, None],
    "do_center_crop": [True, False, None],
    "data_format": ["channels_first", None],
    "disable_grouping": [True, False, None],
    "do_sample_frames": [True, False, None],
    "fps": [2, None],
    "num_frames": [2, None],
    "return_metadata": [False, None],
    "image_seq_length": [5, None],
}
"""Values of each field that a file may hold."""
OF_A_CALL = {"input_data_format", "device", "return_tensors", "video_metadata"}
"""Fields that tell of the frames handed in, or where to; a file of settings has nothing to say there."""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Decoded H.264 frames, (F, H, W, 3) uint8."""
    path = write_video(tmp_path_factory.mktemp("video") / "video.mp4", count=3)
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(one.to_ndarray(format="rgb24")) for one in container.decode(video=0)])


def _base(processor_class: Any) -> dict[str, Any]:
    own = processor_class()
    return {**SHARED, **(CROPS if own.do_center_crop else SQUASHES)}


def _plain(processor_class: Any, settings: dict[str, Any], frames: Tensor) -> Tensor | None:
    """Pixels by the class itself (F, 3, H, W); None where it cannot make any."""
    channels_first = frames.permute(0, 3, 1, 2)
    try:
        processor = processor_class(**settings)
        if issubclass(processor_class, BaseVideoProcessor):
            found = processor([channels_first], do_sample_frames=False, return_tensors="pt")
        else:
            found = processor(list(channels_first), return_tensors="pt")
    except Exception:
        return None
    pixels: Tensor = next(iter(found.values()))
    return pixels.reshape(len(frames), *pixels.shape[-3:]).float()


def _ours(processor_class: Any, settings: dict[str, Any], frames: Tensor, folder: Path) -> Tensor | None:
    """Pixels of the same settings in a model's folder; None where they are refused."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    try:
        return frame_resize(frame_rule(folder, processor_class), "model")(frames)
    except UnsupportedModelError:
        return None


@pytest.mark.parametrize("processor_class", CLASSES)
def test_every_field_of_a_processor_is_known_here(processor_class: Any) -> None:
    assert set(processor_class.valid_kwargs.__annotations__) - OF_A_CALL <= set(VARIANTS)


@pytest.mark.parametrize("field", VARIANTS)
@pytest.mark.parametrize("processor_class", CLASSES)
def test_a_field_is_honoured_or_refused_when_it_changes_pixels_and_passed_over_when_not(
    processor_class: Any, field: str, frames: Tensor, tmp_path: Path
) -> None:
    base = _base(processor_class)
    unchanged = _plain(processor_class, base, frames)
    assert unchanged is not None
    beside: list[dict[str, Any]] = [{}]
    if field in ("do_pad", "pad_size"):
        beside = [{}, {"do_pad": True}, {"pad_size": {"height": 80, "width": 80}}]
    if field == "do_center_crop":
        beside = [{}, {"size": {"height": 64, "width": 64}, "crop_size": SQUARE}]
    if field == "default_to_square":
        beside = [{}, {"size": 64}]
    for more in beside:
        for value in VARIANTS[field]:
            settings = {**base, **more, field: value}
            plain, ours = _plain(processor_class, settings, frames), _ours(processor_class, settings, frames, tmp_path)
            if ours is None:
                assert plain is None or plain.shape != unchanged.shape or not torch.equal(plain, unchanged), settings
            else:
                assert plain is not None, settings
                assert ours.shape == plain.shape, settings
                assert (ours - plain).abs().max() <= 1e-6 * plain.abs().max(), settings
                if settings["do_rescale"] and settings["do_normalize"] and settings["rescale_factor"] == 1 / 255:
                    assert torch.equal(ours, plain), settings


@pytest.mark.parametrize(
    ("named", "way"),
    [
        (None, "crop"),
        ("BitImageProcessor", "crop"),
        ("CLIPFeatureExtractor", "crop"),
        ("CLIPImageProcessorFast", "crop"),
        ("ViTFeatureExtractor", "squash"),
    ],
)
def test_what_a_file_leaves_out_is_the_default_of_the_class_it_names(
    named: str | None, way: str, tmp_path: Path
) -> None:
    settings = {"do_resize": True, "size": 224, "do_normalize": True, "feature_extractor_type": named}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    rule = frame_rule(tmp_path, BitImageProcessor)
    assert rule.geometry.way == way
    assert rule.interpolation == ("bilinear" if named == "ViTFeatureExtractor" else "bicubic")
    assert rule.image_px == 224


@pytest.mark.parametrize(
    ("processor_class", "places", "found"),
    [
        (
            LlavaNextVideoVideoProcessor,
            "nested video, video file, video folder, image file, nested image",
            "nested video",
        ),
        (LlavaNextVideoVideoProcessor, "video file, video folder, image file, nested image", "video file"),
        (LlavaNextVideoVideoProcessor, "video folder, image file, nested image", "video folder"),
        (LlavaNextVideoVideoProcessor, "image file", "image file"),
        (LlavaNextVideoVideoProcessor, "nested image", "nested image"),
        (BitImageProcessor, "nested video, video file, video folder, image file, nested image", "nested image"),
        (BitImageProcessor, "nested video, video file, image file", "image file"),
        (BitImageProcessor, "video file", "video file"),
    ],
)
def test_settings_are_taken_from_the_place_that_is_meant_for_the_model(
    processor_class: Any, places: str, found: str, tmp_path: Path
) -> None:
    px = {name: 32 + 8 * k for k, name in enumerate(places.split(", "))}

    def settings(name: str) -> dict[str, Any]:
        return {**SHARED, **CROPS, "crop_size": px[name], "size": {"shortest_edge": 80}}

    nested: dict[str, Any] = {"processor_class": "SomeProcessor"}
    for name in px:
        if name.startswith("nested"):
            nested[f"{name.removeprefix('nested ')}_processor"] = settings(name)
        else:
            file = {"video file": "video_preprocessor_config.json", "image file": "preprocessor_config.json"}
            path = tmp_path / file.get(name, "video_processor/preprocessor_config.json")
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(settings(name)))
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert frame_rule(tmp_path, processor_class).image_px == px[found]


def test_a_folder_without_a_processors_settings_is_told_which_files_to_take(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SomeProcessor"}')
    with pytest.raises(
        ModelNotFoundError, match=r"has none of .*preprocessor_config\.json.* weights need not be copied"
    ):
        frame_rule(tmp_path, BitImageProcessor)
