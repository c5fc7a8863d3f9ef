"""Recordings and annotations to `clips.csv`, with an audit of the labels: what `featurecache clips` calls."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurecache.clips.audit import audit
from featurecache.clips.csv_file import moved_sessions, write_table
from featurecache.clips.inventory import make_table, survey
from featurecache.clips.label_counts import LabelAudit
from featurecache.clips.unannotated import (
    LostAnnotations,
    UnannotatedTime,
    lost_annotations,
    lost_in_words,
    rules_in_words,
    unannotated_in_words,
    unannotated_time,
)
from featurecache.project.settings import Project
from featurecache.video.recordings import UnusableRecording

_NAMED = 5


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
    """

    path: Path
    audit: LabelAudit
    rules: tuple[str, ...]
    unannotated: tuple[UnannotatedTime, ...]
    lost: tuple[LostAnnotations, ...]
    unusable: tuple[UnusableRecording, ...]

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache clips --json`."""
        return {
            "clips_csv": self.path,
            **asdict(self.audit),
            "rules": list(self.rules),
            "unannotated_time": [asdict(item) for item in self.unannotated],
            "lost_annotations": [asdict(item) for item in self.lost],
            "unusable": [asdict(item) for item in self.unusable],
        }


def make_clips(
    project: Project,
    *,
    force: bool = False,
    on_left_out: Callable[[Sequence[UnusableRecording]], None] = lambda _: None,
) -> MadeClips:
    """Cuts the recordings into clips, sets targets and splits, and writes the table.

    Args:
        project: The project.
        force: Whether a table that a person edited is replaced.
        on_left_out: Called with files that cannot be used as they are found: where nothing is left, they say why.

    Raises:
        AnnotationError: If the annotations are missing, or lack a label that the settings name.
        ClipTableError: If no recording is as long as a clip, or a session cannot be told.
        EditedTableError: If the table was edited and `force` is not set.
        NoRecordingsError: If there is no usable recording.
        SplitError: If the sessions cannot be split as asked.
    """
    found = survey(project)
    on_left_out(found.unusable)
    table, short = make_table(project, found)
    on_left_out(short)
    moved = moved_sessions(project.clips, table)
    write_table(table, project.clips, state_path=project.state / "clips.json", force=force)
    findings = audit(table, found.recordings, found.intervals, annotated_span=project.settings.data.annotated_span)
    unannotated = unannotated_time(table, found.recordings, found.intervals, project.settings.data.annotated_span)
    lost = lost_annotations(table, found.intervals, found.points)
    findings.warnings[:0] = [*found.notes, *lost_in_words(lost)]
    if moved:
        findings.warnings.append(_moved_warning(moved))
    rules = (*rules_in_words(project.settings), *unannotated_in_words(unannotated)) if found.intervals else ()
    return MadeClips(project.clips, findings, rules, tuple(unannotated), tuple(lost), (*found.unusable, *short))


def _moved_warning(moved: Sequence[str]) -> str:
    named = ", ".join(moved[:_NAMED]) + (", ..." if len(moved) > _NAMED else "")
    sessions = "1 session" if len(moved) == 1 else f"{len(moved)} sessions"
    return (
        f"{sessions} changed split ({named}), since what is annotated or set has changed: "
        "tune again before you evaluate. To keep splits, name them under sessions in [splits]."
    )
