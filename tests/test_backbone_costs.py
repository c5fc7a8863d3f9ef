"""What models of published sizes cost: docs/backbones.md's table, counted on the meta device, without weights.

FEATURECACHE_WRITE_TABLE=1 python -m pytest -m "" tests/test_backbone_costs.py    # writes the table anew
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from featurecache.backbones import open_inputs
from featurecache.backbones.cost import clip_cost
from tests import published_layouts, tiny_families, tiny_models, tiny_video_language
from tests.published_layouts import DOCS, Files, lay_out

BEGIN, END = "<!-- made by tests/test_backbone_costs.py -->\n", "<!-- end of costs -->"
COLUMNS = (
    *("model", "frames", "parameters, M", "TFLOP a clip", "clips/s, 2 CPU cores", "clips/s, H100"),
    *("weights in bf16, GB", "licence"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"
CPU_FLOPS, H100_FLOPS = 0.74e12, 0.4 * 989e12
"""bf16 of the 2 cores that benchmarks/RESULTS.md tells of; 40% of what an H100 can do at most, dense."""


@dataclass(frozen=True)
class Size:
    """A published size of a model.

    Attributes:
        make: Writes a small model of the family into a folder.
        files: Its processor's files, at full size.
        config: Sizes in config.json.
        frames: Of a clip.
    """

    make: Callable[[Path], Path]
    files: Files
    config: dict[str, Any] = field(default_factory=dict)
    frames: int = 16


def _layers(width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, **more}


def _text(width: int, inner: int, layers: int, heads: int, key_heads: int, head_dim: int, words: int) -> dict[str, Any]:
    more = {"num_key_value_heads": key_heads, "head_dim": head_dim, "vocab_size": words}
    return _layers(width, inner, layers, heads, **more)


def _vit(width: int, inner: int, layers: int, heads: int, px: int, patch: int) -> dict[str, Any]:
    return _layers(width, inner, layers, heads, image_size=px, patch_size=patch)


def _qwen3_vl(text: dict[str, Any], vision: dict[str, Any]) -> "Size":
    rope = {**published_layouts.QWEN3_VL_CONFIG["text_config"]["rope_scaling"], "mrope_section": [24, 20, 20]}
    config = {
        "text_config": {**text, "rope_scaling": rope},
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
    }
    return Size(tiny_video_language.make_qwen3_vl, published_layouts.qwen3_vl(16, 4096, 25165824), config)


def _qwen2_5_vl(text: dict[str, Any]) -> "Size":
    rope = {"type": "default", "mrope_section": [16, 24, 24]}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": text["hidden_size"]}
    files = published_layouts.qwen2_5_vl(14, 3136, 12845056)
    config = {**text, "rope_scaling": rope, "layer_types": None, "vision_config": {**vision, **windows}}
    return Size(tiny_video_language.make_qwen2_5_vl, files, config)


_QWEN_VIT = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN_SO400M = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_VALUES = 5_000_000_000
_BASE = (768, 3072, 12, 12)
SIZES = {
    "LLaVA-NeXT-Video-7B": Size(
        tiny_models.make_llava_next_video,
        published_layouts.llava_next_video(336),
        {
            "vision_config": _vit(1024, 4096, 24, 16, 336, 14),
            "text_config": _text(4096, 11008, 32, 32, 32, 128, 32064),
        },
    ),
    "LLaVA-OneVision-0.5B": Size(
        tiny_video_language.make_llava_onevision,
        published_layouts.llava_onevision(384),
        {
            "vision_config": _vit(1152, 4304, 26, 16, 384, 14),
            "text_config": {**_text(896, 4864, 24, 14, 2, 64, 152000), "layer_types": None},
            "vision_feature_layer": -1,
        },
    ),
    "SmolVLM2-256M": Size(
        tiny_video_language.make_smolvlm,
        published_layouts.smolvlm(512),
        {
            "vision_config": _vit(*_BASE, 512, 16),
            "text_config": _text(576, 1536, 30, 9, 3, 64, 49280),
            "scale_factor": 4,
        },
    ),
    "SmolVLM2-500M": Size(
        tiny_video_language.make_smolvlm,
        published_layouts.smolvlm(512),
        {
            "vision_config": _vit(*_BASE, 512, 16),
            "text_config": _text(960, 2560, 32, 15, 5, 64, 49280),
            "scale_factor": 4,
        },
    ),
    "SmolVLM2-2.2B": Size(
        tiny_video_language.make_smolvlm,
        published_layouts.smolvlm(384),
        {
            "vision_config": _vit(1152, 4304, 27, 16, 384, 14),
            "text_config": _text(2048, 8192, 24, 32, 32, 64, 49280),
            "scale_factor": 3,
        },
    ),
    "Qwen2.5-VL-3B": _qwen2_5_vl(_text(2048, 11008, 36, 16, 2, 128, 151936)),
    "Qwen2.5-VL-7B": _qwen2_5_vl(_text(3584, 18944, 28, 28, 4, 128, 152064)),
    "Qwen3-VL-2B": _qwen3_vl(_text(2048, 6144, 28, 16, 8, 128, 151936), _QWEN_VIT),
    "Qwen3-VL-4B": _qwen3_vl(_text(2560, 9728, 36, 32, 8, 128, 151936), _QWEN_VIT),
    "Qwen3-VL-8B": _qwen3_vl(_text(4096, 12288, 36, 32, 8, 128, 151936), {**_QWEN_VIT, **_QWEN_SO400M}),
    "InternVL3-1B": Size(
        tiny_video_language.make_internvl,
        published_layouts.internvl(448),
        {
            "vision_config": {**_layers(1024, 4096, 24, 16), "image_size": [448, 448], "patch_size": [14, 14]},
            "text_config": {**_text(896, 4864, 24, 14, 2, 64, 151674), "model_type": "qwen2", "layer_types": None},
        },
    ),
    "CLIP ViT-L/14-336": Size(
        tiny_families.make_clip_vision, published_layouts.clip(336), _vit(1024, 4096, 24, 16, 336, 14)
    ),
    "SigLIP 2 so400m-patch16-naflex": Size(
        tiny_families.make_siglip2,
        published_layouts.siglip2(256, 16),
        {"vision_config": {**_layers(1152, 4304, 27, 16), "patch_size": 16, "num_patches": 256}},
    ),
    "MedSigLIP-448": Size(
        tiny_families.make_siglip_vision,
        published_layouts.siglip(448),
        _vit(1152, 4304, 27, 16, 448, 14),
    ),
    "X-CLIP base-patch32": Size(
        tiny_families.make_xclip,
        published_layouts.xclip(224),
        {"vision_config": {**_vit(*_BASE, 224, 32), "num_frames": 8}},
        frames=8,
    ),
    "PubMedCLIP ViT-B/32": Size(tiny_families.make_clip_vision, published_layouts.clip(224), _vit(*_BASE, 224, 32)),
    "SigLIP so400m-patch14-384": Size(
        tiny_families.make_siglip_vision,
        published_layouts.siglip(384),
        _vit(1152, 4304, 27, 16, 384, 14),
    ),
    "DINOv2-base": Size(
        tiny_families.make_dinov2,
        published_layouts.dinov2(224, short=256),
        _vit(*_BASE, 518, 14),
    ),
    "DINOv3-base": Size(
        tiny_families.make_dinov3,
        published_layouts.dinov3(224),
        {**_vit(*_BASE, 224, 16), "num_register_tokens": 4},
    ),
    "VideoPrism-base": Size(
        tiny_families.make_videoprism,
        published_layouts.videoprism(288),
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_spatial_layers": 12,
            "num_temporal_layers": 4,
            "num_frames": 16,
            "image_size": 288,
            "tubelet_size": [1, 18, 18],
        },
    ),
    "PE-AV-large, video": Size(
        tiny_families.make_pe_video,
        published_layouts.pe_video(336),
        {
            "video_config": {
                **_layers(1792, 4800, 6, 14),
                **{"num_key_value_heads": 14, "head_dim": 128},
                "vision_config": {"model_args": None, "num_labels": 1024, "label_names": None, "num_classes": None},
            }
        },
    ),
    "TimeSformer-base": Size(
        tiny_families.make_timesformer,
        published_layouts.timesformer(224),
        {**_vit(*_BASE, 224, 16), "num_frames": 8},
        8,
    ),
    "VideoMAE-base": Size(
        tiny_families.make_videomae,
        published_layouts.videomae(224),
        {**_vit(*_BASE, 224, 16), "num_frames": 16},
    ),
    "V-JEPA 2-large": Size(
        tiny_families.make_vjepa2_pretrained,
        published_layouts.vjepa2(256),
        {
            "hidden_size": 1024,
            "mlp_ratio": 4.0,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 16,
            "crop_size": 256,
        },
    ),
}
LICENCES = {
    "LLaVA-NeXT-Video-7B": ("llama2", "llava-hf/LLaVA-NeXT-Video-7B-hf"),
    "LLaVA-OneVision-0.5B": ("apache-2.0", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "SmolVLM2-256M": ("apache-2.0", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
    "SmolVLM2-500M": ("apache-2.0", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    "SmolVLM2-2.2B": ("apache-2.0", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    "Qwen2.5-VL-3B": ("Qwen Research, by a question there", "Qwen/Qwen2.5-VL-3B-Instruct/discussions/12"),
    "Qwen2.5-VL-7B": ("apache-2.0", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "Qwen3-VL-2B": ("apache-2.0, by a quantised copy", "Hyper-AI/Qwen3-VL-2B-Instruct-fp8"),
    "Qwen3-VL-4B": ("apache-2.0, by a quantised copy", "lmstudio-community/Qwen3-VL-4B-Instruct-MLX-6bit"),
    "Qwen3-VL-8B": ("apache-2.0", "Qwen/Qwen3-VL-8B-Instruct"),
    "InternVL3-1B": ("apache-2.0, without -hf", "OpenGVLab/InternVL3-1B"),
    "CLIP ViT-L/14-336": ("MIT, the code's", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "SigLIP 2 so400m-patch16-naflex": ("apache-2.0, by the base size", "google/siglip2-base-patch16-naflex"),
    "MedSigLIP-448": (
        "Health AI Developer Foundations",
        "https://developers.google.com/health-ai-developer-foundations/medsiglip/model-card",
    ),
    "X-CLIP base-patch32": ("mit", "microsoft/xclip-base-patch32"),
    "PubMedCLIP ViT-B/32": ("mit", "flaviagiammarino/pubmed-clip-vit-base-patch32"),
    "SigLIP so400m-patch14-384": ("apache-2.0", "google/siglip-so400m-patch14-384"),
    "DINOv2-base": ("apache-2.0", "facebook/dinov2-base"),
    "DINOv3-base": ("dinov3-license, by timm's copies", "timm/vit_small_patch16_dinov3.lvd1689m"),
    "VideoPrism-base": ("CC-BY 4.0, code Apache 2.0", "https://github.com/google-deepmind/videoprism#license"),
    "PE-AV-large, video": ("apache-2.0, by the base size", "facebook/pe-av-base"),
    "TimeSformer-base": ("cc-by-nc-4.0", "facebook/timesformer-base-finetuned-k400"),
    "VideoMAE-base": ("cc-by-nc-4.0", "MCG-NJU/videomae-base"),
    "V-JEPA 2-large": ("MIT, the code's", "https://github.com/facebookresearch/vjepa2#license"),
}
"""Model -> what was seen to be stated of its licence, and where; a repository of the hub where it is no address."""


def row(name: str, folder: Path) -> str:
    """A model's line of the table."""
    size = SIZES[name]
    size.make(folder)
    lay_out(folder, size.files, size.config)
    header = json.dumps({"none": {"dtype": "F16", "shape": [_VALUES], "data_offsets": [0, 2 * _VALUES]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:  # a folder must hold as many weights: a file with a hole
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * _VALUES)
    inputs = open_inputs(folder, prompt="<video>", frames=size.frames, resize="model")
    cost = clip_cost(inputs, ["final"])
    licence, page = LICENCES[name]
    address = page if page.startswith("https:") else f"https://huggingface.co/{page}"
    speeds = " | ".join(_digits(flops / cost.flop) for flops in (CPU_FLOPS, H100_FLOPS))
    return (
        f"| {name} | {size.frames} | {_digits(cost.weights / 1e6)} | {_digits(cost.flop / 1e12)} | {speeds} | "
        f"{_digits(2 * cost.weights / 1e9)} | [{licence}]({address}) |"
    )


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.2g}".rstrip(".")


def told() -> list[str]:
    """The table's lines as documented."""
    text = DOCS.read_text()
    return text[text.index(BEGIN) + len(BEGIN) + len(HEAD) : text.index(END)].splitlines()


@pytest.mark.slow
def test_the_documented_costs_are_those_of_models_laid_out_at_full_size(tmp_path: Path) -> None:
    rows = [row(name, tmp_path / name.replace(" ", "-").replace("/", "-")) for name in SIZES]
    if os.environ.get("FEATURECACHE_WRITE_TABLE"):
        text = DOCS.read_text()
        table = HEAD + "".join(f"{one}\n" for one in rows)
        DOCS.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table + text[text.index(END) :])
    assert told() == rows


def test_the_documented_cost_of_the_smallest_language_model_is_the_counted_one(tmp_path: Path) -> None:
    assert [line.split(" | ")[0].removeprefix("| ") for line in told()] == list(SIZES)
    assert row("SmolVLM2-256M", tmp_path) in told()
