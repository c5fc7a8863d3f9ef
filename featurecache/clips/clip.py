"""Clips: windows of a recording, their ids, their targets, and the session a recording belongs to.

All times are integer microseconds, windows and intervals are half-open `[start, end)`, and the half
rule is decided in integers, so a target never depends on rounding. A target is 1, 0, or None where
nobody annotated. Pure functions: files, splits and the table on disk are elsewhere.
"""

import difflib
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Generic, Literal, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from featurecache.annotations import Interval
from featurecache.csv_fields import UNWRITABLE
from featurecache.errors import ClipTableError

SessionFrom = Literal["file", "folder", "pattern", "column"]

COLUMNS = ("clip_id", "recording", "session", "split", "start_s", "end_s")
"""The columns of `clips.csv` before the labels."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A window of a recording and its targets.

    Attributes:
        clip_id: `<first 16 hex digits of the recording's sha256>-<start_us>-<end_us>`.
        recording: Name of the recording, relative to the folder of videos.
        session: Group of recordings that splits never cut.
        split: "train", "validation", "test", or "" where the clip takes part in none.
        start_us: Start on the recording's clock.
        end_us: End on the recording's clock, exclusive.
        targets: One of 1, 0 or None for each label of the table; all None where unlabelled.
    """

    clip_id: str
    recording: str
    session: str
    split: str
    start_us: int
    end_us: int
    targets: tuple[int | None, ...]

    @property
    def labelled(self) -> bool:
        """Whether the clip can train or score: every target is known."""
        return is_labelled(self.targets)

    @property
    def content(self) -> str:
        """First 16 hex digits of the recording's sha256."""
        return self.clip_id.partition("-")[0]


Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Coded(Generic[Value]):
    """A column with few distinct values: clip n has `values[codes[n]]`, codes of shape (N,)."""

    codes: NDArray[np.int32]
    values: tuple[Value, ...]

    @classmethod
    def of(cls, cells: Iterable[Value]) -> Self:
        """The column of these values, each coded in the order of its first clip."""
        known: dict[Value, int] = {}
        codes = np.array([known.setdefault(cell, len(known)) for cell in cells], np.int32)
        return cls(codes, tuple(known))

    def __getitem__(self, position: int) -> Value:
        return self.values[int(self.codes[position])]


@dataclass(frozen=True, eq=False)
class ClipColumns(Sequence[Clip]):
    """Clips as columns: tens of bytes for each, whole tables compared at once; read row by row they are `Clip`s.

    Attributes:
        content: First 16 hex digits of the recording's sha256.
        recording: Name of the recording.
        session: Its session.
        split: Its split.
        span_us: Start and end, shape (N, 2), int64.
        targets: One of 1, 0 or None for each label.
    """

    content: Coded[str]
    recording: Coded[str]
    session: Coded[str]
    split: Coded[str]
    span_us: NDArray[np.int64]
    targets: Coded[tuple[int | None, ...]]

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> "ClipColumns":
        """The columns of clips; columns stay as they are."""
        if isinstance(clips, ClipColumns):
            return clips
        rows = tuple(clips)
        return cls(
            Coded.of(clip.content for clip in rows),
            Coded.of(clip.recording for clip in rows),
            Coded.of(clip.session for clip in rows),
            Coded.of(clip.split for clip in rows),
            np.array([(clip.start_us, clip.end_us) for clip in rows], np.int64).reshape(-1, 2),
            Coded.of(clip.targets for clip in rows),
        )

    @cached_property
    def rows(self) -> tuple[Clip, ...]:
        """Every clip as a record; made when the first one is asked for."""
        coded = (self.content, self.recording, self.session, self.split, self.targets)
        cells = ([column.values[code] for code in column.codes.tolist()] for column in coded)
        return tuple(
            Clip(clip_id(content, start, end), recording, session, split, start, end, targets)
            for content, recording, session, split, targets, (start, end) in zip(
                *cells, self.span_us.tolist(), strict=True
            )
        )

    def clip_ids(self, positions: NDArray[np.int64]) -> list[str]:
        """The ids of clips at these positions, shape (n,)."""
        contents = [self.content.values[code] for code in self.content.codes[positions].tolist()]
        spans = self.span_us[positions].tolist()
        return [clip_id(content, start, end) for content, (start, end) in zip(contents, spans, strict=True)]

    def among(self, names: Collection[str]) -> frozenset[str]:
        """Those ids that are of clips of the table."""
        contents = {name.partition("-")[0] for name in names}
        of_these = np.array([content in contents for content in self.content.values], bool)
        return frozenset(self.clip_ids(np.flatnonzero(of_these[self.content.codes]))).intersection(names)

    def __len__(self) -> int:
        return len(self.span_us)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...

    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.rows == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of lists


@dataclass(frozen=True)
class ClipTable:
    """All clips of a project, in order of recording and time, with the labels their targets follow."""

    labels: tuple[str, ...]
    clips: Sequence[Clip]

    @property
    def columns(self) -> ClipColumns:
        """The clips as columns."""
        return ClipColumns.of(self.clips)

    def of_labels(self, labels: Sequence[str]) -> "ClipTable":
        """The same clips with the targets of some labels alone, in the order given."""
        places = [self.labels.index(label) for label in labels]
        clips = (replace(clip, targets=tuple(clip.targets[at] for at in places)) for clip in self.clips)
        return ClipTable(tuple(labels), tuple(clips))


def is_labelled(targets: tuple[int | None, ...]) -> bool:
    """Whether every target is known, and there is one."""
    return bool(targets) and None not in targets


def by_recording(table: ClipTable) -> dict[str, list[Clip]]:
    """Recording -> its clips, in the table's order."""
    found: dict[str, list[Clip]] = {}
    for clip in table.clips:
        found.setdefault(clip.recording, []).append(clip)
    return found


def clip_id(sha256: str, start_us: int, end_us: int) -> str:
    """The id of a clip: content and time, never a file name."""
    return f"{sha256[:16]}-{start_us}-{end_us}"


def clip_windows(duration_us: int, length_us: int, stride_us: int) -> list[tuple[int, int]]:
    """Windows of `length_us` that start every `stride_us`, both above 0, and end by `duration_us`."""
    return [(start, start + length_us) for start in range(0, duration_us - length_us + 1, stride_us)]


def union_of(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint spans in order that cover the same time; what touches is joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def covered_us(windows: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Time of each window that the union of the spans covers.

    Args:
        windows: `[start, end)` in microseconds, any order, overlaps allowed.
        spans: `[start, end)` in microseconds, any order, overlaps counted once.

    Returns:
        Microseconds, shape (N,).
    """
    if not windows:
        return np.zeros(0, np.int64)
    edges = np.array(windows, np.int64)  # (N, 2)
    first, last = int(edges.min()), int(edges.max())
    union = union_of([(max(start, first), min(end, last)) for start, end in spans])
    if not union:
        return np.zeros(len(windows), np.int64)
    starts, ends = np.array(union, np.int64).T  # (M,), (M,)
    before = np.concatenate([[0], np.cumsum(ends - starts)])  # covered time before span m, (M + 1,)
    index = np.searchsorted(starts, edges, side="right")  # spans that began by each edge, (N, 2)
    overhang = np.maximum(ends[index - 1] - edges, 0) * (index > 0)  # of the last of them, beyond the edge
    until = before[index] - overhang  # covered time before each edge, (N, 2)
    covered: NDArray[np.int64] = until[:, 1] - until[:, 0]
    return covered


def clip_targets(
    windows: Sequence[tuple[int, int]],
    intervals: Sequence[Interval] | None,
    labels: Sequence[str],
    annotated: Sequence[tuple[int, int]] | None = None,
    min_overlap_us: int | None = None,
) -> list[tuple[int | None, ...]]:
    """Targets of a recording's clips: a label is on when its intervals cover enough of the clip, by default half.

    Source: Guerriero et al., section 2 (at least 50% of the clip annotated with the label).

    Args:
        windows: The clips, `[start, end)` in microseconds, N of them.
        intervals: The recording's intervals of any label, or None where it has no annotation.
        labels: The labels asked for, C of them.
        annotated: Spans that were annotated. A clip not wholly inside them is unlabelled. None: all of it was.
        min_overlap_us: Time that a label must cover; None: half of the clip.

    Returns:
        N tuples of C targets: 1, 0, or None throughout where the clip is unlabelled.
    """
    unlabelled: tuple[int | None, ...] = (None,) * len(labels)
    if intervals is None or not labels:
        return [unlabelled] * len(windows)
    lengths = np.array([end - start for start, end in windows], np.int64)
    spans: dict[str, list[tuple[int, int]]] = {label: [] for label in labels}
    for interval in intervals:
        if interval.label in spans:
            spans[interval.label].append((interval.start_us, interval.end_us))
    needed = lengths if min_overlap_us is None else np.full_like(lengths, 2 * min_overlap_us)
    on = np.stack([2 * covered_us(windows, spans[label]) >= needed for label in labels], axis=1)  # (N, C)
    targets: list[tuple[int | None, ...]] = [tuple(row) for row in on.astype(int).tolist()]
    if annotated is None:
        return targets
    inside = (covered_us(windows, annotated) == lengths).tolist()
    return [target if known else unlabelled for target, known in zip(targets, inside, strict=True)]


def check_labels(labels: Sequence[str]) -> None:
    """Refuses labels that cannot be columns of the clip table.

    Raises:
        ClipTableError: If a label is empty, padded with spaces, doubled, a column's name, or not writable.
    """
    seen: set[str] = set()
    for label in labels:
        fault = (
            "it is empty"
            if not label.strip()
            else "it begins or ends with a space"
            if label != label.strip()
            else "it holds a control character"
            if UNWRITABLE.search(label)
            else "it is the name of another column"
            if label in COLUMNS
            else "it stands there twice"
            if label in seen
            else None
        )
        if fault:
            raise ClipTableError(
                f"labels must be distinct, plain names, but {label!r} is not: {fault}. "
                "Rename it in the annotations and the settings."
            )
        seen.add(label)


def session_of(
    name: str,
    how: SessionFrom,
    *,
    pattern: str | None = None,
    column: Mapping[str, str] | None = None,
) -> str:
    """The session of a recording.

    Args:
        name: The recording's path relative to the folder of videos, with "/".
        how: "file": the path without its suffix, so each recording is a session. "folder": the first folder of
            the path, so that cameras in sub-folders of a session stay together. "pattern": the one group of a
            regular expression, searched in the path. "column": looked up by name.
        pattern: The regular expression, for "pattern".
        column: Recording -> session, for "column".

    Raises:
        ClipTableError: If the recording has no session by that rule, or the pattern is unusable.
    """
    path = PurePosixPath(name)
    if how == "file":
        session = str(path.with_suffix(""))
    elif how == "folder":
        if len(path.parts) < 2:
            raise ClipTableError(
                f"every recording must lie in its session's folder, but {name!r} lies beside the folders. "
                'Move it into one, or set session_from = "file" or "pattern".'
            )
        session = path.parts[0]
    elif how == "pattern":
        session = _searched(name, pattern)
    else:
        session = _looked_up(name, column or {})
    session = session.strip()
    if not session or UNWRITABLE.search(session):
        raise ClipTableError(
            f"a session must be a plain name, but {name!r} gives {session!r} by {how}. "
            "Rename it, or choose another session_from."
        )
    return session


def _searched(name: str, pattern: str | None) -> str:
    try:
        compiled = re.compile(pattern or "")
    except re.error as error:
        raise ClipTableError(
            f"session_pattern must be a regular expression, but {pattern!r} is not: {error}. Correct it."
        ) from error
    if compiled.groups != 1:
        raise ClipTableError(
            f"session_pattern must have exactly one group (...), but {pattern!r} has {compiled.groups}. "
            "Put brackets around the session's part, and write others as (?:...)."
        )
    match = compiled.search(name)
    if match is None or not match.group(1):
        raise ClipTableError(
            f"session_pattern must match every recording, but {pattern!r} finds no session in {name!r}. "
            "Correct the pattern, or rename the recording."
        )
    return match.group(1)


def _looked_up(name: str, column: Mapping[str, str]) -> str:
    if name not in column:
        near = difflib.get_close_matches(name, column, n=1)
        hint = f"The nearest there is {near[0]!r}. " if near else ""
        raise ClipTableError(
            f"every recording must have a session, but the session column names none for {name!r}. {hint}"
            "Add a row for it, or take the recording out of the folder."
        )
    return column[name]
