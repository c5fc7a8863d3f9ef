"""Clusters of the tokens of clips: what lies in the same direction off a session's usual picture.

Notable choices: from each token its session's mean at the same moment and place is taken, so that clusters are of what
happens and not of how a session looks. What is left is whitened in its first principal components, so that something
small and rare, which hardly adds to the variance, can be a cluster of its own; then k-means (scikit-learn, minibatches)
on a sample. Tokens are read session by session in bounded memory, and nothing of them is kept but each one's cluster.
Of clips with one vector each, the vectors are clustered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.errors import TrainingDataError
from featurecache.spec import FeatureSpace
from heads.loading import read_features

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CLUSTERS, COMPONENTS = 128, 128
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
        of: Cluster of each token, shape (N, S).
        parts: What each cluster's tokens add to each label's log odds, against the clip's session, shape (N, K, C).
        centres: Mean token of each cluster, less the sessions' means, shape (K, D).
    """

    of: npt.NDArray[np.int16]
    parts: npt.NDArray[np.float64]
    centres: npt.NDArray[np.float64]

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of a clip's tokens that is of each cluster, shape (N, K)."""
        return np.stack([(self.of == k).mean(axis=1) for k in range(len(self.centres))], axis=1)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether a clip has more of a cluster than the average clip, shape (N, K)."""
        return np.asarray(self.shares > self.shares.mean(axis=0))


def cluster_tokens(
    cache: FeatureCache,
    space: FeatureSpace,
    clip_ids: tuple[str, ...],
    sessions: npt.NDArray[np.str_],
    weights: npt.NDArray[np.float64],
    *,
    seed: int = 0,
) -> TokenClusters:
    """Clusters the tokens of clips, and sums what they add to log odds.

    Args:
        cache: An open cache.
        space: Of the tokens, (S, D) a clip; of frames, (T, D); or of one vector a clip, (D,).
        clip_ids: N clips.
        sessions: The session of each, shape (N,).
        weights: What a unit of each dimension of the clip's mean adds to each label's log odds, shape (C, D).
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
    assign = _fitted(np.concatenate(sampled), seed)
    count = assign[-1].n_clusters
    of = np.zeros((len(clip_ids), token_count), np.int16)
    parts = np.zeros((len(clip_ids), count, len(weights)))
    sums = np.zeros((count, width))
    for rows, tokens in _off_session(cache, space, clip_ids, sessions):
        flat = tokens.reshape(-1, width)
        cluster = assign.predict(flat)
        of[rows] = cluster.reshape(len(rows), token_count)
        np.add.at(parts, (np.repeat(rows, token_count), cluster), flat @ weights.T / token_count)
        np.add.at(sums, cluster, flat)
    counts = np.maximum(np.bincount(of.ravel(), minlength=count), 1)
    return TokenClusters(of, parts, sums / counts[:, None])


def _fitted(tokens: Tokens, seed: int) -> "Pipeline":
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline

    most = len(tokens) // _ROWS_A_CLUSTER
    if most < 2 or not tokens.any():
        raise TrainingDataError(
            f"clusters need at least {2 * _ROWS_A_CLUSTER} tokens that differ within their sessions, but there are "
            f"{len(tokens) if tokens.any() else 'none'}. Annotate more clips."
        )
    rank = int(np.linalg.matrix_rank(tokens)) if min(tokens.shape) <= COMPONENTS else COMPONENTS
    whitened = PCA(min(COMPONENTS, rank, most), whiten=True, svd_solver="covariance_eigh")
    return make_pipeline(
        whitened, MiniBatchKMeans(min(CLUSTERS, most), batch_size=4096, n_init=3, random_state=seed)
    ).fit(tokens)


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
