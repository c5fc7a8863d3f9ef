"""Times in a table's cells: plain numbers of a unit, clocks such as 1:02:03.5, and timecodes of frames, 1:02:03:12.

All become whole microseconds.

No binary floating point in between. A comma is a decimal mark where commas do not separate the cells.
"""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

Unit = Literal["s", "ms", "us", "min", "frames"]
_UNIT_US: Mapping[Unit, int] = {"s": 1_000_000, "ms": 1000, "us": 1, "min": 60_000_000}
_WANTED: Mapping[Unit, str] = {
    "s": "seconds such as 12.5",
    "ms": "milliseconds such as 12500",
    "us": "microseconds such as 12500000",
    "min": "minutes such as 1.5",
    "frames": "a number of a frame",
}

_NUMBER = re.compile(r"[0-9]{1,12}([.,][0-9]{0,40})?|[.,][0-9]{1,40}")
_CLOCK = re.compile(r"(?:([0-9]{1,5}):)?([0-5]?[0-9]):([0-5]?[0-9](?:[.,][0-9]{0,40})?)")
_NTSC_ROUNDED = 0.01  # 29.97 is said for 30000/1001
_TIMECODE = re.compile(r"([0-9]{1,5}):([0-5]?[0-9]):([0-5]?[0-9])([:;])([0-9]{1,3})")


def is_time(text: str) -> bool:
    """Whether a cell can be a time, of any unit."""
    return any(pattern.fullmatch(text.strip()) for pattern in (_NUMBER, _CLOCK, _TIMECODE))


class DecimalMarks:
    """The decimal mark of a table: one for all its times.

    Args:
        separator: What separates its cells.
        frame_rate: Frames a second of its timecodes; 0 where there may be none.
    """

    def __init__(self, separator: str, frame_rate: float = 0.0) -> None:
        self.separator = separator
        self.frame_rate = frame_rate
        self.mark = ""

    def microseconds(self, column: str, text: str, unit: Unit) -> int:
        """A time as microseconds.

        Raises:
            ValueError: If it is no time, or its decimal mark is not that of the table.
        """
        text = text.strip()  # of every kind of space, seen or not
        if timecode := _TIMECODE.fullmatch(text):
            return self._of_timecode(column, timecode)
        clock = _CLOCK.fullmatch(text)
        if clock is None and not _NUMBER.fullmatch(text):
            wanted = _WANTED[unit]
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
        return round(Fraction(text.replace(",", ".")) * self._unit_us(column, unit))

    def _unit_us(self, column: str, unit: Unit) -> Fraction:
        if unit == "frames" and not self.frame_rate:
            raise ValueError(
                f"{column} counts frames, but nothing says how many a second. Set columns.frame_rate under [data] to "
                "what the recordings have, e.g. 25."
            )
        return Fraction(_UNIT_US[unit]) if unit in _UNIT_US else 1_000_000 / self._rate()

    def _rate(self) -> Fraction:
        ntsc = Fraction(math.ceil(self.frame_rate) * 1000, 1001)
        is_ntsc = self.frame_rate % 1 and abs(self.frame_rate - ntsc) < _NTSC_ROUNDED
        return ntsc if is_ntsc else Fraction(self.frame_rate).limit_denominator(1000)

    def _of_timecode(self, column: str, timecode: re.Match[str]) -> int:
        """SMPTE's: a second counts whole frames; with a `;` numbers are dropped to keep up with the clock."""
        if not self.frame_rate:
            raise ValueError(
                f"{column} must be a time, but {timecode[0]!r} counts frames behind its seconds. Set "
                "columns.frame_rate under [data] to the frames a second (25 for PAL, 29.97 for NTSC), or export with "
                "hh:mm:ss.ms or ss.msec ticked instead."
            )
        hours, minutes, seconds, frame = (int(timecode[group]) for group in (1, 2, 3, 5))
        counted = math.ceil(self.frame_rate)
        if frame >= counted:
            raise ValueError(
                f"{column} must count frames from 0 to {counted - 1} at columns.frame_rate = {self.frame_rate:g}, but "
                f"it is {timecode[0]!r}. Set the rate that the timecodes have."
            )
        passed = 60 * hours + minutes
        dropped = counted // 15 * (passed - passed // 10) if timecode[4] == ";" else 0
        return round(((60 * passed + seconds) * counted + frame - dropped) / self._rate() * 1_000_000)
