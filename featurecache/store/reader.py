"""Reading: a consistent view of a cache, safe while others write, and itself writing nothing.

`FeatureCache.open` takes a snapshot of the feature spaces. `load` reads rows straight into the result and
checks every one against its own checksum; what is not there or not right is an error, never a fill value.
Where damage shows up only then, the segment is left out and another copy of the row is used if there is
one. Not here: planning what to extract (`missing` only compares), and repair.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurecache.errors import (
    AmbiguousSpaceError,
    CacheFormatError,
    DamagedSegmentError,
    FingerprintMismatchError,
    MissingFeaturesError,
    NewerFormatError,
)
from featurecache.spec import FeatureSpace, canonical_json, differences
from featurecache.store import format, layout
from featurecache.store.checksums import wrong_rows
from featurecache.store.clip_columns import PART_CLIPS, Clip, Clips, parse_clip_ids
from featurecache.store.index import Damage, SpaceIndex, absent, read_index, segment_names
from featurecache.store.record import STORED_DTYPES, damaged
from featurecache.store.segment import Segment, as_byte_rows, read_rows, read_timestamps

_SHOWN = 5
_PART_BYTES = 8 << 20
_THREADS = 4  # reading and checksums of large pieces leave the interpreter to others


@dataclass(frozen=True)
class Space:
    """A feature space in a cache.

    Attributes:
        fingerprint: 64 hex digits.
        tap: Where in the backbone.
        pooling: How tokens became one array.
        stored_dtype: "float16", "float32" or "bfloat16".
        row_shape: Shape of one feature; empty while there are no rows.
        rows: Clips it holds, each counted once.
        bytes: Size on disk of the segments in use.
        segments: How many.
        inputs: Everything the fingerprint covers.
        provenance: What computed the rows, each variant once.
        folder: Name under `spaces/`.
    """

    fingerprint: str
    tap: str
    pooling: str
    stored_dtype: str
    row_shape: tuple[int, ...]
    rows: int
    bytes: int
    segments: int
    inputs: Mapping[str, Any]
    provenance: tuple[Mapping[str, Any], ...]
    folder: str

    @property
    def dim(self) -> int:
        """Feature width D; 0 while there are no rows."""
        return self.row_shape[-1] if self.row_shape else 0


class FeatureCache:
    """Cached features, read-only. Make one with `FeatureCache.open`."""

    def __init__(self, root: Path, views: Mapping[str, "_View"], unplaced: Sequence[Damage]) -> None:
        self._root = root
        self._views = dict(views)
        self._unplaced = tuple(unplaced)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Takes a snapshot; a feature space whose own record is damaged is named in `damage`, the others are served.

        Raises:
            CacheNotFoundError: If there is none.
            CacheFormatError: If the folder is not a cache, or of a newer format version.
            CacheReadError: If the disk refuses to give something.
        """
        root = Path(path)
        try:
            layout.read_cache_record(root)
        except (FileNotFoundError, NotADirectoryError):
            raise layout.no_cache(root) from None
        views, unplaced = {}, []
        for folder in layout.space_folders(root):
            try:
                space = layout.read_space(folder)
            except (FileNotFoundError, NotADirectoryError):
                unplaced += _without_record(folder)
                continue
            except NewerFormatError:
                raise
            except (CacheFormatError, FingerprintMismatchError) as error:  # the other feature spaces are served
                unplaced.append(Damage(f"spaces/{folder.name}/{format.RECORD}", None, str(error)))
                continue
            index, damage = read_index(folder, space.fingerprint, {})
            views[space.fingerprint] = _View(folder, space, index, damage)
        return cls(root, views, unplaced)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The feature spaces, by folder name."""
        return tuple(view.describe() for view in self._views.values())

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What was found damaged so far; its rows are not served."""
        return (*self._unplaced, *(one for view in self._views.values() for one in view.damage))

    def load(
        self, clip_ids: Sequence[str], tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> npt.NDArray[Any]:
        """Features of clips.

        Args:
            clip_ids: `<16 hex digits>-<start_us>-<end_us>`, any order, repeats allowed.
            tap: Where in the backbone; `final` where neither this nor `space` is given.
            pooling: How tokens became one array; `mean` where neither this nor `space` is given.
            space: Fingerprint, or its first digits: says alone which feature space is meant.

        Returns:
            Features in the order asked, shape (N, D) or (N, ...), in the stored dtype. numpy has no bfloat16: such
            features come as their bits, uint16. `torch.from_numpy(rows).view(torch.bfloat16)` makes them a tensor
            without a copy, `featurecache.store.bfloat16.to_float32(rows)` an array of floats.

        Raises:
            MissingFeaturesError: If the cache lacks any of them, or the feature space.
            DamagedSegmentError: If a row is missing and a damaged segment may have held it.
            AmbiguousSpaceError: If several feature spaces match.
            ClipTableError: If an id is malformed.
            CacheReadError: If the disk refuses to give something.
        """
        clips = parse_clip_ids(clip_ids)
        return self._load_from(self._choose(tap, pooling, space), clips, clip_ids, _View.read_features)

    def timestamps_us(
        self, clip_ids: Sequence[str], tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> npt.NDArray[np.int64]:
        """Presentation times of the frames each clip's feature was computed from, shape (N, T).

        Arguments and errors as for `load`.
        """
        clips = parse_clip_ids(clip_ids)
        return self._load_from(self._choose(tap, pooling, space), clips, clip_ids, _View.read_timestamps)

    def iterate(
        self, batch_rows: int, tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        """All features in the order they lie on disk, in memory for one batch at a time.

        Args:
            batch_rows: Rows of a batch; the last may be smaller.
            tap: As for `load`.
            pooling: As for `load`.
            space: As for `load`.

        Yields:
            (clip ids, features), shape (batch, ...).

        Raises:
            MissingFeaturesError, DamagedSegmentError, AmbiguousSpaceError, CacheReadError: As for `load`.
        """
        fingerprint = self._choose(tap, pooling, space)
        index = self._views[fingerprint].index
        order = index.in_stored_order()
        for start in range(0, len(order), batch_rows):
            positions = order[start : start + batch_rows]
            names = index.clip_names(positions)
            clips = Clips(index.clips.prefixes[positions], index.span_us[positions])
            yield names, self._load_from(fingerprint, clips, names, _View.read_features)

    def clip_ids(self, tap: str | None = None, pooling: str | None = None, space: str | None = None) -> list[str]:
        """Every clip of a feature space, in the order rows lie on disk."""
        return [format.clip_name(*clip) for part in self.clip_parts(tap, pooling, space) for clip in part]

    def clips(
        self, tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> list[tuple[str, int, int]]:
        """Every clip as (sha256 of the recording's content, start_us, end_us), in the order rows lie on disk."""
        return list(chain.from_iterable(self.clip_parts(tap, pooling, space)))

    def clip_parts(
        self, tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> Iterator[list[Clip]]:
        """The clips of `clips` in lists of bounded length, one at a time."""
        index = self._views[self._choose(tap, pooling, space)].index
        order = index.in_stored_order()
        names: dict[bytes, str] = {}  # one text for each recording, not for each of its clips
        for first in range(0, len(order), PART_CLIPS):
            part = order[first : first + PART_CLIPS]
            digests = index.video_sha256[part].view("V32").ravel().tolist()
            yield [
                (names.get(digest) or names.setdefault(digest, digest.hex()), start, end)
                for digest, (start, end) in zip(digests, index.span_us[part].tolist(), strict=True)
            ]

    def describe(self, tap: str | None = None, pooling: str | None = None, space: str | None = None) -> Space:
        """The one feature space that matches; arguments and errors as for `load`."""
        return self._views[self._choose(tap, pooling, space)].describe()

    def missing(self, clips: Iterable[tuple[str, int, int]], fingerprint: str) -> list[tuple[str, int, int]]:
        """Which clips a feature space lacks: the work left to do.

        Rows of damaged segments count as lacking, so that extracting again heals.

        Args:
            clips: (sha256 of the recording's content, 64 hex digits; start_us; end_us).
            fingerprint: Of the feature space; one that the cache has never seen lacks everything.

        Returns:
            Those that are lacking, each once, in the order given.
        """
        view = self._views.get(fingerprint)
        return list(dict.fromkeys(clips)) if view is None else absent([view.index], clips)

    def find(self, clip_id: str) -> tuple[Space, ...]:
        """The feature spaces that hold a clip."""
        clips = parse_clip_ids([clip_id])
        return tuple(view.describe() for view in self._views.values() if view.index.find(clips)[0] >= 0)

    def _choose(self, tap: str | None, pooling: str | None, fingerprint: str | None) -> str:
        """Fingerprint of the one space that matches."""
        if not fingerprint:
            tap, pooling = tap or "final", pooling or "mean"
        named = [view for view in self._views.values() if view.space.fingerprint.startswith(fingerprint or "")]
        matching = [view for view in named if tap in (None, view.space.tap) and pooling in (None, view.space.pooling)]
        matching = [view for view in matching if len(view.index) or view.damage] or matching
        feature = f"{tap or 'any tap'}/{pooling or 'any pooling'}" if tap or pooling else ""
        asked = " ".join(filter(None, (feature, (fingerprint or "")[:16])))
        if not matching:
            held = ", ".join(
                f"{view.space.tap}/{view.space.pooling} {view.space.fingerprint[:16]}"
                for view in named or self._views.values()
            )
            if fingerprint and named:
                raise MissingFeaturesError(
                    f"the feature space {fingerprint[:16]} must be the {feature} asked for, but it is {held}. "
                    "Leave tap and pooling out, or ask for its own."
                )
            if self._unplaced:
                raise DamagedSegmentError(
                    f"the cache must hold a feature space {asked}, but it holds {held or 'none'}, and one that cannot "
                    f"be read: {self._unplaced[0].reason}"
                )
            raise MissingFeaturesError(
                f"the cache must hold a feature space {asked}, but it holds {held or 'none'}. "
                "Ask for one of these, or run featurecache extract."
            )
        if len(matching) > 1:
            differing = sorted(differences(matching[0].space, matching[1].space))
            raise AmbiguousSpaceError(
                f"one feature space must match {asked}, but {len(matching)} do: "
                f"{', '.join(view.space.fingerprint[:16] for view in matching)} (they differ in "
                f"{', '.join(differing)}). Name the one you mean: --space FINGERPRINT (in Python space=)."
            )
        return matching[0].space.fingerprint

    def _load_from(
        self, fingerprint: str, clips: Clips, names: Sequence[str], read: "Callable[[_View, Any], _Attempt]"
    ) -> npt.NDArray[Any]:
        """Read rows; leave out segments found damaged meanwhile, until all is well or a row is lost."""
        excluded: dict[str, str] = {}
        while True:
            view = self._views[fingerprint]
            positions = view.index.find(clips)
            if (positions < 0).any():
                raise view.lacking([names[i] for i in np.flatnonzero(positions < 0).tolist()], len(names))
            values, bad = read(view, positions)
            if not bad:
                return values
            excluded |= bad
            index, damage = read_index(view.folder, fingerprint, excluded, use_checkpoint=False)
            self._views[fingerprint] = replace(view, index=index, damage=damage)


_Part = tuple[Segment, npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""A segment, its rows ascending, and their places in the result."""
_Attempt = tuple[npt.NDArray[Any], dict[str, str]]
"""Values, and the segments found damaged while reading them with the reason; values count if there are none."""


@dataclass(frozen=True, eq=False)
class _View:
    """One feature space as it was when last listed."""

    folder: Path
    space: FeatureSpace
    index: SpaceIndex
    damage: tuple[Damage, ...]

    def describe(self) -> Space:
        segments = self.index.segments
        provenance = {canonical_json(segment.provenance): None for segment in segments}
        return Space(
            fingerprint=self.space.fingerprint,
            tap=self.space.tap,
            pooling=self.space.pooling,
            stored_dtype=self.space.stored_dtype,
            row_shape=segments[0].row_shape if segments else (),
            rows=len(self.index),
            bytes=sum(segment.size_bytes for segment in segments),
            segments=len(segments),
            inputs=self.space.inputs,
            provenance=tuple(json.loads(text) for text in provenance),
            folder=self.folder.name,
        )

    def read_features(self, positions: npt.NDArray[np.int64]) -> _Attempt:
        """Rows by position in the index, each checked against its checksum."""
        segments = self.index.segments
        shape, dtype = (segments[0].row_shape, segments[0].dtype) if segments else ((), self.space.stored_dtype)
        features = np.empty((len(positions), *shape), STORED_DTYPES[dtype])
        if not len(positions):
            return features, {}
        folder, data, bad = f"{self.folder}/segments", as_byte_rows(features), {}

        def read_parts(parts: Sequence[_Part]) -> None:
            for segment, rows, places in parts:
                try:
                    read_rows(folder, segment, rows, data, places)
                except DamagedSegmentError as error:
                    bad[segment.segment_id] = str(error)

        per_part = max(1, _PART_BYTES // data.shape[1])
        parts = [
            (segment, rows[first : first + per_part], places[first : first + per_part])
            for segment, rows, places in self._by_segment(positions)
            for first in range(0, len(rows), per_part)
        ]
        with ThreadPoolExecutor(_THREADS if data.nbytes > _PART_BYTES else 1) as pool:
            list(pool.map(read_parts, [parts[turn::_THREADS] for turn in range(_THREADS)]))
            wrong = wrong_rows(data, self.index.row_crc32c[positions], pool.map)
        for place in wrong:
            segment = segments[self.index.segment[positions[place]]]
            [name] = self.index.clip_names(positions[place : place + 1])
            reason = f"the feature of clip {name} does not match its checksum"
            bad.setdefault(segment.segment_id, str(damaged(segment.segment_id, reason)))
        return features, bad

    def read_timestamps(self, positions: npt.NDArray[np.int64]) -> _Attempt:
        """Frame timestamps by position in the index."""
        segments = self.index.segments
        timestamps_us = np.empty((len(positions), segments[0].timestamps if segments else 0), np.int64)
        bad = {}
        for segment, rows, places in self._by_segment(positions):
            try:
                stored = read_timestamps(self.folder / "segments" / segment.segment_id, self.space.fingerprint)
                timestamps_us[places] = stored[rows]
            except DamagedSegmentError as error:
                bad[segment.segment_id] = str(error)
        return timestamps_us, bad

    def lacking(self, names: Sequence[str], asked: int) -> MissingFeaturesError | DamagedSegmentError:
        """The error for rows that are not visible."""
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        if self.damage:
            return DamagedSegmentError(
                f"the cache must hold every clip asked for, but {len(names)} of {asked} are not readable ({shown}) "
                f"and {len(self.damage)} segments are damaged, the first because {self.damage[0].reason}"
            )
        return MissingFeaturesError(
            f"the cache must hold every clip asked for, but {len(names)} of {asked} are missing from feature space "
            f"{self.space.fingerprint[:16]} ({shown}). Run featurecache extract."
        )

    def _by_segment(self, positions: npt.NDArray[np.int64]) -> Iterator[_Part]:
        """(segment, its rows ascending, their places among the positions)."""
        segment, row = self.index.segment[positions], self.index.row[positions].astype(np.int64)
        order = np.lexsort((row, segment))
        segment, row = segment[order], row[order]
        borders = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(order)]
        for start, stop in pairwise(borders):
            if stop > start:
                yield self.index.segments[segment[start]], row[start:stop], order[start:stop]


def _without_record(folder: Path) -> list[Damage]:
    """Damage of a feature space's folder that has rows but no record; a folder just being made is none."""
    if not segment_names(folder):
        return []
    reason = (
        f"feature space {folder.name} must have its {format.RECORD}, but that is not there. "
        "Run featurecache extract with the settings of this space: its rows are then found again."
    )
    return [Damage(f"spaces/{folder.name}", None, reason)]
