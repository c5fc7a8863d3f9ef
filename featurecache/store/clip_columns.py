"""Clips as columns of numbers: how an index looks up millions of them, a bounded part at a time."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.errors import ClipTableError
from featurecache.store import format

Clip = tuple[str, int, int]
"""sha256 of the recording's content (64 hex digits), start_us, end_us."""

_START_FACTOR, _END_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # any odd numbers
_CLIP_IDS = re.compile(rf"{format.CLIP_ID.pattern}(?:,{format.CLIP_ID.pattern})*")
PART_CLIPS = 1 << 16
"""So many clips are turned from text to numbers, or back, at once."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips to look up, column by column.

    Attributes:
        prefixes: First eight bytes of each digest as a big-endian number, shape (N,), uint64.
        span_us: Start and end, shape (N, 2), int64.
    """

    prefixes: npt.NDArray[np.uint64]
    span_us: npt.NDArray[np.int64]

    def hashes(self) -> npt.NDArray[np.uint64]:
        """One number for each clip, shape (N,)."""
        spans = self.span_us.view(np.uint64)
        hashes: npt.NDArray[np.uint64] = (self.prefixes ^ (spans[:, 0] * _START_FACTOR)) + spans[:, 1] * _END_FACTOR
        return hashes


@dataclass(frozen=True, eq=False)
class Wanted:
    """Clips of whole recordings to look up.

    Attributes:
        digests: sha256 of each of R recordings, shape (R, 32), uint8.
        recording: Which of them each clip is of, shape (N,).
        span_us: Start and end, shape (N, 2), int64.
    """

    digests: npt.NDArray[np.uint8]
    recording: npt.NDArray[np.int64]
    span_us: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sha256: Sequence[str], recording: npt.ArrayLike, span_us: npt.ArrayLike) -> "Wanted":
        """As the attributes, digests as 64 hex digits each.

        Raises:
            ClipTableError: If a digest is none; it is named.
        """
        spans = np.asarray(span_us, np.int64).reshape(-1, 2)
        return cls(_digest_rows(sha256), np.broadcast_to(np.asarray(recording, np.int64), len(spans)), spans)

    def parts(self) -> Iterator[tuple[slice, npt.NDArray[np.uint8], Clips]]:
        """Some clips at a time: which, their digests (n, 32), and the clips as columns."""
        prefixes = digest_prefixes(self.digests)
        for first in range(0, len(self.span_us), PART_CLIPS):
            part = slice(first, first + PART_CLIPS)
            of = self.recording[part]
            yield part, self.digests[of], Clips(prefixes[of], self.span_us[part])


def digest_prefixes(video_sha256: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of digests (N, 32) as numbers, (N,)."""
    return np.ascontiguousarray(video_sha256[:, :8]).view(">u8").ravel().astype(np.uint64)


def parse_clip_ids(clip_ids: Sequence[str]) -> Clips:
    """Clip ids as columns.

    Args:
        clip_ids: `<16 hex digits>-<start_us>-<end_us>`.

    Raises:
        ClipTableError: If one is not of this form; it is named.
    """
    if not clip_ids:
        return Clips(np.empty(0, np.uint64), np.empty((0, 2), np.int64))
    joined = ",".join(clip_ids)
    if not _CLIP_IDS.fullmatch(joined) or joined.count(",") != len(clip_ids) - 1:
        wrong = next(name for name in clip_ids if not format.CLIP_ID.fullmatch(name))
        raise ClipTableError(
            f"a clip id must be <16 hex digits>-<start_us>-<end_us>, but {wrong!r} was asked for. "
            "Take the ids from clips.csv."
        )
    parts = joined.replace(",", "-").split("-")
    prefixes = np.frombuffer(bytes.fromhex("".join(parts[0::3])), ">u8").astype(np.uint64)
    span_us = np.empty((len(clip_ids), 2), np.int64)
    for column in (0, 1):
        span_us[:, column] = np.fromstring(" ".join(parts[column + 1 :: 3]), np.int64, sep=" ")
    return Clips(prefixes, span_us)


def _digest_rows(sha256: Sequence[str]) -> npt.NDArray[np.uint8]:
    wrong = next((digest for digest in sha256 if not format.SHA256.fullmatch(digest)), None)
    if wrong is not None:
        raise ClipTableError(f"a recording's sha256 must be 64 hex digits, but is {wrong!r}. Pass the whole digest.")
    return np.frombuffer(bytes.fromhex("".join(sha256)), np.uint8).reshape(-1, 32)
