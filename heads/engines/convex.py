"""The convex engine: linear heads of a whole grid of penalties and positive weights, each at its optimum.

For each label on its own, a head minimises

    mean over clips of [-p t log s - (1 - t) log(1 - s)] + (l2 / 2) w' P w,    s = sigmoid(x w + b),

with p = (negatives / positives)^exponent (Guerriero et al., equation 2), t the target, x
the normalised feature, and the bias b free. P scales each principal direction of the features by
(mean variance / its variance)^variance_exponent. At 0 it is the identity, and with N clips that is l2 times the
objective of scikit-learn's `LogisticRegression(C=1 / (N * l2))` with p as the sample weight of positives; above 0,
directions in which features hardly vary are penalised more, which is a soft choice of principal components.

Notable choices:

- Every (point of the grid, label, fold) is a problem of one solve (`descent.py`); labels and points share each pass.
- Folds are problems in which held-out clips weigh nothing and are not counted in p or N. Normalisation comes from all
  training clips and reads no label, so each fold's solution is exactly the optimum on the fold's clips of the features
  so normalised.
- Where heads depend on principal axes and sessions are few (folds are assigned several times), each fold has the axes
  of its own training clips, and a solve of its own: along axes that they helped to find, held-out clips score better
  than new ones do. On 2,048 features exponent 1 led exponent 0 out of fold by .024 to .039 more than on unseen sessions
  at 8 sessions, and by .020 to .027 at 14; with own axes by -.007 to .003 at 8. At 51 sessions it is .002 with axes of
  all (standard error .003).
- Folds begin from the prior, not from the head of all clips, which has seen what is held out: a problem that stopped
  short of its optimum would remember it.
- A head may have a prior w0, such as the weights that words make (`zeroshot/words.py`): the penalty is then on w - w0.
  Solved for w - w0, with X w0 added to the logits.
- Labels share no parameter, so a head may take each from its own point of the grid.

Source of penalties by eigenvalue: Hoerl and Kennard, 1970 (generalised ridge regression); Goldstein and Smith, 1974.

What this is not: a choice among the points (`search/grid_choice.py`), or a reader of files.
"""

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.errors import SettingsError, TrainingDataError
from heads.data import row_blocks
from heads.engines.basis import Basis, scale_directions
from heads.engines.descent import Precondition, Solutions, solve_problems
from heads.engines.training_clips import Features, as_tensor
from heads.models import LinearHead

Choice = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.integer]


@dataclass(frozen=True)
class GridPoint:
    """The fields of `HeadSettings` that a problem of the grid has."""

    l2: float
    positive_weight_exponent: float


def grid_points(*, l2: Sequence[float], positive_weight_exponent: Sequence[float]) -> tuple[GridPoint, ...]:
    """Every combination, the strongest penalties first: of points that score alike, the first is chosen."""
    return tuple(GridPoint(*values) for values in itertools.product(sorted(l2, reverse=True), positive_weight_exponent))


@dataclass(frozen=True, eq=False)
class ConvexGrid:
    """The heads of G points and C labels, and how well each is known.

    Attributes:
        basis: The features they were fitted on.
        points: The G points.
        components: P, the principal components they read; 0 if all D features.
        weights: Shape (G, C, P or D), in the basis' precision.
        bias: Shape (G, C); for features centred by the basis.
        objective: Shape (G, C).
        decrement: How much the objective would still fall, as predicted, shape (G, C).
        gradient_norm: Euclidean, of weights and bias, shape (G, C).
        iterations: Shape (G, C).
        converged: Shape (G, C).
        out_of_fold: Each training clip's probability by the heads that did not see its fold, shape (R, G, N, C) for R
            assignments to folds; NaN for a label that some fold's training clips have never or always. Without folds,
            R is 0.
        folds_converged: Whether these problems converged, (R F, G, C); a label that cannot be learned counts as such.
    """

    basis: Basis
    points: tuple[GridPoint, ...]
    components: int
    weights: Tensor
    bias: Tensor
    objective: npt.NDArray[np.float64]
    decrement: npt.NDArray[np.float64]
    gradient_norm: npt.NDArray[np.float64]
    iterations: npt.NDArray[np.int64]
    converged: Mask
    out_of_fold: Scores
    folds_converged: Mask

    @torch.no_grad()
    def scores(self, X: Features) -> Scores:
        """Each label's probability by every point's head.

        Args:
            X: Features as stored, shape (n, D), float16, bfloat16 or float32.

        Returns:
            Shape (G, n, C).
        """
        G, C, W = self.weights.shape
        stored, like = as_tensor(X), self.basis.X
        front = self.basis.rotated_front(self.components).to(like)
        scores = np.empty((G, len(stored), C), np.float32)
        for rows in row_blocks(len(stored)):
            x = front(stored[rows].to(like))
            z = torch.addmm(self.bias.reshape(-1), x, self.weights.reshape(-1, W).T)  # (n, G C)
            scores[:, rows] = torch.sigmoid(z).reshape(-1, G, C).transpose(0, 1).cpu().numpy()
        return scores

    @torch.no_grad()
    def head(self, choice: Choice) -> LinearHead:
        """The head that takes label c from point `choice[c]`; it reads features as they are stored.

        Raises:
            SettingsError: If one of them has not converged.
        """
        labels = np.arange(self.weights.shape[1])
        missing = [f"label {c} at {self.points[g]}" for c, g in enumerate(choice) if not self.converged[g, c]]
        if missing:
            raise SettingsError(
                f"a head must be made of problems that converged, but these did not: {'; '.join(missing)}. "
                "Choose among `converged`, raise max_iterations, or leave the smallest penalties out."
            )
        weights, bias = self.weights[choice, labels].cpu(), self.bias[choice, labels].cpu()
        if self.components:
            front = self.basis.rotated_front(self.components)
        else:  # the front as it is: the bias takes the centre up
            front = deepcopy(self.basis.front)
            bias = bias.double() - weights.double() @ self.basis.center.cpu().double()
        head = LinearHead(front, len(labels))
        head.output.weight.copy_(weights)
        head.output.bias.copy_(bias)
        return head.eval()


@torch.no_grad()
def solve_grid(
    basis: Basis,
    Y: Targets,
    points: Sequence[GridPoint],
    *,
    components: int = 0,
    variance_exponent: float = 0.0,
    prior: npt.NDArray[np.floating] | None = None,
    fold_of: npt.NDArray[np.integer] | None = None,
    excluded: Mask | None = None,
    wanted: Mask | None = None,
    folds_alone: bool = False,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> ConvexGrid:
    """Fits the heads of all points and labels on all training clips, and without each fold where there are folds.

    Args:
        basis: Basis of the N training clips' features.
        Y: Their targets, shape (N, C), 0 or 1, rows as the basis was given them.
        points: The G points.
        components: P, principal components that heads read; 0 for all features.
        variance_exponent: How penalties follow the variances; see the top of this file.
        prior: Weights that heads are penalised towards, of features as stored, shape (C, D); zeros by default.
        fold_of: Fold of each clip, from `session_folds`, shape (N,), or (R, N) of R assignments to as many folds.
        excluded: Clips that touch held-out ones and are left out of a fold's training too, shape (F, N) or (R, F, N).
        wanted: The points and labels to solve, shape (G, C); all by default. The others are NaN and not converged.
        folds_alone: Leave out the heads of all clips, which are then NaN and not converged.
        tolerance: A problem has converged when its objective can fall by this share at most, as predicted; below 1e-5
            by Newton's method, otherwise by the quasi-Newton model.
        max_iterations: Most Newton iterations of each problem.

    Returns:
        The grid, with what did not converge marked.

    Raises:
        TrainingDataError: If a label is never or always on, or Y has another number of clips.
        SettingsError: If there is no point, a penalty is not positive, or the basis has fewer components.
    """
    _check(basis, Y, points, components)
    assignments = np.empty((0, len(Y)), np.int64) if fold_of is None else np.atleast_2d(fold_of)  # (R, N)
    in_part = _parts(assignments, excluded)
    counts, positives = in_part.sum(axis=1), in_part.astype(np.int64) @ Y.astype(np.int64)
    learnable = _learnable(positives, counts)
    part, label, point = (index.ravel() for index in np.indices((len(in_part), Y.shape[1], len(points))))
    asked = learnable[part, label] & (True if wanted is None else wanted[point, label]) & (part >= folds_alone)
    part, label, point = part[asked], label[asked], point[asked]

    exponent, l2 = (
        np.array([getattr(of, name) for of in points])[point] for name in ("positive_weight_exponent", "l2")
    )
    clips, on = counts[part], positives[part, label]
    positive_weight = ((clips - on) / on) ** exponent
    start_bias = np.log(positive_weight * on / (clips - on))
    same_loss = np.unique(np.stack([part, label, exponent], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    targets = torch.from_numpy(Y.T.astype(np.int8)).to(basis.X)  # (C, N)
    masks = torch.from_numpy(in_part / counts[:, None]).to(basis.X)  # (1 + R F, N)

    def solved(basis: Basis, problems: Mask) -> Solutions:
        """The optima of some problems, along the axes of a basis."""
        X = basis.read(components)
        at = None if prior is None else basis.weights_of(torch.from_numpy(prior), components)  # (C, W)
        added = X.new_zeros(1, 1) if at is None else at @ X.T  # (C, N)
        kind, label_of, part_of = (torch.from_numpy(of[problems]).to(X.device) for of in (same_loss, label, part))
        penalty, bias, weight_of = (torch.from_numpy(of[problems]).to(X) for of in (l2, start_bias, positive_weight))

        def loss_weights(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            t = targets[label_of[ids]]
            mask, weighted = masks[part_of[ids]], weight_of[ids, None] * t
            return mask * (weighted + 1 - t), mask * weighted, added if at is None else added[label_of[ids]]

        found = solve_problems(
            X,
            l2=penalty,
            start_bias=bias,
            same_loss=kind,
            loss_weights=loss_weights,
            precondition=_preconditioner(basis, components, variance_exponent),
            penalise=basis.scaling(-variance_exponent, components),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        if at is not None:
            found.point[:, 1:] += at[label_of]
        return found

    bases = [basis] * len(in_part)
    if len(assignments) > 1 and (variance_exponent or 0 < components < basis.axes.shape[1]):
        bases[1:] = [basis.of_clips(own) for own in torch.from_numpy(in_part[1:]).to(basis.X.device)]
        found = _joined([solved(own, part == at) for at, own in enumerate(bases) if (part == at).any()])
    else:
        found = solved(basis, np.ones(len(part), bool))
    shape = (len(in_part), Y.shape[1], len(points))
    return _grid(bases, points, components, found, asked, assignments, shape)


def _parts(assignments: npt.NDArray[np.integer], excluded: Mask | None) -> Mask:
    """Who trains: all clips, then those of each fold's training, (1 + R F, N)."""
    everyone = np.ones((1, assignments.shape[1]), bool)
    if not len(assignments):
        return everyone
    in_fold = assignments[:, None] == np.arange(assignments.max() + 1)[:, None]  # (R, F, N)
    left_out = (in_fold if excluded is None else in_fold | excluded).reshape(-1, assignments.shape[1])
    return np.concatenate([everyone, ~left_out])


def _learnable(positives: Choice, counts: Choice) -> Mask:
    """Which labels can be learned from all clips and, if from every fold's, from folds: (1 + R F, C)."""
    learnable: Mask = (positives > 0) & (positives < counts[:, None])
    if not learnable[0].all():
        raise TrainingDataError(
            f"each label must be on in some training clips and off in others, but of {counts[0]} clips "
            f"{positives[0].tolist()} are on, label by label. Leave such labels out."
        )
    learnable &= learnable.all(axis=0)
    learnable[0] = True
    return learnable


def _joined(parts: Sequence[Solutions]) -> Solutions:
    """Problems that were solved apart, in their order."""
    return Solutions(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Solutions)))


def _check(basis: Basis, Y: Targets, points: Sequence[GridPoint], components: int) -> None:
    if Y.ndim != 2 or len(Y) != len(basis.X):
        raise TrainingDataError(
            f"targets must be (N, C) for the basis' {len(basis.X)} clips, but have shape {Y.shape}. "
            "Take both from the same rows."
        )
    if not points or not all(point.l2 > 0 for point in points):
        raise SettingsError(
            "a grid must have points of positive l2, but these were given: "
            f"{', '.join(map(str, points)) or 'none'}. Without a penalty there may be no optimum."
        )
    if not 0 <= components <= basis.axes.shape[1]:
        raise SettingsError(
            f"components must be from 0 to the basis' {basis.axes.shape[1]}, but it is {components}. "
            "Fit the basis with more, if the features' rank has them."
        )


def _preconditioner(basis: Basis, components: int, variance_exponent: float) -> Precondition:
    """The inverse of (curvature * covariance + l2 * P), with both known along the axes and flat beyond them."""
    variances, rest = basis.variances, basis.rest_variance
    penalty_on_axes, penalty_off_axes = (of**-variance_exponent for of in basis.relative_variances())
    axes = None if components else basis.axes

    def precondition(gradient: Tensor, curvature: Tensor, l2: Tensor) -> Tensor:
        h = curvature.clamp(min=torch.finfo(curvature.dtype).tiny)[:, None]
        of_axes, flat = h * variances + l2[:, None] * penalty_on_axes, h * rest + l2[:, None] * penalty_off_axes
        if not rest and variances.numel():  # nothing lies beyond the axes but rounding, which no factor may blow up
            flat = of_axes.amax(dim=1, keepdim=True)
        of_weights = scale_directions(gradient[:, 1:], axes, 1 / of_axes[:, : components or None], 1 / flat)
        return torch.cat([gradient[:, :1] / h, of_weights], dim=1)

    return precondition


def _grid(
    bases: Sequence[Basis],
    points: Sequence[GridPoint],
    components: int,
    found: Solutions,
    asked: Mask,
    assignments: npt.NDArray[np.integer],
    shape: tuple[int, int, int],
) -> ConvexGrid:
    """Solutions, which run over (part, label, point) where asked, as arrays over (point, label)."""
    parts, C, G = shape

    def spread(values: Tensor, fill: float) -> Tensor:
        full = values.new_full((parts * C * G, *values.shape[1:]), fill)
        full[torch.from_numpy(asked).to(values.device)] = values
        return full.reshape(parts, C, G, *values.shape[1:]).transpose(1, 2)  # (1 + R F, G, C, ...)

    def of_all(values: Tensor) -> npt.NDArray[np.float64]:
        return np.asarray(spread(values, 0)[0].double().cpu().numpy())

    point = spread(found.point, torch.nan)
    converged = spread(found.converged, True).cpu().numpy()
    out_of_fold = np.full((len(assignments), G, len(bases[0].X), C), np.nan, np.float32)
    for part in range(parts - 1):
        repeat, fold = divmod(part, (parts - 1) // len(assignments))
        held_out = np.flatnonzero(assignments[repeat] == fold)
        X = bases[1 + part].read(components)
        solved = asked.reshape(parts, C, G)[1 + part].T.ravel()  # (G C,)
        of_part = point[1 + part].reshape(G * C, -1)[torch.from_numpy(solved).to(X.device)]
        z = of_part[:, :1] + of_part[:, 1:] @ X[torch.from_numpy(held_out).to(X.device)].T  # (solved, n)
        scores = np.full((G * C, len(held_out)), np.nan, np.float32)
        scores[solved] = torch.sigmoid(z).cpu().numpy()
        out_of_fold[repeat, :, held_out] = scores.reshape(G, C, -1).transpose(2, 0, 1)
    return ConvexGrid(
        basis=bases[0],
        points=tuple(points),
        components=components,
        weights=point[0, :, :, 1:].contiguous(),
        bias=point[0, :, :, 0].contiguous(),
        objective=of_all(found.objective),
        decrement=of_all(found.decrement),
        gradient_norm=of_all(found.gradient_norm),
        iterations=of_all(found.iterations).astype(np.int64),
        converged=converged[0] & asked.reshape(shape)[0].T,
        out_of_fold=out_of_fold,
        folds_converged=converged[1:],
    )
