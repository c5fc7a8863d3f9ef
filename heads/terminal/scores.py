"""Scores as commands show them: labels, methods as in the paper's Table 1, a comparison, timelines, caveats."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from featurecache.spelling import counted
from featurecache.terminal.extraction import failures
from featurecache.terminal.text import (
    MOST_LISTED,
    NARROW_WIDTH,
    ROOMY_WIDTH,
    Piece,
    Warn,
    plain_table,
    score,
)

if TYPE_CHECKING:
    from featurecache.extraction.plan import Plan
    from heads.report import Report
    from heads.workflow.evaluating import ScoredBundle, TestScores
    from heads.workflow.leaving_out import LeftOutScores

_UNBOUNDED_WIDTH = 10_000


def unit_of(metrics: Mapping[str, Any]) -> str:
    """What was scored, "clip" or "sample" of several; what does not say is of clips."""
    return str(metrics.get("unit", "clip"))


def label_scores(metrics: Mapping[str, Any], width: int) -> Iterator[Piece]:
    """The scores of each label; headings are short where the screen is narrow."""
    scored, sessions = counted(metrics["n_clips"], unit_of(metrics)), counted(metrics["n_sessions"], "session")
    title = f"{metrics['split']}: {scored} of {sessions}"
    table = Table(title=title, title_justify="left")
    headings = ("label", "F1", "precision", "recall", "AP", "threshold", "positives")
    if width < NARROW_WIDTH:
        headings = ("label", "F1", "prec", "rec", "AP", "thr", "pos")
    for column in headings:
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for label, scores in metrics["per_class"].items():
        numbers = [score(scores[name]) for name in ("f1", "precision", "recall", "average_precision", "threshold")]
        table.add_row(label, *numbers, str(scores["support"]))
    yield table


def method_scores(methods: Mapping[str, Mapping[str, Any]], width: int) -> Iterator[Piece]:
    """F1 per label and macro-F1, a row per method: the shape of the paper's Table 1, with intervals.

    Turned round, a column per method, where the screen is too narrow for it.
    """
    first = next(iter(methods.values()))
    columns: dict[str, list[str]] = {}
    for name, metrics in methods.items():
        interval = metrics.get("macro_f1_ci95")
        cells = [score(metrics["per_class"].get(label, {}).get("f1")) for label in first["per_class"]]
        span = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        columns[name] = [*cells, score(metrics.get("macro_f1")), span]
    headings = [*first["per_class"], "macro-F1", "95% CI"]
    title = f"F1 on the {first.get('split', 'test')} split"
    table = plain_table(title, ["method", *headings], [[name, *cells] for name, cells in columns.items()])
    unbounded = Console(width=_UNBOUNDED_WIDTH)
    if unbounded.measure(table).maximum > width:
        rows = [[heading, *cells] for heading, *cells in zip(headings, *columns.values(), strict=True)]
        table = plain_table(title, ["label", *columns], rows)
    yield table
    reason = first.get("macro_f1_ci95_reason")
    if reason:
        yield f"no confidence interval: {reason}"


def sample_scores(metrics: Mapping[str, Any]) -> Iterator[Piece]:
    """Of samples of several clips: the score of each slice, and how well weights find the clips with a label."""
    rows = [
        [f"{column}: {value}", str(one["n_clips"]), score(one["macro_f1"]), f"{low:.2f} to {high:.2f}" if low else "-"]
        for column, values in metrics.get("slices", {}).items()
        for value, one in values.items()
        for low, high in [one["macro_f1_ci95"] or (None, None)]
    ]
    if rows:
        yield plain_table("slices of the test samples", ["slice", "samples", "macro-F1", "95% CI"], rows)
    found = [
        f"{label} {score(one['auroc'])}{f' ({reason})' if (reason := one.get('reason')) else ''}"
        for label, one in metrics.get("part_weights", {}).items()
    ]
    if found:
        yield f"AUROC of the weights against the clips' own labels: {', '.join(found)}"


def adapted_plan(plan: "Plan") -> Iterator[Piece]:
    """What a bundle's own model or questions are to be run on before it can be scored."""
    if plan.todo:
        how = "with the fine-tuned model" if plan.asked is None else "with the bundle's questions"
        yield f"extracting {counted(plan.todo, 'clip')} {how} ..."


def evaluation(found: "TestScores", width: int) -> Iterator[Piece]:
    """What `evaluate` found."""
    yield from failures(found.failed)
    yield from left_out_clips("test", found.left_out, unit_of(found.metrics))
    yield from label_scores(found.metrics, width)
    methods: dict[str, Mapping[str, Any]] = {"all-positive baseline": found.all_positive}
    for one in found.bundles:
        methods[f"{one.method} ({one.run.name})" if found.comparisons else one.method] = one.metrics
    yield from method_scores(methods, width)
    for name, metrics in list(methods.items())[1:]:
        yield from against_baseline(name, metrics)
    for other, comparison in zip(found.bundles[1:], found.comparisons, strict=True):
        yield _comparison(comparison, "" if len(found.comparisons) == 1 else f" to {other.run.name}")
    written = " and ".join(str(one.run / "test_metrics.json") for one in found.bundles)
    yield f"test-set evaluation no. {found.looks} of these sessions; wrote {written}"
    yield from _caveats(found.metrics)
    yield from _stated_prevalence(found.metrics)
    for one in found.metrics["exclusive_violations"]:
        if one["clips"]:
            yield f"{' and '.join(one['labels'])} exclude each other, but {one['clips']} of {one['of']} clips have both"
    yield from sample_scores(found.metrics)
    for one in found.bundles:
        yield from _test_timelines(one, width)


def _stated_prevalence(metrics: Mapping[str, Any]) -> Iterator[Piece]:
    """What is to be expected where labels are as common as somebody stated."""
    unit = unit_of(metrics)
    for label, rows in metrics["prevalence_shift"].items():
        for row in rows or ():
            if row.get("stated"):
                yield (
                    f"where {label} is on in {row['prevalence']:.2%} of the {unit}s, with sensitivity and specificity "
                    f"as here: precision {score(row['precision'])}, NPV {score(row['npv'])}, F1 {score(row['f1'])}; a "
                    f"{unit} at the threshold has it with probability {score(row['probability_at_threshold'])}"
                )


def against_baseline(name: str, metrics: Mapping[str, Any]) -> Iterator[Piece]:
    """Says where a score is not above the all-positive baseline; nothing where it is so significantly."""
    difference, interval = (metrics["against_all_positive"][key] for key in ("difference", "difference_ci95"))
    if difference is None:
        return
    if difference <= 0:
        yield Warn(
            f"{name} is not above the all-positive baseline ({difference:+.3f} macro-F1): it says no more about these "
            f"sessions than every label in every {unit_of(metrics)} would."
        )
    elif interval is not None and interval[0] <= 0:
        yield Warn(
            f"{name} is {difference:+.3f} macro-F1 above the all-positive baseline, but the 95% CI ({interval[0]:+.3f} "
            f"to {interval[1]:+.3f}) holds 0: with so few sessions it may be no better."
        )


def _comparison(comparison: Mapping[str, Any], other: str) -> str:
    difference = comparison["difference"]
    text = f"difference of macro-F1{other}: {'undefined' if difference is None else f'{difference:+.3f}'}"
    if comparison["p_value"] is None:
        return f"{text}; no interval: {comparison['reason']}"
    low, high = comparison["difference_ci95"]
    holm = f", {comparison['p_holm']:.2g} adjusted for all comparisons (Holm)" if "p_holm" in comparison else ""
    sessions = counted(comparison["n_sessions"], "session")
    return f"{text} (95% CI {low:+.3f} to {high:+.3f}), p = {comparison['p_value']:.2g}{holm}, over {sessions}"


def _caveats(metrics: Mapping[str, Any]) -> Iterator[Piece]:
    for name in ("looks_warning", "split_warning", "caveat"):
        if name in metrics:
            yield Warn(f"{metrics[name]}.")


def _test_timelines(one: "ScoredBundle", width: int) -> Iterator[Piece]:
    if one.timelines is None:
        yield f"no timeline scores: {one.no_timelines_because}"
        return
    yield from timeline_scores(one.timelines, f"Timelines of the test split ({one.run.name})", width)
    yield f"wrote {one.timelines_path}"


def left_out_scores(found: "LeftOutScores", width: int) -> Iterator[Piece]:
    """What `evaluate --leave-one-session-out` found."""
    yield from left_out_clips("all splits", found.left_out, unit_of(found.metrics))
    yield from label_scores(found.metrics, width)
    yield from method_scores({found.method: found.metrics}, width)
    if found.metrics["not_learnable"]:
        names = ", ".join(found.metrics["not_learnable"])
        yield Warn(f"undefined, since one session alone decides them: {names}.")
    yield f"test-set evaluation no. {found.metrics['looks']} of these sessions; wrote {found.path}"
    yield from _caveats(found.metrics)


def left_out_clips(split: str, count: int, unit: str = "clip") -> Iterator[Piece]:
    """How many labelled clips, or samples, of a split have no features."""
    if count:
        yield Warn(f"{split}: {counted(count, f'labelled {unit}')} left out: extraction failed (failed_clips.csv)")


def timeline_scores(scores: Mapping[str, Any], title: str, width: int) -> Iterator[Piece]:
    """Segment F1 by overlap, kappa, events, durations and borders of each label."""
    table = Table(title=f"{title}: {scores['compared_s']:.0f} s compared", title_justify="left")
    table.add_column("label", overflow="fold")
    ious = list(scores["segment_f1"])
    shown = ious if width >= ROOMY_WIDTH else ious[:1] + ious[-1:]
    for column in (*(f"F1@{float(iou):g}" for iou in shown), "kappa", "events", "seconds", "onset", "end"):
        table.add_column(column, justify="right")
    for label, own in scores["per_class"].items():
        f1 = [score(own["segment_f1"][iou]) for iou in shown]
        errors = [score(own[border]["mean_absolute"]) for border in ("onset_error_s", "offset_error_s")]
        events = f"{own['events_predicted']}/{own['events_annotated']}"
        seconds = f"{own['duration_predicted_s']:.0f}/{own['duration_annotated_s']:.0f}"
        table.add_row(label, *f1, score(own["kappa"]), events, seconds, *errors)
    yield table
    spans = {iou: f" ({low:.2f} to {high:.2f})" for iou, (low, high) in (scores["segment_f1_ci95"] or {}).items()}
    macro = [f"{score(scores['segment_f1'][iou])} at {float(iou):g}{spans.get(iou, '')}" for iou in ious]
    yield "events and seconds: predicted/annotated; onset and end: mean error in seconds of matched intervals"
    yield f"macro segment F1 by overlap{', with 95% intervals' if spans else ''}: {', '.join(macro)}"


def agreement_pieces(found: Mapping[str, Any], width: int) -> Iterator[Piece]:
    """Two annotators of some recordings: scores, and the longest disagreements."""
    yield from map(Warn, found["warnings"])
    for item in found["left_out"][:MOST_LISTED]:
        yield Warn(f"left out: {item['name']}: {item['reason']}")
    yield from timeline_scores(found, f"{found['first']} (reference) and {found['second']}", width)
    for one in found["disagreements"][:MOST_LISTED]:
        span = f"{one['start_us'] / 1e6:.1f} to {one['end_us'] / 1e6:.1f} s"
        pair = next(pair for pair in found["recordings"] if pair["recording"] == one["recording"])
        where = f"{one['recording']}, " if len(found["recordings"]) > 1 else ""
        yield f"  {where}{span}: {one['label']} in {pair['first' if one['kind'] == 'missed' else 'second']} alone"


def report_pieces(written: "Report", width: int) -> Iterator[Piece]:
    """What `report` wrote, and what it could not read."""
    if written.methods:
        yield from method_scores(written.methods, width)
    for problem in written.problems:
        yield Warn(f"left out: {problem}")
    if written.frames:
        yield Warn(
            f"the page holds {counted(written.frames, 'frame')} of the recordings. Store it where they may be stored."
        )
    if written.activities is not None:
        yield f"wrote {written.activities}: seconds, bouts and first starts of each activity"
    yield f"wrote {written.path} ({written.size_bytes / 1e6:.1f} MB); open it in a browser"
