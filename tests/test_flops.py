from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.cost import clip_parts, loaded_weights
from featurecache.backbones.family import Inputs
from featurecache.backbones.flops import Part, Product, language_model, total_flop, transformer
from tests.tiny_families import FAMILIES, FRAMES, make_llava_onevision, make_timesformer
from tests.tiny_models import make_llava_next_video

PROMPT = "user: describe the hand <video>"
MODELS: dict[str, Callable[[Path], Path]] = {
    **FAMILIES,
    "timesformer joint": lambda folder: make_timesformer(folder, attention_type="joint_space_time"),
    "llava_next_video": make_llava_next_video,
    "llava_next_video grouped heads": lambda folder: make_llava_next_video(folder, key_heads=2, hidden=64, layers=3),
    "llava_next_video two layers of the tower": lambda folder: make_llava_next_video(
        folder, vision_feature_layer=[-3, 1]
    ),
    "llava_onevision": make_llava_onevision,
}


def counted(inputs: Inputs, taps: list[str]) -> int:
    """Operations of the real forward of one clip, counted by torch; it takes causal attention for the whole square."""
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    pixels = torch.randn(inputs.frames, 3, inputs.image_px, inputs.image_px)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it does not count the CPU's own
        for _ in backbone.states(backbone.encode_frames(pixels, taps)[None], taps):
            pass
    return int(counter.get_total_flops())


def whole_square(parts: tuple[Part, ...]) -> int:
    """Operations with causal attention counted as torch counts it."""
    causal = sum(one.flop for part in parts for one in part.attentions if one.causal)
    return sum(part.flop for part in parts) + causal


@pytest.mark.parametrize("family", MODELS)
def test_clip_parts_agree_with_the_operations_torch_counts_in_the_real_forward(family: str, tmp_path: Path) -> None:
    inputs = open_inputs(MODELS[family](tmp_path), prompt=PROMPT, frames=FRAMES, resize="crop")
    for taps in (["final"], ["layer_1"], list(inputs.taps)):
        assert whole_square(clip_parts(inputs, taps)) == pytest.approx(counted(inputs, taps), rel=0.02), taps


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision"])
def test_clip_parts_leave_out_the_language_model_when_only_its_input_is_kept(family: str, tmp_path: Path) -> None:
    inputs = open_inputs(MODELS[family](tmp_path), prompt=PROMPT, frames=FRAMES, resize="crop")
    for taps, names in ((["vision"], ["vision tower"]), (["layer_0"], ["vision tower", "projector"])):
        parts = clip_parts(inputs, taps)
        assert [part.name.split(",")[0] for part in parts] == names
        assert whole_square(parts) == pytest.approx(counted(inputs, taps), rel=0.02)


@pytest.mark.parametrize("family", MODELS)
def test_loaded_weights_are_those_of_the_real_model(family: str, tmp_path: Path) -> None:
    folder = MODELS[family](tmp_path)
    inputs = open_inputs(folder, prompt=PROMPT, frames=FRAMES, resize="crop")
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    model = getattr(backbone, "model", None) or backbone.parts.model  # type: ignore[attr-defined]
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    assert loaded_weights(inputs) == pytest.approx(matrices, rel=0.25)  # positions weigh much in tiny models


def seven_billion(*, tokens: int, tower_layers: int, causal: bool = True) -> dict[str, float]:
    """TFLOP of LLaVA-NeXT-Video-7B's parts for a clip of 16 frames at 336 px."""
    tower = transformer(
        "tower",
        layers=tower_layers,
        sequences=16,
        tokens=577,
        width=1024,
        mlp_width=4096,
        heads=16,
        embedding=Product(16 * 576, 3 * 14 * 14, 1024),
        per_frame=True,
    )
    products, attention = language_model(
        layers=32, tokens=tokens, width=4096, mlp_width=11008, heads=32, key_heads=32, head_width=128, causal=causal
    )
    projector = Part("projector", (Product(16 * 144, 1024, 4096), Product(16 * 144, 4096, 4096)))
    logits = Part("logits", (Product(tokens, 4096, 32064),))
    parts = {
        "tower": tower, "projector": projector, "language": products, "attention": attention, "logits": logits
    }  # fmt: skip
    return {name: part.flop / 1e12 for name, part in parts.items()}


def test_seven_billion_parameters_cost_what_was_worked_out_by_hand() -> None:
    ours = seven_billion(tokens=2309, tower_layers=23)
    assert ours.pop("logits") > 0.6
    table = {"tower": 5.86, "projector": 0.10, "language": 29.91, "attention": 1.40}
    assert ours == pytest.approx(table, abs=0.005)
    assert sum(ours.values()) == pytest.approx(37.26, abs=0.005)


@pytest.mark.parametrize(("causal", "total"), [(True, 38.98), (False, 40.46)])
def test_seven_billion_parameters_cost_more_with_logits_and_text_behind(causal: bool, total: float) -> None:
    naive = seven_billion(tokens=2369, tower_layers=24, causal=causal)
    assert naive["tower"] == pytest.approx(6.11, abs=0.005)
    assert naive["logits"] == pytest.approx(0.62, abs=0.005)
    assert sum(naive.values()) == pytest.approx(total, abs=0.01)


def test_total_flop_counts_shared_frames_once_only_where_frames_stand_alone() -> None:
    parts = [Part("a", (Product(1, 2, 3),), per_frame=True), Part("b", (Product(1, 2, 5),))]
    assert total_flop(parts) == 12 + 20
    assert total_flop(parts, shared_frames=0.5) == 6 + 20
