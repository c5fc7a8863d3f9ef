"""The annotation of single recordings, wherever they lie, found as `clips` finds it.

A recording inside the folder of videos is matched among all names there, one from elsewhere by its own name alone.
`survey` does the same for a whole project and reads every recording; this opens no video. Of documents only the place
is kept: whoever changes one reads it anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import Interval
from featurecache.clips.annotated import read_annotations
from featurecache.clips.annotators import chosen_account
from featurecache.errors import AnnotationError
from featurecache.project.settings import DataSettings, Project
from featurecache.video.recordings import VIDEO_SUFFIXES, UnusableRecording


@dataclass(frozen=True)
class FoundAnnotation:
    """A recording's annotation.

    Attributes:
        intervals: Of every label, in media time, sorted.
        source: The file's name.
        eaf: The `.eaf` that holds it; None for a table.
        time_origin_ms: Of the recording's media descriptor in the `.eaf`.
        points: Annotations of no duration, as intervals that end where they begin.
    """

    intervals: tuple[Interval, ...]
    source: str
    eaf: Path | None = None
    time_origin_ms: int = 0
    points: tuple[Interval, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """What was found for the recordings asked for.

    Attributes:
        of: Recording -> annotation; without one it is not annotated.
        refused: Recording -> why its annotation cannot be used.
        left_out: Annotation files that could not be read or matched; `clips` leaves them out, too.
    """

    of: Mapping[str, FoundAnnotation]
    refused: Mapping[str, str]
    left_out: tuple[UnusableRecording, ...] = ()


def find_annotations(project: Project, names: Sequence[str]) -> Annotations:
    """The annotations of recordings.

    Args:
        project: Where annotations are, and how they are read.
        names: The recordings: paths relative to the folder of videos, or file names of recordings elsewhere.

    Raises:
        AnnotationError: If the settings' folder or table of annotations is missing or unreadable, or leaves a question
            open.
    """
    inside = _video_names(project.videos)
    reading = read_annotations(project, [inside, *([name] for name in names if name not in inside)])
    of: dict[str, FoundAnnotation] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            account = chosen_account(name, reading.accounts.get(name, ()), project.settings.data.annotators)
        except AnnotationError as error:
            refused[name] = str(error)
            continue
        if account is not None:
            of[name] = FoundAnnotation(
                tuple(account.marks.intervals),
                account.source,
                account.eaf,
                account.time_origin_ms,
                tuple(account.marks.points),
            )
    return Annotations(of, refused, tuple(reading.left_out))


def annotated_spans(annotation: FoundAnnotation, data: DataSettings, duration_us: int) -> list[tuple[int, int]]:
    """What of a recording was annotated by the settings: marked spans, up to the last annotation, or all of it."""
    if data.annotated_span is not None:
        return [(one.start_us, one.end_us) for one in annotation.intervals if one.label == data.annotated_span]
    if data.unannotated_time == "until_last_annotation":
        return [(0, max((one.end_us for one in (*annotation.intervals, *annotation.points)), default=0))]
    return [(0, duration_us)]


def _video_names(folder: Path) -> list[str]:
    paths = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)
