"""What `init` does: look at recordings and annotations, propose settings, and say why.

A proposal is a starting point for a person: every guess is written down as a note, and the settings file
says where to change it.
"""

import contextlib
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from featurecache.backbones import DEMO_MODEL, find_model, read_config
from featurecache.backbones.obtaining import repository_of
from featurecache.clips.annotated import annotation_paths, read_files, tables_not_read
from featurecache.device import device_of, lacks_bfloat16
from featurecache.errors import AnnotationError, FeatureCacheError, NoRecordingsError, ProjectExistsError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import SETTINGS_NAME, open_project
from featurecache.project.template import write_settings
from featurecache.setup.doctor import crop_loss
from featurecache.setup.model_checks import check_device, check_model
from featurecache.setup.model_choice import choose_model
from featurecache.setup.sessions import propose_sessions
from featurecache.spelling import counted, look_alikes, typos
from featurecache.video.recordings import Recording, find_recordings

_SHOWN = 5
_FRAMES_BEHIND_SECONDS = re.compile(r"ss[:;]ff|smpte|timecode", re.IGNORECASE)


@dataclass(frozen=True)
class Proposal:
    """The settings file that was written, what led to it, and what is to be done first, one line each."""

    path: Path
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def propose(
    directory: Path,
    *,
    videos: Path,
    annotations: Path | None,
    model: str = "",
    sections: Mapping[str, type[Any]] | None = None,
) -> Proposal:
    """Writes `featurecache.toml` from what the files look like.

    Args:
        directory: The project's folder; made if missing.
        videos: The folder of recordings.
        annotations: A folder of .eaf files or a CSV. None: .eaf files beside the videos, if there are any.
        model: The backbone: a folder, the name of a hub repository, or `demo`. Empty: as `choose_model` proposes.
        sections: Sections of the settings that other packages own, as `write_settings` takes them.

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
    model, why = (model, "") if model else choose_model(directory)
    if repository_of(model) is None:
        find_model(model, setting="--model")
    recordings, unusable = find_recordings(videos)
    if not recordings:
        raise NoRecordingsError(
            f"a project needs a usable recording, but all {len(unusable)} in {videos} are not, e.g. "
            f"{unusable[0].name}: {unusable[0].reason.rstrip('.')}. Repair them, or name another folder with --videos."
        )
    names = [recording.name for recording in recordings]
    hours = sum(recording.info.duration_us for recording in recordings) / 3.6e9
    notes = [f"{counted(len(recordings), 'recording')}, {hours:.2f} h", *([why] if why else [])]
    notes += [f"left out: {item.name}: {item.reason}" for item in unusable]
    notes += [f"{recording.name}: {warning}" for recording in recordings for warning in recording.info.warnings]
    if annotations is None and any(path.suffix.lower() == ".eaf" for path in videos.rglob("*")):
        annotations = videos
    proposed = LabelProposal("tiers", (), (), "no annotations: every clip is unlabelled")
    columns = ColumnSettings()
    sessions: Mapping[str, str] = {}
    warnings: list[str] = []
    if annotations is not None:
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
        sessions = _sessions_of(names, tables.values())
    labels, reason = proposed.labels, proposed.reason
    notes.append(f"labels: {', '.join(labels) or 'none'} ({reason})")
    if proposed.unread:
        notes.append(f"tiers that are not read: {', '.join(proposed.unread)}; name them under tiers if they matter")
    if proposed.span is not None:
        notes.append(
            f"annotated_span: {proposed.span!r} seems to mark what was annotated; outside clips are unlabelled"
        )
    spans = {
        one.name: (one.info.recorded_at_us, one.info.recorded_at_us + one.info.duration_us)
        for one in recordings
        if one.info.recorded_at_us is not None
    }
    grouping = propose_sessions(names, sessions, spans)
    notes.append(f"sessions: {grouping.reason}")
    lost = max(crop_loss(recording.info.width_px, recording.info.height_px) for recording in recordings)
    if lost > 0.01:
        notes.append(
            f"where the model's processor crops, as the VLM's does, up to {lost:.0%} of a frame is cut off; "
            'if the action may be there, set resize = "pad" or "squash"'
        )
    emulated = "" if model == DEMO_MODEL else lacks_bfloat16(device_of("auto"))
    if emulated:
        notes.append(f"dtype: float16, for {emulated} has no bfloat16; to train adapters there set float32")
    data = {
        "videos": _relative(videos, directory),
        "annotations": None if annotations is None else _relative(annotations, directory),
        "labels_from": proposed.labels_from,
        "tiers": proposed.tiers,
        "labels": labels,
        "mapping": proposed.mapping,
        "columns": columns if columns != ColumnSettings() else None,
        "annotated_span": proposed.span,
        "session_from": grouping.session_from,
        "session_pattern": grouping.pattern,
        "same_session": grouping.same_session,
    }
    features = {
        "model": model if model == DEMO_MODEL or not Path(model).is_dir() else str(Path(model).resolve()),
        "dtype": "float32" if model == DEMO_MODEL else "float16" if emulated else "bfloat16",
        "frames": _frames_of(model),
    }
    path = write_settings(directory, {"data": data, "features": features}, sections=sections, reason=reason)
    if model != DEMO_MODEL:
        settings = open_project(path).settings
        device = check_device(settings.extract.device, settings.features.dtype)
        checks = (device, *check_model(settings, device=device)[1])
        notes += [f"{check.name}: {check.found}" for check in checks if check.ok]
        warnings += [f"{check.name}: {check.found}. {check.fix}" for check in checks if not check.ok]
    return Proposal(path, tuple(notes), tuple(warnings))


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
        named = f"{', '.join(plain[:_SHOWN])}{', ...' if len(plain) > _SHOWN else ''}"
        notes.append(f"{named} {verb} of no recording here and {verb} not proposed from")
    return [document for _, document in here], notes


def _none_is_here(count: int, looked_for: Sequence[str], names: Sequence[str]) -> str:
    """The warning where labels can only be proposed from annotations of other recordings."""
    wanted, there = ([*dict.fromkeys(found)] for found in (looked_for, names))
    called, are = (
        ", ".join(found[:5]) + (f" and {len(found) - 5} more" * (len(found) > 5)) for found in (wanted, there)
    )
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


def _frames_of(model: str) -> int | None:
    """How many frames a model on this machine was made for, where its config.json says so."""
    with contextlib.suppress(FeatureCacheError):
        config = read_config(find_model(model))
        vision = config.get("vision_config")
        found = config.get("num_frames", vision.get("num_frames") if isinstance(vision, dict) else None)
        return found if type(found) is int and found > 0 else None
    return None


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
