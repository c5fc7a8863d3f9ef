"""Checks of the machine, the model and the recordings, each failure with its fix.

Everything is tried, not guessed: the device gets a tensor, the headers of the weights are read, a clip is decoded, and
memory and disk are held against what the plan needs. No weights are loaded, no network is used, and no file but the
memo of digests is written.
"""

import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.errors import FeatureCacheError, OutdatedTableError, OutdatedTableWarning, SettingsError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.project.features import Crop, box_px, of_recording
from featurecache.project.settings import Project
from featurecache.setup.checks import GIB, Check, failed, size
from featurecache.setup.model_checks import check_device, check_model
from featurecache.spelling import counted
from featurecache.video.recordings import Recording, find_recordings
from featurecache.video.sampling import ClipFailure, read_clips

_DECODING_LIMIT_S = 60.0
_SPARE_BYTES = 1 * GIB


def examine_machine(folder: Path) -> Iterator[Check]:
    """Runs the checks that need no project, as in a folder where one shall be."""
    yield _network()
    yield check_device("auto", "float32")
    yield _room(folder, 0, "here")
    found = f"none in {folder.absolute()}: where there is one, its model and recordings are checked, too"
    yield Check("project", True, found, "Make one: featurecache init --videos VIDEOS --annotations ANNOTATIONS")


def examine(project: Project) -> Iterator[Check]:
    """Runs every check on a project, the cheap ones first."""
    settings = project.settings
    yield _network()
    device = check_device(settings.extract.device, settings.features.dtype)
    yield device
    inputs, of_model = check_model(settings, device=device)
    yield from of_model
    try:
        recordings, unusable = find_recordings(project.videos, project.digest_memo)
    except FeatureCacheError as error:
        yield failed("recordings", error)
        return
    seconds = sum(recording.info.duration_us for recording in recordings) / 1e6
    found = f"{len(recordings)} usable, {seconds / 3600:.2f} h"
    yield Check("recordings", bool(recordings), found, "" if recordings else "Add videos.")
    for item in unusable:
        fix = "Repair or remove the file; the run goes on without it."
        yield Check("recording", False, f"{item.name}: {item.reason}", fix)
    for recording in recordings:
        for warning in recording.info.warnings:
            yield Check(
                "recording", False, f"{recording.name}: {warning}", "Clips that lie in what is missing will fail."
            )
    if recordings:
        yield _decoding(recordings[0], settings.features.frames)
        used = _of_table(project, recordings)
        if settings.features.crop is not None:
            yield _box(project, settings.features.crop, used)
        if inputs is not None and inputs.frame_resize.resize == "crop":
            yield from _crop(used, settings.features.crop)
    if project.clips.exists():
        yield from _table(project)
    yield _disk(project, is_planned=inputs is not None and bool(recordings))


def _network() -> Check:
    return Check("network", True, "not used unless --allow-download is given")


def _decoding(recording: Recording, frames: int) -> Check:
    """Decodes three seconds of a recording; where those at its start cannot be, some in its middle."""
    info = recording.info
    length_us = min(3_000_000, info.duration_us)
    what = f"{recording.name} ({info.codec}, {info.width_px} x {info.height_px})"
    reasons = []
    for start_us in (0, (info.duration_us - length_us) // 2):
        began = time.perf_counter()
        span = (start_us, start_us + length_us)
        # Nobody looks at the frames, and whole ones of 8K are 1.7 GB a clip.
        (clip,) = read_clips(recording.path, [span], frames, fit=_corner, time_limit_s=_DECODING_LIMIT_S)
        if not isinstance(clip, ClipFailure):
            spent_s = time.perf_counter() - began
            where = f"{length_us / 1e6:.1f} s from {start_us / 1e6:.1f} s on"
            return Check("decoding", True, f"{counted(frames, 'frame')} of {what}, {where}, in {spent_s:.2f} s")
        reasons.append(clip.reason)
    fix = "Play it to see whether it is whole; convert it: ffmpeg -i RECORDING -c:v libx264 -crf 16 NEW.mp4"
    return Check("decoding", False, f"{what}: {reasons[0]}", fix)


def _corner(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return picture[:1, :1].copy()


def _of_table(project: Project, recordings: Sequence[Recording]) -> Sequence[Recording]:
    """The recordings of the clip table; all where there is none that can be read, or none of it is here."""
    if not project.clips.exists():
        return recordings
    try:
        clips = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level).columns
    except FeatureCacheError:  # the check of the table says it
        return recordings
    contents = set(clips.content.values)
    return [one for one in recordings if one.sha256[:16] in contents] or recordings


def _box(project: Project, crop: Crop, recordings: Sequence[Recording]) -> Check:
    parts = []
    for of, (x, y, width, height) in crop.items() if isinstance(crop, Mapping) else [("", crop)]:
        where = f"{x:.0%} to {x + width:.0%} of its width and {y:.0%} to {y + height:.0%} of its height"
        parts.append(f"of a frame {of and f'of {of} ' + ('' if '*' in of else 'px ')}the model sees {where}")
    mismatch = RecordingBoxes(project).mismatch(recordings)
    if words := mismatch.in_words():
        parts.append(words)
    fix = (
        "Correct the keys of features.crop, or give those a box; [0, 0, 1, 1] says that frames stay whole."
        if words
        else ""
    )
    is_sound = not (mismatch.unused or mismatch.recordings)
    return Check("crop box", is_sound, f"{'; '.join(parts)}; features of other boxes are others", fix)


def _crop(recordings: Sequence[Recording], crop: Crop | None) -> Iterator[Check]:
    found_px = []
    for recording in recordings:
        width_px, height_px = recording.info.width_px, recording.info.height_px
        try:
            rows, columns = box_px(of_recording(crop, recording.name), width_px, height_px)
        except SettingsError:  # the check of the boxes says it
            continue
        seen_px = (columns.stop - columns.start, rows.stop - rows.start)
        found_px.append((crop_loss(*seen_px), seen_px, (width_px, height_px)))
    lost, seen_px, frame_px = max(found_px, default=(0.0, (0, 0), (0, 0)))
    if lost > 0.01:
        whole = f"a frame of {frame_px[0]}x{frame_px[1]} px"
        part = whole if seen_px == frame_px else f"the box of {seen_px[0]}x{seen_px[1]} px in {whole}"
        found = f"the model's centre crop cuts off up to {lost:.0%} of {part}"
        yield Check("crop", True, found, 'If the action may be there, set features.resize = "pad" or "squash".')


def crop_loss(width_px: int, height_px: int) -> float:
    """Share of a frame that is lost when the shorter edge is fitted and the centre square is cropped."""
    return 1 - min(width_px, height_px) / max(width_px, height_px)


def _table(project: Project) -> Iterator[Check]:
    """Settings and files against what the clip table was made from, as strictly as training asks."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", OutdatedTableWarning)
        try:
            check_table(project, use="targets")
        except FeatureCacheError as error:
            yield failed("clip table", error)
            return
    if not told:
        yield Check("clip table", True, f"no setting or file is known to have changed since {project.clips.name}")
    for one in told:
        yield failed("clip table", OutdatedTableError(str(one.message)))


def _disk(project: Project, *, is_planned: bool) -> Check:
    """Free space, against the plan where there is a clip table."""
    from featurecache.extraction.plan import plan_extraction

    needed, planned = 0, ""
    if is_planned and project.clips.exists():
        try:
            plan = plan_extraction(project)
        except FeatureCacheError as error:
            return failed("plan", error)
        needed = plan.bytes_to_write
        planned = f"; {counted(plan.todo, 'clip', ('to do needs', 'to do need'))} about {size(needed)}"
    return _room(project.root, needed, f"beside the project{planned}")


def _room(folder: Path, needed: int, words: str) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free {words}"
    if free > needed + _SPARE_BYTES:
        return Check("disk", True, found)
    fix = (
        "Free space, select fewer features in features.select (tokens take by far the most), or move the project to a "
        "larger disk."
    )
    return Check("disk", False, found, fix)
