"""A project's recordings and annotations brought together, with everything that was left out and why.

One bad file never hides the rest: it is listed with its reason, its recording counts as unlabelled, and whoever prints
the inventory says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurecache.annotations import Interval
from featurecache.clips.annotated import Account, read_annotations
from featurecache.clips.matching import chosen_annotations
from featurecache.clips.sessions import name_sessions
from featurecache.errors import AnnotationError
from featurecache.project.settings import Project
from featurecache.video.recordings import Recording, UnusableRecording, find_recordings


@dataclass(frozen=True)
class Inventory:
    """What a project holds.

    Attributes:
        recordings: The usable recordings.
        unusable: Recordings, annotation files, annotations and rows that are left out.
        intervals: Recording -> its intervals of every label, in media time. Absent: not annotated.
        sessions: Recording -> session.
        notes: What may be wrong with recordings and annotations that were read, and how they are read, a sentence each.
        points: Recording -> annotations of no duration, as intervals that end where they begin.
        accounts: Recording -> what each of its annotators says; several where it is doubly annotated.
        labels_of_absent: Label that files of absent recordings use -> such a file's name.
        annotated: Recording -> what of it was annotated, where that is not what the settings make of its intervals.
        reviewed: Recording -> its reviewed stretches that are used.
    """

    recordings: tuple[Recording, ...]
    unusable: tuple[UnusableRecording, ...]
    intervals: Mapping[str, list[Interval]]
    sessions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    points: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    accounts: Mapping[str, Sequence[Account]] = field(default_factory=dict)
    labels_of_absent: Mapping[str, str] = field(default_factory=dict)
    annotated: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    reviewed: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)


def take_inventory(project: Project) -> Inventory:
    """Finds the recordings, reads the annotations, and names each recording's session.

    Raises:
        NoRecordingsError: If there is no folder of recordings, or nothing in it.
        AnnotationError: If the annotations are missing, contradict each other, or leave a question open.
        ClipTableError: If a recording has no session by the settings' rule.
    """
    data = project.settings.data
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    names = [recording.name for recording in recordings]
    reading = read_annotations(project, [names])
    found, refused = chosen_annotations(reading, names, data.annotators)
    if refused:
        raise AnnotationError(next(iter(refused.values())))
    sessions, joined = name_sessions(names, data, reading.sessions)
    notes = [f"{recording.name}: {warning}" for recording in recordings for warning in recording.info.warnings]
    return Inventory(
        recordings,
        (*unusable, *reading.left_out),
        {name: list(one.intervals) for name, one in sorted(found.items())},
        sessions,
        (*notes, *reading.notes, *joined),
        {name: one.points for name, one in found.items()},
        dict(reading.accounts),
        reading.labels_of_absent,
    )
