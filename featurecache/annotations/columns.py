"""Which columns of a table hold what, recognised from its header, for `init` to propose and for advice.

Known are this toolkit's own CSV, ELAN's tab-delimited export, BORIS's tabular and aggregated events, and the usual
names in spreadsheets.
"""

import dataclasses
import re
from collections.abc import Sequence

from featurecache.project.columns import ColumnSettings
from featurecache.project.toml_text import quoted

_NAMES = {
    "recording": (
        "recording", "media file name", "media file", "media file path", "media", "video", "video file", "video name",
        "file", "file name", "filename", "file path", "source", "observation id",
    ),
    "start": ("start", "start time", "begin", "begin time", "onset", "from", "time", "time start", "start timestamp",
              "anfangszeit", "startzeit", "beginn", "temps de départ", "tiempo inicial", "begintijd"),
    "end": ("end", "end time", "stop", "stop time", "offset", "to", "time end", "time stop",
            "endzeit", "ende", "temps de fin", "tiempo final", "eindtijd"),
    "duration": ("duration", "length", "dauer", "durée", "duración", "duur"),
    "label": ("label", "behavior", "behaviour", "tier", "activity", "action", "code", "class", "category", "event",
              "annotation"),
    "value": ("value", "annotation", "modifiers", "modifier"),
    "event": ("behavior type", "behaviour type", "status", "event type"),
    "subject": ("subject",),
    "session": ("session",),
    "annotator": ("annotator", "coder", "observer", "rater"),
}  # fmt: skip
"""What a column holds -> its usual names, without units, the surer ones first."""
_MILLISECONDS = re.compile(r"(?:[\s_\-(\[]+)(?:ms|msec|milliseconds?|millis)\W*$")
_SECONDS = re.compile(r"(?:[\s_\-(\[]+)(?:s|sec|secs|seconds?|ss\.msec)\W*$")
_CLOCK = re.compile(r"(?:[\s_\-(\[]+)(?:hh:mm:ss(?:[.:]\w+)?|smpte.*)\W*$")


def recognise(header: Sequence[str]) -> ColumnSettings | None:
    """The columns of a header; None where it has no time or label that is known.

    Of several columns with one time the one in seconds is taken, then a clock, then milliseconds.
    """
    own = ColumnSettings()
    lower = {name.strip().lower(): name.strip() for name in reversed(header)}
    if {own.recording, own.start, own.end, own.label} <= lower.keys():
        session, annotator = (name if name in lower else "" for name in (own.session, own.annotator))
        value = next((lower[name] for name in ("value", "present", "presence") if name in lower), "")
        return dataclasses.replace(own, session=session, annotator=annotator, value=value)
    found: dict[str, tuple[int, str, str]] = {}
    for name in header:
        base, unit = _without_unit(name.strip().lower())
        for key, usual in _NAMES.items():
            if base in usual:
                rank = 10 * usual.index(base) + ("s", "", "clock", "ms").index(unit)
                if key not in found or rank < found[key][0]:
                    found[key] = (rank, name.strip(), unit)
    events = "event" in found and "end" not in found
    ending = "end" in found or "duration" in found or events
    if "start" not in found or "label" not in found or not ending:
        return None
    if not events:
        found.pop("event", None)
        found.pop("subject", None)
    if "end" in found or events:
        found.pop("duration", None)
    if len({found[key][2] == "ms" for key in ("start", "end", "duration") if key in found}) > 1:
        return None
    if found["label"][1].lower() != "tier":
        found.pop("value", None)
    names = {key: found[key][1] if key in found else "" for key in _NAMES}
    return ColumnSettings(**names, unit="ms" if found["start"][2] == "ms" else "s")


def columns_line(columns: ColumnSettings) -> str:
    """The line of settings that names these columns; those at their defaults are left out."""
    default = dataclasses.asdict(ColumnSettings())
    told = {key: value for key, value in dataclasses.asdict(columns).items() if value not in ("", default[key])}
    return f"columns = {{ {', '.join(f'{key} = {quoted(value)}' for key, value in told.items())} }}"


def _without_unit(name: str) -> tuple[str, str]:
    for pattern, unit in ((_MILLISECONDS, "ms"), (_SECONDS, "s"), (_CLOCK, "clock")):
        if match := pattern.search(name):
            return name[: match.start()].strip(" -_").replace("_", " "), unit
    return name.replace("_", " "), ""
