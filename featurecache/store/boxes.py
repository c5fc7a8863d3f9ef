"""Which box a recording's frames were cut to, where boxes go by the recordings' names.

A name can change and is no part of a fingerprint, so the box is noted before clips are extracted. A note is called by
the recording's mark, as a withdrawal is (`withdrawn.py`), and a digest of all boxes, which tell neither name nor
content; withdrawal removes it. Once features are there, a recording that was renamed to another box is refused: two
crops would lie in one feature space. So are features without a note, as of a cache that was imported: their box is not
known. Notes name no path, and can be copied from the cache that the features came from.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurecache.errors import CacheNotFoundError
from featurecache.spec import canonical_json
from featurecache.store import files, format
from featurecache.store.reader import FeatureCache
from featurecache.store.withdrawn import mark_of

FOLDER = "boxes"


def _place(root: Path, crop: Any, video_sha256: str) -> Path:
    return root / FOLDER / f"{mark_of(video_sha256)}-{hashlib.sha256(canonical_json(crop).encode()).hexdigest()[:16]}"


def has_other_box(root: Path, crop: Any, video_sha256: str, box: Sequence[float]) -> bool:
    """Whether a cache holds features of a recording that are of another box, or of one that is not noted.

    Args:
        root: The cache.
        crop: All boxes, as the fingerprint has them.
        video_sha256: The recording's digest; the first 16 digits decide, as in clip ids.
        box: The box that it would be cut to.

    Raises:
        CacheReadError: If the disk refuses.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if files.read_file(_place(root, crop, video_sha256)) == canonical_json(list(box)).encode():
            return False
    try:
        cache = FeatureCache.open(root)
    except CacheNotFoundError:
        return False
    made_so = [
        one.fingerprint
        for one in cache.spaces
        if canonical_json(one.inputs.get("preprocessing", {}).get("crop")) == canonical_json(crop)
    ]
    return any(name.startswith(video_sha256[:16]) for space in made_so for name in cache.clip_ids(space=space))


def note_box(root: Path, crop: Any, video_sha256: str, box: Sequence[float]) -> None:
    """Notes the box of a recording that has no features of another, durably; the cache is there.

    Raises:
        OSError: If it cannot be written.
    """
    place = _place(root, crop, video_sha256)
    files.make_folder(place.parent, exist_ok=True)
    files.sync_folder(root)
    files.replace_file(place, canonical_json(list(box)).encode(), f".{format.new_segment_id()}.tmp")


def remove_notes(root: Path, mark: str) -> None:
    """Removes what is noted of a recording by its mark.

    Raises:
        OSError: If it cannot be removed.
    """
    for note in (root / FOLDER).glob(f"{mark}-*"):
        files.remove_file(note)
