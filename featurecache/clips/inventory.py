"""A project's recordings and annotations brought together, with everything that was left out and why.

One bad file never hides the rest: it is listed with its reason, its recording counts as unlabelled, and
whoever prints the survey says so. Where annotations contradict each other nothing is guessed: two files
that annotate one recording are an error.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import (
    EafDocument,
    Interval,
    intervals,
    matching_recordings,
    read_csv,
    read_eaf,
)
from featurecache.annotations.labels import LabelsFrom
from featurecache.clips.clip import ClipTable, session_of
from featurecache.clips.table import build_table
from featurecache.errors import AnnotationError, FeatureCacheError, SettingsError
from featurecache.project.settings import Project
from featurecache.video.recordings import Recording, UnusableRecording, find_recordings


@dataclass(frozen=True)
class Survey:
    """What a project holds.

    Attributes:
        recordings: The usable recordings.
        unusable: Recordings and annotation files that are left out.
        intervals: Recording -> its intervals of every label, in media time. Absent: not annotated.
        sessions: Recording -> session.
        notes: What may be wrong with annotations that were read, a sentence each.
    """

    recordings: tuple[Recording, ...]
    unusable: tuple[UnusableRecording, ...]
    intervals: Mapping[str, list[Interval]]
    sessions: Mapping[str, str]
    notes: tuple[str, ...] = ()


def survey(project: Project) -> Survey:
    """Finds the recordings, reads the annotations, and names each recording's session.

    Raises:
        NoRecordingsError: If there is no folder of recordings, or nothing in it.
        AnnotationError: If the annotations are missing or contradict each other.
        ClipTableError: If a recording has no session by the settings' rule.
    """
    data = project.settings.data
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    names = [recording.name for recording in recordings]
    found: Mapping[str, list[Interval]] = {}
    column: Mapping[str, str] = {}
    notes: list[str] = []
    if project.annotations is not None and project.annotations.is_file():
        table = read_csv(project.annotations)
        as_on_disk = {_one_form(name): name for name in names}
        found = {as_on_disk.get(_one_form(name), name): list(spans) for name, spans in table.intervals.items()}
        column = {as_on_disk.get(_one_form(name), name): session for name, session in table.sessions.items()}
    elif project.annotations is not None:
        documents, unread = read_documents(project.annotations)
        found, unmatched, notes = _intervals_of(
            documents, names, labels_from=data.labels_from, tiers=data.tiers, span=data.annotated_span
        )
        unusable = (*unusable, *unread, *unmatched)
    if data.session_from == "column" and not column:
        raise SettingsError(
            "data.session_from = 'column' needs a CSV of annotations with a session column, but there is none. "
            "Add the column, or choose file, folder or pattern."
        )
    sessions = {
        name: session_of(name, data.session_from, pattern=data.session_pattern, column=column) for name in names
    }
    return Survey(recordings, unusable, found, sessions, tuple(notes))


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
    )


def read_documents(folder: Path) -> tuple[dict[Path, EafDocument], tuple[UnusableRecording, ...]]:
    """Every `.eaf` below a folder but hidden ones and predictions, and those that cannot be read.

    Raises:
        AnnotationError: If the folder is missing or holds no `.eaf`.
    """
    paths = sorted(p for p in folder.rglob("*.eaf") if not p.name.startswith(".") and ".predicted." not in p.name)
    if not paths:
        state = "holds no .eaf file" if folder.is_dir() else "does not exist"
        raise AnnotationError(
            f"data.annotations must be a folder of .eaf files or a CSV, but {folder} {state}. "
            "Correct it, or leave it out where there are no annotations."
        )
    documents: dict[Path, EafDocument] = {}
    unread = []
    for path in paths:
        try:
            documents[path] = read_eaf(path)
        except FeatureCacheError as error:
            unread.append(UnusableRecording.because(path.name, error))
    return documents, tuple(unread)


def _intervals_of(
    documents: Mapping[Path, EafDocument],
    names: list[str],
    *,
    labels_from: LabelsFrom,
    tiers: tuple[str, ...],
    span: str | None,
) -> tuple[dict[str, list[Interval]], list[UnusableRecording], list[str]]:
    _check_tiers(documents.values(), tiers)
    found: dict[str, list[Interval]] = {}
    source: dict[str, Path] = {}
    left_out, notes = [], []
    for path, document in documents.items():
        try:
            matches = matching_recordings(document, path, names)
            read = {
                match.recording: document_intervals(document, labels_from, tiers, span, match.time_origin_ms)
                for match in matches
            }
        except FeatureCacheError as error:
            left_out.append(UnusableRecording.because(path.name, error))
            continue
        if not matches:
            left_out.append(UnusableRecording(path.name, "it annotates none of the recordings"))
        else:
            notes.extend(_doubts(path.name, document, tiers))
        for name, own in read.items():
            if name in found:
                raise AnnotationError(
                    f"a recording must have one annotation file, but {name!r} has {source[name].name} and {path.name}. "
                    "Merge them in ELAN, or move one away."
                )
            found[name], source[name] = own, path
    return found, left_out, notes


def _doubts(name: str, document: EafDocument, tiers: tuple[str, ...]) -> list[str]:
    """What a file lacks that it may have been meant to have: all tiers, or one that is there in another spelling."""
    missing = [tier for tier in tiers if tier not in document.tiers]
    if tiers and len(missing) == len(tiers):
        return [
            f"{name} has none of the tiers {', '.join(tiers)}, so no activity counts as seen in its recording. "
            "Correct it, or move it away if nobody annotated that."
        ]
    others = {tier.strip().casefold(): tier for tier in document.tiers if tier not in tiers}
    return [
        f"{name} has a tier {others[key]!r} that is not read, and none called {tier!r}. Rename it if it is the same."
        for tier in missing
        if (key := tier.strip().casefold()) in others
    ]


def document_intervals(
    document: EafDocument, labels_from: LabelsFrom, tiers: tuple[str, ...], span: str | None, origin_ms: int
) -> list[Interval]:
    """Intervals of the tiers that this document has, in media time; a rare activity's tier may be missing in it."""
    here = tuple(name for name in tiers if name in document.tiers)
    own = (
        intervals(document, labels_from=labels_from, tiers=here, time_origin_ms=origin_ms) if here or not tiers else []
    )
    if span is not None and span in document.tiers:
        own = [interval for interval in own if interval.label != span]
        own += intervals(document, labels_from="tiers", tiers=(span,), time_origin_ms=origin_ms)
    return sorted(own)


def _one_form(name: str) -> str:
    """One spelling of accented letters: macOS takes them apart in file names, spreadsheets do not."""
    return unicodedata.normalize("NFC", name)


def _check_tiers(documents: Iterable[EafDocument], tiers: tuple[str, ...]) -> None:
    """Refuses a tier that no document has, with the nearest name."""
    known = sorted({name for document in documents for name in document.tiers})
    for tier in tiers:
        if tier not in known:
            near = difflib.get_close_matches(tier, known, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else f"They have: {', '.join(known[:20])}."
            raise AnnotationError(f"data.tiers must name tiers of the .eaf files, but {tier!r} is in none. {advice}")
