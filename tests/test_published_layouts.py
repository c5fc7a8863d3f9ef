"""Published layouts of every family open, extract, and agree with the plain forward; docs/backbones.md has the table.

    FEATURECACHE_WRITE_TABLE=1 python -m pytest tests/test_published_layouts.py    # writes the table anew

The reference opens each part by its class: the processor's numbers by the processor class, the whole model by the class
in `architectures`.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurecache.backbones import model_type_of, open_inputs
from featurecache.backbones.adapter_files import FAMILIES
from featurecache.backbones.asking import check_can_answer
from featurecache.backbones.text_tower import TextTower
from featurecache.errors import FeatureCacheError, UnsupportedModelError
from tests import published_layouts, tiny_families, tiny_models, tiny_video_language
from tests.plain_forward import FRAMES, PROMPT, decoded, extracted, plain
from tests.published_layouts import (
    ALL_ON,
    BOUND,
    CLIP_STATISTICS,
    DOCS,
    HALF,
    IMAGENET,
    Layout,
    shortest_edge,
)

BEGIN, END = "<!-- made by tests/test_published_layouts.py -->\n", "<!-- end -->\n"

LNV_PX, OV_PX, PX = tiny_models.IMAGE_PX, 40, tiny_families.IMAGE_PX
LNV = published_layouts.llava_next_video(LNV_PX)
LNV_IMAGE: Any = LNV["preprocessor_config.json"]
LNV_FLAT: Any = LNV["processor_config.json"]
LNV_VIDEO = {
    **LNV_IMAGE,
    "data_format": "channels_first",
    "default_to_square": False,
    "device": None,
    "do_sample_frames": False,
    "fps": None,
    "num_frames": None,
    "size_divisor": None,
    "video_metadata": None,
    "video_processor_type": "LlavaNextVideoVideoProcessor",
}
OLD = "LLaVA-NeXT-Video, "
LAYOUTS = [
    Layout(OLD + "2025 (main): one file, for images, serves videos; `do_pad`", tiny_models.make_llava_next_video),
    Layout(
        OLD + "June 2024: `model_type` llava_next, no processor_config.json, rope settings outside `rope_scaling`",
        tiny_models.make_llava_next_video,
        {**LNV, "processor_config.json": None, "chat_template.json": None},
        {"model_type": "llava_next", "text_config": {"rope_scaling": None, "factor": 2.0, "type": "linear"}},
    ),
    Layout(
        OLD + "August 2024: template in processor_config.json, no `patch_size`; chat_template.json is no JSON",
        tiny_models.make_llava_next_video,
        {
            **LNV,
            "processor_config.json": {"chat_template": "{{ 1 }}", "processor_class": "LlavaNextVideoProcessor"},
            "chat_template.json": '{"chat_template": "{{ 1 }}",\n}',
        },
    ),
    Layout(
        OLD + "transformers 4.5x: video_preprocessor_config.json with `do_pad` and nulls, chat_template.jinja",
        tiny_models.make_llava_next_video,
        {
            **LNV,
            "preprocessor_config.json": {**LNV_IMAGE, "image_processor_type": "LlavaNextImageProcessorFast"},
            "video_preprocessor_config.json": LNV_VIDEO,
            "chat_template.json": None,
            "chat_template.jinja": "{{ 1 }}",
        },
    ),
    Layout(
        OLD + "transformers 5: both processors nested in processor_config.json",
        tiny_models.make_llava_next_video,
        {
            "processor_config.json": {**LNV_FLAT, "image_processor": LNV_IMAGE, "video_processor": LNV_VIDEO},
            "chat_template.json": None,
        },
    ),
    Layout(
        OLD + "first commits of June 2024: `model_type` llava-next-video",
        tiny_models.make_llava_next_video,
        config={"model_type": "llava-next-video"},
        refused="Take a later revision",
    ),
    Layout(
        OLD + "4-bit weights (`quantization_config`)",
        tiny_models.make_llava_next_video,
        config={"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
        refused="quantised",
    ),
    Layout(
        OLD + "rotary embeddings that scale with the length (dynamic NTK)",
        tiny_models.make_llava_next_video,
        config={"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
        refused="must not depend on the length",
    ),
    Layout(
        "LLaVA-OneVision: video_processor/preprocessor_config.json; `do_pad`", tiny_video_language.make_llava_onevision
    ),
    Layout(
        "LLaVA-OneVision, one file for images",
        tiny_video_language.make_llava_onevision,
        {**published_layouts.llava_onevision(OV_PX), "video_processor/preprocessor_config.json": None},
    ),
    Layout("SmolVLM2, 2025: one file, for images, with `video_sampling`; Lanczos", tiny_video_language.make_smolvlm),
    Layout(
        "SmolVLM2, transformers 5: video_preprocessor_config.json",
        tiny_video_language.make_smolvlm,
        {
            "video_preprocessor_config.json": {
                **ALL_ON,
                **HALF,
                "do_pad": True,
                "max_image_size": {"longest_edge": PX},
                "resample": 3,
                "return_metadata": False,
                "size": {"longest_edge": 48},
                "video_processor_type": "SmolVLMVideoProcessor",
            }
        },
    ),
    Layout(
        "Qwen2.5-VL, 2025: flat config.json, old names of weights, bounds on pixels alone",
        tiny_video_language.make_qwen2_5_vl,
    ),
    Layout(
        "Qwen3-VL, transformers 5: both processors nested, `rope_scaling` of 4.57", tiny_video_language.make_qwen3_vl
    ),
    Layout(
        "Qwen3-VL, transformers 4.57: one file, for images, with nulls, `min_pixels` and `max_pixels`",
        tiny_video_language.make_qwen3_vl,
        {
            "preprocessor_config.json": {
                **ALL_ON,
                **HALF,
                **dict.fromkeys(("crop_size", "device", "do_center_crop", "do_pad", "pad_size", "input_data_format")),
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "max_pixels": 4096,
                "merge_size": 2,
                "min_pixels": 256,
                "patch_size": 8,
                "resample": 3,
                "size": {"longest_edge": 4096, "shortest_edge": 256},
                "temporal_patch_size": 2,
            }
        },
    ),
    Layout("InternVL3.5, transformers 5: nested, other statistics for videos", tiny_video_language.make_internvl),
    Layout("TimeSformer, 2023: VideoMAEImageProcessor", tiny_families.make_timesformer),
    Layout("VideoMAE, 2022: class VideoMAEFeatureExtractor, which is gone", tiny_families.make_videomae),
    Layout("VideoMAE, 2023: old and new name of the class", tiny_families.make_videomae_pretrained),
    Layout(
        "VideoMAE, transformers 5: video_preprocessor_config.json",
        tiny_families.make_videomae,
        {
            "video_preprocessor_config.json": {
                **shortest_edge(PX),
                **IMAGENET,
                "resample": 2,
                "video_processor_type": "VideoMAEVideoProcessor",
            }
        },
    ),
    Layout("V-JEPA 2: video_preprocessor_config.json with nulls", tiny_families.make_vjepa2),
    Layout("CLIP, 2021: CLIPFeatureExtractor, plain integers, no `do_rescale`", tiny_families.make_clip),
    Layout(
        "CLIP, transformers 5: nested in processor_config.json",
        tiny_families.make_clip,
        {
            "processor_config.json": {
                "image_processor": {
                    **shortest_edge(PX),
                    **CLIP_STATISTICS,
                    "do_convert_rgb": True,
                    "image_processor_type": "CLIPImageProcessor",
                    "resample": 3,
                },
                "processor_class": "CLIPProcessor",
            }
        },
    ),
    Layout("SigLIP: squashed", tiny_families.make_siglip),
    Layout("SigLIP 2 of one fixed size: bilinear, null for `do_convert_rgb`", tiny_families.make_siglip_vision),
    Layout(
        "MedSigLIP: SigLIP at 448 px, a scale of eleven digits",
        tiny_families.make_siglip,
        {
            "preprocessor_config.json": {
                **{**ALL_ON, "rescale_factor": 0.00392156862},
                **HALF,
                "image_processor_type": "SiglipImageProcessor",
                "processor_class": "SiglipProcessor",
                "resample": 3,
                "size": {"height": PX, "width": PX},
            }
        },
    ),
    Layout(
        "PubMedCLIP, 2023: CLIPFeatureExtractor with sizes by their sides",
        tiny_families.make_clip,
        {
            "preprocessor_config.json": {
                **shortest_edge(PX),
                **CLIP_STATISTICS,
                "do_convert_rgb": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_processor_type": "CLIPFeatureExtractor",
                "resample": 3,
            }
        },
        {"dtype": None, "torch_dtype": "float32"},
    ),
    Layout("SigLIP 2 NaFlex: a number of patches, no size", tiny_families.make_siglip2),
    Layout("X-CLIP, 2022: class VideoMAEFeatureExtractor, plain integers", tiny_families.make_xclip),
    Layout("DINOv2: larger frames in training, `_valid_processor_keys`", tiny_families.make_dinov2),
    Layout("DINOv2 with registers", tiny_families.make_dinov2_registers),
    Layout("DINOv3, transformers 4.56: nulls; frames scaled in 8 bits", tiny_families.make_dinov3),
    Layout("VideoPrism: LLaVA-OneVision's video processor without a mean", tiny_families.make_videoprism),
    Layout("VideoPrism LvT: a text tower beside it", tiny_families.make_videoprism_lvt),
    Layout("PE-AV: squashed, nulls for sampling", tiny_families.make_pe_audio_video),
    Layout("PE Video: towers for video and text, none for audio", tiny_families.make_pe_video),
    Layout(
        "DINOv2, written by hand: no name of a class, plain integers",
        tiny_families.make_dinov2,
        {
            "preprocessor_config.json": {
                "do_resize": True,
                "size": PX,
                "do_center_crop": True,
                "crop_size": PX,
                "do_normalize": True,
                **IMAGENET,
            }
        },
    ),
]


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, str]]:
    """The table's rows by name, written into the documentation at the end where that is asked for."""
    found: dict[str, str] = {}
    yield found
    if os.environ.get("FEATURECACHE_WRITE_TABLE") and len(found) == len(LAYOUTS):
        text = DOCS.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        names = ("family", "published layout", "taps", "largest difference", "LoRA", "zero-shot")
        head = f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n"
        DOCS.write_text(before + head + "".join(found[one.name] + "\n" for one in LAYOUTS) + after)


def _row(layout: Layout, folder: Path, difference: float) -> str:
    """A line of the table, by what opening the folder as each command does says."""
    family = model_type_of(folder)
    taps = list(open_inputs(folder, prompt=PROMPT, frames=FRAMES, resize="model").taps)
    named = dict.fromkeys("layer_k" if tap.startswith("layer_") else tap for tap in taps)
    bound = next(bound for bound in ("1e-6", "1e-5") if difference <= float(bound))
    asked = [
        way
        for way, check in (("questions", lambda: check_can_answer(family)), ("words", lambda: TextTower(folder)))
        if _serves(check)
    ]
    zero_shot = f"yes: {asked[0]}" if asked else "no"
    cells = (family, layout.name, ", ".join(named), f"below {bound}", "yes" if family in FAMILIES else "no", zero_shot)
    return f"| {' | '.join(cells)} |"


def _serves(check: Callable[[], object]) -> bool:
    try:
        check()
    except UnsupportedModelError:
        return False
    return True


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: re.sub(r"\W+", "-", layout.name))
def test_features_of_a_published_layout_equal_the_plain_forward_as_the_documentation_says(
    layout: Layout, tmp_path: Path, rows: dict[str, str]
) -> None:
    folder, frames = layout.write(tmp_path), decoded()
    if layout.refused:
        with pytest.raises(FeatureCacheError, match=layout.refused) as caught:
            extracted(folder, frames)
        assert "\n" not in str(caught.value)
        family = json.loads((folder / "config.json").read_text())["model_type"]
        rows[layout.name] = f"| {family} | {layout.name} | refused by name | - | - | - |"
    else:
        ours, reference = extracted(folder, frames), plain(folder, frames)
        for tap, states in reference.items():
            assert states.std() > 0.05 * states.abs().max()
            assert ours[tap].shape == states.shape
        assert reference["final"].std() > 0.1
        difference = max(float((ours[tap] - states).abs().max()) for tap, states in reference.items())
        assert difference <= BOUND
        rows[layout.name] = _row(layout, folder, difference)
    if not os.environ.get("FEATURECACHE_WRITE_TABLE"):
        assert rows[layout.name] in _table(), "the table must say the same: see the top of this file"


def _table() -> list[str]:
    text = DOCS.read_text()
    return text[text.index(BEGIN) : text.index(END)].splitlines()[3:]


def test_the_documentation_lists_every_layout_and_no_other() -> None:
    assert [line.split(" | ")[1] for line in _table()] == [one.name for one in LAYOUTS]


def test_a_broken_file_of_a_published_revision_is_named_with_its_line(tmp_path: Path) -> None:
    folder = tiny_models.make_llava_next_video(tmp_path)
    text = (folder / "config.json").read_text()
    at = text.index('"text_config"')
    (folder / "config.json").write_text(text[:at] + text[at:].replace("}", '}"', 1))
    with pytest.raises(FeatureCacheError, match=r"config\.json is not .*line \d+ column \d+.*later revision"):
        extracted(folder, decoded())
