"""Words and numbers for people, and the three kinds of things that a command shows: a line, a table, a warning."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

MOST_LISTED = 10
"""Items of a list that are shown; all of them stand in the JSON document."""

NARROW_WIDTH, ROOMY_WIDTH = 80, 90
"""Widths of a screen, in characters, below which tables are cut down and to which running text is filled."""


@dataclass(frozen=True)
class Warn:
    """A line that people must not miss."""

    text: str


Piece = str | Table | Warn
"""What a command shows, in order."""


def rough_size(size_bytes: float) -> str:
    """A size to one decimal, in MB or GB."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"


def rough_time(seconds: float, longest_s: float | None = None) -> str:
    """A time to three digits, or a range of it in one unit."""
    units = (("days", 86400.0), ("hours", 3600.0), ("min", 60.0))
    unit, size = next(((unit, size) for unit, size in units if seconds >= 2 * size), ("s", 1.0))
    if seconds < 0.1:
        unit, size = "ms", 1e-3
    return f"{seconds / size:.3g}" + (f" to {longest_s / size:.3g}" if longest_s else "") + f" {unit}"


def score(value: float | None) -> str:
    """A score to two decimals; a label without a positive clip has none."""
    return "undefined" if value is None else f"{value:.2f}"


def plain_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers; long words wrap."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def system_error(error: OSError) -> str:
    """What the system says of a file, and what to do about it, on one line."""
    where, why = error.filename or "a file of the project", error.strerror or error
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Free space and run again." if full else "Check its path and its rights."
    return f"{where} must be usable, but the system says: {why}. {advice}"
