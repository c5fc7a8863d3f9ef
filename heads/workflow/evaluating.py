"""A bundle on the test split: what `featurecache evaluate` calls.

Whatever would make the score wrong or the evaluation worthless is refused before the evaluation is logged: sessions
that made the bundle, other labels, a folder that cannot be written, another bundle that cannot be compared.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache import FeatureCache
from featurecache.clips.clip import ClipTable
from featurecache.clips.drift import check_table
from featurecache.clips.leakage import split_level
from featurecache.clips.session_notes import annotated_sessions
from featurecache.errors import AnnotationError, BundleError, TrainingDataError, UsageError
from featurecache.extraction.failures import FailedClip
from featurecache.extraction.pipeline import Progress
from featurecache.extraction.plan import Plan
from featurecache.project.settings import Project
from heads.bundle import Bundle, load_bundle
from heads.bundle_files import read_files
from heads.clip_rule import ClipRule
from heads.finetuning.extraction import plan_split
from heads.runs import write_document
from heads.scoring.exclusive import violations
from heads.timelines.clip_rules import overlap_sensitivity
from heads.timelines.tuning import TunedTimeline, load_timeline
from heads.workflow.data import (
    NO_TIMELINES,
    ScoringData,
    clips_seen,
    exclusive_labels,
    own_table,
    reads_samples,
    scoring_data,
    tuned_bundle,
)
from heads.workflow.evaluation import Evaluation, all_positive_baseline, compare_with_each, evaluate_bundles
from heads.workflow.sample_scores import sample_details
from heads.workflow.timelines import evaluate_timelines


@dataclass(frozen=True, eq=False)
class ScoredBundle:
    """What one bundle reached on the test split.

    Attributes:
        run: The run's folder, where the scores were written.
        method: What the bundle is, by the paper's names.
        metrics: The content of `test_metrics.json`.
        timelines: Scores of the timelines; None where there is no annotation to score by.
        no_timelines_because: Why no timelines were scored; empty where they were.
    """

    run: Path
    method: str
    metrics: Mapping[str, Any]
    timelines: Mapping[str, Any] | None
    no_timelines_because: str

    @property
    def timelines_path(self) -> Path:
        """Where the timelines' scores were written."""
        return self.run / "test_timelines.json"


@dataclass(frozen=True, eq=False)
class TestScores:
    """One evaluation of the test split.

    Attributes:
        bundles: The bundle, and those it is compared with.
        all_positive: Metrics of the all-positive baseline.
        comparisons: Difference to each of the others with its interval and p value, in their order.
        looks: Number of test-set evaluations of these sessions, including this one.
        left_out: Labelled clips of the split that could not be extracted.
        failed: Clips that a fine-tuned model could not be run on now.
    """

    __test__ = False  # for pytest: no class of tests

    bundles: tuple[ScoredBundle, ...]
    all_positive: Mapping[str, Any]
    comparisons: tuple[Mapping[str, Any], ...]
    looks: int
    left_out: int
    failed: tuple[FailedClip, ...]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics of the bundle that was asked for."""
        return self.bundles[0].metrics

    @property
    def comparison(self) -> Mapping[str, Any] | None:
        """The first comparison; None where the bundle was scored alone."""
        return next(iter(self.comparisons), None)

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache evaluate --json`."""
        document = {**self.metrics, "always_yes": self.all_positive, "failed_clips": len(self.failed)}
        if self.comparisons:
            other = self.bundles[1]
            document |= {"comparison": self.comparison, "against": {**other.metrics, "timelines": other.timelines}}
        if len(self.comparisons) > 1:
            document["comparisons"] = list(self.comparisons)
        return {**document, "timelines": self.bundles[0].timelines}


def evaluate(
    project: Project,
    bundle: Path | None = None,
    *,
    against: Path | Sequence[Path] = (),
    prevalence: Sequence[str] = (),
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> TestScores:
    """Scores a bundle on the test split, logs it, and writes the scores into the bundle's run.

    Where the bundle was fine-tuned, its missing features are extracted first.

    Args:
        project: The project.
        bundle: The bundle's folder; None: the one of `tune`.
        against: Another bundle or several, to compare with on the same clips, in one evaluation.
        prevalence: `label=share`: precision and NPV are told for recordings in which a label is on in this share of
            clips, too.
        on_plan: Called before an extraction with a fine-tuned model.
        on_progress: Called with the progress of that extraction.

    Raises:
        UsageError: If a prevalence is not of a label of the bundle, or not between 0 and 1.
        BundleError: If a bundle is damaged, of other labels than the clip table, or was made with sessions of the test
            split; or two cannot be compared.
        OutdatedTableError: If the settings of the table have changed since it was made.
        TrainingDataError: If the test split has no labelled clip with features, or none with a label on; or has some
            that a review with predictions in sight labels.
        TimelineError: If the section [timeline] names a label that the bundle has not.
        OSError: If a result or the log cannot be written; no score is given then.
    """
    first = bundle if bundle is not None else tuned_bundle(project)
    folders = [first, *([against] if isinstance(against, Path) else against)]
    _check_runs_differ(folders)
    for folder in folders:
        read_files(folder)  # all that can be refused without torch is refused before the seconds that it takes
    check_table(project, use="targets")
    heads = [load_bundle(folder) for folder in folders]
    stated = stated_prevalence(prevalence, heads[0].labels)
    tuned = [load_timeline(folder) for folder in folders]
    tables, rules = zip(*(check_scorable(project, *each) for each in zip(folders, heads, strict=True)), strict=True)
    failed = [
        clip
        for head in heads
        for clip in extract_adapted(project, head, "test", on_plan=on_plan, on_progress=on_progress)
    ]
    cache = FeatureCache.open(project.cache)
    sources = [scoring_data(project, head, table, cache) for head, table in zip(heads, tables, strict=True)]
    candidates = [_Candidate(*each) for each in zip(folders, heads, tuned, rules, sources, strict=True)]
    annotated = annotated_sessions(candidates[0].source.table)
    outcomes = evaluate_bundles(
        [(one.head, one.data, one.head.fingerprint) for one in candidates],
        split="test",
        log=project.runs / "test_looks.jsonl",
        leakage=candidates[0].source.leakage,
        annotated=annotated,
        prevalence=stated,
    )
    for folder, outcome in zip(folders, outcomes, strict=True):
        write_document(folder.parent / "test_metrics.json", outcome.metrics)
    comparisons = _comparisons(folders, outcomes)
    scored = [_scored(project, one, outcome) for one, outcome in zip(candidates, outcomes, strict=True)]
    floor = all_positive_baseline(candidates[0].data, heads[0].labels, "test", annotated)
    left_out = candidates[0].own.left_out
    return TestScores(tuple(scored), floor, comparisons, outcomes[0].looks, left_out, tuple(failed))


class _Candidate:
    """A bundle that is scored, with its rules and what it reads of the test split."""

    def __init__(
        self,
        folder: Path,
        head: Bundle,
        tuned: TunedTimeline | None,
        exclusive: Sequence[Sequence[str]],
        source: ScoringData,
    ) -> None:
        self.folder, self.head, self.tuned, self.exclusive, self.source = folder, head, tuned, exclusive, source
        self.own = source.load("test", head.selected)
        self.data = self.own.data.of(head.settings.inputs)


def _check_runs_differ(folders: Sequence[Path]) -> None:
    of_run: dict[Path, Path] = {}
    for folder in folders:
        run = folder.resolve().parent
        if run in of_run:
            raise BundleError(
                "bundles must lie in run folders of their own, where their results go, but "
                f"{of_run[run]} and {folder} share one. Name a bundle of another run with --against."
            )
        of_run[run] = folder


def _comparisons(folders: Sequence[Path], outcomes: Sequence[Evaluation]) -> tuple[Mapping[str, Any], ...]:
    """The first bundle against each of the others; written into its run where there are any."""
    found = [
        {"against": str(folder), **comparison}
        for folder, comparison in zip(folders[1:], compare_with_each(outcomes[0], outcomes[1:]), strict=True)
    ]
    if found:
        several = {"comparisons": found} if len(found) > 1 else {}
        write_document(folders[0].parent / "test_comparison.json", found[0] | several)
    return tuple(found)


def _scored(project: Project, one: _Candidate, outcome: Evaluation) -> ScoredBundle:
    """What follows from a bundle's scores besides, written into its run: timelines, broken rules, slices of samples."""
    head, run = one.head, one.folder.parent
    timelines, why = _timelines(project, one)
    metrics = {
        **outcome.metrics,
        "label_digests": one.source.label_digests("test"),
        "exclusive_violations": _violations(head, outcome, one.exclusive),
        **sample_details(head, one.data, outcome.predicted, one.source, run),
    }
    if timelines is not None:
        own_us = (head.clips or ClipRule.of(project)).min_overlap_us
        recordings = timelines["recordings"]
        metrics["overlap_sensitivity"] = overlap_sensitivity(recordings, head.labels, head.predicted, own_us)
    write_document(run / "test_metrics.json", metrics)
    return ScoredBundle(run, head.method, metrics, None if timelines is None else timelines["scores"], why)


_DETAILS = ("exclusive_violations", "overlap_sensitivity", "prevalence_shift", "slices", "part_weights")


def with_details(path: Path, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Metrics with what `evaluate` found out of the same scores besides, where that stands in the file before.

    Args:
        path: The `test_metrics.json` that is about to be replaced; it need not exist.
        metrics: Its new content.
    """
    try:
        known = json.loads(path.read_bytes())
        is_same = all(known[name] == metrics[name] for name in ("per_class", "per_session"))
    except (OSError, ValueError, KeyError, TypeError):
        return metrics
    return {**metrics, **{name: known[name] for name in _DETAILS if name in known}} if is_same else metrics


def stated_prevalence(stated: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Shares of clips by label, from `label=share`.

    Raises:
        UsageError: If a label is none of these, or a share not between 0 and 1.
    """
    found: dict[str, float] = {}
    for text in stated:
        label, _, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if label not in labels or label in found or not 0 < value < 1:
            raise UsageError(
                f"a prevalence must be one of the labels {', '.join(labels)}, each once, with a share between 0 and 1, "
                f"but found {text!r}. Write --prevalence {labels[0]}=0.05."
            )
        found[label] = value
    return found


def _violations(head: Bundle, outcome: Evaluation, exclusive: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """How often predictions of clips break each rule, and whether the bundle is `kept` to it."""
    kept = [list(group) for group in head.exclusive]
    return [one | {"kept": one["labels"] in kept} for one in violations(outcome.predicted, head.labels, exclusive)]


def check_scorable(project: Project, folder: Path, head: Bundle) -> tuple[ClipTable, Sequence[Sequence[str]]]:
    """A bundle's clip table, and the rules of its timelines; refuses before any work what must not be scored.

    Args:
        project: The project.
        folder: The bundle's folder, next to which scores will be written.
        head: The bundle.

    Raises:
        BundleError: If it is of other labels than the table, or was made with sessions of the test split.
        TrainingDataError: If a review with predictions in sight labels clips of the test split.
        TimelineError: If the section [timeline] names a label that the bundle has not.
        OSError: If the folder cannot be written to.
    """
    if not os.access(folder.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.parent))
    table = own_table(project, head)
    seen = clips_seen(project, table)
    if told := [clip for clip in table.clips if clip.split == "test" and clip.clip_id in seen]:
        raise TrainingDataError(
            "clips of the test split must be labelled without sight of predictions, but reviews made in sight of them "
            f"label {len(told)} of {', '.join(sorted({clip.recording for clip in told}))}. Set the split of these "
            "sessions in clips.csv to train, or make the table again: featurecache clips --with-reviewed --force."
        )
    if split_level(table.clips) == "session":  # where it is forced by clips, the document says so
        scored = {clip.session for clip in table.clips if clip.split == "test" and clip.labelled}
        # All clips of these sessions count: what trained the bundle may be unlabelled by now.
        clips = [clip for clip in table.clips if clip.session in scored]
        head.check_unseen([clip.clip_id for clip in clips], [clip.session for clip in clips], "test")
    return table, () if reads_samples(head) else exclusive_labels(project, head)  # which exclude each other in one clip


def extract_adapted(
    project: Project,
    head: Bundle,
    split: str,
    *,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[FailedClip, ...]:
    """Extracts the missing features of a split with a bundle's adapter, model or questions, if it has any.

    Args:
        project: The project.
        head: The bundle.
        split: All clips of it, labelled or not: timelines need them.
        on_plan: Called before the extraction.
        on_progress: Called with the progress of the extraction.

    Returns:
        Clips that could not be extracted.

    Raises:
        FingerprintMismatchError: If the project's settings make other features than the bundle reads.
    """
    if not head.is_fine_tuned and head.asked is None:
        return ()
    from heads.zeroshot.answering import run_asked  # it loads torch

    project = head.project_of(project)
    plan = plan_split(project, list(head.selected), split, adapter=head.opened_adapter, asked=head.asked)
    head.check_spaces(plan.spaces)
    on_plan(plan)
    return run_asked(project, plan, on_progress=on_progress).failures


def _timelines(project: Project, one: _Candidate) -> tuple[Mapping[str, Any] | None, str]:
    """The test recordings' timelines with their scores, a part of the evaluation that was logged; or why none."""
    if one.source.samples is not None:
        return None, NO_TIMELINES
    try:
        found = evaluate_timelines(project, one.head, one.source, tuned=one.tuned, exclusive=one.exclusive)
    except (AnnotationError, TrainingDataError) as error:
        return None, str(error)
    write_document(one.folder.parent / "test_timelines.json", found)
    return found, ""
