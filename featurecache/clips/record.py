"""What a clip table was made from: a small JSON file that is written with the table. `drift` compares it with today.

It holds the digests of what was written (so that a person's edits are noticed), the settings that decide what a table
says, the size and time of last change of every video and annotation file, a digest of every annotation file, and by
its content each recording's split, a digest of its labels, and which of these come from reviews.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from featurecache.annotations.reviews import FOLDER
from featurecache.clips.annotated import annotation_paths
from featurecache.clips.clip import ClipTable
from featurecache.clips.label_counts import UNKNOWN_SOURCES, LabelSources
from featurecache.errors import AnnotationError
from featurecache.files import private_folder, sha256_of_file, write_private
from featurecache.project.settings import Project
from featurecache.spelling import caseless
from featurecache.video.recordings import video_paths

Files = Mapping[str, Mapping[str, Sequence[int | str]]]
"""Kind, "videos", "annotations" or (of a table that holds them) "reviews" -> path relative to the kind's folder -> size
in bytes, mtime in ns, and in a record of annotation files sha256 (64 hex digits)."""

_PLACES = frozenset({"data.videos", "data.annotations", "splits.allow_clip_level"})


@dataclass(frozen=True)
class TableRecord:
    """What is known of the table that was last written.

    Attributes:
        written: sha256 of the tables that count as unedited.
        settings: Each setting that decides what a table says -> its value; empty where that is not known.
        files: The files that the table was made from.
        splits: First 16 digits of a recording's sha256 -> its split, and a digest of its session's name.
        compared: Such digits of the recordings whose looks were compared with each other.
        copies: Pairs of them that show the same pictures.
        seen: Such digits -> stretches that are labelled by a review with predictions in sight: no independent truth.
        labelled: Such digits -> `label_digests`, by which a table that was edited or restored since is noticed.
        sources: Who labelled the clips that the table was written with.
    """

    written: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Files = dataclasses.field(default_factory=dict)
    splits: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    compared: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    seen: Mapping[str, Sequence[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    labelled: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: LabelSources = UNKNOWN_SOURCES

    def save(self, path: Path) -> None:
        """Writes the record, 0600.

        Raises:
            OSError: If it cannot be written.
        """
        private_folder(path.parent)
        write_private(path, json.dumps(dataclasses.asdict(self)).encode())

    def without(self, digits: str, is_named: Callable[[str], bool]) -> "TableRecord":
        """The record without a withdrawn recording: its content, and the files that its name tells."""
        files = {
            kind: {name: state for name, state in own.items() if not is_named(name)} for kind, own in self.files.items()
        }
        splits = {content: found for content, found in self.splits.items() if not digits.startswith(content)}
        compared = tuple(content for content in self.compared if not digits.startswith(content))
        copies = tuple(pair for pair in self.copies if not any(digits.startswith(content) for content in pair))
        seen = {content: spans for content, spans in self.seen.items() if not digits.startswith(content)}
        labelled = {content: own for content, own in self.labelled.items() if not digits.startswith(content)}
        return dataclasses.replace(
            self, files=files, splits=splits, compared=compared, copies=copies, seen=seen, labelled=labelled
        )


_RECORD = TypeAdapter(TableRecord)


def read_record(path: Path) -> TableRecord:
    """The record; an empty one where there is none, or where it is damaged: then nothing can be compared."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = _RECORD.validate_json(path.read_bytes())
        return dataclasses.replace(record, settings=_each_column(record.settings))
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return TableRecord(tuple(map(str, json.loads(path.read_bytes())["written"])))
    return TableRecord()


def record_of(project: Project, table: ClipTable, files: Files, earlier: TableRecord) -> TableRecord:
    """The record of a table that is about to be written.

    Args:
        project: The project.
        table: The table.
        files: `files_of` the project with digests, found before anything was read.
        earlier: The record whose splits stay known, for recordings that are away, and so do comparisons.
    """
    places = {(clip.content, clip.split, session_key(clip.session)) for clip in table.clips if clip.split}
    several = {content for content, count in Counter(content for content, _, _ in places).items() if count > 1}
    # A recording whose session was cut into parts has no split that it could keep.
    found = {content: (split, session) for content, split, session in places if content not in several}
    splits = {**earlier.splits, **found}
    return dataclasses.replace(
        earlier,
        written=(),
        settings=settings_of(project),
        files=files,
        splits=splits,
        labelled=label_digests(table),
    )


def label_digests(table: ClipTable) -> dict[str, str]:
    """First 16 digits of a recording's sha256 -> a digest of which of its clips are labelled, and how."""
    columns = table.columns
    if not table.labels or not len(columns):
        return {}
    values = np.array([[-1 if one is None else one for one in row] for row in columns.targets.values], np.int8)
    targets, content = values[columns.targets.codes], columns.content.codes  # (N, C), (N,)
    order = np.lexsort((columns.span_us[:, 1], columns.span_us[:, 0], content))
    order = order[(targets[order] >= 0).all(axis=1)]
    found = {}
    for rows in np.split(order, np.flatnonzero(np.diff(content[order])) + 1):
        if len(rows):
            digest = hashlib.sha256(columns.span_us[rows].tobytes() + targets[rows].tobytes())
            found[columns.content.values[content[rows[0]]]] = digest.hexdigest()[:16]
    return found


def session_key(session: str) -> str:
    """What the record knows a session's name by, in any case: it does not tell the name."""
    return hashlib.sha256(caseless(session).encode()).hexdigest()[:16]


def settings_of(project: Project) -> dict[str, Any]:
    """The settings that decide what a table says, as JSON holds them."""
    settings = project.settings
    found = {
        f"{section}.{name}": value
        for section in ("data", "clips", "splits")
        for name, value in dataclasses.asdict(getattr(settings, section)).items()
    }
    plain = json.dumps({name: value for name, value in found.items() if name not in _PLACES}, default=_plain)
    return _each_column(json.loads(plain))


def _each_column(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with one for each column of a table, so that one which a later version adds is no change."""
    columns = settings.get("data.columns", {})
    others = {name: value for name, value in settings.items() if name != "data.columns"}
    return {**others, **{f"data.columns.{name}": value for name, value in columns.items()}}


def _plain(value: object) -> float | str:
    return float(value) if isinstance(value, Decimal) else str(value)


def files_of(project: Project, *, digests: bool = False, reviews: bool = False) -> Files:
    """The videos and annotation files that are there, with size and time of last change.

    Args:
        project: The project.
        digests: Whether annotation files are read for their digests too; otherwise none is opened.
        reviews: Whether the files of reviews are told, too.
    """
    annotations: dict[str, list[int | str]] = {}
    if project.annotations is not None:
        annotations = _annotation_states(project.annotations)
        if digests:
            for name, state in annotations.items():
                state.extend(filter(None, [annotation_digest(project.annotations, name)]))
    folder = project.root / FOLDER
    return {
        "videos": _states(project.videos, list(video_paths(project.videos).values())),
        "annotations": annotations,
        **({"reviews": _states(folder, sorted(folder.rglob("*.eaf")))} if reviews else {}),
    }


def annotation_digest(place: Path, name: str) -> str:
    """sha256 of an annotation file by its path as `files_of` names it; empty where it cannot be read."""
    path = (place if place.is_dir() else place.parent) / name
    with contextlib.suppress(OSError):
        return sha256_of_file(path) if path.is_file() else ""  # a pipe would be waited for
    return ""


def _annotation_states(place: Path) -> dict[str, list[int | str]]:
    with contextlib.suppress(AnnotationError):
        return _states(place, annotation_paths(place)) if place.is_dir() else _states(place.parent, [place])
    return {}


def _states(root: Path, paths: Sequence[Path]) -> dict[str, list[int | str]]:
    found: dict[str, list[int | str]] = {}
    for path in paths:
        with contextlib.suppress(OSError, UnicodeError):
            status = path.stat()
            name = path.relative_to(root).as_posix()
            name.encode()
            found[name] = [status.st_size, status.st_mtime_ns]
    return found
