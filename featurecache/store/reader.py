"""Reading: a consistent view of a cache, safe while others write, and itself writing nothing.

`FeatureCache.open` takes a snapshot of the feature spaces. `load` reads rows straight into the result and
checks every one against its own checksum; what is not there or not right is an error, never a fill value.
Where damage shows up only then, the segment is left out and another copy of the row is used if there is
one. Not here: planning what to extract (`missing` only compares), and repair.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurecache.errors import (
    AmbiguousSpaceError,
    CacheFormatError,
    CacheNotFoundError,
    DamagedSegmentError,
    FingerprintMismatchError,
    MissingFeaturesError,
    NewerFormatError,
)
from featurecache.spec import differences
from featurecache.store import format, layout
from featurecache.store.clip_columns import PART_CLIPS, Clip, Clips, Wanted, parse_clip_ids
from featurecache.store.index import Damage, lacking, read_index, segment_names
from featurecache.store.view import Attempt, Space, View


class FeatureCache:
    """Cached features, read-only. Make one with `FeatureCache.open`."""

    def __init__(self, root: Path, views: Mapping[str, View], unplaced: Sequence[Damage]) -> None:
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
            views[space.fingerprint] = View(folder, space, index, damage)
        return cls(root, views, unplaced)

    @classmethod
    def open_if_made(cls, path: Path | str) -> Self | None:
        """As `open`; None where there is no cache yet."""
        with contextlib.suppress(CacheNotFoundError):
            return cls.open(path)
        return None

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
        return self._load_from(self._choose(tap, pooling, space), clips, clip_ids, View.read_features)

    def timestamps_us(
        self, clip_ids: Sequence[str], tap: str | None = None, pooling: str | None = None, space: str | None = None
    ) -> npt.NDArray[np.int64]:
        """Presentation times of the frames each clip's feature was computed from, shape (N, T).

        Arguments and errors as for `load`.
        """
        clips = parse_clip_ids(clip_ids)
        return self._load_from(self._choose(tap, pooling, space), clips, clip_ids, View.read_timestamps)

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
            yield names, self._load_from(fingerprint, clips, names, View.read_features)

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
        view, clips = self._views.get(fingerprint), list(dict.fromkeys(clips))
        if view is None:
            return clips
        spans = [(start_us, end_us) for _, start_us, end_us in clips]
        wanted = Wanted.of([digest for digest, _, _ in clips], np.arange(len(clips)), spans)
        return list(compress(clips, lacking([view.index], wanted)))

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
        self, fingerprint: str, clips: Clips, names: Sequence[str], read: Callable[[View, Any], Attempt]
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


def _without_record(folder: Path) -> list[Damage]:
    """Damage of a feature space's folder that has rows but no record; a folder just being made is none."""
    if not segment_names(folder):
        return []
    reason = (
        f"feature space {folder.name} must have its {format.RECORD}, but that is not there. "
        "Run featurecache extract with the settings of this space: its rows are then found again."
    )
    return [Damage(f"spaces/{folder.name}", None, reason)]
