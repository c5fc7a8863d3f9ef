"""Model folders laid out as repositories publish them, and as older versions of transformers wrote them.

The small files below have the fields, spellings and places of published revisions; sizes are small, weights random and
words few. `lay_out` puts them around a tiny model: `save_pretrained` of one version writes one layout alone, and no
published one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Files = Mapping[str, "dict[str, Any] | str | None"]
"""Content by name: an object, the text itself, or None for a file that is not there."""

PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "video_processor/preprocessor_config.json",
)
CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ALL_ON = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}


def lay_out(folder: Path, files: Files, config: Mapping[str, Any] | None = None) -> Path:
    """Replaces a model's processor files by others, and fields of its config.json; None takes a field out."""
    for name in PROCESSOR_FILES:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return change_config(folder, config or {})


def change_config(folder: Path, changes: Mapping[str, Any]) -> Path:
    """Changes fields of a model's config.json, nested ones too; None takes a field out."""
    path = folder / "config.json"
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), changes), indent=2))
    return folder


def _changed(old: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(old)
    for key, value in changes.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            new[key] = _changed(old[key], value)
        else:
            new[key] = value
    return new


def name_tower_weights_as_published(folder: Path) -> None:
    """Gives a video language model's tower the names of published checkpoints: `vision_tower.vision_model.`."""
    weights = load_file(folder / "model.safetensors")
    new = {name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in weights.items()}
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})


def shortest_edge(px: int, short: int | None = None) -> dict[str, Any]:
    """Scale the short edge, crop the centre."""
    crop = {"crop_size": {"height": px, "width": px}, "do_center_crop": True}
    return {**crop, "size": {"shortest_edge": short or px}, **ALL_ON}


def llava_next_video(px: int) -> Files:
    """As main of LLaVA-NeXT-Video-7B-hf has been since 2025: one file for images serves videos too."""
    return {
        "preprocessor_config.json": {
            **shortest_edge(px),
            **CLIP_STATISTICS,
            "do_convert_rgb": True,
            "do_pad": True,
            "image_grid_pinpoints": [[px, 2 * px], [2 * px, px]],
            "image_processor_type": "LlavaNextImageProcessor",
            "processor_class": "LlavaNextVideoProcessor",
            "resample": 3,
        },
        "processor_config.json": {
            "image_token": "<image>",
            "video_token": "<video>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaNextVideoProcessor",
            "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": "{% for message in messages %}{{ message['role'] }}{% endfor %}"},
    }


LLAVA_NEXT_VIDEO_CONFIG = {
    "dtype": None,
    "torch_dtype": "bfloat16",
    "spatial_pool_out_channels": 1024,
    "use_image_newline_parameter": True,
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": None,
        "rope_scaling": {"factor": 2.5, "type": "linear"},
        "type": "linear",
        "torch_dtype": "float16",
    },
}


def llava_onevision(px: int) -> Files:
    """As LLaVA-OneVision: the video processor's file in a folder of its own, and padding that is asked for."""
    own = {
        **ALL_ON,
        **HALF,
        "do_convert_rgb": True,
        "do_pad": True,
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "size": {"height": px, "width": px},
    }
    return {
        "preprocessor_config.json": {**own, "image_processor_type": "LlavaOnevisionImageProcessor"},
        "video_processor/preprocessor_config.json": {**own, "image_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": (px // 8) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        },
    }


def smolvlm(px: int) -> Files:
    """As SmolVLM2-256M-Video-Instruct: one file, for images, with the sampling of videos in it."""
    own = {
        **ALL_ON,
        **HALF,
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_pad": True,
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": px},
        "processor_class": "SmolVLMProcessor",
        "resample": 1,
        "size": {"longest_edge": 4 * px},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": px}},
    }
    return {
        "preprocessor_config.json": own,
        "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
    }


SMOLVLM_CONFIG = {
    "dtype": None,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"],
        "is_llama_config": True,
        "perceiver_config": {"model_type": "vllama3", "num_key_value_heads": 1, "resampler_depth": 6},
        "pixel_shuffle_factor": 2,
        "qk_layer_norms": False,
        "rope_parameters": None,
        "rope_theta": 100000,
        "rope_interleaved": False,
    },
    "vision_config": {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}, "use_base_siglip": False},
}


def qwen3_vl(patch_px: int = 8, least: int = 256, most: int = 4096) -> Files:
    """As Qwen3-VL of transformers 5: nested, and a file for videos alone; sizes are bounds on a video's pixels."""
    own = {
        **ALL_ON,
        **HALF,
        "data_format": "channels_first",
        "default_to_square": True,
        "do_convert_rgb": True,
        "merge_size": 2,
        "patch_size": patch_px,
        "resample": 3,
        "size": {"longest_edge": most, "shortest_edge": least},
        "temporal_patch_size": 2,
    }
    sampling = {"do_sample_frames": True, "fps": 2, "max_frames": 768, "min_frames": 4, "return_metadata": False}
    video = {**own, **sampling, "video_processor_type": "Qwen3VLVideoProcessor"}
    return {
        "processor_config.json": {
            "image_processor": {**own, "image_processor_type": "Qwen2VLImageProcessorFast"},
            "processor_class": "Qwen3VLProcessor",
            "video_processor": video,
        },
        "video_preprocessor_config.json": video,
    }


def qwen2_5_vl(patch_px: int = 8, least: int = 256, most: int = 2304) -> Files:
    """As of 2025: one file, for images, that bounds a frame's pixels and tells no size."""
    bounds = {"max_pixels": most, "min_pixels": least, "merge_size": 2, "patch_size": patch_px}
    named = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    return {"preprocessor_config.json": {**bounds, **CLIP_STATISTICS, **named, "temporal_patch_size": 2}}


def name_qwen2_5_vl_as_published(folder: Path) -> None:
    """A language model's fields beside those of the whole, and the names of weights that transformers 4.49 had."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = {**rope, "type": "default"}
    config["vision_config"] |= {"model_type": "qwen2_5_vl", "in_chans": 3}
    path.write_text(json.dumps({**text, **config}))
    weights = load_file(folder / "model.safetensors")
    new = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): one
        for name, one in weights.items()
    }
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})


_MROPE = {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"}
QWEN3_VL_CONFIG = {"text_config": {"rope_parameters": None, "rope_theta": 5000000, "rope_scaling": _MROPE}}
"""Rotary positions as transformers 4.57 wrote them."""


def internvl(px: int) -> Files:
    """As InternVL3.5 of transformers 5: images and videos have other statistics in one file."""
    own = {**ALL_ON, "data_format": "channels_first", "resample": 3, "size": {"height": px, "width": px}}
    tiles = {"crop_to_patches": False, "max_patches": 12, "min_patches": 1}
    return {
        "processor_config.json": {
            "image_processor": {**own, **IMAGENET, **tiles, "image_processor_type": "GotOcr2ImageProcessor"},
            "image_seq_length": 4,
            "processor_class": "InternVLProcessor",
            "video_processor": {**own, **CLIP_STATISTICS, "initial_shift": True, "do_sample_frames": False},
        }
    }


def timesformer(px: int) -> Files:
    """As the Kinetics checkpoints since 2023."""
    statistics = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}
    named = {"image_processor_type": "VideoMAEImageProcessor", "resample": 2}
    return {"preprocessor_config.json": {**shortest_edge(px), **statistics, **named}}


def videomae(px: int, named: str = "VideoMAEFeatureExtractor") -> Files:
    """As of 2022, by a name that transformers no longer has."""
    names = {"feature_extractor_type": "VideoMAEFeatureExtractor", "image_processor_type": named}
    return {"preprocessor_config.json": {**shortest_edge(px), **IMAGENET, **names, "resample": 2}}


def vjepa2(px: int) -> Files:
    """A file for videos alone, with nulls."""
    video = {"video_processor_type": "VJEPA2VideoProcessor", "num_frames": None, "size_divisor": None, "resample": 2}
    return {"video_preprocessor_config.json": {**shortest_edge(px, int(px * 256 / 224)), **IMAGENET, **video}}


def clip(px: int) -> Files:
    """As of 2021: plain integers, the old name of the class, and no word about rescaling."""
    return {
        "preprocessor_config.json": {
            "crop_size": px,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            **CLIP_STATISTICS,
            "resample": 3,
            "size": px,
        }
    }


def siglip(px: int, resample: int = 3) -> Files:
    """Squashes; SigLIP 2 of one fixed size differs in the interpolation alone."""
    named = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, "resample": resample}
    return {"preprocessor_config.json": {**ALL_ON, **HALF, **named, "size": {"height": px, "width": px}}}


def siglip2(patches: int, patch_px: int = 8) -> Files:
    """As the NaFlex repositories: a number of patches, and no size."""
    own = {"do_convert_rgb": None, "image_processor_type": "Siglip2ImageProcessorFast", "resample": 2}
    return {"preprocessor_config.json": {**ALL_ON, **HALF, **own, "max_num_patches": patches, "patch_size": patch_px}}


def xclip(px: int) -> Files:
    """As of 2022: the class that is gone, plain integers; at 224 px crop_size is left out."""
    named = {"feature_extractor_type": "VideoMAEFeatureExtractor", "resample": 2, "size": px, "crop_size": px}
    return {
        "preprocessor_config.json": {
            **named,
            **IMAGENET,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
        }
    }


def dinov3(px: int) -> Files:
    """As transformers 4.56: squashed, in floating point."""
    named = {"image_processor_type": "DINOv3ViTImageProcessorFast", "resample": 2, "do_center_crop": None}
    nulls = dict.fromkeys(("crop_size", "device", "disable_grouping", "do_convert_rgb", "return_tensors"))
    return {"preprocessor_config.json": {**ALL_ON, **IMAGENET, **named, **nulls, "size": {"height": px, "width": px}}}


def videoprism(px: int) -> Files:
    """LLaVA-OneVision's class for videos, which only scales: no mean, no standard deviation."""
    own = {**ALL_ON, "do_normalize": False, "resample": 3, "size": {"height": px, "width": px}}
    return {"video_preprocessor_config.json": {**own, "video_processor_type": "LlavaOnevisionVideoProcessor"}}


def pe_video(px: int) -> Files:
    """As PE-AV: squashed, by the class's own interpolation, with nulls for sampling."""
    own = {"do_convert_rgb": True, "do_sample_frames": False, "num_frames": None, "size": {"height": px, "width": px}}
    switches = {key: ALL_ON[key] for key in ("do_normalize", "do_rescale", "do_resize")}
    named = {"video_processor_type": "PeVideoVideoProcessor"}
    return {"video_preprocessor_config.json": {**own, **switches, **HALF, **named}}


def dinov2(px: int, short: int) -> Files:
    """With the list of keys that some versions wrote."""
    named = {"image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "resample": 3}
    keys = {"_valid_processor_keys": ["images", "do_resize", "size", "resample", "return_tensors"]}
    return {"preprocessor_config.json": {**shortest_edge(px, short), **IMAGENET, **named, **keys}}


@dataclass(frozen=True)
class Layout:
    """One way of laying a model out.

    Attributes:
        name: What a reader of docs/backbones.md sees.
        make: Writes a tiny model into a folder.
        files: Small files that it gets; None: those it comes with.
        config: Changes to config.json, see `lay_out`.
        refused: What the error says; empty where the folder opens.
    """

    name: str
    make: Callable[[Path], Path]
    files: Files | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""

    def write(self, folder: Path) -> Path:
        """The folder, made."""
        self.make(folder)
        return change_config(folder, self.config) if self.files is None else lay_out(folder, self.files, self.config)


BOUND = 1e-5


DOCS = Path(__file__).parents[1] / "docs" / "backbones.md"
