"""The annotation of single recordings, wherever they lie, found as `clips` finds it.

A recording inside the folder of videos is matched among all names there, one from elsewhere by its own name alone.
`survey` does the same for a whole project and reads every recording; this opens no video. Of documents only the place
is kept: whoever changes one reads it anew.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import Interval, matching_recordings, read_csv
from featurecache.clips.inventory import document_intervals, read_documents
from featurecache.errors import FeatureCacheError
from featurecache.project.settings import Project
from featurecache.video.recordings import VIDEO_SUFFIXES, UnusableRecording


@dataclass(frozen=True)
class FoundAnnotation:
    """A recording's annotation.

    Attributes:
        intervals: Of every label, in media time, sorted.
        source: The file's name.
        eaf: The `.eaf` that holds it; None for a table.
        time_origin_ms: Of the recording's media descriptor in the `.eaf`.
    """

    intervals: tuple[Interval, ...]
    source: str
    eaf: Path | None = None
    time_origin_ms: int = 0


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
        AnnotationError: If the settings' folder or table of annotations is missing or unreadable.
    """
    data = project.settings.data
    if project.annotations is None:
        return Annotations({}, {})
    if project.annotations.is_file():
        table = read_csv(project.annotations)
        in_table = {_one_form(name): tuple(own) for name, own in table.intervals.items()}
        known = {name: in_table[_one_form(name)] for name in names if _one_form(name) in in_table}
        source = project.annotations.name
        return Annotations({name: FoundAnnotation(own, source) for name, own in known.items()}, {})
    documents, unread = read_documents(project.annotations)
    inside = _video_names(project.videos)
    candidates = [inside, *([name] for name in names if name not in inside)]
    of: dict[str, FoundAnnotation] = {}
    refused: dict[str, str] = {}
    left_out = list(unread)
    for path, document in documents.items():
        try:
            matches = [match for among in candidates for match in matching_recordings(document, path, among)]
            for match in matches:
                name, origin_ms = match.recording, match.time_origin_ms
                if name not in names:
                    continue
                if name in of:
                    refused[name] = (
                        f"it has two annotation files, {of[name].source} and {path.name}; merge them in ELAN"
                    )
                own = document_intervals(document, data.labels_from, data.tiers, data.annotated_span, origin_ms)
                of[name] = FoundAnnotation(tuple(own), path.name, path, origin_ms)
        except FeatureCacheError as error:
            left_out.append(UnusableRecording.because(path.name, error))
    return Annotations(of, refused, tuple(left_out))


def annotated_spans(annotation: FoundAnnotation, span: str | None, duration_us: int) -> list[tuple[int, int]]:
    """What was annotated: the intervals of the label `span` where the settings name one, else all of the recording."""
    if span is None:
        return [(0, duration_us)]
    return [(one.start_us, one.end_us) for one in annotation.intervals if one.label == span]


def _video_names(folder: Path) -> list[str]:
    paths = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)


def _one_form(name: str) -> str:
    """One spelling of accented letters: macOS takes them apart in file names, spreadsheets do not."""
    return unicodedata.normalize("NFC", name)
