"""The nearest clips by exact cosine, read from the cache block by block, so that memory stays bounded.

Notable choices: features are centred on their mean first. Hidden states of language models share one large direction,
which makes the plain cosine of any two clips about 1; what is left tells clips apart. The mean is that of at most 4096
clips, spread evenly. Blocks are read from the cache as often as they are compared, checksums included. What this is
not: an approximate index. Clips in the hundreds of thousands take seconds a query, and hours where each is compared
with each.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError
from featurecache.store import bfloat16
from featurecache.store.reader import FeatureCache

BLOCK_ROWS = 2048
"""Clips compared at once; of 4096-wide features 32 MiB as float32."""

_MEAN_ROWS = 4096
_TINY = np.float32(1e-12)

Positions = npt.NDArray[np.int64]
"""Places in a list of clip ids."""
Allowed = Callable[[Positions, Positions], npt.NDArray[np.bool_]]
"""Queries (Q,) and candidates (B,) -> which pairs count, (Q, B)."""


class Directions:
    """The directions in which features of clips lie from their common mean, read when asked for.

    Args:
        cache: An open cache.
        clip_ids: N clips that it holds, as a list.
        fingerprint: Of the feature space, whose features are one vector a clip.

    Raises:
        SettingsError: If they are more than one vector a clip.
        MissingFeaturesError: If a clip is missing.
    """

    def __init__(self, cache: FeatureCache, clip_ids: Sequence[str], fingerprint: str) -> None:
        space = cache.describe(space=fingerprint)
        if len(space.row_shape) > 1:
            raise SettingsError(
                f"neighbours are found by one vector a clip, but {space.tap}/{space.pooling} has "
                f"{' x '.join(map(str, space.row_shape))}. Take a pooled feature, such as {space.tap}/mean."
            )
        self._cache, self._ids, self._space = cache, list(clip_ids), space
        spread = np.unique(np.linspace(0, len(self._ids) - 1, min(len(self._ids), _MEAN_ROWS)).astype(np.int64))
        sums = np.zeros(space.dim, np.float64)
        for rows in _blocks(len(spread)):
            sums += self._read(spread[rows]).sum(axis=0, dtype=np.float64)
        self._mean = (sums / max(1, len(spread))).astype(np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, positions: Positions) -> npt.NDArray[np.float32]:
        """Unit vectors of clips, shape (n, D); of a clip that lies at the mean, zeros."""
        return self._off(self._mean, positions)

    def within(self, positions: Positions) -> npt.NDArray[np.float32]:
        """As `of`, off the mean of these clips alone: what changes from one to the next."""
        return self._off(None, positions)

    def _off(self, mean: npt.NDArray[np.float32] | None, positions: Positions) -> npt.NDArray[np.float32]:
        features = self._read(positions)
        features -= features.mean(axis=0) if mean is None else mean
        features /= np.maximum(np.sqrt(np.einsum("nd,nd->n", features, features)), _TINY)[:, None]
        return features

    def _read(self, positions: Positions) -> npt.NDArray[np.float32]:
        stored = self._cache.load([self._ids[at] for at in positions.tolist()], space=self._space.fingerprint)
        if self._space.stored_dtype == bfloat16.NAME:
            return bfloat16.to_float32(stored)
        return stored.astype(np.float32, copy=False)


def nearest(
    directions: Directions, queries: Positions, candidates: Positions, *, top: int, allowed: Allowed
) -> tuple[Positions, npt.NDArray[np.float32]]:
    """The nearest candidates of each query by exact cosine.

    Args:
        directions: Of N clips.
        queries: Q of them.
        candidates: Others, or the same.
        top: Candidates wanted of each query; fewer than these are found where fewer count.
        allowed: Which pairs count.

    Returns:
        Positions of the candidates, the nearest first, shape (Q, top), -1 where there is none; and their cosines,
        shape (Q, top), -inf where there is none.
    """
    found = np.full((len(queries), top), -1, np.int64)
    cosines = np.full((len(queries), top), -np.inf, np.float32)
    for part in _blocks(len(queries)):
        asked = queries[part]
        vectors = directions.of(asked)  # (Q', D)
        for rows in _blocks(len(candidates)):
            others = candidates[rows]
            products = vectors @ directions.of(others).T  # (Q', B)
            products[~allowed(asked, others)] = -np.inf
            both = np.concatenate([cosines[part], products], axis=1)
            places = np.concatenate([found[part], np.broadcast_to(others, products.shape)], axis=1)
            best = np.argsort(-both, axis=1, kind="stable")[:, :top] if top > 1 else both.argmax(axis=1)[:, None]
            cosines[part] = np.take_along_axis(both, best, axis=1)
            found[part] = np.take_along_axis(places, best, axis=1)
    return found, cosines


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, min(first + BLOCK_ROWS, count)) for first in range(0, count, BLOCK_ROWS))
