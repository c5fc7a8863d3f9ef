"""The annotation of single recordings, wherever they lie, found as `clips` finds it.

A recording inside the folder of videos is matched among all names there, one from elsewhere by its own name alone.
No video is opened, and each annotation file is read once.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import EafDocument, Interval
from featurecache.clips import annotated
from featurecache.clips.annotated import AnnotationReading, read_annotations
from featurecache.clips.annotators import chosen_account
from featurecache.errors import AnnotationError
from featurecache.project.settings import DataSettings, Project
from featurecache.video.recordings import UnusableRecording, video_paths


@dataclass(frozen=True)
class FoundAnnotation:
    """A recording's annotation.

    Attributes:
        intervals: Of every label, in media time, sorted.
        source: The file's name.
        eaf: The `.eaf` that holds it; None for a table.
        time_origin_ms: Of the recording's media descriptor in the `.eaf`.
        points: Annotations of no duration, as intervals that end where they begin.
        document: What the `.eaf` holds, not to be changed.
    """

    intervals: tuple[Interval, ...]
    source: str
    eaf: Path | None = None
    time_origin_ms: int = 0
    points: tuple[Interval, ...] = ()
    document: EafDocument | None = None

    def own_document(self) -> EafDocument | None:
        """A copy of the document, to add tiers to; None for a table."""
        return copy.deepcopy(self.document)


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
    inside = list(video_paths(project.videos))
    reading = read_annotations(project, [inside, *([name] for name in names if name not in inside)])
    of, refused = chosen_annotations(reading, names, project.settings.data.annotators)
    return Annotations(of, refused, tuple(reading.left_out))


def chosen_annotations(
    reading: AnnotationReading, names: Sequence[str], annotators: str
) -> tuple[dict[str, FoundAnnotation], dict[str, str]]:
    """Of each recording the annotation that counts, and why others cannot be used.

    Args:
        reading: What annotation files say.
        names: The recordings.
        annotators: The setting that chooses among several annotators.
    """
    of: dict[str, FoundAnnotation] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            account = chosen_account(name, reading.accounts.get(name, ()), annotators)
        except AnnotationError as error:
            refused[name] = str(error)
            continue
        if account is not None:
            marks = account.marks
            of[name] = FoundAnnotation(
                tuple(marks.intervals),
                account.source,
                account.eaf,
                account.time_origin_ms,
                tuple(marks.points),
                account.document,
            )
    return of, refused


def annotated_spans(annotation: FoundAnnotation, data: DataSettings, duration_us: int) -> list[tuple[int, int]]:
    """What of a recording was annotated by the settings: marked spans, up to the last annotation, or all of it."""
    spans = annotated.annotated_spans(annotation.intervals, annotation.points, data)
    return [(0, duration_us)] if spans is None else spans
