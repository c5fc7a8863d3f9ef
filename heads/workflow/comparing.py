"""All methods on the same test sessions in one logged test-set evaluation: what `featurecache compare` calls.

Every run with a bundle takes part; a row of the paper's Table 1 without a run is listed with the command that makes it.
Beside each score stands what the same scores reach on clips of other sessions (`another_session`): a method that does
not look at the video loses nothing there. Differences are to the highest macro-F1, paired by session, with p values
adjusted by Holm's method; the highest of several is itself optimistically biased.

    runs/compare.csv, compare.tex, compare.json      the table
    runs/<run>/test_metrics.json                     each run's scores, as `evaluate` writes them
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import FeatureCache
from featurecache.clips.clip import ClipTable
from featurecache.clips.drift import check_table
from featurecache.clips.session_notes import annotated_sessions
from featurecache.csv_fields import csv_bytes, guard_cell
from featurecache.device import device_of
from featurecache.errors import BundleError, FeatureCacheError
from featurecache.extraction.failures import FailedClip
from featurecache.extraction.pipeline import Progress
from featurecache.extraction.plan import Plan
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import parse_feature
from heads.bundle import Bundle, load_bundle
from heads.bundle_files import DOCUMENT_NAME
from heads.data import LabelledFeatures, LearningData
from heads.methods import FT_C_LORA, FT_LC_TEXT, TIMESFORMER, ZS_B, ZSC_CO, ZSC_J, rank_of
from heads.report.documents import read_json
from heads.runs import write_document
from heads.scoring.intervals import holm
from heads.scoring.metrics import macro_f1
from heads.workflow.data import ScoringData, reads_samples, scoring_data
from heads.workflow.evaluating import check_scorable, extract_adapted, with_details
from heads.workflow.evaluation import Evaluation, all_positive_baseline, compare_evaluations, evaluate_bundles
from heads.zeroshot.controls import other_sessions_clips

COMMANDS: Mapping[str, str] = {
    TIMESFORMER: "featurecache finetune",
    ZSC_CO: "featurecache zeroshot zsc-co",
    ZS_B: "featurecache zeroshot zs-b",
    ZSC_J: "featurecache zeroshot zsc-j",
    "FT-LC": "featurecache tune",
    FT_C_LORA: "featurecache lora-finetune",
}
"""Rows of the paper's Table 1 and what makes them."""
OF_SAMPLES = ("FT-LC",)
"""Those that can score samples of several clips; the others are about one clip."""

_SWAPS = 20


@dataclass(frozen=True, eq=False)
class Row:
    """One run in the table.

    Attributes:
        run: The run's folder.
        method: What its bundle is, by the paper's names.
        metrics: The content of `test_metrics.json`.
        difference: Its macro-F1 minus the highest one's, with interval and p value; None for the highest itself.
        another_session: Macro-F1 of the same scores on clips of other sessions.
        seconds_per_clip: The model's matrix products of a clip, measured on this machine; None where unknown.
        audit: Of a zero-shot method, what its free answers are like, over all clips.
    """

    run: str
    method: str
    metrics: Mapping[str, Any]
    difference: Mapping[str, Any] | None
    another_session: float | None
    seconds_per_clip: float | None
    audit: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The table.

    Attributes:
        labels: Names of the labels.
        rows: In the order of the paper's Table 1.
        missing: Methods of that table without a run, and the command that makes one.
        all_positive: Metrics of the all-positive baseline.
        baselines: Metrics of low-cost baselines on the features of a head, by name (`baselines.py`).
        left_out: Runs that could not take part, and why.
        failed: Clips that a bundle's own model or questions could not be run on.
        looks: Number of test-set evaluations of these sessions, including this one.
        written: The files.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    missing: Mapping[str, str]
    all_positive: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]
    failed: tuple[FailedClip, ...]
    looks: int
    written: tuple[Path, ...]

    @property
    def floors(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of what a method should be above, by name."""
        return {"all-positive baseline": self.all_positive, **self.baselines}

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache compare --json`, and of `compare.json`."""
        return {
            "labels": list(self.labels),
            "rows": [asdict(row) for row in self.rows],
            "missing": dict(self.missing),
            "always_yes": self.all_positive,
            "baselines": dict(self.baselines),
            "left_out": dict(self.left_out),
            "failed_clips": len(self.failed),
            "looks": self.looks,
        }


@dataclass(frozen=True, eq=False)
class _Candidate:
    run: Path
    bundle: Bundle
    source: ScoringData

    def loaded(self, others: Sequence["_Candidate"] = ()) -> LabelledFeatures:
        """The test clips that this and the other bundles can all read."""
        needed = [space for other in others for space in other.bundle.spaces]
        split = self.source.load("test", self.bundle.selected, needed=needed)
        return split.data.of(self.bundle.settings.inputs)


def compare(
    project: Project,
    *,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Scores every run's bundle on the test split in one evaluation, logs it, and writes the table.

    Args:
        project: The project.
        on_plan: Called before an extraction with a bundle's own model or questions.
        on_progress: Called with the progress of such an extraction.

    Raises:
        BundleError: If no run has a bundle that can be scored.
        TrainingDataError: If the test split has no labelled clip with features, or none with a label on.
        OSError: If a result or the log cannot be written; no score is given then.
    """
    check_table(project, use="targets")
    candidates, left_out, failed = _candidates(project, on_plan, on_progress)
    data = [one.loaded(candidates) for one in candidates]
    annotated = annotated_sessions(candidates[0].source.table)
    outcomes = evaluate_bundles(
        [(one.bundle, own, one.bundle.fingerprint) for one, own in zip(candidates, data, strict=True)],
        split="test",
        log=project.runs / "test_looks.jsonl",
        leakage=candidates[0].source.leakage,
        annotated=annotated,
    )
    for one, outcome in zip(candidates, outcomes, strict=True):
        path = one.run / "test_metrics.json"
        metrics = {**outcome.metrics, "label_digests": one.source.label_digests("test")}
        write_document(path, with_details(path, metrics))
    rows = [
        Row(
            one.run.name,
            one.bundle.method,
            outcome.metrics,
            difference,
            _another_session(one.bundle, own),
            _seconds_per_clip(project, one.bundle),
            read_json(one.run / "best.json", []).get("audit") or {},
        )
        for one, own, outcome, difference in zip(candidates, data, outcomes, _differences(outcomes), strict=True)
    ]
    widest = max(range(len(candidates)), key=lambda at: len(candidates[at].bundle.labels))
    labels = candidates[widest].bundle.labels
    found = Comparison(
        labels,
        tuple(sorted(rows, key=lambda row: (rank_of(row.method), row.run))),
        {
            name: command
            for name, command in COMMANDS.items()
            if name not in {row.method.replace(FT_LC_TEXT, "FT-LC") for row in rows}
            and (name in OF_SAMPLES or project.settings.samples.rule == "none")
        },
        all_positive_baseline(data[widest], labels, "test", annotated),
        _baselines(candidates, data, annotated),
        left_out,
        failed,
        outcomes[0].looks,
        tuple(private_folder(project.runs) / f"compare.{kind}" for kind in ("csv", "tex", "json")),
    )
    write_private(found.written[0], csv_bytes(_csv_rows(found)))
    write_private(found.written[1], _as_latex(found).encode())
    write_document(found.written[2], found.to_mapping())
    return found


def _baselines(
    candidates: Sequence[_Candidate], data: Sequence[LabelledFeatures], annotated: int
) -> dict[str, dict[str, Any]]:
    """Of the features that the first head on a frozen backbone reads; none where there is no such head on vectors."""
    for one, test in zip(candidates, data, strict=True):
        bundle, source = one.bundle, one.source
        if bundle.adapter is None and bundle.backbone is None and bundle.asked is None and test.X.ndim == 2:
            train, validation = (source.load(split, bundle.selected).data for split in ("train", "validation"))
            fitting = LearningData(train, validation, bundle.labels, bundle.selected).fitting
            from heads.workflow.baselines import baseline_metrics  # scikit-learn takes a second to load

            return baseline_metrics(fitting.of(bundle.settings.inputs), test, bundle.labels, annotated=annotated)
    return {}


def _candidates(
    project: Project, on_plan: Callable[[Plan], None], on_progress: Callable[[Progress], None]
) -> tuple[list[_Candidate], dict[str, str], tuple[FailedClip, ...]]:
    """Runs whose bundles can be scored on the test split, the others with the reasons, and clips that failed."""
    scorable: list[tuple[Path, Bundle, ClipTable]] = []
    left_out: dict[str, str] = {}
    failed: list[FailedClip] = []
    digests: dict[str, str] = {}
    folders = sorted(project.runs.iterdir()) if project.runs.is_dir() else []
    for folder in folders:
        if not (folder / "bundle" / DOCUMENT_NAME).exists():
            continue
        try:
            bundle = load_bundle(folder / "bundle")
            earlier = digests.setdefault(bundle.digest, folder.name)
            if earlier != folder.name:
                left_out[folder.name] = f"it holds the same bundle as {earlier}"
                continue
            if not reads_samples(bundle) and (rule := project.settings.samples.rule) != "none":
                left_out[folder.name] = f'it scores clips, and here samples are several clips (samples.rule = "{rule}")'
                continue
            table, _ = check_scorable(project, folder / "bundle", bundle)
            failed += extract_adapted(project, bundle, "test", on_plan=on_plan, on_progress=on_progress)
        except FeatureCacheError as error:
            left_out[folder.name] = str(error)
            continue
        scorable.append((folder, bundle, table))
    if not scorable and not left_out:
        raise BundleError("some run must have a bundle, but there is no run. Make one: featurecache tune.")
    found = []
    if scorable:
        cache = FeatureCache.open(project.cache)
        for folder, bundle, table in scorable:
            try:
                candidate = _Candidate(folder, bundle, scoring_data(project, bundle, table, cache))
                candidate.loaded()
            except FeatureCacheError as error:
                left_out[folder.name] = str(error)
                continue
            found.append(candidate)
    if not found:
        why = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in left_out.items())
        raise BundleError(f"some run must have a bundle that can be scored, but {why}.")
    return found, left_out, tuple(failed)


def _differences(outcomes: Sequence[Evaluation]) -> list[dict[str, Any] | None]:
    """Each row against the highest macro-F1 on the labels that both have; p values adjusted for their number."""
    most = max(len(outcome.labels) for outcome in outcomes)
    whole = [at for at, outcome in enumerate(outcomes) if len(outcome.labels) == most]
    best = max(whole, key=lambda at: outcomes[at].metrics["macro_f1"])
    found = [
        None if at == best else compare_evaluations(outcome, outcomes[best]) for at, outcome in enumerate(outcomes)
    ]
    tested = [one for one in found if one is not None and one["p_value"] is not None]
    for one, adjusted in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
        one["p_holm"] = adjusted
    return found


def _another_session(bundle: Bundle, data: LabelledFeatures) -> float | None:
    """Mean macro-F1 when each clip is given the scores of a clip of another session; None with one session."""
    scores = bundle.scores(data.X, fingerprint=bundle.fingerprint)
    swaps = other_sessions_clips(data.sessions, seed=0, times=_SWAPS)
    if not swaps:
        return None
    predicted = bundle.predicted(scores)
    return float(np.mean([macro_f1(data.Y, predicted[rows].astype(float)) for rows in swaps]))


def _seconds_per_clip(project: Project, bundle: Bundle) -> float | None:
    """See `Row.seconds_per_clip`; a head's own time is negligible beside it."""
    from featurecache.backbones.cost import clip_cost
    from featurecache.extraction.speed import time_parts

    own = bundle.project_of(project)
    try:
        chosen = list(bundle.selected)
        model, _ = project_spaces(own, select=chosen, adapter=bundle.opened_adapter, asked=bundle.asked)
        taps = sorted({parse_feature(name, model.taps).tap for name in bundle.selected})
        cost = clip_cost(model.open(), taps)
        parts = time_parts(
            cost.parts,
            dtype=own.settings.features.dtype,
            device=device_of(own.settings.extract.device),
            batch_size=1,
        )
    except FeatureCacheError:
        return None  # imported features, or a model that is not here any more
    return sum(part.seconds for part in parts)


_COLUMNS = ("macro_f1", "ci95_low", "ci95_high", "difference_to_best", "difference_ci95_low", "difference_ci95_high")
_MORE = ("p_holm", "another_session", "seconds_per_clip", "unparsable", "hallucinated", "violations", "answers")


def _csv_rows(found: Comparison) -> Iterator[list[str]]:
    yield ["method", "run", *map(guard_cell, found.labels), *_COLUMNS, *_MORE, "made_by"]
    for row in found.rows:
        difference = row.difference or {}
        low, high = difference.get("difference_ci95") or (None, None)
        numbers = [difference.get("difference"), low, high, difference.get("p_holm")]
        cells = _cells([*_scores(found, row.metrics), *numbers, row.another_session, row.seconds_per_clip])
        counts = [str(row.audit.get(name, "")) for name in ("unparsable", "hallucinated", "violations", "n_clips")]
        yield [row.method, guard_cell(row.run), *cells, *counts, ""]
    for name, metrics in found.floors.items():
        yield [name, "baseline", *_cells(_scores(found, metrics)), *[""] * (len(_COLUMNS) + len(_MORE) - 3), ""]
    blank = [""] * (len(found.labels) + len(_COLUMNS) + len(_MORE))
    for method, command in found.missing.items():
        yield [method, "missing", *blank, command]


def _scores(found: Comparison, metrics: Mapping[str, Any]) -> list[float | None]:
    """F1 of each label, macro-F1, and the ends of its interval."""
    f1 = [metrics["per_class"].get(label, {}).get("f1") for label in found.labels]
    return [*f1, metrics["macro_f1"], *(metrics["macro_f1_ci95"] or (None, None))]


def _cells(numbers: Sequence[float | None]) -> list[str]:
    return ["" if one is None else f"{one:.6g}" for one in numbers]


def _as_latex(found: Comparison) -> str:
    """A tabular as the paper's Table 1, with the interval, after the baselines; a missing row has dashes."""
    head = " & ".join(["Method", *map(_tex, found.labels), "macro-F1", "95\\% CI"])
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(found.labels) + 1)}l}}", "\\hline", f"{head} \\\\", "\\hline"]
    for name, metrics in [*found.floors.items(), *((f"{row.method} ({row.run})", row.metrics) for row in found.rows)]:
        *numbers, low, high = _scores(found, metrics)
        cells = ["--" if one is None else f"{one:.2f}" for one in numbers]
        span = "--" if low is None else f"{low:.2f}--{high:.2f}"
        lines.append(" & ".join([_tex(name), *cells, span]) + " \\\\")
    for method in found.missing:
        lines.append(" & ".join([_tex(method), *["--"] * (len(found.labels) + 2)]) + " \\\\ % missing")
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])


def _tex(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)
