"""Recordings that change from clip to clip as another does: copies in another encoding.

Features of a copy in another encoding are its own, which the cosine of a clip cannot tell from likeness; but off each
recording's own mean, clips of a copy at one distance in time have a high cosine on average. A few clips that overlap
can do so by chance, since they change slowly, so what counts is time: that of five clips beside each other.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.store.approximate import ApproximateIndex
from featurecache.store.nearest import BLOCK_ROWS, Directions, Positions

IN_STEP, IN_STEP_SHARE, IN_STEP_COSINE = 5, 0.5, 0.8
"""Clips of a recording that do not overlap, their share of it, and their least mean cosine that make it a copy where
they keep step with those of another, each off its own recording's mean."""

_MOST_LIKELY = 20
"""Recordings that are compared with one where an index proposes them."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips as columns; all have shape (N,).

    Attributes:
        directions: Theirs.
        content: A number of the recording's content.
        start_us: Where they start.
        end_us: Where they end.
        rank: Of the split: train is 0, validation 1, test 2, none -1; a recording of a higher rank may be a copy of one
            of a lower rank below 2.
    """

    directions: Directions
    content: Positions
    start_us: Positions
    end_us: Positions
    rank: Positions

    def is_pair(self, one: Positions, other: Positions) -> bool:
        """Whether the recording of some clips may be a copy of that of others."""
        first, second = one[0], other[0]
        return bool(self.content[first] != self.content[second] and self.rank[first] > self.rank[second])


def copied_recordings(clips: Clips, *, by_index: bool) -> list[tuple[float, int, int]]:
    """Clips of copies, each with its moment in the recording that it is a copy of: cosine, and two positions.

    Args:
        clips: The clips.
        by_index: Compare each recording only with those that an approximate index proposes.

    Raises:
        SettingsError: If FAISS is wanted and not installed.
    """
    recordings = [
        np.flatnonzero((clips.content == content) & (clips.rank == rank))
        for content, rank in sorted(set(zip(clips.content.tolist(), clips.rank.tolist(), strict=True)))
    ]
    scoring = [rows for rows in recordings if clips.rank[rows[0]] > 0 and len(rows) >= IN_STEP]
    learning = [rows for rows in recordings if clips.rank[rows[0]] in (0, 1)]
    likely = _likely(clips, scoring, learning) if by_index and learning else None
    found: list[tuple[float, int, int]] = []
    ends = np.cumsum([len(rows) for rows in scoring])
    for block in np.split(np.arange(len(scoring)), np.flatnonzero(np.diff(ends // BLOCK_ROWS)) + 1):
        vectors = [clips.directions.within(scoring[at]) for at in block]
        for other, theirs in enumerate(learning):
            near = [
                (scoring[at], own)
                for at, own in zip(block, vectors, strict=True)
                if clips.is_pair(scoring[at], theirs) and (likely is None or (int(at), other) in likely)
            ]
            if near:
                moved = clips.directions.within(theirs)
                for rows, own in near:
                    found += _best_step(clips, rows, theirs, own @ moved.T)
    best: dict[int, tuple[float, int, int]] = {}
    for pair in found:  # a copy of two recordings: the more alike one
        best[pair[1]] = max(pair, best.get(pair[1], pair))
    return list(best.values())


def _likely(clips: Clips, scoring: list[Positions], learning: list[Positions]) -> set[tuple[int, int]]:
    """Pairs of a scoring and a learning recording, of which most clips are near each other at one distance in time."""
    index = ApproximateIndex(clips.directions.within, learning)
    of_clip = np.full(len(clips.content), -1)
    for other, rows in enumerate(learning):
        of_clip[rows] = other
    likely: set[tuple[int, int]] = set()
    for at, rows in enumerate(scoring):
        allowed = (of_clip >= 0) & (clips.rank < clips.rank[rows[0]]) & (clips.content != clips.content[rows[0]])
        proposed = index.propose(clips.directions.within(rows), allowed)  # (n, CANDIDATES)
        distance_us = clips.start_us[rows][:, None] - clips.start_us[proposed]
        votes = np.stack([of_clip[proposed], distance_us])[:, proposed >= 0]
        steps, counts = np.unique(votes, axis=1, return_counts=True)
        others = dict.fromkeys(steps[0][np.argsort(-counts, kind="stable")].tolist())
        likely |= {(at, other) for other in list(others)[:_MOST_LIKELY]}
    return likely


def _best_step(
    clips: Clips, rows: Positions, others: Positions, cosines: npt.NDArray[np.float32]
) -> list[tuple[float, int, int]]:
    """The pairs of clips at the distance in time with the highest mean cosine, if that makes a copy; cosines (n, m)."""
    start_us, length_us = clips.start_us, int(np.median(clips.end_us[rows] - clips.start_us[rows]))
    at_once = max(1.0, length_us / max(1.0, float(np.median(np.diff(np.sort(start_us[rows]))))))  # clips of one moment
    distance_us = start_us[rows][:, None] - start_us[others]  # (n, m)
    unit = max(1, int(np.gcd.reduce(np.diff(np.concatenate([start_us[rows], start_us[others]])))))
    step = (distance_us - distance_us.min()) // unit
    counts = np.bincount(step.ravel())
    means = np.bincount(step.ravel(), cosines.ravel()) / np.maximum(counts, 1)
    means[counts < max(IN_STEP * at_once, IN_STEP_SHARE * len(rows))] = -1
    if means.max() < IN_STEP_COSINE:
        return []
    return [(float(cosines[at, to]), int(rows[at]), int(others[to])) for at, to in np.argwhere(step == means.argmax())]
