"""crc32c of rows, and of stretches of rows without reading them again.

A cyclic redundancy check is linear: for byte strings a and b, crc(ab) = shift(crc(a)) ^ crc(b), where
shift depends on the length of b alone. So the checksum of any sequence of rows follows from the rows' own
checksums. A loaded array is therefore checked in a few large pieces, at the speed of the processor's crc32
instruction, against checksums that were stored for each row and whatever order the rows were asked in.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import google_crc32c
import numpy as np
import numpy.typing as npt

_PIECE_BYTES = (1 << 20) + (1 << 16)  # from 1 MiB on, google_crc32c lets other threads run
_MOST_ROWS = 512  # rows per piece: one vectorised step each


def crc32c(data: bytes) -> int:
    """crc32c (Castagnoli) of bytes."""
    return int(google_crc32c.value(data))


def row_checksums(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """crc32c of each row.

    Args:
        rows: Bytes, shape (N, row bytes), contiguous.

    Returns:
        Checksums, shape (N,).
    """
    return np.fromiter(map(google_crc32c.value, rows), np.uint32, len(rows))


def wrong_rows(
    rows: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.uint32],
    run: Callable[..., Iterable[int]] = map,
) -> npt.NDArray[np.intp]:
    """Positions of the rows whose bytes do not have the expected checksum.

    Args:
        rows: Bytes, shape (N, row bytes), contiguous.
        expected: Checksums, shape (N,).
        run: Applies a function to each of a sequence: `map`, or that of an executor.

    Returns:
        Positions, ascending; empty when all is well.
    """
    row_bytes = rows.shape[1]
    per_piece = max(1, min(_MOST_ROWS, -(-_PIECE_BYTES // row_bytes)))
    pieces = len(rows) // per_piece
    whole = pieces * per_piece
    joined = rows[:whole].reshape(pieces, per_piece * row_bytes)
    found = np.fromiter(run(google_crc32c.value, joined), np.uint32, pieces)
    suspects = found != joined_checksums(expected[:whole].reshape(pieces, per_piece), row_bytes)
    candidates = [
        *(np.arange(piece * per_piece, (piece + 1) * per_piece) for piece in np.flatnonzero(suspects)),
        np.arange(whole, len(rows)),
    ]
    positions = np.concatenate(candidates)
    wrong: npt.NDArray[np.intp] = positions[row_checksums(rows[positions]) != expected[positions]]
    return wrong


def joined_checksums(checksums: npt.NDArray[np.uint32], row_bytes: int) -> npt.NDArray[np.uint32]:
    """crc32c of rows laid end to end, from the rows' own checksums.

    Args:
        checksums: crc32c of equally long rows, shape (pieces, rows per piece).
        row_bytes: Bytes of each row.

    Returns:
        crc32c of each piece, shape (pieces,).
    """
    tables = _shift_tables(row_bytes)
    joined = checksums[:, 0].copy()
    for column in range(1, checksums.shape[1]):
        shifted = tables[0][joined & 0xFF]
        for byte in (1, 2, 3):
            shifted ^= tables[byte][(joined >> np.uint32(8 * byte)) & 0xFF]
        joined = shifted ^ checksums[:, column]
    return joined


@lru_cache(maxsize=16)
def _shift_tables(length: int) -> npt.NDArray[np.uint32]:
    """What `length` following bytes do to a checksum, by the value of each of its four bytes: (4, 256)."""
    zeros = bytes(length)
    of_zeros = google_crc32c.value(zeros)
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(32):
        byte, low = divmod(bit, 8)
        moved = np.uint32(google_crc32c.extend(1 << bit, zeros) ^ of_zeros)
        tables[byte, 1 << low : 2 << low] = tables[byte, : 1 << low] ^ moved
    return tables
