"""Predicted timelines as `predict` shows them."""

import os.path
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from featurecache.terminal.clips import left_out
from featurecache.terminal.text import Piece, Warn

if TYPE_CHECKING:
    from heads.timelines.timeline import PredictedInterval
    from heads.workflow.predicting import Predictions


def predictions(found: "Predictions") -> Iterator[Piece]:
    """The timelines that were written, and the recordings without one."""
    yield from left_out(found.left_out)
    if found.note:
        yield found.note
    if found.written and found.tuned is None:
        yield Warn("the bundle has no tuned timeline settings, so the defaults serve. Tune them: featurecache tune.")
    table = Table(title="Predicted timelines", title_justify="left")
    for column in ("recording", "annotated", "for ELAN", "found", "missing clips"):
        table.add_column(column, overflow="fold", justify="right" if column == "missing clips" else "left")
    for timeline, files in found.written:
        annotated = "no" if timeline.annotated is None else "yes"
        table.add_row(
            timeline.recording,
            annotated,
            os.path.relpath(files.eaf, found.out),
            _bouts(timeline.predicted),
            str(len(timeline.failed)),
        )
        if files.before_zero_us:
            yield Warn(
                f"{timeline.recording}: {files.before_zero_us / 1e6:g} s of predictions lie before the annotation's "
                "time zero, where ELAN shows nothing; they stand in the .csv and .json"
            )
    if found.written:
        yield table
        yield (
            f"wrote them to {found.out}. To correct one, open its .eaf in ELAN; docs/guide.md says how it becomes "
            "an annotation."
        )
    for item in found.failed:
        yield Warn(f"no timeline: {item.name}: {item.reason}")


def _bouts(predicted: Sequence["PredictedInterval"]) -> str:
    """How often and how long each label is on: `ventilation 2 x, 14.5 s`, a line for each label that is."""
    lengths: dict[str, list[int]] = {}
    for one in predicted:
        lengths.setdefault(one.label, []).append(one.end_us - one.start_us)
    return "\n".join(f"{label} {len(own)} x, {sum(own) / 1e6:.1f} s" for label, own in lengths.items()) or "nothing"
