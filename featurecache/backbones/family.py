"""What every family of backbones offers, so that the extraction loop knows none of them.

A family is two objects: inputs, all of a model but its weights, cheap to open; and the loaded backbone. The
forward has two halves. `encode_frames` is what a model computes on each frame alone, and is done once for a frame
that several clips share; `states` joins frames into clips and runs no deeper than the deepest tap asked for. A
family whose model mixes frames from the first layer on has `encode_frames` give the pixels back.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from featurecache.backbones.resize import FrameResize


Load = Callable[..., Any]
"""Gives a family its model with its weights: `files.load_frozen`, told all but the class and what is special to it."""


@dataclass(frozen=True)
class TapStates:
    """A tap's states of a batch of clips.

    Attributes:
        tokens: Shape (B, T', P, D): T' time steps of P tokens. T' is the number of frames, or less where the model
            joins neighbouring frames into one step.
        cls: Class tokens, shape (B, 1, D) of a whole clip or (B, T', D) of each step; None where the model has none.
    """

    tokens: "Tensor"
    cls: "Tensor | None" = None


@dataclass(frozen=True)
class TapShape:
    """Shape of a tap's states for one clip: T' time steps of P tokens of width D.

    Attributes:
        steps: T'.
        tokens_per_step: P.
        width: D.
        has_cls: Whether there are class tokens.
        is_causal: Whether each token was computed from itself and those before it, so that the last one alone has
            seen the whole clip.
    """

    steps: int
    tokens_per_step: int
    width: int
    has_cls: bool = False
    is_causal: bool = False


class Inputs(Protocol):
    """All of a model but its weights: processor, token ids before the video, preprocessing.

    Attributes:
        folder: The model's files.
        config: The architecture, as the transformers class of this family reads config.json.
        frames: T, frames sampled from a clip.
        image_px: Height and width of a frame as the model sees it.
        text_after_video: What the prompt puts after the video; it cannot change a feature. Empty without a prompt.
        taps: Every tap by name, in order of depth, with its shape.
        frame_resize: What makes a frame fit.
    """

    folder: Path
    config: Any
    frames: int
    image_px: int
    text_after_video: str
    taps: dict[str, TapShape]
    frame_resize: "FrameResize"

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes the value of this tap's states, JSON-ready, for the fingerprint."""
        ...


class Backbone(Protocol):
    """The loaded, frozen model behind its inputs."""

    @property
    def inputs(self) -> Inputs:
        """All of the model but its weights."""
        ...

    def normalize(self, pictures: "Tensor") -> "Tensor":
        """Pictures (F, px, px, 3) uint8 of `frame_resize` -> pixels (F, 3, px, px), model's dtype, on its device."""
        ...

    def encode_frames(self, pixels: "Tensor", taps: Sequence[str]) -> "Tensor":
        """What the model computes on each frame alone for these taps: (F, 3, image_px, image_px) -> (F, ...)."""
        ...

    def states(self, encoded: "Tensor", taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, one at a time: (B, T, ...) of `encode_frames` -> (tap, states).

        `taps` are those that `encode_frames` was given.

        Nothing above the deepest tap asked for is run, and nothing is kept of a tap once the next one is asked for.
        """
        ...
