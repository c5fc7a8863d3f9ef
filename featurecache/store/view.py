"""One feature space of a cache as it was when last listed: what it is, and its rows, each checked as it is read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import DamagedSegmentError, MissingFeaturesError
from featurecache.spec import FeatureSpace, canonical_json
from featurecache.spelling import listed
from featurecache.store.checksums import wrong_rows
from featurecache.store.index import Damage, SpaceIndex
from featurecache.store.record import STORED_DTYPES, damaged
from featurecache.store.segment import Segment, as_byte_rows, read_rows, read_timestamps

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


_Part = tuple[Segment, npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""A segment, its rows ascending, and their places in the result."""
Attempt = tuple[npt.NDArray[Any], dict[str, str]]
"""Values, and the segments found damaged while reading them with the reason; values count if there are none."""


@dataclass(frozen=True, eq=False)
class View:
    """One feature space as it was when last listed."""

    folder: Path
    space: FeatureSpace
    index: SpaceIndex
    damage: tuple[Damage, ...]

    def describe(self) -> Space:
        """What the cache tells of it."""
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

    def read_features(self, positions: npt.NDArray[np.int64]) -> Attempt:
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

    def read_timestamps(self, positions: npt.NDArray[np.int64]) -> Attempt:
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
        shown = listed(names)
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
