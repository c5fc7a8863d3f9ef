"""K heads' parameters side by side, so that one product serves them all.

What each head does with the features themselves is a product with some rows of length D: C rows for a linear head, H
for an MLP whose first hidden layer has width H, C outputs and C queries for attention (weighing the frames' logits is
weighing the frames), 3 H for a convolution over three time steps. The rows of all heads form one (R, D) matrix. So a
step is one product (B, D) x (D, R) forward and one (R, B) x (B, D) back, and heads of different widths stack without
padding. What comes between, an MLP's deeper layers included, is small: `_middle` writes it forward, and autograd takes
it back where it is more than a sum.

Heads may come and go between epochs. A head is stepped by itself, on rows that stay in the processor's cache, by the
operator behind `torch.optim.AdamW(fused=True)` (the optimiser's own Python costs three times its arithmetic here).
So batch sizes need not fit each other: a slice ends wherever some head's batch ends, and gradients of the others' are
summed. No step waits for the device.

A head's numbers do not depend on its neighbours, up to the rounding of sums over other slices.

What this is not: a model to keep. `export` copies a head into a plain module of `models.py`.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from heads.data import ROWS_AT_ONCE
from heads.engines.stack_parameters import Member, Parameter, initial_hidden, split_deeper
from heads.engines.teaching import teacher_gradient
from heads.models import Front, Head, build_head, query_count
from heads.settings import WEIGHING, HeadSettings

BETA_GRADIENT, BETA_SQUARE, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's usual constants, those of `torch.optim.AdamW`."""

TAPS = 3
"""Time steps that a temporal head's convolution sees."""

NOISE_VECTORS = 64
"""Length of the noise that feature dropout reads from, in feature widths."""


class HeadStack:
    """Heads of one kind in training, on clips of one view.

    Args:
        kind: Kind of all heads.
        feature_width: D, of the view.
        prior_log_odds: Where output biases start, (C,).
        clip_count: N, clips of an epoch.
        seed: Seed of initial hidden weights and dropout; each head draws the same noise whichever heads train with it.
        device: Where parameters live.
    """

    def __init__(
        self,
        kind: str,
        *,
        feature_width: int,
        prior_log_odds: Tensor,
        clip_count: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.kind = kind
        self.label_count = len(prior_log_odds)
        self.queries = query_count(kind, self.label_count) if kind in WEIGHING else 0
        self.feature_width, self.clip_count, self.seed, self.device = feature_width, clip_count, seed, device
        self.prior_log_odds = prior_log_odds
        self.members: list[Member] = []
        C = self.label_count
        self.first = Parameter(feature_width, decays=True, device=device)
        self.output_bias = Parameter(1, decays=False, device=device)
        self.has_hidden = kind in ("mlp", "temporal")
        self.hidden_bias = Parameter(1, decays=False, device=device)
        self.output = Parameter(C, decays=True, device=device)
        self.deeper = [Parameter(1, decays=decays, device=device) for decays in (True, False)]  # weights, biases
        self.small = [self.output_bias, *([self.hidden_bias, self.output, *self.deeper] if self.has_hidden else [])]
        self.positive_weights = torch.ones(0, C, device=device)
        self.loss = torch.zeros(0, device=device)
        self._effective: Tensor | None = None  # (R, D), the first rows under feature dropout
        self._noise = torch.zeros(0, device=device)
        self._factors: dict[tuple[int, ...], Tensor] = {}
        self._buffer = torch.zeros(0, device=device)

    def __len__(self) -> int:
        return len(self.members)

    def add(self, settings: HeadSettings, positive_weights: Tensor) -> None:
        """Adds an untrained head behind all others, between epochs; positive_weights (C,)."""
        member = Member(settings, self.clip_count, self.device, self.seed)
        widths, C, D = settings.hidden_widths, self.label_count, self.feature_width
        if self.has_hidden:
            taps = TAPS if self.kind == "temporal" else 1
            weight, bias = initial_hidden(widths[0], taps, D, self.seed)
            self.first.append(weight)
            self.hidden_bias.append(bias)
            self.output.append(torch.zeros(widths[-1], C))
            layers = [
                initial_hidden(above, 1, below, self.seed + depth)
                for depth, (below, above) in enumerate(pairwise(widths), 1)
            ]
            for parameter, values in zip(self.deeper, zip(*layers, strict=True) if layers else ((), ()), strict=True):
                parameter.append(torch.cat([torch.zeros(0, 1), *(value.view(-1, 1) for value in values)]))
        else:
            self.first.append(torch.zeros(C + self.queries, D))
        self.output_bias.append(self.prior_log_odds.unsqueeze(1))
        self.members.append(member)
        self.positive_weights = torch.cat([self.positive_weights, positive_weights.to(self.positive_weights)[None]])
        self.loss = torch.zeros(len(self), device=self.device)
        self._bind()

    def remove(self, head: int) -> None:
        """Drops a head, between epochs."""
        for parameter in (self.first, *self.small):
            parameter.remove(head)
        del self.members[head]
        others = [index for index in range(len(self) + 1) if index != head]
        self.positive_weights = self.positive_weights[others]
        self.loss = torch.zeros(len(self), device=self.device)
        self._bind()

    def train(self, x: Tensor, y: Tensor, *, seen: int, teacher: Tensor | None = None) -> None:
        """Trains all heads on the next clips of an epoch.

        Args:
            x: Features of the view, (n, D), or of frames (n, T, D), of any floating dtype.
            y: Targets, (n, C), float32.
            seen: Clips of this epoch that came before.
            teacher: Weights of parts (n, P) that heads with a `teacher_weight` are taught, 0 for samples without.
        """
        clips_at_once = max(1, ROWS_AT_ONCE // (x.shape[1] if x.ndim == 3 else 1))
        for start, stop in self._slices(seen, seen + len(x), clips_at_once):
            here = slice(start - seen, stop - seen)
            self._accumulate(self._as_float(x[here]), y[here], start, None if teacher is None else teacher[here])
            for member in self.members:
                if stop % member.batch_size == 0 or stop == self.clip_count:
                    self._step(member)

    def logits(self, x: Tensor, heads: Sequence[int]) -> Tensor:
        """Logits of some heads without dropout: x (B, ...) float32 -> (B, heads, C)."""
        parameters = (self.first, *self.small)
        if len(heads) == len(self):
            values = [parameter.value for parameter in parameters]
        else:
            values = [torch.cat([p.value[p.rows(head)] for head in heads]) for p in parameters]
        rows, absent = self._rows(x)
        first = (values[0] @ rows.T).T  # faster this way round for the rows of few heads
        return self._middle(first, values[1:], [self.members[head] for head in heads], len(x), absent=absent)

    def take_loss(self) -> list[float]:
        """Each head's mean loss since the last call, over one epoch."""
        sums: list[float] = (self.loss / (self.clip_count * self.label_count)).tolist()
        self.loss.zero_()
        return sums

    def are_finite(self) -> list[bool]:
        """Which heads hold finite numbers only."""
        checks = [
            torch.stack([p.value[p.rows(head)].isfinite().all() for p in (self.first, *self.small)]).all()
            for head in range(len(self))
        ]
        flags: list[bool] = torch.stack(checks).tolist()
        return flags

    def values(self, head: int) -> list[Tensor]:
        """A copy of a head's parameters, for `export`."""
        return [parameter.value[parameter.rows(head)].clone() for parameter in (self.first, *self.small)]

    def export(self, settings: HeadSettings, values: Sequence[Tensor], front: Front) -> Head:
        """What `values` gave, as a module on the CPU behind the front that made the view."""
        C, D, widths = self.label_count, self.feature_width, settings.hidden_widths
        module = build_head(self.kind, deepcopy(front), C, hidden_widths=widths, dropout=settings.dropout)
        first, output_bias = values[:2]
        state = {**module.state_dict(), "output.bias": output_bias[:, 0]}
        if self.has_hidden:
            weight = first.view(-1, widths[0], D).permute(1, 2, 0)
            state["hidden.weight"] = weight.reshape(state["hidden.weight"].shape)
            state["hidden.bias"], state["output.weight"] = values[2][:, 0], values[3].T
            for at, (weight, bias) in enumerate(split_deeper([widths], values[4], values[5])[0]):
                state[f"deeper.{at}.weight"], state[f"deeper.{at}.bias"] = weight, bias
        else:
            state["output.weight"] = first[:C]
            if self.queries:
                state["query"] = first[C:]
        module.load_state_dict(state)
        return module.eval()

    def _bind(self) -> None:
        """Views of each head's rows, so that steps need not look for them; the memory below may have moved."""
        self._factors.clear()
        has_feature_dropout = not self.has_hidden and any(member.settings.dropout for member in self.members)
        self._effective = self.first.value.clone() if has_feature_dropout else None
        if has_feature_dropout and not len(self._noise):
            generator = torch.Generator().manual_seed(self.seed)
            self._noise = torch.rand(NOISE_VECTORS * self.feature_width, generator=generator).to(self.device)
        for head, member in enumerate(self.members):
            member.groups = []
            for decays in (True, False):
                chosen = [p.of_head(head) for p in (self.first, *self.small) if p.decays == decays]
                decay = member.settings.weight_decay if decays else 0.0
                member.groups.append((decay, [list(same) for same in zip(*chosen, strict=True)]))
            if self._effective is not None:
                rows = self.first.rows(head)
                border = rows.start + self.label_count  # attention's queries, behind its outputs, see all features
                stores = (self.first.value, self.first.gradient, self._effective)
                member.dropped = [store[rows.start : border] for store in stores]
                member.undropped = [store[border : rows.stop] for store in stores[::2]]
                if (share := member.settings.dropout) and member.masks is None:
                    member.masks = (self._noise >= share).float().div_(1 - share)
                self._draw_mask(member)

    def _slices(self, start: int, end: int, clips_at_once: int) -> Iterator[tuple[int, int]]:
        """Consecutive (start, stop), cut where any head's batch ends and to so many clips."""
        sizes = {member.batch_size for member in self.members}
        while start < end:
            stop = min(end, start + clips_at_once, *((start // size + 1) * size for size in sizes))
            yield start, stop
            start = stop

    def _as_float(self, x: Tensor) -> Tensor:
        """The slice as float32: itself, or a copy in memory that is used again."""
        if x.dtype == torch.float32:
            return x
        if self._buffer.numel() < x.numel():
            self._buffer = torch.empty(x.numel(), device=self.device)
        return self._buffer[: x.numel()].view(x.shape).copy_(x)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as rows (B, D), or (B * T, D); where parts are weighed, also which are absent (NaN, zero here)."""
        rows = x.reshape(-1, self.feature_width)
        if not self.queries:
            return rows, None
        absent = rows[:, 0].isnan()
        return rows.masked_fill(absent[:, None], 0.0), absent

    def _accumulate(self, x: Tensor, y: Tensor, start: int, teacher: Tensor | None) -> None:
        """Adds the gradients and losses of a slice of clips that begins at `start` of the epoch."""
        if self.has_hidden:
            self._draw_noise(start)
        weights = self.first.value if self._effective is None else self._effective
        rows, absent = self._rows(x)
        first = torch.mm(rows, weights.T)  # (B, R)
        leaves = [parameter.value.detach() for parameter in self.small]
        if self.kind == "linear":  # nothing lies between, and autograd's overhead would count
            z = self._middle(first, leaves, self.members, len(x))  # (B, K, C)
            to_first = self._loss_gradient(z, y, self._one_over_terms(start)).view(len(x), -1)
            to_leaves = [to_first.sum(dim=0).unsqueeze(1)]
        else:
            with torch.enable_grad():
                wanted = [tensor.requires_grad_() for tensor in (first, *leaves)]
                z = self._middle(first, leaves, self.members, len(x), start, absent)
            to_logits = self._loss_gradient(z.detach(), y, self._one_over_terms(start))
            to_first, *to_leaves = torch.autograd.grad(z, wanted, to_logits, materialize_grads=True)  # some are empty
            shares = first.new_tensor([one.settings.teacher_weight for one in self.members])
            if self.queries and teacher is not None and shares.any():
                shares *= self._one_over_terms(start)[:, 0] * self.label_count
                widths = {"queries": self.queries, "root": self.feature_width**-0.5}
                to_first = to_first + teacher_gradient(first.detach(), teacher, absent, shares=shares, **widths)
        self.first.gradient.addmm_(to_first.T, rows)
        for parameter, gradient in zip(self.small, to_leaves, strict=True):
            parameter.gradient.add_(gradient)

    def _middle(
        self,
        first: Tensor,
        small: Sequence[Tensor],
        members: Sequence[Member],
        clips: int,
        start: int | None = None,
        absent: Tensor | None = None,
    ) -> Tensor:
        """From the products with all rows to logits; with hidden dropout where `start` of the slice is given.

        Args:
            first: Products, (B, R), or of frames (B * T, R).
            small: Values of `self.small`, of these heads.
            members: The heads.
            clips: B.
            start: Where in the epoch the slice begins.
            absent: Which parts are to have no weight, (B * T,); None: none of them.

        Returns:
            Logits, (B, K, C).
        """
        K, C = len(members), self.label_count
        bias = small[0].view(K, C)
        if self.kind == "linear":
            return first.view(clips, K, C) + bias
        if self.queries:
            sizes = [C, self.queries]
            values, queries = first.view(clips, -1, K, sum(sizes)).split_with_sizes(sizes, dim=3)  # (B, T, K, ...)
            queries = queries * self.feature_width**-0.5
            if absent is not None:
                queries = queries.masked_fill(absent.view(clips, -1, 1, 1), -torch.inf)
            return (torch.softmax(queries, dim=1) * values).sum(dim=1) + bias
        widths = [member.settings.hidden_widths[0] for member in members]
        last = [member.settings.hidden_widths[-1] for member in members]
        if self.kind == "mlp":
            hidden = torch.split(torch.relu(first + small[1].T), widths, dim=1)
        else:
            biases = torch.split(small[1], widths)
            products = torch.split(first, [TAPS * width for width in widths], dim=1)
            hidden = tuple(
                _convolved(product.view(clips, -1, TAPS, width), bias)
                for product, width, bias in zip(products, widths, biases, strict=True)
            )
        logits = []
        deeper = split_deeper([member.settings.hidden_widths for member in members], *small[3:5])
        for of_head, layers, weight, member in zip(hidden, deeper, torch.split(small[2], last), members, strict=True):
            for matrix, bias_above in layers:
                of_head = torch.relu(of_head @ matrix.T + bias_above)
            if start is not None and member.noise is not None:
                offset = start % member.batch_size
                of_head = of_head * member.noise[offset : offset + clips]
            logits.append(of_head @ weight)
        return torch.stack(logits, dim=1) + bias

    def _loss_gradient(self, z: Tensor, y: Tensor, factors: Tensor) -> Tensor:
        """Weighted binary cross-entropy of logits z (B, K, C): adds the loss, returns d loss / d z times factors.

        Source: Guerriero et al., equation 2, written with logits: w y log(1 + e^-z) + (1 - y) log(1 + e^z).
        """
        y = y.unsqueeze(1)  # (B, 1, C)
        positive = y * self.positive_weights
        either = positive + (1 - y)
        softplus = torch.relu(z).add_(z.abs().neg_().exp_().add_(1).log_())  # torch's own takes three times as long
        self.loss += (either * softplus - positive * z).sum(dim=(0, 2))
        return torch.sigmoid(z).mul_(either).sub_(positive).mul_(factors)

    def _one_over_terms(self, start: int) -> Tensor:
        """One over the terms in the loss of each head's batch that `start` lies in, (K, 1)."""
        sizes = [member.batch_size for member in self.members]
        clips = tuple(min(size, self.clip_count - start // size * size) for size in sizes)
        if clips not in self._factors:
            factors = torch.tensor(clips, dtype=torch.float64).mul_(self.label_count).reciprocal_()
            self._factors[clips] = factors.float().unsqueeze(1).to(self.device)
        return self._factors[clips]

    def _step(self, member: Member) -> None:
        """One step of AdamW; source: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101, algorithm 2."""
        if member.mask is not None:
            member.dropped[1].mul_(member.mask)
        member.steps += 1
        member.step_count.add_(1)
        for decay, (values, gradients, means, squares) in member.groups:
            torch._fused_adamw_(
                values,
                gradients,
                means,
                squares,
                [],
                [member.step_count] * len(values),
                lr=member.settings.learning_rate,
                beta1=BETA_GRADIENT,
                beta2=BETA_SQUARE,
                weight_decay=decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
            for gradient in gradients:
                gradient.zero_()
        if self._effective is not None:
            self._draw_mask(member)

    def _draw_mask(self, member: Member) -> None:
        """Which features a head sees in its next step, one draw for the whole batch.

        A draw per clip would need one product per head (sixty times the time of the shared one). The draw is a
        stretch of one long mask, from a place that the number of the step gives: fresh noise would take longer than
        the step.
        """
        value, _, effective = member.dropped
        if self.queries:
            member.undropped[1].copy_(member.undropped[0])
        if member.masks is None:
            effective.copy_(value)
            return
        start = member.steps * 2654435761 % (len(member.masks) - self.feature_width)
        member.mask = member.masks[start : start + self.feature_width]
        torch.mul(value, member.mask, out=effective)

    def _draw_noise(self, start: int) -> None:
        """At the start of a batch: which hidden units each of its clips keeps."""
        for member in self.members:
            share, size = member.settings.dropout, member.batch_size
            if share and start % size == 0:
                shape = (min(size, self.clip_count - start), member.settings.hidden_widths[-1])
                noise = torch.rand(shape, generator=member.generator, device=self.device)
                member.noise = (noise >= share).float().div_(1 - share)


def _convolved(products: Tensor, bias: Tensor) -> Tensor:
    """Sums what a convolution's taps give for each frame, then ReLU and mean: (B, T, taps, H), (H, 1) -> (B, H)."""
    before, here, after = products.unbind(dim=2)  # what a frame adds to the next one, to itself, to the one before
    summed = here + pad(before[:, :-1], (0, 0, 1, 0)) + pad(after[:, 1:], (0, 0, 0, 1))
    return torch.relu(summed + bias.T).mean(dim=1)
