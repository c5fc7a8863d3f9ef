"""Heads as plain torch modules.

Notable choices: the output bias starts at the log prior odds (paper, section 3.1) and output weights at
zero, so an untrained head predicts each label's prevalence; standardisation lives in the head as
buffers, so a saved head takes features as the cache gives them. `dropout` acts on what feeds the
output layer. Training many heads at once is `training.py`, which fills these modules afterwards.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from heads.data import row_blocks


def log_prior_odds(Y: npt.NDArray[np.integer]) -> Tensor:
    """log(p / (1 - p)) of each label's share of positive clips: (N, C) of 0 and 1 -> (C,) float32.

    Source: Guerriero et al., section 3.1. Every label must be on in some clips and off in others.
    """
    positives = Y.sum(axis=0, dtype=np.float64)
    return torch.from_numpy(np.log(positives / (len(Y) - positives))).float()


class Standardize(nn.Module):
    """(x - mean) / scale per feature; both start as the identity and are filled after construction.

    Args:
        feature_width: D.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feature_width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_width))
        self.register_buffer("scale", torch.ones(feature_width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return (x - self.mean) / self.scale


class LinearHead(nn.Module):
    """FT-LC: one linear layer from features to logits.

    Source: Guerriero et al., section 3.5 and equation 1.

    Args:
        feature_width: D.
        label_count: C.
        dropout: Share of features dropped in training.
    """

    def __init__(self, feature_width: int, label_count: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.standardize = Standardize(feature_width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(feature_width, label_count)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) float32 -> logits (B, C)."""
        logits: Tensor = self.output(self.dropout(self.standardize(x)))
        return logits


class MLPHead(nn.Module):
    """One hidden ReLU layer between features and logits.

    Args:
        feature_width: D.
        label_count: C.
        hidden_width: H.
        dropout: Share of hidden units dropped in training.
    """

    def __init__(self, feature_width: int, label_count: int, *, hidden_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.standardize = Standardize(feature_width)
        self.hidden = nn.Linear(feature_width, hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_width, label_count)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) float32 -> logits (B, C)."""
        logits: Tensor = self.output(self.dropout(torch.relu(self.hidden(self.standardize(x)))))
        return logits


Head = LinearHead | MLPHead


@torch.no_grad()
def head_scores(head: Head, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Each label's probability: features (N, D), float16 or float32 -> (N, C) float32, in bounded memory."""
    head.eval()
    device = head.output.weight.device
    scores = np.empty((len(X), head.output.out_features), np.float32)
    for rows in row_blocks(len(X)):
        block = torch.tensor(X[rows]).to(device).float()
        scores[rows] = torch.sigmoid(head(block)).cpu().numpy()
    return scores
