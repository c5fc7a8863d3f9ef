"""A head fitted again without named clusters of tokens: what `featurecache shortcuts --ignore` calls.

Notable choices: from the clips' features the direction of each cluster's mean token is projected out before the fit
(linear concept erasure, with the direction known), and the projection is multiplied into the head's weights. So the
bundle is a linear head like others, needs no tokens to predict, and its weights are orthogonal to each direction:
tokens at a cluster's centre add exactly nothing to any label in the place of usual ones. What other tokens have seen of
the cluster by attention stays, as far as it lies in other directions.

Settings are those of the audited head, so the out-of-fold scores before and after are of the same folds. The test split
is not read: `featurecache evaluate runs/ignoring/bundle --against ...` tells what it does there.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.errors import BundleError, SettingsError, UsageError
from featurecache.project.settings import Project
from featurecache.workflow.withdrawal import SHORTCUTS
from heads.bundle import Bundle, load_bundle
from heads.data import LabelledSplit
from heads.runs import HeldOut, write_run
from heads.scoring.metrics import average_precision
from heads.workflow.data import data_of_head, training_device, tuned_bundle
from heads.workflow.retraining import compared, held_out_scores
from heads.workflow.shortcuts import CENTRES_NAME
from heads.workflow.training import TimelineChoice

RUN = "ignoring"
"""The run's folder."""


@dataclass(frozen=True, eq=False)
class Ignoring:
    """A head that was fitted without clusters.

    Attributes:
        bundle: Its folder.
        audited: The folder of the bundle whose settings it has.
        clusters: Numbers of the clusters.
        result: JSON-ready: `before` and `after`, each with `macro_f1` and `macro_f1_ci95`; `comparison`, as
            `paired_comparison`; `clips`, `sessions`; and `average_precision`, label -> split -> before and after.
    """

    bundle: Path
    audited: Path
    clusters: tuple[int, ...]
    result: Mapping[str, Any]

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache shortcuts --ignore --json`."""
        return {"bundle": str(self.bundle), "ignored": list(self.clusters), **self.result}


def ignore(project: Project, clusters: Sequence[int], *, bundle: Path | None = None) -> Ignoring:
    """Fits a bundle's settings without clusters of its last audit, into `runs/ignoring/`.

    Args:
        project: The project.
        clusters: Numbers of clusters, as `shortcuts` lists them.
        bundle: The bundle's folder, as it was audited; None: the one of `tune`.

    Raises:
        BundleError: If the bundle is missing, or another than was audited.
        UsageError: If a number is negative.
        SettingsError: If there is no such cluster.
        MissingFeaturesError: If the cache lacks a clip.
    """
    if min(clusters, default=0) < 0:
        raise UsageError(
            f"clusters must be numbers that featurecache shortcuts lists, from 0, but {min(clusters)} is named. "
            "Take one of the last audit."
        )
    audited = bundle if bundle is not None else tuned_bundle(project)
    head = load_bundle(audited)
    name, centres = _audit_of(project, head, audited)
    unknown = sorted(set(clusters) - set(range(len(centres))))
    if unknown or not clusters:
        raise SettingsError(
            f"clusters must be of the last audit, 0 to {len(centres) - 1}, but {unknown[0] if unknown else 'none'} is "
            "named. Take numbers that featurecache shortcuts lists."
        )
    ignored = tuple(sorted(set(clusters)))
    directions = np.linalg.qr(centres[list(ignored)].T.astype(np.float64))[0].T  # (q, D)
    data = data_of_head(project, head, FeatureCache.open(project.cache))
    head.check_spaces(data.spaces)
    device = training_device(project)
    before = held_out_scores(data, head.settings, device=device)
    data = replace(
        data, train=_without(data.train, name, directions), validation=_without(data.validation, name, directions)
    )

    def complete(made: Bundle) -> Bundle:
        record = {"input": name, "clusters": list(ignored), "audited": head.digest}
        return replace(made, head=_folded(made, name, directions), ignored=record)

    from heads.engines.prepared import Prepared

    folder, choice = project.runs / RUN, TimelineChoice(project)
    data.check()
    prepared = Prepared(data, seed=0, device=device)
    write_run(prepared, head.settings, folder=folder, choose_timeline=choice, complete=complete)
    before = before.without(data.seen)
    is_validation = np.isin(before.sessions, data.validation.sessions)
    precision = _average_precision(before, choice.held_out, is_validation, head.labels)
    result = {**compared(before, choice.held_out, head), "average_precision": precision}
    return Ignoring(folder / "bundle", audited, ignored, result)


def _average_precision(
    before: HeldOut, after: HeldOut, is_validation: npt.NDArray[np.bool_], labels: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Label -> split -> before and after; no split where the label is never on."""
    return {
        label: {
            split: [average_precision(one.Y[rows, at], one.scores[rows, at]) for one in (before, after)]
            for split, rows in (("train", ~is_validation), ("validation", is_validation))
            if before.Y[rows, at].any() and before.is_scored[at]
        }
        for at, label in enumerate(labels)
    }


def _audit_of(project: Project, head: Bundle, audited: Path) -> tuple[str, npt.NDArray[np.float32]]:
    """The input and the centres (K, D) of the last audit, which was of this bundle."""
    from safetensors import SafetensorError, safe_open

    path = project.runs / SHORTCUTS / CENTRES_NAME
    try:
        with safe_open(path, "np") as file:
            made_by, centres = file.metadata() or {}, file.get_tensor("centres")
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"clusters to ignore must be of an audit, but {path} cannot be read ({type(error).__name__}). "
            "Run: featurecache shortcuts."
        ) from error
    name = made_by.get("input", "")
    if made_by.get("bundle") != head.digest or name not in head.selected:
        raise BundleError(
            f"clusters to ignore must be of an audit of the same bundle, but the last one was not of {audited}. "
            f"Audit it first: featurecache shortcuts --bundle {audited}."
        )
    return name, np.asarray(centres)


def _without(split: LabelledSplit, name: str, directions: npt.NDArray[np.float64]) -> LabelledSplit:
    """The clips with the directions (q, D) projected out of one feature."""
    features = split.features[name].astype(np.float64)
    projected = (features - (features @ directions.T) @ directions).astype(np.float32)
    return replace(split, features={**split.features, name: projected})


def _folded(made: Bundle, name: str, directions: npt.NDArray[np.float64]) -> Any:
    """The head of projected features as the same head of features as they are stored.

    With weights W on (P x - m) / s, and m = P m, since it is the mean of projected clips: W (P x - m) / s is
    W' (x - m) / s for W' = (W / s) P s.
    """
    import torch

    head: Any = copy.deepcopy(made.head)  # linear, of those that are audited
    front = head.front
    at = list(made.selected).index(name)
    own = slice(sum(front.part_widths[:at]), sum(front.part_widths[: at + 1]))
    axes, scale = torch.from_numpy(directions), front.scale[own].double()

    def folded(columns: torch.Tensor) -> torch.Tensor:  # (D, ...), one column an output
        weights = columns[own].double() / scale[:, None]
        weights -= axes.T @ (axes @ weights)
        columns = columns.clone()
        columns[own] = (weights * scale[:, None]).float()
        return columns

    with torch.no_grad():
        if front.axes is None:
            head.output.weight.copy_(folded(head.output.weight.T).T)
        else:
            front.axes.copy_(folded(front.axes))
    return head
