"""What the documents say, in the few sentences that stand first on the page: what was found, and how sure it is.

Notable choices: a sentence is written only where its numbers exist; a caution is never left out because the score is
good. The floor is the all-positive baseline, which needs no model. Nothing is computed here beyond such shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.clips.clip import ClipTable
from featurecache.clips.label_counts import LabelSources
from featurecache.clips.leakage import split_level
from featurecache.clips.record import label_digests
from featurecache.spelling import counted, visible
from heads.report.documents import Document, Documents, Run, number, unit_of
from heads.report.figures import ends_of, interval_of, per_class, prevalence_of, row_names
from heads.report.names import isolated
from heads.report.timelines import Difference, Timeline, total_us


@dataclass(frozen=True)
class Summary:
    """The top of the page.

    Attributes:
        headline: Name, score, interval and split of the highest score; empty where nothing was scored.
        findings: Sentences on what was found.
        cautions: Sentences on what makes it less sure.
        next_step: What to do where something is missing; "" where nothing is.
    """

    headline: dict[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    next_step: str = ""


def summarize(documents: Documents, timelines: Sequence[Timeline], found: Sequence[Difference]) -> Summary:
    """The summary of a project."""
    tested = [run for run in documents.runs if number(run.test.get("macro_f1")) is not None]
    validated = [run for run in documents.runs if number(run.validation.get("macro_f1")) is not None]
    cautions = _cautions(documents, tested)
    if (best := best_run(tested)) is not None:
        findings = [*_on_test(best), *_of_labels(best.test), *_of_timelines(timelines, found)]
        return Summary(_headline(best, best.test, tested), tuple(findings), tuple(cautions))
    next_step = "Score the best head on the test split: featurecache evaluate"
    if not validated:
        step = "Train a head: featurecache tune" if documents.spaces else "Fill the cache: featurecache extract"
        return Summary({}, tuple(_of_timelines(timelines, found)), tuple(cautions), step)
    best = max(validated, key=lambda run: number(run.validation["macro_f1"]) or 0.0)
    cautions.insert(
        0,
        "This score is of the sessions that chose the settings and thresholds: it is optimistically biased.",
    )
    findings = [*_of_labels(best.validation), *_of_timelines(timelines, found)]
    return Summary(_headline(best, best.validation, validated), tuple(findings), tuple(cautions), next_step)


def best_run(runs: Sequence[Run]) -> Run | None:
    """The run of the highest macro-F1 on the test split; None where nothing was scored on it."""
    tested = [run for run in runs if number(run.test.get("macro_f1")) is not None]
    return max(tested, key=lambda run: number(run.test["macro_f1"]) or 0.0, default=None)


def all_positive_f1(metrics: Document) -> dict[str, float]:
    """F1 of the all-positive baseline for each label that has a positive clip: 2p / (1 + p) for a share of p."""
    scores = metrics.get("per_class")
    shares = {label: prevalence_of(metrics, label) for label in scores} if isinstance(scores, dict) else {}
    return {label: 2 * share / (1 + share) for label, share in shares.items() if share}


def floor_of(metrics: Document) -> float | None:
    """Macro-F1 of the all-positive baseline."""
    scores = all_positive_f1(metrics)
    return sum(scores.values()) / len(scores) if scores else None


def extent(table: ClipTable | None, sources: LabelSources) -> str:
    """Sessions, recordings and hours of a clip table, and who labelled it, in words; empty without one."""
    if table is None or not table.clips:
        return ""
    lengths: dict[str, int] = {}
    for clip in table.clips:
        lengths[clip.content] = max(lengths.get(clip.content, 0), clip.end_us)
    labelled = sum(clip.labelled for clip in table.clips)
    sessions = len({clip.session for clip in table.clips})
    by_whom = sources.in_words()
    hours = sum(lengths.values()) / 3.6e9
    length = f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"
    return (
        f"{counted(sessions, 'session')}, {counted(len(lengths), 'recording')}, {length} of video; {labelled} of "
        f"{len(table.clips)} clips have labels{f' ({by_whom})' if by_whom else ''}"
    )


def _headline(run: Run, metrics: Document, among: Sequence[Run]) -> dict[str, Any]:
    return {
        "name": dict(zip(among, row_names(among), strict=True))[run],
        "value": number(metrics["macro_f1"]),
        "interval": interval_of(metrics),
        "clips": metrics.get("n_clips"),
        "unit": unit_of(metrics),
        "sessions": metrics.get("n_sessions"),
        "split": metrics.get("split", ""),
    }


def _on_test(best: Run) -> list[str]:
    floor, interval = floor_of(best.test), interval_of(best.test)
    if floor is None:
        return []
    start = f"The all-positive baseline, every label in every {unit_of(best.test)}, reaches {floor:.2f}"
    if (number(best.test["macro_f1"]) or 0) <= floor:
        return [f"{start}: the score is not above it. Nothing shows that the head learned."]
    ends, is_above = _above_floor(best.test, floor, interval)
    if is_above is None:
        return [f"{start}."]
    if is_above:
        return [f"{start}: the score is significantly above it{ends}."]
    return [f"{start}: the score is above it, but not significantly{ends}. With so few sessions it may be no better."]


def _above_floor(metrics: Document, floor: float, interval: tuple[float, float] | None) -> tuple[str, bool | None]:
    """The interval of the paired difference, in words, and whether it excludes 0; by the score's own where it lacks."""
    paired = metrics.get("against_all_positive")
    ends = ends_of(paired.get("difference_ci95")) if isinstance(paired, Mapping) else None
    if ends is not None:
        return f" (95% CI of the difference {ends[0]:+.2f} to {ends[1]:+.2f})", ends[0] > 0
    return "", None if interval is None else interval[0] > floor


def _of_labels(metrics: Document) -> list[str]:
    scores = metrics.get("per_class")
    labels = scores if isinstance(scores, dict) else {}
    ranked = sorted((f1, label) for label in labels if (f1 := number(per_class(metrics, label).get("f1"))) is not None)
    if len(ranked) < 2:
        return []
    lines = [
        f"Macro-F1 is the mean over activities of F1, which is 1 where each {unit_of(metrics)} with the activity is "
        "reported and no other, and 0 where none is."
    ]
    for place, (f1, label) in (("Best", ranked[-1]), ("Weakest", ranked[0])):
        lines.append(
            f"{place} on {isolated(label)} (F1 {f1:.2f}, {_positives(metrics, label)}){_in_words(metrics, label)}."
        )
    return lines


def _in_words(metrics: Document, label: str) -> str:
    """What precision and recall of a label mean, for somebody who does not know F1."""
    unit = unit_of(metrics)
    precision, recall = (number(per_class(metrics, label).get(name)) for name in ("precision", "recall"))
    if recall is None:
        return ""
    reported = "" if precision is None else f" of 100 {unit}s reported with it, {100 * precision:.0f} have it;"
    return f":{reported} of 100 {unit}s that have it, {100 * recall:.0f} are reported"


def _of_timelines(timelines: Sequence[Timeline], found: Sequence[Difference]) -> list[str]:
    compared = [one for one in timelines if one.annotated is not None and one.split == "test"]
    if not compared:
        return []
    names = {one.recording for one in compared}
    found = [one for one in found if one.recording in names]
    annotated = sum(total_us(spans) for one in compared for spans in (one.annotated or {}).values())
    missed, extra = (sum(one.duration_us for one in found if one.kind == kind) for kind in ("missed", "extra"))
    return [
        f"On the timelines of {len(compared)} annotated recordings of the test split, the model misses "
        f"{_minutes(missed)} of {_minutes(annotated)} of annotated activity and adds {_minutes(extra)} (activities at "
        "the same time each count)."
    ]


def _cautions(documents: Documents, tested: Sequence[Run]) -> list[str]:
    cautions = []
    forced = any("clip" in (run.test.get("split_level"), run.best.get("split_level")) for run in documents.runs)
    if forced or (documents.table is not None and split_level(documents.table.clips) == "clip"):
        cautions.append(
            "The splits cut sessions (a clip-level split was forced): clips of one session train and score, so every "
            "score here is optimistically biased."
        )
    if documents.looks.total > 1:
        cautions.append(
            f"The test split was evaluated {documents.looks.total} times. Settings chosen after an earlier evaluation "
            "make its score optimistically biased (too high)."
        )
    if len(tested) > 1:
        cautions.append(
            f"{len(tested)} runs were scored on the same test split; the highest of them is slightly optimistically "
            "biased."
        )
    for reason in dict.fromkeys(run.test["macro_f1_ci95_reason"] for run in tested if _has_reason(run)):
        cautions.append(f"There is no confidence interval: {visible(reason)}.")
    undefined = dict.fromkeys(str(label) for run in tested for label in run.test.get("undefined") or ())
    if undefined:
        names = ", ".join(map(isolated, undefined))
        cautions.append(f"Never on in the test split, and so without a score: {names}.")
    if changed := max((_relabelled(run, documents.table) for run in tested), default=0):
        cautions.append(
            f"The labels of {counted(changed, 'test recording')} have changed since scores were made: these, timelines "
            "and seconds are of the labels before. Run: featurecache evaluate."
        )
    if differing := next(filter(None, map(_differing_labels, tested)), ""):
        cautions.append(
            f"The labels of clips.csv are not those of the annotation files ({differing}). Scores of clips count the "
            "table; timelines, seconds, bouts and other shares of a clip count the files. Where the table was "
            "corrected, correct the annotations too."
        )
    if documents.failures:
        cautions.append(
            f"{counted(sum(documents.failures.values()), 'clip')} could not be extracted, and no result counts them."
        )
    if documents.damage:
        cautions.append(
            f"The cache is damaged in {counted(len(documents.damage), 'place')}. Quarantine it: featurecache cache "
            "repair"
        )
    if documents.problems:
        cautions.append(f"{counted(len(documents.problems), 'file')} could not be read, as listed under provenance.")
    return cautions


def _relabelled(run: Run, table: ClipTable | None) -> int:
    """How many of the recordings that a run was scored on have other labels in the clip table by now."""
    scored, labels = run.test.get("label_digests"), run.test.get("per_class")
    if table is None or not isinstance(scored, Mapping) or not isinstance(labels, Mapping):
        return 0
    now = label_digests(table.of_labels(list(labels))) if labels.keys() <= {*table.labels} else {}
    return sum(now.get(content) != digest for content, digest in scored.items())


def _differing_labels(run: Run) -> str:
    """The label whose positive clips differ most between clip table and annotation files; "" where none does."""
    rows = run.test.get("overlap_sensitivity")
    own = [one for one in rows if isinstance(one, Mapping) and one.get("own") is True] if isinstance(rows, list) else []
    support = own[0].get("support") if own else None
    by_files = {str(label): number(count) for label, count in support.items()} if isinstance(support, Mapping) else {}
    pairs = [(label, number(per_class(run.test, label).get("support")), files) for label, files in by_files.items()]
    found = [
        (abs(files - table), label, table, files)
        for label, table, files in pairs
        if table is not None and files is not None
    ]
    most, label, table, files = max(found, default=(0.0, "", 0.0, 0.0))
    return f"{isolated(label)}: {table:g} clips in the table, {files:g} by the files" if most else ""


def _has_reason(run: Run) -> bool:
    return isinstance(run.test.get("macro_f1_ci95_reason"), str)


def _positives(metrics: Document, label: str) -> str:
    support = number(per_class(metrics, label).get("support"))
    return f"positive {unit_of(metrics)}s unknown" if support is None else f"{support:.0f} positive {unit_of(metrics)}s"


def _minutes(time_us: int) -> str:
    return f"{time_us / 60e6:.1f} min"
