"""Every family of vision encoders against the plain forward of its real class."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from featurecache.backbones import open_inputs
from featurecache.backbones.family import Backbone
from featurecache.errors import UnsupportedModelError
from tests.family_samples import (
    FRAME_ENCODERS,
    PERCEPTION,
    SAVED_AS,
    SIDE,
    TAPS,
    TUBELETS,
    drawn_pixels,
    noise,
    open_family,
    plain_states,
    states_of,
)
from tests.plain_forward import whole_model
from tests.published_layouts import change_config
from tests.tiny_families import FAMILIES, FRAMES, IMAGE_PX, make_timesformer
from tests.tiny_models import pixels_of

CLIP_ENCODERS = set(FAMILIES) - FRAME_ENCODERS - PERCEPTION
JOINT = {"clip", "clip vision", "siglip", "siglip2", "videoprism lvt", "xclip", *PERCEPTION}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_equals_the_plain_forward(
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], name: str
) -> None:
    backbone, pixels = family_backbones[name], drawn_pixels()
    taps = ["vision", *TAPS] if name in PERCEPTION else TAPS
    ours, plain = states_of(backbone, pixels, taps), plain_states(name, family_folders[name], pixels)
    assert list(ours) == taps
    assert list(backbone.inputs.taps) == taps + ["joint"] * (name in JOINT) + ["prompted"] * (name == "xclip")
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
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], name: str
) -> None:
    backbone, pixels = family_backbones[name], drawn_pixels()
    model: Any = whole_model(SAVED_AS[name][0], family_folders[name])
    frames, ids = pixels.flatten(0, 1), torch.tensor([[5, 6, 2]])
    with torch.no_grad():
        if name == "clip vision":  # without a text tower its class leaves the length to its caller
            embeds = torch.nn.functional.normalize(model(frames).image_embeds, dim=-1)
        elif name == "videoprism lvt":
            embeds = model(pixel_values_videos=pixels, input_ids=ids).video_embeds
        elif name == "xclip":
            embeds = model(pixel_values=pixels, input_ids=ids).video_embeds
        elif name in PERCEPTION:  # which compares them as they are
            embeds = getattr(model, "video_model", model)(input_ids=ids, pixel_values_videos=pixels).video_embeds
        elif name == "siglip2":
            patches = torch.stack([convert_image_to_patches(frame, 8) for frame in frames])
            shapes = torch.tensor([[SIDE, SIDE]]).expand(len(patches), -1)
            embeds = model(ids, patches, torch.ones(patches.shape[:2]), shapes).image_embeds
        else:
            embeds = model(pixel_values=frames, input_ids=ids).image_embeds
    if name not in PERCEPTION:
        assert (embeds.norm(dim=-1) - 1).abs().max() <= 1e-4
    states = states_of(backbone, pixels, ["layer_1", "final", "joint"])
    shape = backbone.inputs.taps["joint"]
    assert states["joint"].tokens.shape == (2, shape.steps, shape.tokens_per_step, shape.width)
    assert (states["joint"].tokens.flatten(0, 2) - embeds).abs().max() <= 1e-5
    alone = states_of(backbone, pixels, ["joint"])
    assert list(alone) == ["joint"]
    assert torch.equal(alone["joint"].tokens, states["joint"].tokens)
    (final,) = states_of(backbone, pixels, ["final"]).values()
    assert torch.equal(states["final"].tokens, final.tokens)


def test_a_clip_has_no_joint_tap_when_its_weights_have_no_projection(
    family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folders["clip vision"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert list(open_family(folder).inputs.taps) == TAPS


def test_states_equal_the_plain_forward_when_vjepa2_sees_fewer_frames_than_it_was_trained_on(
    family_folders: dict[str, Path],
) -> None:
    pixels = drawn_pixels(frames=6)
    ours = states_of(open_family(family_folders["vjepa2"], frames=6), pixels, ["final"])["final"].tokens
    assert ours.shape[1] == 3
    assert (ours - plain_states("vjepa2", family_folders["vjepa2"], pixels)["final"][0]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - PERCEPTION))
def test_tokens_lie_in_time_and_row_by_row(family_backbones: dict[str, Backbone], name: str) -> None:
    backbone, pixels = family_backbones[name], drawn_pixels(1)
    other = pixels.clone()
    patch = IMAGE_PX // SIDE
    other[0, 2, :, patch : 2 * patch, 3 * patch :] += 1  # frame 2, row 1, column 3
    before = states_of(backbone, pixels, ["layer_0"])["layer_0"].tokens
    after = states_of(backbone, other, ["layer_0"])["layer_0"].tokens
    changed = (before != after).any(dim=-1)[0].nonzero().tolist()
    assert changed == [[1 if name in TUBELETS else 2, SIDE + 3]]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_above_the_deepest_tap_is_run(
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], name: str
) -> None:
    pixels = drawn_pixels(1)
    whole = states_of(family_backbones[name], pixels, TAPS)
    backbone: Any = open_family(family_folders[name])
    above = re.compile(r"(layer|layers|spatial_layers)\.[1-9]|temporal_(layers|embeddings)|layernorm2|^norm|^output")
    for key, parameter in backbone.parts.model.named_parameters():
        if above.search(key):
            parameter.fill_(torch.nan)
    shallow = states_of(backbone, pixels, ["layer_1", "layer_0"])
    assert list(shallow) == ["layer_0", "layer_1"]
    for tap in shallow:
        assert torch.equal(shallow[tap].tokens, whole[tap].tokens)
    assert states_of(backbone, pixels, ["final"])["final"].tokens.isnan().any()  # the poison works


@pytest.mark.parametrize("name", sorted(FRAME_ENCODERS))
def test_encode_frames_does_all_of_a_frame_encoders_work_on_each_frame_alone(
    family_folders: dict[str, Path], name: str
) -> None:
    backbone: Any = open_family(family_folders[name])
    pixels, taps = drawn_pixels(), ["layer_2", "final"]
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    alone = backbone.encode_frames(pixels[1, 2][None], taps)
    assert (encoded[FRAMES + 2] - alone[0]).abs().max() <= 1e-5
    for parameter in backbone.parts.model.parameters():
        parameter.fill_(torch.nan)
    for _, states in backbone.states(encoded.unflatten(0, (2, FRAMES)), taps):
        assert states.tokens.isfinite().all()


@pytest.mark.parametrize("name", sorted(PERCEPTION))
def test_perception_encoder_embeds_each_frame_alone_and_a_time_step_is_a_frame(
    family_folders: dict[str, Path], name: str
) -> None:
    backbone: Any = open_family(family_folders[name])
    pixels = drawn_pixels()
    encoded = backbone.encode_frames(pixels.flatten(0, 1), ["final"])
    alone = backbone.encode_frames(pixels[1, 2][None], ["final"])
    assert (encoded[FRAMES + 2] - alone[0]).abs().max() <= 1e-6
    for parameter in backbone.parts.model.video_encoder.embedder.vision_model.parameters():
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
    family_folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = shutil.copytree(family_folders["pe video"], tmp_path / "model")
    change_config(folder, {"video_config": {"vision_config": changes}})
    with pytest.raises(UnsupportedModelError, match=r"frame encoder must be a vit_pe_core_ model of timm") as caught:
        open_inputs(folder, prompt="", frames=FRAMES, resize="model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(CLIP_ENCODERS))
def test_encode_frames_gives_the_pixels_back_when_frames_mix_from_the_first_layer_on(
    family_backbones: dict[str, Backbone], name: str
) -> None:
    pixels = drawn_pixels()[0]
    assert family_backbones[name].encode_frames(pixels, TAPS) is pixels


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_states_are_computed_in_the_dtype_that_is_asked_for(
    family_folders: dict[str, Path], family_backbones: dict[str, Backbone], name: str, dtype: str, bound: float
) -> None:
    frames = noise(40, 48)
    states = []
    for backbone in (open_family(family_folders[name], dtype=dtype), family_backbones[name]):
        pixels = pixels_of(backbone, frames)
        assert pixels.dtype == getattr(torch, dtype if not states else "float32")
        states.append(states_of(backbone, pixels[None], ["final"])["final"].tokens)
    assert states[0].dtype == getattr(torch, dtype)
    difference = (states[0].float() - states[1]).norm() / states[1].norm()
    assert 1e-6 < difference < bound


def test_states_equal_the_plain_forward_when_timesformer_attends_jointly(tmp_path: Path) -> None:
    folder, pixels = make_timesformer(tmp_path, attention_type="joint_space_time"), drawn_pixels()
    ours, plain = states_of(open_family(folder), pixels, TAPS), plain_states("timesformer", folder, pixels)
    for tap in TAPS:
        assert (ours[tap].tokens - plain[tap][0]).abs().max() <= 1e-5
