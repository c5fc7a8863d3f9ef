"""Which features of a project's clips are missing from the cache: what an extraction would do.

Planning needs no weights: the fingerprints come from the model's files and the settings, so a second
run over finished work loads no model and decodes nothing. Every selected feature is a feature space of its own; a
clip is planned if any of them is missing, and only missing features are computed and written.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache.backbones.adapter_files import Adapter
from featurecache.backbones.description import ModelDescription
from featurecache.clips.clip import ClipColumns, clip_id
from featurecache.clips.csv_file import read_table
from featurecache.errors import ClipTableError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.failures import FailedClip
from featurecache.extraction.spaces import project_spaces
from featurecache.project.features import BoxMismatch, box_px, of_recording
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, row_shape
from featurecache.store.clip_columns import Wanted
from featurecache.store.live import live_cache
from featurecache.store.withdrawn import Withdrawn, read_withdrawn
from featurecache.video.recordings import Recording, find_recordings

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_MOST_ASPECT = 20  # scaled by its short edge, a longer strip would fill the memory
_SPOT_CHECKS = 2
_ROW_OVERHEAD_BYTES = 76  # key, digest, span, checksum and the chunk index


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes:
        model: The backbone without its weights.
        spaces: The feature space of each selected feature, by its name in the settings (`tap/pooling`).
        work: Clips to compute, those of one recording together.
        planned: Number of clips that were compared with the cache.
        present: Number of clips that every space has, wherever their recording is now.
        failures: Clips that are missing from some space and whose recording is gone, changed or unusable.
        bytes_of: Estimated growth of the cache by each selected feature, by name.
        shared_frames: Estimated share of the sampled frames that overlapping clips have in common. Frame times are
            known only by the recording's average rate until it is decoded: frame n is taken to stand at n / rate.
        spot_checks: Stored clips to compute again before anything is written.
        adapter: What the backbone is run with; None for the model as it is.
        asked: What it is asked; None for features of the model's states.
        table: All clips of the clip table; None where the plan is of other clips.
        mismatch: Boxes of `features.crop` against the recordings of the clip table.
    """

    model: ModelDescription
    spaces: Mapping[str, FeatureSpace]
    work: tuple[tuple[ClipRecord, ...], ...]
    planned: int
    present: int
    failures: tuple[FailedClip, ...]
    bytes_of: Mapping[str, int]
    shared_frames: float
    spot_checks: tuple[ClipRecord, ...]
    adapter: Adapter | None = None
    asked: "Asked | None" = None
    table: ClipColumns | None = None
    mismatch: BoxMismatch = field(default_factory=BoxMismatch)

    @property
    def space(self) -> FeatureSpace:
        """The feature space of the first selected feature."""
        return next(iter(self.spaces.values()))

    @property
    def bytes_to_write(self) -> int:
        """Estimated growth of the cache."""
        return sum(self.bytes_of.values())

    @property
    def todo(self) -> int:
        """Clips to compute."""
        return sum(map(len, self.work))

    @property
    def taps(self) -> list[str]:
        """Taps that are read for the clips to compute."""
        return sorted({self.spaces[name].tap for clips in self.work for clip in clips for name in clip.wanted})


def plan_extraction(
    project: Project,
    *,
    limit: int | None = None,
    select: Sequence[str] | None = None,
    clip_ids: Collection[str] | None = None,
    adapter: Adapter | None = None,
    asked: "Asked | None" = None,
    allow_download: bool = False,
) -> Plan:
    """Compares the clip table with the cache.

    Args:
        project: The project; its clip table must exist.
        limit: At most this many clips to compute.
        select: As `project_spaces`.
        clip_ids: Plan these clips of the table only.
        adapter: As `project_spaces`.
        asked: As `project_spaces`.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ClipTableError: If there is no sound clip table, or no clip in it.
        CacheFormatError: If the cache is of a newer format or no cache.
    """
    clips = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level).columns
    if not len(clips):
        raise ClipTableError(
            f"{project.clips.name} must have a row for each clip, but it has none below its header. "
            "Make it again: featurecache clips --force."
        )
    model, spaces = project_spaces(project, select=select, adapter=adapter, asked=asked, allow_download=allow_download)
    boxes = RecordingBoxes(project)
    known, source = sources_of(project, boxes)
    _, first = np.unique(clips.recording.codes, return_index=True)  # a recording has one content
    contents = [clips.content.values[code] for code in clips.content.codes[first].tolist()]
    sources = [source(*named) for named in zip(clips.recording.values, contents, strict=True)]
    is_fit = np.array([found is not None for found, _ in sources])
    is_chosen = _are(clips, clip_ids)
    unfit = np.flatnonzero(is_chosen & ~is_fit[clips.recording.codes])
    unusable = [
        FailedClip(name, clips.recording.values[at], start_us, end_us, sources[at][1])
        for name, at, (start_us, end_us) in zip(
            clips.clip_ids(unfit), clips.recording.codes[unfit].tolist(), clips.span_us[unfit].tolist(), strict=True
        )
    ]
    chosen = np.flatnonzero(is_chosen & is_fit[clips.recording.codes])
    recordings = [found for found, _ in sources if found is not None]
    place = np.cumsum(is_fit) - 1  # of each fit recording among these
    wanted = Wanted.of(
        [recording.sha256 for recording in recordings], place[clips.recording.codes[chosen]], clips.span_us[chosen]
    )
    plan = _plan(
        project, model, spaces, recordings, wanted, unusable, adapter=adapter, asked=asked, limit=limit, table=clips
    )
    in_table = set(contents)
    return replace(plan, mismatch=boxes.mismatch([one for one in known if one.sha256[:16] in in_table]))


def _are(clips: ClipColumns, clip_ids: Collection[str] | None) -> npt.NDArray[np.bool_]:
    """Which clips have one of these ids, shape (N,); all where None is given."""
    everything = np.arange(len(clips))
    return everything >= 0 if clip_ids is None else np.array([name in clip_ids for name in clips.clip_ids(everything)])


def plan_recordings(
    project: Project,
    wanted: Sequence[tuple[Recording, Sequence[tuple[int, int]]]],
    *,
    select: Sequence[str],
    adapter: Adapter | None = None,
    asked: "Asked | None" = None,
    allow_download: bool = False,
) -> Plan:
    """Compares clips of recordings, wherever these lie, with the cache; the clip table is not read.

    Args:
        project: The project, whose settings say how features are made and whose cache keeps them.
        wanted: Recordings of different content, each with its clips.
        select: Names of the features (`tap/pooling`).
        adapter: As `project_spaces`.
        asked: As `project_spaces`.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        SettingsError: If the model has no such tap or pooling.
        CacheFormatError: If the cache is of a newer format or no cache.
    """
    model, spaces = project_spaces(project, select=select, adapter=adapter, asked=asked, allow_download=allow_download)
    withdrawn, boxes = read_withdrawn(project.cache), RecordingBoxes(project)
    unusable: list[FailedClip] = []
    fit: list[tuple[Recording, Sequence[tuple[int, int]]]] = []
    for recording, spans in wanted:
        reason = why_unfit(recording, recording.sha256, withdrawn, boxes)
        if reason:
            unusable += [FailedClip(clip_id(recording.sha256, *span), recording.name, *span, reason) for span in spans]
        else:
            fit.append((recording, spans))
    recordings = [recording for recording, _ in fit]
    clips = Wanted.of(
        [recording.sha256 for recording in recordings],
        np.repeat(np.arange(len(fit)), [len(spans) for _, spans in fit]),
        [span for _, spans in fit for span in spans],
    )
    return _plan(project, model, spaces, recordings, clips, unusable, adapter=adapter, asked=asked)


def _plan(
    project: Project,
    model: ModelDescription,
    spaces: Mapping[str, FeatureSpace],
    recordings: Sequence[Recording],
    wanted: Wanted,
    unusable: Sequence[FailedClip],
    *,
    adapter: Adapter | None,
    asked: "Asked | None",
    limit: int | None = None,
    table: ClipColumns | None = None,
) -> Plan:
    """The plan of clips whose recordings are usable, and of others, which fail unless the cache has them."""
    live = live_cache(project.cache)
    ids = [clip.clip_id for clip in unusable]  # a stored clip no longer needs its recording
    stored = np.all([live.holds(ids, space.fingerprint) for space in spaces.values()], axis=0)
    failures = list(itertools.compress(unusable, ~stored))
    missing_from = {name: live.lacks(wanted, space) for name, space in spaces.items()}  # (N,) each
    todo = np.flatnonzero(np.any(list(missing_from.values()), axis=0))
    by_recording: dict[int, list[ClipRecord]] = defaultdict(list)
    for clip in todo[:limit].tolist():
        number, (start_us, end_us) = int(wanted.recording[clip]), wanted.span_us[clip]
        missing = tuple(name for name in spaces if missing_from[name][clip])
        by_recording[number].append(ClipRecord(recordings[number], int(start_us), int(end_us), missing))
    work = tuple(map(tuple, by_recording.values()))
    row_bytes = {
        name: math.prod(row_shape(space, model.taps)) * _ITEM_BYTES[space.stored_dtype]
        + _ROW_OVERHEAD_BYTES
        + 8 * model.frames
        for name, space in spaces.items()
    }
    # A word that the model chose can flip between two that are as probable: only numbers come out again.
    comparable = {
        name: is_missing for name, is_missing in missing_from.items() if not spaces[name].tap.endswith("_said")
    }
    rows = Counter(name for clips in work for one in clips for name in one.wanted)
    count = len(wanted.span_us)
    return Plan(
        model,
        spaces,
        work,
        planned=count + len(unusable),
        present=count - len(todo) + len(unusable) - len(failures),
        failures=tuple(failures),
        bytes_of={name: one * rows[name] for name, one in row_bytes.items()},
        shared_frames=_shared_frames(work, model.frames),
        spot_checks=_spot_checks(recordings, wanted, comparable) if work and comparable else (),
        adapter=adapter,
        asked=asked,
        table=table,
    )


def _shared_frames(work: Sequence[Sequence[ClipRecord]], frames: int) -> float:
    """See `Plan.shared_frames`. Where a rate is unknown, only samples of the very same time count as one frame."""
    sampled = distinct = 0
    middles = (2 * np.arange(frames) + 1) / (2 * frames)
    for clips in work:
        spans = np.array([clip.span for clip in clips], np.int64)  # (N, 2)
        times_us = spans[:, :1] + np.diff(spans, axis=1) * middles  # (N, T)
        rate = clips[0].recording.info.average_fps
        numbers = np.floor(times_us * rate / 1e6 + 1e-6) if rate else times_us
        sampled += numbers.size
        distinct += len(np.unique(numbers))
    return 1 - distinct / sampled if sampled else 0.0


def _spot_checks(
    recordings: Sequence[Recording], wanted: Wanted, missing_from: Mapping[str, npt.NDArray[np.bool_]]
) -> tuple[ClipRecord, ...]:
    """The first stored clip of each of two recordings: early ones are decoded soonest, and the choice is always one."""
    stored = len(missing_from) - np.sum(
        list(missing_from.values()), axis=0
    )  # features that the cache has of each clip, (N,)
    by_digest = np.argsort(np.argsort([recording.sha256 for recording in recordings]))
    place = by_digest[wanted.recording]
    order = np.lexsort((wanted.span_us[:, 1], wanted.span_us[:, 0], -stored, place))
    order = order[stored[order] > 0]
    _, first = np.unique(place[order], return_index=True)
    return tuple(
        ClipRecord(
            recordings[wanted.recording[clip]],
            int(wanted.span_us[clip, 0]),
            int(wanted.span_us[clip, 1]),
            tuple(name for name in missing_from if not missing_from[name][clip]),
        )
        for clip in order[first[:_SPOT_CHECKS]].tolist()
    )


def sources_of(
    project: Project, boxes: RecordingBoxes
) -> tuple[Sequence[Recording], Callable[[str, str], tuple[Recording | None, str]]]:
    """The recordings there are; and what finds one of the table by name and content, or says why it cannot serve.

    It is found by its content, whatever the file is called today.
    """
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    by_content = {recording.sha256[:16]: recording for recording in recordings}
    by_name = {recording.name: recording for recording in recordings}
    reasons = {item.name: item.reason for item in unusable}
    withdrawn = read_withdrawn(project.cache)

    def find(name: str, content: str) -> tuple[Recording | None, str]:
        recording = by_content.get(content)
        if recording is None and name in reasons and not withdrawn.covers(content):
            return None, reasons[name]
        reason = why_unfit(recording or by_name.get(name), content, withdrawn, boxes)
        return (None if reason else recording), reason

    return recordings, find


def why_unfit(recording: Recording | None, content: str, withdrawn: Withdrawn, boxes: RecordingBoxes) -> str:
    """Why a recording cannot give the clips of the table, of the part of its frames that is read; empty if it can."""
    if withdrawn.covers(content):
        return "the recording was withdrawn (featurecache cache forget); take it out of the videos and clips.csv"
    if recording is None:
        return "the recording is not in the folder of videos"
    if not recording.sha256.startswith(content):
        return "the recording's content is not the one clips.csv was made from; run featurecache clips"
    if reason := boxes.why_other(recording):
        return reason
    size_px = recording.info.width_px, recording.info.height_px
    rows, columns = box_px(of_recording(boxes.crop, recording.name), *size_px)
    width, height = columns.stop - columns.start, rows.stop - rows.start
    if max(width, height) > _MOST_ASPECT * min(width, height):
        part = "a frame's sides" if boxes.crop is None else "the sides of features.crop"
        return f"{part} must be within {_MOST_ASPECT} to 1, but they are {width} x {height} px"
    return ""
