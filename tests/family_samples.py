"""The tiny vision encoders of every family: opened, and by the plain forward of the class that was saved."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2ForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PeAudioVideoModel,
    PeVideoModel,
    Siglip2Model,
    SiglipModel,
    SiglipVisionModel,
    TimesformerForVideoClassification,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoPrismClipModel,
    VideoPrismVisionModel,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    XCLIPModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.family import Backbone, TapStates
from tests.plain_forward import whole_model
from tests.tiny_families import FRAMES, IMAGE_PX, LAYERS, WIDTH

FRAME_ENCODERS = {"clip", "clip vision", "siglip", "siglip vision", "siglip2", "dinov2", "dinov2 registers", "dinov3"}
PERCEPTION = {"pe video", "pe audio video"}
"""Families that embed each frame alone, then join the embeddings of a clip."""


TUBELETS = {"videomae", "videomae pretrained", "vjepa2", "vjepa2 pretrained"}
SIDE = 4  # patches across a frame, of all of them
TAPS = [*(f"layer_{depth}" for depth in range(LAYERS + 1)), "final"]
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


def open_family(folder: Path, *, frames: int = FRAMES, resize: str = "model", dtype: str = "float32") -> Backbone:
    return open_backbone(open_inputs(folder, prompt="", frames=frames, resize=resize), dtype=dtype, device="cpu")


def drawn_pixels(clips: int = 2, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(clips, frames, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(seed))


def states_of(backbone: Backbone, pixels: Tensor, taps: list[str]) -> dict[str, TapStates]:
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps)
    return dict(backbone.states(encoded.unflatten(0, pixels.shape[:2]), taps))


def plain_states(name: str, folder: Path, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
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


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (FRAMES, height // 4, width // 4, 3), dtype=np.uint8)
    return noise.repeat(4, axis=1).repeat(4, axis=2)
