"""Which box a recording's frames were cut to, where boxes go by the recordings' names.

A name can change and is no part of a fingerprint, so the box is noted before clips are extracted. A note is called by
the recording's mark, as a withdrawal is (`withdrawn.py`), and a digest of all boxes, which tell neither name nor
content; withdrawal removes it. Once features are there, a recording that was renamed to another box is refused: two
crops would lie in one feature space. So are features without a note: their box is not known. An export carries the
notes of its recordings.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from featurecache.errors import CacheFormatError
from featurecache.spec import canonical_json
from featurecache.store import files, format
from featurecache.store.reader import FeatureCache
from featurecache.store.withdrawn import FOLDER as WITHDRAWN
from featurecache.store.withdrawn import mark_of

FOLDER = "boxes"
_WHOLE = [0.0, 0.0, 1.0, 1.0]
"""Of all of a frame: a crop does not list it, for it cuts nothing off."""


def crop_of(inputs: Mapping[str, Any]) -> Any:
    """All boxes of a feature space, as its inputs have them; None of whole frames, and of features made by others."""
    preprocessing = inputs.get("preprocessing")
    return preprocessing.get("crop") if isinstance(preprocessing, Mapping) else None


def is_box_of(crop: Any, box: object) -> bool:
    """Whether a recording may have this box, where `crop` has all boxes."""
    return box == _WHOLE or (isinstance(crop, Mapping) and box in crop.values())


class StoredBoxes:
    """The boxes that a cache notes; which recordings have features is read once, when it is first asked.

    Recordings are given by their digests, of which the first 16 digits decide, as in clip ids.

    Args:
        root: The cache; need not be there.
        crop: All boxes, as `crop_of` has them; what was cut by others is another feature space.
    """

    def __init__(self, root: Path, crop: Any) -> None:
        self._root, self._crop = root, crop
        self._digest = hashlib.sha256(canonical_json(crop).encode()).hexdigest()[:16]

    def noted(self, video_sha256: str) -> list[float] | None:
        """The box of a recording's features; None where none is noted that the crop has.

        Raises:
            CacheReadError: If the disk refuses.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
            box = json.loads(files.read_file(self._place(video_sha256)))
            return box if is_box_of(self._crop, box) else None
        return None

    def is_other(self, video_sha256: str, box: Sequence[float] | None) -> bool:
        """Whether the cache holds features of a recording that are of another box than this, or of one not noted.

        Raises:
            CacheReadError: If the disk refuses.
        """
        noted = self.noted(video_sha256)
        is_same = noted is None if box is None else noted == list(box)
        return not is_same and video_sha256[:16] in self.recordings

    @cached_property
    def recordings(self) -> frozenset[str]:
        """Those with features: the first 16 digits of each.

        Raises:
            CacheReadError: If the disk refuses.
        """
        cache = FeatureCache.open_if_made(self._root)
        if cache is None:
            return frozenset()
        made_so = [one.fingerprint for one in cache.spaces if crop_of(one.inputs) == self._crop]
        parts = (part for space in made_so for part in cache.clip_parts(space=space))
        return frozenset(video_sha256[:16] for part in parts for video_sha256, _, _ in part)

    def require_same(self, video_sha256: str, box: Sequence[float] | None) -> None:
        """Checks that features of a recording that come from elsewhere would not mix two crops.

        Args:
            video_sha256: The recording's digest.
            box: The box of its features; None where none is noted.

        Raises:
            CacheFormatError: If the cache's are of another, or of one that is not noted.
        """
        if self.is_other(video_sha256, box):
            here, there = (
                "a box that is not noted" if one is None else f"the box {one}"
                for one in (self.noted(video_sha256), box)
            )
            raise CacheFormatError(
                f"features of one recording must be of one box, but those of {video_sha256[:16]} are of {there} in the "
                f"file and of {here} in the cache. Import the file into a cache of its own; or, where no box is noted, "
                "copy the folder boxes from the cache that the features came from."
            )

    def note(self, video_sha256: str, box: Sequence[float]) -> None:
        """Notes the box of a recording that has no features of another, durably; the cache is there.

        Of a recording that was withdrawn just now no note stays: withdrawal marks first, and looks for notes then.

        Raises:
            OSError: If it cannot be written.
        """
        place = self._place(video_sha256)
        files.make_folder(place.parent, exist_ok=True)
        files.sync_folder(self._root)
        files.replace_file(place, canonical_json(list(box)).encode(), f".{format.new_segment_id()}.tmp")
        if files.exists(self._root / WITHDRAWN / mark_of(video_sha256)):
            files.remove_file(place)

    def _place(self, video_sha256: str) -> Path:
        return self._root / FOLDER / f"{mark_of(video_sha256)}-{self._digest}"


def remove_notes(root: Path, mark: str) -> None:
    """Removes what is noted of a recording by its mark.

    Raises:
        OSError: If it cannot be removed.
    """
    for note in (root / FOLDER).glob(f"{mark}-*"):
        files.remove_file(note)
