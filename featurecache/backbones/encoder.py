"""A vision encoder as a frozen feature extractor: what TimeSformer, VideoMAE, V-JEPA 2 and the frame encoders share.

Each is an embedding, a pile of layers and a final norm. `layer_k` is the state in front of layer k (so `layer_0` is
the embedding), and with L layers `layer_L` is the state behind the last one, before the norm; `final` is behind the
norm. `joint` is the embedding that the whole model compares with a text's, made of `final`; it is there where the
weights hold what makes it. Where a text's vector depends on the clip (X-CLIP), `prompted` has what it is made of, too.
The pile is walked by hand and left at the deepest tap. A family says which modules these are and how tokens lie.

There is no language model: no prompt, and nothing of a prompt in the identity.

Not here: language models, and which files make a family.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.files import SAMPLING_RULE, backbone_identity
from featurecache.backbones.preprocessing import FrameRule, Resize, frame_resize
from featurecache.errors import SettingsError, UnsupportedModelError

FINAL, JOINT, PROMPTED = "final", "joint", "prompted"


class EncoderInputs:
    """All of an encoder but its weights.

    Attributes:
        folder: The model's files.
        config: The encoder's architecture, as its transformers class reads config.json.
        title: The family's name for people.
        family: The family's name, part of the identity.
        frames: T, frames sampled from a clip.
        image_px: Height and width of a frame as the model sees it.
        text_after_video: Always empty: there is no prompt.
        taps: `layer_0` .. `layer_L` and `final`, all of one shape; `joint` where the model has it.
        attention: transformers' name of the attention implementation.
        frame_resize: What makes a frame fit, as the processor says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Any,
        title: str,
        family: str,
        attention: str,
        frames: int,
        resize: Resize,
        rule: FrameRule,
        layers: int,
        shape: TapShape,
        joint: TapShape | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.title = title
        self.family = family
        self.attention = attention
        self.frames = frames
        self.frame_resize = frame_resize(rule, resize)
        self.image_px = rule.image_px
        self.text_after_video = ""
        self.taps = dict.fromkeys([*(f"layer_{k}" for k in range(layers + 1)), FINAL], shape)
        if joint is not None:
            self.taps[JOINT] = joint

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:  # noqa: ARG002
        """Every input that changes the value of a tap's states; the same for every tap, as files are taken whole."""
        return {
            "backbone": backbone_identity(
                self.folder, self.family, dtype=dtype, attention=self.attention, sha256_of=sha256_of
            ),
            "sampling": {"frames": self.frames, "rule": SAMPLING_RULE},
            "preprocessing": self.frame_resize.identity(),
        }


@dataclass(frozen=True)
class Parts:
    """A loaded encoder taken apart.

    Attributes:
        model: The whole.
        embed: Pixels -> `layer_0`, shape (N, S, D), whatever N counts.
        layers: The pile.
        final_norm: State behind the last layer -> `final`.
        joint: `final` -> `joint`, laid out as states are, with one token; None where the model has none.
        prompted: State behind the last layer and `final` -> `prompted`; None where the model has none.
    """

    model: Any
    embed: Callable[[Tensor], Tensor]
    layers: Sequence[Callable[[Tensor], Tensor]]
    final_norm: Callable[[Tensor], Tensor]
    joint: Callable[[Tensor], Tensor] | None = None
    prompted: Callable[[Tensor, Tensor], Tensor] | None = None

    def walk(self, pixels: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """(tap, its states (N, S, D)) in order of depth; no layer above the deepest tap is run."""
        left = set(taps)
        states = self.embed(pixels)
        for depth in range(len(self.layers) + 1):
            if f"layer_{depth}" in left:
                left.remove(f"layer_{depth}")
                yield f"layer_{depth}", states
            if not left:
                return
            if depth < len(self.layers):
                states = self.layers[depth](states)
        last, states = states, self.final_norm(states)
        if FINAL in left:
            yield FINAL, states
        if JOINT in left and self.joint is not None:
            yield JOINT, self.joint(states)
        if PROMPTED in left and self.prompted is not None:
            yield PROMPTED, self.prompted(last, states)

    def state(self, pixels: Tensor, tap: str) -> Tensor:
        """One tap's states (N, S, D)."""
        return next(iter(self.walk(pixels, [tap])))[1]


def tower_states(config: Any, folder: Path) -> list[int]:
    """Which states of its vision tower a video language model uses, counted from 0, the embedding.

    Args:
        config: The whole model's config; a negative `vision_feature_layer` counts from the last layer.
        folder: The model's files, for the message.

    Raises:
        UnsupportedModelError: If the tower has no such state, or none is named.
    """
    chosen, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    listed = [chosen] if isinstance(chosen, int) else list(chosen)
    if not listed or not all(-layers - 1 <= layer <= layers for layer in listed):
        raise UnsupportedModelError(
            f"vision_feature_layer must name layers of the tower, from {-layers - 1} to {layers}, but "
            f"{folder / 'config.json'} says {chosen}. Take config.json from the model's own repository."
        )
    return [layer % (layers + 1) for layer in listed]


def siglip_parts(model: Any) -> Parts:
    """A SigLIP vision tower taken apart; it stands alone and inside video language models."""
    return Parts(
        model, embed=model.embeddings, layers=without_mask(model.encoder.layers), final_norm=model.post_layernorm
    )


def first_output(layers: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    """Layers that give the states as the first of several outputs."""

    def run(layer: Any) -> Callable[[Tensor], Tensor]:
        return lambda states: layer(states)[0]

    return [run(layer) for layer in layers]


def without_mask(layers: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    """Layers that want a mask, called without one: every token sees every other."""
    return [partial(layer, attention_mask=None) for layer in layers]


class LoadedEncoder:
    """What loaded encoders have in common.

    Attributes:
        inputs: All but the weights.
        parts: The loaded model, taken apart.
    """

    def __init__(self, inputs: EncoderInputs, parts: Parts) -> None:
        self.inputs = inputs
        self.parts = parts

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures (F, px, px, 3) uint8 of `frame_resize` -> pixels (F, 3, px, px), model's dtype, on its device."""
        model = self.parts.model
        return self.inputs.frame_resize.normalized(pictures.to(model.device), model.dtype)


class ClipEncoder(LoadedEncoder):
    """An encoder that mixes frames from the first layer on: nothing is done on a frame alone; `embed` takes clips.

    Args:
        inputs: All but the weights.
        parts: The loaded model, taken apart.
        arrange: How a clip's tokens (B, S, D) lie in time.
    """

    def __init__(self, inputs: EncoderInputs, parts: Parts, arrange: Callable[[Tensor], TapStates]) -> None:
        super().__init__(inputs, parts)
        self.arrange = arrange

    def encode_frames(self, pixels: Tensor, taps: Sequence[str]) -> Tensor:  # noqa: ARG002
        """The pixels themselves."""
        return pixels

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, of pixels (B, T, 3, image_px, image_px)."""
        for tap, states in self.parts.walk(encoded, taps):
            yield tap, self.arrange(states)


def step_by_step(shape: TapShape) -> Callable[[Tensor], TapStates]:
    """The arrangement of tokens (B, S, D) that lie one time step behind the other."""
    return lambda states: TapStates(states.reshape(-1, shape.steps, shape.tokens_per_step, shape.width))


def inside(model_class: Any, prefix: str) -> Any:
    """A transformers class that finds its weights in a whole model's, where their names begin with a prefix."""
    return type(model_class.__name__, (model_class,), {"base_model_prefix": prefix})


def require_frames(frames: int, fixed: int, name: str, folder: Path) -> None:
    """Refuses another number of frames than a model's positions were learned for.

    Raises:
        SettingsError: Naming the right number.
    """
    if frames != fixed:
        raise SettingsError(
            f"features.frames must be {fixed} ({name} in {folder / 'config.json'}), but it is {frames}. "
            f"Set frames = {fixed}."
        )


def require_whole_steps(frames: int, joined: int, name: str, folder: Path) -> None:
    """Refuses frames that do not fill time steps, each of so many frames.

    Raises:
        SettingsError: Naming the nearest number that does.
    """
    if frames % joined:
        near = max(1, round(frames / joined)) * joined
        raise SettingsError(
            f"features.frames must be a multiple of {joined} ({name} in {folder / 'config.json'}), but it is {frames}. "
            f"Set frames = {near}."
        )
