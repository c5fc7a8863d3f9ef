"""Vision towers that see each frame alone as frozen feature extractors: CLIP, SigLIP, DINOv2, DINOv3.

Time is in the pooling only. All of the model's work is done by `encode_frames`, so that clips which share a frame share
its states; `states` only lays frames into clips. Checkpoints with a text tower or a classifier serve: only the vision
tower is loaded.

`final` is every token behind the tower's last norm. Of CLIP, transformers norms only the class token (its
`pooler_output`, bit for bit our class token); the patches are normed here with the same weights. SigLIP has no class
token. SigLIP 2 checkpoints of one fixed size are SigLIP to transformers. The variable-size ones (NaFlex, `siglip2`)
keep the sides of each frame; a feature space needs one number of tokens, so frames become squares (`resize = "model"`
pads them) of as many patches as fit into the processor's `max_num_patches`.

`joint` is a frame's `image_embeds`, as the whole model compares it with a text's: of CLIP the projected class token, of
SigLIP what the attention pooling head gives, at unit length. So the mean over a clip's frames, times a text's embedding
and the model's scale, is the mean of the frames' logits. Checkpoints without projection or head have no such tap.

Register tokens (DINOv2 with registers, DINOv3) run along and are no part of a tap.

Frames must have the checkpoint's size where positions are a table (CLIP, SigLIP). DINOv2 is made to be shown other
sizes than it was trained with (its own processor does): its positions are interpolated, as its plain forward does, and
DINOv3's are rotary. DINOv3's own processor scales frames in floating point, where 8-bit pixels stand between decoding
and the model here: a pixel differs from its by a level of 255 at most.

Sources: Radford et al., https://arxiv.org/abs/2103.00020; Zhai et al., https://arxiv.org/abs/2303.15343;
Oquab et al., https://arxiv.org/abs/2304.07193; Darcet et al., https://arxiv.org/abs/2309.16588; Siméoni et al.,
https://arxiv.org/abs/2508.10104
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from featurecache.backbones import model_type_of
from featurecache.backbones.encoder import JOINT, EncoderInputs, LoadedEncoder, Parts, siglip_parts, without_mask
from featurecache.backbones.family import Load, TapShape, TapStates
from featurecache.backbones.files import read_as
from featurecache.backbones.preprocessing import LARGEST_PX, Geometry, Resize, frame_rule, square_geometry
from featurecache.backbones.processor_files import WHOLE
from featurecache.backbones.weight_files import find_weight_files
from featurecache.errors import UnsupportedModelError

ATTENTION = "sdpa"


@dataclass(frozen=True)
class _Tower:
    """A kind of vision tower: its classes, and which of its modules are embedding, layers and norm.

    Attributes:
        apart: The loaded model taken apart, for frames of a size in pixels.
        any_size: Whether frames may have another size than in training.
        also: As `processor_settings`.
        more_fields: As `processor_settings`.
        geometry: The tower's patch size and the processor's settings -> how a frame becomes a square.
    """

    family: str
    processor_class: Any
    model_class: Any
    has_cls: bool
    apart: Callable[[Any, int], Parts]
    not_used: tuple[str, ...] = ()
    any_size: bool = False
    also: tuple[str, ...] = ()
    more_fields: Mapping[str, Any] = field(default_factory=dict)
    geometry: Callable[[int, Mapping[str, Any]], Geometry] = lambda _patch, settings: square_geometry(settings)


def _clip_parts(model: Any, _px: int) -> Parts:
    return Parts(
        model,
        embed=lambda pixels: model.pre_layrnorm(model.embeddings(pixels)),
        layers=without_mask(model.encoder.layers),
        final_norm=model.post_layernorm,
    )


def _clip_joint_parts(model: Any, px: int) -> Parts:
    joint = lambda final: _unit_length(model.visual_projection(final[:, :1]))  # noqa: E731
    return replace(_clip_parts(model.vision_model, px), model=model, joint=joint)


def _with_head(apart: Callable[[Any, int], Parts]) -> Callable[[Any, int], Parts]:
    """SigLIP's parts and what its attention pooling head makes of them."""
    return lambda model, px: replace(apart(model, px), joint=lambda final: _unit_length(model.head(final)[:, None]))


def _unit_length(embeddings: Tensor) -> Tensor:
    lengths: Tensor = embeddings.norm(dim=-1, keepdim=True)
    return embeddings / lengths


_CLIP = _Tower("clip", CLIPImageProcessor, CLIPVisionModel, has_cls=True, apart=_clip_parts)
_SIGLIP = _Tower(
    "siglip",
    SiglipImageProcessor,
    SiglipVisionModel,
    has_cls=False,
    apart=lambda model, _px: siglip_parts(model),
    not_used=("head",),
)


def _siglip2_parts(model: Any, px: int) -> Parts:
    embeddings, patch = model.embeddings, model.config.patch_size
    side, table = px // patch, embeddings.position_embedding.weight
    grid, shape = embeddings.position_embedding_size, torch.tensor([[side, side]])
    places = embeddings.resize_positional_embeddings(table.reshape(grid, grid, -1), shape, side**2)

    def embed(pixels: Tensor) -> Tensor:
        cut = pixels.reshape(len(pixels), -1, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
        embedded: Tensor = embeddings.patch_embedding(cut.reshape(len(pixels), side**2, -1)) + places
        return embedded

    return Parts(model, embed=embed, layers=without_mask(model.encoder.layers), final_norm=model.post_layernorm)


def _siglip2_geometry(patch: int, settings: Mapping[str, Any]) -> Geometry:
    """A padded square of at most as many patches as the processor makes."""
    most = settings.get("max_num_patches") or 0
    if settings.get("patch_size") != patch or settings.get("size"):  # a size is of the processor of fixed sizes
        return Geometry(0, "pad", 0, refused="size" if settings.get("size") else "patch_size")
    px = isqrt(most) * patch if most > 0 else 0
    return Geometry(px, "pad", px, refused="" if 0 < px <= LARGEST_PX else "max_num_patches")


def _dinov2_parts(model: Any, _px: int) -> Parts:
    return Parts(model, embed=model.embeddings, layers=without_mask(model.encoder.layer), final_norm=model.layernorm)


def _dinov3_parts(model: Any, px: int) -> Parts:
    places = model.rope_embeddings(torch.empty(1, 3, px, px, dtype=model.dtype, device=model.device))
    layers = [partial(layer, position_embeddings=places) for layer in model.model.layer]
    return Parts(model, embed=model.embeddings, layers=layers, final_norm=model.norm)


_DINOV2 = _Tower("dinov2", BitImageProcessor, Dinov2Model, has_cls=True, apart=_dinov2_parts, any_size=True)
_REGISTERS = replace(_DINOV2, family="dinov2_with_registers", model_class=Dinov2WithRegistersModel)
_DINOV3 = _Tower(
    "dinov3",
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    has_cls=True,
    apart=_dinov3_parts,
    any_size=True,
    also=("DINOv3ViT",),
)
_SIGLIP2 = _Tower(
    "siglip2",
    Siglip2ImageProcessor,
    Siglip2VisionModel,
    has_cls=False,
    apart=_siglip2_parts,
    not_used=("head",),
    any_size=True,
    also=("Siglip2",),
    more_fields={"max_num_patches": WHOLE, "patch_size": WHOLE},
    geometry=_siglip2_geometry,
)
_WITH_JOINT = {
    "clip": (
        "visual_projection.weight",
        replace(_CLIP, model_class=CLIPVisionModelWithProjection, apart=_clip_joint_parts),
    ),
    "siglip": ("head.probe", replace(_SIGLIP, not_used=(), apart=_with_head(_SIGLIP.apart))),
    "siglip2": ("head.probe", replace(_SIGLIP2, not_used=(), apart=_with_head(_SIGLIP2.apart))),
}
"""Family -> the end of the name of a weight that makes `joint`, and the tower with that part."""
_TOWERS = {
    "clip": (_CLIP, CLIPConfig),
    "clip_vision_model": (_CLIP, CLIPVisionConfig),
    "siglip": (_SIGLIP, SiglipConfig),
    "siglip_vision_model": (_SIGLIP, SiglipVisionConfig),
    "siglip2": (_SIGLIP2, Siglip2Config),
    "dinov2": (_DINOV2, Dinov2Config),
    "dinov2_with_registers": (_REGISTERS, Dinov2WithRegistersConfig),
    "dinov3_vit": (_DINOV3, DINOv3ViTConfig),
}
"""`model_type` -> the tower, and the class of config.json, which may hold the tower's as `vision_config`."""


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    tower, config = _tower_and_config(folder)
    geometry = partial(tower.geometry, config.patch_size)
    rule = frame_rule(
        folder,
        tower.processor_class,
        geometry,
        image_px=None if tower.any_size else config.image_size,
        more_fields=tower.more_fields,
        also=tower.also,
    )
    if rule.image_px % config.patch_size and tower.any_size:
        raise UnsupportedModelError(
            f"frames must be whole patches of {config.patch_size} px, but the processor files in {folder} make "
            f"{rule.image_px} px. Use the processor files of the model's own repository."
        )
    return EncoderInputs(
        folder,
        config=config,
        title=tower.family,
        family=tower.family,
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames, (rule.image_px // config.patch_size) ** 2, config.hidden_size, has_cls=tower.has_cls),
        joint=_joint_shape(tower.family, config, folder, frames),
    )


def _joint_shape(family: str, config: Any, folder: Path, frames: int) -> TapShape | None:
    """Shape of `joint`; None where the model or its weights have nothing that makes it."""
    if family not in _WITH_JOINT or not getattr(config, "vision_use_head", True):
        return None
    weight, _ = _WITH_JOINT[family]
    if not any(name.endswith(weight) for name in find_weight_files(folder).shapes):
        return None
    return TapShape(frames, 1, config.projection_dim if family == "clip" else config.hidden_size)


def open_backbone(inputs: EncoderInputs, load: Load) -> "FrameEncoder":
    """As `featurecache.backbones.open_backbone`."""
    tower, _ = _TOWERS[model_type_of(inputs.folder)]
    if JOINT in inputs.taps:
        _, tower = _WITH_JOINT[tower.family]
    return FrameEncoder(inputs, tower.apart(load(tower.model_class, not_used=tower.not_used), inputs.image_px))


class FrameEncoder(LoadedEncoder):
    """A loaded vision tower that sees each frame alone; its `embed` takes frames."""

    def __init__(self, inputs: EncoderInputs, parts: Parts) -> None:
        super().__init__(inputs, parts)
        self._not_patches = 1 + getattr(inputs.config, "num_register_tokens", 0)  # where there is a class token

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, taps: Sequence[str]) -> Tensor:
        """All tokens of all taps in order of depth, side by side: (F, 3, image_px, image_px) -> (F, sum of S x D)."""
        return torch.cat([states.flatten(1) for _, states in self.parts.walk(pixels, taps)], dim=1)

    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, of the tokens (B, T, sum of S x D) of the same taps."""
        first = 0
        for tap, shape in self.inputs.taps.items():
            if tap not in taps:
                continue
            tokens = shape.tokens_per_step + self._not_patches * shape.has_cls
            end = first + tokens * shape.width
            states = encoded[..., first:end].reshape(*encoded.shape[:2], tokens, shape.width)  # (B, T, S, D)
            first = end
            if shape.has_cls:
                yield tap, TapStates(tokens=states[:, :, self._not_patches :], cls=states[:, :, 0])
            else:
                yield tap, TapStates(tokens=states)


def _tower_and_config(folder: Path) -> tuple[_Tower, Any]:
    """The tower and its own config; of a whole model, that of its vision half with every old spelling counted in."""
    tower, config_class = _TOWERS[model_type_of(folder)]
    config = read_as(config_class, folder, tower.family)
    if tower is _CLIP and config_class is CLIPConfig:
        config.vision_config.projection_dim = config.projection_dim  # the whole model's word counts, as for its class
    return tower, getattr(config, "vision_config", config)
