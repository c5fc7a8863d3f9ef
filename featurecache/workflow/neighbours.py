"""Clips that lie near each other in feature space: of one clip, pairs whose targets differ, copies across splits.

Notable choices: clips whose windows overlap or touch are no pair, since they show the same moment. Pairs with different
targets come from training and validation alone, each clip in one pair at most: an annotation of a test session that is
corrected because of what features say would make its score optimistically biased. For the same reason a test clip's
targets are not told. Copies of a recording in another encoding are found by `copied_recordings.py`.

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
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.failures import known_failures
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.store import FeatureCache
from featurecache.store.approximate import likely_nearest
from featurecache.store.nearest import Allowed, Directions, Positions, nearest
from featurecache.workflow.copied_recordings import Clips, copied_recordings

CONFUSIONS_NAME, DUPLICATES_NAME = "confusions.csv", "duplicates.csv"
NEAR_IDENTICAL = 0.995
"""The least cosine at which a clip alone counts as a copy."""
RECALL_CLIPS = 256
"""Clips whose nearest is also searched exactly where an index is used."""

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
        recall: Of clips drawn in this search, the share whose nearest the approximate index found; None where the
            search is exact.
    """

    feature: str
    labels: tuple[str, ...]
    searched: int
    missing: int
    pairs: tuple[Pair, ...]
    file: Path | None = None
    recall: float | None = None

    def on(self, clip: Clip) -> str:
        """Labels that are on in a clip: `ventilation; suction`; "not told" in a test clip, "" where unlabelled."""
        if clip.split == "test":
            return "not told"
        if not clip.labelled:
            return ""
        return "; ".join(label for label, on in zip(self.labels, clip.targets, strict=True) if on) or "none"

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache neighbours --json`."""
        fields = {name: getattr(self, name) for name in ("feature", "searched", "missing", "file", "recall")}
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
    """The clips of a project that have the feature."""

    feature: str
    table: ClipTable
    clips: tuple[Clip, ...]
    missing: int
    columns: Clips

    @classmethod
    def of(cls, project: Project, feature: str | None) -> "_Searched":
        check_table(project, use="targets")
        table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
        RecordingBoxes(project).refuse_others(table)
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
        rank = {"train": 0, "validation": 1, "test": 2}
        columns = Clips(
            Directions(cache, [clip.clip_id for clip in clips], fingerprint),
            np.unique([clip.content for clip in clips], return_inverse=True)[1],
            np.array([clip.start_us for clip in clips], np.int64),
            np.array([clip.end_us for clip in clips], np.int64),
            np.array([rank.get(clip.split, -1) for clip in clips], np.int64),
        )
        return cls(name, table, clips, len(table.clips) - len(clips), columns)

    def apart(self, one: Positions, other: Positions) -> npt.NDArray[np.bool_]:
        """Which clips are of different content, or neither overlap nor touch: (Q,), (B,) -> (Q, B)."""
        start_us, end_us, content = self.columns.start_us, self.columns.end_us, self.columns.content
        before, after = end_us[one, None] < start_us[other], end_us[other] < start_us[one, None]
        return np.asarray((content[one, None] != content[other]) | before | after)

    def found(self, pairs: Iterable[tuple[float, int, int]], recall: float | None = None) -> Neighbours:
        """The result of pairs of positions."""
        named = tuple(Pair(cosine, self.clips[one], self.clips[other]) for cosine, one, other in pairs)
        return Neighbours(self.feature, self.table.labels, len(self.clips), self.missing, named, recall=recall)


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
        OutdatedTableError: If features are of another crop box than a recording's name asks for.
    """
    own = _Searched.of(project, feature)
    position = next((at for at, clip in enumerate(own.clips) if clip.clip_id == clip_id), None)
    if position is None:
        raise ClipTableError(
            f"the clip must be one of clips.csv that has a feature, but {clip_id!r} is none. "
            "Take a clip_id of clips.csv; why one has no feature says: featurecache cache why CLIP_ID"
        )
    found, cosines = nearest(
        own.columns.directions, np.array([position]), np.arange(len(own.clips)), top=top, allowed=own.apart
    )
    pairs = zip(cosines[0].tolist(), found[0].tolist(), strict=True)
    return own.found((cosine, position, other) for cosine, other in pairs if other >= 0)


def confusions(project: Project, *, top: int = 50, feature: str | None = None, by_index: bool = False) -> Neighbours:
    """The nearest pairs of clips of different recordings whose targets differ, for annotators to look at.

    They are written to `runs/confusions.csv`. Arguments and errors as for `neighbours`; `top` is of pairs. `by_index`
    searches by an approximate index, which needs FAISS (SettingsError), and measures its recall.
    """
    own = _Searched.of(project, feature)
    learned = np.array([clip.labelled and clip.split in ("train", "validation") for clip in own.clips], bool)
    among = np.flatnonzero(learned)
    content = own.columns.content
    targets = np.unique([str(clip.targets) for clip in own.clips], return_inverse=True)[1]
    pairs, recall = _closest(
        own,
        among,
        among,
        lambda one, other: (targets[one, None] != targets[other]) & (content[one, None] != content[other]),
        alike=np.unique(np.stack([targets, content]), axis=1, return_inverse=True)[1].ravel() if by_index else None,
    )
    taken: set[int] = set()
    chosen = []
    for cosine, one, other in pairs:
        if taken.isdisjoint((one, other)):
            taken |= {one, other}
            chosen.append((cosine, one, other))
    return own.found(chosen[:top], recall).written(project.runs / CONFUSIONS_NAME)


def duplicates(project: Project, *, feature: str | None = None, by_index: bool = False) -> Neighbours:
    """Clips of validation and test that are copies of clips of a split which learns: a leak.

    Nearly identical ones, and those of a recording of which at least five clips and half of all change from clip to
    clip as those of one other recording do, at one distance in time. They are written to `runs/duplicates.csv`: each
    clip that scores with its moment in the other recording, at the cosine off the recordings' own means, or else with
    the nearest of those that learn.

    Args:
        project: The project.
        feature: As for `neighbours`.
        by_index: As for `confusions`.

    Raises:
        As `confusions`.
    """
    own = _Searched.of(project, feature)
    rank = own.columns.rank
    pairs, recall = _closest(
        own,
        np.flatnonzero(rank > 0),
        np.flatnonzero((rank == 0) | (rank == 1)),
        lambda one, other: own.apart(one, other) & (rank[one, None] > rank[other]),
        alike=rank if by_index else None,
    )
    in_step = copied_recordings(own.columns, by_index=by_index)
    copied = {one for _, one, _ in in_step}
    in_step += [pair for pair in pairs if pair[0] >= NEAR_IDENTICAL and pair[1] not in copied]
    ordered = sorted(in_step, key=lambda pair: (-pair[0], pair[1]))
    found = own.found(((cosine, other, one) for cosine, one, other in ordered), recall)
    return found.written(project.runs / DUPLICATES_NAME)


def _closest(
    own: _Searched, queries: Positions, candidates: Positions, allowed: Allowed, *, alike: Positions | None
) -> tuple[list[tuple[float, int, int]], float | None]:
    """Each query with its nearest candidate, the nearest pair first; and the recall, where an index is used.

    That is where `alike` is given: of each clip a number, for those with one number the same candidates count.
    """
    recall = None
    if alike is None or not len(queries) or not len(candidates):
        found, cosines = nearest(own.columns.directions, queries, candidates, top=1, allowed=allowed)
    else:
        found, cosines = likely_nearest(own.columns.directions, queries, candidates, allowed=allowed, alike=alike)
        drawn = np.random.default_rng(0).permutation(len(queries))[:RECALL_CLIPS]
        exact = nearest(own.columns.directions, queries[drawn], candidates, top=1, allowed=allowed)[1][:, 0]
        is_found = cosines[drawn, 0] >= exact - 1e-5  # equal but for the order of sums
        recall = float(is_found[np.isfinite(exact)].mean()) if np.isfinite(exact).any() else None
    each = zip(cosines[:, 0].tolist(), queries.tolist(), found[:, 0].tolist(), strict=True)
    return sorted((pair for pair in each if pair[2] >= 0), key=lambda pair: (-pair[0], pair[1])), recall


def _first_vector(project: Project) -> str:
    selected = project.settings.features.select
    first = next((name for name in selected if name.partition("/")[2] in _VECTORS), None)
    if first is None:
        raise SettingsError(
            "neighbours are found by one vector a clip, but features.select has none: "
            f"{', '.join(selected)}. Add one, such as final/mean, and run: featurecache extract."
        )
    return first
