"""Which features of a project's clips are missing from the cache: what an extraction would do.

Planning needs no weights: the fingerprints come from the model's files and the settings, so a second
run over finished work loads no model and decodes nothing. Every selected feature is a feature space of its own; a
clip is planned if any of them is missing, and only missing features are computed and written.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurecache.backbones.adapter_files import Adapter
from featurecache.clips.clip import Clip, clip_id
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheNotFoundError, ClipTableError
from featurecache.extraction.failures import stored_clips
from featurecache.extraction.pipeline import FailedClip, Span, Work
from featurecache.extraction.spaces import project_spaces
from featurecache.extraction.spot_check import Canary
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, Kept, parse_kept, row_shape
from featurecache.store import FeatureCache
from featurecache.store.live import live_cache
from featurecache.store.withdrawn import Withdrawn, read_withdrawn
from featurecache.video.recordings import Recording, find_recordings

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_MOST_ASPECT = 20  # scaled by its short edge, a longer strip would fill the memory
_CANARIES = 2
_ROW_OVERHEAD_BYTES = 76  # key, digest, span, checksum and the chunk index


_Clip = tuple[str, int, int]
"""sha256 of the recording, start_us, end_us."""


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes:
        inputs: The backbone without its weights.
        kept: The selected features (tap and pooling), by name as in the settings.
        spaces: The feature space of each selected feature, by the same names.
        work: Clips to compute, by recording.
        planned: Number of clips that were compared with the cache.
        present: Number of clips that every space has, wherever their recording is now.
        failures: Clips that are missing from some space and whose recording is gone, changed or unusable.
        bytes_of: Estimated growth of the cache by each selected feature, by name.
        shared_frames: Estimated share of the sampled frames that overlapping clips have in common. Frame times are
            known only by the recording's average rate until it is decoded: frame n is taken to stand at n / rate.
        canaries: Stored clips to compute again before anything is written.
        adapter: What the backbone is run with; None for the model as it is.
        table: Ids of all clips of the clip table; None where the plan is of other clips.
    """

    inputs: "Inputs"
    kept: Mapping[str, Kept]
    spaces: Mapping[str, FeatureSpace]
    work: tuple[Work, ...]
    planned: int
    present: int
    failures: tuple[FailedClip, ...]
    bytes_of: Mapping[str, int]
    shared_frames: float
    canaries: tuple[Canary, ...]
    adapter: Adapter | None = None
    table: frozenset[str] | None = None

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
        return sum(len(item.lacking) for item in self.work)


def plan_extraction(
    project: Project,
    *,
    limit: int | None = None,
    keep: Sequence[str] | None = None,
    clip_ids: Collection[str] | None = None,
    adapter: Adapter | None = None,
    allow_download: bool = False,
) -> Plan:
    """Compares the clip table with the cache.

    Args:
        project: The project; its clip table must exist.
        limit: At most this many clips to compute.
        keep: As `project_spaces`.
        clip_ids: Plan these clips of the table only.
        adapter: As `project_spaces`.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ClipTableError: If there is no sound clip table, or no clip in it.
        CacheFormatError: If the cache is of a newer format or no cache.
    """
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    if not table.clips:
        raise ClipTableError(
            f"{project.clips.name} must have a row for each clip, but it has none below its header. "
            "Make it again: featurecache clips --force."
        )
    inputs, spaces = project_spaces(project, keep=keep, adapter=adapter, allow_download=allow_download)
    sources = recordings_of(project)
    clips = [clip for clip in table.clips if clip_ids is None or clip.clip_id in clip_ids]
    unusable_clips: list[FailedClip] = []
    planned: dict[_Clip, Recording] = {}
    for clip in clips:
        recording, reason = sources(clip)
        if recording is None:
            unusable_clips.append(FailedClip(clip.clip_id, clip.recording, clip.start_us, clip.end_us, reason))
        else:
            planned[recording.sha256, clip.start_us, clip.end_us] = recording
    ids = frozenset(clip.clip_id for clip in table.clips)
    return _plan(project, inputs, spaces, planned, unusable_clips, adapter=adapter, limit=limit, table=ids)


def plan_recordings(
    project: Project,
    wanted: Sequence[tuple[Recording, Sequence[Span]]],
    *,
    keep: Sequence[str],
    adapter: Adapter | None = None,
    allow_download: bool = False,
) -> Plan:
    """Compares clips of recordings, wherever these lie, with the cache; the clip table is not read.

    Args:
        project: The project, whose settings say how features are made and whose cache keeps them.
        wanted: Recordings of different content, each with its clips.
        keep: Names of the features (`tap/pooling`).
        adapter: As `project_spaces`.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        SettingsError: If the model has no such tap or pooling.
        CacheFormatError: If the cache is of a newer format or no cache.
    """
    inputs, spaces = project_spaces(project, keep=keep, adapter=adapter, allow_download=allow_download)
    withdrawn = read_withdrawn(project.cache)
    unusable: list[FailedClip] = []
    planned: dict[_Clip, Recording] = {}
    for recording, spans in wanted:
        reason = why_unfit(recording, recording.sha256, withdrawn)
        for start_us, end_us in spans:
            if reason:
                name = clip_id(recording.sha256, start_us, end_us)
                unusable.append(FailedClip(name, recording.name, start_us, end_us, reason))
            else:
                planned[recording.sha256, start_us, end_us] = recording
    return _plan(project, inputs, spaces, planned, unusable, adapter=adapter)


def _plan(
    project: Project,
    inputs: "Inputs",
    spaces: Mapping[str, FeatureSpace],
    planned: Mapping[_Clip, Recording],
    unusable: Sequence[FailedClip],
    *,
    adapter: Adapter | None,
    limit: int | None = None,
    table: frozenset[str] | None = None,
) -> Plan:
    """The plan of clips whose recordings are usable, and of others, which fail unless the cache has them."""
    failures = _without_stored(project, unusable, spaces)
    kept = {name: parse_kept(name, inputs.taps) for name in spaces}
    lacking = missing_features(project, list(planned), spaces)
    by_recording: dict[str, dict[Span, tuple[str, ...]]] = defaultdict(dict)
    usable: dict[str, Recording] = {}
    for clip in list(lacking)[:limit]:
        sha256, *span = clip
        usable[sha256] = planned[clip]
        by_recording[sha256][span[0], span[1]] = lacking[clip]
    work = tuple(Work(usable[sha256], todo) for sha256, todo in by_recording.items())
    row_bytes = {
        name: math.prod(row_shape(one, inputs.taps)) * _ITEM_BYTES[spaces[name].stored_dtype]
        + _ROW_OVERHEAD_BYTES
        + 8 * inputs.frames
        for name, one in kept.items()
    }
    rows = Counter(name for item in work for names in item.lacking.values() for name in names)
    return Plan(
        inputs,
        kept,
        spaces,
        work,
        planned=len(planned) + len(unusable),
        present=len(planned) - len(lacking) + len(unusable) - len(failures),
        failures=tuple(failures),
        bytes_of={name: one * rows[name] for name, one in row_bytes.items()},
        shared_frames=_shared_frames(work, inputs.frames),
        canaries=_canaries(planned, lacking, list(spaces)),
        adapter=adapter,
        table=table,
    )


def _without_stored(
    project: Project, clips: Sequence[FailedClip], spaces: Mapping[str, FeatureSpace]
) -> list[FailedClip]:
    """The clips that are missing from some feature space: stored clips no longer need their recording."""
    if not clips:
        return []
    try:
        cache = FeatureCache.open(project.cache)
    except CacheNotFoundError:
        return list(clips)
    stored = frozenset.intersection(*(stored_clips(cache, space.fingerprint) for space in spaces.values()))
    return [clip for clip in clips if clip.clip_id not in stored]


def missing_features(
    project: Project, clips: list[_Clip], spaces: Mapping[str, FeatureSpace]
) -> dict[_Clip, tuple[str, ...]]:
    """The missing features of each clip, in the order given; complete clips are left out."""
    live = live_cache(project.cache)
    missing = {name: set(live.missing(clips, space)) for name, space in spaces.items()}
    lacking = set[_Clip]().union(*missing.values())
    return {clip: tuple(name for name in spaces if clip in missing[name]) for clip in clips if clip in lacking}


def _shared_frames(work: Sequence[Work], frames: int) -> float:
    """See `Plan.shared_frames`. Where a rate is unknown, only samples of the very same time count as one frame."""
    sampled = distinct = 0
    middles = (2 * np.arange(frames) + 1) / (2 * frames)
    for item in work:
        spans = np.array(item.spans, np.int64).reshape(-1, 2)  # (N, 2)
        times_us = spans[:, :1] + np.diff(spans, axis=1) * middles  # (N, T)
        rate = item.recording.info.average_fps
        numbers = np.floor(times_us * rate / 1e6 + 1e-6) if rate else times_us
        sampled += numbers.size
        distinct += len(np.unique(numbers))
    return 1 - distinct / sampled if sampled else 0.0


def _canaries(
    planned: Mapping[_Clip, Recording], lacking: Mapping[_Clip, tuple[str, ...]], names: Sequence[str]
) -> tuple[Canary, ...]:
    """The first stored clip of each of two recordings: early ones are decoded soonest, and the choice is always one."""
    first: dict[str, Canary] = {}
    for (sha256, start_us, end_us), recording in sorted(planned.items(), key=lambda item: item[0]):
        stored = tuple(name for name in names if name not in lacking.get((sha256, start_us, end_us), ()))
        if stored and len(stored) > len(first[sha256].names if sha256 in first else ()):
            first[sha256] = Canary(recording, (start_us, end_us), stored)
    return tuple(first[sha256] for sha256 in sorted(first)[:_CANARIES])


def recordings_of(project: Project) -> Callable[[Clip], tuple[Recording | None, str]]:
    """What finds a clip's recording by its content, whatever the file is called today; or says why it cannot serve."""
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    by_content = {recording.sha256[:16]: recording for recording in recordings}
    by_name = {recording.name: recording for recording in recordings}
    reasons = {item.name: item.reason for item in unusable}
    withdrawn = read_withdrawn(project.cache)

    def find(clip: Clip) -> tuple[Recording | None, str]:
        recording = by_content.get(clip.content)
        if recording is None and clip.recording in reasons and not withdrawn.covers(clip.content):
            return None, reasons[clip.recording]
        reason = why_unfit(recording or by_name.get(clip.recording), clip.content, withdrawn)
        return (None if reason else recording), reason

    return find


def why_unfit(recording: Recording | None, content: str, withdrawn: Withdrawn) -> str:
    """Why a recording cannot give the clips of the table; empty where it can."""
    if withdrawn.covers(content):
        return "the recording was withdrawn (featurecache cache forget); take it out of the videos and clips.csv"
    if recording is None:
        return "the recording is not in the folder of videos"
    if not recording.sha256.startswith(content):
        return "the recording's content is not the one clips.csv was made from; run featurecache clips"
    width, height = recording.info.width_px, recording.info.height_px
    if max(width, height) > _MOST_ASPECT * min(width, height):
        return f"a frame's sides must be within {_MOST_ASPECT} to 1, but they are {width} x {height} px"
    return ""
