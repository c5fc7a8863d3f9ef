"""`clips.csv`: the clip table as people read and edit it.

Comma-separated UTF-8, one line per clip; times are exact decimal seconds; targets are 0, 1 or empty.
Read back, everything is checked and every error names line and column. What a spreadsheet does to such
a file when it saves (a byte order mark, CRLF, semicolons or tabs with decimal commas, "1.0" for 1, empty
lines at the end) is understood; what it may do to the content (dates for numbers) is refused.

A line may be deleted and a split emptied to leave clips out. Times cannot be edited: the clip's id,
by which its feature is found, holds them.
"""

import csv
import hashlib
import io
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np

from featurecache.clips.clip import COLUMNS, ClipColumns, ClipTable, check_labels
from featurecache.clips.csv_rows import RowFault, RowReader
from featurecache.clips.leakage import find_leak
from featurecache.clips.record import TableRecord, read_record
from featurecache.csv_fields import UNWRITABLE, format_seconds, guard_cell, unguard_cell
from featurecache.errors import ClipTableError, EditedTableError
from featurecache.files import write_private

_MAX_BYTES = 1_000_000_000
_MOST_HEADER = 100


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
    return write_unedited(format_table(table), path, state_path=state_path, force=force, record=record)


def write_unedited(
    data: bytes, path: Path, *, state_path: Path, force: bool = False, record: TableRecord | None = None
) -> bool:
    """As `write_table`, of any table that people may edit."""
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


def refuse_edited(
    path: Path, written: Sequence[str], *, keep: str = "Keep it, and correct annotations in their own files"
) -> None:
    """Refuses a table that is there and has none of these sha256; `keep` says what to do with the edits.

    Raises:
        EditedTableError: If it was edited.
    """
    if _digest(path) not in (None, *written):
        raise EditedTableError(
            f"{path.name} must be as it was last written, but it was edited since. {keep}; or replace it: "
            f"featurecache clips --force, which keeps yours as {path.stem}.edited.csv."
        )


def keep_edited(path: Path, written: Sequence[str]) -> Path | None:
    """Copies a table that is about to be replaced to a file of its own, if a person edited it.

    Args:
        path: `clips.csv`.
        written: sha256 of what was written here.

    Returns:
        The copy, `clips.edited.csv`, or with a number where that holds other edits; None where nothing was edited.
    """
    if _digest(path) in (None, *written):
        return None
    data = path.read_bytes()
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}.edited{f'-{number}' if number > 1 else ''}.csv")
        if not kept.exists():
            write_private(kept, data)
        elif kept.read_bytes() != data:
            continue
        return kept
    return None


def _refuse_no_file(path: Path) -> None:
    """Refuses a folder, and what would be waited for or never end: a pipe, a device."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no plain file"
        raise ClipTableError(f"{path} must be a table, but it is {kind}. Move it away.")


def _digest(path: Path) -> str | None:
    _refuse_no_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_table(path: Path, *, allow_clip_level: bool = False) -> ClipTable:
    """Reads `clips.csv`, checked.

    Args:
        path: `clips.csv`.
        allow_clip_level: Whether its splits may cut sessions.

    Raises:
        ClipTableError: Naming line and column, if it is not a sound clip table.
    """
    lines = array("L")
    with opened_table(path) as file:
        delimiter = delimiter_of(file, COLUMNS[0])
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            labels = _labels(path.name, next(rows, []))
            cells = RowReader(labels, decimal_comma=delimiter != ",")
            for row in rows:
                if any(row):
                    cells.add(row)
                    lines.append(rows.line_num)
        except csv.Error as error:
            raise ClipTableError(
                f"{path.name}, line {rows.line_num}: it must be CSV, but: {error}. Repair the line."
            ) from error
        except RowFault as fault:
            raise ClipTableError(f"{path.name}, line {rows.line_num}{fault}") from None
    clips = cells.columns()
    double = _double(clips)
    if double is not None:
        earlier, position = double
        raise ClipTableError(
            f"{path.name}, line {lines[position]}, column clip_id: {clips[position].clip_id!r} must stand once, but it "
            f"is also on line {lines[earlier]}. Delete one of them."
        )
    leak = find_leak(clips, allow_clip_level=allow_clip_level)
    if leak is not None:
        raise ClipTableError(
            f"{path.name}, line {lines[leak.position]}, column {leak.column}: splits must never share a session "
            f"or a recording, but {leak.reason} (see line {lines[leak.earlier]}). {leak.remedy}"
        )
    return ClipTable(labels, clips)


def _double(clips: ClipColumns) -> tuple[int, int] | None:
    """Positions of the first clip that stands there twice, the earlier one first; None where none does."""
    order = np.lexsort((clips.span_us[:, 1], clips.span_us[:, 0], clips.content.codes))  # stable
    same = (np.diff(clips.content.codes[order]) == 0) & (np.diff(clips.span_us[order], axis=0) == 0).all(1)
    if not same.any():
        return None
    first = min(np.flatnonzero(same).tolist(), key=lambda at: int(order[at + 1]))
    return int(order[first]), int(order[first + 1])


def missing_table(path: Path) -> ClipTableError:
    """What is said where there is no table."""
    return ClipTableError(f"there must be a clip table, but {path} does not exist. Make it: featurecache clips.")


@contextmanager
def opened_table(path: Path) -> Iterator[io.TextIOWrapper]:
    """The table's text, read as it is needed.

    Raises:
        ClipTableError: If it is not there, not readable, too large, or not UTF-8.
    """
    try:
        _refuse_no_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise ClipTableError(
                    f"{path.name} must not exceed {_MAX_BYTES // 10**6} MB, but it does. Check what it is."
                )
            yield file
    except FileNotFoundError as error:
        raise missing_table(path) from error
    except OSError as error:
        raise ClipTableError(f"{path} must be readable, but it is not ({error.strerror}). Check its rights.") from error
    except UnicodeDecodeError:
        line, byte = _undecodable(path.read_bytes())
        raise ClipTableError(
            f"{path.name}, line {line}: it must be UTF-8, but byte 0x{byte:02x} is not. "
            'Save it as "CSV UTF-8" in the spreadsheet.'
        ) from None


def _undecodable(data: bytes) -> tuple[int, int]:
    """Line and value of the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1, data[error.start]
    return 1, 0


def delimiter_of(file: TextIO, first: str) -> str:
    """What separates the cells, by the header, which begins with this column; the file stands at its beginning."""
    header = file.readline(_MOST_HEADER).lstrip('"')
    file.seek(0)
    return next((mark for mark in ";\t" if header.startswith((f"{first}{mark}", f'{first}"{mark}'))), ",")


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
