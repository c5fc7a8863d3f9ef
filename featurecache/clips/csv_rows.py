"""Rows of `clips.csv` as columns: each distinct cell is checked once, however many clips share it.

Recordings, sessions, splits, times and targets repeat from line to line, so a table of millions of clips is read by
looking its cells up. Not here: the file around the rows, and what clips must not share (`featurecache.clips.csv_file`).
"""

import re
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from featurecache.clips.clip import COLUMNS, ClipColumns, Coded
from featurecache.clips.splits import SPLITS
from featurecache.csv_fields import UNWRITABLE, format_seconds, parse_seconds, unguard_cell
from featurecache.spelling import did_you_mean

_DIGITS = 16
_CLIP_ID = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-[0-9]{{1,18}}-[0-9]{{1,18}}")
_TARGETS = {"0": 0, "1": 1, "": None, "0.0": 0, "1.0": 1, "0,0": 0, "1,0": 1}
_MOST_SPANS = 1 << 16  # of one long recording none comes again: what was looked up is dropped then

_Cell = TypeVar("_Cell", bound=Hashable)
_Value = TypeVar("_Value", bound=Hashable)


class RowFault(Exception):  # noqa: N818  # the caller, who knows file and line, makes the error
    """What is wrong with a row: text that follows `<file>, line <n>`."""


def _fault(column: str, rule: str, found: str, remedy: str) -> RowFault:
    return RowFault(f", column {column}: {found!r} {rule}. {remedy}")


class _Codes(dict[_Cell, int], Generic[_Cell, _Value]):
    """Cell -> code of its value; what a cell means is asked once."""

    def __init__(self, meaning: Callable[[_Cell], _Value]) -> None:
        super().__init__()
        self._meaning = meaning
        self._codes: dict[_Value, int] = {}
        self.column = array("i")

    def __missing__(self, cell: _Cell) -> int:
        code = self[cell] = self._codes.setdefault(self._meaning(cell), len(self._codes))
        return code

    def coded(self) -> Coded[_Value]:
        """The column so far."""
        return Coded(np.array(self.column, np.int32), tuple(self._codes))


class RowReader:
    """Gathers rows as columns.

    Args:
        labels: The labels, whose columns follow the fixed ones.
        decimal_comma: Whether times may have a comma for the decimal point.
    """

    def __init__(self, labels: Sequence[str], *, decimal_comma: bool) -> None:
        self._labels = labels
        self._decimal_comma = decimal_comma
        self._width = len(COLUMNS) + len(labels)
        self._content = _Codes(str)
        self._recording = _Codes(_recording)
        self._session = _Codes(_session)
        self._split = _Codes(_split)
        self._targets = _Codes(self._targets_of)
        self._spans: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._edges = array("q")

    def add(self, row: Sequence[str]) -> None:
        """Takes a row.

        Raises:
            RowFault: If it is no sound clip.
        """
        if len(row) != self._width and (len(row) < self._width or any(row[self._width :])):
            raise RowFault(
                f": it must have {self._width} fields as the header has, but it has {len(row)}. "
                "Restore the missing ones, or remove what follows the last."
            )
        name, recording, session, split, start, end = row[: len(COLUMNS)]
        name = name.strip()
        content, window = name[:_DIGITS], (name[_DIGITS:], start, end)
        span = self._spans.get(window)
        if span is None or content not in self._content:
            if not _CLIP_ID.fullmatch(name):
                rule = "must be 16 hex digits, start and end in microseconds, as in 0123456789abcdef-0-3000000"
                raise _fault("clip_id", rule, name, "Restore it.")
            if len(self._spans) >= _MOST_SPANS:
                self._spans.clear()
            span = self._spans[window] = self._span_of(name, start, end)
        self._content.column.append(self._content[content])
        self._recording.column.append(self._recording[recording])
        self._session.column.append(self._session[session])
        self._split.column.append(self._split[split])
        self._edges.extend(span)
        self._targets.column.append(self._targets[tuple(row[len(COLUMNS) : self._width])])

    def columns(self) -> ClipColumns:
        """All rows."""
        return ClipColumns(
            self._content.coded(),
            self._recording.coded(),
            self._session.coded(),
            self._split.coded(),
            np.array(self._edges, np.int64).reshape(-1, 2),
            self._targets.coded(),
        )

    def _span_of(self, name: str, *cells: str) -> tuple[int, int]:
        """Start and end by a clip's id, with which its cells must agree."""
        start_us, end_us = map(int, name[_DIGITS + 1 :].split("-"))
        times_us = [self._time(column, cell.strip()) for column, cell in zip(("start_s", "end_s"), cells, strict=True)]
        for column, time_us, id_us in zip(("start_s", "end_s"), times_us, (start_us, end_us), strict=True):
            if time_us != id_us:
                rule = f"must be {format_seconds(id_us)} as the clip_id {name} says"
                remedy = "Restore it; length_s and stride_s under [clips] make clips of other times."
                raise _fault(column, rule, format_seconds(time_us), remedy)
        if start_us >= end_us:
            raise _fault("end_s", f"must lie after start_s ({cells[0].strip()})", cells[1].strip(), "Restore the line.")
        return start_us, end_us

    def _time(self, column: str, cell: str) -> int:
        try:
            return parse_seconds(cell.replace(",", ".") if self._decimal_comma else cell)
        except ValueError as error:
            raise _fault(column, "must be seconds with at most 6 decimals", cell, "Restore it.") from error

    def _targets_of(self, cells: tuple[str, ...]) -> tuple[int | None, ...]:
        targets = tuple(_target(label, cell) for label, cell in zip(self._labels, cells, strict=True))
        if None in targets and any(target is not None for target in targets):
            raise RowFault(
                f", column {self._labels[targets.index(None)]}: a clip must have all targets or none, but this one is "
                "empty and others are not. Fill it with 0 or 1, or empty all to leave the clip unlabelled."
            )
        return targets


def _recording(cell: str) -> str:
    recording = unguard_cell(cell)
    if not recording:
        raise _fault("recording", "must name a recording", recording, "Restore it.")
    return _writable("recording", recording)


def _session(cell: str) -> str:
    session = cell.strip()
    if not session:
        raise _fault("session", "must name a session", session, "Name it; to leave the clip out, empty its split.")
    return unguard_cell(_writable("session", session))


def _writable(column: str, text: str) -> str:
    if UNWRITABLE.search(text):
        raise _fault(column, "must hold no control character", text, "Restore it.")
    return text


def _split(cell: str) -> str:
    split = cell.strip()
    if split and split not in SPLITS:
        remedy = did_you_mean(split.lower(), SPLITS, "Correct it.")
        raise _fault("split", "must be train, validation, test, or empty to leave the clip out", split, remedy)
    return split


def _target(label: str, cell: str) -> int | None:
    try:
        return _TARGETS[cell.strip()]
    except KeyError:
        rule = "must be 0, 1, or empty (every column after end_s is a label)"
        raise _fault(label, rule, cell, "Correct it, or remove the column.") from None
