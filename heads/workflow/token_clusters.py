"""Clusters of the tokens of clips: what lies in the same direction off a session's usual picture.

Notable choices: from each token its session's mean at the same moment and place is taken, so that clusters are of what
happens and not of how a session looks. What is left is whitened in its first principal components, so that something
small and rare, which hardly adds to the variance, can be a cluster of its own; then k-means (scikit-learn, minibatches)
on a sample, from three starts that follow from the seed. The clusters of all three are kept: from one start a small cue
may share its cluster with other things, and p values are right for any number of clusters. Tokens are read session by
session in bounded memory, and nothing of them is kept but each one's clusters. Of clips with one vector each, the
vectors are clustered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.errors import TrainingDataError
from featurecache.spec import FeatureSpace
from heads.loading import read_features

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

CLUSTERS, COMPONENTS = 128, 128
STARTS = 3
"""Starts of k-means, whose clusters are all kept."""
SAMPLED_TOKENS = 1 << 15
"""Tokens that clusters are fitted to: 512 MiB of 4096-wide ones."""

_ROWS_A_CLUSTER = 16
_BLOCK_VALUES = 1 << 25  # of one read: 128 MiB as float32

Rows = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TokenClusters:
    """The tokens of N clips in K clusters.

    Attributes:
        of: Clusters of each token, one of each start of k-means, shape (N, S, starts).
        shares: Share of a clip's tokens that is of each cluster, shape (N, K).
        parts: What each cluster's tokens add to each label's log odds, against the clip's session, shape (N, K, C).
        centres: Mean token of each cluster, less the sessions' means, shape (K, D).
    """

    of: npt.NDArray[np.int16]
    shares: npt.NDArray[np.float64]
    parts: npt.NDArray[np.float64]
    centres: npt.NDArray[np.float64]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether a clip has more of a cluster than the average clip, shape (N, K)."""
        return np.asarray(self.shares > self.shares.mean(axis=0))


def cluster_tokens(
    cache: FeatureCache,
    space: FeatureSpace,
    clip_ids: tuple[str, ...],
    sessions: npt.NDArray[np.str_],
    weights: Callable[[str], npt.NDArray[np.float64]],
    *,
    seed: int = 0,
) -> TokenClusters:
    """Clusters the tokens of clips, and sums what they add to log odds.

    Args:
        cache: An open cache.
        space: Of the tokens, (S, D) a clip; of frames, (T, D); or of one vector a clip, (D,).
        clip_ids: N clips.
        sessions: The session of each, shape (N,).
        weights: Of a session, what a unit of each dimension of a clip's mean adds to each label's log odds, (C, D).
        seed: Of the sample and of k-means.

    Raises:
        MissingFeaturesError: If the cache lacks a clip.
        TrainingDataError: If there are too few tokens, or they are all alike within sessions.
    """
    first = _read(cache, space, clip_ids[:1])
    token_count, width = first.shape[1:]
    rng = np.random.default_rng(seed)
    share = min(1.0, SAMPLED_TOKENS / (len(clip_ids) * token_count))
    sampled = []
    for _, tokens in _off_session(cache, space, clip_ids, sessions):
        flat = tokens.reshape(-1, width)
        sampled.append(flat[rng.random(len(flat)) < share] if share < 1 else flat)
    whitened, starts = _fitted(np.concatenate(sampled), seed)
    of = np.zeros((len(clip_ids), token_count, STARTS), np.int16)
    label_count = len(weights(str(sessions[0])))
    parts = np.zeros((len(clip_ids), STARTS * starts[0].n_clusters, label_count))
    counts, sums = np.zeros(parts.shape[:2], np.int64), np.zeros((parts.shape[1], width))
    for rows, tokens in _off_session(cache, space, clip_ids, sessions):
        flat, at_tokens = tokens.reshape(-1, width), np.repeat(rows, token_count)
        added = flat @ weights(str(sessions[rows[0]])).T / token_count  # (B S, C)
        along = whitened.transform(flat)
        for start, kmeans in enumerate(starts):
            cluster = start * kmeans.n_clusters + kmeans.predict(along)
            of[rows, :, start] = cluster.reshape(len(rows), token_count)
            np.add.at(parts, (at_tokens, cluster), added)
            np.add.at(counts, (at_tokens, cluster), 1)
            np.add.at(sums, cluster, flat)
    centres = sums / np.maximum(counts.sum(axis=0), 1)[:, None]
    return TokenClusters(of, counts / token_count, parts, centres)


def _fitted(tokens: Tokens, seed: int) -> "tuple[PCA, list[MiniBatchKMeans]]":
    """The whitening, and k-means from each start."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    most = len(tokens) // _ROWS_A_CLUSTER
    if most < 2 or not tokens.any():
        raise TrainingDataError(
            f"clusters need at least {2 * _ROWS_A_CLUSTER} tokens that differ within their sessions, but there are "
            f"{len(tokens) if tokens.any() else 'none'}. Annotate more clips."
        )
    rank = int(np.linalg.matrix_rank(tokens)) if min(tokens.shape) <= COMPONENTS else COMPONENTS
    whitened = PCA(min(COMPONENTS, rank, most), whiten=True, svd_solver="covariance_eigh").fit(tokens)
    along = whitened.transform(tokens)
    return whitened, [
        MiniBatchKMeans(min(CLUSTERS, most), batch_size=4096, n_init=3, random_state=STARTS * seed + start).fit(along)
        for start in range(STARTS)
    ]


def _read(cache: FeatureCache, space: FeatureSpace, clip_ids: tuple[str, ...]) -> Tokens:
    """Tokens of clips, (B, S, D)."""
    features = read_features(cache, clip_ids, space).astype(np.float32)
    return features.reshape(len(features), -1, features.shape[-1])


def _off_session(
    cache: FeatureCache, space: FeatureSpace, clip_ids: tuple[str, ...], sessions: npt.NDArray[np.str_]
) -> Iterator[tuple[Rows, Tokens]]:
    """Rows (B,) of clips and their tokens (B, S, D), less the session's mean at each place, block by block."""
    one = _read(cache, space, clip_ids[:1])
    at_once = max(1, _BLOCK_VALUES // one[0].size)
    for session in np.unique(sessions):
        own = np.flatnonzero(sessions == session)
        blocks = [own[start : start + at_once] for start in range(0, len(own), at_once)]
        read = (_read(cache, space, tuple(clip_ids[row] for row in block)) for block in blocks)
        if len(blocks) == 1:
            tokens = next(read)
            yield own, tokens - tokens.mean(axis=0)
            continue
        mean = np.sum([tokens.sum(axis=0) for tokens in read], axis=0) / len(own)
        for block in blocks:
            yield block, _read(cache, space, tuple(clip_ids[row] for row in block)) - mean
