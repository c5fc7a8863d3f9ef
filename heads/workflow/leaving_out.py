"""Leave-one-session-out with a bundle's settings: what `featurecache evaluate --leave-one-session-out` calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache import FeatureCache
from featurecache.clips.drift import check_table
from featurecache.errors import BundleError
from featurecache.project.settings import Project
from heads.bundle import load_bundle
from heads.loading import load_all_splits
from heads.prior import prior_weights
from heads.runs import write_document
from heads.workflow.data import clips_seen, own_table, scoring_data, training_device, tuned_bundle
from heads.workflow.evaluation import evaluate_without_each_session
from heads.workflow.teaching import with_teacher


@dataclass(frozen=True, eq=False)
class LeftOutScores:
    """Scores of every session by a head that was fitted without it.

    Attributes:
        path: The file that the scores were written to.
        method: What the bundle is, by the paper's names.
        metrics: The content of the file.
        left_out: Labelled clips that could not be extracted.
    """

    path: Path
    method: str
    metrics: Mapping[str, Any]
    left_out: int

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache evaluate --leave-one-session-out --json`."""
        return dict(self.metrics)


def leave_one_session_out(project: Project, bundle: Path | None = None) -> LeftOutScores:
    """Refits a bundle's settings once without each session, scores that session, and logs the evaluation.

    Args:
        project: The project.
        bundle: The bundle's folder; None: the one of `tune`.

    Raises:
        BundleError: If the bundle has a fine-tuned backbone, which saw every session, was fitted without
            clusters of tokens, or has other labels than the table.
        TrainingDataError: If the arrays are unusable, or no label can be learned without some session.
        SettingsError: If there is one session only.
    """
    folder = bundle if bundle is not None else tuned_bundle(project)
    head = load_bundle(folder)
    if head.is_fine_tuned:
        found = "an adapter" if head.backbone is None else "a model of its own"
        raise BundleError(
            f"leaving sessions out refits a head alone, but {folder} has {found}, which saw them all. "
            "Evaluate it on the test split."
        )
    if head.is_zero_shot:
        raise BundleError(
            f"leaving sessions out refits a head, but {folder} is of {head.method}, which fits none. "
            "Its thresholds are out-of-fold already: evaluate it on the test split."
        )
    if head.ignored is not None:
        raise BundleError(
            f"leaving sessions out refits a head by its settings, but {folder} was fitted without clusters of tokens. "
            "Evaluate it on the test split."
        )
    check_table(project, use="targets")
    table = own_table(project, head)
    source = scoring_data(project, head, table, FeatureCache.open(project.cache))
    loaded = load_all_splits(table, source.cache, head.selected, known=source.known, samples=source.samples)
    from heads.engines.fitting import refitting  # not before there is something to refit: it takes seconds

    kept = loaded.data
    if head.settings.teacher_weight:
        (kept,) = with_teacher(project, [kept], source.cache)
    scored = table.clips if source.samples is None else source.samples.samples
    data = kept.of(head.settings.inputs)
    prior = prior_weights(head.settings, head.prior, kept.part_widths(head.settings.inputs))
    metrics = evaluate_without_each_session(
        refitting(data, head.settings, device=training_device(project), prior=prior),
        data,
        head,
        test=[one for one in scored if one.split == "test" and one.labelled],
        log=project.runs / "test_looks.jsonl",
        leakage=source.leakage,
        seen=clips_seen(project, table, source.samples),
    )
    path = folder.parent / "leave_one_session_out_metrics.json"
    write_document(path, metrics)
    return LeftOutScores(path, head.method, metrics, loaded.left_out)
