"""A project's recordings and annotations brought together, with everything that was left out and why.

One bad file never hides the rest: it is listed with its reason, its recording counts as unlabelled, and whoever prints
the survey says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurecache.annotations import Interval
from featurecache.clips.annotated import Account, read_annotations
from featurecache.clips.annotators import chosen_account
from featurecache.clips.clip import ClipTable, session_of
from featurecache.clips.table import build_table
from featurecache.errors import SettingsError
from featurecache.project.settings import Project
from featurecache.video.recordings import Recording, UnusableRecording, find_recordings


@dataclass(frozen=True)
class Survey:
    """What a project holds.

    Attributes:
        recordings: The usable recordings.
        unusable: Recordings, annotation files, annotations and rows that are left out.
        intervals: Recording -> its intervals of every label, in media time. Absent: not annotated.
        sessions: Recording -> session.
        notes: What may be wrong with annotations that were read, and how they are read, a sentence each.
        points: Recording -> annotations of no duration, as intervals that end where they begin.
        accounts: Recording -> what each of its annotators says; several where it is doubly annotated.
    """

    recordings: tuple[Recording, ...]
    unusable: tuple[UnusableRecording, ...]
    intervals: Mapping[str, list[Interval]]
    sessions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    points: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    accounts: Mapping[str, Sequence[Account]] = field(default_factory=dict)


def survey(project: Project) -> Survey:
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
    found: dict[str, list[Interval]] = {}
    points: dict[str, Sequence[Interval]] = {}
    for name, accounts in sorted(reading.accounts.items()):
        account = chosen_account(name, accounts, data.annotators)
        if account is not None:
            found[name], points[name] = account.marks.intervals, account.marks.points
    if data.session_from == "column" and not reading.sessions:
        raise SettingsError(
            "data.session_from = 'column' needs a CSV of annotations with a session column, but there is none. "
            "Add the column, or choose file, folder or pattern."
        )
    sessions = {
        name: session_of(name, data.session_from, pattern=data.session_pattern, column=reading.sessions)
        for name in names
    }
    left_out = (*unusable, *reading.left_out)
    return Survey(recordings, left_out, found, sessions, tuple(reading.notes), points, dict(reading.accounts))


def make_table(project: Project, found: Survey) -> tuple[ClipTable, tuple[UnusableRecording, ...]]:
    """The clip table of a survey by the project's settings, and the recordings too short for a clip.

    Raises:
        ClipTableError: If a label is unknown, or no recording is long enough.
        SplitError: If the sessions cannot be split.
    """
    settings = project.settings
    return build_table(
        found.recordings,
        found.intervals,
        settings.data.labels,
        length_us=settings.clips.length_us,
        stride_us=settings.clips.stride_us,
        sessions=found.sessions,
        fractions=(settings.splits.train, settings.splits.validation, settings.splits.test),
        seed=settings.splits.seed,
        fixed_splits=settings.splits.sessions,
        annotated_span=settings.data.annotated_span,
        until_last=settings.data.unannotated_time == "until_last_annotation",
        min_overlap_us=settings.clips.min_overlap_us,
        points=found.points,
    )
