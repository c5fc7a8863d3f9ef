"""`clips.csv`: the clip table as people read and edit it.

Comma-separated UTF-8, one line per clip; times are exact decimal seconds; targets are 0, 1 or empty.
Read back, everything is checked and every error names line and column. What a spreadsheet does to such
a file when it saves (a byte order mark, CRLF, semicolons or tabs with decimal commas, "1.0" for 1, empty
lines at the end) is understood; what it may do to the content (dates for numbers) is refused.

A line may be deleted and a split emptied to leave clips out. Times cannot be edited: the clip's id,
by which its feature is found, holds them.
"""

import csv
import difflib
import hashlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from featurecache.clips.clip import COLUMNS, Clip, ClipTable, check_labels
from featurecache.clips.leakage import find_leak
from featurecache.clips.record import TableRecord, read_record
from featurecache.clips.splits import SPLITS
from featurecache.csv_fields import UNWRITABLE, format_seconds, guard_cell, parse_seconds, unguard_cell
from featurecache.errors import ClipTableError, EditedTableError
from featurecache.files import write_private

_CLIP_ID = re.compile(r"[0-9a-f]{16}-([0-9]{1,18})-([0-9]{1,18})")
_TARGETS = {"0": 0, "1": 1, "": None, "0.0": 0, "1.0": 1, "0,0": 0, "1,0": 1}
_MAX_BYTES = 1_000_000_000


def format_table(table: ClipTable) -> bytes:
    """The table as the bytes of `clips.csv`.

    Raises:
        ClipTableError: If a label cannot be a column, or a name cannot be written.
    """
    check_labels(table.labels)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(guard_cell(label) for label in table.labels)])
    for clip in table.clips:
        for name in (clip.recording, clip.session):
            if UNWRITABLE.search(name):
                raise ClipTableError(f"names must hold no control character, but {name!r} does. Rename it.")
        writer.writerow(
            [
                clip.clip_id,
                guard_cell(clip.recording),
                guard_cell(clip.session),
                clip.split,
                format_seconds(clip.start_us),
                format_seconds(clip.end_us),
                *("" if target is None else target for target in clip.targets),
            ]
        )
    return text.getvalue().encode()


def write_table(
    table: ClipTable, path: Path, *, state_path: Path, force: bool = False, record: TableRecord | None = None
) -> bool:
    """Writes `clips.csv`, but never over a person's edits.

    Args:
        table: What to write.
        path: `clips.csv`.
        state_path: The table's record, which remembers what was written here; without it, any other table counts as
            edited.
        force: Replace an edited table.
        record: What the table was made from; goes into the record.

    Returns:
        Whether the file changed.

    Raises:
        EditedTableError: If the file is neither what was last written nor equal to `table`.
        ClipTableError: If the table cannot be written.
    """
    data = format_table(table)
    new = hashlib.sha256(data).hexdigest()
    try:
        if not force:
            refuse_edited(path, (new, *read_record(state_path).written))
        present = _digest(path)
        # The state goes first and names both, so that a kill between the two writes looks like no edit.
        replace(record or TableRecord(), written=tuple({present or new, new})).save(state_path)
        if present != new:
            write_private(path, data)
    except EditedTableError:
        raise
    except OSError as error:
        raise ClipTableError(
            f"{path} must be writable, but it is not ({error.strerror}). Check the folder's rights and space."
        ) from error
    return present != new


def refuse_edited(path: Path, written: Sequence[str]) -> None:
    """Refuses a table that is there and has none of these sha256.

    Raises:
        EditedTableError: If it was edited.
    """
    if _digest(path) not in (None, *written):
        raise EditedTableError(
            f"{path.name} must be as it was last written, but it was edited since. Keep it as it is; or replace it, "
            "edits and all: featurecache clips --force."
        )


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_table(path: Path, *, allow_clip_level: bool = False) -> ClipTable:
    """Reads `clips.csv`, checked.

    Args:
        path: `clips.csv`.
        allow_clip_level: Whether its splits may cut sessions.

    Raises:
        ClipTableError: Naming line and column, if it is not a sound clip table.
    """
    text = _text(path)
    header, _, _ = text.partition("\n")
    delimiter = next(
        (mark for mark in ";\t" if header.lstrip('"').startswith((f"clip_id{mark}", f'clip_id"{mark}'))), ","
    )
    # StringIO would hold four bytes for each character.
    lines_of_text = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline="")
    rows = csv.reader(lines_of_text, delimiter=delimiter, strict=True)
    lines: list[int] = []
    clips: list[Clip] = []
    try:
        labels = _labels(path.name, next(rows, []))
        for row in rows:
            if any(row):
                clips.append(_clip(path.name, rows.line_num, row, labels, decimal_comma=delimiter != ","))
                lines.append(rows.line_num)
    except csv.Error as error:
        raise ClipTableError(
            f"{path.name}, line {rows.line_num}: it must be CSV, but: {error}. Repair the line."
        ) from error
    seen: dict[str, int] = {}
    for clip, line in zip(clips, lines, strict=True):
        if seen.setdefault(clip.clip_id, line) != line:
            raise _fault(
                path.name,
                line,
                "clip_id",
                f"must stand once, but it is also on line {seen[clip.clip_id]}",
                clip.clip_id,
                "Delete one of them.",
            )
    leak = find_leak(clips, allow_clip_level=allow_clip_level)
    if leak is not None:
        raise ClipTableError(
            f"{path.name}, line {lines[leak.position]}, column {leak.column}: splits must never share a session "
            f"or a recording, but {leak.reason} (see line {lines[leak.earlier]}). {leak.remedy}"
        )
    return ClipTable(labels, tuple(clips))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ClipTableError(
            f"there must be a clip table, but {path} does not exist. Make it: featurecache clips."
        ) from error
    except OSError as error:
        raise ClipTableError(f"{path} must be readable, but it is not ({error.strerror}). Check its rights.") from error
    if len(data) > _MAX_BYTES:
        raise ClipTableError(f"{path.name} must not exceed {_MAX_BYTES // 10**6} MB, but it does. Check what it is.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ClipTableError(
            f"{path.name}, line {line}: it must be UTF-8, but byte 0x{data[error.start]:02x} is not. "
            'Save it as "CSV UTF-8" in the spreadsheet.'
        ) from error


def _fault(name: str, line: int, column: str, rule: str, found: str, remedy: str) -> ClipTableError:
    return ClipTableError(f"{name}, line {line}, column {column}: {found!r} {rule}. {remedy}")


def _labels(name: str, header: Sequence[str]) -> tuple[str, ...]:
    found = [cell.strip() for cell in header]
    while found and not found[-1]:  # a column that was emptied, not removed
        found.pop()
    for number, column in enumerate(COLUMNS):
        cell = found[number] if number < len(found) else ""
        if cell != column:
            raise ClipTableError(
                f"{name}, line 1: column {number + 1} must be {column!r}, but it is {cell!r}. "
                f"The columns are {', '.join(COLUMNS)}, then one per label; restore the header."
            )
    labels = [unguard_cell(cell) for cell in found[len(COLUMNS) :]]
    for number, label in enumerate(labels, len(COLUMNS) + 1):
        try:
            check_labels(labels[: number - len(COLUMNS)])
        except ClipTableError as error:
            raise ClipTableError(f"{name}, line 1, column {number} ({label!r}): {error}") from error
    return tuple(labels)


def _clip(name: str, line: int, row: Sequence[str], labels: Sequence[str], *, decimal_comma: bool) -> Clip:
    width = len(COLUMNS) + len(labels)
    if len(row) < width or any(row[width:]):
        raise ClipTableError(
            f"{name}, line {line}: it must have {width} fields as the header has, but it has {len(row)}. "
            "Restore the missing ones, or remove what follows the last."
        )
    clip, recording, session, split, start, end = (cell.strip() for cell in row[: len(COLUMNS)])
    recording = unguard_cell(row[1])
    match = _CLIP_ID.fullmatch(clip)
    if match is None:
        raise _fault(
            name,
            line,
            "clip_id",
            "must be 16 hex digits, start and end in microseconds, as in 0123456789abcdef-0-3000000",
            clip,
            "Restore it.",
        )
    if not recording:
        raise _fault(name, line, "recording", "must name a recording", recording, "Restore it.")
    if not session:
        raise _fault(
            name, line, "session", "must name a session", session, "Name it; to leave the clip out, empty its split."
        )
    for column, text in (("recording", recording), ("session", session)):
        if UNWRITABLE.search(text):
            raise _fault(name, line, column, "must hold no control character", text, "Restore it.")
    if split and split not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else "Correct it."
        raise _fault(
            name, line, "split", "must be train, validation, test, or empty to leave the clip out", split, remedy
        )
    times = [_time(name, line, column, cell, decimal_comma) for column, cell in (("start_s", start), ("end_s", end))]
    for column, time_us, id_us in zip(("start_s", "end_s"), times, map(int, match.groups()), strict=True):
        if time_us != id_us:
            rule = f"must be {format_seconds(id_us)} as the clip_id {clip} says"
            remedy = "Restore it; length_s and stride_s under [clips] make clips of other times."
            raise _fault(name, line, column, rule, format_seconds(time_us), remedy)
    if times[0] >= times[1]:
        raise _fault(name, line, "end_s", f"must lie after start_s ({start})", end, "Restore the line.")
    targets = tuple(
        _target(name, line, label, cell) for label, cell in zip(labels, row[len(COLUMNS) : width], strict=True)
    )
    if None in targets and any(target is not None for target in targets):
        raise ClipTableError(
            f"{name}, line {line}, column {labels[targets.index(None)]}: a clip must have all targets or none, but "
            "this one is empty and others are not. Fill it with 0 or 1, or empty all to leave the clip unlabelled."
        )
    # Millions of clips share few names and targets: one object for each of these.
    recording, session, split = map(sys.intern, (recording, unguard_cell(session), split))
    return Clip(clip, recording, session, split, times[0], times[1], _shared_targets(targets))


@lru_cache(maxsize=1024)
def _shared_targets(targets: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """One tuple for all that are equal."""
    return targets


def _time(name: str, line: int, column: str, cell: str, decimal_comma: bool) -> int:
    try:
        return parse_seconds(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError as error:
        raise _fault(name, line, column, "must be seconds with at most 6 decimals", cell, "Restore it.") from error


def _target(name: str, line: int, label: str, cell: str) -> int | None:
    try:
        return _TARGETS[cell.strip()]
    except KeyError:
        raise _fault(
            name,
            line,
            label,
            "must be 0, 1, or empty (every column after end_s is a label)",
            cell,
            "Correct it, or remove the column.",
        ) from None
