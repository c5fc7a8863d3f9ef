"""Pictures of what a head uses, as `featurecache maps --with-frames` left them on disk, for a report with frames."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heads.report.documents import number, read_json
from heads.report.names import ShownNames
from heads.report.timelines_view import clock

_MOST_BYTES = 4 << 20
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class MapPicture:
    """What of a clip raises and lowers a label's score.

    Attributes:
        recording: The clip's recording.
        start_us: Start of the clip.
        label: The label.
        log_odds: By the head.
        jpeg: Steps of the clip side by side, red where the score is raised and blue where it is lowered.
    """

    recording: str
    start_us: int
    label: str
    log_odds: float | None
    jpeg: bytes


def read_maps(folder: Path) -> tuple[list[MapPicture], list[str]]:
    """The pictures below `runs/maps`, by recording and time; and what could not be read with the reasons."""
    problems: list[str] = []
    found: list[MapPicture] = []
    for path in sorted(folder.glob("*/map.json")):
        try:
            found += _pictures(read_json(path, problems), path.parent)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            problems.append(f"maps/{path.parent.name}: it is no map ({type(error).__name__})")
    return sorted(found, key=lambda one: (one.recording, one.start_us)), problems


def _pictures(document: Mapping[str, Any], folder: Path) -> list[MapPicture]:
    pictures = []
    for label, one in document["labels"].items() if document else ():
        if one["picture"] is None:
            continue
        jpeg = (folder / Path(one["picture"]).name).read_bytes()
        if not jpeg.startswith(_JPEG) or len(jpeg) > _MOST_BYTES:
            raise ValueError(one["picture"])
        recording, start_us = str(document["recording"]), int(document["start_us"])
        pictures.append(MapPicture(recording, start_us, str(label), number(one["log_odds"]), jpeg))
    return pictures


def maps_content(maps: Sequence[MapPicture], names: ShownNames) -> dict[str, Any]:
    """What the page shows of them."""
    return {
        "maps": [
            {
                "jpeg": base64.b64encode(one.jpeg).decode(),
                "recording": names[one.recording],
                "at": clock(one.start_us / 1e6),
                "label": one.label,
                "log_odds": one.log_odds,
            }
            for one in maps
        ]
    }
