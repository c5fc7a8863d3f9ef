"""Predicted timelines as `predict` shows them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from featurecache.terminal.clips import left_out
from featurecache.terminal.text import Piece, Warn

if TYPE_CHECKING:
    from heads.workflow.predicting import Predictions


def predictions(found: "Predictions") -> Iterator[Piece]:
    """The timelines that were written, and the recordings without one."""
    yield from left_out(found.left_out)
    if found.written and found.tuned is None:
        yield Warn("the bundle has no tuned timeline settings, so the defaults serve. Tune them: featurecache tune.")
    table = Table(title="Predicted timelines", title_justify="left")
    for column in ("recording", "annotated", "for ELAN", "intervals", "missing clips"):
        is_number = column in ("intervals", "missing clips")
        table.add_column(column, overflow="fold", justify="right" if is_number else "left")
    for timeline, files in found.written:
        annotated = "no" if timeline.annotated is None else "yes"
        counts = str(len(timeline.predicted)), str(len(timeline.failed))
        table.add_row(timeline.recording, annotated, files.eaf.name, *counts)
        if files.before_zero_us:
            yield Warn(
                f"{timeline.recording}: {files.before_zero_us / 1e6:g} s of predictions lie before the annotation's "
                "time zero, where ELAN shows nothing; they stand in the .csv and .json"
            )
    if found.written:
        yield table
        yield f"wrote them to {found.out}"
    for item in found.failed:
        yield Warn(f"no timeline: {item.name}: {item.reason}")
