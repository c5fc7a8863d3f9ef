"""The part of its frames that a recording is cut to, checked before it is extracted or predicted (`features.crop`)."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featurecache.clips.clip import ClipTable
from featurecache.errors import OutdatedTableError, SettingsError
from featurecache.project.features import WHOLE, Box, BoxMismatch, Crop, goes_by_name, of_recording, plain_crop
from featurecache.project.settings import Project
from featurecache.store.boxes import has_other_box, note_box
from featurecache.video.recordings import Recording


def named_box(crop: Crop | None, name: str) -> Box | None:
    """The box of a recording of this name where boxes go by name; None where they do not.

    Raises:
        SettingsError: If no pattern fits its name, or several do.
    """
    box = of_recording(crop, name)
    if not goes_by_name(crop) or box is None or isinstance(box, Mapping):
        return None
    x, y, width, height = box
    return x, y, width, height


def why_other_box(crop: Crop | None, recording: Recording, root: Path) -> str:
    """Why a recording has no box by its name, or not that of its features in the cache; empty where it has."""
    try:
        box = named_box(crop, recording.name)
    except SettingsError as error:
        return str(error)
    if box is None or not has_other_box(root, plain_crop(crop), recording.sha256, box):
        return ""
    return (
        "its features in the cache are of another box of features.crop, of the name that it had. Give it that name "
        "again; or write a pattern of its own, which makes new feature spaces. Where they were imported and no box is "
        "noted, copy the folder boxes of their cache into this one"
    )


def refuse_other_boxes(project: Project, table: ClipTable) -> None:
    """Refuses features of recordings that the clip table calls by a name of another box than they were cut to.

    Raises:
        OutdatedTableError: Naming the first.
    """
    crop = project.settings.features.crop
    if not goes_by_name(crop):
        return
    for name, content in sorted({(clip.recording, clip.content) for clip in table.clips}):
        with contextlib.suppress(SettingsError):  # without a box it has no features, and those clips have a reason
            box = named_box(crop, name)
            if box is not None and has_other_box(project.cache, plain_crop(crop), content, box):
                raise OutdatedTableError(
                    "features must be of the boxes that features.crop has for the recordings of clips.csv, but those "
                    f"of {name} are of another name's, or no box is noted of them. If it was renamed before it was "
                    "extracted, run: featurecache clips; if after, give it that name again, or a pattern of its own "
                    "and run: featurecache extract. If they were imported, copy the folder boxes of their cache into "
                    "this one."
                )


def box_mismatch(project: Project, recordings: Sequence[Recording]) -> BoxMismatch:
    """The project's boxes against recordings, and against the features that the cache has of them."""
    crop = project.settings.features.crop
    sizes_px = {one.name: (one.info.width_px, one.info.height_px) for one in recordings}
    found = BoxMismatch.of(crop, sizes_px)
    clear = (one for one in recordings if goes_by_name(crop) and one.name not in found.unclear)
    return replace(found, renamed=tuple(one.name for one in clear if why_other_box(crop, one, project.cache)))


def why_whole(crop: Crop | None, recording: Recording) -> str:
    """Why the frames of a recording would stay whole where others are cut; empty where its box is stated."""
    size = f"{recording.info.width_px}x{recording.info.height_px}"
    if crop is None or isinstance(crop, tuple | list) or goes_by_name(crop) or size in crop:
        return ""
    return (
        f"features.crop has no box for its frames of {size} px, and the bundle reads frames that were cut. Give them "
        f'one: crop."{size}" under [features]; {list(WHOLE)} says that they stay whole'
    )


def note_boxes(crop: Crop | None, recordings: Iterable[Recording], root: Path) -> None:
    """Notes in a cache which box the features of recordings are of, where boxes go by name.

    Raises:
        OSError: If it cannot be written.
    """
    boxes = plain_crop(crop)
    for recording in recordings if boxes is not None else ():
        box = named_box(crop, recording.name)
        if box is not None:
            note_box(root, boxes, recording.sha256, box)
