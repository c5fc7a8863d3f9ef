"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from featurecache.terminal.text import Piece

if TYPE_CHECKING:
    from featurecache.extraction.pipeline import Progress
    from featurecache.extraction.plan import Plan

PLAIN_LINE_EVERY_S = 5.0
Say = Callable[[str], None]
Show = Callable[[Iterable[Piece]], None]


class Pace:
    """Lets a line through every few seconds, the first one after that long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a line; if so, the next wait begins."""
        now = time.monotonic()
        if now - self._last < PLAIN_LINE_EVERY_S:
            return False
        self._last = now
        return True


@contextmanager
def watching_plan(
    console: Console, say: Say, show: Show, lines: "Callable[[Plan], Iterable[Piece]]"
) -> Iterator[dict[str, Any]]:
    """Callbacks `on_plan` and `on_progress` that show an extraction as it goes on.

    Args:
        console: Where a bar is drawn, if it is a terminal.
        say: Shows a line.
        show: Shows lines, tables and warnings.
        lines: What is shown of the plan.
    """
    with extraction_progress(console, say) as on_progress:
        yield {"on_plan": lambda plan: show(lines(plan)), "on_progress": on_progress}


@contextmanager
def extraction_progress(console: Console, say: Say) -> "Iterator[Callable[[Progress], None]]":
    """A callback for an extraction's `on_progress`.

    Args:
        console: Where a bar is drawn, if it is a terminal.
        say: Shows a plain line, if it is not.
    """
    if not console.is_terminal:
        yield _plain_lines(say)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} clips/s, model idle {task.fields[wait]:.0%}"),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=console)
    task = bar.add_task("", total=None, rate=0.0, wait=0.0)

    def update(now: "Progress") -> None:
        bar.start()  # not before there is something to show: the plan is printed first, and a dry run has no bar
        bar.update(
            task,
            total=now.total,
            completed=now.extracted + now.failed + now.claimed_by_others,
            rate=now.extracted / max(now.elapsed_s, 1e-9),
            wait=now.idle_share,
        )

    try:
        yield update
    finally:
        bar.stop()


def _plain_lines(say: Say) -> "Callable[[Progress], None]":
    pace = Pace()

    def show(now: "Progress") -> None:
        if not pace.is_due():
            return
        rate = now.extracted / max(now.elapsed_s, 1e-9)
        done = now.extracted + now.failed + now.claimed_by_others
        left = f"{(now.total - done) / rate:.0f} s left" if rate else "time left unknown"
        say(f"{done}/{now.total} clips, {rate:.1f} clips/s, {left}, the model is idle {now.idle_share:.0%} of the time")

    return show
