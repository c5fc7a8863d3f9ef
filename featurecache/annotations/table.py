"""Annotations as a table: CSV and other programs' exports.

Our own columns are `recording,start_s,end_s,label` and, if wanted, `session` and `annotator`, in any order, under a
header; further columns are ignored. Other tables are read by the settings' `columns`. A row with a recording and
nothing else says that the recording is annotated and nothing happens in it. A row that ends where it begins is a point.

A row that is wrong is left out and told; the others are read. Of a cell with a leading quote mark that keeps a
spreadsheet from running it as a formula, reading takes off exactly that mark. Spaces around cells are not kept.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from featurecache.annotations.clock import DecimalMarks, is_time
from featurecache.annotations.columns import columns_line, recognise, tiers_of, unit_of
from featurecache.annotations.interval import Interval
from featurecache.annotations.other_clocks import OtherClock
from featurecache.annotations.table_text import TableText, read_table_text
from featurecache.csv_fields import unguard_cell
from featurecache.errors import AnnotationError
from featurecache.project.columns import ColumnSettings
from featurecache.spelling import caseless

OWN_COLUMNS = ("recording", "start_s", "end_s", "label")
_OWN = ColumnSettings()
_SETTINGS = " (init without --annotations writes the file; then set annotations and columns there)"
_PLAYER = re.compile(r"player ?#?[0-9]+:", re.IGNORECASE)
_STARTS, _STOPS, _POINTS = {"start", "state start", "begin", "on"}, {"stop", "state stop", "end", "off"}, {"point"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One annotation of a table: an interval, or a point where it ends as it begins."""

    recording: str
    label: str
    value: str
    annotator: str
    start_us: int
    end_us: int


@dataclass(frozen=True)
class AnnotationTable:
    """What a table of annotations says.

    Attributes:
        rows: The annotations, in order.
        recordings: Every recording that it annotates, also where nothing happens (posix paths), in order.
        sessions: Session per recording, for the rows that name one.
        left_out: Why rows are left out, a sentence each that begins with the line.
    """

    rows: Sequence[TableRow]
    recordings: Sequence[str]
    sessions: Mapping[str, str]
    left_out: Sequence[str] = ()

    @property
    def intervals(self) -> dict[str, tuple[Interval, ...]]:
        """Per recording, sorted: the rows that last, by their label alone."""
        found: dict[str, set[Interval]] = {recording: set() for recording in self.recordings}
        for row in self.rows:
            if row.start_us < row.end_us:
                found[row.recording].add(Interval(row.start_us, row.end_us, row.label))
        return {recording: tuple(sorted(own)) for recording, own in found.items()}


def read_csv(path: Path, columns: ColumnSettings = _OWN) -> AnnotationTable:
    """Read annotations from a table.

    Args:
        path: The file, with a header.
        columns: What its columns are called.

    Returns:
        What it says. Backslashes in a recording's name become slashes.

    Raises:
        AnnotationError: If it cannot be read as such a table, or a recording is in two sessions; the message names line
            and value.
        UnsafeFileError: If it is not a plain file, or too large.
    """
    text = read_table_text(path, lambda cells: not _missing(cells, columns) or recognise(cells) is not None)
    places = _places(text, columns)
    reader = _Reader(text, columns, places, path.stem)
    for line, cells in text.rows:
        reader.read(line, cells)
    reader.finish()
    return AnnotationTable(tuple(reader.rows), tuple(reader.recordings), reader.sessions, tuple(reader.left_out))


def header_of(path: Path) -> Sequence[str]:
    """The names of a table's columns, whatever they mean.

    Raises:
        AnnotationError: If it cannot be read or decoded, or is empty.
        UnsafeFileError: If it is not a plain file, or too large.
    """
    return read_table_text(path, lambda cells: recognise(cells) is not None).header[1]


class _Reader:
    """Rows to annotations, by the places of a table's columns."""

    def __init__(self, text: TableText, columns: ColumnSettings, places: Mapping[str, int], own_name: str) -> None:
        self.text = text
        self.columns = columns
        self.places = places
        self.own_name = own_name
        self.marks = DecimalMarks(text.separator, columns.frame_rate)
        # ELAN's CSV has a separator behind the last name, and none behind the last cell of a row.
        self.width = max((at for at, name in enumerate(text.header[1], 1) if name.strip()), default=0)
        self.clock = OtherClock(text, places.get("recording"))
        self.rows: list[TableRow] = []
        self.recordings: dict[str, None] = {}
        self.sessions: dict[str, str] = {}
        self.left_out: list[str] = []
        self.open: dict[tuple[str, ...], tuple[int, int]] = {}

    def read(self, line: int, cells: Sequence[str]) -> None:
        """One row; a wrong one is left out and told.

        Raises:
            AnnotationError: If it puts a recording into a second session.
        """
        if len(cells) < self.width or any(cells[len(self.text.header[1]) :]):
            self.left_out.append(
                f"line {line}: a row must have as many fields as the header ({self.width}), but this one has "
                f"{len(cells)}. Quote fields that contain the separator {self.text.separator!r}."
            )
            return
        row = {key: unguard_cell(cells[place]) for key, place in self.places.items()}
        recording = _PLAYER.sub("", row.get("recording", self.own_name)).replace("\\", "/")
        if not recording:
            self.left_out.append(f"line {line}: every row must name its recording, but the cell is empty. Fill it in.")
            return
        session = row.get("session", "")
        if session and caseless(self.sessions.setdefault(recording, session)) != caseless(session):
            raise AnnotationError(
                f"{self.text.name}, line {line}: a recording must belong to one session, but {recording!r} is in "
                f"{self.sessions[recording]!r} and {session!r}. Correct one of them."
            )
        if not any(row.get(key) for key in ("start", "end", "duration", "label", "value")):
            self.recordings[recording] = None
            return
        try:
            self._annotation(line, recording, row, self.clock.ahead_us(cells))
            self.recordings[recording] = None
        except ValueError as error:
            self.left_out.append(f"line {line}: {error}")

    def finish(self) -> None:
        """Tells of events that began and never ended."""
        for (recording, label, *_), (line, _) in self.open.items():
            self.left_out.append(
                f"line {line}: every START must have a STOP, but that of {label!r} in {recording!r} has none. Add it."
            )

    def _annotation(self, line: int, recording: str, row: Mapping[str, str], ahead_us: int) -> None:
        label, value, annotator = row["label"], row.get("value", ""), row.get("annotator", "")
        start_us = self._time("start", row["start"]) - ahead_us
        if start_us < 0:
            raise ValueError(
                f"a time must not lie before the time offset of {ahead_us / 1e6:g} s. Correct one of them."
            )
        if not label:
            raise ValueError("every interval must have a label, but the cell is empty. Fill it in.")
        if "event" in row:
            self._event(line, (recording, label, value, annotator, row.get("subject", "")), start_us, row["event"])
            return
        if "end" in row:
            end_us = self._time("end", row["end"]) - ahead_us
        else:
            end_us = start_us + self._time("duration", row["duration"])
        if end_us < start_us:
            raise ValueError(
                f"{self.columns.end} must not lie before {self.columns.start}, but {row['end']} lies before "
                f"{row['start']}. Correct one of them."
            )
        self.rows.append(TableRow(recording, label, value, annotator, start_us, end_us))

    def _event(self, line: int, key: tuple[str, str, str, str, str], time_us: int, what: str) -> None:
        recording, label, value, annotator, _ = key
        event = what.strip().lower()
        if event in _POINTS:
            self.rows.append(TableRow(recording, label, value, annotator, time_us, time_us))
        elif event in _STARTS:
            earlier = self.open.pop(key, None)
            self.open[key] = line, time_us
            if earlier is not None:
                raise ValueError(
                    f"every START must have a STOP before the next, but that of {label!r} on line {earlier[0]} has "
                    "none. Add it."
                )
        elif event in _STOPS:
            if key not in self.open:
                raise ValueError(f"every STOP must follow a START, but that of {label!r} follows none. Add it.")
            _, start_us = self.open.pop(key)
            if time_us < start_us:
                raise ValueError(f"a STOP must not lie before its START, but that of {label!r} does. Correct it.")
            self.rows.append(TableRow(recording, label, value, annotator, start_us, time_us))
        else:
            raise ValueError(f"{self.columns.event} must be START, STOP or POINT, but it is {what[:40]!r}. Correct it.")

    def _time(self, key: str, cell: str) -> int:
        return self.marks.microseconds(str(getattr(self.columns, key)), cell, self.columns.unit)


def _missing(header: Sequence[str], columns: ColumnSettings) -> list[str]:
    """Columns that must be there and are not."""
    lower = {name.strip().lower() for name in header}
    needed = [columns.recording, columns.start, columns.label]
    needed.append(
        columns.event or (columns.duration if columns.duration and not _ends(lower, columns) else columns.end)
    )
    optional = (columns.value, columns.subject, columns.session, columns.annotator)
    needed += [name for name in optional if name not in (_OWN.session, _OWN.annotator)]
    return [name for name in needed if name and name.strip().lower() not in lower]


def _ends(lower: set[str], columns: ColumnSettings) -> bool:
    return bool(columns.end) and columns.end.strip().lower() in lower


def _places(text: TableText, columns: ColumnSettings) -> dict[str, int]:
    """What each column holds -> its place.

    Raises:
        AnnotationError: If one is missing or occurs twice.
    """
    line, header = text.header
    where = f"{text.name}, line {line}"
    if missing := _missing(header, columns):
        if sum(map(is_time, header)) > 1:
            of_elan = ("Tier", "Begin Time - ss.msec", "End Time - ss.msec", "Annotation")
            example = text.separator.join(of_elan if text.separator == "\t" else OWN_COLUMNS)
            raise AnnotationError(
                f"{where}: the first line must name the columns, but it holds an annotation already: "
                f"{', '.join(header)[:80]!r}. Put a line in front of it with a name for each of its {len(header)} "
                f"columns, e.g. {example!r}."
            )
        known = recognise(header)
        near = difflib.get_close_matches(missing[0], header, n=1)
        advice = (
            f"Add under [data]: {columns_line(known)}"
            if known is not None and known != columns
            else f"If {', '.join(tiers[:3])!r} are tiers, export again without a column for each tier."
            if (tiers := tiers_of(header))
            else f"Times of one unit can be read; bring {near[0]!r} to seconds and call it {missing[0]}."
            if near and unit_of(near[0]) not in ("", "s", "clock")
            else f"Rename {near[0]!r}, or name the columns under [data]{_SETTINGS}."
            if near and near[0].lower() not in OWN_COLUMNS
            else f"Begin the file with {','.join(OWN_COLUMNS)}, or name its columns under [data]{_SETTINGS}."
        )
        raise AnnotationError(
            f"{where}: the header must name {', '.join(_told(columns))}, but {missing[0]} is missing from "
            f"{', '.join(header)[:120]!r}. {advice}"
        )
    lower = [name.strip().lower() for name in header]
    places = {}
    for each in fields(columns):
        name = str(getattr(columns, each.name)).strip().lower()
        if each.name in ("unit", "frame_rate") or not name or name not in lower:
            continue
        if lower.count(name) > 1:
            raise AnnotationError(
                f"{where}: a column must occur once, but {name} occurs {lower.count(name)} times. Remove one."
            )
        places[each.name] = lower.index(name)
    if "event" in places or ("duration" in places and "end" not in places):
        places.pop("end", None)
    elif "end" in places:
        places.pop("duration", None)
    return places


def _told(columns: ColumnSettings) -> list[str]:
    ends = columns.event or columns.end or columns.duration
    return [name for name in (columns.recording, columns.start, ends, columns.label) if name]
