"""Training as commands show it: what is learned from, how far it is, and what came out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from featurecache.spelling import counted
from featurecache.terminal.text import Piece, Warn
from heads.terminal.scores import label_scores, left_out_clips

if TYPE_CHECKING:
    from heads.workflow.data import DataSummary
    from heads.workflow.training import TrainedRun


def data_lines(data: "DataSummary") -> Iterator[Piece]:
    """What a head learns from, and what is left out of it."""
    for split, one in data.splits.items():
        yield from left_out_clips(split, one.left_out, data.unit)
        if one.purged:
            yield Warn(f"{split}: {counted(one.purged, data.unit)} left out for touching clips that score them")
    yield ", ".join(
        f"{name}: {counted(one.clips, data.unit)} of {counted(one.sessions, 'session')}"
        for name, one in data.splits.items()
    )
    if "split_warning" in data.leakage:
        yield Warn(f"{data.leakage['split_warning']}.")


def trained_run(run: "TrainedRun", width: int) -> Iterator[Piece]:
    """A run that was written: timeline settings, held-out scores, and where its bundle is."""
    scored = run.best["scored"]
    if run.timeline is None:
        yield f"timeline settings stay at their defaults: {run.no_timeline_because}"
    else:
        yield (
            f"timelines: segment F1 {run.timeline.segment_f1:.2f} by {scored} scores with the settings "
            f"chosen by them, {run.timeline.untuned_segment_f1:.2f} with the defaults"
        )
    if weights := run.best.get("input_weights"):
        yield f"weights of inputs: {', '.join(f'{name} {weight:.2f}' for name, weight in weights.items())}"
    for rule in run.best.get("exclusive", ()):
        yield exclusive_rule(rule, scored)
    yield from label_scores(run.metrics, width)
    yield f"{scored} macro-F1 {run.best['value']:.3f} at threshold 0.5; wrote {run.bundle}"


def exclusive_rule(rule: Mapping[str, Any], scored: str) -> str:
    """Whether predictions of clips keep to a rule of exclusive labels, and why."""
    both = f"{' and '.join(rule['labels'])}: {rule['clips']} of {counted(rule['of'], 'clip')} would have more than one"
    change = f"{scored} macro-F1 {rule['macro_f1_with']:.3f} with the rule, {rule['macro_f1']:.3f} without"
    taken = "each clip keeps the surest" if rule["kept"] else "clips keep them all, timelines do not"
    return f"{both}; {taken} ({change})"


def tuned_run(run: "TrainedRun", width: int) -> Iterator[Piece]:
    """A search's run: what it found, and what `trained_run` shows."""
    from heads.search.summary import in_words

    yield from in_words(run.best)
    yield from trained_run(run, width)


@contextmanager
def search_progress(console: Console) -> Iterator[Callable[[int, int, float | None], None]]:
    """A callback for `tune`'s `on_progress`: a bar on a terminal, nothing elsewhere."""
    if not console.is_terminal:
        yield lambda _done, _asked, _best: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("searching"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console)
    task = bar.add_task("", total=None, best="")

    def update(done: int, asked: int, best: float | None) -> None:
        bar.start()  # not before there is something to show: what is learned from is printed first
        bar.update(task, total=asked, completed=done, best="" if best is None else f"best macro-F1 {best:.3f}")

    try:
        yield update
    finally:
        bar.stop()
