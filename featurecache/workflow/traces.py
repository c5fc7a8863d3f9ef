"""Where a project's files, outside its cache, hold something of one recording.

A file is searched for the recording's names in the encodings of tables and documents, for its digest, and for the bytes
of its features while the cache has them; a video file is compared by its content. What cannot be searched is told:
compressed and encrypted files (pictures and other videos are such), links, folders that cannot be read, histories of
versions.
"""

import contextlib
import html
import json
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

from featurecache.clips.contents import predicted_contents, table_contents
from featurecache.errors import CacheReadError
from featurecache.project.settings import Project
from featurecache.store.forget import recording_needles
from featurecache.store.search import Needles, look_into
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import VIDEO_SUFFIXES

_HISTORIES = frozenset({".git", ".hg", ".svn"})
_LONG_NAME = 6
_CLIP = re.compile("(?<![0-9a-f])[0-9a-f]{16}-[0-9]+-[0-9]+")
_NO_TEXT = rb"[^\t\n\r -~\xef\xbb\xbf]"  # a text may begin with UTF-8's mark


class Traces:
    """Finds one recording in the files of a project.

    Args:
        project: The project.
        recording: What the user calls it: a name in the clip table, or digits.
        digits: 16 to 64 digits of its sha256.

    Raises:
        CacheReadError: If the disk refuses to give something of the cache.
    """

    def __init__(self, project: Project, recording: str, digits: str) -> None:
        self._digits, self._root = digits, project.root
        self.videos = Path(os.path.normpath(project.videos))
        """Where its recordings lie, without steps up and down, as all paths here."""
        self.annotations = None if project.annotations is None else Path(os.path.normpath(project.annotations))
        self._memo = DigestMemo(project.digest_memo)
        self._needles = Needles(recording_needles(project.cache, digits))
        names, others = {recording} - {digits}, set[str]()
        rows, self.is_table_sound = table_contents(project)
        """Whether the clip table can be read; else it may name the recording where nobody can tell."""
        for name, content in rows:
            (names if content == digits[:16] else others).add(name)
        for name, content in predicted_contents(project).items():
            (names if digits.startswith(content) else others).add(name)
        for path, _ in self._below(self.videos):
            with contextlib.suppress(OSError):
                (names if self._is_copy(path) else others).add(path.name)
        self._stems = sorted({Path(name).stem for name in names}, key=len, reverse=True)
        other_stems = {Path(name).stem for name in others}
        self.shares_name = not other_stems.isdisjoint(self._stems)
        """Whether another recording is called alike, in another folder or with another suffix."""
        self._names = Names(self._stems, other_stems - {*self._stems})

    def is_named(self, name: str) -> bool:
        """Whether a file's name, or its path, tells the recording's."""
        return self._names.are_in(name.encode(errors="surrogateescape"))

    def files(self, but: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
        """Files that hold the recording, with an empty text, and those that cannot be searched, with the reason.

        Args:
            but: Files and folders to leave out.
        """
        for base in (self._root, self.videos, self.annotations):
            if base is None or (base != self._root and base.is_relative_to(self._root)):
                continue
            for path, why in self._below(base, but):
                name = (
                    path.relative_to(base.parent if path == base else base).as_posix().encode(errors="surrogateescape")
                )
                if self._names.are_in(name) or self._needles.are_in(name):
                    yield path, ""
                    continue
                found, why_not = (False, why) if why else self._look(path)
                if found or why_not:
                    yield path, why_not

    def shown(self, path: Path) -> str:
        """A path as a person is told it: relative to the project where it lies below it."""
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)

    def hidden(self, path: Path) -> str:
        """A path that tells neither the recording's name, nor another's digits, nor folders outside the project."""
        bases = {self._root: "", self.videos: "(videos)/", self.annotations: "(annotations)/"}
        text = next(
            (
                f"{name}{path.relative_to(base).as_posix()}"
                for base, name in bases.items()
                if base and base in path.parents
            ),
            path.name,
        )
        for stem in self._stems:
            text = re.sub(rf"(?<![0-9A-Za-z]){re.escape(stem)}(?![0-9A-Za-z])", "<recording>", text)
        return _CLIP.sub("<clip>", text.replace(self._digits[:16], "<digits>"))

    def _look(self, path: Path) -> tuple[bool, str]:
        """Whether a file holds the recording, and else why that cannot be told."""
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                if self._is_copy(path):
                    return True, ""
                if path.is_relative_to(self.videos):
                    return False, ""  # another recording: its digest tells
            look = look_into(path, self._needles, self._names)
        except (CacheReadError, OSError) as error:
            return False, f"it cannot be read ({type(error).__name__})"
        return look.holds, look.unsearchable

    def _is_copy(self, path: Path) -> bool:
        """Whether a file is the recording itself; the memo spares reading it again, and learns nothing."""
        return path.suffix.lower() in VIDEO_SUFFIXES and self._memo.sha256(Path(os.path.realpath(path))).startswith(
            self._digits
        )

    def _below(self, folder: Path, but: Collection[Path] = ()) -> Iterator[tuple[Path, str]]:
        """Every file below a folder (or it, where it is a file), with why it cannot be searched if that is known."""
        try:
            inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
            modes = [path.lstat().st_mode if os.path.lexists(path) else 0 for path in inside]
        except OSError as error:
            yield folder, f"it cannot be read ({error.strerror})"
            return
        for path, mode in zip(inside, modes, strict=True):
            if path in but:
                continue
            if path.name in _HISTORIES:
                yield path, "it is a history of versions, which keeps what files held before"
            elif stat.S_ISLNK(mode) and path not in (self.videos, self.annotations):
                yield path, "it is a link"
            elif path.is_dir():
                yield from self._below(path, but)
            elif path.is_file():
                yield path, ""


class Names:
    """Names of a recording to look for: whole words, and no part of another recording's longer name.

    Args:
        stems: The names, without suffix. A short one that is a word or a number, such as "a" or "7", counts as a name
            only where a suffix follows.
        others: Names of all other recordings.
    """

    def __init__(self, stems: Collection[str], others: Collection[str]) -> None:
        self._patterns: dict[bytes, re.Pattern[bytes]] = {}
        for stem in stems:
            longer = [(before, after) for other in others for before, found, after in [other.partition(stem)] if found]
            longer = [one for one in longer if not one[0][-1:].isalnum() and not one[1][:1].isalnum()]
            plain = {unicodedata.normalize(form, stem) for form in ("NFC", "NFD")} | {stem}
            escaped = {change(form) for form in plain for change in (_as_json, html.escape, quote)}
            for encoding, forms in (("utf-8", plain | escaped), ("latin-1", plain), ("utf-16-le", plain)):
                for form in forms:
                    with contextlib.suppress(UnicodeEncodeError):
                        self._patterns[_coded(form, encoding)] = _whole(stem, form, encoding, longer)
        self.longest = 2 * max(map(len, [*self._patterns, *(other.encode() for other in others)]), default=1) + 8

    def are_in(self, data: bytes) -> bool:
        """Whether any of them stands in the data."""
        return any(text in data and pattern.search(data) for text, pattern in self._patterns.items())


def _as_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _coded(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "surrogateescape").removesuffix(b"\0")  # of UTF-16, either byte order matches


def _whole(stem: str, text: str, encoding: str, longer: Collection[tuple[str, str]]) -> re.Pattern[bytes]:
    """A pattern of a name as it is written in some text, but not in the longer names that others make of it.

    Args:
        stem: The name.
        text: A spelling of it.
        encoding: Of the text.
        longer: What stands before and after it in names of others.
    """
    zero = rb"\x00" if encoding == "utf-16-le" else b""
    word, spelled = rb"[0-9A-Za-z]", re.escape(_coded(text, encoding))
    before, after = rb"(?<!" + word + zero + rb")", rb"(?!" + zero + word + rb")"
    if len(stem) < _LONG_NAME:  # a few bytes stand in any large file of numbers by chance: not among text, though
        if not re.search("[0-9]", stem) or not re.search("[^0-9]", stem):
            after = rb"(?=" + zero + rb"\." + zero + word + rb")"
        if not zero:
            for gap in (b"", b".", b".."):
                before += rb"(?<!" + _NO_TEXT + gap + rb")"
                after += rb"(?!" + gap + _NO_TEXT + rb")"
    for left, right in longer:
        rest = zero + re.escape(_coded(right, encoding)) if right else b""
        after += rb"(?!(?<=" + re.escape(_coded(left + text, encoding)) + rb")" + rest + rb"(?!" + zero + word + rb"))"
    return re.compile(before + spelled + after, re.DOTALL)
