"""A video encoder trained together with a head: frames of clips to the head's logits.

The paper's supervised baseline: the class token behind the final norm goes into a linear head. What is run is what
`featurecache.backbones` runs for the tap `final`, so the trained weights, written and opened again as a backbone, give
the features that this head was trained on.

Source: Guerriero et al., section 3.1 and equation 1.

Not here: training, and which parts of the model are trained (`featurecache/backbones/timesformer.py`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.backbones.pooling import pool
from heads.finetuning.data import PIXELS
from heads.models import Head

HEAD, BACKBONE = "head.", "backbone."
"""How the names of the head's and of the model's parameters begin."""


class EncoderNetwork(nn.Module):
    """Rows of clips to logits.

    Args:
        encoder: The loaded model, a `ClipEncoder` with a class token; trained in place where its parameters ask for it.
        head: Takes its class token (B, D).
    """

    def __init__(self, encoder: Any, head: Head) -> None:
        super().__init__()
        self.backbone = encoder.parts.model
        self.head = head.requires_grad_(True)
        self.encoder = [encoder]  # in a list, for it is no module

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Frames (B, T, px, px, 3) uint8, under their name -> logits (B, C)."""
        features = self.features(rows[PIXELS])
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features)
        return logits

    def features(self, frames: Tensor) -> Tensor:
        """Frames (B, T, px, px, 3) uint8 -> class tokens (B, D), float32."""
        (encoder,) = self.encoder
        pixels = encoder.inputs.frame_resize.normalized(frames.flatten(0, 1))  # (B * T, 3, px, px)
        ((_, states),) = encoder.parts.walk(pixels.unflatten(0, frames.shape[:2]), ["final"])
        return pool(encoder.arrange(states), "cls")
