"""What `init` proposes from annotations: labels, columns of tables, sessions, and what a person should know of them."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurecache.annotations import (
    AnnotationTable,
    EafDocument,
    LabelProposal,
    LabelRule,
    matching_recordings,
    propose_labels,
    resolve_times,
)
from featurecache.annotations.columns import columns_line, recognise
from featurecache.annotations.media import match_name, names_looked_for
from featurecache.annotations.proposing import propose_from_values, span_like
from featurecache.annotations.questions import ABSENT, same_entry, values_by_tier
from featurecache.annotations.table import header_of
from featurecache.clips.annotated import annotation_paths, read_files, tables_not_read
from featurecache.errors import AnnotationError
from featurecache.project.columns import ColumnSettings
from featurecache.spelling import listed, look_alikes, typos
from featurecache.video.recordings import Recording

_FRAMES_BEHIND_SECONDS = re.compile(r"ss[:;]ff|smpte|timecode", re.IGNORECASE)


@dataclass(frozen=True)
class AnnotationProposal:
    """What is proposed.

    Attributes:
        labels: The labels, and how they are read.
        columns: Columns of the tables.
        sessions: Recording -> session, where tables say so.
        notes: What led to it, one line each.
        warnings: What is to be done first, one line each.
    """

    labels: LabelProposal
    columns: ColumnSettings
    sessions: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


NO_ANNOTATIONS = AnnotationProposal(
    LabelProposal("tiers", (), (), "no annotations: every clip is unlabelled"), ColumnSettings()
)
"""What is proposed of recordings alone."""


def propose_from_annotations(annotations: Path, recordings: Sequence[Recording]) -> AnnotationProposal:
    """Looks at annotations and proposes how to read them.

    Args:
        annotations: A folder of .eaf files or tables, or one such file.
        recordings: The usable recordings.

    Raises:
        AnnotationError: If the annotations are missing or have no label.
    """
    notes: list[str] = []
    warnings: list[str] = []
    names = [recording.name for recording in recordings]
    columns = _propose_columns(annotations, recordings, notes)
    documents, tables, unread = read_files(annotations, columns)
    notes += [f"left out: {item.name}: {item.reason}" for item in unread]
    notes += [f"left out: {path.name}: {fault}" for path, table in tables.items() for fault in table.left_out]
    if unread and not documents and not tables:
        raise AnnotationError(f"{unread[0].name}: {unread[0].reason}")
    if documents or not tables:
        here, absent = _of_recordings(documents, names)
        proposed = propose_labels(here or documents.values())
        notes += absent
        if documents and not here:
            looked_for = [name for path, document in documents.items() for name in names_looked_for(document, path)]
            warnings.append(_none_is_here(len(documents), looked_for, names))
    else:
        of_here = [rows for table in tables.values() if (rows := _rows_of(names, table)) is not None]
        proposed = _propose_from_tables(of_here or tables.values(), columns)
        looked_for = [name for table in tables.values() for name in table.recordings]
        if not of_here and looked_for:
            warnings.append(_none_is_here(len(tables), looked_for, names))
    translations = [names for one in documents.values() for names in one.vocabulary_entries.values()]
    proposed = _one_spelling(proposed, notes, translations)
    notes += tables_not_read(annotations) if documents else ()
    return AnnotationProposal(proposed, columns, _sessions_of(names, tables.values()), notes, warnings)


def _propose_columns(annotations: Path, recordings: Sequence[Recording], notes: list[str]) -> ColumnSettings:
    """The columns of the first table, where the annotations are tables; frames count as the recordings say."""
    paths = [annotations] if annotations.is_file() else annotation_paths(annotations)
    if paths[0].suffix.lower() == ".eaf":
        return ColumnSettings()
    found = recognise(header_of(paths[0]))
    if found is None:
        return ColumnSettings()  # reading it says what is missing
    own = ColumnSettings()
    found = dataclasses.replace(found, session=found.session or own.session, annotator=found.annotator or own.annotator)
    rates = {round(one.info.average_fps or 0, 3) for one in recordings}
    if len(rates) == 1 and (found.unit == "frames" or _FRAMES_BEHIND_SECONDS.search(found.start)):
        found = dataclasses.replace(found, frame_rate=rates.pop())
    if found != own:
        notes.append(f"{columns_line(found)} (from the header of {paths[0].name}; check that it is right)")
    return found


def _of_recordings(documents: Mapping[Path, EafDocument], names: Sequence[str]) -> tuple[list[EafDocument], list[str]]:
    """The documents of recordings that are there, and notes on the others; no notes where none is of any.

    A label that stands in a file of an absent recording alone would be a column without a positive clip.
    """
    here: list[tuple[Path, EafDocument]] = []
    absent: list[tuple[Path, EafDocument]] = []
    for path, document in documents.items():
        try:
            is_here = bool(matching_recordings(document, path, names))
        except AnnotationError:
            is_here = True  # of two recordings, or in another folder: a question of its own
        (here if is_here else absent).append((path, document))
    if not here:
        return [], []
    labels = {one.tier for _, document in here for one in resolve_times(document)}
    alone = [(path, sorted({one.tier for one in resolve_times(document)} - labels)) for path, document in absent]
    notes = [
        f"{path.name} is of no recording here and is not proposed from; tiers that it alone uses: {', '.join(only)}"
        for path, only in alone
        if only
    ]
    if plain := [path.name for path, only in alone if not only]:
        verb = "is" if len(plain) == 1 else "are"
        notes.append(f"{listed(plain)} {verb} of no recording here and {verb} not proposed from")
    return [document for _, document in here], notes


def _none_is_here(count: int, looked_for: Sequence[str], names: Sequence[str]) -> str:
    """The warning where labels can only be proposed from annotations of other recordings."""
    called, are = (listed([*dict.fromkeys(found)]) for found in (looked_for, names))
    return (
        f"0 of {count} annotation files name a recording here: they name {called}, but the recordings are "
        f"{are}. Every clip will be unlabelled; give recordings the names that the annotations have, or name the "
        "folder that holds them under data.videos"
    )


def _rows_of(names: Sequence[str], table: AnnotationTable) -> AnnotationTable | None:
    """A table's rows of recordings that are there; None where none is of any."""

    def is_here(name: str) -> bool:
        try:
            return match_name(name, names, where="") is not None
        except AnnotationError:
            return True

    known = {name for name in table.recordings if is_here(name)}
    return dataclasses.replace(table, rows=[row for row in table.rows if row.recording in known]) if known else None


def _sessions_of(names: Sequence[str], tables: Iterable[AnnotationTable]) -> dict[str, str]:
    """Recording -> session, where a table says so, as loosely as `clips` matches names."""
    found = {}
    for table in tables:
        for name, session in table.sessions.items():
            with contextlib.suppress(AnnotationError):
                if match := match_name(name, names, where=""):
                    found[match[0]] = session
    return found


def _propose_from_tables(tables: Iterable[AnnotationTable], columns: ColumnSettings) -> LabelProposal:
    uses = Counter((row.label, row.value) for table in tables for row in table.rows)
    values = values_by_tier(uses, LabelRule())
    if columns.value and values:
        return propose_from_values(values)
    span = next((label for label in values if span_like(label)), None)
    absent = sorted(label for label in values if label.casefold() in ABSENT)
    labels = tuple(sorted(label for label in values if label != span and label not in absent))
    reason = f"labels are those of the column {columns.label!r} ({len(labels)})"
    if absent:
        reason += f", without {', '.join(map(repr, absent))}, taken to say that nothing happens"
    return LabelProposal("tiers", (), labels, reason, {}, span)


def _one_spelling(proposed: LabelProposal, notes: list[str], translations: Sequence[Sequence[str]]) -> LabelProposal:
    """The proposal with one label of those that look alike or translate each other; `clips` asks about them."""
    dropped: set[str] = set()
    labels = proposed.labels
    for group in [*look_alikes(labels), *typos(labels, labels), *same_entry(labels, translations)]:
        if not dropped & set(group):
            dropped |= set(group[:-1])
            notes.append(f"{' and '.join(map(repr, group))} may be one label; clips asks whether they are")
    return dataclasses.replace(proposed, labels=tuple(label for label in labels if label not in dropped))
