"""The plain forward of transformers that features are held against, and what it is given: ids and pixels by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from transformers import AutoTokenizer

from featurecache.backbones import open_backbone, open_inputs
from tests.tiny_families import IMAGE_PX
from tests.tiny_models import pixels_of

CLIP_S = 3.0


def video_token(config: Any) -> int:
    """The token that stands for a part of a video."""
    found: int = getattr(config, "video_token_id", None) or config.image_token_id
    return found


def _smolvlm(config: Any, frames: int) -> str:
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    count = {2: "two", 4: "four", 8: "eight", 16: "sixteen"}[frames]
    text = f"You are provided the following series of {count} frames from a 0:00:03 [H:MM:SS] video.\n"
    for k in range(frames):
        text += f"\nFrame from 00:0{int((k + 0.5) * CLIP_S / frames)}:<fake_token_around_image><global-img>"
        text += "<image>" * side**2 + "<fake_token_around_image>"
    return text + "\n\n"


def _llava(config: Any, frames: int) -> str:
    side = config.vision_config.image_size // config.vision_config.patch_size
    newline = config.model_type == "llava_onevision"
    return "<video>" * (frames * (-(-side // 2) if newline else side // 2) ** 2 + newline)


def _qwen3_vl(config: Any, frames: int) -> str:
    text = ""
    for step in range(frames // 2):
        text += (
            f"<{(2 * step + 1) * CLIP_S / frames:.1f} seconds><|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
        )
    return text


def _internvl(config: Any, frames: int) -> str:
    return "\n".join(f"Frame{k}: <img>" + "<IMG_CONTEXT>" * 4 + "</img>" for k in range(1, frames + 1))


def _qwen2_5_vl(config: Any, clip: Tensor) -> dict[str, Any]:
    """The vision inputs of a clip (T, 3, px, px), and `text`: what the processor writes in its place."""
    vision, frames = config.vision_config, len(clip)
    patches, *grid = transformers.Qwen2VLVideoProcessor().patchify(clip[None], vision.patch_size, 2, 2)
    return {
        "text": "<|vision_start|>" + "<|video_pad|>" * (math.prod(grid) // 4) + "<|vision_end|>",
        "pixel_values_videos": patches[0],
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([2 * CLIP_S / frames]),
    }


_TEXTS = {"smolvlm": _smolvlm, "qwen3_vl": _qwen3_vl, "internvl": _internvl}


def plain_batch(config: Any, tokenizer: Any, clip: Tensor, prompt: str, more: Sequence[int] = ()) -> dict[str, Tensor]:
    """What the model's forward takes for a prompt about a clip (T, 3, px, px) and tokens after it."""
    if config.model_type == "qwen2_5_vl":
        inputs = _qwen2_5_vl(config, clip)
        ids = torch.tensor([[*tokenizer(prompt.replace("<video>", inputs.pop("text")))["input_ids"], *more]])
        is_video = (ids == config.video_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 2 * is_video, **inputs}
    video = _TEXTS.get(config.model_type, _llava)(config, len(clip))
    ids = torch.tensor([[*tokenizer(prompt.replace("<video>", video))["input_ids"], *more]])
    if config.model_type == "qwen3_vl":
        is_video = (ids == config.video_token_id).int()
        patches, *grid = transformers.Qwen3VLVideoProcessor().patchify(
            clip[None], config.vision_config.patch_size, 2, 2
        )
        more_inputs = {"mm_token_type_ids": 2 * is_video, "video_grid_thw": torch.tensor([grid])}
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": patches[0],
            **more_inputs,
        }
    pixels = {"smolvlm": {"pixel_values": clip[None]}, "internvl": {"pixel_values": clip}}
    of_family = pixels.get(config.model_type, {"pixel_values_videos": clip[None]})
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **of_family}


def at_video(config: Any, batch: dict[str, Tensor]) -> Tensor:
    """Places of the video tokens in a batch's sequence; LLaVA-OneVision's newline behind them is none."""
    places = (batch["input_ids"][0] == video_token(config)).nonzero()[:, 0]
    return places[:-1] if config.model_type == "llava_onevision" else places


FRAMES = 4


PROMPT = "user: describe the hand . <video>"


def decoded(seed: int = 0) -> np.ndarray:
    """Noise on gradients, (F, H, W, 3): sharp enough for every difference in scaling to show."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 255, 80)[None, None, :, None] * np.ones((FRAMES, 60, 1, 3))
    return np.where(
        random.random((FRAMES, 60, 80, 1)) < 0.5, slope, random.integers(0, 256, (FRAMES, 60, 80, 3))
    ).astype(np.uint8)


def extracted(folder: Path, frames: np.ndarray) -> dict[str, Tensor]:
    """The extraction's way: tokens of one clip by tap, each (S, D)."""
    backbone = open_backbone(
        open_inputs(folder, prompt=PROMPT, frames=len(frames), resize="model"), dtype="float32", device="cpu"
    )
    taps = list(backbone.inputs.taps)
    encoded = backbone.encode_frames(pixels_of(backbone, frames), taps)
    found = {}
    for tap, states in backbone.states(encoded[None], taps):
        shape = backbone.inputs.taps[tap]
        assert states.tokens.shape == (1, shape.steps, shape.tokens_per_step, shape.width)
        found[tap] = states.tokens[0].flatten(0, 1)
    return found


def whole_model(model_class: Any, folder: Path) -> Any:
    """The model of a folder, in float32; PE-AV by torch's own loading, which transformers 5.23 fails at."""
    if model_class is transformers.PeAudioVideoModel:
        model = model_class(model_class.config_class.from_pretrained(folder))
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        return model.eval()
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def text_inputs(folder: Path, texts: Sequence[str]) -> dict[str, Tensor]:
    """All texts as the model's own processor lays them out: one length for all, filled up at the end."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [encoder.encode(text).ids for text in texts]
    length = {"siglip": 64, "siglip2": 64, "videoprism": 8}.get(kind, max(map(len, ids)))
    fill = encoder.token_to_id(json.loads((folder / "tokenizer_config.json").read_text())["pad_token"])
    told = {"input_ids": torch.tensor([one + [fill] * (length - len(one)) for one in ids])}
    if not kind.startswith("siglip"):
        told["attention_mask"] = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in ids])
    return told


def plain(folder: Path, frames: np.ndarray) -> dict[str, Tensor]:
    """The naive recipe: the processor class on the folder's numbers, the whole model, tokens (S, D) by tap.

    Of VideoPrism and PE `final` alone, since their class keeps other states.
    """
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = whole_model(model_class, folder)
    kind = model_class.config_class.model_type
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    processor = PROCESSORS[kind](**_settings(folder, PROCESSORS[kind]))
    all_states = {"output_hidden_states": True}
    with torch.no_grad():
        if kind == "dinov3_vit":  # scales in floating point; the extraction's pixels are scaled in 8 bits
            channels_first = resize(channels_first, [IMAGE_PX, IMAGE_PX], antialias=True)
        if kind in (
            "qwen2_5_vl",
            "qwen3_vl",
        ):  # the processor gets the padded square that the extraction makes of a frame
            grey = torch.tensor([round(255 * mean) for mean in processor.image_mean], dtype=torch.uint8)
            square = grey[None, :, None, None].repeat(FRAMES, 1, 80, 80)
            square[:, :, 10:70] = channels_first
            px = 48 if kind == "qwen2_5_vl" else IMAGE_PX
            pixels, tokenizer = torch.zeros(4, 3, px, px), AutoTokenizer.from_pretrained(folder)
            batch = plain_batch(model.config, tokenizer, pixels, PROMPT)
            batch |= dict(processor([square], do_sample_frames=False, return_tensors="pt"))
            return _plain_language(model, batch)
        if kind in ("llava_next_video", "llava_onevision", "smolvlm", "internvl"):
            pixels = next(iter(processor([channels_first], do_sample_frames=False, return_tensors="pt").values()))
            return _plain_language(
                model, plain_batch(model.config, AutoTokenizer.from_pretrained(folder), pixels[0], PROMPT)
            )
        if issubclass(PROCESSORS[kind], transformers.video_processing_utils.BaseVideoProcessor):
            pixels = next(iter(processor([channels_first], do_sample_frames=False, return_tensors="pt").values()))
        elif kind != "siglip2":
            pixels = processor(list(channels_first), return_tensors="pt")["pixel_values"]
        if kind == "siglip2":  # as for Qwen: its processor gets the padded square
            square = torch.full((FRAMES, 3, 80, 80), 128, dtype=torch.uint8)
            square[:, :, 10:70] = channels_first
            out = model.vision_model(**processor(list(square), return_tensors="pt"), **all_states)
        elif kind == "xclip":
            out = model.vision_model(pixels[0], **all_states)
        else:
            encoder = next(
                (getattr(model, part) for part in ("vision_model", *sorted(PROCESSORS)) if hasattr(model, part)), model
            )
            if kind == "videoprism":
                encoder = model.video_model.vision_model
            if kind.startswith("pe_"):
                encoder = getattr(model, "video_model", model).video_encoder
            out = encoder(pixels, **all_states)
        final = out.last_hidden_state
        if kind in ("clip", "clip_vision_model", "xclip"):
            final = model.vision_model.post_layernorm(out.hidden_states[-1])
    if kind.startswith(("pe_", "videoprism")):
        return {"final": final.flatten(0, 1)}
    states = {f"layer_{depth}": one for depth, one in enumerate(out.hidden_states)}
    registers = 1 + getattr(model.config, "num_register_tokens", 0)
    return {tap: _patches(kind, one, registers) for tap, one in [*states.items(), ("final", final)]}


def _patches(kind: str, states: Tensor, registers: int) -> Tensor:
    """An encoder's tokens without class and register tokens, each frame's patches after one another, (S, D)."""
    if kind == "timesformer":  # each patch's frames after one another; the extraction has each frame's patches
        return states[0, 1:].unflatten(0, (-1, FRAMES)).transpose(0, 1).flatten(0, 1)
    has_class_token = kind.startswith("dinov") or kind in ("clip", "clip_vision_model", "xclip")
    return states[:, registers * has_class_token :].flatten(0, 1)


PROCESSORS: dict[str, Any] = {
    "llava_next_video": transformers.LlavaNextVideoVideoProcessor,
    "llava_onevision": transformers.LlavaOnevisionVideoProcessor,
    "smolvlm": transformers.SmolVLMVideoProcessor,
    "qwen2_5_vl": transformers.Qwen2VLVideoProcessor,
    "qwen3_vl": transformers.Qwen3VLVideoProcessor,
    "internvl": transformers.InternVLVideoProcessor,
    "timesformer": transformers.VideoMAEImageProcessor,
    "videomae": transformers.VideoMAEVideoProcessor,
    "vjepa2": transformers.VJEPA2VideoProcessor,
    "videoprism_vision_model": transformers.LlavaOnevisionVideoProcessor,
    "videoprism": transformers.LlavaOnevisionVideoProcessor,
    "clip": transformers.CLIPImageProcessor,
    "clip_vision_model": transformers.CLIPImageProcessor,
    "siglip": transformers.SiglipImageProcessor,
    "siglip2": transformers.Siglip2ImageProcessor,
    "xclip": transformers.VideoMAEImageProcessor,
    "siglip_vision_model": transformers.SiglipImageProcessor,
    "dinov2": transformers.BitImageProcessor,
    "dinov2_with_registers": transformers.BitImageProcessor,
    "dinov3_vit": transformers.DINOv3ViTImageProcessor,
    "pe_video": transformers.PeVideoVideoProcessor,
    "pe_audio_video": transformers.PeVideoVideoProcessor,
}


def _settings(folder: Path, processor_class: Any) -> dict[str, Any]:
    """What the class itself reads, or the file that is for videos alone."""
    own = folder / "video_processor"
    is_own = (own / "preprocessor_config.json").exists() and "VideoProcessor" in processor_class.__name__
    where = own if is_own else folder
    reader = getattr(processor_class, "get_video_processor_dict", processor_class.get_image_processor_dict)
    return {**reader(where)[0]}


def _plain_language(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    *states, final = model(**batch, output_hidden_states=True).hidden_states
    places = at_video(model.config, batch)
    return {f"layer_{depth}": one[0, places] for depth, one in enumerate(states)} | {"final": final[0, places]}
