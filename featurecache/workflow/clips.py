"""Recordings and annotations to `clips.csv`, with an audit of the labels: what `featurecache clips` calls."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurecache.clips.audit import audit
from featurecache.clips.clip import ClipTable
from featurecache.clips.copies import find_copies
from featurecache.clips.csv_file import keep_edited, refuse_edited, write_table
from featurecache.clips.inventory import Inventory, take_inventory
from featurecache.clips.kept_splits import NO_SPLITS, KeptSplits, kept_splits
from featurecache.clips.label_counts import UNKNOWN_SOURCES, LabelAudit
from featurecache.clips.record import files_of, read_record, record_of
from featurecache.clips.reviewed import ReviewedTable, reviewed_table
from featurecache.clips.samples_file import SAMPLES_NAME, project_samples, write_samples
from featurecache.clips.session_notes import (
    across_splits,
    few_in_words,
    recordings_of_sessions,
    sessions_in_words,
)
from featurecache.clips.table import make_table
from featurecache.clips.unannotated import (
    LostAnnotations,
    UnannotatedTime,
    lost_annotations,
    lost_in_words,
    rules_in_words,
    unannotated_in_words,
    unannotated_time,
)
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project
from featurecache.spelling import counted, listed
from featurecache.store.withdrawn import read_withdrawn
from featurecache.video.recordings import UnusableRecording


@dataclass(frozen=True)
class MadeClips:
    """A clip table that was written.

    Attributes:
        path: The file.
        audit: What a person should know of the labels.
        rules: How unannotated time and short annotations are read, in words.
        unannotated: Time without an annotation, per recording.
        lost: Annotations that mark no clip, per label.
        unusable: Recordings and annotation files that are left out, with the reasons.
        session_recordings: Session -> its recordings.
        samples: Number of samples of several clips that were written; None where the settings name no rule.
    """

    path: Path
    audit: LabelAudit
    rules: tuple[str, ...]
    unannotated: tuple[UnannotatedTime, ...]
    lost: tuple[LostAnnotations, ...]
    unusable: tuple[UnusableRecording, ...]
    session_recordings: Mapping[str, Sequence[str]]
    samples: int | None = None

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache clips --json`."""
        return {
            "clips_csv": self.path,
            **asdict(self.audit),
            "rules": list(self.rules),
            "session_recordings": dict(self.session_recordings),
            "unannotated_time": [asdict(item) for item in self.unannotated],
            "lost_annotations": [asdict(item) for item in self.lost],
            "unusable": [asdict(item) for item in self.unusable],
            **({} if self.samples is None else {"samples": self.samples}),
        }


def make_clips(
    project: Project,
    *,
    force: bool = False,
    redeal: bool = False,
    with_reviewed: bool = False,
    on_left_out: Callable[[Sequence[UnusableRecording]], None] = lambda _: None,
) -> MadeClips:
    """Cuts the recordings into clips, sets targets and splits, and writes the table.

    Sessions keep the splits they had; new ones are placed where they balance best.

    Args:
        project: The project.
        force: Whether a table that a person edited is replaced; it is kept as `clips.edited.csv`.
        redeal: Assign all sessions anew, whatever their splits were.
        with_reviewed: Whether reviews label their stretches: blind ones as annotation does, those made with predictions
            in sight for training alone.
        on_left_out: Called with files that cannot be used as they are found: where nothing is left, they say why.

    Raises:
        AnnotationError: If the annotations are missing, or lack a label that the settings name.
        ClipTableError: If no recording is as long as a clip, or a session cannot be told.
        EditedTableError: If the table was edited and `force` is not set.
        NoRecordingsError: If there is no usable recording.
        SplitError: If the sessions cannot be split as asked.
    """
    # Before anything is read, so that what changes meanwhile is noticed later.
    files = files_of(project, digests=True, reviews=with_reviewed)
    earlier = read_record(project.table_record)
    if earlier.written and not force:
        refuse_edited(project.clips, earlier.written)
    before = kept_splits(project.clips, earlier)
    found = _without_withdrawn(project, take_inventory(project))
    on_left_out(found.unusable)
    kept = NO_SPLITS if redeal else before
    made = (
        reviewed_table(project, found, kept=kept)
        if with_reviewed
        else ReviewedTable(found, *make_table(project.settings, found, kept=kept))
    )
    found, table, short = made.inventory, made.table, (*made.short, *made.left_out)
    on_left_out(short)
    compared, copies = find_copies(found.recordings, earlier.compared, earlier.copies)
    known = replace(earlier, compared=tuple(compared), copies=tuple(copies), splits={} if redeal else earlier.splits)
    record = record_of(project, table, files, known)
    record = replace(record, seen=made.seen, sources=made.sources or UNKNOWN_SOURCES)
    edited = keep_edited(project.clips, earlier.written) if force else None
    write_table(table, project.clips, state_path=project.table_record, force=force, record=record)
    findings, unannotated, lost = _audited(project, made)
    if edited is not None:
        findings.warnings.insert(0, f"{project.clips.name} was edited by hand; that table is kept as {edited.name}.")
    if "reviews" in earlier.files and not with_reviewed:
        findings.warnings.append("the table held reviews, this one does not: featurecache clips --with-reviewed.")
    if moved := before.moved(table):
        findings.warnings.append(_moved_warning(moved))
    findings.warnings.extend([*across_splits(table, found.recordings, copies), *few_in_words(table)])
    sessions = {one.name: found.sessions[one.name] for one in found.recordings}
    samples, samples_said = _samples(project, table, force=force)
    rules = (
        *((*rules_in_words(project.settings), *unannotated_in_words(unannotated)) if found.intervals else ()),
        sessions_in_words(sessions),
        *([] if redeal else _placed_in_words(before, found, table)),
        *samples_said,
    )
    return MadeClips(
        project.clips,
        findings,
        rules,
        tuple(unannotated),
        tuple(lost),
        (*found.unusable, *short),
        recordings_of_sessions(sessions),
        samples,
    )


def _audited(
    project: Project, made: ReviewedTable
) -> tuple[LabelAudit, Sequence[UnannotatedTime], Sequence[LostAnnotations]]:
    """The audit of a table's labels with what reading the annotations left to say, unannotated time, and lost ones."""
    found, table, span = made.inventory, made.table, project.settings.data.annotated_span
    findings = audit(
        table,
        found.recordings,
        found.intervals,
        annotated_span=span,
        reviewed=found.reviewed,
        sources=made.sources,
    )
    lost = lost_annotations(table, found.intervals, found.points)
    findings.warnings[:0] = [*found.notes, *_absent_in_words(found, findings), *lost_in_words(lost)]
    return findings, unannotated_time(table, found.recordings, found.intervals, span), lost


def _samples(project: Project, table: ClipTable, *, force: bool) -> tuple[int | None, list[str]]:
    """The number of samples of several clips that a rule of the settings makes; else what a person's own file holds."""
    rule = project.settings.samples.rule
    if rule == "none":
        return None, []
    if rule != "file":
        return len(write_samples(project, table, force=force).samples), []
    try:
        samples = project_samples(project, table).samples
    except ClipTableError as error:
        return None, [f"{SAMPLES_NAME} does not fit yet: {error}"]
    counts = Counter(sample.split for sample in samples)
    by_split = ", ".join(f"{count} {split}" for split, count in counts.items())
    return None, [f"{counted(len(samples), 'sample')} of several clips in {SAMPLES_NAME}: {by_split}"]


def _without_withdrawn(project: Project, found: Inventory) -> Inventory:
    """An inventory without recordings that were withdrawn but whose files are still there; these are named."""
    withdrawn = read_withdrawn(project.cache)
    gone = {one.name for one in found.recordings if withdrawn.covers(one.sha256)}
    reason = "withdrawn (featurecache cache forget), and still in the folder of videos: remove the file"
    return replace(
        found,
        recordings=tuple(one for one in found.recordings if one.name not in gone),
        unusable=(*found.unusable, *(UnusableRecording(name, reason) for name in sorted(gone))),
        intervals={name: one for name, one in found.intervals.items() if name not in gone},
    )


def _placed_in_words(before: KeptSplits, found: Inventory, table: ClipTable) -> list[str]:
    """Which sessions kept their splits, and where new ones are."""
    known = before.of_sessions(found.recordings, found.sessions)
    of_session = {clip.session: clip.split for clip in table.clips if clip.split}
    kept = [session for session, split in known.items() if of_session.get(session) == split]
    if not kept:
        return []
    new = {session: split for session, split in of_session.items() if session not in known}
    placed = f"; new: {listed([f'{session} ({split})' for session, split in new.items()])}" if new else ""
    keep = counted(len(kept), "session", ("keeps its split", "keep their splits"))
    return [f"{keep}{placed} (to assign all anew: featurecache clips --redeal)."]


def _absent_in_words(found: Inventory, findings: LabelAudit) -> list[str]:
    """One warning for all labels that only files of absent recordings have."""
    unseen = {one.label for one in findings.labels if not one.positives and not one.intervals}
    absent = {label: name for label, name in found.labels_of_absent.items() if label in unseen}
    if not absent:
        return []
    return [
        f"{', '.join(absent)}: used only in annotations of recordings that are not here "
        f"({listed([*dict.fromkeys(absent.values())])}), so no clip is positive. Put the recordings back, or take "
        f"{'the label' if len(absent) == 1 else 'these'} out of labels."
    ]


def _moved_warning(moved: Sequence[str]) -> str:
    return (
        f"{counted(len(moved), 'session')} changed split ({listed(moved)}): tune again before you evaluate, for no "
        "bundle is tested on sessions that made it."
    )
