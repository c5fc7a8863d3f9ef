"""Annotations as a table: CSV in and out.

Columns `recording,start_s,end_s,label` and, if wanted, `session`, in any order, under a header; further
columns are ignored. Comma, semicolon or tab separates. Spreadsheets of half the world write `;` and decimal
commas: a decimal comma is read where the separator is not a comma, one decimal mark per file. A row with
a recording and nothing else says that the recording is annotated and nothing happens in it.

Times become whole microseconds without a detour through floats. A cell that a spreadsheet would run as a formula is
written with a leading quote mark, and reading takes off exactly that one. Spaces around cells are not kept.
"""

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from featurecache.annotations.eaf import read_bounded
from featurecache.annotations.interval import Interval
from featurecache.annotations.saving import save_private
from featurecache.csv_fields import format_seconds, guard_cell, unguard_cell
from featurecache.errors import AnnotationError

_COLUMNS = ("recording", "start_s", "end_s", "label")
_SEPARATORS = (",", ";", "\t")
_SECONDS = re.compile(r"[0-9]{1,12}([.,][0-9]{0,40})?|[.,][0-9]{1,40}")


@dataclass(frozen=True)
class AnnotationTable:
    """What a CSV of annotations says.

    Attributes:
        intervals: Per recording (a posix path), sorted; empty where it is annotated and nothing happens.
        sessions: Session per recording, for the rows that name one.
    """

    intervals: Mapping[str, Sequence[Interval]]
    sessions: Mapping[str, str]


def read_csv(path: Path) -> AnnotationTable:
    """Read annotations from a CSV file.

    Args:
        path: The file: UTF-8, with a header.

    Returns:
        Intervals and sessions per recording. Backslashes in a recording's name become slashes.

    Raises:
        AnnotationError: If it cannot be read as such a table; the message names line and value.
        UnsafeFileError: If it is not a plain file, or too large.
    """
    text = _decode(path)
    separator = _separator(text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: dict[str, int] = {}
    found: dict[str, set[Interval]] = {}
    sessions: dict[str, str] = {}
    marks: dict[str, int] = {}
    line = 1
    try:
        for cells in rows:
            stripped = [cell.strip(" ") for cell in cells]
            if not any(cell.strip() for cell in stripped):
                line = rows.line_num + 1
                continue
            where = f"{path.name}, line {line}"
            line = rows.line_num + 1
            if not columns:
                columns = _columns(where, stripped)
                width = len(stripped)
                continue
            if len(stripped) < width or any(stripped[width:]):
                raise AnnotationError(
                    f"{where}: a row must have as many cells as the header ({width}), but this one has "
                    f"{len(stripped)}. Quote cells that contain the separator {separator!r}."
                )
            row = {name: unguard_cell(stripped[index]) for name, index in columns.items()}
            recording = row["recording"].replace("\\", "/")
            if not recording:
                raise AnnotationError(f"{where}: every row must name its recording, but the cell is empty. Fill it in.")
            own = found.setdefault(recording, set())
            session = row.get("session", "")
            if session and sessions.setdefault(recording, session) != session:
                raise AnnotationError(
                    f"{where}: a recording must belong to one session, but {recording!r} is in "
                    f"{sessions[recording]!r} and {session!r}. Correct one of them."
                )
            if row["start_s"] or row["end_s"] or row["label"]:
                own.add(_interval(where, row, separator, marks))
    except csv.Error as error:
        raise AnnotationError(
            f"{path.name}, line {line}: a table must be well-formed CSV, but it is not ({error}). Check its quotes."
        ) from error
    if not columns:
        raise AnnotationError(f"{path.name}: a table must have a header, but it is empty. Begin it with {_header()}.")
    return AnnotationTable({recording: tuple(sorted(own)) for recording, own in found.items()}, sessions)


def write_csv(
    path: Path,
    intervals: Mapping[str, Sequence[Interval]],
    *,
    sessions: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write annotations as a CSV file that `read_csv` reads back.

    Args:
        path: The file to make, mode 0600.
        intervals: Per recording; an empty sequence says that nothing happens in it.
        sessions: Session per recording; given, a session column is written.
        replace: Whether a file that is already there may be replaced.

    Raises:
        OutputExistsError: If the file is there and `replace` is false.
        AnnotationError: If an interval is empty, begins before zero, or has no label.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")  # quotes cells that hold either character
    writer.writerow([*_COLUMNS, *(["session"] if sessions is not None else [])])
    for recording, own in intervals.items():
        session = [] if sessions is None else [guard_cell(sessions.get(recording, ""))]
        for interval in sorted(own):
            if not (0 <= interval.start_us < interval.end_us and interval.label):
                raise AnnotationError(
                    f"{path.name}: an interval must have a label, begin at zero or later and last, but {recording!r} "
                    f"has {interval}. Drop or correct it."
                )
            times = [format_seconds(interval.start_us), format_seconds(interval.end_us)]
            writer.writerow([guard_cell(recording), *times, guard_cell(interval.label), *session])
        if not own:
            writer.writerow([guard_cell(recording), "", "", "", *session])
    save_private(path, out.getvalue().encode(), replace=replace)


def _header() -> str:
    return ",".join(_COLUMNS)


def _decode(path: Path) -> str:
    data = read_bounded(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path.name}, line {line}: a table must be UTF-8, but byte 0x{data[error.start]:02x} is not. "
            "Save it as 'CSV UTF-8'."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError(
            f"{path.name}, line {line}: a table must be UTF-8 text, but it holds a zero byte. Save it as 'CSV UTF-8'."
        )
    return text


def _separator(text: str) -> str:
    """The separator under which the first line that is not blank reads as a header."""
    header = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    for separator in _SEPARATORS:
        cells = {cell.strip().strip('"').lower() for cell in header.split(separator)}
        if set(_COLUMNS) <= cells:
            return separator
    # None fits: the one that splits most is what the person meant, and _columns says what is missing.
    return max(_SEPARATORS, key=header.count)


def _columns(where: str, header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    for column in _COLUMNS:
        if column not in names:
            near = difflib.get_close_matches(column, [name for name in names if name not in _COLUMNS], n=1)
            advice = f"Rename {near[0]!r}." if near else f"Begin the file with {_header()}."
            raise AnnotationError(
                f"{where}: the header must name {', '.join(_COLUMNS)}, but {column} is missing from "
                f"{', '.join(names)[:120]!r}. {advice}"
            )
    for column in (*_COLUMNS, "session"):
        if names.count(column) > 1:
            raise AnnotationError(
                f"{where}: a column must occur once, but {column} occurs {names.count(column)} times. Remove one."
            )
    return {name: names.index(name) for name in (*_COLUMNS, "session") if name in names}


def _interval(where: str, row: Mapping[str, str], separator: str, marks: dict[str, int]) -> Interval:
    start_us = _microseconds(where, "start_s", row["start_s"], separator, marks)
    end_us = _microseconds(where, "end_s", row["end_s"], separator, marks)
    if end_us <= start_us:
        raise AnnotationError(
            f"{where}: end_s must lie behind start_s, but {row['end_s']} does not lie behind {row['start_s']}. "
            "Correct one of them."
        )
    if not row["label"]:
        raise AnnotationError(f"{where}: every interval must have a label, but the cell is empty. Fill it in.")
    return Interval(start_us, end_us, row["label"])


def _microseconds(where: str, column: str, text: str, separator: str, marks: dict[str, int]) -> int:
    if not _SECONDS.fullmatch(text):
        raise AnnotationError(
            f"{where}: {column} must be seconds such as 12.5, zero or more, but it is {text[:40]!r}. Correct it."
        )
    mark = "," if "," in text else "." if "." in text else ""
    if mark == "," and separator == ",":
        raise AnnotationError(
            f"{where}: {column} must have a decimal point where commas separate the cells, but it is {text!r}. "
            "Write a point, or save the table with semicolons."
        )
    if mark:
        marks.setdefault(mark, len(marks))
        if len(marks) > 1:
            raise AnnotationError(
                f"{where}: a table must use one decimal mark, but {column} is {text!r} and earlier rows use "
                f"{next(iter(marks))!r}. Write all times alike."
            )
    return round(Fraction(text.replace(",", ".")) * 1_000_000)
