from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.cost import Attention, Cost, clip_cost
from featurecache.backbones.family import Inputs
from tests.tiny_families import FAMILIES, FRAMES, make_timesformer
from tests.tiny_models import make_llava_next_video
from tests.tiny_video_language import VIDEO_LANGUAGE

PROMPT = "user: describe the hand <video>"
MODELS: dict[str, Callable[[Path], Path]] = {
    **FAMILIES,
    "timesformer joint": lambda folder: make_timesformer(folder, attention_type="joint_space_time"),
    "llava_next_video grouped heads": lambda folder: make_llava_next_video(folder, key_heads=2, hidden=64, layers=3),
    "llava_next_video two layers of the tower": lambda folder: make_llava_next_video(
        folder, vision_feature_layer=[-3, 1]
    ),
    **VIDEO_LANGUAGE,
}


def counted(inputs: Inputs, taps: list[str]) -> int:
    """Operations of the real forward of one clip, counted by torch; it takes causal attention for the whole square."""
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    pixels = torch.randn(inputs.frames, 3, inputs.image_px, inputs.image_px)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it does not count the CPU's own
        for _ in backbone.states(backbone.encode_frames(pixels, taps)[None], taps):
            pass
    return int(counter.get_total_flops())


def whole_square(cost: Cost) -> int:
    """Operations with causal attention counted as torch counts it."""
    return cost.flop + sum(one.flop for part in cost.parts for one in part.attentions if one.causal)


@pytest.mark.parametrize("family", MODELS)
def test_cost_is_that_of_the_real_forward_and_of_the_real_weights(family: str, tmp_path: Path) -> None:
    inputs = open_inputs(MODELS[family](tmp_path), prompt=PROMPT, frames=FRAMES, resize="crop")
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    model = getattr(backbone, "model", None) or backbone.parts.model  # type: ignore[attr-defined]
    for taps in (["final"], ["layer_1"], list(inputs.taps)):
        cost = clip_cost(inputs, taps)
        assert whole_square(cost) == counted(inputs, taps), taps
        assert cost.weights == sum(weight.numel() for weight in model.parameters())


def test_cost_of_half_the_square_is_taken_in_language_models_alone(tmp_path: Path) -> None:
    for family, names in (
        ("llava_next_video", ["vision tower", "projector and language model", "its attention, causal"]),
        ("dinov2", ["vision tower"]),
        ("videomae", ["encoder"]),
    ):
        inputs = open_inputs(MODELS[family](tmp_path / family), prompt=PROMPT, frames=FRAMES, resize="crop")
        parts = clip_cost(inputs, ["final"]).parts
        assert [part.name for part in parts] == names
        assert [part.per_frame for part in parts] == [name == "vision tower" for name in names]
        assert [one.causal for part in parts for one in part.attentions].count(True) == len(names) // 2


@pytest.mark.parametrize("family", VIDEO_LANGUAGE)
def test_cost_leaves_out_the_language_model_when_only_its_input_is_kept(family: str, tmp_path: Path) -> None:
    inputs = open_inputs(MODELS[family](tmp_path), prompt=PROMPT, frames=FRAMES, resize="crop")
    for tap in ("vision", "layer_0"):
        cost = clip_cost(inputs, [tap])
        assert not any(one.causal for part in cost.parts for one in part.attentions)
        assert cost.flop == counted(inputs, [tap])


def test_attention_of_a_token_that_sees_those_before_it_costs_half() -> None:
    assert 2 * Attention(1, 8, 2, 4, causal=True).flop == Attention(1, 8, 2, 4).flop == 4 * 8**2 * 2 * 4


def test_cost_is_what_can_be_worked_out_by_hand(tmp_path: Path) -> None:
    folder = make_llava_next_video(tmp_path, hidden=64, layers=3)
    inputs = open_inputs(folder, prompt="<video>", frames=16, resize="crop")
    rows, tokens = 16 * 17, 1 + 16 * 4  # a class token a frame; one word before the video
    by_hand = {
        "vision tower": 2 * 16 * 16 * 588 * 24 + 2 * (2 * rows * (4 * 24**2 + 2 * 24 * 48) + 4 * 16 * 17**2 * 24),
        "projector and language model": 2 * 64 * (24 + 64) * 64 + 2 * tokens * 3 * (4 * 64**2 + 3 * 64 * 128),
        "its attention, causal": 2 * tokens**2 * 64 * 3,
    }
    assert {part.name: part.flop for part in clip_cost(inputs, ["final"]).parts} == by_hand
