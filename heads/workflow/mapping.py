"""Which moments and patches of a clip raise a label's score: exact maps of linear heads.

Notable choices: a linear head on a tap's mean gives the mean of what it gives each token, so the log odds of a clip are
a sum over its tokens, and a token's part of it is no estimate:

    log odds = base + sum over tokens + what the head's other inputs add + rounding

`base` is the log odds at the head's centre (the mean training clip, where it standardises), so a part above zero raises
the score against that; rounding is what storing tokens and their mean apart takes away. Tokens have seen other tokens
by attention: a map says what the head uses, not what in the picture caused it.

Files go to `runs/maps/<clip_id>/`: `map.csv`, a row for each token; `map.json`, whose shape is `ClipMap.to_mapping`;
and, where frames are asked for, a picture for each label, red where the score is raised and blue where it is lowered.

What this is not: maps of heads that are not linear in a mean (hidden layers, unit length, attention): refused.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.backbones.family import TapShape
from featurecache.clips.clip import Clip
from featurecache.csv_fields import csv_bytes, format_seconds, guard_cell
from featurecache.errors import BundleError, ClipTableError, MissingFeaturesError, UnreadableVideoError
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, differences
from featurecache.store.view import Space
from featurecache.video.digests import DigestMemo
from featurecache.video.sampling import ClipFailure, read_clips
from featurecache.workflow.withdrawal import MAPS
from heads.bundle import Bundle, load_bundle
from heads.loading import read_features
from heads.report.frames import as_jpeg
from heads.runs import write_document
from heads.workflow.data import own_table, refuse_samples, tuned_bundle

MAP_NAME, TABLE_NAME = "map.json", "map.csv"
SHOWN_STEPS = 8
"""Time steps of a picture, spread evenly over the clip."""

_STEP_PX = 160
_OPAQUE, _TINY, _TIME_LIMIT_S = 0.65, 1e-12, 120.0
_RED, _BLUE = np.array([220.0, 40.0, 30.0]), np.array([40.0, 90.0, 220.0])


@dataclass(frozen=True, eq=False)
class ClipMap:
    """What each token of a clip adds to the log odds of each label.

    Attributes:
        clip: The clip.
        labels: Names of the C labels.
        feature: The selected feature that is mapped: `final/tokens`, or `final/frames`.
        log_odds: Of the clip by the head, shape (C,).
        base: Log odds at the head's centre, shape (C,).
        others: What the head's other inputs add, shape (C,).
        parts: What each token adds, shape (T', P, C).
        steps_us: Time of each step on the recording's clock, shape (T',).
        folder: The folder of the files.
        pictures: Label -> its picture; empty without frames.
    """

    clip: Clip
    labels: tuple[str, ...]
    feature: str
    log_odds: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    others: npt.NDArray[np.float64]
    parts: npt.NDArray[np.float64]
    steps_us: npt.NDArray[np.int64]
    folder: Path
    pictures: dict[str, Path]

    @property
    def rounding(self) -> npt.NDArray[np.float64]:
        """What is left of the log odds, shape (C,)."""
        return np.asarray(self.log_odds - self.base - self.others - self.parts.sum(axis=(0, 1)))

    def place(self, patch: int) -> tuple[int, int]:
        """Row and column of a patch from the top left; of patches that are no square, 0 and their order."""
        side = math.isqrt(self.parts.shape[1])
        return divmod(patch, side) if side**2 == self.parts.shape[1] else (0, patch)

    def to_mapping(self) -> dict[str, Any]:
        """The document `map.json`, and of `featurecache maps --json`."""
        steps = self.parts.sum(axis=1)  # (T', C)
        columns = {"log_odds": self.log_odds, "base": self.base, "other_inputs": self.others, "rounding": self.rounding}
        return {
            "kind": "featurecache map",
            "clip_id": self.clip.clip_id,
            "recording": self.clip.recording,
            "start_us": self.clip.start_us,
            "end_us": self.clip.end_us,
            "feature": self.feature,
            "steps_us": self.steps_us.tolist(),
            "labels": {
                label: {
                    **{name: float(values[at]) for name, values in columns.items()},
                    "steps": steps[:, at].tolist(),
                    "picture": self.pictures[label].name if label in self.pictures else None,
                }
                for at, label in enumerate(self.labels)
            },
            "folder": str(self.folder),
        }


def map_clip(
    project: Project,
    clip_id: str,
    *,
    bundle: Path | None = None,
    feature: str | None = None,
    with_frames: bool = False,
) -> ClipMap:
    """Maps what a bundle's linear head uses in one clip, and writes it to `runs/maps/<clip_id>/`.

    Args:
        project: The project.
        clip_id: A clip of the clip table, of any split: nothing is scored.
        bundle: The bundle's folder; None: the one of `tune`.
        feature: The mean that is mapped, of those that the head reads; None: the first whose tokens are in the cache.
        with_frames: Also write pictures, which hold frames of the recording.

    Raises:
        BundleError: If the bundle is missing or damaged, its labels are not the table's, or its head has no exact map,
            or does not read the feature.
        ClipTableError: If the table has no such clip.
        MissingFeaturesError: If the cache lacks the clip's tokens and frames of every tap whose mean the head reads.
        UnreadableVideoError: If frames are asked for and the recording is missing, another, or cannot be decoded.
    """
    folder = bundle if bundle is not None else tuned_bundle(project)
    head = load_bundle(folder)
    refuse_samples(head, folder, "maps of a clip")
    check_linear(head)
    table = own_table(project, head)
    clip = next((one for one in table.clips if one.clip_id == clip_id), None)
    if clip is None:
        raise ClipTableError(f"a map must be of a clip of clips.csv, but {clip_id!r} is none. Take a clip_id of it.")
    cache = FeatureCache.open(project.cache)
    name, space = token_space(cache, head, clip_id, feature)
    model, _ = project_spaces(head.project_of(project), select=[name])
    shape = model.taps[space.tap]
    tokens = read_features(cache, [clip_id], FeatureSpace(space.inputs))[0].astype(np.float64)  # (S, D) or (T', D)
    features = [read_features(cache, [clip_id], one)[0].astype(np.float64) for one in head.spaces]
    log_odds, base, others, parts = _split(head, space.tap, features, tokens)
    timestamps_us = cache.timestamps_us([clip_id], space=space.fingerprint)[0]
    found = ClipMap(
        clip,
        head.labels,
        f"{space.tap}/{space.pooling}",
        log_odds,
        base,
        others,
        parts.reshape(shape.steps, -1, len(head.labels)),
        step_times(timestamps_us, shape),
        private_folder(project.runs / MAPS / clip_id),
        {},
    )
    for earlier in found.folder.glob("label-*.jpg"):  # of another head, maybe
        earlier.unlink()
    if with_frames:
        frames = clip_frames(project, clip, model.frames, model.open().frame_resize.of(clip.recording).smaller)
        for at, label in enumerate(found.labels):
            path = found.folder / f"label-{at + 1}.jpg"
            write_private(path, picture_of(frames, found.parts[..., at]))
            found.pictures[label] = path
    write_private(found.folder / TABLE_NAME, _as_csv(found))
    write_document(found.folder / MAP_NAME, found.to_mapping())
    return found


def check_linear(head: Bundle) -> None:
    """Refuses a head whose log odds are no sum over tokens.

    Raises:
        BundleError: Saying why.
    """
    poolings = [name.partition("/")[2] for name in head.selected]
    why = (
        f"its head is of the kind {head.settings.kind}"
        if head.settings.kind != "linear"
        else "it scales each clip to unit length"
        if head.settings.normalization == "l2"
        else "it reads what the model says, not its states"
        if head.asked is not None
        else f"it reads no mean, but {head.settings.inputs}"
        if "mean" not in poolings
        else ""
    )
    if why:
        raise BundleError(
            f"an exact map must be of a linear head on a mean of tokens, but {why}. "
            'Train one: featurecache train, with kind = "linear" under [train].'
        )


def token_space(
    cache: FeatureCache,
    head: Bundle,
    clip_id: str,
    feature: str | None = None,
    poolings: tuple[str, ...] = ("tokens", "frames"),
) -> tuple[str, Space]:
    """A mean that a head reads, and the feature space of its tokens that holds a clip.

    Args:
        cache: An open cache.
        head: The bundle.
        clip_id: The clip.
        feature: The mean; None: the first of them that has tokens in the cache.
        poolings: What may stand for tokens, the best first.

    Raises:
        BundleError: If the head does not read that mean.
        MissingFeaturesError: If the cache has none of them.
    """
    means = {name: space for name, space in head.selected.items() if name.endswith("/mean")}
    if feature is not None and feature not in means:
        raise BundleError(
            f"the feature must be a mean that the head reads: {', '.join(means)}; but {feature} is none. Name one."
        )
    wanted = means if feature is None else {feature: means[feature]}
    held = cache.find(clip_id)
    for pooling in poolings:
        for name, mean in wanted.items():
            for space in held:
                unlike = differences(FeatureSpace(space.inputs), mean).keys()
                if space.pooling == pooling and unlike <= {"pooling", "stored_dtype"}:
                    return name, space
    taps = " or ".join(f"{name.removesuffix('/mean')}/{poolings[0]}" for name in wanted)
    raise MissingFeaturesError(
        f"what a head uses is told by tokens in the cache, but {taps} of {clip_id} is not there. "
        f"Add it to features.select and run: featurecache extract."
    )


_Columns = npt.NDArray[np.float64]


def _split(
    bundle: Bundle, tap: str, features: list[_Columns], tokens: _Columns
) -> tuple[_Columns, _Columns, _Columns, _Columns]:
    """Log odds (C,), base (C,), other inputs' part (C,), and each token's (S, C)."""
    import torch

    head = copy.deepcopy(bundle.head).double().eval()

    def logits(rows: _Columns) -> _Columns:
        with torch.no_grad():
            return np.asarray(head(torch.from_numpy(rows)).numpy())

    centre = head.front.mean.numpy()[None]  # (1, D)
    at = list(bundle.selected).index(f"{tap}/mean")
    start = sum(bundle.head.front.part_widths[:at])
    own = slice(start, start + tokens.shape[1])
    clip = np.concatenate(features)[None]
    without, each = clip.copy(), np.repeat(centre, len(tokens), axis=0)
    without[:, own], each[:, own] = centre[:, own], tokens
    base = logits(centre)
    return logits(clip)[0], base[0], (logits(without) - base)[0], (logits(each) - base) / len(tokens)


def step_times(timestamps_us: npt.NDArray[np.int64], shape: TapShape) -> npt.NDArray[np.int64]:
    """Mean time of the frames that each step joins, (T,) -> (T',)."""
    return np.array([part.mean() for part in np.array_split(timestamps_us, shape.steps)]).astype(np.int64)


def clip_frames(project: Project, clip: Clip, count: int, fit: Any) -> npt.NDArray[np.uint8]:
    """The clip's frames as the model sees them, (T, px, px, 3).

    Raises:
        UnreadableVideoError: If the recording is missing, another, or cannot be decoded.
    """
    path, memo = project.videos / clip.recording, DigestMemo(project.digest_memo)
    is_same = path.is_file() and memo.sha256(path)[:16] == clip.content
    if not is_same:
        raise UnreadableVideoError(
            f"pictures need the recording that was extracted, but {clip.recording} is missing or another. "
            "Put it back, or leave out --with-frames."
        )
    (read,) = read_clips(path, [(clip.start_us, clip.end_us)], count, fit=fit, time_limit_s=_TIME_LIMIT_S)
    if isinstance(read, ClipFailure):
        raise UnreadableVideoError(f"pictures need the clip's frames, but {clip.recording}: {read.reason}")
    return read.stacked


def picture_of(frames: npt.NDArray[np.uint8], parts: npt.NDArray[np.float64]) -> bytes:
    """Steps of a clip side by side as JPEG, in grey, red where a score is raised and blue where it is lowered.

    Args:
        frames: As the model sees them, shape (T, px, px, 3).
        parts: What each token adds, shape (T', P); where P is no square, a step has one colour.
    """
    side = math.isqrt(parts.shape[1])
    if side**2 != parts.shape[1]:
        side, parts = 1, parts.sum(axis=1, keepdims=True)
    grids = parts.reshape(len(parts), side, side)
    strength = np.clip(grids / max(float(np.quantile(np.abs(grids), 0.99)), _TINY), -1, 1)
    steps = np.unique(np.linspace(0, len(parts) - 1, min(SHOWN_STEPS, len(parts))).round().astype(int))
    where = np.arange(frames.shape[1]) * side // frames.shape[1]  # pixel -> row or column of patches
    shown = []
    for step in steps:
        frame = frames[min(len(frames) - 1, int((step + 0.5) * len(frames) / len(parts)))]
        heat = strength[step][np.ix_(where, where)][..., None]  # (px, px, 1)
        grey = np.repeat(frame.mean(axis=-1, keepdims=True), 3, axis=-1)
        opaque = _OPAQUE * np.abs(heat)
        shown.append(grey * (1 - opaque) + np.where(heat > 0, _RED, _BLUE) * opaque)
    return as_jpeg(np.concatenate(shown, axis=1).round().astype(np.uint8), _STEP_PX * len(shown))[0]


def _as_csv(found: ClipMap) -> bytes:
    rows = [
        [step, format_seconds(time_us), *found.place(patch), *(f"{value:.6g}" for value in added)]
        for step, time_us in enumerate(found.steps_us.tolist())
        for patch, added in enumerate(found.parts[step].tolist())
    ]
    return csv_bytes([["step", "time_s", "row", "column", *map(guard_cell, found.labels)], *rows])
