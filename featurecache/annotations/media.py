"""Which recordings an ELAN file or a name in a table belongs to, and with which time origin.

Names are compared as text; no path or URL that stands in a file is ever opened. A recording matches by its file name,
then by its name without suffix (a recording that was converted). Cameras restart their numbering, so folders decide
too: a path whose folder is another one than the recording's is no match unless the caller says that folders do not
count. Where no media descriptor matches, the `.eaf`'s own name does (ELAN users name them alike).
"""

import difflib
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from featurecache.annotations.document import EafDocument, MediaDescriptor
from featurecache.errors import AnnotationError
from featurecache.spelling import caseless, composed

MatchedBy = Literal["path", "name", "stem", "document"]
"""How a recording was found: folders agree throughout, the name alone, without suffix, by the `.eaf`'s own name."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
_SUFFIX = re.compile(r"(?<=.)\.(?:[A-Za-z][A-Za-z0-9]{1,4}|3g[p2])$")
_AUDIO_SUFFIX = re.compile(r"\.(?:wav|mp3|m4a|aac|aiff?|flac|ogg|opus|wma)$", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+")
_CODER = re.compile(r"[_\-. (](?![0-9]+$)")  # S1_2 is another recording, not the coder 2 of S1


@dataclass(frozen=True, slots=True)
class MediaMatch:
    """A recording that a document annotates: media time = annotation time + `time_origin_ms`."""

    recording: str
    time_origin_ms: int
    by: MatchedBy = field(default="path", compare=False)


@dataclass(frozen=True, slots=True)
class _Path:
    """A path as it is written, where it may lie (components, the file's name last), and the folder of its document."""

    written: tuple[str, ...]
    places: tuple[tuple[str, ...], ...] = ()
    folder: str = ""


def matching_recordings(
    document: EafDocument, path: Path, recordings: Sequence[str], *, ignore_folders: bool = False
) -> tuple[MediaMatch, ...]:
    """The recordings that a document belongs to.

    Args:
        document: The document.
        path: Where it was read from; its stem and folder names serve, it is not opened.
        recordings: Names of the known recordings, posix paths relative to their folder. One name asks
            for that recording alone.
        ignore_folders: Whether a media file in another folder than the recording's is the recording all the same.

    Returns:
        One match per recording, sorted by name; empty if none belongs to it. Several cameras are several
        descriptors, each with its own origin.

    Raises:
        AnnotationError: If a name fits several recordings, one recording gets two time origins, or the only
            recordings of the name lie in other folders.
    """
    found: dict[str, tuple[int, MatchedBy, set[int]]] = {}
    contradiction: AnnotationError | None = None
    for media in document.media:
        try:
            match = _find(document.error, _paths_of(media, path), recordings, ignore_folders)
        except _OtherFolderError as error:
            contradiction = AnnotationError(str(error))
            continue
        if match is None:
            continue
        recording, by = match
        rank = 0 if by in ("path", "name") else 2 if is_audio(media) else 1
        if recording not in found or rank < found[recording][0]:
            found[recording] = (rank, by, {media.time_origin_ms})
        elif rank == found[recording][0]:
            found[recording][2].add(media.time_origin_ms)
    if not found and contradiction is not None:
        raise contradiction
    if not found and (own := _by_own_name(document, path, recordings)) is not None:
        pictures = [media for media in document.media if not is_audio(media)] or document.media
        found[own] = (0, "document", {media.time_origin_ms for media in pictures} or {0})
    for recording, (_, _, origins) in found.items():
        if len(origins) > 1:
            raise document.error(
                f"a recording must have one time origin, but {recording!r} gets {sorted(origins)} ms from the media "
                "descriptors. Correct the linked files in ELAN, or rename the recording as one of them."
            )
    return tuple(MediaMatch(name, min(origins), by) for name, (_, by, origins) in sorted(found.items()))


def match_name(
    name: str, recordings: Sequence[str], *, where: str, ignore_folders: bool = False
) -> tuple[str, MatchedBy] | None:
    """The recording that a table's cell names, with or without folders and suffix, in either case.

    Args:
        name: What stands in the table; slashes of any kind.
        recordings: Names of the known recordings.
        where: What to call the place in a message.
        ignore_folders: As for `matching_recordings`.

    Raises:
        AnnotationError: If it fits several recordings, or the only ones of the name lie in other folders.
    """

    def error(message: str) -> AnnotationError:
        return AnnotationError(f"{where}: {message}")

    return _find(error, [_Path(_components(name))], recordings, ignore_folders)


def names_looked_for(document: EafDocument, path: Path) -> list[str]:
    """The file names by which `matching_recordings` looks, as they stand in the document, and the `.eaf`'s own stem."""
    names = [_components(media.media_url)[-1:] for media in document.media]
    return list(dict.fromkeys([name for found in names for name in found] + [path.stem]))


def nearest(names: Sequence[str], recordings: Sequence[str]) -> str:
    """A sentence with the recording whose name is nearest to one of these; empty where none is near."""
    by_stem = {caseless(_stem(PurePosixPath(recording).name)): recording for recording in recordings}
    for name in names:
        if near := difflib.get_close_matches(caseless(_stem(PurePosixPath(name).name)), by_stem, n=1, cutoff=0.3):
            return f" The nearest is {by_stem[near[0]]}."
    return ""


class _OtherFolderError(AnnotationError):
    """All recordings of the name lie in folders that the path contradicts."""


def _find(
    error: Callable[[str], AnnotationError], paths: Sequence[_Path], recordings: Sequence[str], ignore_folders: bool
) -> tuple[str, MatchedBy] | None:
    """The recording that shares its name and the longest tail of folders with one of `paths`.

    Raises:
        AnnotationError: If several fit alike, or (`_OtherFolderError`) each that fits is contradicted by its folder.
    """
    refused: tuple[str, _Path] | None = None
    for by_stem in (False, True):
        fits: dict[str, tuple[int, MatchedBy]] = {}
        for recording in recordings:
            own = tuple(recording.split("/"))
            named = [path for path in paths if path.written and _same(own[-1], path.written[-1], by_stem)]
            if not named:
                continue
            length = max(_common_folders(own, place) for path in named for place in (path.written, *path.places))
            alike = [path for path in paths if path.written and _same(own[-1], path.written[-1], by_stem=True)]
            against = [path for path in (*named, *alike) if _contradicts(path, own)]
            supported = length == len(own) - 1 and len(own) > 1
            if against and not supported and not ignore_folders:
                refused = recording, against[0]
                continue
            whole = supported or any(path.written == own for path in named) or _bare(named, own)
            fits[recording] = length, "stem" if by_stem else "path" if whole else "name"
        if not fits:
            continue
        longest = max(length for length, _ in fits.values())
        best = [recording for recording, (length, _) in fits.items() if length == longest]
        exact = {path.written[-1] for path in paths if path.written}
        best = [recording for recording in best if composed(PurePosixPath(recording).name) in exact] or best
        if len(best) > 1:
            name = PurePosixPath(best[0]).name
            raise error(
                f"a media file must belong to one recording, but {_stem(name) if by_stem else name!r} fits "
                f"{', '.join(sorted(best)[:5])}. Put the .eaf into a folder named as the recording's, name the folder "
                "in the table, or rename them."
            )
        if not ignore_folders and (elsewhere := _another_sessions_media(paths, tuple(best[0].split("/")))):
            refused = best[0], elsewhere
            continue
        return best[0], fits[best[0]][1]
    if refused is not None:
        recording, path = refused
        written = "/".join(path.written[-2:])
        raise _OtherFolderError(
            str(
                error(
                    f"a media file must lie in its recording's folder, but .../{written} is not {recording}. If it is, "
                    'since folders were renamed, set media_folders = "ignored" under [data].'
                )
            )
        )
    return None


def _by_own_name(document: EafDocument, path: Path, recordings: Sequence[str]) -> str | None:
    """The recording that the `.eaf` is named after: alike, or, where it names no media, with a coder's name behind."""
    folder = _components(path.parent.as_posix())
    stem = caseless(path.stem)
    fits: dict[str, int] = {}
    for recording in recordings:
        own = tuple(recording.split("/"))
        if _other_session(own, path.parent.name):
            continue
        bare = caseless(_stem(own[-1]))
        behind = stem.removeprefix(bare)
        if stem in (bare, caseless(own[-1])) or (not document.media and behind != stem and _CODER.match(behind)):
            fits[recording] = 1000 * len(bare) + _common_folders(own, (*folder, own[-1]))
    best = [recording for recording, fit in fits.items() if fit == max(fits.values())]
    if len(best) > 1:
        raise document.error(
            f"a media file must belong to one recording, but {path.stem!r} fits {', '.join(sorted(best)[:5])}. "
            "Put the .eaf into a folder named as the recording's, or rename them."
        )
    return best[0] if best else None


def _paths_of(media: MediaDescriptor, eaf: Path) -> list[_Path]:
    """How a descriptor may name its file: as written and percent-decoded, relative ones seen from the `.eaf`.

    The folders of the `.eaf`, and its own stem, can speak for a recording; against it speaks only a folder that is
    numbered as the recording's is.
    """
    folder = _components(eaf.parent.as_posix())
    paths: dict[_Path, None] = {}
    for url in filter(None, (media.relative_media_url, media.media_url)):
        for text in (url, unquote(url)):
            written = _components(text)
            if not written:
                continue
            seen = posixpath.normpath(posixpath.join(eaf.parent.as_posix(), text.replace("\\", "/")))
            places = (_components(seen), (*folder, written[-1]), (*folder, eaf.stem, written[-1]))
            paths[_Path(written, places, eaf.parent.name)] = None
    return list(paths)


def _components(text: str) -> tuple[str, ...]:
    """The named components of a path or URL; what steps up or stays is left out."""
    slashed = posixpath.normpath(_SCHEME.sub("/", text.strip().replace("\\", "/")))
    return tuple(composed(part) for part in slashed.split("/") if part not in ("", ".", ".."))


def _contradicts(path: _Path, own: Sequence[str]) -> bool:
    """Whether a path lies in another folder than the recording, or its document in one of another session."""
    agreeing = _common_folders(own, path.written) == min(len(own), len(path.written)) - 1
    return not agreeing or _other_session(own, path.folder)


def _another_sessions_media(paths: Sequence[_Path], own: Sequence[str]) -> _Path | None:
    """A path of a document that is filed under the recording's session, but whose media are all of another session."""
    placed = [path for path in paths if len(path.written) > 1]
    is_seen = any(_common_folders(own, path.places[0]) == len(own) - 1 for path in paths if path.places)
    return placed[0] if placed and not is_seen and all(_other_session(own, one.written[-2]) for one in placed) else None


def _bare(paths: Sequence[_Path], own: Sequence[str]) -> bool:
    """Whether neither the recording nor what names it has a folder that could say more than the name."""
    return len(own) == 1 and all(len(path.written) == 1 for path in paths)


def _other_session(own: Sequence[str], folder: str) -> bool:
    """Whether the `.eaf` lies in a folder that is numbered as the recording's is, but otherwise: s4 and s5."""
    theirs, mine = caseless(folder), caseless(own[-2]) if len(own) > 1 else ""
    return bool(mine) and theirs != mine and _NUMBER.sub("#", theirs) == _NUMBER.sub("#", mine)


def _same(own: str, written: str, by_stem: bool) -> bool:
    own, written = caseless(own), caseless(written)
    return _stem(own) in (written, _stem(written)) if by_stem else own == written


def _stem(name: str) -> str:
    return _SUFFIX.sub("", name)


def same_name(recording: str, url: str, *, by_stem: bool) -> bool:
    """Whether a path or URL names a file as a recording is called, in either case; by stem: with any suffix."""
    return any(
        bool(parts) and _same(composed(recording), parts[-1], by_stem)
        for parts in (_components(url), _components(unquote(url)))
    )


def is_audio(media: MediaDescriptor) -> bool:
    """Whether a descriptor is of a sound file."""
    return media.mime_type.startswith("audio/") or is_audio_name(media.media_url)


def is_audio_name(url: str) -> bool:
    """Whether a name or URL ends as those of sound files do."""
    return _AUDIO_SUFFIX.search(url.strip()) is not None


def _common_folders(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders two paths share, counted from their ends."""
    count = 0
    for a, b in zip(reversed(one[:-1]), reversed(other[:-1]), strict=False):
        if caseless(a) != caseless(b):
            break
        count += 1
    return count
