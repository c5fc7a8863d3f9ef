"""Which columns of a table hold what, recognised from its header, for `init` to propose and for advice.

Known are this toolkit's own CSV, ELAN's tab-delimited export, BORIS's tabular and aggregated events, and the usual
names in spreadsheets.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featurecache.annotations.clock import Unit
from featurecache.project.columns import ColumnSettings
from featurecache.project.toml_text import quoted

_NAMES = {
    "recording": (
        "recording", "media file name", "media file", "media file path", "media", "video", "video file", "video name",
        "file", "file name", "filename", "file path", "source", "observation id", "aufnahme", "videodatei", "datei",
        "dateiname", "vidéo", "fichier", "archivo", "arquivo", "bestand", "fil", "filnamn",
    ),
    "start": ("start", "start time", "begin", "begin time", "onset", "from", "time", "time start", "start timestamp",
              "anfangszeit", "startzeit", "beginn", "temps de départ", "temps de début", "début", "tiempo inicial",
              "inicio", "tempo inicial", "início", "tempo di inizio", "tempo iniziale", "inizio", "begintijd",
              "starttid"),
    "end": ("end", "end time", "stop", "stop time", "offset", "to", "time end", "time stop",
            "endzeit", "ende", "temps de fin", "fin", "tiempo final", "tempo final", "fim", "tempo di fine",
            "tempo finale", "fine", "eindtijd", "sluttid"),
    "duration": ("duration", "length", "dauer", "durée", "duración", "duração", "durata", "duur", "varaktighet",
                 "varighed", "varighet"),
    "label": ("label", "behavior", "behaviour", "tier", "zeile", "acteur", "línea", "trilha", "livello", "activity",
              "action", "code", "class", "category", "event", "annotation", "aktivität", "verhalten", "bezeichnung",
              "activité", "comportement", "étiquette"),
    "value": ("value", "annotation", "anotación", "anotação", "annotazione", "annotatie", "annotering", "modifiers",
              "modifier"),
    "event": ("behavior type", "behaviour type", "status", "event type"),
    "subject": ("subject",),
    "session": ("session",),
    "annotator": ("annotator", "coder", "observer", "rater"),
}  # fmt: skip
"""What a column holds -> its usual names, without units, the surer ones first."""
_TIER = ("tier", "zeile", "acteur", "línea", "trilha", "livello")
"""What ELAN calls a tier in its languages: the annotation is its value then."""
_PATTERNS = tuple(
    (re.compile(rf"(?:[\s_\-(\[]+)(?:{names})\W*$"), unit)
    for names, unit in (
        (r"ms|msec|milliseconds?|millis", "ms"),
        (r"us|µs|μs|usec|microseconds?|micros", "us"),
        (r"min|mins|minutes?|minuten", "min"),
        (r"s|sec|secs|seconds?|ss\.msec", "s"),
        (r"frames?|frame (?:no|nr|number)", "frames"),
        (r"hh:mm:ss(?:[.:;]\w+)?|smpte.*|timecode.*", "clock"),
    )
)
"""How a column's name ends that tells its unit."""
_UNITS = ("s", "", "clock", "ms", "us", "min", "frames")
"""Of several columns with one time the first of these is taken."""
_OF_NUMBERS: Mapping[str, Unit] = {"ms": "ms", "us": "us", "min": "min", "frames": "frames"}


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
                rank = 10 * usual.index(base) + _UNITS.index(unit)
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
    units: set[Unit] = {_OF_NUMBERS.get(found[key][2], "s") for key in ("start", "end", "duration") if key in found}
    if len(units) > 1:
        return None
    if found["label"][1].lower() not in _TIER:
        found.pop("value", None)
    names: dict[str, Any] = {key: found[key][1] if key in found else "" for key in _NAMES}
    return ColumnSettings(**names, unit=units.pop())


def unit_of(name: str) -> str:
    """The unit that a column's name ends in; "" where in none."""
    return _without_unit(name.strip().lower())[1]


def tiers_of(header: Sequence[str]) -> list[str]:
    """Columns that ELAN made of tiers, each in its own, where a header has times but no label."""
    bases = {name.strip(): _without_unit(name.strip().lower())[0] for name in header if name.strip()}
    known = {usual for names in _NAMES.values() for usual in names}
    has_times = any(base in _NAMES["start"] for base in bases.values()) and any(
        base in _NAMES[key] for base in bases.values() for key in ("end", "duration")
    )
    is_labelled = any(base in _NAMES["label"] for base in bases.values())
    return [name for name, base in bases.items() if base not in known] if has_times and not is_labelled else []


def columns_line(columns: ColumnSettings) -> str:
    """The line of settings that names these columns; those at their defaults are left out."""
    default = dataclasses.asdict(ColumnSettings())
    told = {
        key: value
        for key, value in dataclasses.asdict(columns).items()
        if value != default[key] and (value or key == "recording")
    }
    cells = [f"{key} = {quoted(value) if isinstance(value, str) else f'{value:g}'}" for key, value in told.items()]
    return f"columns = {{ {', '.join(cells)} }}"


def _without_unit(name: str) -> tuple[str, str]:
    for pattern, unit in _PATTERNS:
        if match := pattern.search(name):
            return name[: match.start()].strip(" -_").replace("_", " "), unit
    return name.replace("_", " "), ""
