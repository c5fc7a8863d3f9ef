"""The nearest clips by an approximate index (FAISS), for each of very many clips, where exact search takes days.

Notable choices: the index is in memory and gone after the call, so `cache forget` has no copy to find. Vectors are read
block by block, reduced to their leading principal components and stored as float16 in cells of k-means; a search looks
into the cells nearest to a clip. What it proposes is compared again by whole vectors, so every cosine that is told is
exact; a nearest clip may be missed. What this is not: faster for one clip, for which exact search reads each row once.

Memory: 2 bytes a component, so 0.5 GB for a million clips, and about 1 GB while it is built of 4096-wide vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError
from featurecache.store.nearest import BLOCK_ROWS, Allowed, Directions, Positions

COMPONENTS = 256
PROBED_CELLS = 64
CANDIDATES = 16
"""Clips that the index proposes for a clip."""

_ROWS_A_CELL, _MOST_CELLS = 128, 4096
_SAMPLED_ROWS_A_CELL, _ROTATION_ROWS = 40, 16384

Vectors = npt.NDArray[np.float32]


class ApproximateIndex:
    """Clips of which the nearest to any vector are proposed.

    Args:
        vectors_of: Unit vectors of clips at positions (n,), shape (n, D).
        blocks: The clips that are proposed, in blocks that are read at once; each one position at most.

    Raises:
        SettingsError: If FAISS is not installed.
    """

    def __init__(self, vectors_of: Callable[[Positions], Vectors], blocks: Sequence[Positions]) -> None:
        self._faiss = _faiss()
        count = sum(len(block) for block in blocks)
        cells = max(1, min(_MOST_CELLS, count // _ROWS_A_CELL))
        every = max(1, count // (_SAMPLED_ROWS_A_CELL * cells))
        sampled = blocks[::every]
        rotation = [vectors_of(block) for block in sampled[:: max(1, count // every // _ROTATION_ROWS)]]
        width = rotation[0].shape[1]
        self._reduction = None
        if width > COMPONENTS and sum(map(len, rotation)) > COMPONENTS:
            self._reduction = self._faiss.PCAMatrix(width, COMPONENTS)
            self._reduction.train(np.concatenate(rotation))
            width = COMPONENTS
        del rotation
        self._index = self._faiss.index_factory(width, f"IVF{cells},SQfp16")
        self._index.cp.min_points_per_centroid = 1  # of few clips it would warn
        self._index.train(np.concatenate([self._reduced(vectors_of(block)) for block in sampled]))
        for block in blocks:
            self._index.add_with_ids(self._reduced(vectors_of(block)), block)

    def propose(self, vectors: Vectors, allowed: npt.NDArray[np.bool_], *, top: int = CANDIDATES) -> Positions:
        """Positions near unit vectors (Q, D) among those that a mask over positions allows: (Q, top), -1 for none."""
        selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        search = self._faiss.SearchParametersIVF(nprobe=PROBED_CELLS, sel=selector)
        return np.asarray(self._index.search(self._reduced(vectors), top, params=search)[1], np.int64)

    def _reduced(self, vectors: Vectors) -> Vectors:
        return vectors if self._reduction is None else np.asarray(self._reduction.apply(vectors))


def likely_nearest(
    directions: Directions, queries: Positions, candidates: Positions, *, allowed: Allowed, alike: Positions
) -> tuple[Positions, npt.NDArray[np.float32]]:
    """As `nearest` with `top=1`, by an index.

    Args:
        directions: As `nearest`.
        queries: As `nearest`.
        candidates: As `nearest`.
        allowed: As `nearest`.
        alike: A number of each of the N clips; which candidates count is looked up once for queries of one number.

    Raises:
        SettingsError: If FAISS is not installed.
    """
    blocks = -(-len(candidates) // BLOCK_ROWS)
    index = ApproximateIndex(directions.of, [candidates[first::blocks] for first in range(blocks)])
    found, cosines = np.full((len(queries), 1), -1, np.int64), np.full((len(queries), 1), -np.inf, np.float32)
    order = np.argsort(alike[queries], kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(alike[queries][order])) + 1):
        counts = np.zeros(len(directions), bool)
        counts[candidates] = allowed(queries[group[:1]], candidates)[0]
        for rows in np.split(group, range(BLOCK_ROWS, len(group), BLOCK_ROWS)):
            asked = queries[rows]
            vectors = directions.of(asked)
            proposed = index.propose(vectors, counts)  # (Q, CANDIDATES)
            others = np.unique(proposed[proposed >= 0])
            if len(others):
                at = np.searchsorted(others, proposed).clip(max=len(others) - 1)
                compared = _cosines(vectors, directions.of(others), at)
                is_pair = np.take_along_axis(allowed(asked, others), at, axis=1) & (proposed >= 0)
                compared[~is_pair] = -np.inf
                best = compared.argmax(axis=1)[:, None]
                cosines[rows] = np.take_along_axis(compared, best, axis=1)
                found[rows] = np.where(np.isfinite(cosines[rows]), np.take_along_axis(proposed, best, axis=1), -1)
    return found, cosines


def _cosines(vectors: Vectors, others: Vectors, at: Positions) -> npt.NDArray[np.float32]:
    """Of each vector (Q, D) with the others (W, D) at places (Q, k): (Q, k), one column of them in memory at a time."""
    return np.stack([np.einsum("qd,qd->q", vectors, others[column]) for column in at.T], axis=1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SettingsError(
            "an approximate index needs FAISS, but it is not installed. Run: pip install 'featurecache[index]'; or "
            "leave --index out: exact search finds the same and more, in longer time."
        ) from error
    return faiss
