"""Clusters of patches by which a head tells labels in training sessions alone: what `featurecache shortcuts` calls.

The statistics and their null are `heads/scoring/shortcuts.py`, the clusters `token_clusters.py`. Beside each cluster
stands what it does to errors, by out-of-fold scores: false positives among clips without the label, with the cluster
and without it, and misses among clips with the label. The test split is not read.

Files go to `runs/shortcuts/`: `clusters.csv`, a row for each label and cluster; `examples.csv`, moments of the listed
ones; `shortcuts.json`, the document; `centres.safetensors`, what `ignoring.py` refits a head without.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.csv_fields import csv_bytes, guard_cell
from featurecache.errors import BundleError, UsageError
from featurecache.files import write_private
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from featurecache.workflow.withdrawal import SHORTCUTS
from heads.bundle import Bundle, load_bundle
from heads.data import LearningData
from heads.runs import write_document
from heads.scoring.shortcuts import LabelGaps, label_gaps, listed, needed_together
from heads.workflow.data import data_of_head, own_table, refuse_samples, training_device, tuned_bundle
from heads.workflow.mapping import check_linear, token_space
from heads.workflow.session_weights import session_weights
from heads.workflow.shortcut_examples import Example, moments
from heads.workflow.token_clusters import TokenClusters, cluster_tokens

DOCUMENT_NAME, CENTRES_NAME = "shortcuts.json", "centres.safetensors"
RATE = 0.1
"""The false-discovery rate where no other is asked for."""
LEAST_RATE, MOST_RATE = 0.001, 0.5


@dataclass(frozen=True)
class Shortcut:
    """A cluster and a label; shares are None where there is no such clip.

    Attributes:
        label: The label.
        cluster: Number of the cluster.
        p: As `LabelGaps.p`.
        training: What it adds to the log odds of clips with the label beyond others, mean over training sessions; None
            where none has clips of both kinds.
        validation: The same over validation sessions.
        clips: Clips that have more of it than the average clip.
        false_positives_with: Share of clips without the label, but with the cluster, that are predicted.
        false_positives_without: Share of clips with neither that are predicted.
        missed_with: Share of clips with both that are not predicted.
        missed_without: Share of clips with the label, but without the cluster, that are not predicted.
    """

    label: str
    cluster: int
    p: float
    training: float | None
    validation: float | None
    clips: int
    false_positives_with: float | None
    false_positives_without: float | None
    missed_with: float | None
    missed_without: float | None

    @property
    def gap(self) -> float | None:
        """By how much it separates training sessions better; None where that is not known."""
        return None if self.training is None or self.validation is None else self.training - self.validation


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """What an audit found.

    Attributes:
        bundle: The folder of the bundle that was audited.
        feature: What was clustered: `final/tokens`, `final/frames`, or `final/mean`.
        rate: The false-discovery rate.
        clips: Clips of training and validation.
        clusters: K.
        tested: Label -> its gaps.
        found: What is listed, the largest gap first.
        nearest: The largest gap of each label that has none listed.
        examples: Moments of what is listed.
        folder: The folder of the files.
    """

    bundle: Path
    feature: str
    rate: float
    clips: int
    clusters: int
    tested: dict[str, LabelGaps]
    found: tuple[Shortcut, ...]
    nearest: tuple[Shortcut, ...]
    examples: tuple[Example, ...]
    folder: Path

    @property
    def needed_together(self) -> dict[str, int | None]:
        """Label -> how many labels must be listed together before it can be; None where it is not tested."""
        return dict(zip(self.tested, needed_together(list(self.tested.values()), self.rate), strict=True))

    def to_mapping(self) -> dict[str, Any]:
        """The document `shortcuts.json`, and of `featurecache shortcuts --json`."""
        fields = ("bundle", "feature", "rate", "clips", "clusters", "folder")
        return {
            "kind": "featurecache shortcuts",
            **{name: value if isinstance(value := getattr(self, name), int | float) else str(value) for name in fields},
            "labels": {
                label: {
                    "train_sessions": gaps.train_sessions,
                    "validation_sessions": gaps.validation_sessions,
                    "least_p": gaps.least_p,
                    "not_tested": gaps.why_untested(self.rate),
                    "needed_together": self.needed_together[label],
                }
                for label, gaps in self.tested.items()
            },
            "shortcuts": [vars(one) for one in self.found],
            "nearest": [vars(one) for one in self.nearest],
            "examples": [one.to_mapping() for one in self.examples],
        }


def shortcuts(
    project: Project,
    *,
    bundle: Path | None = None,
    feature: str | None = None,
    rate: float = RATE,
    with_frames: bool = False,
    seed: int = 0,
) -> Shortcuts:
    """Clusters the tokens of training and validation clips and lists those that are a label's shortcut.

    Args:
        project: The project.
        bundle: The bundle's folder; None: the one of `tune`.
        feature: The mean whose tokens are clustered, of those that the head reads; None: the first with tokens in the
            cache; where none has, frames, or else the clips' means.
        rate: The false-discovery rate.
        with_frames: Also write pictures of the examples, which hold frames of the recordings.
        seed: Of k-means and permutations.

    Raises:
        UsageError: If the rate is out of range.
        BundleError: If the bundle is missing, fine-tuned, made by `ignore` or of samples, its head has no exact map, or
            its labels are not the table's.
        MissingFeaturesError: If the cache lacks a clip.
        TrainingDataError: If there is too little to learn from or to cluster.
        UnreadableVideoError: If frames are asked for and a recording is missing, another, or cannot be decoded.
    """
    _check_rate(rate)
    path = bundle if bundle is not None else tuned_bundle(project)
    head = _auditable(path)
    table = own_table(project, head)
    cache = FeatureCache.open(project.cache)
    data = data_of_head(project, head, cache)
    head.check_spaces(data.spaces)
    fitting = data.fitting
    clip_ids = fitting.clip_ids or ()
    name, space = token_space(cache, head, clip_ids[0], feature, ("tokens", "frames", "mean"))
    weights = session_weights(data, head.settings, tuple(head.selected), name, device=training_device(project))
    clusters = cluster_tokens(cache, FeatureSpace(space.inputs), clip_ids, fitting.sessions, weights.of, seed=seed)
    gaps = _gaps(clusters, data, seed=seed)
    is_listed = listed(gaps, rate)
    predicted = head.predicted(weights.scores)
    rows = [
        _shortcut(label, k, gaps[at], clusters.present[:, k], fitting.Y[:, at] == 1, predicted[:, at])
        for at, label in enumerate(head.labels)
        for k in range(clusters.parts.shape[1])
    ]
    rows.sort(key=lambda one: np.inf if one.gap is None else -one.gap)
    chosen = [one for one in rows if is_listed[head.labels.index(one.label), one.cluster]]
    missing = [label for label in head.labels if label not in {one.label for one in chosen}]
    examples = moments(
        project,
        cache,
        head,
        (name, space),
        clusters,
        ((one.label, one.cluster) for one in chosen),
        fitting,
        predicted,
        {clip.clip_id: clip for clip in table.clips},
        with_frames=with_frames,
    )
    found = Shortcuts(
        path,
        f"{space.tap}/{space.pooling}",
        rate,
        len(clip_ids),
        clusters.parts.shape[1],
        dict(zip(head.labels, gaps, strict=True)),
        tuple(chosen),
        tuple(next(one for one in rows if one.label == label) for label in missing),
        tuple(examples),
        project.runs / SHORTCUTS,
    )
    _write(
        found, rows, clusters, {"input": name, "fingerprint": head.selected[name].fingerprint, "bundle": head.digest}
    )
    return found


def _check_rate(rate: float) -> None:
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UsageError(
            f"the rate must be a number from {LEAST_RATE} to {MOST_RATE}, the expected share of wrong ones among "
            f"listed clusters, but it is {rate:g}. Take {RATE}, one wrong of ten."
        )


def _auditable(path: Path) -> Bundle:
    """The bundle of a folder, if it is of a linear head on single clips, fitted on cached features."""
    head = load_bundle(path)
    refuse_samples(head, path, "the audit")
    check_linear(head)
    if why := head.why_not_refitted:
        raise BundleError(
            f"shortcuts are those of a head fitted on cached features, but {path} {why}. Take the bundle of tune or "
            "train."
        )
    return head


def _gaps(clusters: TokenClusters, data: LearningData, *, seed: int) -> list[LabelGaps]:
    """How each cluster separates sessions, label by label; clips labelled in sight of predictions do not count."""
    fitting = data.fitting
    scored = np.array([clip_id not in data.seen for clip_id in fitting.clip_ids or ()])
    sessions, parts, Y = fitting.sessions[scored], clusters.parts[scored], fitting.Y[scored]
    is_validation = np.isin(sessions, data.validation.sessions)
    return [label_gaps(parts[..., at], Y[:, at], sessions, is_validation, seed=seed) for at in range(Y.shape[1])]


_Mask = npt.NDArray[np.bool_]


def _shortcut(label: str, k: int, gaps: LabelGaps, present: _Mask, on: _Mask, predicted: _Mask) -> Shortcut:
    def share(of: _Mask, among: _Mask) -> float | None:
        return float(of[among].mean()) if among.any() else None

    def known(mean: float) -> float | None:
        return None if np.isnan(mean) else float(mean)

    return Shortcut(
        label,
        k,
        float(gaps.p[k]),
        known(gaps.training[k]),
        known(gaps.validation[k]),
        int(present.sum()),
        share(predicted, present & ~on),
        share(predicted, ~present & ~on),
        share(~predicted, present & on),
        share(~predicted, ~present & on),
    )


def _write(found: Shortcuts, rows: Sequence[Shortcut], clusters: TokenClusters, made_by: dict[str, str]) -> None:
    from safetensors.numpy import save

    chosen = {(one.label, one.cluster) for one in found.found}
    listing = ({"listed": int((one.label, one.cluster) in chosen), **vars(one)} for one in rows)
    write_private(found.folder / "clusters.csv", _as_csv(listing))
    write_private(found.folder / "examples.csv", _as_csv(one.to_mapping() for one in found.examples))
    centres = clusters.centres.astype(np.float32)
    write_private(found.folder / CENTRES_NAME, save({"centres": centres}, metadata=made_by))
    write_document(found.folder / DOCUMENT_NAME, found.to_mapping())


def _as_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """Mappings with the same keys, which are the columns; nothing where there are none."""
    listed = list(rows)
    cells = [
        ["" if one is None else f"{one:.6g}" if isinstance(one, float) else str(one) for one in row.values()]
        for row in listed
    ]
    return csv_bytes([*listed[:1], *([guard_cell(cell) for cell in row] for row in cells)])
