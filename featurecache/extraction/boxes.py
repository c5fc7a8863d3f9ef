"""The part of its frames that a recording is cut to, checked before it is extracted or predicted (`features.crop`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from featurecache.clips.clip import ClipTable
from featurecache.errors import OutdatedTableError, SettingsError
from featurecache.project.features import (
    WHOLE,
    Box,
    BoxMismatch,
    Crop,
    goes_by_name,
    of_recording,
    plain_crop,
    without_whole,
)
from featurecache.project.settings import Project
from featurecache.store.boxes import StoredBoxes
from featurecache.video.recordings import Recording


def named_box(crop: Crop | None, name: str) -> Box | None:
    """The box of a recording of this name where boxes go by name; None where they do not, or all frames stay whole.

    Raises:
        SettingsError: If no pattern fits its name, or several do.
    """
    box = of_recording(crop, name)
    if not goes_by_name(crop) or without_whole(crop) is None or box is None or isinstance(box, Mapping):
        return None
    x, y, width, height = box
    return x, y, width, height


class RecordingBoxes:
    """The boxes of a project's recordings, beside those of their features in the cache, which is opened once at most.

    Args:
        project: The project.
    """

    def __init__(self, project: Project) -> None:
        self.crop = project.settings.features.crop
        self._stored = StoredBoxes(project.cache, plain_crop(self.crop))

    def why_other(self, recording: Recording) -> str:
        """Why a recording has no box by its name, or not that of its features in the cache; empty where it has."""
        try:
            box = named_box(self.crop, recording.name)
        except SettingsError as error:
            return str(error)
        if box is None or not self._stored.is_other(recording.sha256, box):
            return ""
        return (
            "its features in the cache are of another box of features.crop, of the name that it had. Give it that name "
            "again; or write a pattern of its own, which makes new feature spaces. Where they were imported and no box "
            "is noted, copy the folder boxes of their cache into this one"
        )

    def mismatch(self, recordings: Sequence[Recording]) -> BoxMismatch:
        """The project's boxes against recordings, and against the features that the cache has of them."""
        sizes_px = {one.name: (one.info.width_px, one.info.height_px) for one in recordings}
        found = BoxMismatch.of(self.crop, sizes_px)
        clear = (one for one in recordings if goes_by_name(self.crop) and one.name not in found.unclear)
        return replace(found, renamed=tuple(one.name for one in clear if self.why_other(one)))

    def refuse_others(self, table: ClipTable) -> None:
        """Refuses features of recordings that the clip table calls by a name of another box than they were cut to.

        Raises:
            OutdatedTableError: Naming the first.
        """
        if not goes_by_name(self.crop):
            return
        for name, content in sorted({(clip.recording, clip.content) for clip in table.clips}):
            try:
                box = named_box(self.crop, name)
                is_other = box is not None and self._stored.is_other(content, box)
            except SettingsError:  # clips without a box have a reason; features that they have are of an earlier name
                is_other = content in self._stored.recordings
            if is_other:
                raise OutdatedTableError(
                    "features must be of the boxes that features.crop has for the recordings of clips.csv, but those "
                    f"of {name} are of another name's, or no box is noted of them. If it was renamed before it was "
                    "extracted, run: featurecache clips; if after, give it that name again, or a pattern of its own "
                    "and run: featurecache extract. If they were imported, copy the folder boxes of their cache into "
                    "this one."
                )

    def note(self, recordings: Iterable[Recording]) -> None:
        """Notes in the cache which box the features of recordings are of, where boxes go by name.

        Raises:
            OSError: If it cannot be written.
        """
        for recording in recordings:
            box = named_box(self.crop, recording.name)
            if box is not None:
                self._stored.note(recording.sha256, box)


def why_whole(crop: Crop | None, recording: Recording) -> str:
    """Why the frames of a recording would stay whole where others are cut; empty where its box is stated."""
    size = f"{recording.info.width_px}x{recording.info.height_px}"
    if crop is None or isinstance(crop, tuple | list) or goes_by_name(crop) or size in crop:
        return ""
    return (
        f"features.crop has no box for its frames of {size} px, and the bundle reads frames that were cut. Give them "
        f'one: crop."{size}" under [features]; {list(WHOLE)} says that they stay whole'
    )
