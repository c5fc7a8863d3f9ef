"""Predicted timelines as `predict` shows them."""

import os.path
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from featurecache.spelling import counted
from featurecache.terminal.clips import left_out
from featurecache.terminal.text import Piece, Warn

_SHOWN = 20
"""Samples that are shown."""

if TYPE_CHECKING:
    from heads.timelines.timeline import PredictedInterval
    from heads.workflow.predicting import Predictions
    from heads.workflow.predicting_samples import PredictedSamples


def predictions(found: "Predictions") -> Iterator[Piece]:
    """The timelines that were written, and the recordings without one."""
    yield from left_out(found.left_out)
    if found.note:
        yield found.note
    if found.samples is not None:
        yield from _samples(found.samples)
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
        yield Warn(f"nothing predicted: {item.name}: {item.reason}")


def _samples(found: "PredictedSamples") -> Iterator[Piece]:
    """The samples that were scored, the first of many, and those without a score."""
    table = Table(title="Predicted samples", title_justify="left")
    for column in ("sample", "parts", "on", "absent parts"):
        table.add_column(column, overflow="fold", justify="left" if column in ("sample", "on") else "right")
    for row, sample in enumerate(found.samples[:_SHOWN]):
        scores = zip(found.thresholds, found.scores[row], found.on[row], strict=True)
        is_on = "\n".join(f"{label} {score:.2f}" for label, score, on in scores if on) or "nothing"
        absent = sample.parts.count("") + found.lost[row]
        table.add_row(sample.name, str(len(sample.parts) - absent), is_on, str(absent))
    if found.samples:
        yield table
    if len(found.samples) > _SHOWN:
        yield f"and {len(found.samples) - _SHOWN} more"
    if lost := sum(found.lost):
        yield Warn(f"{counted(lost, 'part')} could not be extracted; a sample without one is scored by its others")
    if found.seen:
        yield Warn(f"{counted(len(found.seen), 'sample')} made the bundle: their scores say nothing of new recordings")
    for one in found.unscored:
        yield Warn(f"no score: {one.sample}: {one.reason}")
    yield f"wrote {found.table}{'' if found.weights is None else f', and what each part weighs to {found.weights}'}"


def _bouts(predicted: Sequence["PredictedInterval"]) -> str:
    """How often and how long each label is on: `ventilation 2 x, 14.5 s`, a line for each label that is."""
    lengths: dict[str, list[int]] = {}
    for one in predicted:
        lengths.setdefault(one.label, []).append(one.end_us - one.start_us)
    return "\n".join(f"{label} {len(own)} x, {sum(own) / 1e6:.1f} s" for label, own in lengths.items()) or "nothing"
