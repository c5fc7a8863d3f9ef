"""Withdrawal of a recording from a whole project: what `featurecache cache forget` calls.

The cache loses every feature of it (`store/forget.py`). Then every other file below the project is looked through for
the recording's digest and its names; what can be made again or cleaned goes where everything was asked for, and the
rest is listed, file by file, for a person to decide. A record of the withdrawal is written that itself names neither
the recording nor its digest.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featurecache.clips.contents import content_of
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheReadError, FeatureCacheError
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.store import ForgetReport, forget
from featurecache.store.search import file_matches, is_packed
from featurecache.store.withdrawn import mark_of
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import VIDEO_SUFFIXES, find_recordings

RECORDS = "withdrawals"
_HISTORIES = frozenset({".git", ".hg", ".svn"})


@dataclass(frozen=True)
class Withdrawal:
    """What the withdrawal of a recording did; paths are relative to the project.

    Attributes:
        mark: What the cache keeps the recording out by.
        cache: What was removed from the cache; None where there is none.
        files_cleaned: Files that lost what they held of the recording.
        files_removed: Files that were removed; a command makes them again.
        remaining: (path, what it is and what to do) of files that a person must decide about.
        unsearched: (path, why) of what could not be looked into.
        record: The written record.
    """

    mark: str
    cache: ForgetReport | None
    files_cleaned: tuple[str, ...]
    files_removed: tuple[str, ...]
    remaining: tuple[tuple[str, str], ...]
    unsearched: tuple[tuple[str, str], ...]
    record: str

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache cache forget --json`: the cache's figures, and the project's files."""
        own = asdict(self)
        return (own.pop("cache") or {"rows": 0}) | own


def withdraw(project: Project, recording: str, *, everything: bool = False) -> Withdrawal:
    """Remove what a project holds of a recording, and tell what remains.

    Running it again after a kill finishes the work; a table of clips goes last, so that the name is known until then.

    Args:
        project: The project.
        recording: Its name in the clip table, or 16 to 64 digits of its sha256.
        everything: Also clean the clip table, the failures and the memo of digests, and remove reports, timelines and
            predictions. Otherwise these are listed with what remains.

    Raises:
        ClipTableError: If the recording is neither in the table nor named by digits.
        CacheBusyError, CacheReadError, CacheWriteError, NewerFormatError: As for `forget`.
        OSError: If a file of the project cannot be written or removed.
    """
    digits = content_of(project, recording)
    search = _Search(project, digits, _names(project, recording, digits))
    cached = forget(project.cache, digits) if project.cache.exists() else None
    unsearched = [(f"{project.cache.name}/{path}", why) for path, why in (cached.unsearched if cached else ())]
    cleaned, removed, remaining = [], [], []
    tables = (project.failures, project.clips)
    for path, why_not in search.files():
        name = path.relative_to(project.root).as_posix()
        if why_not:
            unsearched.append((name, why_not))
        elif everything and path == project.digest_memo:
            memo = DigestMemo(path)
            memo.forget(digits)
            memo.save()
            cleaned.append(name)
        elif everything and path in tables:
            cleaned.append(name)
        elif everything and _is_made_again(project, path):
            path.unlink()
            removed.append(name)
        else:
            remaining.append((name, _what_to_do(project, path)))
    for path in tables:
        if path.relative_to(project.root).as_posix() in cleaned:
            _drop_rows(path, digits)
    found = (tuple(cleaned), tuple(removed), tuple(remaining), tuple(unsearched))
    record = _write_record(project, search, mark_of(digits), cached, *found, everything=everything)
    return Withdrawal(mark_of(digits), cached, *found, record.relative_to(project.root).as_posix())


def _names(project: Project, recording: str, digits: str) -> frozenset[str]:
    """What the recording is called in the clip table and in the folder of videos."""
    names = set() if digits == recording else {recording}
    if project.clips.exists():
        table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
        names |= {clip.recording for clip in table.clips if clip.content.startswith(digits[:16])}
    try:
        recordings, _ = find_recordings(project.videos, project.digest_memo)
    except FeatureCacheError:
        return frozenset(names)
    return frozenset(names | {one.name for one in recordings if one.sha256.startswith(digits)})


class _Search:
    """Looks for one recording in the files of a project outside the cache."""

    def __init__(self, project: Project, digits: str, names: frozenset[str]) -> None:
        self._project = project
        self.paths = frozenset(project.videos / name for name in names)
        self.stems = frozenset(Path(name).stem for name in names)
        short = {*names, *(Path(name).name for name in names)}
        spelled = {digits[:16]} | {
            spelling for name in short for spelling in (name, json.dumps(name)[1:-1], html.escape(name), quote(name))
        }
        text = b"|".join(re.escape(spelling.encode()) for spelling in sorted(spelled))
        raw = re.escape(bytes.fromhex(digits))
        self._pattern = re.compile(rb"(?<![0-9A-Za-z_.-])(?:" + text + rb")|" + raw, re.DOTALL)

    def files(self) -> Iterator[tuple[Path, str]]:
        """Files that hold the recording, with an empty text, and those that cannot be searched, with the reason."""
        for path in self._below(self._project.root):
            if path.name in _HISTORIES:
                yield path, "it is a history of versions, which keeps what files held before"
                continue
            try:
                if path.is_symlink() or not path.is_file():
                    if path.is_symlink():
                        yield path, "it is a link"
                elif path in self.paths or path.name.split(".")[0] in self.stems or path.stem in self.stems:
                    yield path, ""
                elif self._is_recording(path):
                    continue  # of another name and content, as the digests of all recordings tell
                elif file_matches(path, self._pattern):
                    yield path, ""
                elif is_packed(path):
                    yield path, "it is compressed"
            except (CacheReadError, OSError) as error:
                yield path, f"it cannot be read ({type(error).__name__})"

    def hidden(self, path: str) -> str:
        """A path that no longer tells the recording's name."""
        for stem in sorted(self.stems, key=len, reverse=True):
            path = re.sub(rf"(?<![0-9A-Za-z]){re.escape(stem)}(?![0-9A-Za-z])", "<recording>", path)
        return path

    def _is_recording(self, path: Path) -> bool:
        return path.is_relative_to(self._project.videos) and path.suffix.lower() in VIDEO_SUFFIXES

    def _below(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path == self._project.cache or path == self._project.root / RECORDS:
                continue
            if path.is_dir() and not path.is_symlink() and path.name not in _HISTORIES:
                yield from self._below(path)
            else:
                yield path


def _is_made_again(project: Project, path: Path) -> bool:
    """Whether a command makes a file anew from what is left: reports, timelines and predictions."""
    if path.is_relative_to(project.predictions):
        return True
    return path.is_relative_to(project.runs) and (path.suffix == ".html" or "timelines" in path.name)


def _what_to_do(project: Project, path: Path) -> str:
    if path.is_relative_to(project.videos):
        return "the recording itself, or named like it: remove it"
    if project.annotations is not None and path.is_relative_to(project.annotations):
        return "its annotations, or they name it: remove them"
    if path in (project.clips, project.failures, project.digest_memo) or _is_made_again(project, path):
        return "holds what can be cleaned or made again: the same command with --everything"
    if (path.parent / "bundle.json").exists():
        return "a model that has learned from it: train again without it, or remove the model's folder"
    return "names it or holds data of it: look it over, clean or remove it"


def _drop_rows(path: Path, digits: str) -> None:
    """Take the recording's rows out of a table of clips; every other row keeps its bytes."""
    of_recording = re.compile(rf'(?:^|[",;\t]){digits[:16]}-[0-9]+-[0-9]+'.encode())
    lines = path.read_bytes().splitlines(keepends=True)
    write_private(path, b"".join(line for line in lines if not of_recording.search(line)))


def _write_record(
    project: Project,
    search: _Search,
    mark: str,
    cached: ForgetReport | None,
    cleaned: tuple[str, ...],
    removed: tuple[str, ...],
    remaining: tuple[tuple[str, str], ...],
    unsearched: tuple[tuple[str, str], ...],
    *,
    everything: bool,
) -> Path:
    now = datetime.now(UTC)
    document: dict[str, Any] = {
        "what": "withdrawal of one recording, known by its mark alone",
        "mark": mark,
        "at": now.isoformat(timespec="seconds"),
        "featurecache": version("featurecache"),
        "everything": everything,
        "cache": None if cached is None else {k: v for k, v in asdict(cached).items() if k != "unsearched"},
        "cleaned": [search.hidden(path) for path in cleaned],
        "removed": [search.hidden(path) for path in removed],
        "remaining": [{"path": search.hidden(path), "what": what} for path, what in remaining],
        "unsearched": [{"path": search.hidden(path), "why": why} for path, why in unsearched],
    }
    path = private_folder(project.root / RECORDS) / f"{now:%Y%m%dT%H%M%S%fZ}-{mark[:8]}.json"
    write_private(path, json.dumps(document, indent=1).encode())
    return path
