"""What `init` does: look at recordings and annotations, propose settings, and say why.

A proposal is a starting point for a person: every guess is written down as a note, and the settings file
says where to change it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.backbones import DEMO_MODEL, find_model, read_config
from featurecache.backbones.obtaining import repository_of
from featurecache.clips.relatives import clock_spans
from featurecache.device import device_of, lacks_bfloat16
from featurecache.errors import FeatureCacheError, NoRecordingsError, ProjectExistsError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import SETTINGS_NAME, open_project
from featurecache.project.template import write_settings
from featurecache.setup.annotation_proposal import NO_ANNOTATIONS, propose_from_annotations
from featurecache.setup.checks import Check
from featurecache.setup.doctor import crop_loss
from featurecache.setup.model_checks import check_device, check_model
from featurecache.setup.model_choice import choose_model
from featurecache.setup.sessions import propose_sessions
from featurecache.spelling import counted
from featurecache.video.recordings import Recording, find_recordings


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
    recordings, notes = _usable_recordings(videos)
    notes += [why] if why else []
    if annotations is None and any(path.suffix.lower() == ".eaf" for path in videos.rglob("*")):
        annotations = videos
    found = NO_ANNOTATIONS if annotations is None else propose_from_annotations(annotations, recordings)
    labels = found.labels
    notes += [*found.notes, f"labels: {', '.join(labels.labels) or 'none'} ({labels.reason})"]
    if labels.unread:
        notes.append(f"tiers that are not read: {', '.join(labels.unread)}; name them under tiers if they matter")
    if labels.span is not None:
        notes.append(f"annotated_span: {labels.span!r} seems to mark what was annotated; outside clips are unlabelled")
    grouping = propose_sessions([one.name for one in recordings], found.sessions, clock_spans(recordings))
    notes += [f"sessions: {grouping.reason}", *_crop_notes(recordings)]
    emulated = "" if model == DEMO_MODEL else lacks_bfloat16(device_of("auto"))
    if emulated:
        notes.append(f"dtype: float16, for {emulated} has no bfloat16; to train adapters there set float32")
    data = {
        "videos": _relative(videos, directory),
        "annotations": None if annotations is None else _relative(annotations, directory),
        "labels_from": labels.labels_from,
        "tiers": labels.tiers,
        "labels": labels.labels,
        "mapping": labels.mapping,
        "columns": found.columns if found.columns != ColumnSettings() else None,
        "annotated_span": labels.span,
        "session_from": grouping.session_from,
        "session_pattern": grouping.pattern,
        "same_session": grouping.same_session,
    }
    features = {
        "model": model if model == DEMO_MODEL or not Path(model).is_dir() else str(Path(model).resolve()),
        "dtype": "float32" if model == DEMO_MODEL else "float16" if emulated else "bfloat16",
        "frames": _frames_of(model),
    }
    path = write_settings(directory, {"data": data, "features": features}, sections=sections, reason=labels.reason)
    checks = [] if model == DEMO_MODEL else _model_checks(path)
    notes += [f"{check.name}: {check.found}" for check in checks if check.ok]
    faults = [f"{check.name}: {check.found}. {check.fix}" for check in checks if not check.ok]
    return Proposal(path, tuple(notes), (*found.warnings, *faults))


def _usable_recordings(videos: Path) -> tuple[Sequence[Recording], list[str]]:
    """The recordings that can be read, and notes on all."""
    recordings, unusable = find_recordings(videos)
    if not recordings:
        raise NoRecordingsError(
            f"a project needs a usable recording, but all {len(unusable)} in {videos} are not, e.g. "
            f"{unusable[0].name}: {unusable[0].reason.rstrip('.')}. Repair them, or name another folder with --videos."
        )
    hours = sum(recording.info.duration_us for recording in recordings) / 3.6e9
    notes = [f"{counted(len(recordings), 'recording')}, {hours:.2f} h"]
    notes += [f"left out: {item.name}: {item.reason}" for item in unusable]
    notes += [f"{recording.name}: {warning}" for recording in recordings for warning in recording.info.warnings]
    return recordings, notes


def _crop_notes(recordings: Sequence[Recording]) -> Iterator[str]:
    lost = max(crop_loss(recording.info.width_px, recording.info.height_px) for recording in recordings)
    if lost > 0.01:
        yield (
            f"where the model's processor crops, as the VLM's does, up to {lost:.0%} of a frame is cut off; "
            'if the action may be there, set resize = "pad" or "squash"'
        )


def _model_checks(path: Path) -> list[Check]:
    settings = open_project(path).settings
    device = check_device(settings.extract.device, settings.features.dtype)
    return [device, *check_model(settings, device=device)[1]]


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
