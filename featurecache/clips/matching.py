"""The annotation of single recordings, wherever they lie, found as `clips` finds it.

A recording inside the folder of videos is matched among all names there, one from elsewhere by its own name alone.
No video is opened, and each annotation file is read once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurecache.clips import annotated
from featurecache.clips.annotated import Account, AnnotationReading, read_annotations
from featurecache.clips.annotators import chosen_account
from featurecache.errors import AnnotationError
from featurecache.project.settings import DataSettings, Project
from featurecache.video.recordings import UnusableRecording, video_paths


@dataclass(frozen=True)
class Annotations:
    """What was found for the recordings asked for.

    Attributes:
        of: Recording -> annotation; without one it is not annotated.
        refused: Recording -> why its annotation cannot be used.
        left_out: Annotation files that could not be read or matched; `clips` leaves them out, too.
    """

    of: Mapping[str, Account]
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
) -> tuple[dict[str, Account], dict[str, str]]:
    """Of each recording the annotation that counts, and why others cannot be used.

    Args:
        reading: What annotation files say.
        names: The recordings.
        annotators: The setting that chooses among several annotators.
    """
    of: dict[str, Account] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            account = chosen_account(name, reading.accounts.get(name, ()), annotators)
        except AnnotationError as error:
            refused[name] = str(error)
            continue
        if account is not None:
            of[name] = account
    return of, refused


def annotated_spans(annotation: Account, data: DataSettings, duration_us: int) -> list[tuple[int, int]]:
    """What of a recording was annotated by the settings: marked spans, up to the last annotation, or all of it."""
    spans = annotated.annotated_spans(annotation.intervals, annotation.points, data)
    return [(0, duration_us)] if spans is None else spans
