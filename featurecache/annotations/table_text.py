"""The cells of a table that some other program wrote: its encoding, its separator, its lines.

UTF-8 and UTF-16, with or without a byte-order mark; comma, semicolon or tab, also named by Excel's first line `sep=;`;
lines that end in LF, CRLF or CR. Lines may stand above the header: BORIS writes some about the observation, ELAN about
linked media.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations.eaf import read_bounded
from featurecache.errors import AnnotationError

SEPARATORS = (",", ";", "\t")
_NAMED_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_HEADER_WITHIN = 40
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


@dataclass(frozen=True)
class TableText:
    """A table's header and its rows, each with the line it begins on.

    Attributes:
        name: The file's name, for messages.
        separator: What separates the cells.
        header: The names of the columns, and the line they stand on.
        rows: The cells under it.
        above: The cells above it.
    """

    name: str
    separator: str
    header: tuple[int, Sequence[str]]
    rows: Sequence[tuple[int, Sequence[str]]]
    above: Sequence[tuple[int, Sequence[str]]] = ()


def read_table_text(path: Path, is_header: Callable[[Sequence[str]], bool]) -> TableText:
    """The header and rows of a table.

    Args:
        path: The file.
        is_header: Whether a row's cells, in lower case, can be the header. Where none can, the first row is taken.

    Raises:
        AnnotationError: If it cannot be read or decoded, or is empty.
        UnsafeFileError: If it is not a plain file, or too large.
    """
    text = _decoded(path)
    named = _NAMED_SEPARATOR.fullmatch(text.splitlines()[0]) if text.strip() else None
    lines_before = 0
    if named:
        text = text.split(text.splitlines(keepends=True)[0], 1)[1]
        lines_before = 1
    separators = (named[1],) if named else SEPARATORS
    best: TableText | None = None
    malformed: _MalformedError | None = None
    for separator in separators:
        try:
            found = _split(path.name, text, separator, lines_before, is_header)
        except _MalformedError as error:
            malformed = malformed or error
            continue
        if found is None:
            continue
        if is_header(_lower(found.header[1])):
            return found
        if best is None or len(found.header[1]) > len(best.header[1]):
            best = found
    if malformed is not None and (best is None or len(best.header[1]) == 1):
        raise AnnotationError(
            f"{path.name}, line {malformed.line}: a table must be well-formed CSV, but it is not ({malformed}). "
            "Check its quotes."
        ) from malformed
    if best is None:
        raise AnnotationError(
            f"{path.name}: a table must have a header, but it is empty. Begin it with recording,start_s,end_s,label."
        )
    return best


def _split(
    name: str, text: str, separator: str, lines_before: int, is_header: Callable[[Sequence[str]], bool]
) -> TableText | None:
    rows = list(_records(text, separator, lines_before))
    if not rows:
        return None
    at = next((i for i, (_, cells) in enumerate(rows[:_HEADER_WITHIN]) if is_header(_lower(cells))), 0)
    return TableText(name, separator, rows[at], rows[at + 1 :], rows[:at])


def _records(text: str, separator: str, lines_before: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Rows that are not blank, with their first line; spaces around cells are not kept."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1 + lines_before
    try:
        for cells in rows:
            stripped = [cell.strip(" ") for cell in cells]
            if any(cell.strip() for cell in stripped):
                yield line, stripped
            line = rows.line_num + 1 + lines_before
    except csv.Error as error:
        raise _MalformedError(str(error), line) from error


class _MalformedError(Exception):
    """A row whose quotes do not close, and with it all rows behind."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _lower(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _decoded(path: Path) -> str:
    data = read_bounded(path)
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:200]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    encoding = encoding or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path.name}, line {line}: a table must be UTF-8 or UTF-16, but byte 0x{data[error.start]:02x} is not. "
            "Save it as 'CSV UTF-8'."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError(
            f"{path.name}, line {line}: a table must be text, but it holds a zero byte. Save it as 'CSV UTF-8'."
        )
    return text.removeprefix("\ufeff")
