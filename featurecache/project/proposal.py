"""What `init` does: look at recordings and annotations, propose settings, and say why.

A proposal is a starting point for a person: every guess is written down as a note, and the settings file
says where to change it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.annotations import propose_labels, read_csv
from featurecache.annotations.labels import LabelsFrom
from featurecache.backbones import DEMO_MODEL
from featurecache.clips.inventory import read_documents
from featurecache.errors import NoRecordingsError, ProjectExistsError
from featurecache.project.settings import SETTINGS_NAME, write_settings
from featurecache.setup.doctor import crop_loss
from featurecache.video.recordings import find_recordings

_PREFIX = r"^([^_\-/]+)[_\-]"


@dataclass(frozen=True)
class Proposal:
    """The settings file that was written, and what led to it, one line each."""

    path: Path
    notes: tuple[str, ...]


def propose(directory: Path, *, videos: Path, annotations: Path | None, model: str) -> Proposal:
    """Writes `featurecache.toml` from what the files look like.

    Args:
        directory: The project's folder; made if missing.
        videos: The folder of recordings.
        annotations: A folder of .eaf files or a CSV. None: .eaf files beside the videos, if there are any.
        model: The backbone.

    Raises:
        ProjectExistsError: If there are settings already.
        NoRecordingsError: If there is no video.
        AnnotationError: If the annotations are missing or have no label.
    """
    if (directory / SETTINGS_NAME).exists():
        raise ProjectExistsError(
            f"init writes only new settings, but {directory / SETTINGS_NAME} is there. "
            "Edit it, or move it away and run init again."
        )
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
    if annotations is None and any(videos.rglob("*.eaf")):
        annotations = videos
    labels_from: LabelsFrom = "tiers"
    tiers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    reason = "no annotations: every clip is unlabelled"
    sessions: Mapping[str, str] = {}
    if annotations is not None and annotations.is_file():
        table = read_csv(annotations)
        labels = tuple(sorted({interval.label for spans in table.intervals.values() for interval in spans}))
        sessions = table.sessions
        reason = f"labels are those of the CSV's label column ({len(labels)})"
    elif annotations is not None:
        documents, unread = read_documents(annotations)
        notes += [f"left out: {item.name}: {item.reason}" for item in unread]
        found = propose_labels(documents.values())
        labels_from, tiers, labels, reason = found.labels_from, found.tiers, found.labels, found.reason
    notes.append(f"labels: {', '.join(labels) or 'none'} ({reason})")
    session_from, session_pattern, why = _propose_sessions(names, sessions)
    notes.append(f"sessions: {why}")
    lost = max(crop_loss(recording.info.width_px, recording.info.height_px) for recording in recordings)
    if lost > 0.01:
        notes.append(
            f"where the model's processor crops, as the VLM's does, up to {lost:.0%} of a frame is cut off; "
            'if the action may be there, set resize = "pad" or "squash"'
        )
    path = write_settings(
        directory,
        videos=_relative(videos, directory),
        annotations=None if annotations is None else _relative(annotations, directory),
        labels_from=labels_from,
        tiers=tiers,
        labels=labels,
        session_from=session_from,
        session_pattern=session_pattern,
        model=model if model == DEMO_MODEL or not Path(model).is_dir() else str(Path(model).resolve()),
        dtype="float32" if model == DEMO_MODEL else "bfloat16",
        reason=reason,
    )
    return Proposal(path, tuple(notes))


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
