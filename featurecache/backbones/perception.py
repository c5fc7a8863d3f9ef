"""Perception Encoder for video (PE Video, and the video half of PE-AV) as a frozen feature extractor.

A frame encoder (PE core, a ViT of the timm library) makes one embedding of each frame; a short transformer reads them,
with a class token before the first. So a time step is a frame, and has one token.

Taps: `vision` is each frame's embedding, scaled to length 1, as the video encoder gets it; `layer_0` is behind the
convolutions over time that embed them, `layer_k` before layer k, and `final` behind the last norm and projection:
`final/cls` is the model's `pooler_output`. `joint` is the clip's `video_embeds`, one vector, which the model compares
with a text's as it is, not at unit length. Audio is left out; texts are `text_tower.py`'s.

Sources: Bolya et al., Perception Encoder. https://arxiv.org/abs/2504.13181; Vyas et al., PE-AV.
https://arxiv.org/abs/2512.19687
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PeAudioVideoConfig, PeVideoConfig, PeVideoEncoder, PeVideoVideoProcessor
from transformers.models.pe_video.modeling_pe_video import PeVideoContrastiveHead, PeVideoPreTrainedModel

from featurecache.backbones import model_type_of
from featurecache.backbones.encoder import JOINT, EncoderInputs, LoadedEncoder, Parts, inside
from featurecache.backbones.family import Load, TapShape, TapStates
from featurecache.backbones.files import quiet_loading, read_as
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.backbones.weight_files import find_weight_files
from featurecache.errors import SettingsError, UnsupportedModelError

FAMILY = "Perception Encoder"
ATTENTION = "sdpa"

_PREFIXES = {"pe_audio_video": "video_model", "pe_video": ""}
"""`model_type` -> what the weights of a PE Video are called before their names in it."""
_FRAME_ENCODER = "vit_pe_core_"
_SIZES = {"depth": 256, "embed_dim": 65_536, "img_size": 2048, "num_heads": 1024, "patch_size": 2048}
"""What a folder may tell timm of the frame encoder besides its name, and the most it may say."""


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    if find_spec("timm") is None:
        raise SettingsError(
            f"{FAMILY} needs the package timm, but it is not installed here. "
            "Install it: pip install 'featurecache[timm]'."
        )
    whole = video_config(folder)
    config = whole.video_config
    with quiet_loading(folder, FAMILY):
        image_px = _image_px(folder, config.vision_config)
    has_head = any(name.endswith("video_head.proj.weight") for name in find_weight_files(folder).shapes)
    rule = frame_rule(folder, PeVideoVideoProcessor, image_px=image_px, also=("PeVideo",))
    inputs = EncoderInputs(
        folder,
        config=whole,
        title=FAMILY,
        family="perception",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames, 1, config.hidden_size, has_cls=True),
        joint=TapShape(1, 1, whole.text_config.hidden_size) if has_head else None,
    )
    inputs.taps = {"vision": TapShape(frames, 1, config.vision_config.num_labels), **inputs.taps}
    return inputs


def open_backbone(inputs: EncoderInputs, load: Load) -> "PerceptionEncoder":
    """As `featurecache.backbones.open_backbone`."""
    half = load(
        inside(_VideoHalf, _PREFIXES[model_type_of(inputs.folder)]),
        not_used=() if JOINT in inputs.taps else ("video_head",),
    )
    model = half.video_encoder
    places = model.rotary_emb(
        torch.empty(0, dtype=model.dtype, device=model.device),
        torch.arange(inputs.frames + 1, device=model.device)[None],
    )

    def run(layer: Any) -> Any:
        return lambda states: layer(states, attention_mask=None, position_embeddings=places)

    parts = Parts(
        half,
        embed=lambda seen: model.patch_embedder(model.embedder.data_proj(model.embedder.proj(seen)))[0],
        layers=[run(layer) for layer in model.layers],
        final_norm=lambda states: model.output(model.norm(states)),
        joint=(lambda states: half.video_head(states[:, :1])) if half.video_head is not None else None,
    )
    return PerceptionEncoder(inputs, parts)


def video_config(folder: Path) -> Any:
    """The architecture of a PE Video: the video and text halves; of a PE-AV, that of the PE Video in it."""
    if model_type_of(folder) == "pe_audio_video":
        return read_as(PeAudioVideoConfig, folder, FAMILY).video_config
    return read_as(PeVideoConfig, folder, FAMILY)


class _VideoHalf(PeVideoPreTrainedModel):  # type: ignore[misc]
    """A PE Video without its text tower."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.video_encoder = PeVideoEncoder(config.video_config)
        self.video_head = PeVideoContrastiveHead(config.video_config.hidden_size, config.text_config.hidden_size)
        self.post_init()


class PerceptionEncoder(LoadedEncoder):
    """A loaded Perception Encoder for video; its `embed` takes the embeddings of a clip's frames (B, T, D_vision)."""

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, taps: Sequence[str]) -> Tensor:  # noqa: ARG002
        """Embeddings of frames, of length 1: (F, 3, image_px, image_px) -> (F, D_vision)."""
        return normalize(self.parts.model.video_encoder.embedder.vision_model(pixels).logits, dim=-1)

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, of the embeddings (B, T, D_vision) of the clips' frames."""
        if "vision" in taps:
            yield "vision", TapStates(encoded[:, :, None])
        deeper = [tap for tap in taps if tap != "vision"]
        if deeper:
            for tap, states in self.parts.walk(encoded, deeper):
                is_joint = tap == JOINT
                yield tap, TapStates(states[:, None]) if is_joint else TapStates(states[:, 1:, None], cls=states[:, :1])


def _image_px(folder: Path, vision: Any) -> int:
    """Size of the frame encoder's frames, where it is one that timm may be asked for.

    timm takes more by these two fields than a description of a model: files to read, repositories to fetch.

    Raises:
        UnsupportedModelError: If the fields say anything else.
    """
    from timm.models import get_pretrained_cfg, list_models

    name, given = vision.architecture, vision.model_args or {}
    is_known = isinstance(given, Mapping) and name.startswith(_FRAME_ENCODER) and name in list_models()
    if not is_known or not all(_is_size(key, value) for key, value in given.items()):
        raise UnsupportedModelError(
            f"the frame encoder must be a {_FRAME_ENCODER} model of timm, changed at most in {', '.join(_SIZES)}, but "
            f"{folder / 'config.json'} says architecture = {name!r:.100} and model_args = {given!r:.100}. "
            "Take config.json from the model's own repository, e.g. facebook/pe-av-base."
        )
    known: Any = get_pretrained_cfg(name)
    size = given.get("img_size") or known.input_size[-1]
    return int(size if isinstance(size, int) else size[0])


def _is_size(key: str, value: Any) -> bool:
    """Whether this is a size that timm may be told: a number, or the same one for height and width."""
    listed = value if isinstance(value, list | tuple) else [value]
    is_one = bool(listed) and all(type(one) is int and one == listed[0] for one in listed)
    return is_one and 0 < listed[0] <= _SIZES.get(key, 0)
