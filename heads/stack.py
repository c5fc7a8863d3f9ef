"""K heads' parameters side by side, so that one product serves them all.

The first layers of all heads are the rows of one (R, D) matrix: C rows for a linear head, H for an MLP
of width H. So a step is one product (B, D) x (D, R) forward and one (R, B) x (B, D) back, and heads of
different widths stack without padding. Gradients are written out by hand: those of two layers are short,
and autograd costs three times the time here. AdamW runs on the whole matrix at once with each head's
own learning rate and decay.

Heads are held in the order of their batch sizes, each of which divides the next (or is all clips). So gradients of
larger batches are summed over several slices, and the heads that are due for a step are always the first ones.

What this is not: a model to keep. `export` copies each head into a plain module of `models.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from heads.models import LinearHead, MLPHead
from heads.settings import HeadSettings

BETA_GRADIENT, BETA_SQUARE, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's usual constants, those of `torch.optim.AdamW`."""


class Parameter:
    """One parameter of all heads, with its gradient sum and AdamW's two moments; rows belong to heads."""

    def __init__(self, value: Tensor, rows_per_head: Sequence[int], *, decays: bool) -> None:
        self.value = value  # (R, anything)
        self.gradient = torch.zeros_like(value)
        self.mean = torch.zeros_like(value)
        self.square = torch.zeros_like(value)
        self.rows_per_head = list(rows_per_head)
        self.decays = decays

    def rows(self, head: int) -> slice:
        """Where a head's rows are."""
        start = sum(self.rows_per_head[:head])
        return slice(start, start + self.rows_per_head[head])

    def keep(self, heads: Sequence[int]) -> None:
        """Drops the rows of all other heads."""
        rows = torch.cat([torch.arange(self.value.shape[0])[self.rows(head)] for head in heads])
        rows = rows.to(self.value.device)
        for name in ("value", "gradient", "mean", "square"):
            setattr(self, name, getattr(self, name)[rows])
        self.rows_per_head = [self.rows_per_head[head] for head in heads]

    def step(self, per_row: Tensor) -> None:
        """AdamW on the first rows, whose gradient sums are then cleared.

        Source: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101, algorithm 2.

        Args:
            per_row: Of each row that steps, shape (4, rows, 1): the factor that decay leaves of a weight; one over
                the terms in its gradient sum; the corrections of the two moments, the first with the step size.
        """
        remaining, average, descent, square_correction = per_row.unbind()
        end = per_row.shape[1]
        value, mean, square = self.value[:end], self.mean[:end], self.square[:end]
        gradient = self.gradient[:end].mul_(average)
        if self.decays:
            value.mul_(remaining)
        mean.lerp_(gradient, 1 - BETA_GRADIENT)
        square.mul_(BETA_SQUARE).addcmul_(gradient, gradient, value=1 - BETA_SQUARE)
        torch.sqrt(square, out=gradient)  # the gradient's memory is free from here on
        gradient.mul_(square_correction).add_(EPSILON)
        torch.div(mean, gradient, out=gradient)
        value.addcmul_(gradient, descent, value=-1)
        gradient.zero_()


class HeadStack:
    """K heads of one kind in training.

    Args:
        settings: One per head: all of one kind, in the order of their batch sizes.
        feature_width: D.
        prior_log_odds: Where output biases start, (C,).
        positive_weights: Weight of the positive term, (K, C).
        seed: Of initial hidden weights and of dropout; all heads draw the same noise, so a head's result
            does not depend on its company.
        device: Where parameters live.
    """

    def __init__(
        self,
        settings: Sequence[HeadSettings],
        *,
        feature_width: int,
        prior_log_odds: Tensor,
        positive_weights: Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = list(settings)
        self.label_count = C = len(prior_log_odds)
        self.is_linear = settings[0].kind == "linear"
        self.positive_weights = positive_weights.to(device)
        self.steps = [0] * len(settings)
        self.clips_since_step = [0] * len(settings)
        self.loss = torch.zeros(len(settings), device=device)
        self.generators = [torch.Generator(device).manual_seed(seed) for _ in settings]
        self.any_dropout = any(s.dropout for s in settings)
        K = len(settings)
        output_bias = prior_log_odds.repeat(K).unsqueeze(1).to(device)  # (K * C, 1)
        if self.is_linear:
            weights = torch.zeros(K * C, feature_width, device=device)
            self.first = Parameter(weights, [C] * K, decays=True)
            self.first_bias = Parameter(output_bias, [C] * K, decays=False)
            self.parameters = [self.first, self.first_bias]
            self.kept = torch.ones_like(weights) if self.any_dropout else None
            of_size = {s.batch_size: generator for s, generator in zip(settings, self.generators, strict=True)}
            self.generators = [of_size[s.batch_size] for s in settings]
            self._draw_kept_features(K)
            return
        widths = [s.hidden_width for s in settings]
        drawn = [_initial_hidden(width, feature_width, seed) for width in widths]
        self.first = Parameter(torch.cat([weight for weight, _ in drawn]).to(device), widths, decays=True)
        self.first_bias = Parameter(torch.cat([bias for _, bias in drawn]).to(device), widths, decays=False)
        self.output = Parameter(torch.zeros(sum(widths), C, device=device), widths, decays=True)
        self.output_bias = Parameter(output_bias, [C] * K, decays=False)
        self.parameters = [self.first, self.first_bias, self.output, self.output_bias]
        self.kept = None

    def __len__(self) -> int:
        return len(self.settings)

    def logits(self, x: Tensor) -> Tensor:
        """Logits without dropout: (B, D) -> (B, K, C)."""
        first = torch.addmm(self.first_bias.value.T, x, self.first.value.T)  # (B, R)
        if self.is_linear:
            return first.view(len(x), len(self), self.label_count)
        return self._output_logits(first.relu_())

    def accumulate(self, x: Tensor, y: Tensor) -> None:
        """Adds the gradient sums and loss sums of a slice of clips: x (B, D), y (B, C) float32."""
        weights = self.first.value if self.kept is None else self.first.value * self.kept
        first = torch.addmm(self.first_bias.value.T, x, weights.T)  # (B, R)
        if self.is_linear:
            to_first = self._loss_gradient(first.view(len(x), len(self), -1), y).view(len(x), -1)
        else:
            to_first = self._backward_from_hidden(first, y)
        self.first.gradient.addmm_(to_first.T, x)
        self.first_bias.gradient.add_(to_first.sum(dim=0).unsqueeze(1))
        for head in range(len(self)):
            self.clips_since_step[head] += len(x)

    def step(self, due: int) -> None:
        """One step of AdamW for the first `due` heads, with the mean gradient since their last step."""
        if self.kept is not None:
            end = self.first.rows(due - 1).stop
            self.first.gradient[:end].mul_(self.kept[:end])
        per_head = []
        for head, settings in enumerate(self.settings[:due]):
            self.steps[head] += 1
            per_head.append(
                (
                    1 - settings.learning_rate * settings.weight_decay,
                    1 / (self.clips_since_step[head] * self.label_count),
                    settings.learning_rate / (1 - BETA_GRADIENT ** self.steps[head]),
                    (1 - BETA_SQUARE ** self.steps[head]) ** -0.5,
                )
            )
            self.clips_since_step[head] = 0
        numbers = torch.tensor(per_head, dtype=torch.float64).T  # (4, due)
        layouts: dict[tuple[int, ...], Tensor] = {}
        for parameter in self.parameters:
            counts = tuple(parameter.rows_per_head[:due])
            if counts not in layouts:
                per_row = numbers.repeat_interleave(torch.tensor(counts), dim=1).unsqueeze(2)
                layouts[counts] = per_row.to(self.first.value)  # (4, rows, 1)
            parameter.step(layouts[counts])
        self._draw_kept_features(due)

    def are_finite(self) -> list[bool]:
        """Which heads hold finite numbers only."""
        finite = torch.ones(len(self), dtype=torch.bool)
        for parameter in self.parameters:
            rows = parameter.value.isfinite().all(dim=1).cpu()
            finite &= torch.stack([rows[parameter.rows(head)].all() for head in range(len(self))])
        flags: list[bool] = finite.tolist()
        return flags

    def take_loss(self) -> list[float]:
        """Each head's loss summed over clips and labels since the last call."""
        sums: list[float] = self.loss.tolist()
        self.loss.zero_()
        return sums

    def keep(self, heads: Sequence[int]) -> None:
        """Drops all other heads; those kept move up in order."""
        if self.kept is not None:
            rows = [self.first.rows(head) for head in heads]
            self.kept = torch.cat([self.kept[r] for r in rows])
        for parameter in self.parameters:
            parameter.keep(heads)
        self.positive_weights = self.positive_weights[list(heads)]
        self.loss = self.loss[list(heads)]
        for name in ("settings", "steps", "clips_since_step", "generators"):
            setattr(self, name, [getattr(self, name)[head] for head in heads])

    def export(self, head: int, mean: Tensor, scale: Tensor) -> LinearHead | MLPHead:
        """A copy of one head as a module on the CPU that standardises by mean and scale, both (D,)."""
        settings, D, C = self.settings[head], self.first.value.shape[1], self.label_count
        module: LinearHead | MLPHead
        rows = self.first.rows(head)
        weight, bias = self.first.value[rows], self.first_bias.value[rows, 0]
        if self.is_linear:
            module = LinearHead(D, C, dropout=settings.dropout)
        else:
            module = MLPHead(D, C, hidden_width=settings.hidden_width, dropout=settings.dropout)
            module.hidden.weight.data.copy_(weight)
            module.hidden.bias.data.copy_(bias)
            weight, bias = self.output.value[rows].T, self.output_bias.value[self.output_bias.rows(head), 0]
        module.output.weight.data.copy_(weight)
        module.output.bias.data.copy_(bias)
        module.standardize.mean.copy_(mean)
        module.standardize.scale.copy_(scale)
        return module.eval()

    def _output_logits(self, hidden: Tensor) -> Tensor:
        rows = [self.output.rows(head) for head in range(len(self))]
        bias = self.output_bias.value.view(len(self), self.label_count)
        return torch.stack([hidden[:, r] @ self.output.value[r] for r in rows], dim=1) + bias

    def _loss_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Weighted binary cross-entropy of logits z (B, K, C): adds the loss, returns d loss / d z.

        Source: Guerriero et al., equation 2, written with logits: w y log(1 + e^-z) + (1 - y) log(1 + e^z).
        """
        y = y.unsqueeze(1)  # (B, 1, C)
        positive = y * self.positive_weights  # (B, K, C)
        either = positive + (1 - y)
        self.loss += (either * softplus(z) - positive * z).sum(dim=(0, 2))
        return torch.sigmoid(z).mul_(either).sub_(positive)

    def _backward_from_hidden(self, first: Tensor, y: Tensor) -> Tensor:
        """From hidden pre-activations (B, R) to the loss's gradient there, through both layers."""
        B = len(first)
        is_on = first > 0
        passed = is_on.to(first.dtype)
        if self.any_dropout:
            for head, settings in enumerate(self.settings):
                noise = torch.rand(B, settings.hidden_width, generator=self.generators[head], device=first.device)
                passed[:, self.first.rows(head)] *= (noise >= settings.dropout) / (1 - settings.dropout)
        hidden = first.mul_(passed)
        to_logits = self._loss_gradient(self._output_logits(hidden), y)  # (B, K, C)
        self.output_bias.gradient.add_(to_logits.sum(dim=0).view(-1, 1))
        to_first = torch.empty_like(hidden)
        for head in range(len(self)):
            rows, ours = self.output.rows(head), to_logits[:, head]
            self.output.gradient[rows].addmm_(hidden[:, rows].T, ours)
            torch.mm(ours, self.output.value[rows].T, out=to_first[:, rows])
        return to_first.mul_(passed)

    def _draw_kept_features(self, due: int) -> None:
        """Linear dropout: which features the first `due` heads see in their next step, one draw for the whole batch.

        A draw per clip would need one product per head (sixty times the time of the shared one). Heads of one batch
        size step together and share a generator.
        """
        if self.kept is None:
            return
        sizes = [settings.batch_size for settings in self.settings[:due]]
        for size in dict.fromkeys(sizes):
            heads = [head for head in range(due) if sizes[head] == size]
            rows = slice(self.first.rows(heads[0]).start, self.first.rows(heads[-1]).stop)
            shares = torch.tensor([self.settings[head].dropout for head in heads]).repeat_interleave(self.label_count)
            shares = shares.unsqueeze(1).to(self.kept)  # (rows, 1)
            noise = torch.rand(self.kept.shape[1], generator=self.generators[heads[0]], device=self.kept.device)
            torch.div(noise >= shares, 1 - shares, out=self.kept[rows])


def _initial_hidden(width: int, feature_width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden weights (H, D) and biases (H, 1), uniform within 1 / sqrt(D) as `torch.nn.Linear` draws them."""
    generator = torch.Generator().manual_seed(seed)
    bound = feature_width**-0.5
    weight = torch.empty(width, feature_width).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(width, 1).uniform_(-bound, bound, generator=generator)
