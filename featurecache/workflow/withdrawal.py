"""Withdrawal of a recording from a whole project: what `featurecache cache forget` calls.

The cache loses every feature of it (`store/forget.py`). Then every other file is looked through (`traces.py`); what can
be made again or cleaned goes where everything was asked for, and the rest is listed, file by file, for a person to
decide. A record of the withdrawal is written that itself names neither the recording nor its digest.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurecache.annotations.reviews import FOLDER
from featurecache.clips.contents import content_of
from featurecache.clips.record import read_record
from featurecache.clips.samples_file import SAMPLES_NAME, samples_record, without_recording
from featurecache.errors import ClipTableError
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.store import ForgetReport, forget
from featurecache.store.withdrawn import mark_of
from featurecache.video.digests import DigestMemo
from featurecache.workflow.neighbours import CONFUSIONS_NAME, DUPLICATES_NAME
from featurecache.workflow.traces import Traces

SUGGESTIONS, MAPS, SHORTCUTS = "suggestions", "maps", "shortcuts"
"""Folders of what to annotate next, of the project, and of maps and shortcuts of what a head uses, of its runs."""

RECORDS = "withdrawals"
_NO_CACHE = (("", "it is not there: nothing in it was searched, and nothing keeps the recording out of a new one"),)


@dataclass(frozen=True)
class Withdrawal:
    """What the withdrawal of a recording did; paths are relative to the project, outside it absolute.

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
        recording: Its name in the clip table or among predictions, a file, or 16 to 64 digits of its sha256.
        everything: Also clean the clip table, its record, the failures and the memo of digests, take samples that
            hold the recording out of samples.csv, and remove reports, timelines and predictions. Otherwise these are
            listed with what remains.

    Raises:
        ClipTableError: If the recording cannot be told; a damaged clip table is no hindrance where digits or a file do.
        CacheBusyError, CacheReadError, CacheWriteError, NewerFormatError: As for `forget`.
        OSError: If a file of the project cannot be written or removed.
    """
    project = replace(project, root=project.root.absolute())
    digits = content_of(project, recording)
    traces = Traces(project, recording, digits)
    cached = forget(project.cache, digits) if project.cache.exists() else None
    cleaned: list[Path] = []
    removed: list[Path] = []
    remaining: list[tuple[Path, str]] = []
    unsearched = [(project.cache / path, why) for path, why in (cached.unsearched if cached else _NO_CACHE)]
    if not traces.is_table_sound:
        unsearched.append((project.clips, "it is damaged, and may name the recording in other words: look it over"))
    samples = project.root / SAMPLES_NAME
    for path, why_not in traces.files(but=(project.cache, project.root / RECORDS)):
        if why_not:
            unsearched.append((path, why_not))
        elif everything and path == project.digest_memo:
            memo = DigestMemo(path)
            memo.forget(digits)
            memo.save()
            cleaned.append(path)
        elif everything and path == project.table_record:
            read_record(path).without(digits, traces.is_named).save(path)
            cleaned.append(path)
        elif everything and path in (project.failures, project.clips, samples):
            cleaned.append(path)
        elif everything and not traces.shares_name and _is_made_again(project, path):
            removed.append(path)
            if other_names := _remove(project, path):
                unsearched.append((path, f"it is removed, but has {other_names} other names (hard links)"))
        else:
            remaining.append((path, _what_to_do(project, traces, path)))
    if samples in cleaned:
        try:
            _drop_samples(project, traces, digits)
        except ClipTableError as error:
            cleaned.remove(samples)
            remaining.append((samples, str(error)))
    for path in {project.failures, project.clips} & set(cleaned):
        _drop_rows(path, digits, project.table_record)
    record = _write_record(
        project, traces, mark_of(digits), cached, cleaned, removed, remaining, unsearched, everything
    )
    return Withdrawal(
        mark_of(digits),
        cached,
        tuple(map(traces.shown, cleaned)),
        tuple(map(traces.shown, removed)),
        tuple((traces.shown(path), what) for path, what in remaining),
        tuple((traces.shown(path), why) for path, why in unsearched),
        traces.shown(record),
    )


def _remove(project: Project, path: Path) -> int:
    """Removes a file, and a folder of maps that it leaves empty; the number of its other names."""
    links = path.stat().st_nlink
    path.unlink()
    if path.parent.parent == project.runs / MAPS and not any(path.parent.iterdir()):
        path.parent.rmdir()  # its name is the clip's id
    return links - 1


def _is_made_again(project: Project, path: Path) -> bool:
    """Whether a command makes a file anew from what is left: reports, timelines, suggestions, answers, maps."""
    if path.is_relative_to(project.predictions) or path.is_relative_to(project.root / SUGGESTIONS):
        return True
    return path.is_relative_to(project.runs) and (
        any(path.is_relative_to(project.runs / folder) for folder in (MAPS, SHORTCUTS))
        or path.suffix == ".html"
        or path.name.endswith(".activities.csv")
        or "timelines" in path.name
        or path.name in ("answers.csv", "part_weights.csv", CONFUSIONS_NAME, DUPLICATES_NAME)
    )


def _what_to_do(project: Project, traces: Traces, path: Path) -> str:
    if path.is_relative_to(traces.videos):
        return "the recording itself, or named like it: remove it"
    by_persons = [place for place in (traces.annotations, project.root / FOLDER) if place is not None]
    if any(path.is_relative_to(place) for place in by_persons):
        return "its annotations, or they name it: remove them"
    tables = (project.clips, project.failures, project.root / SAMPLES_NAME)
    if path in (*tables, project.digest_memo, project.table_record) or _is_made_again(project, path):
        return "holds what can be cleaned or made again: the same command with --everything"
    if (path.parent / "bundle.json").exists():
        return "a model that has learned from it: train again without it, or remove the model's folder"
    return "names it or holds data of it: look it over, clean or remove it"


def _drop_rows(path: Path, digits: str, record_path: Path) -> None:
    """Take the recording's rows out of a table of clips; every other row keeps its bytes."""
    of_recording = re.compile(rf'(?:^|[",;\t]){digits[:16]}-[0-9]+-[0-9]+'.encode())
    before = path.read_bytes()
    after = b"".join(line for line in before.splitlines(keepends=True) if not of_recording.search(line))
    _write_cleaned(path, before, after, record_path)


def _drop_samples(project: Project, traces: Traces, digits: str) -> None:
    """Take the samples that hold the recording out of `samples.csv`, whole.

    Raises:
        ClipTableError: If it cannot be read as a table.
    """
    path = project.root / SAMPLES_NAME
    before = path.read_bytes()
    after = without_recording(
        before,
        lambda part: part.startswith(f"{digits[:16]}-"),
        lambda name: not traces.shares_name and traces.is_named(name),
    )
    _write_cleaned(path, before, after, samples_record(project))


def _write_cleaned(path: Path, before: bytes, after: bytes, record_path: Path) -> None:
    """Writes a table that lost rows; one that nobody had edited still counts as unedited."""
    record = read_record(record_path)
    if hashlib.sha256(before).hexdigest() in record.written:
        replace(record, written=(*record.written, hashlib.sha256(after).hexdigest())).save(record_path)
    write_private(path, after)


def _write_record(
    project: Project,
    traces: Traces,
    mark: str,
    cached: ForgetReport | None,
    cleaned: Sequence[Path],
    removed: Sequence[Path],
    remaining: Sequence[tuple[Path, str]],
    unsearched: Sequence[tuple[Path, str]],
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
        "cleaned": [traces.hidden(path) for path in cleaned],
        "removed": [traces.hidden(path) for path in removed],
        "remaining": [{"path": traces.hidden(path), "what": what} for path, what in remaining],
        "unsearched": [{"path": traces.hidden(path), "why": why} for path, why in unsearched],
    }
    path = private_folder(project.root / RECORDS) / f"{now:%Y%m%dT%H%M%S%fZ}-{mark[:8]}.json"
    write_private(path, json.dumps(document, indent=1).encode())
    return path
