"""Writing: rows are gathered in memory and committed as whole segments.

A commit writes every file of a segment under `staging/`, syncs files and folders, and renames the folder
into `segments/`: that rename is the commit point, and only after `segments/` itself is synced are rows
said to be saved. Any number of processes on any machines may write one cache at once; none waits for
another, and a row that two of them computed is shown once. What fails leaves earlier commits untouched and
the rows in memory, so that the same commit can be tried again when there is space. Not here: planning
(ask the reader what is missing) and care of what is already stored.
"""

import contextlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurecache.errors import (
    CacheFormatError,
    CacheReadError,
    CacheWriteError,
    ClipTableError,
    ConstantFeatureWarning,
    DamagedSegmentError,
    FingerprintMismatchError,
    NonFiniteFeatureError,
    WithdrawnRecordingWarning,
)
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16, files, format
from featurecache.store.claims import Claims
from featurecache.store.clip_columns import Wanted
from featurecache.store.commit import commit_segment, writing
from featurecache.store.index import read_index, segment_names, segments_after_checkpoint, write_checkpoint
from featurecache.store.layout import as_json, discard, make_cache, make_space, remove_empty_space
from featurecache.store.live import committing, live_cache
from featurecache.store.record import STORED_DTYPES, read_record
from featurecache.store.rewrite import purge
from featurecache.store.segment import Rows, encode_segment
from featurecache.store.withdrawn import read_withdrawn, refusal

_CHECKPOINT_EVERY = 32  # segments that a reader may have to open one by one
_CHECKPOINT_AGE_S = 600.0  # a writer that goes on for days looks so often whether there are that many
_LONGEST_US = 10**18


@dataclass(frozen=True, eq=False)
class Row:
    """One clip's feature.

    Attributes:
        video_sha256: Digest of the recording's content, 64 hex digits.
        start_us: Start of the clip on the recording's clock.
        end_us: Its end, later than the start.
        feature: Shape (D,), or (T, D) or (S, D) for features of each frame or token. Of a space stored in bfloat16
            floats, which are rounded, or bfloat16's bits as uint16.
        timestamps_us: Presentation time of each decoded frame, shape (T,), int64.
    """

    video_sha256: str
    start_us: int
    end_us: int
    feature: npt.NDArray[Any]
    timestamps_us: npt.NDArray[np.int64]


class CacheWriter:
    """Appends rows of one feature space to a cache, making the cache where there is none.

    A context manager: leaving it commits what is gathered, also when an exception (an interruption
    included) is on its way out. Rows may be lost only between two commits, never after `rows_saved`
    counted them.

    Args:
        root: The cache's folder; its parent must exist.
        space: The feature space of every row.
        provenance: JSON-ready; what computed the rows (library versions, device). Kept in each segment.
        max_rows: Commit when this many rows are gathered,
        max_age_s: or when a row is added this long after the oldest,
        max_bytes: or when the gathered features reach this size.

    Attributes:
        space: The feature space.

    Raises:
        CacheFormatError: If the folder is something else than a cache this toolkit can write.
        FingerprintMismatchError: If the feature space's folder describes another one.
        CacheWriteError: If the cache cannot be made.
    """

    def __init__(
        self,
        root: Path | str,
        space: FeatureSpace,
        provenance: Mapping[str, Any],
        *,
        max_rows: int = 1024,
        max_age_s: float = 60.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        if space.stored_dtype not in STORED_DTYPES:
            raise CacheFormatError(
                f"stored_dtype must be one of {', '.join(STORED_DTYPES)}, but is {space.stored_dtype!r}. "
                "Change it in the feature space."
            )
        self._root = Path(root)
        self.space, self._fingerprint = space, space.fingerprint
        self._dtype_name, self._dtype = space.stored_dtype, STORED_DTYPES[space.stored_dtype]
        self._provenance = as_json(provenance)
        self._max_rows, self._max_age_s, self._max_bytes = max_rows, max_age_s, max_bytes
        self._rows: list[Row] = []
        self._rows_saved = 0
        self._bytes = 0
        self._oldest_s = 0.0
        self._checkpoint_s = time.monotonic()
        self._uncertain: tuple[str, int] | None = None
        self._committed: list[str] = []
        with writing(self._root):
            make_cache(self._root)
            self._made_space = not files.exists(self._root / "spaces" / format.space_folder_name(space))
            self._folder = make_space(self._root, space)
            self._check_writable()
            self._row_shape, self._frames = self._stored_shapes()
            self._withdrawn = read_withdrawn(self._root)
        self._claims = Claims(self._folder)

    @property
    def rows_saved(self) -> int:
        """Rows that this writer has committed durably."""
        return self._rows_saved

    def claim(self, video_sha256: str) -> bool:
        """Whether this process should compute a recording's clips; False while it is in progress in another.

        A claim lasts until this writer is left. It saves effort and protects nothing: see `claims.py`.

        Raises:
            CacheWriteError: If the cache cannot be written.
        """
        with writing(self._root):
            return self._claims.take(video_sha256)

    def lacks(self, clips: Wanted) -> npt.NDArray[np.bool_]:
        """Which clips the feature space lacks by now, shape (N,); errors as of `LiveCache.lacks`."""
        return live_cache(self._root).lacks(clips, self.space)

    def add(self, row: Row) -> None:
        """Gather a row, and commit when enough are gathered.

        Raises:
            WithdrawnRecordingError: If its recording was withdrawn from this cache.
            NonFiniteFeatureError: If the feature holds NaN or infinity, or would after storage.
            FingerprintMismatchError: If its shape is not that of the space's other rows.
            CacheWriteError: If a commit was due and failed; the row stays gathered.
        """
        self._rows.append(self._checked(row))
        if len(self._rows) == 1:
            self._oldest_s = time.monotonic()
        self._bytes += self._rows[-1].feature.nbytes
        is_old = time.monotonic() - self._oldest_s >= self._max_age_s
        if len(self._rows) >= self._max_rows or self._bytes >= self._max_bytes or is_old:
            self.commit()

    def commit(self) -> None:
        """Make all gathered rows durable and visible, or none of them.

        Raises:
            CacheWriteError: If that failed. The rows stay gathered: call again when the cause is gone.
        """
        with writing(self._root):
            self._resolve_uncertain()
            self._drop_withdrawn()
            if not self._rows:
                return
            rows = Rows(
                features=np.stack([row.feature for row in self._rows]),
                video_sha256=np.frombuffer(
                    bytes.fromhex("".join(row.video_sha256 for row in self._rows)), np.uint8
                ).reshape(-1, 32),
                span_us=np.array([(row.start_us, row.end_us) for row in self._rows], np.int64),
                timestamps_us=np.stack([row.timestamps_us for row in self._rows]),
            )
            segment_id = format.new_segment_id()
            contents = encode_segment(self._fingerprint, rows, self._provenance)
            self._uncertain = (segment_id, len(self._rows))
            try:
                with committing(self._root, self._fingerprint, segment_id):
                    commit_segment(self._folder, segment_id, contents)
            except FileNotFoundError:  # a withdrawal takes what is staged of the recording
                self._read_marks()
                if not any(self._withdrawn.covers(row.video_sha256) for row in self._rows):
                    raise
                self.commit()
                return
            self._refuse_withdrawn(segment_id)
            self._count_saved()
        is_said = "asked" in self.space.inputs  # a model may say the same of every clip: its run tells
        if len(rows.features) > 1 and not is_said and (rows.features == rows.features[0]).all():
            warnings.warn(
                f"features must differ between clips, but all {len(rows.features)} of segment {segment_id} are equal. "
                "Check the tap, the pooling and the prompt, or whether the recordings show anything.",
                ConstantFeatureWarning,
                stacklevel=2,
            )
        if time.monotonic() - self._checkpoint_s >= _CHECKPOINT_AGE_S:
            self._refresh_checkpoint()

    def withdraw(self) -> None:
        """Undo everything: drop the gathered rows, remove the committed ones, and the feature space if this made it.

        What a withdrawal of a recording or a compaction has written in place of committed segments goes too, but not
        where it holds rows of others: hold the cache's turn (`turns.py`) from before the first commit. A feature
        space that another writer has started to use stays.

        Raises:
            CacheWriteError: If something cannot be removed; running it again goes on.
        """
        self._rows.clear()
        self._bytes = 0
        with writing(self._root):
            self._resolve_uncertain()
            for name in self._own_segments():
                discard(self._folder / "segments" / name)
            self._rows_saved = 0
            self._committed.clear()
            if self._made_space:
                remove_empty_space(self._root, self.space)

    def _own_segments(self) -> list[str]:
        """Segments that hold rows of this writer alone, the later generations last."""
        own, later = set(self._committed), []
        for name in segment_names(self._folder) if own else ():
            with contextlib.suppress(DamagedSegmentError):
                replaced = read_record(self._folder / "segments" / name, self._fingerprint)["replaces"]
                if replaced and own.issuperset(replaced):
                    later.append(name)
        return [*(name for name in self._committed if files.exists(self._folder / "segments" / name)), *later]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._claims:  # released when the rows are there for others to see
            if error is None:
                self.commit()
            else:
                try:
                    self.commit()
                except CacheWriteError as second:
                    error.add_note(f"{len(self._rows)} gathered rows could not be saved either: {second}")
        self._refresh_checkpoint()

    def _drop_withdrawn(self) -> None:
        """Leave out gathered rows of recordings that were withdrawn meanwhile."""
        self._read_marks()
        kept = [row for row in self._rows if not self._withdrawn.covers(row.video_sha256)]
        dropped = len(self._rows) - len(kept)
        if dropped:
            self._rows, self._bytes = kept, sum(row.feature.nbytes for row in kept)
            _tell_withdrawn(dropped)

    def _refuse_withdrawn(self, segment_id: str) -> None:
        """Take out of a segment that is now visible what was withdrawn since its rows were gathered."""
        self._read_marks()
        if self._withdrawn:
            gone = purge(self._root, self._folder, self._fingerprint, segment_id, self._withdrawn.rows)
            self._rows_saved -= gone.rows  # they are counted with their segment
            if gone.rows:
                _tell_withdrawn(gone.rows)

    def _read_marks(self) -> None:
        """Learn which recordings are withdrawn; a failure is one of the commit, which can be tried again."""
        try:
            self._withdrawn = read_withdrawn(self._root)
        except CacheReadError as error:
            raise error.__cause__ or error from None

    def _resolve_uncertain(self) -> None:
        """Learn whether the last commit, if it ended in an error, reached its commit point."""
        if self._uncertain is None:
            return
        segment_id, _ = self._uncertain
        if files.exists(self._folder / "segments" / segment_id):
            # A failed sync of a folder is no lost page: what it reports comes from the journal or the
            # server and stays an error until names are durable, so that asking again is sound.
            files.sync_folder(self._folder / "segments")
            self._refuse_withdrawn(segment_id)
            self._count_saved()
        self._uncertain = None

    def _count_saved(self) -> None:
        """Drop the rows of the segment whose commit was uncertain: they are on disk."""
        if self._uncertain is not None:
            segment_id, count = self._uncertain
            self._uncertain = None
            self._committed.append(segment_id)
            self._rows_saved += count
            self._bytes -= sum(row.feature.nbytes for row in self._rows[:count])
            del self._rows[:count]
            self._oldest_s = time.monotonic()

    def _checked(self, row: Row) -> Row:
        """The row as it will be stored, in memory of its own."""
        name = format.clip_name(row.video_sha256, row.start_us, row.end_us)
        if not format.SHA256.fullmatch(row.video_sha256):
            raise ClipTableError(
                f"video_sha256 must be 64 hex digits, but clip {name} has {row.video_sha256!r}. Pass the file's sha256."
            )
        if self._withdrawn.covers(row.video_sha256):
            raise refusal(row.video_sha256)
        if not 0 <= row.start_us < row.end_us < _LONGEST_US:
            raise ClipTableError(
                f"a clip must start at 0 or later and end after its start, but {name} does not. Fix the clip."
            )
        if not self._is_finite(row.feature):
            raise NonFiniteFeatureError(
                f"a feature must be finite, but that of clip {name} holds NaN or infinity. "
                "Run the backbone in bfloat16 or float32, or leave the clip out."
            )
        feature = self._stored(row.feature)
        if not self._is_finite(feature):
            largest = float(np.abs(self._floats(row.feature).astype(np.float64)).max())
            raise NonFiniteFeatureError(
                f"a feature must fit {self._dtype_name}, but that of clip {name} reaches {largest:.6g}. "
                'Store this feature space with stored_dtype = "float32".'
            )
        timestamps_us = np.array(row.timestamps_us, np.int64)
        if self._row_shape is None:
            self._row_shape, self._frames = feature.shape, len(timestamps_us)
        if (feature.shape, timestamps_us.shape) != (self._row_shape, (self._frames,)):
            raise FingerprintMismatchError(
                f"rows of one feature space must have one shape, but clip {name} has {feature.shape} from "
                f"{timestamps_us.shape} frames where others have {self._row_shape} from ({self._frames},). "
                "Name what differs in the feature space's inputs."
            )
        return Row(row.video_sha256, row.start_us, row.end_us, feature, timestamps_us)

    def _stored(self, feature: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The feature in the stored dtype, contiguous, in memory of its own; infinite where it does not fit."""
        if self._dtype == bfloat16.STORED and feature.dtype != bfloat16.STORED:
            return bfloat16.from_float32(feature)
        with np.errstate(over="ignore"):
            return np.array(feature, self._dtype, order="C")

    def _floats(self, feature: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return bfloat16.to_float32(feature) if feature.dtype == bfloat16.STORED else feature

    def _is_finite(self, feature: npt.NDArray[Any]) -> bool:
        if feature.dtype == bfloat16.STORED:
            return bfloat16.is_finite(feature)
        return bool(np.isfinite(feature).all())

    def _check_writable(self) -> None:
        """A folder that cannot be written must be known before hours of work, not after."""
        probe = self._folder / "staging" / format.new_segment_id()
        try:
            files.make_folder(probe)
        finally:
            files.remove_tree(probe)

    def _stored_shapes(self) -> tuple[tuple[int, ...] | None, int]:
        """Row shape and frames of a segment that is already there; None, 0 in an empty space."""
        for name in segment_names(self._folder):
            with contextlib.suppress(DamagedSegmentError):
                record = read_record(self._folder / "segments" / name, self._fingerprint)
                return tuple(record["row_shape"]), record["timestamps"]
        return None, 0

    def _refresh_checkpoint(self) -> None:
        """Spare readers opening many segments one by one; the rows are safe without."""
        self._checkpoint_s = time.monotonic()
        with contextlib.suppress(OSError):
            if segments_after_checkpoint(self._folder, self._fingerprint) >= _CHECKPOINT_EVERY:
                index, _ = read_index(self._folder, self._fingerprint, {})
                write_checkpoint(self._folder, self._fingerprint, index)


def _tell_withdrawn(rows: int) -> None:
    warnings.warn(
        f"{rows} computed rows are not saved: their recording was withdrawn meanwhile (featurecache cache "
        "forget). Leave it out of the recordings and of clips.csv.",
        WithdrawnRecordingWarning,
        stacklevel=4,
    )
