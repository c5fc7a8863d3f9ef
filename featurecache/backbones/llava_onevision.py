"""LLaVA-OneVision as a frozen feature extractor.

A SigLIP tower sees each frame alone; the projector and a pooling by two behind it (384 px: 27 x 27 patches -> 14 x 14
tokens) also work frame by frame, so `encode_frames` does it all and clips that share a frame share its tokens. The
language model runs once a clip, from the words before the video to the last video token, up to the deepest tap. The
newline token that transformers puts behind the last frame comes after all video tokens and is not run.

Taps: `vision` is what the projector gets (here before the pooling: 729 tokens a frame), `layer_0` the projected and
pooled video tokens, `layer_k` the language model's `hidden_states[k]`, `final` the last of these, after the final norm.

Not here: images, generating text, towers other than SigLIP.

Source: Li et al., LLaVA-OneVision: Easy Visual Task Transfer. https://arxiv.org/abs/2408.03326
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, LlavaOnevisionVideoProcessor

from featurecache.backbones.decoder import hidden_states, language_taps, prefix_states, require_decoder, require_window
from featurecache.backbones.encoder import siglip_parts, tower_states
from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.files import LOCAL_ONLY, SAMPLING_RULE, backbone_identity, load_frozen, quiet_loading
from featurecache.backbones.placeholder import text_after_video
from featurecache.backbones.preprocessing import Resize, frame_resize, frame_rule, require_size
from featurecache.backbones.prompt import prefix_ids
from featurecache.errors import UnsupportedModelError

FAMILY = "LLaVA-OneVision"
ATTENTION = "sdpa"

_BEFORE_WORDS = ("vision", "layer_0")
"""Taps that no word of the prompt can change."""


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize) -> "LlavaOnevisionInputs":
    """As `featurecache.backbones.open_inputs`."""
    return LlavaOnevisionInputs(folder, prompt=prompt, frames=frames, resize=resize)


def open_backbone(
    inputs: "LlavaOnevisionInputs", *, dtype: Literal["float32", "bfloat16", "float16"], device: str
) -> "LlavaOnevisionBackbone":
    """As `featurecache.backbones.open_backbone`."""
    return LlavaOnevisionBackbone(inputs, dtype=dtype, device=device)


class LlavaOnevisionInputs:
    """All but the weights: processor, token ids before the video, preprocessing.

    Attributes:
        folder: The model's files.
        config: The architecture.
        frames: T, frames sampled from a clip.
        image_px: Height and width of a frame as the vision tower sees it.
        prefix_ids: Token ids in front of the video, shape (S_prefix,).
        text_after_video: What the prompt puts behind the video; it cannot change a feature.
        taps: Every tap by name, in order of depth, with its shape.
        frame_resize: What makes a frame fit, as the processor says.
        tower_tap: The tap of the vision tower that the projector gets.
    """

    def __init__(self, folder: Path, *, prompt: str, frames: int, resize: Resize) -> None:
        self.folder = folder
        self.frames = frames
        with quiet_loading(folder, FAMILY):
            self.config = LlavaOnevisionConfig.from_pretrained(folder, **LOCAL_ONLY)
        config = self.config
        vision, language = config.vision_config, config.text_config
        require_decoder(language)
        self.tower_tap = _tower_tap(config, folder)
        rule = frame_rule(folder, LlavaOnevisionVideoProcessor)
        require_size(rule, vision.image_size, folder)
        self.frame_resize = frame_resize(rule, resize)
        self.image_px = rule.image_px
        self.text_after_video = text_after_video(prompt)
        self.prefix_ids = prefix_ids(
            folder, prompt, video_token_id=config.video_token_id, vocab_size=language.vocab_size, family=FAMILY
        )
        side = vision.image_size // vision.patch_size
        pooled = math.ceil(side / 2) ** 2
        require_window(language, len(self.prefix_ids) + frames * pooled)
        self.taps = {
            "vision": TapShape(frames, side**2, vision.hidden_size),
            **language_taps(language.num_hidden_layers, TapShape(frames, pooled, language.hidden_size)),
        }

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes the value of a tap's states; words do not count for the taps before them."""
        words = {} if tap in _BEFORE_WORDS else {"prefix_token_ids": self.prefix_ids.tolist()}
        return {
            "backbone": backbone_identity(
                self.folder, "llava_onevision", dtype=dtype, attention=ATTENTION, sha256_of=sha256_of
            ),
            **words,
            "sampling": {"frames": self.frames, "rule": SAMPLING_RULE},
            "preprocessing": self.frame_resize.identity(),
        }


class LlavaOnevisionBackbone:
    """The loaded, frozen model behind its inputs.

    Attributes:
        inputs: Preprocessing and the token ids before the video.
        model: The inner model, without logits.
    """

    def __init__(
        self, inputs: LlavaOnevisionInputs, *, dtype: Literal["float32", "bfloat16", "float16"], device: str
    ) -> None:
        self.inputs = inputs
        self.model = load_frozen(
            LlavaOnevisionModel,
            inputs.folder,
            family=FAMILY,
            dtype=dtype,
            device=device,
            attention=ATTENTION,
            config=inputs.config,
        )
        self._tower = siglip_parts(self.model.vision_tower)

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures (F, px, px, 3) uint8 of `frame_resize` -> pixels (F, 3, px, px), model's dtype, on its device."""
        return self.inputs.frame_resize.normalized(pictures.to(self.model.device), self.model.dtype)

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, taps: Sequence[str]) -> Tensor:
        """Video tokens (F, P, D) of pixels (F, 3, image_px, image_px).

        With `vision` among the taps, what the projector gets: (F, patches, D_vision); `states` then projects.
        """
        tokens = next(iter(self._tower.walk(pixels, [self.inputs.tower_tap])))[1]  # (F, patches, D_vision)
        return tokens if "vision" in taps else self._project(tokens)

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, nothing deeper than the deepest; encoded is (B, T, ...)."""
        wanted = set(taps)
        if "vision" in wanted:
            wanted.remove("vision")
            yield "vision", TapStates(encoded)
            if not wanted:
                return
            projected = self.project(encoded)  # (B, S, D)
            encoded = projected.reshape(*encoded.shape[:2], -1, projected.shape[-1])
        prefix = self.prefix_states(0)
        words = prefix.expand(len(encoded), -1, -1)  # (B, S_prefix, D)
        depths = hidden_states(self.model.language_model, torch.cat([words, encoded.flatten(1, 2)], dim=1))
        for tap in list(self.inputs.taps)[1:]:
            if not wanted:
                return
            video = next(depths)[:, len(prefix) :].view_as(encoded)  # (B, T, P, D)
            if tap in wanted:
                wanted.remove(tap)
                yield tap, TapStates(video)
            del video  # before the next layer runs

    def project(self, encoded: Tensor) -> Tensor:
        """The video tokens that the language model gets: (B, T, patches, D_vision) -> (B, S, D), tap `layer_0`."""
        return torch.stack([self._project(frames) for frames in encoded]).flatten(1, 2)

    def after_video(self) -> Tensor:
        """What the model itself puts behind a video before more text: a newline token, shape (1, D)."""
        newline: Tensor = self.model.image_newline
        return newline[None]

    def prefix_states(self, layer: int) -> Tensor:
        """`hidden_states[layer]` of the words before the video, which no video changes, shape (S_prefix, D)."""
        return prefix_states(self.model, self.inputs.prefix_ids, layer)

    def _project(self, tokens: Tensor) -> Tensor:
        """(F, patches, D_vision) -> (F, P, D), pooled by two."""
        pooled: Tensor = self.model.apply_pooling(self.model.multi_modal_projector(tokens))
        return pooled


def _tower_tap(config: LlavaOnevisionConfig, folder: Path) -> str:
    chosen = config.vision_feature_layer
    found = {
        "vision_config.model_type": config.vision_config.model_type,
        "vision_feature_layer": chosen,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    if (
        found["vision_config.model_type"] != "siglip_vision_model"
        or not isinstance(chosen, int)
        or config.vision_feature_select_strategy != "full"
    ):
        raise UnsupportedModelError(
            "LLaVA-OneVision must have a SigLIP tower of which one layer is used in full, but "
            f"{folder / 'config.json'} says {found}. Use such weights, e.g. llava-hf/llava-onevision-qwen2-7b-ov-hf."
        )
    return f"layer_{tower_states(config, folder)[0]}"
