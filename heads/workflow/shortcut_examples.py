"""Moments of clusters that people should look at: where a cluster goes with its label, and where it leads to errors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.clips.clip import Clip
from featurecache.csv_fields import format_seconds
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.store.view import Space
from featurecache.workflow.withdrawal import SHORTCUTS
from heads.bundle import Bundle
from heads.data import LabelledSplit
from heads.workflow.mapping import clip_frames, picture_of, step_times
from heads.workflow.token_clusters import TokenClusters

MOST_EXAMPLES = 5
"""Moments of a cluster of each kind."""


@dataclass(frozen=True)
class Example:
    """A moment of a cluster.

    Attributes:
        label: The label.
        cluster: Number of the cluster.
        kind: "cluster and label"; "false positive", a clip with the cluster alone that is predicted; or "missed", one
            with the label alone that is not.
        clip: The clip.
        at_us: Where the cluster shows most on the recording's clock; the clip's start where it does not.
        picture: Its picture; None without frames.
    """

    label: str
    cluster: int
    kind: str
    clip: Clip
    at_us: int
    picture: Path | None = None

    def to_mapping(self) -> dict[str, Any]:
        """A row of `examples.csv`."""
        return {
            "label": self.label,
            "cluster": self.cluster,
            "kind": self.kind,
            **{name: getattr(self.clip, name) for name in ("clip_id", "recording", "session", "split")},
            "at_s": format_seconds(self.at_us),
            "picture": None if self.picture is None else self.picture.name,
        }


def moments(
    project: Project,
    cache: FeatureCache,
    head: Bundle,
    clustered: tuple[str, Space],
    clusters: TokenClusters,
    chosen: Iterable[tuple[str, int]],
    fitting: LabelledSplit,
    predicted: npt.NDArray[np.bool_],
    clips: Mapping[str, Clip],
    *,
    with_frames: bool,
) -> tuple[Example, ...]:
    """Up to five moments of each kind of each chosen cluster, and their pictures in `runs/shortcuts/`.

    Args:
        project: The project.
        cache: Its cache.
        head: The bundle.
        clustered: The mean that the head reads, and the feature space whose vectors were clustered.
        clusters: Of N clips.
        chosen: Pairs of a label and a cluster.
        fitting: The N clips.
        predicted: What is predicted of them out of fold, shape (N, C).
        clips: Clips of the table by their ids.
        with_frames: Also write pictures, red where a patch is of the cluster; earlier ones go in any case.

    Raises:
        UnreadableVideoError: If frames are asked for and a recording is missing, another, or cannot be decoded.
    """
    name, space = clustered
    model, _ = project_spaces(head.project_of(project), select=[name])
    shape = model.taps[space.tap]
    folder = private_folder(project.runs / SHORTCUTS)
    for earlier in folder.glob("*.jpg"):
        earlier.unlink()
    found = []
    for label, cluster in chosen:
        at = head.labels.index(label)
        for kind, row in _rows(clusters, cluster, at, fitting.Y[:, at] == 1, predicted[:, at]):
            clip = clips[(fitting.clip_ids or ())[row]]
            is_own = (
                (clusters.of[row] == cluster).any(axis=1).reshape(1 if space.pooling == "mean" else shape.steps, -1)
            )
            at_us, picture = clip.start_us, None
            if len(is_own) > 1 and is_own.any():
                times_us = cache.timestamps_us([clip.clip_id], space=space.fingerprint)[0]
                at_us = int(step_times(times_us, shape)[is_own.sum(axis=1).argmax()])
            if with_frames:
                picture = folder / f"{clip.clip_id}-cluster-{cluster}.jpg"
                frames = clip_frames(project, clip, model.frames, model.open().frame_resize.of(clip.recording).smaller)
                write_private(picture, picture_of(frames, is_own.astype(np.float64)))
            found.append(Example(label, cluster, kind, clip, at_us, picture))
    return tuple(found)


def _rows(
    clusters: TokenClusters, cluster: int, at: int, on: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, int]]:
    """Kind and row of examples of a cluster, those to which it adds most first."""
    order = np.argsort(-clusters.parts[:, cluster, at], kind="stable")
    present = clusters.present[:, cluster]
    kinds = {
        "cluster and label": present & on,
        "false positive": present & ~on & predicted,
        "missed": ~present & on & ~predicted,
    }
    for kind, mask in kinds.items():
        yield from ((kind, int(row)) for row in order[mask[order]][:MOST_EXAMPLES])
