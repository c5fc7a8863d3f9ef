"""The annotations of recordings, read by a project's settings, with everything that was left out and why.

One bad file, annotation or row never hides the rest: it is listed with its reason. What only a person can decide is
asked, not guessed: two spellings, values that may mean absence, two annotators. `inventory` brings the result together
with the recordings of a whole project; `matching` looks up single ones.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.annotations import (
    AnnotationTable,
    EafDocument,
    Interval,
    LabelRule,
    Marks,
    marks,
    matching_recordings,
    read_csv,
    read_eaf,
    resolve_times,
    untimed,
)
from featurecache.annotations.columns import recognise
from featurecache.annotations.media import MatchedBy, match_name, names_looked_for, nearest
from featurecache.annotations.questions import ask
from featurecache.annotations.reviews import is_review
from featurecache.annotations.table import header_of
from featurecache.errors import AnnotationError, FeatureCacheError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import DataSettings, Project
from featurecache.spelling import caseless, did_you_mean, listed
from featurecache.video.recordings import UnusableRecording

_A_REVIEW = "a review, which is no annotation; featurecache clips --with-reviewed takes in those of the folder reviewed"
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
_WORKBOOK_SUFFIXES = frozenset({".xls", ".xlsx", ".ods", ".numbers"})


@dataclass(frozen=True)
class Account:
    """What one annotator says about one recording.

    Attributes:
        source: The file's name, and who annotated where a table names it.
        marks: Intervals and points on the recording's clock.
        by: How the recording was found.
        names: By which the annotator can be chosen.
        says_nothing: The file has no annotation: it does not tell whether anybody looked.
        eaf: The `.eaf`; None for a table.
        time_origin_ms: Of the recording's media descriptor in the `.eaf`.
        document: What that file holds, not to be changed.
    """

    source: str
    marks: Marks
    by: MatchedBy
    names: tuple[str, ...] = ()
    says_nothing: bool = False
    eaf: Path | None = None
    time_origin_ms: int = 0
    document: EafDocument | None = None

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Intervals of every label, in media time, sorted."""
        return tuple(self.marks.intervals)

    @property
    def points(self) -> tuple[Interval, ...]:
        """Annotations of no duration, as intervals that end where they begin."""
        return tuple(self.marks.points)

    def own_document(self) -> EafDocument | None:
        """A copy of the document, to add tiers to; None for a table."""
        return copy.deepcopy(self.document)


@dataclass
class AnnotationReading:
    """What annotation files say about recordings.

    Attributes:
        accounts: Recording -> what each annotator says about it.
        sessions: Recording -> session, where a table names it.
        left_out: Files, annotations and rows that are not used.
        notes: What may be wrong with what is used, a sentence each.
        labels_of_absent: Label that files of absent recordings use -> such a file's name.
    """

    accounts: dict[str, list[Account]] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    left_out: list[UnusableRecording] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels_of_absent: dict[str, str] = field(default_factory=dict)


def rule_of(data: DataSettings) -> LabelRule:
    """The rule for labels that settings state."""
    tiers = tuple(data.rename.get(tier, tier) for tier in data.tiers)
    return LabelRule(data.labels_from, tiers, data.mapping, data.rename, data.annotated_span)


def read_annotations(project: Project, candidates: Sequence[Sequence[str]]) -> AnnotationReading:
    """Reads a project's annotations for recordings.

    Args:
        project: Where annotations are, and how they are read.
        candidates: Groups of recordings' names; each name in a file is looked for in each group on its own.

    Raises:
        AnnotationError: If the annotations are missing, name no tier of the settings, or leave a question open.
    """
    if project.annotations is None:
        return AnnotationReading()
    reading = AnnotationReading()
    documents, tables, unread = read_files(project.annotations, project.settings.data.columns)
    reading.left_out.extend(unread)
    reading.notes.extend(tables_not_read(project.annotations) if documents else ())
    data = project.settings.data
    rule = rule_of(data)
    if documents:
        _check_tiers(documents.values(), data)
    rule_of_tables = rule if data.columns.value else LabelRule(rename=data.rename, mapping=data.mapping, span=rule.span)
    translations = (names for one in documents.values() for names in one.vocabulary_entries.values())
    ask(_uses(documents.values()), rule, data.labels, translations)
    of_tables = Counter((row.label, row.value) for table in tables.values() for row in table.rows)
    ask(of_tables, rule_of_tables, data.labels)
    for path, document in documents.items():
        _read_document(reading, path, document, candidates, data, rule)
    for path, table in tables.items():
        _read_table(reading, path, table, candidates, data, rule_of_tables)
    if project.settings.clips.min_overlap == "any":
        for name, accounts in reading.accounts.items():
            reading.accounts[name] = [replace(one, marks=_lasting(one.marks)) for one in accounts]
    by_name = [f"{one.source} -> {name}" for name, all_ in reading.accounts.items() for one in all_ if one.by != "path"]
    if by_name:
        reading.notes.append(f"matched by the name alone, not by folders: {', '.join(by_name)}.")
    return reading


def annotated_spans(
    intervals: Sequence[Interval], points: Sequence[Interval], data: DataSettings
) -> list[tuple[int, int]] | None:
    """What of a recording was annotated: marked spans, what lies before the last annotation, or None for all of it.

    Args:
        intervals: The recording's intervals of every label.
        points: Its annotations of no duration.
        data: The settings that say where annotation took place.
    """
    if data.annotated_span is not None:
        return [(interval.start_us, interval.end_us) for interval in intervals if interval.label == data.annotated_span]
    if data.unannotated_time == "until_last_annotation":
        return [(0, max((one.end_us for one in (*intervals, *points)), default=0))]
    return None


def _lasting(found: Marks) -> Marks:
    """Points as intervals of the shortest time there is, where any time marks a clip."""
    short = (Interval(one.start_us, one.start_us + 1, one.label) for one in found.points)
    return Marks(sorted({*found.intervals, *short}), found.points)


def read_files(
    place: Path, columns: ColumnSettings
) -> tuple[dict[Path, EafDocument], dict[Path, AnnotationTable], tuple[UnusableRecording, ...]]:
    """The `.eaf` files, or where there are none the tables, at a place, and those that cannot be read.

    Args:
        place: A folder, or one file. Hidden files and predictions are passed over in a folder.
        columns: The columns of tables.

    Raises:
        AnnotationError: If there is none, or the one file named cannot be read.
    """
    if place.is_file():
        if place.suffix.lower() == ".eaf":
            return {place: read_eaf(place)}, {}, ()
        return {}, {place: read_csv(place, columns)}, ()
    paths = annotation_paths(place)
    documents: dict[Path, EafDocument] = {}
    tables: dict[Path, AnnotationTable] = {}
    unread = []
    for path in paths:
        try:
            if path.suffix.lower() == ".eaf":
                document = read_eaf(path)
                if is_review(document):
                    unread.append(UnusableRecording(path.name, _A_REVIEW))
                else:
                    documents[path] = document
            else:
                tables[path] = read_csv(path, columns)
        except FeatureCacheError as error:
            unread.append(UnusableRecording.because(path.name, error))
    return documents, tables, tuple(unread)


def annotation_paths(folder: Path) -> list[Path]:
    """Every `.eaf` below a folder, or every table where there is no `.eaf`; no hidden ones, predictions, suggestions.

    Raises:
        AnnotationError: If the folder is missing or holds neither.
    """
    ours = (".predicted.", ".suggested.")
    paths = sorted(
        p for p in folder.rglob("*") if not p.name.startswith(".") and not any(infix in p.name for infix in ours)
    )
    documents = [path for path in paths if path.suffix.lower() == ".eaf"]
    found = documents or [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    if not found:
        state = "holds no .eaf file and no table" if folder.is_dir() else "does not exist"
        if book := next((path.name for path in paths if path.suffix.lower() in _WORKBOOK_SUFFIXES), ""):
            state += f" (save {book} as 'CSV UTF-8' in the spreadsheet)"
        raise AnnotationError(
            f"data.annotations must be a folder of .eaf files or a CSV, but {folder} {state}. "
            "Correct it, or leave it out where there are no annotations."
        )
    return found


def tables_not_read(place: Path) -> list[str]:
    """A sentence on the tables of annotations in a folder of `.eaf` files, if there are any."""
    found = []
    for path in sorted(place.rglob("*")) if place.is_dir() else ():
        with contextlib.suppress(FeatureCacheError):
            if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and recognise(header_of(path)) is not None:
                found.append(path.name)
    return [
        f"{listed(found)}: not read, since there are .eaf files. If other recordings need such tables, bring all "
        "into one form (ELAN imports tables: File > Import)."
    ] * bool(found)


def _uses(documents: Iterable[EafDocument]) -> Counter[tuple[str, str]]:
    uses: Counter[tuple[str, str]] = Counter()
    for document in documents:
        uses.update({(tier, ""): 0 for tier in document.tiers})
        uses.update((one.tier, one.value) for one in resolve_times(document))
    return uses


# --- one .eaf -------------------------------------------------------------------------------------


def _read_document(
    reading: AnnotationReading,
    path: Path,
    document: EafDocument,
    candidates: Sequence[Sequence[str]],
    data: DataSettings,
    rule: LabelRule,
) -> None:
    ignore = data.media_folders == "ignored"
    try:
        matches = [
            match for names in candidates for match in matching_recordings(document, path, names, ignore_folders=ignore)
        ]
    except FeatureCacheError as error:
        reading.left_out.append(UnusableRecording.because(path.name, error))
        return
    if not matches:
        looked_for = names_looked_for(document, path)
        known = [name for names in candidates for name in names]
        reading.left_out.append(
            UnusableRecording(
                path.name,
                "it annotates none of the recordings; none is called "
                f"{listed(looked_for)}.{nearest(looked_for, known)}",
            )
        )
        found = marks(document, rule, time_origin_ms=0)
        reading.labels_of_absent.update({one.label: path.name for one in (*found.intervals, *found.points)})
        return
    faults = untimed(document)
    reading.left_out.extend(UnusableRecording(path.name, fault) for fault in faults)
    read = [tier for tier in document.tiers if rule.reads(tier)]
    annotated = {one.tier for one in resolve_times(document)}
    says_nothing = (not annotated or not read) and data.empty_files == "unlabelled"
    reading.notes.extend(_notes_on(path.name, data, has_tiers=bool(read), is_annotated=bool(annotated)))
    author = document.root.get("AUTHOR", "").strip()
    names = tuple(filter(None, (author, path.stem, *path.parts[-4:-1])))
    for match in matches:
        found = marks(document, rule, time_origin_ms=match.time_origin_ms)
        account = Account(path.name, found, match.by, names, says_nothing, path, match.time_origin_ms, document)
        reading.accounts.setdefault(match.recording, []).append(account)


def _notes_on(name: str, data: DataSettings, *, has_tiers: bool, is_annotated: bool) -> list[str]:
    """What a file lacks that it may have been meant to have."""
    unlabelled = data.empty_files == "unlabelled"
    then = "its recording counts as unlabelled" if unlabelled else "no activity counts as seen in its recording"
    if not has_tiers:
        wanted = ", ".join(dict.fromkeys((*data.tiers, *data.mapping)))
        lacks = f"has none of the tiers {wanted}" if wanted else "has no tier but predictions"
        return [f"{name} {lacks}, so {then}. Correct it, or move it away."]
    if is_annotated:
        return []
    advice = ' If somebody watched it and nothing happened, set empty_files = "negative" under [data].' * unlabelled
    return [f"{name} has no annotation, so {then}.{advice}"]


def _check_tiers(documents: Iterable[EafDocument], data: DataSettings) -> None:
    """Refuses a tier that no document has, with the nearest name."""
    rule = rule_of(data)
    known = sorted({rule.name(name) for document in documents for name in document.tiers})
    for tier in (*rule.tiers, *rule.mapping):
        if tier not in known:
            advice = did_you_mean(tier, known, f"They have: {', '.join(known[:20])}.")
            raise AnnotationError(
                f"data.tiers and data.mapping must name tiers of the .eaf files, but {tier!r} is in none. {advice}"
            )


# --- one table ------------------------------------------------------------------------------------


def _read_table(
    reading: AnnotationReading,
    path: Path,
    table: AnnotationTable,
    candidates: Sequence[Sequence[str]],
    data: DataSettings,
    rule: LabelRule,
) -> None:
    reading.left_out.extend(UnusableRecording(path.name, fault) for fault in table.left_out)
    matched: dict[str, dict[str, MatchedBy]] = {}
    for name in table.recordings:
        try:
            found = [
                match
                for names in candidates
                if (match := match_name(name, names, where=path.name, ignore_folders=data.media_folders == "ignored"))
            ]
        except FeatureCacheError as error:
            reading.left_out.append(UnusableRecording.because(path.name, error))
            continue
        if not found:
            known = [each for names in candidates for each in names]
            reading.left_out.append(
                UnusableRecording(
                    path.name, f"its rows of {name!r} annotate none of the recordings.{nearest([name], known)}"
                )
            )
            labels = (rule.label(row.label, row.value) for row in table.rows if row.recording == name)
            reading.labels_of_absent.update({label: path.name for label in labels if label})
        for recording, by in found:
            matched.setdefault(recording, {})[name] = by
    for recording, by_names in matched.items():
        _add_table_accounts(reading, path, table, recording, by_names, rule)


def _add_table_accounts(
    reading: AnnotationReading,
    path: Path,
    table: AnnotationTable,
    recording: str,
    by_names: Mapping[str, MatchedBy],
    rule: LabelRule,
) -> None:
    for name in by_names:
        session = table.sessions.get(name, "")
        if session and caseless(reading.sessions.setdefault(recording, session)) != caseless(session):
            raise AnnotationError(
                f"{path.name}: a recording must belong to one session, but {recording!r} is in "
                f"{reading.sessions[recording]!r} and {session!r}. Correct one of them."
            )
    rows = [row for row in table.rows if row.recording in by_names]
    by: MatchedBy = next((how for how in by_names.values() if how != "path"), "path")
    for annotator in sorted({row.annotator for row in rows}) or [""]:
        spans: set[Interval] = set()
        points: set[Interval] = set()
        for row in rows:
            if row.annotator == annotator and (label := rule.label(row.label, row.value)):
                (spans if row.start_us < row.end_us else points).add(Interval(row.start_us, row.end_us, label))
        source = f"{path.name} ({annotator})" if annotator else path.name
        account = Account(source, Marks(sorted(spans), sorted(points)), by, tuple(filter(None, (annotator, path.stem))))
        reading.accounts.setdefault(recording, []).append(account)
