"""LLaVA-NeXT-Video as a frozen feature extractor.

Attention is causal, so a video token's state depends on the text before the video and on nothing after it: the
forward ends at the last video token. The vision tower is loaded without the layers above the one that is used,
and sees each frame alone; projector and language model run once a clip, up to the deepest tap asked for.

Taps: `vision` is what the projector gets (the tower's tokens after pooling), `layer_0` what it gives,
`layer_k` the language model's `hidden_states[k]`, and `final` the last of these, after the final norm.

Not here: generating text, training, decoding video.

Source of the architecture: https://llava-vl.github.io/blog/2024-04-30-llava-next-video/
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoModel, LlavaNextVideoVideoProcessor

from featurecache.backbones.decoder import hidden_states, language_taps, prefix_states, require_decoder, require_window
from featurecache.backbones.encoder import tower_states
from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.files import (
    LOCAL_ONLY,
    SAMPLING_RULE,
    backbone_identity,
    digests,
    load_frozen,
    quiet_loading,
)
from featurecache.backbones.placeholder import text_after_video
from featurecache.backbones.preprocessing import Resize, frame_resize, frame_rule, require_size
from featurecache.backbones.prompt import prefix_ids
from featurecache.errors import UnsupportedModelError

FAMILY = "LLaVA-NeXT-Video"
ATTENTION = "sdpa"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOWERS = ("clip_vision_model", "siglip_vision_model")

_BEFORE_WORDS = ("vision", "layer_0")
"""Taps that no word of the prompt can change."""


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize) -> "LlavaNextVideoInputs":
    """As `featurecache.backbones.open_inputs`."""
    return LlavaNextVideoInputs(folder, prompt=prompt, frames=frames, resize=resize)


def open_backbone(
    inputs: "LlavaNextVideoInputs", *, dtype: Literal["float32", "bfloat16", "float16"], device: str
) -> "LlavaNextVideoBackbone":
    """As `featurecache.backbones.open_backbone`."""
    return LlavaNextVideoBackbone(inputs, dtype=dtype, device=device)


class LlavaNextVideoInputs:
    """All that stands in front of the weights: processor, token ids before the video, preprocessing.

    Cheap to open, so that a cache hit needs no weights in memory.

    Attributes:
        folder: The model's files.
        config: The architecture.
        frames: T, frames sampled from a clip.
        image_px: Height and width of a frame as the vision tower sees it.
        prefix_ids: Token ids in front of the video, shape (S_prefix,).
        text_after_video: What the prompt puts behind the video; it cannot change a feature.
        taps: Every tap by name, in order of depth, with its shape.
        frame_resize: What makes a frame fit, as the processor's files say.
        tower_states: Which of the tower's states the projector gets, from 0, the embedding.
    """

    def __init__(self, folder: Path, *, prompt: str, frames: int, resize: Resize) -> None:
        self.folder = folder
        self.frames = frames
        with quiet_loading(folder, FAMILY):
            self.config = LlavaNextVideoConfig.from_pretrained(folder, **LOCAL_ONLY)
        vision = self.config.vision_config
        if vision.model_type not in _TOWERS:  # others may be fetched by their name
            raise UnsupportedModelError(
                f"LLaVA-NeXT-Video's vision tower must be one of {', '.join(_TOWERS)}, but {folder / 'config.json'} "
                f"says {vision.model_type!r}. Use such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
            )
        if self.config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                "LLaVA-NeXT-Video must leave the tower's class token out (vision_feature_select_strategy = 'default'), "
                f"but {folder / 'config.json'} says {self.config.vision_feature_select_strategy!r}, with which it "
                "takes no video. Use such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
            )
        require_decoder(self.config.text_config)
        self.tower_states = tower_states(self.config, folder)
        _require_pooling(self.config, folder)
        rule = frame_rule(folder, LlavaNextVideoVideoProcessor)
        require_size(rule, vision.image_size, folder)
        self.frame_resize = frame_resize(rule, resize)
        self.image_px = rule.image_px
        self.text_after_video = text_after_video(prompt)
        self.prefix_ids = prefix_ids(
            folder,
            prompt,
            video_token_id=self.config.video_token_id,
            vocab_size=self.config.text_config.vocab_size,
            family=FAMILY,
        )
        self.taps = _taps(self.config, frames, vision.hidden_size * len(self.tower_states))
        video_tokens = frames * self.taps["final"].tokens_per_step
        require_window(self.config.text_config, len(self.prefix_ids) + video_tokens)

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes the value of a tap's states, JSON-ready, for the fingerprint.

        Files are taken whole: weights of layers above the tap count too, although they change nothing. Words do
        not count for the taps that lie before them.

        Args:
            tap: One of `taps`.
            dtype: The dtype the model computes in.
            sha256_of: Digest of a file's content.
        """
        backbone = backbone_identity(
            self.folder, "llava_next_video", dtype=dtype, attention=ATTENTION, sha256_of=sha256_of
        )
        identity: dict[str, Any] = {
            "backbone": backbone,
            "sampling": {"frames": self.frames, "rule": SAMPLING_RULE},
            "preprocessing": self.frame_resize.identity(),
        }
        if tap not in _BEFORE_WORDS:
            backbone["tokenizer"] = digests(self.folder, TOKENIZER_FILES, sha256_of)
            identity["prefix_token_ids"] = self.prefix_ids.tolist()
        return identity


class LlavaNextVideoBackbone:
    """The loaded, frozen model behind its inputs.

    Attributes:
        inputs: Preprocessing and the token ids before the video.
        model: The inner model, its vision tower without the layers that are not used.
    """

    def __init__(
        self, inputs: LlavaNextVideoInputs, *, dtype: Literal["float32", "bfloat16", "float16"], device: str
    ) -> None:
        self.inputs = inputs
        self._tower_layers = inputs.tower_states
        self.model = load_frozen(
            LlavaNextVideoModel,
            inputs.folder,
            family=FAMILY,
            dtype=dtype,
            device=device,
            attention=ATTENTION,
            config=_without_unused_layers(inputs.config, max(1, *self._tower_layers)),
        )

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures (F, px, px, 3) uint8 of `frame_resize` -> pixels (F, 3, px, px), model's dtype, on its device."""
        return self.inputs.frame_resize.normalized(pictures.to(self.model.device), self.model.dtype)

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, taps: Sequence[str] = ()) -> Tensor:  # noqa: ARG002
        """The tower's tokens as the projector gets them, whatever the taps: pixels (F, 3, ...) -> (F, P, D_vision)."""
        kept = self.model.vision_tower(pixels, output_hidden_states=self._tower_layers, return_dict=True).hidden_states
        tokens = torch.cat([kept[layer] for layer in self._tower_layers], dim=-1)  # (F, 1 + patches, D_vision)
        pooled: Tensor = self.model.vision_resampler(tokens[:, 1:])
        return pooled

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, nothing deeper than the deepest.

        Args:
            encoded: Of `encode_frames`, shape (B, T, P, D_vision).
            taps: Names of `inputs.taps`.

        Yields:
            (tap, states of shape (B, T, P, D)).
        """
        wanted = set(taps)
        if "vision" in wanted:
            wanted.remove("vision")
            yield "vision", TapStates(encoded)
        if not wanted:
            return
        prefix = len(self.inputs.prefix_ids)
        depths = iter(hidden_states(self.model.language_model, self.behind_prefix(self.project(encoded))))
        for tap in list(self.inputs.taps)[1:]:
            if not wanted:
                return
            states = next(depths)[:, prefix:]  # (B, S, D)
            if tap in wanted:
                wanted.remove(tap)
                yield tap, TapStates(states.reshape(*encoded.shape[:3], -1))  # (B, T, P, D)
            del states  # before the next layer runs

    def project(self, encoded: Tensor) -> Tensor:
        """The video tokens that the language model gets: (B, T, P, D_vision) -> (B, S, D), tap `layer_0`."""
        video: Tensor = self.model.multi_modal_projector(encoded.flatten(1, 2))
        return video

    def after_video(self) -> Tensor:
        """What the model itself puts behind a video before more text: nothing, shape (0, D)."""
        return self.prefix_states(0)[:0]

    def prefix_states(self, layer: int) -> Tensor:
        """`hidden_states[layer]` of the words before the video, which no video changes, shape (S_prefix, D)."""
        return prefix_states(self.model, self.inputs.prefix_ids, layer)

    def behind_prefix(self, video: Tensor, layer: int = 0) -> Tensor:
        """Video tokens' states at a layer, behind those of the prefix: (B, S, D) -> (B, S_prefix + S, D).

        What `decoder.hidden_states` goes on from: everything up to `layer` can come from a cache of its tokens.
        """
        prefix = self.prefix_states(layer)
        return torch.cat([prefix.expand(len(video), -1, -1), video.to(prefix.dtype)], dim=1)


def _without_unused_layers(config: LlavaNextVideoConfig, layers: int) -> LlavaNextVideoConfig:
    """The config with so many layers of the tower; it keeps its states only where it has one."""
    smaller = copy.deepcopy(config)
    smaller.vision_config.num_hidden_layers = layers
    return smaller


def _require_pooling(config: LlavaNextVideoConfig, folder: Path) -> None:
    """Refuses a pooling that leaves no token of a frame."""
    side, stride = config.vision_config.image_size // config.vision_config.patch_size, config.spatial_pool_stride
    if not 0 < stride <= side:
        raise UnsupportedModelError(
            f"spatial_pool_stride must be from 1 to {side}, the patches along a frame's side, but "
            f"{folder / 'config.json'} says {stride}. Take config.json from the model's own repository."
        )


def _taps(config: LlavaNextVideoConfig, frames: int, width: int) -> dict[str, TapShape]:
    vision, language = config.vision_config, config.text_config
    side = vision.image_size // vision.patch_size // config.spatial_pool_stride
    return {
        "vision": TapShape(frames, side**2, width),
        **language_taps(language.num_hidden_layers, TapShape(frames, side**2, language.hidden_size)),
    }
