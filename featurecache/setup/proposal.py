"""What `init` does: look at recordings and annotations, propose settings, and say why.

A proposal is a starting point for a person: every guess is written down as a note, and the settings file
says where to change it.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import AnnotationTable, LabelProposal, LabelRule, propose_labels
from featurecache.annotations.columns import columns_line, recognise
from featurecache.annotations.proposing import propose_from_values, span_like
from featurecache.annotations.questions import values_by_tier
from featurecache.annotations.table import header_of
from featurecache.backbones import DEMO_MODEL, find_model
from featurecache.backbones.obtaining import repository_of
from featurecache.clips.annotated import annotation_paths, read_files
from featurecache.device import device_of, lacks_bfloat16
from featurecache.errors import AnnotationError, NoRecordingsError, ProjectExistsError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import SETTINGS_NAME, open_project
from featurecache.project.template import write_settings
from featurecache.setup.doctor import crop_loss
from featurecache.setup.model_checks import check_device, check_model
from featurecache.spelling import look_alikes, typos
from featurecache.video.recordings import find_recordings

_PREFIX = r"^([^_\-/]+)[_\-]"


@dataclass(frozen=True)
class Proposal:
    """The settings file that was written, what led to it, and what is to be done first, one line each."""

    path: Path
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def propose(directory: Path, *, videos: Path, annotations: Path | None, model: str) -> Proposal:
    """Writes `featurecache.toml` from what the files look like.

    Args:
        directory: The project's folder; made if missing.
        videos: The folder of recordings.
        annotations: A folder of .eaf files or a CSV. None: .eaf files beside the videos, if there are any.
        model: The backbone: a folder, the name of a hub repository, or `demo`.

    Raises:
        ModelNotFoundError: If the model is a folder that is not there.
        ProjectExistsError: If there are settings already.
        NoRecordingsError: If there is no video.
        AnnotationError: If the annotations are missing or have no label.
    """
    if (directory / SETTINGS_NAME).exists():
        raise ProjectExistsError(
            f"init writes only new settings, but {directory / SETTINGS_NAME} is there. "
            "Edit it, or move it away and run init again."
        )
    if repository_of(model) is None:
        find_model(model, setting="--model")
    recordings, unusable = find_recordings(videos)
    if not recordings:
        raise NoRecordingsError(
            f"a project needs a usable recording, but all {len(unusable)} in {videos} are not, "
            f"e.g. {unusable[0].name}: {unusable[0].reason}. Repair them, or name another folder with --videos."
        )
    names = [recording.name for recording in recordings]
    hours = sum(recording.info.duration_us for recording in recordings) / 3.6e9
    notes = [f"{len(recordings)} recordings, {hours:.2f} h"]
    notes += [f"left out: {item.name}: {item.reason}" for item in unusable]
    notes += [f"{recording.name}: {warning}" for recording in recordings for warning in recording.info.warnings]
    if annotations is None and any(path.suffix.lower() == ".eaf" for path in videos.rglob("*")):
        annotations = videos
    proposed = LabelProposal("tiers", (), (), "no annotations: every clip is unlabelled")
    columns = ColumnSettings()
    sessions: Mapping[str, str] = {}
    if annotations is not None:
        columns = _propose_columns(annotations, notes)
        documents, tables, unread = read_files(annotations, columns)
        notes += [f"left out: {item.name}: {item.reason}" for item in unread]
        notes += [f"left out: {path.name}: {fault}" for path, table in tables.items() for fault in table.left_out]
        if unread and not documents and not tables:
            raise AnnotationError(f"{unread[0].name}: {unread[0].reason}")
        if documents or not tables:
            proposed = propose_labels(documents.values())
        else:
            proposed = _propose_from_tables(tables.values(), columns)
        proposed = _one_spelling(proposed, notes)
        sessions = {name: session for table in tables.values() for name, session in table.sessions.items()}
    labels, reason = proposed.labels, proposed.reason
    notes.append(f"labels: {', '.join(labels) or 'none'} ({reason})")
    if proposed.unread:
        notes.append(f"tiers that are not read: {', '.join(proposed.unread)}; name them under tiers if they matter")
    if proposed.span is not None:
        notes.append(
            f"annotated_span: {proposed.span!r} seems to mark what was annotated; outside clips are unlabelled"
        )
    session_from, session_pattern, why = _propose_sessions(names, sessions)
    notes.append(f"sessions: {why}")
    lost = max(crop_loss(recording.info.width_px, recording.info.height_px) for recording in recordings)
    if lost > 0.01:
        notes.append(
            f"where the model's processor crops, as the VLM's does, up to {lost:.0%} of a frame is cut off; "
            'if the action may be there, set resize = "pad" or "squash"'
        )
    emulated = "" if model == DEMO_MODEL else lacks_bfloat16(device_of("auto"))
    if emulated:
        notes.append(f"dtype: float16, for {emulated} has no bfloat16; to train adapters there set float32")
    path = write_settings(
        directory,
        videos=_relative(videos, directory),
        annotations=None if annotations is None else _relative(annotations, directory),
        labels_from=proposed.labels_from,
        tiers=proposed.tiers,
        labels=labels,
        mapping=proposed.mapping,
        columns=columns,
        annotated_span=proposed.span,
        session_from=session_from,
        session_pattern=session_pattern,
        model=model if model == DEMO_MODEL or not Path(model).is_dir() else str(Path(model).resolve()),
        dtype="float32" if model == DEMO_MODEL else "float16" if emulated else "bfloat16",
        reason=reason,
    )
    warnings: list[str] = []
    if model != DEMO_MODEL:
        settings = open_project(path).settings
        device = check_device(settings.extract.device, settings.features.dtype)
        checks = (device, *check_model(settings, device=device)[1])
        notes += [f"{check.name}: {check.found}" for check in checks if check.ok]
        warnings += [f"{check.name}: {check.found}. {check.fix}" for check in checks if not check.ok]
    return Proposal(path, tuple(notes), tuple(warnings))


def _propose_columns(annotations: Path, notes: list[str]) -> ColumnSettings:
    """The columns of the first table, where the annotations are tables."""
    paths = [annotations] if annotations.is_file() else annotation_paths(annotations)
    if paths[0].suffix.lower() == ".eaf":
        return ColumnSettings()
    found = recognise(header_of(paths[0]))
    if found is None:
        return ColumnSettings()  # reading it says what is missing
    own = ColumnSettings()
    found = dataclasses.replace(found, session=found.session or own.session, annotator=found.annotator or own.annotator)
    if found != own:
        notes.append(f"{columns_line(found)} (from the header of {paths[0].name}; check that it is right)")
    return found


def _propose_from_tables(tables: Iterable[AnnotationTable], columns: ColumnSettings) -> LabelProposal:
    uses = Counter((row.label, row.value) for table in tables for row in table.rows)
    values = values_by_tier(uses, LabelRule())
    if columns.value and values:
        return propose_from_values(values)
    span = next((label for label in values if span_like(label)), None)
    labels = tuple(sorted(label for label in values if label != span))
    reason = f"labels are those of the column {columns.label!r} ({len(labels)})"
    return LabelProposal("tiers", (), labels, reason, {}, span)


def _one_spelling(proposed: LabelProposal, notes: list[str]) -> LabelProposal:
    """The proposal with one label of those that look alike; `clips` asks whether they are one."""
    dropped: set[str] = set()
    for group in [*look_alikes(proposed.labels), *typos(proposed.labels, proposed.labels)]:
        if not dropped & set(group):
            dropped |= set(group[:-1])
            notes.append(f"{' and '.join(map(repr, group))} look alike; clips asks whether they are one label")
    return dataclasses.replace(proposed, labels=tuple(label for label in proposed.labels if label not in dropped))


def _propose_sessions(names: Sequence[str], column: Mapping[str, str]) -> tuple[str, str | None, str]:
    """session_from, session_pattern, and the reason in words."""
    if set(names) <= column.keys():
        return "column", None, f"{len({column[name] for name in names})} from the CSV's session column"
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if all("/" in name for name in names) and len(folders) >= 2:
        return "folder", None, f"{len(folders)}, one per folder"
    groups = {match[1] for name in names if (match := re.search(_PREFIX, name))}
    if all(re.search(_PREFIX, name) for name in names) and 3 <= len(groups) < len(names):
        return (
            "pattern",
            _PREFIX,
            f"{len(groups)}, by the names' first part (e.g. {min(groups)}); check that it is right",
        )
    return "file", None, "one per recording; if one patient has several, group them (folder, pattern or column)"


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
