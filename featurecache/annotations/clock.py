"""Times in a table's cells: plain numbers of a unit, and clocks such as 1:02:03.5. All become whole microseconds.

No binary floating point in between. A comma is a decimal mark where commas do not separate the cells.
"""

import re
from fractions import Fraction
from typing import Literal

Unit = Literal["s", "ms"]

_NUMBER = re.compile(r"[0-9]{1,12}([.,][0-9]{0,40})?|[.,][0-9]{1,40}")
_CLOCK = re.compile(r"(?:([0-9]{1,5}):)?([0-5]?[0-9]):([0-5]?[0-9](?:[.,][0-9]{0,40})?)")


class DecimalMarks:
    """The decimal mark of a table: one for all its times."""

    def __init__(self, separator: str) -> None:
        self.separator = separator
        self.mark = ""

    def microseconds(self, column: str, text: str, unit: Unit) -> int:
        """A time as microseconds.

        Raises:
            ValueError: If it is no time, or its decimal mark is not that of the table.
        """
        clock = _CLOCK.fullmatch(text)
        if clock is None and not _NUMBER.fullmatch(text):
            wanted = "seconds such as 12.5" if unit == "s" else "milliseconds such as 12500"
            raise ValueError(
                f"{column} must be {wanted} or a time such as 0:00:12.5, zero or more, but it is {text[:40]!r}. "
                "Correct it."
            )
        mark = "," if "," in text else "." if "." in text else ""
        if mark == "," and self.separator == ",":
            raise ValueError(
                f"{column} must have a decimal point where commas separate the fields, but it is {text!r}. "
                "Write a point, or save the table with semicolons."
            )
        self.mark = self.mark or mark
        if mark and mark != self.mark:
            raise ValueError(
                f"a table must use one decimal mark, but {column} is {text!r} and earlier rows use {self.mark!r}. "
                "Write all times alike."
            )
        if clock is not None:
            hours, minutes, seconds = clock[1] or "0", clock[2], clock[3].replace(",", ".")
            return round((int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) * 1_000_000)
        return round(Fraction(text.replace(",", ".")) * (1_000_000 if unit == "s" else 1000))
