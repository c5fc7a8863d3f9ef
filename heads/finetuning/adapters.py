"""The language model with adapters, from stored tokens of clips to a head's logits.

What lies below the first layer with an adapter is frozen: its states are the same in every epoch and come from the
cache, as the projected video tokens (`layer_0/tokens`), the vision tower's (`vision/tokens`) or the states at a deeper
layer (`layer_k/tokens`). Only layers from there to the deepest tap are run: no text after the video, no logits. The
head reads what it was tuned on; those of its inputs that no adapter changes come from the cache too.

Not here: training, and what an adapter's files are.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featurecache.backbones.adapter import add_adapter, write_adapter
from featurecache.backbones.adapter_files import depth_of
from featurecache.backbones.decoder import Embedded, hidden_states
from featurecache.backbones.family import TapStates
from featurecache.backbones.four_bit import quantise
from featurecache.backbones.pooling import pool
from heads.models import Head

if TYPE_CHECKING:
    from pathlib import Path

HEAD, ADAPTER = "head.", "language_model."
"""How the names of the head's and of the adapter's parameters begin."""


class AdaptedNetwork(nn.Module):
    """Rows of clips to logits.

    Args:
        backbone: The loaded model; adapters are put into it, in place.
        head: The head; trained on in place.
        inputs: The selected features that the head reads, in order, as `tap/pooling`.
        tokens: What the rows hold of the frozen part: `vision/tokens`, or `layer_k/tokens` to continue from layer k.
        rank: r, of the adapters.
        alpha: Their update is scaled by alpha / rank.
        dropout: Share of an adapter's input dropped in training.
        targets: Names of the linear layers that get adapters.
        gradient_checkpointing: Compute each layer twice instead of keeping its activations.
        four_bit: Round the frozen layers that are run to 4 bits.
        seed: Seed of the adapters' initial values.
    """

    def __init__(
        self,
        backbone: Any,
        head: Head,
        *,
        inputs: Sequence[str],
        tokens: str,
        rank: int,
        alpha: int,
        dropout: float,
        targets: Sequence[str],
        gradient_checkpointing: bool,
        four_bit: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        layers = backbone.model.config.text_config.num_hidden_layers
        self._tokens = tokens
        self._tap = tokens.partition("/")[0]
        self.first_layer = 0 if self._tap == "vision" else depth_of(self._tap, layers)
        self._inputs = [tuple(name.split("/")) for name in inputs]
        depths = {tap: depth_of(tap, layers) for tap, _ in self._inputs if tap != "vision"}
        self._depths = {tap: depth for tap, depth in depths.items() if depth > self.first_layer}
        self.last_layer = max(self._depths.values())
        self._prefix = backbone.prefix_states(self.first_layer) if self.first_layer else None  # frozen as all below
        if four_bit:
            quantise(backbone.decoder, self.first_layer)
        self.language_model = add_adapter(
            backbone,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets,
            layers=range(self.first_layer, self.last_layer),
            seed=seed,
        )
        if gradient_checkpointing:  # use_reentrant=True would leave the adapters without gradients, silently
            backbone.decoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.head = head.requires_grad_(True)
        self._backbone = [backbone]  # in a list, so that its parameters are not this module's

    @property
    def layers_run(self) -> int:
        """Layers of the language model that a step runs."""
        return self.last_layer - self.first_layer

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Stored tokens (B, S, D), and features (B, ...) that no adapter changes, by name -> logits (B, C)."""
        features = self.features(rows)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features)
        return logits

    def features(self, rows: Mapping[str, Tensor]) -> Tensor:
        """What the head reads of clips, float32: (B, D), or (B, T', D) of frames."""
        (backbone,) = self._backbone
        stored = rows[self._tokens]  # (B, S, D)
        if self._prefix is None:
            with torch.no_grad():
                read = backbone.resumed(stored, self._tap)
        else:
            before = self._prefix.expand(len(stored), -1, -1)
            read = Embedded(torch.cat([before, stored.to(before.dtype)], dim=1))  # (B, S_prefix + S, D)
        pooled: dict[str, Tensor] = {}
        wanted = dict(self._depths)
        for depth, now in enumerate(hidden_states(backbone.decoder, read, self.first_layer)):
            for tap in [tap for tap, one in wanted.items() if one == depth + self.first_layer]:
                del wanted[tap]
                video = backbone.at_video(now)  # (B, T', P, D)
                for name in {pooling for one, pooling in self._inputs if one == tap}:
                    pooled[f"{tap}/{name}"] = pool(TapStates(video), name)
            if not wanted:
                break
        names = [f"{tap}/{pooling}" for tap, pooling in self._inputs]
        return torch.cat([pooled[name] if name in pooled else rows[name].float() for name in names], dim=-1)

    def write_adapter(self, folder: "Path") -> None:
        """Writes the adapter's files in PEFT's format."""
        write_adapter(self.language_model, folder)
