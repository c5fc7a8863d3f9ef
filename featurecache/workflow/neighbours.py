"""Clips that lie near each other in feature space: of one clip, pairs whose targets differ, copies across splits.

Notable choices: clips whose windows overlap or touch are no pair, since they show the same moment. Pairs with different
targets come from training and validation alone, each clip in one pair at most: an annotation of a test session that is
corrected because of what features say would make its score optimistically biased. For the same reason a test clip's
targets are not told. A copy of a recording in another encoding has features of its own, which the cosine of a clip
cannot tell from likeness; what tells it is that two recordings change alike from clip to clip: off each one's own mean,
clips at one distance in time have a high cosine on average. That is so where a copy was cut, if by whole strides.

Privacy: neighbours join sessions by what they look like, so they can tell that two recordings show the same person or
room, though no name says so. What this writes is to be kept as the recordings are.
"""

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.csv_fields import format_seconds, guard_cell
from featurecache.errors import ClipTableError, SettingsError
from featurecache.extraction.failures import known_failures
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.store import FeatureCache
from featurecache.store.nearest import BLOCK_ROWS, Directions, Positions, nearest

CONFUSIONS_NAME, DUPLICATES_NAME = "confusions.csv", "duplicates.csv"
NEAR_IDENTICAL = 0.995
"""The least cosine at which a clip alone counts as a copy."""
IN_STEP, IN_STEP_SHARE, IN_STEP_COSINE = 5, 0.5, 0.8
"""Clips of a recording, their share of it, and their least mean cosine that make it a copy where they keep step with
those of another, each off its own recording's mean."""

_VECTORS = ("mean", "motion", "cls", "last")


@dataclass(frozen=True)
class Pair:
    """Two clips and their cosine; the first is the one asked about, or that of the split which learns."""

    cosine: float
    clip: Clip
    other: Clip


@dataclass(frozen=True)
class Neighbours:
    """Pairs of clips, the nearest first.

    Attributes:
        feature: The selected feature that they are near by.
        labels: Names of the C labels.
        searched: Clips that were compared.
        missing: Clips without a feature, for recorded reasons.
        pairs: The pairs.
        file: The CSV that lists them; None where none is written.
    """

    feature: str
    labels: tuple[str, ...]
    searched: int
    missing: int
    pairs: tuple[Pair, ...]
    file: Path | None = None

    def on(self, clip: Clip) -> str:
        """Labels that are on in a clip: `ventilation; suction`; "not told" in a test clip, "" where unlabelled."""
        if clip.split == "test":
            return "not told"
        if not clip.labelled:
            return ""
        return "; ".join(label for label, on in zip(self.labels, clip.targets, strict=True) if on) or "none"

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache neighbours --json`."""
        fields = {name: getattr(self, name) for name in ("feature", "searched", "missing", "file")}
        return {**fields, "pairs": [self._row(pair) for pair in self.pairs]}

    def _row(self, pair: Pair) -> dict[str, Any]:
        row: dict[str, Any] = {"cosine": round(pair.cosine, 6)}
        for name, clip in (("", pair.clip), ("other_", pair.other)):
            row |= {f"{name}{field}": getattr(clip, field) for field in ("clip_id", "recording", "session", "split")}
            row |= {f"{name}{field}_s": format_seconds(getattr(clip, f"{field}_us")) for field in ("start", "end")}
            row[f"{name}on"] = self.on(clip)
        return row

    def written(self, path: Path) -> "Neighbours":
        """The same with its pairs in a CSV."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._row(Pair(0, *[Clip("", "", "", "", 0, 0, ())] * 2)))
        writer.writerows([guard_cell(str(cell)) for cell in self._row(pair).values()] for pair in self.pairs)
        private_folder(path.parent)
        write_private(path, text.getvalue().encode())
        return dataclasses.replace(self, file=path)


@dataclass(frozen=True, eq=False)
class _Searched:
    """The clips of a project that have the feature, as columns; all have shape (N,)."""

    feature: str
    table: ClipTable
    directions: Directions
    clips: tuple[Clip, ...]
    missing: int
    content: npt.NDArray[np.int64]
    start_us: npt.NDArray[np.int64]
    end_us: npt.NDArray[np.int64]
    split: npt.NDArray[np.str_]

    @classmethod
    def of(cls, project: Project, feature: str | None) -> "_Searched":
        check_table(project, use="targets")
        table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
        name = feature or _first_vector(project)
        cache = FeatureCache.open(project.cache)
        if name.startswith("imported/"):
            fingerprint = cache.describe("imported", name.partition("/")[2]).fingerprint
            missing: dict[str, str] = {}
        else:
            _, spaces = project_spaces(project, select=[name])
            ids = [clip.clip_id for clip in table.clips]
            fingerprint, missing = (
                spaces[name].fingerprint,
                known_failures(project).missing(cache, ids, spaces.values()),
            )
        clips = tuple(clip for clip in table.clips if clip.clip_id not in missing)
        return cls(
            name,
            table,
            Directions(cache, [clip.clip_id for clip in clips], fingerprint),
            clips,
            len(table.clips) - len(clips),
            np.unique([clip.content for clip in clips], return_inverse=True)[1],
            np.array([clip.start_us for clip in clips], np.int64),
            np.array([clip.end_us for clip in clips], np.int64),
            np.array([clip.split for clip in clips], np.str_),
        )

    def apart(self, one: Positions, other: Positions) -> npt.NDArray[np.bool_]:
        """Which clips are of different content, or neither overlap nor touch: (Q,), (B,) -> (Q, B)."""
        before = self.end_us[one, None] < self.start_us[other]
        after = self.end_us[other] < self.start_us[one, None]
        return np.asarray((self.content[one, None] != self.content[other]) | before | after)

    def found(self, pairs: Iterable[tuple[float, int, int]]) -> Neighbours:
        """The result of pairs of positions."""
        named = tuple(Pair(cosine, self.clips[one], self.clips[other]) for cosine, one, other in pairs)
        return Neighbours(self.feature, self.table.labels, len(self.clips), self.missing, named)


def neighbours(project: Project, clip_id: str, *, top: int = 10, feature: str | None = None) -> Neighbours:
    """The clips nearest to one clip, among all of the clip table.

    Args:
        project: The project.
        clip_id: A clip of the clip table.
        top: Neighbours wanted.
        feature: `tap/pooling` with one vector a clip, or `imported/NAME`; None: the first that the settings select.

    Raises:
        ClipTableError: If the table has no such clip, or is not sound.
        SettingsError: If the feature is more than one vector a clip, or the model has none of that name.
        MissingFeaturesError: If a clip is missing from the cache for no recorded reason.
    """
    own = _Searched.of(project, feature)
    position = next((at for at, clip in enumerate(own.clips) if clip.clip_id == clip_id), None)
    if position is None:
        raise ClipTableError(
            f"the clip must be one of clips.csv that has a feature, but {clip_id!r} is none. "
            "Take a clip_id of clips.csv; why one has no feature says: featurecache cache why CLIP_ID"
        )
    found, cosines = nearest(
        own.directions, np.array([position]), np.arange(len(own.clips)), top=top, allowed=own.apart
    )
    pairs = zip(cosines[0].tolist(), found[0].tolist(), strict=True)
    return own.found((cosine, position, other) for cosine, other in pairs if other >= 0)


def confusions(project: Project, *, top: int = 50, feature: str | None = None) -> Neighbours:
    """The nearest pairs of clips of different recordings whose targets differ, for annotators to look at.

    They are written to `runs/confusions.csv`. Arguments and errors as for `neighbours`; `top` is of pairs.
    """
    own = _Searched.of(project, feature)
    learned = np.array([clip.labelled and clip.split in ("train", "validation") for clip in own.clips], bool)
    among = np.flatnonzero(learned)
    targets = np.unique([str(clip.targets) for clip in own.clips], return_inverse=True)[1]
    pairs = _closest(
        own,
        among,
        among,
        lambda one, other: (targets[one, None] != targets[other]) & (own.content[one, None] != own.content[other]),
    )
    taken: set[int] = set()
    chosen = []
    for cosine, one, other in pairs:
        if taken.isdisjoint((one, other)):
            taken |= {one, other}
            chosen.append((cosine, one, other))
    return own.found(chosen[:top]).written(project.runs / CONFUSIONS_NAME)


def duplicates(project: Project, *, feature: str | None = None) -> Neighbours:
    """Clips of validation and test that are copies of clips of a split which learns: a leak.

    Nearly identical ones, and those of a recording of which at least five clips and half of all change from clip to
    clip as those of one other recording do, at one distance in time. They are written to `runs/duplicates.csv`: each
    clip that scores with its moment in the other recording, at the cosine off the recordings' own means, or else with
    the nearest of those that learn.

    Args:
        project: The project.
        feature: As for `neighbours`.

    Raises:
        As `neighbours`.
    """
    own = _Searched.of(project, feature)
    rank = np.select([own.split == "train", own.split == "validation", own.split == "test"], [0, 1, 2], -1)
    pairs = _closest(
        own,
        np.flatnonzero(rank > 0),
        np.flatnonzero((rank == 0) | (rank == 1)),
        lambda one, other: own.apart(one, other) & (rank[one, None] > rank[other]),
    )
    in_step = _in_step(own, rank)
    copied = {one for _, one, _ in in_step}
    in_step += [pair for pair in pairs if pair[0] >= NEAR_IDENTICAL and pair[1] not in copied]
    found = own.found(
        (cosine, other, one) for cosine, one, other in sorted(in_step, key=lambda pair: (-pair[0], pair[1]))
    )
    return found.written(project.runs / DUPLICATES_NAME)


def _in_step(own: _Searched, rank: Positions) -> list[tuple[float, int, int]]:
    """Clips of recordings that change as a recording of a split which learns, each with its moment there."""
    recordings = [
        np.flatnonzero((own.content == content) & (rank == of_split))
        for content, of_split in sorted(set(zip(own.content.tolist(), rank.tolist(), strict=True)))
    ]
    scoring = [rows for rows in recordings if rank[rows[0]] > 0 and len(rows) >= IN_STEP]
    learning = [rows for rows in recordings if rank[rows[0]] in (0, 1)]
    found: list[tuple[float, int, int]] = []
    while scoring:
        at_once = int(np.searchsorted(np.cumsum([len(rows) for rows in scoring]), BLOCK_ROWS)) + 1
        block, scoring = scoring[:at_once], scoring[at_once:]
        vectors = [own.directions.within(rows) for rows in block]
        for others in learning:
            theirs = own.directions.within(others)
            for rows, ours in zip(block, vectors, strict=True):
                if own.content[rows[0]] != own.content[others[0]] and rank[rows[0]] > rank[others[0]]:
                    found += _best_step(own, rows, others, ours @ theirs.T)
    best: dict[int, tuple[float, int, int]] = {}
    for pair in found:  # a copy of two recordings: the more alike one
        best[pair[1]] = max(pair, best.get(pair[1], pair))
    return list(best.values())


def _best_step(
    own: _Searched, rows: Positions, others: Positions, cosines: npt.NDArray[np.float32]
) -> list[tuple[float, int, int]]:
    """The pairs of clips at the distance in time with the highest mean cosine, if that makes a copy; cosines (n, m)."""
    distance_us = own.start_us[rows][:, None] - own.start_us[others]  # (n, m)
    unit = max(1, int(np.gcd.reduce(np.diff(np.concatenate([own.start_us[rows], own.start_us[others]])))))
    step = (distance_us - distance_us.min()) // unit
    counts = np.bincount(step.ravel())
    means = np.bincount(step.ravel(), cosines.ravel()) / np.maximum(counts, 1)
    means[counts < max(IN_STEP, IN_STEP_SHARE * len(rows))] = -1
    if means.max() < IN_STEP_COSINE:
        return []
    return [(float(cosines[at, to]), int(rows[at]), int(others[to])) for at, to in np.argwhere(step == means.argmax())]


def _closest(own: _Searched, queries: Positions, candidates: Positions, allowed: Any) -> list[tuple[float, int, int]]:
    """Each query with its nearest candidate, the nearest pair first."""
    found, cosines = nearest(own.directions, queries, candidates, top=1, allowed=allowed)
    each = zip(cosines[:, 0].tolist(), queries.tolist(), found[:, 0].tolist(), strict=True)
    return sorted((pair for pair in each if pair[2] >= 0), key=lambda pair: (-pair[0], pair[1]))


def _first_vector(project: Project) -> str:
    selected = project.settings.features.select
    first = next((name for name in selected if name.partition("/")[2] in _VECTORS), None)
    if first is None:
        raise SettingsError(
            "neighbours are found by one vector a clip, but features.select has none: "
            f"{', '.join(selected)}. Add one, such as final/mean, and run: featurecache extract."
        )
    return first
