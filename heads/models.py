"""Heads as plain torch modules.

Notable choices: the output bias starts at the log prior odds (paper, section 3.1) and output weights at
zero, so an untrained head predicts each label's prevalence. What is done to features first lives in the head
(`Front`), so a saved head takes features as the cache gives them, whichever solver fitted it. `dropout` acts on what
feeds the output layer. Training many heads at once is `training.py`, which fills these modules afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from heads.data import ROWS_AT_ONCE
from heads.settings import HeadKind


def log_prior_odds(Y: npt.NDArray[np.integer]) -> Tensor:
    """log(p / (1 - p)) of each label's share of positive clips: (N, C) of 0 and 1 -> (C,) float32.

    Source: Guerriero et al., section 3.1. Every label must be on in some clips and off in others.
    """
    positives = Y.sum(axis=0, dtype=np.float64)
    return torch.from_numpy(np.log(positives / (len(Y) - positives))).float()


class Front(nn.Module):
    """What features go through before a head: unit length, centre and scale, rotation; each may be left out.

    `mean` and `scale` start as the identity and `axes` as zeros; all are filled after construction.

    Args:
        feature_width: D.
        unit_length: Each part of a feature is scaled to the length sqrt(its width), which is that of standardised
            features. A zero vector stays zero.
        components: P, the columns of `axes`; 0 for no rotation.
        part_widths: Widths of the selected features that lie side by side in D; one part by default.

    Attributes:
        mean: Subtracted, (D,).
        scale: Divided by, (D,).
        axes: Orthonormal principal axes, (D, P); None without rotation.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor | None

    def __init__(
        self,
        feature_width: int,
        *,
        unit_length: bool = False,
        components: int = 0,
        part_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.unit_length = unit_length
        self.part_widths = [feature_width] if part_widths is None else list(part_widths)
        self.register_buffer("mean", torch.zeros(feature_width))
        self.register_buffer("scale", torch.ones(feature_width))
        self.register_buffer("axes", torch.zeros(feature_width, components) if components else None)

    @property
    def feature_width(self) -> int:
        """D, the width of what goes in."""
        return len(self.mean)

    @property
    def output_width(self) -> int:
        """Width of what comes out: P if it rotates, or else D."""
        return len(self.mean) if self.axes is None else self.axes.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) float32 -> (..., D or P)."""
        if self.unit_length:
            parts = torch.split(x, self.part_widths, dim=-1)
            x = torch.cat([normalize(part, dim=-1) * part.shape[-1] ** 0.5 for part in parts], dim=-1)
        z = (x - self.mean) / self.scale
        z = torch.where(z.isnan(), 0.0, z)  # what is absent is as it is on average
        return z if self.axes is None else z @ self.axes

    def keeping_absent(self, x: Tensor) -> Tensor:
        """As `forward`, but of parts (..., P, D), those that are absent stay NaN, for heads that leave them out."""
        z: Tensor = self(x)
        return z if x.ndim < 3 else z.masked_fill(x[..., :1].isnan(), torch.nan)


class LinearHead(nn.Module):
    """FT-LC: one linear layer from features to logits.

    Source: Guerriero et al., section 3.5 and equation 1.

    Args:
        front: What features go through first.
        label_count: C.
        dropout: Share of features dropped in training.
    """

    def __init__(self, front: Front, label_count: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.front = front
        self.dropout = nn.Dropout(dropout)
        self.output = _output_layer(front.output_width, label_count)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) float32 -> logits (B, C)."""
        logits: Tensor = self.output(self.dropout(self.front(x)))
        return logits


class MLPHead(nn.Module):
    """Hidden ReLU layers between features and logits.

    Args:
        front: What features go through first.
        label_count: C.
        hidden_widths: Units of each hidden layer, from the features on.
        dropout: Share of the last hidden layer's units dropped in training.
    """

    def __init__(self, front: Front, label_count: int, *, hidden_widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.front = front
        self.hidden = nn.Linear(front.output_width, hidden_widths[0])
        self.deeper = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(hidden_widths))
        self.dropout = nn.Dropout(dropout)
        self.output = _output_layer(hidden_widths[-1], label_count)

    @property
    def hidden_layers(self) -> list[nn.Linear]:
        """The hidden layers, from the features on."""
        return [self.hidden, *(layer for layer in self.deeper if isinstance(layer, nn.Linear))]

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) float32 -> logits (B, C)."""
        x = self.front(x)
        for layer in self.hidden_layers:
            x = torch.relu(layer(x))
        logits: Tensor = self.output(self.dropout(x))
        return logits


class AttentionHead(nn.Module):
    """Queries weigh the frames of a clip, or the parts of a sample; queries of zero make it their mean.

    Source: the gateless form of Ilse et al., https://arxiv.org/abs/1802.04712, with a query per label or one for all.
    A part that is absent (NaN) has no weight.

    Args:
        front: What features go through first.
        label_count: C.
        query_count: Q, 1 for the same weights for all labels; None for C, a query per label.
        dropout: Share of features dropped in training, of what is weighed but not of what weighs.
    """

    def __init__(self, front: Front, label_count: int, *, query_count: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.front = front
        self.query = nn.Parameter(torch.zeros(query_count or label_count, front.output_width))
        self.dropout = nn.Dropout(dropout)
        self.output = _output_layer(front.output_width, label_count)

    def forward(self, x: Tensor) -> Tensor:
        """Features of frames (B, T, D) float32 -> logits (B, C)."""
        weights = self.weights(x)
        values = self.output(self.dropout(self.front(x)))  # (B, T, C)
        logits: Tensor = (weights * values).sum(dim=1)  # weights sum to 1, so the bias passes
        return logits

    def weights(self, x: Tensor) -> Tensor:
        """Features of frames or parts (B, T, D) float32 -> their weights (B, T, Q), which sum to 1 over T."""
        z = self.front(x)
        scores = z @ self.query.T * z.shape[-1] ** -0.5
        return torch.softmax(scores.masked_fill(x[..., :1].isnan(), -torch.inf), dim=1)


class TemporalHead(nn.Module):
    """A convolution over three time steps with ReLU, averaged over time, between features and logits.

    Args:
        front: What features go through first.
        label_count: C.
        hidden_width: H, the convolution's channels.
        dropout: Share of averaged channels dropped in training.
    """

    def __init__(self, front: Front, label_count: int, *, hidden_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.front = front
        self.hidden = nn.Conv1d(front.output_width, hidden_width, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.output = _output_layer(hidden_width, label_count)

    def forward(self, x: Tensor) -> Tensor:
        """Features of frames (B, T, D) float32 -> logits (B, C); before the first and after the last frame is zero."""
        hidden = torch.relu(self.hidden(self.front(x).transpose(1, 2)))  # (B, H, T)
        logits: Tensor = self.output(self.dropout(hidden.mean(dim=2)))
        return logits


class PromptedHead(nn.Module):
    """Labels given as words whose vectors depend on the clip (X-CLIP): a label's words against its "not" words.

    Every text gets the clip's prompt; a label's are then their mean, at unit length.

    Args:
        front: Of the width of the features, which it leaves as they are.
        generator: Texts (Q, D) and features (B, 1 + P, D) -> the texts' unit vectors for each clip (B, Q, D).
        label_count: C.
        text_count: Q.

    Attributes:
        texts: The texts' vectors before any clip, (Q, D).
        shares: What each text counts among a label's words and among its "not" words, (2, C, Q).
        scale: What a difference of similarities is multiplied by to give a logit, (1,).
    """

    texts: Tensor
    shares: Tensor
    scale: Tensor

    def __init__(self, front: Front, generator: nn.Module, label_count: int, *, text_count: int) -> None:
        super().__init__()
        self.front = front
        self.generator = generator
        self.register_buffer("texts", torch.zeros(text_count, front.feature_width))
        self.register_buffer("shares", torch.zeros(2, label_count, text_count))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """A clip's vector and, behind it, its patches (B, 1 + P, D) float32 -> logits (B, C)."""
        near, far = self.similarities(x).unbind(dim=1)
        return self.scale * (near - far)

    def similarities(self, x: Tensor) -> Tensor:
        """Cosines of the clips (B, 1 + P, D) with each label's words and with its "not" words, (B, 2, C)."""
        texts = self.generator(self.texts, x)
        words = normalize(torch.einsum("scq,bqd->bscd", self.shares, texts), dim=-1)
        return torch.einsum("bscd,bd->bsc", words, x[:, 0])


Head = LinearHead | MLPHead | AttentionHead | TemporalHead | PromptedHead


def build_head(
    kind: str,
    front: Front,
    label_count: int,
    *,
    hidden_widths: Sequence[int],
    dropout: float = 0.0,
    words: Mapping[str, Any] | None = None,
) -> Head:
    """An untrained head of a kind by its name in the settings.

    Args:
        kind: `linear`, `mlp`, `attention`, `weighted` or `temporal`.
        front: What features go through first.
        label_count: C.
        hidden_widths: Units of each hidden layer of `mlp`, channels of `temporal`; the others have none.
        dropout: As the kinds say.
        words: `Bundle.words`; where they name a `generator`, the kind does not count.
    """
    if words is not None and "generator" in words:
        from featurecache.backbones.xclip_prompts import sized_generator  # it imports transformers

        return PromptedHead(front, sized_generator(words["generator"]), label_count, text_count=len(words["prompts"]))
    if kind == "linear":
        return LinearHead(front, label_count, dropout=dropout)
    if kind in ("attention", "weighted"):
        return AttentionHead(front, label_count, query_count=query_count(kind, label_count), dropout=dropout)
    if kind == "mlp":
        return MLPHead(front, label_count, hidden_widths=hidden_widths, dropout=dropout)
    if kind == "temporal":
        return TemporalHead(front, label_count, hidden_width=hidden_widths[0], dropout=dropout)
    raise ValueError(f"kind must be one of {', '.join(get_args(HeadKind))}, but it is {kind!r}. Give one of these.")


def query_count(kind: str, label_count: int) -> int:
    """Q of a head that weighs frames: a query per label of `attention`, one for all of `weighted`."""
    return label_count if kind == "attention" else 1


def head_scores(head: Head, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Each label's probability, in bounded memory.

    Args:
        head: The head.
        X: Features, (N, D) or of frames (N, T, D), float16 or float32.

    Returns:
        Probabilities, (N, C).
    """
    return _in_blocks(head, lambda block: torch.sigmoid(head(block)), X)


def part_weights(head: Head, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """How much a head that weighs parts makes of each of them, for each label: (N, P, D) -> (N, P, C)."""
    if not isinstance(head, AttentionHead):
        raise TypeError(f"a head must weigh parts to have weights, but it is a {type(head).__name__}.")
    label_count = head.output.out_features
    return _in_blocks(head, lambda block: head.weights(block).expand(-1, -1, label_count), X)


def word_similarities(head: PromptedHead, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """As `PromptedHead.similarities`, of features (N, 1 + P, D) in bounded memory: (N, 2, C)."""
    return _in_blocks(head, head.similarities, X)


@torch.no_grad()
def _in_blocks(head: Head, of: Callable[[Tensor], Tensor], X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """What a function of features makes of all of them, in blocks where the head's parameters are."""
    head.eval()
    device = head.front.mean.device
    clips_at_once = max(1, ROWS_AT_ONCE // (X.shape[1] if X.ndim == 3 else 1))
    blocks = (torch.tensor(X[start : start + clips_at_once]) for start in range(0, max(len(X), 1), clips_at_once))
    return np.concatenate([of(block.to(device).float()).cpu().numpy() for block in blocks], dtype=np.float32)


def _output_layer(width: int, label_count: int) -> nn.Linear:
    layer = nn.Linear(width, label_count)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
