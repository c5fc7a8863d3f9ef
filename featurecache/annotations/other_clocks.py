"""Exports whose times do not count from the start of a recording.

BORIS adds an observation's time offset to the times, and counts media files that play one after the other as one. ELAN
can write above an export by how much a linked video is shifted, but not whether the times are.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from featurecache.annotations.media import is_audio_name
from featurecache.annotations.table_text import TableText
from featurecache.errors import AnnotationError

_LINKED = re.compile(r"#(?P<url>\S.*?) -- offset: (?P<offset_ms>-?[0-9]+)\b.*", re.DOTALL)
_SECONDS = re.compile(r"-?[0-9]{1,12}([.,][0-9]{0,9})?")
_OFFSET, _DURATIONS, _OBSERVATION, _LENGTH = "time offset (s)", "media duration (s)", "observation id", "total length"
_PLAYER = "player #1"


class OtherClock:
    """How much later than its recording's clock a row of a table tells the time.

    Args:
        text: The table.
        recording: Place of the column that names recordings; None where the file is named as its recording.

    Raises:
        AnnotationError: If ELAN says that it shifts a video.
    """

    def __init__(self, text: TableText, recording: int | None) -> None:
        names = [name.strip().lower() for name in text.header[1]]
        places = {name: names.index(name) for name in (_OFFSET, _DURATIONS, _OBSERVATION, _LENGTH) if name in names}
        self._offset, self._durations = places.get(_OFFSET), places.get(_DURATIONS)
        self._observation = places.get(_OBSERVATION)
        self._offset_of_all = ""
        media: dict[str, set[str]] = defaultdict(set)
        for line, cells in text.above:
            _check_linked(text.name, line, cells[0])
            name, value = cells[0].strip().lower(), "".join(cells[1:2])
            if name == _OFFSET:
                self._offset_of_all = value
            if name == _PLAYER:
                media[""].add(value)
        is_boris = self._observation is not None or _OBSERVATION in (
            cells[0].strip().lower() for _, cells in text.above
        )
        if is_boris and _LENGTH in places and recording is not None:
            for _, cells in text.rows:
                media[self._observed(cells)].add("".join(cells[recording : recording + 1]))
        self._several = {observation for observation, own in media.items() if len(own) > 1}

    def _observed(self, cells: Sequence[str]) -> str:
        return "" if self._observation is None else "".join(cells[self._observation : self._observation + 1])

    def ahead_us(self, cells: Sequence[str]) -> int:
        """What is to be taken off the times of a row, in microseconds.

        Raises:
            ValueError: If that cannot be told.
        """
        durations = "" if self._durations is None else cells[self._durations].split("|")[0]
        if ";" in durations or self._observed(cells) in self._several:
            raise ValueError(
                "times must count from the start of a recording, but BORIS counts through the media files of this "
                "observation as if they were one. Make an observation for each file, or take the durations of the "
                "files before off the times and name the columns start_s and end_s."
            )
        offset = (self._offset_of_all if self._offset is None else cells[self._offset]).strip() or "0"
        if not _SECONDS.fullmatch(offset):
            raise ValueError(
                f"BORIS's time offset must be seconds, which are taken off the times, but it is {offset[:40]!r}. "
                "Correct it."
            )
        return round(Fraction(offset.replace(",", ".")) * 1_000_000)


def _check_linked(name: str, line: int, cell: str) -> None:
    found = _LINKED.fullmatch(cell.strip())
    if found and int(found["offset_ms"]) and not is_audio_name(found["url"]):
        raise AnnotationError(
            f"{name}, line {line}: the times of a table must count from the start of the recording, but ELAN shifts "
            f"the video by {found['offset_ms']} ms, and whether these times are shifted cannot be seen. Give the .eaf "
            "file in place of the export: it says both."
        )
