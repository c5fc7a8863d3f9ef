"""Settings and clip table as `init` and `clips` show them: the label audit, and recordings that are left out."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from featurecache.spelling import counted
from featurecache.terminal.text import MOST_LISTED, Piece, Warn

if TYPE_CHECKING:
    from featurecache.clips.label_counts import LabelAudit
    from featurecache.setup.proposal import Proposal
    from featurecache.video.recordings import UnusableRecording
    from featurecache.workflow.clips import MadeClips


def proposal(found: "Proposal") -> Iterator[Piece]:
    """The settings that `init` wrote, and what led to them."""
    yield f"wrote {found.path}"
    yield from (f"  {note}" for note in found.notes)
    yield from (Warn(warning) for warning in found.warnings)
    folder = found.path.parent
    yield f"Look it over, then: featurecache clips{'' if folder == Path() else f' --config {shlex.quote(str(folder))}'}"


def made_clips(made: "MadeClips") -> Iterator[Piece]:
    """What `clips` did; files that are left out were shown as they were found."""
    yield from label_audit(made.audit)
    yield from made.rules
    if made.samples is not None:
        from featurecache.clips.samples_file import SAMPLES_NAME  # this room is read before a command's first word

        yield f"{counted(made.samples, 'sample')} of several clips in {made.path.with_name(SAMPLES_NAME)}"
    yield f"wrote {made.path}"


def label_audit(found: "LabelAudit") -> Iterator[Piece]:
    """Positive clips of each label and split, and every warning."""
    table = Table(title="Positive clips", title_justify="left")
    for column in ("label", "minutes", "intervals"):
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for split in found.splits:
        heading = (split.name, counted(split.sessions, "session"), counted(split.labelled, "clip"))
        table.add_column("\n".join(heading), justify="right")
    for label in found.labels:
        cells = [
            f"{split.positives[label.label]} ({share:.0%})"
            if (share := split.prevalence[label.label]) is not None
            else "-"
            for split in found.splits
        ]
        table.add_row(label.label, f"{label.minutes:.1f}", str(label.intervals), *cells)
    yield table
    labelled = f"{found.labelled_clips} labelled, {found.unlabelled_clips} unlabelled"
    yield f"{counted(found.clips, 'clip')}, {labelled}"
    if sources := found.sources.in_words():
        yield f"labelled {sources}"
    yield from map(Warn, found.warnings)


def left_out(unusable: "Sequence[UnusableRecording]") -> Iterator[Piece]:
    """The first recordings or annotation files that cannot be used, with their reasons."""
    for item in unusable[:MOST_LISTED]:
        yield Warn(f"left out: {item.name}: {item.reason}")
    if len(unusable) > MOST_LISTED:
        yield Warn(f"left out: {len(unusable) - MOST_LISTED} more (all of them with --json)")
