"""Where a command's words go. Whoever opens a `Screen` prints: `cli.py`, and nothing of the library.

What the library says of a long wait comes by its log, so that no call needs to be told where to.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurecache.errors import OutdatedTableWarning
from featurecache.spelling import visible
from featurecache.terminal.text import Piece, Warn

_PLAIN_WIDTH = 120


class _PlainConsole(Console):
    """A console that shows every text, cells of tables too, as what it is: nothing in a name acts."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with what cannot be seen written as escapes; its line breaks are the caller's."""
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)


@contextlib.contextmanager
def warn_in_one_line() -> Iterator[None]:
    """Lets Python's own warnings read as a command's do: one line on stderr, without a place in the program."""

    def show(message: Warning | str, *_args: object, **_options: object) -> None:
        sys.stderr.write(f"warning: {visible(str(message))}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("default", OutdatedTableWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def waits_on_stderr() -> Iterator[None]:
    """Shows what the library logs of its waits, a line each; of short waits, marked `is_wait`, on a terminal alone."""
    logs, handler = [logging.getLogger(name) for name in ("featurecache", "heads")], _Lines()
    levels = [log.level for log in logs]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG if sys.stderr.isatty() else logging.INFO)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.removeHandler(handler)
            log.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO or getattr(record, "is_wait", False):
            sys.stderr.write(f"{visible(record.getMessage())}\n")


class Screen:
    """Where a command's words go: to stdout for people, or to stderr beside a JSON document.

    Of several processes that a launcher started for one training, the first one alone speaks.
    """

    def __init__(self, as_json: bool) -> None:
        quiet = os.environ.get("RANK", "0") != "0"
        self.as_json = as_json and not quiet
        self.console, self._warnings = (
            _PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)
            for stderr in (as_json, True)
        )
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH

    @property
    def width(self) -> int:
        """Characters of a line."""
        return self.console.width

    def say(self, text: str = "") -> None:
        """A line for people."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """A line that people must not miss; always on stderr."""
        self._warnings.print(f"warning: {text}", style="yellow")

    def table(self, table: Table) -> None:
        """A table for people."""
        self.console.print(table, soft_wrap=False)

    def show(self, pieces: Iterable[Piece]) -> None:
        """Lines, tables and warnings, in order."""
        for piece in pieces:
            if isinstance(piece, Warn):
                self.warn(piece.text)
            elif isinstance(piece, Table):
                self.table(piece)
            else:
                self.say(piece)
