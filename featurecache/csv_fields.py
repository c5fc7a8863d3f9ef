"""Cells of the CSV files that people open in a spreadsheet: exact seconds, and text that is never a formula.

Times are decimal seconds written from integer microseconds and read back to the same integers: no
binary floating point in between. Text that a spreadsheet would run as a formula gets a leading quote;
so does text that already begins with quotes before such a character, which makes the way back exact.
"""

import csv
import io
import re
from collections.abc import Iterable

UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that no name in a table may hold: control characters, and bytes that were not UTF-8."""

_SECONDS = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]*))?")
_FORMULA = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")  # full-width signs begin formulas too
_NEGATIVE = re.compile(r"-[0-9]+(\.[0-9]+)?")


def format_seconds(time_us: int) -> str:
    """Microseconds as the shortest exact decimal seconds: "3", "4.5", "0.04"."""
    whole, part = divmod(abs(time_us), 1_000_000)
    text = f"{whole}.{part:06d}".rstrip("0").rstrip(".")
    return f"-{text}" if time_us < 0 else text


def parse_seconds(text: str) -> int:
    """Decimal seconds as microseconds.

    Raises:
        ValueError: If it is not a plain decimal number, or is finer than a microsecond.
    """
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"seconds must be a plain decimal number, but it is {text!r}")
    sign, whole, decimals = match[1], match[2], (match[3] or "").rstrip("0")
    if len(decimals) > 6:
        raise ValueError(f"seconds must have at most 6 decimals, but it is {text!r}")
    time_us = int(whole) * 1_000_000 + int(decimals.ljust(6, "0"))
    return -time_us if sign else time_us


def guard_cell(text: str) -> str:
    """Text as a cell that no spreadsheet takes for a formula; a negative number is none."""
    return f"'{text}" if _FORMULA.match(text) and not _NEGATIVE.fullmatch(text) else text


def unguard_cell(cell: str) -> str:
    """The text of a cell that `guard_cell` made; any other cell as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_bytes(rows: Iterable[Iterable[object]], *, line_end: str = "\n") -> bytes:
    """Rows, the header first, as a CSV file in UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows(rows)
    return text.getvalue().encode("utf-8", errors="replace")
