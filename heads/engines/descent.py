"""Many L2-penalised logistic regressions on the same features, by one preconditioned L-BFGS.

Problem k minimises, over weights w (W,) and an unpenalised bias b, with logits z = X w + b,

    sum over clips of (weight * softplus(z) - weighted_target * z) + (l2 / 2) w' P w

which holds every weighting of binary cross-entropy: for a clip of target t, weight m (0 leaves the
clip out; 1 / N gives the mean) and positive weight p, weight = m (p t + 1 - t), the sum of the weights of its two
terms, and weighted_target = m p t. P may penalise some directions more than others.

Notable choices:

- All problems share one product forward and one back per step, and nothing else. A problem that has converged leaves,
  and waiting ones take its place; the weakest penalties, which take longest, begin first.
- The preconditioner is the Hessian as it would be were curvature equal over clips: h * (variance along each principal
  axis) + l2 * P, with h the problem's total curvature. It is renewed in each step and costs no product with X.
- The line search costs no product with X either (`line_search.py`).
- A problem has converged when the decrease that the quasi-Newton model still predicts is at most `tolerance` times the
  objective. Measured, problems were then within three times that of their optimum, but nearly separable ones, whose
  curvature rests on a few clips, within up to 90 times. So where less than 1e-5 is asked for, the decrease must be that
  of a Newton step, solved by preconditioned conjugate gradients; if it is more, the step is taken. A relative gradient
  norm says less: at l2 = 1e-4, one of 1e-3 left the objective at 1.6 times its optimum.
- Problems that precision or patience end before that are marked, with their gradient; nothing is hidden.

Source of L-BFGS: Liu and Nocedal, 1989. What this is not: the place that knows labels, grids and folds (`convex.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from heads.engines.basis import Scaling
from heads.engines.line_search import line_search

PROBLEMS_AT_ONCE = 256
"""Problems in work at a time. Beyond X, memory is about 6 N + 22 W numbers for each."""

PAIRS = 8
"""Steps that L-BFGS remembers."""

NEWTON_BELOW = 1e-5
"""Tolerance below which Newton steps say what has converged."""

_CG_STEPS, _CG_RESIDUAL = 50, 0.1  # at most; of the gradient, both in the preconditioner's norm
_PROBLEMS_IN_CACHE = 8

Precondition = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Gradients (k, 1 + W), bias first, curvatures (k,) and l2 (k,) -> about the Hessian's inverse times them."""


@dataclass(frozen=True, eq=False)
class Solutions:
    """What was found for each of K problems.

    Attributes:
        point: Bias, then weights, shape (K, 1 + W).
        objective: Shape (K,).
        decrement: Decrease of the objective that was still predicted, shape (K,).
        gradient_norm: Euclidean, of bias and weights, shape (K,).
        iterations: Steps taken, shape (K,).
        converged: Shape (K,), bool.
    """

    point: Tensor
    objective: Tensor
    decrement: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor


@dataclass
class _Batch:
    """The problems in work; every tensor has a row for each."""

    ids: Tensor
    point: Tensor  # (k, 1 + W)
    logits: Tensor  # (k, N)
    weight: Tensor  # (k, N)
    weighted_target: Tensor  # (k, N)
    l2: Tensor
    penalised: Tensor  # (k, W), P w
    gradient: Tensor  # (k, 1 + W)
    curvature: Tensor  # (k,), sum over clips of weight * s (1 - s)
    objective: Tensor  # (k,), of this or an earlier point: never too low
    iterations: Tensor
    failures: Tensor  # line searches without a step, in a row
    steps: list[Tensor]  # (k, 1 + W) each
    changes: list[Tensor]  # of the gradient, (k, 1 + W) each
    inverses: list[Tensor]  # 1 / (step . change), (k,) each; 0 where the pair counts for nothing

    def keep(self, rows: Tensor) -> None:
        """Drops all problems but these."""
        for field in fields(self):
            value = getattr(self, field.name)
            setattr(self, field.name, [of[rows] for of in value] if isinstance(value, list) else value[rows])

    def join(self, fresh: "_Batch") -> None:
        """Adds problems that have no pairs yet."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(fresh, field.name)
            if isinstance(ours, list):
                blank = [of.new_zeros(len(fresh.ids), *of.shape[1:]) for of in ours]
                setattr(self, field.name, [torch.cat(pair) for pair in zip(ours, blank, strict=True)])
            else:
                setattr(self, field.name, torch.cat([ours, theirs]))

    def forget(self, rows: Tensor) -> None:
        """Drops the pairs of some problems."""
        for inverse in self.inverses:
            inverse[rows] = 0


@torch.no_grad()
def solve_problems(
    X: Tensor,
    *,
    l2: Tensor,
    start_bias: Tensor,
    same_loss: Tensor,
    loss_weights: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    precondition: Precondition,
    penalise: Scaling,
    tolerance: float,
    max_iterations: int,
) -> Solutions:
    """Solves K problems.

    Args:
        X: Features, shape (N, W).
        l2: Penalties, shape (K,), positive.
        start_bias: Biases to begin with, shape (K,); weights begin at zero.
        same_loss: Group ids, shape (K,): problems of one id differ in l2 alone.
        loss_weights: Numbers of k problems -> their weights, weighted targets, and what is added to their logits, each
            (k, N), of X's dtype.
        precondition: See `Precondition`.
        penalise: P.
        tolerance: Bound on the predicted decrease, relative to the objective.
        max_iterations: Most iterations of each problem.

    Returns:
        What was found, in the order of the problems.
    """
    K, W = len(l2), X.shape[1]
    found = Solutions(
        point=X.new_zeros(K, 1 + W),
        objective=X.new_zeros(K),
        decrement=X.new_zeros(K),
        gradient_norm=X.new_zeros(K),
        iterations=torch.zeros(K, dtype=torch.int64, device=X.device),
        converged=torch.zeros(K, dtype=torch.bool, device=X.device),
    )
    waiting = torch.argsort(l2, stable=True)
    batch: _Batch | None = None
    while True:
        room = PROBLEMS_AT_ONCE - (0 if batch is None else len(batch.ids))
        if len(waiting) and (batch is None or room >= PROBLEMS_AT_ONCE // 4):
            fresh = _started(X, waiting[:room], l2, start_bias, same_loss, loss_weights)
            waiting = waiting[room:]
            if batch is None:
                batch = fresh
            else:
                batch.join(fresh)
        if batch is None:
            return found
        direction, slope = _direction(batch, precondition)
        ending = (batch.iterations >= max_iterations) | (batch.failures > 1)
        converged = _has_converged(batch, -slope / 2, tolerance, ending)
        if tolerance < NEWTON_BELOW and converged.any():
            _newton(batch, X, converged.nonzero()[:, 0], precondition, penalise, direction, slope)
            converged &= _has_converged(batch, -slope / 2, tolerance, ending)
        leaving = converged | ending
        if leaving.any():
            ids = batch.ids[leaving]
            found.point[ids] = batch.point[leaving]
            found.objective[ids] = batch.objective[leaving]
            found.decrement[ids] = -slope[leaving] / 2
            found.gradient_norm[ids] = batch.gradient[leaving].norm(dim=1)
            found.iterations[ids] = batch.iterations[leaving]
            found.converged[ids] = converged[leaving]
            batch.keep(~leaving)
            if not len(batch.ids):
                batch = None
                continue
            direction, slope = direction[~leaving], slope[~leaving]
        _step(batch, X, penalise, direction, slope)


def _started(
    X: Tensor,
    ids: Tensor,
    l2: Tensor,
    start_bias: Tensor,
    same_loss: Tensor,
    loss_weights: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
) -> _Batch:
    """Problems at their beginning, where those of the same loss have one gradient: the penalty has none at zero."""
    weight, weighted_target, added = loss_weights(ids)
    point = X.new_zeros(len(ids), 1 + X.shape[1])
    point[:, 0] = start_bias[ids]
    logits = point[:, :1].repeat(1, len(X)) + added
    scores = torch.sigmoid(logits)
    numbers, kind = torch.unique(same_loss[ids], return_inverse=True)
    of_kind = torch.empty_like(numbers).scatter_(0, kind, torch.arange(len(ids), device=ids.device))
    residual = scores[of_kind] * weight[of_kind] - weighted_target[of_kind]
    batch = _Batch(
        ids=ids,
        point=point,
        logits=logits,
        weight=weight,
        weighted_target=weighted_target,
        l2=l2[ids],
        penalised=point[:, 1:].clone(),
        gradient=torch.cat([residual.sum(dim=1, keepdim=True), residual @ X], dim=1)[kind],
        curvature=(scores * (1 - scores) * weight).sum(dim=1),
        objective=X.new_zeros(len(ids)),
        iterations=torch.zeros_like(ids),
        failures=torch.zeros_like(ids),
        steps=[],
        changes=[],
        inverses=[],
    )
    batch.objective = _objectives(batch, torch.ones_like(ids, dtype=torch.bool))
    return batch


def _gradient(X: Tensor, residual: Tensor, penalised: Tensor, l2: Tensor) -> Tensor:
    of_weights = torch.addcmul(residual @ X, penalised, l2[:, None])
    return torch.cat([residual.sum(dim=1, keepdim=True), of_weights], dim=1)


def _objectives(batch: _Batch, rows: Tensor) -> Tensor:
    """Of some problems at their present point; exact where logits are large and the loss is small.

    log(1 + e) is taken as log(u) e / (u - 1) with u = 1 + e rounded, as exact as `log1p` and three times as fast.
    """
    z, weight = batch.logits[rows], batch.weight[rows]
    e = torch.exp(-z.abs())
    u = 1 + e
    losses = weight * torch.where(u == 1, e, u.log() * e / (u - 1)) + (
        weight * z.clamp(min=0) - batch.weighted_target[rows] * z
    )
    penalties: Tensor = torch.linalg.vecdot(batch.point[rows, 1:], batch.penalised[rows])
    return losses.sum(dim=1) + batch.l2[rows] / 2 * penalties


def _has_converged(batch: _Batch, decrement: Tensor, tolerance: float, ending: Tensor) -> Tensor:
    """Asks for a problem's objective only if it ends, or where its last known one, which is higher, would do."""
    rows = ending | (decrement <= tolerance * batch.objective)
    if rows.any():
        batch.objective[rows] = _objectives(batch, rows)
    return (decrement >= 0) & (decrement <= tolerance * batch.objective)


def _direction(batch: _Batch, precondition: Precondition) -> tuple[Tensor, Tensor]:
    """Where to go (k, 1 + W), by the two-loop recursion, and the objective's slope there (k,), negative or zero."""
    q = -batch.gradient
    weights = []
    for step, change, inverse in zip(batch.steps[::-1], batch.changes[::-1], batch.inverses[::-1], strict=True):
        weights.append(inverse * torch.linalg.vecdot(step, q))
        q.addcmul_(weights[-1][:, None], change, value=-1)
    q = precondition(q, batch.curvature, batch.l2)
    for step, change, inverse in zip(batch.steps, batch.changes, batch.inverses, strict=True):
        q.addcmul_((weights.pop() - inverse * torch.linalg.vecdot(change, q))[:, None], step)
    slope = torch.linalg.vecdot(batch.gradient, q)
    rises = ~(slope <= 0)
    if rises.any():
        batch.forget(rises)
        q[rises] = precondition(-batch.gradient[rises], batch.curvature[rises], batch.l2[rises])
        slope = torch.linalg.vecdot(batch.gradient, q)
    return q, slope


def _newton(
    batch: _Batch,
    X: Tensor,
    rows: Tensor,
    precondition: Precondition,
    penalise: Scaling,
    direction: Tensor,
    slope: Tensor,
) -> None:
    """Puts the Newton step of some problems in the place of their direction and slope, by conjugate gradients."""
    l2, curvature, gradient = batch.l2[rows], batch.curvature[rows], batch.gradient[rows]
    scores = torch.sigmoid(batch.logits[rows])
    weights = scores * (1 - scores) * batch.weight[rows]
    d, residual = torch.zeros_like(gradient), -gradient
    towards = precondition(residual, curvature, l2)
    aim = towards.clone()
    size = first = torch.linalg.vecdot(residual, towards)
    for _ in range(_CG_STEPS):
        curved = weights * torch.addmm(aim[:, :1], aim[:, 1:], X.T)  # (k, N)
        of_aim = _gradient(X, curved, penalise(aim[:, 1:]), l2)  # the Hessian times it
        along = torch.linalg.vecdot(aim, of_aim)
        length = torch.where((along > 0) & (size > _CG_RESIDUAL**2 * first), size / along, 0)[:, None]
        if not length.any():
            break
        d.addcmul_(length, aim)
        residual.addcmul_(length, of_aim, value=-1)
        towards = precondition(residual, curvature, l2)
        before, size = size, torch.linalg.vecdot(residual, towards)
        aim = torch.addcmul(towards, (size / before)[:, None], aim)
    of_d = torch.linalg.vecdot(gradient, d)
    falls = of_d < 0
    direction[rows[falls]], slope[rows[falls]] = d[falls], of_d[falls]


def _step(batch: _Batch, X: Tensor, penalise: Scaling, direction: Tensor, slope: Tensor) -> None:
    """One line search and one new gradient for all problems."""
    direction_logits = torch.addmm(direction[:, :1], direction[:, 1:], X.T)  # (k, N)
    penalised = penalise(direction[:, 1:])
    penalty_curvature = batch.l2 * torch.linalg.vecdot(direction[:, 1:], penalised)
    penalty_slope = batch.l2 * torch.linalg.vecdot(batch.penalised, direction[:, 1:])
    residual, length = torch.empty_like(direction_logits), torch.empty_like(slope)
    at_once = _PROBLEMS_IN_CACHE if X.device.type == "cpu" else len(slope)
    for first in range(0, len(slope), at_once):
        here = slice(first, first + at_once)
        length[here] = line_search(
            batch.logits[here],
            direction_logits[here],
            batch.weight[here],
            batch.weighted_target[here],
            penalty_slope[here],
            penalty_curvature[here],
            slope[here],
            residual[here],
            batch.curvature[here],
        )
    failed = length == 0
    batch.forget(failed)
    batch.failures = torch.where(failed, batch.failures + 1, 0)
    batch.iterations += 1
    batch.penalised.addcmul_(length[:, None], penalised)
    step = direction.mul_(length[:, None])
    batch.logits.addcmul_(length[:, None], direction_logits)
    batch.point += step
    gradient = _gradient(X, residual, batch.penalised, batch.l2)
    change = gradient - batch.gradient
    batch.gradient = gradient
    product = torch.linalg.vecdot(step, change)
    batch.steps.append(step)
    batch.changes.append(change)
    batch.inverses.append(torch.where(product > 0, 1 / product, 0))
    if len(batch.steps) > PAIRS:
        for of_pairs in (batch.steps, batch.changes, batch.inverses):
            del of_pairs[0]
