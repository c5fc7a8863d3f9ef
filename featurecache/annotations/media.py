"""Which recordings an ELAN file belongs to, and with which time origin.

Names are compared as text; no path or URL that stands in the file is ever opened. A recording matches
a media descriptor by its file name; folders only decide between recordings of one name. Where no
descriptor matches, the `.eaf`'s own stem does (ELAN users name them alike, and media files get renamed).
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from featurecache.annotations.document import EafDocument, MediaDescriptor

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://*")


@dataclass(frozen=True, slots=True)
class MediaMatch:
    """A recording that a document annotates: media time = annotation time + `time_origin_ms`."""

    recording: str
    time_origin_ms: int


def matching_recordings(document: EafDocument, path: Path, recordings: Sequence[str]) -> tuple[MediaMatch, ...]:
    """The recordings that a document belongs to.

    Args:
        document: The document.
        path: Where it was read from; its stem and folder names serve, it is not opened.
        recordings: Names of the known recordings, posix paths relative to their folder. One name asks
            for that recording alone.

    Returns:
        One match per recording, sorted by name; empty if none belongs to it. Several cameras are several
        descriptors, each with its own origin.

    Raises:
        AnnotationError: If a name fits several recordings, or one recording gets two time origins.
    """
    origins: dict[str, set[int]] = {}
    for media in document.media:
        found = _recording_of(document, _paths_of(media, path), recordings, name_of=lambda name: name)
        if found is not None:
            origins.setdefault(found, set()).add(media.time_origin_ms)
    if not origins:
        found = _recording_of(document, [path.with_suffix("").as_posix()], recordings, name_of=_without_suffix)
        if found is not None:
            origins[found] = {media.time_origin_ms for media in document.media} or {0}
    for recording, values in origins.items():
        if len(values) > 1:
            raise document.error(
                f"a recording must have one time origin, but {recording!r} gets {sorted(values)} ms from the media "
                "descriptors. Correct the linked files in ELAN, or rename the recording as one of them."
            )
    return tuple(MediaMatch(recording, *values) for recording, values in sorted(origins.items()))


def _paths_of(media: MediaDescriptor, eaf: Path) -> list[str]:
    """How a descriptor may name its file: as written and percent-decoded, relative ones seen from the `.eaf`."""
    paths = []
    for url in filter(None, (media.relative_media_url, media.media_url)):
        for text in (url, unquote(url)):
            slashed = _SCHEME.sub("/", text.replace("\\", "/"))
            paths.append(posixpath.normpath(posixpath.join(eaf.parent.as_posix(), slashed)))
    return paths


def _recording_of(
    document: EafDocument, paths: Sequence[str], recordings: Sequence[str], *, name_of: Callable[[str], str]
) -> str | None:
    """The recording whose name shares the longest tail of path components with one of `paths`."""
    for same in (_composed, _caseless):
        tails = {
            recording: max((_common_tail(same(name_of(recording)), same(path)) for path in paths), default=0)
            for recording in recordings
        }
        longest = max(tails.values(), default=0)
        best = [recording for recording, length in tails.items() if length == longest]
        if longest and len(best) > 1:
            raise document.error(
                f"a media file must belong to one recording, but {PurePosixPath(best[0]).name!r} fits "
                f"{', '.join(sorted(best)[:5])}. Put the .eaf into a folder named as the recording's, or rename them."
            )
        if longest:
            return best[0]
    return None


def _without_suffix(recording: str) -> str:
    return PurePosixPath(recording).with_suffix("").as_posix()


def _composed(name: str) -> str:
    # macOS decomposes accents in file names; other systems and ELAN do not.
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(name).casefold()


def _common_tail(one: str, other: str) -> int:
    count = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a != b:
            break
        count += 1
    return count
