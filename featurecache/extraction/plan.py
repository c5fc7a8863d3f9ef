"""Extraction of a project: which clips the cache lacks, and the run that fills it.

Planning needs no weights: the fingerprints come from the model's files and the settings, so a second
run over finished work loads no model and decodes nothing. Every kept feature is a feature space of its own; a clip
is to do if any of them lacks it, and only what is lacking is computed and written.
"""

import csv
import difflib
import io
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache.backbones import find_model, open_backbone, open_inputs
from featurecache.backbones.adapter_files import Adapter
from featurecache.clips.clip import clip_id
from featurecache.clips.csv_file import read_table
from featurecache.csv_fields import format_seconds, guard_cell, parse_seconds, unguard_cell
from featurecache.device import device_of
from featurecache.errors import CacheNotFoundError, ClipTableError
from featurecache.extraction.pipeline import Extraction, FailedClip, Progress, Span, Work, extract
from featurecache.extraction.spot_check import Canary, check_canaries
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, Kept, feature_space, parse_kept, row_shape
from featurecache.store import CacheWriter, FeatureCache
from featurecache.store.claims import Claims
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import Recording, find_recordings

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_MOST_ASPECT = 20  # scaled by its short edge, a longer strip would fill the memory
_CANARIES = 2
_TURN_S = 0.05
_SEGMENT_MIB, _TOKENS_SEGMENT_MIB = 64, 256
_ROW_OVERHEAD_BYTES = 76  # key, digest, span, checksum and the chunk index


_Clip = tuple[str, int, int]
"""sha256 of the recording, start_us, end_us."""


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes:
        inputs: The backbone without its weights.
        kept: What is kept of each clip, by name as in the settings.
        spaces: The feature space of each, by the same names.
        work: Clips to compute, by recording.
        planned: Clips of this worker.
        present: Those that every space has.
        failures: Those whose recording is gone, changed or unusable.
        bytes_of: About how much the cache will grow by each of what is kept, by name.
        shared_frames: Estimated share of the sampled frames that overlapping clips have in common. Frame times are
            known only by the recording's average rate until it is decoded: frame n is taken to stand at n / rate.
        canaries: Stored clips to compute again before anything is written.
        adapter: What the backbone is run with; None for the model as it is.
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

    @property
    def space(self) -> FeatureSpace:
        """The feature space of what is kept first."""
        return next(iter(self.spaces.values()))

    @property
    def bytes_to_write(self) -> int:
        """About how much the cache will grow."""
        return sum(self.bytes_of.values())

    @property
    def todo(self) -> int:
        """Clips to compute."""
        return sum(len(item.lacking) for item in self.work)


def project_spaces(
    project: Project,
    *,
    keep: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    allow_download: bool = False,
) -> "tuple[Inputs, dict[str, FeatureSpace]]":
    """The feature spaces that the project's settings ask for by name (`tap/pooling`), and the inputs behind them.

    Args:
        project: The project.
        keep: Names of the features, where they are others than the settings'.
        adapter: What the backbone is run with; taps that it changes are feature spaces of their own.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        UnsupportedModelError: If it is of another architecture.
        SettingsError: If the prompt does not fit, or the model has no such tap or pooling.
    """
    features = project.settings.features
    folder = find_model(features.model, allow_download=allow_download)
    inputs = open_inputs(folder, prompt=features.prompt, frames=features.frames, resize=features.resize)
    digests = DigestMemo(project.digest_memo)
    spaces = {
        str(kept): feature_space(
            inputs, kept, dtype=features.dtype, stored_dtype=features.stored_dtype, sha256_of=digests.sha256
        )
        for kept in (parse_kept(text, inputs.taps) for text in keep or features.keep)
    }
    digests.save()
    if adapter is not None:
        spaces = {name: with_adapter(space, adapter) for name, space in spaces.items()}
    return inputs, spaces


def with_adapter(space: FeatureSpace, adapter: Adapter) -> FeatureSpace:
    """The feature space when the backbone is run with an adapter; the same one where that changes nothing."""
    if not adapter.changes(space.tap):
        return space
    return FeatureSpace({**space.inputs, "adapter": dict(adapter.sha256)})


def project_space(project: Project, *, allow_download: bool = False) -> "tuple[Inputs, FeatureSpace]":
    """The feature space of what is kept first, and the inputs behind it; errors as for `project_spaces`."""
    inputs, spaces = project_spaces(project, allow_download=allow_download)
    return inputs, next(iter(spaces.values()))


def plan_extraction(
    project: Project,
    *,
    worker: tuple[int, int] = (1, 1),
    limit: int | None = None,
    keep: Sequence[str] | None = None,
    clip_ids: Collection[str] | None = None,
    adapter: Adapter | None = None,
    allow_download: bool = False,
) -> Plan:
    """Compares the clip table with the cache.

    Args:
        project: The project; its clip table must exist.
        worker: (i, n): plan only the i-th of n shares. Recordings are dealt by their content's digest.
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
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    usable = {recording.name: recording for recording in recordings}
    reasons = {item.name: item.reason for item in unusable}
    index, count = worker
    clips = [clip for clip in table.clips if int(clip.content, 16) % count == index - 1]
    if clip_ids is not None:
        clips = [clip for clip in clips if clip.clip_id in clip_ids]
    failures: list[FailedClip] = []
    planned: dict[_Clip, Recording] = {}
    for clip in clips:
        recording = usable.get(clip.recording)
        reason = reasons.get(clip.recording) or why_unfit(recording, clip.content)
        if recording is None or reason:
            failures.append(FailedClip(clip.clip_id, clip.recording, clip.start_us, clip.end_us, reason))
        else:
            planned[recording.sha256, clip.start_us, clip.end_us] = recording
    return _plan(project, inputs, spaces, planned, failures, adapter=adapter, limit=limit)


def plan_recordings(
    project: Project,
    wanted: Sequence[tuple[Recording, Sequence[Span]]],
    *,
    keep: Sequence[str],
    adapter: Adapter | None = None,
    allow_download: bool = False,
) -> Plan:
    """Compares clips of recordings, wherever these lie, with the cache; the clip table is not asked.

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
    failures: list[FailedClip] = []
    planned: dict[_Clip, Recording] = {}
    for recording, spans in wanted:
        reason = why_unfit(recording, recording.sha256)
        for start_us, end_us in spans:
            if reason:
                name = clip_id(recording.sha256, start_us, end_us)
                failures.append(FailedClip(name, recording.name, start_us, end_us, reason))
            else:
                planned[recording.sha256, start_us, end_us] = recording
    return _plan(project, inputs, spaces, planned, failures, adapter=adapter)


def _plan(
    project: Project,
    inputs: "Inputs",
    spaces: Mapping[str, FeatureSpace],
    planned: Mapping[_Clip, Recording],
    failures: Sequence[FailedClip],
    *,
    adapter: Adapter | None,
    limit: int | None = None,
) -> Plan:
    """The plan of clips whose recordings are usable."""
    kept = {name: parse_kept(name, inputs.taps) for name in spaces}
    lacking = _lacking(project, list(planned), spaces)
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
        planned=len(planned) + len(failures),
        present=len(planned) - len(lacking),
        failures=tuple(failures),
        bytes_of={name: one * rows[name] for name, one in row_bytes.items()},
        shared_frames=_shared_frames(work, inputs.frames),
        canaries=_canaries(planned, lacking, list(spaces)),
        adapter=adapter,
    )


def run_plan(project: Project, plan: Plan, *, on_progress: Callable[[Progress], None] = lambda _: None) -> Extraction:
    """Computes what the plan found missing and writes `failed_clips.csv`.

    Loads no model when there is nothing to compute. Where the cache holds clips already, a few of them are computed
    again first.

    Raises:
        SettingsError: If the device cannot be used.
        ChangedFeaturesError: If stored clips do not come out as they were stored; nothing is written then.
        CacheWriteError: If features cannot be saved; what was saved before is kept.
    """
    done = Extraction(Progress(), ())
    if plan.work:
        settings, dtype = project.settings.extract, project.settings.features.dtype
        device = device_of(settings.device)
        backbone = open_backbone(plan.inputs, dtype=dtype, device=device)
        if plan.adapter is not None:
            from featurecache.backbones.adapter import attach_adapter

            attach_adapter(backbone, plan.adapter.folder)
        checked = check_canaries(
            plan.canaries, backbone, project.cache, kept=plan.kept, spaces=plan.spaces, compute_dtype=dtype
        )
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    CacheWriter(project.cache, space, _provenance(device), max_bytes=_segment_bytes(plan, name))
                )
                for name, space in plan.spaces.items()
            }
            done = extract(
                plan.work,
                backbone,
                writers,
                kept=plan.kept,
                spaces=plan.spaces,
                batch_size=settings.batch_size,
                decoders=settings.decoders,
                device=device,
                begin=lambda item, again: claim_work(project, plan, writers, item, again=again),
                known_timestamps=_known_timestamps(project, plan),
                on_progress=on_progress,
            )
        done = replace(done, checked=checked)
    failures = (*plan.failures, *done.failures)
    _record_failures(project, plan, failures)
    return replace(done, failures=failures)


def still_lacking(project: Project, plan: Plan) -> frozenset[str]:
    """Ids of the plan's clips to compute that the cache lacks by now."""
    todo = [(item.recording.sha256, *span) for item in plan.work for span in item.spans]
    return frozenset(clip_id(*clip) for clip in _lacking(project, todo, plan.spaces))


def claim_work(
    project: Project, plan: Plan, writers: Mapping[str, CacheWriter], item: Work, *, again: bool
) -> Work | None:
    """What a recording still lacks and this process has claimed; None while another process is computing it.

    Claims are taken in one order everywhere, and a recording whose first claim is held elsewhere is put off whole:
    processes that keep the same features never divide a recording's features among them. Nothing waits for a claim,
    so there is no deadlock; what others hold is left to them.

    Args:
        project: The project.
        plan: What it lacks.
        writers: An open writer of each feature space, by the name of what is kept.
        item: The recording, and what the plan found lacking.
        again: Whether it was put off before: then everything is taken that is free.
    """
    sha256 = item.recording.sha256
    wanted = {name for names in item.lacking.values() for name in names}
    claimed: list[str] = []
    for name in sorted(wanted, key=lambda name: plan.spaces[name].fingerprint):
        if writers[name].claim(sha256):
            claimed.append(name)
        elif not claimed and not again:
            return None
    if not claimed:
        return None
    spaces = {name: plan.spaces[name] for name in claimed}
    found = _lacking(project, [(sha256, *span) for span in item.spans], spaces)
    still: dict[Span, tuple[str, ...]] = {}
    for span, names in item.lacking.items():
        left = tuple(name for name in names if name in found.get((sha256, *span), ()))
        if left:
            still[span] = left
    return Work(item.recording, still)


def _known_timestamps(project: Project, plan: Plan) -> dict[str, npt.NDArray[np.int64]]:
    """Frame timestamps that feature spaces with the same sampling hold of the clips to compute."""
    todo = {clip_id(item.recording.sha256, *span) for item in plan.work for span in item.spans}
    cache = FeatureCache.open(project.cache)
    known: dict[str, npt.NDArray[np.int64]] = {}
    for space in cache.spaces:
        if space.rows and space.inputs.get("sampling") == plan.space.inputs["sampling"]:
            ids = [name for name in cache.clip_ids(space=space.fingerprint) if name in todo]
            known.update(zip(ids, cache.timestamps_us(ids, space=space.fingerprint), strict=True))
    return known


def _lacking(project: Project, clips: list[_Clip], spaces: Mapping[str, FeatureSpace]) -> dict[_Clip, tuple[str, ...]]:
    """Which kept features each clip lacks, in the order given; clips that lack none are left out."""
    try:
        cache = FeatureCache.open(project.cache)
    except CacheNotFoundError:
        return dict.fromkeys(clips, tuple(spaces))
    missing = {name: set(cache.missing(clips, space.fingerprint)) for name, space in spaces.items()}
    found = {clip: tuple(name for name in spaces if clip in missing[name]) for clip in clips}
    return {clip: names for clip, names in found.items() if names}


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


def _segment_bytes(plan: Plan, name: str) -> int:
    """Bytes that a segment gathers: more for tokens, of which a clip alone may take 20 MB."""
    return (_TOKENS_SEGMENT_MIB if plan.kept[name].pooling == "tokens" else _SEGMENT_MIB) << 20


def why_unfit(recording: Recording | None, content: str) -> str:
    """Why a recording cannot give the clips of the table; empty where it can."""
    if recording is None:
        return "the recording is not in the folder of videos"
    if not recording.sha256.startswith(content):
        return "the recording's content is not the one clips.csv was made from; run featurecache clips"
    width, height = recording.info.width_px, recording.info.height_px
    if max(width, height) > _MOST_ASPECT * min(width, height):
        return f"a picture's sides must be within {_MOST_ASPECT} to 1, but they are {width} x {height} px"
    return ""


def _provenance(device: str) -> dict[str, str]:
    return {"device": device, **{name: version(name) for name in ("featurecache", "torch", "transformers", "av")}}


def _record_failures(project: Project, plan: Plan, failures: Sequence[FailedClip]) -> None:
    """Adds to `failed_clips.csv` what failed, and drops what the cache has by now, whoever computed it.

    Every process of a run does so when it ends; a claim, which expires, makes them take turns.
    """
    private_folder(project.state)
    with Claims(project.state) as turn:
        while not turn.take(project.failures.name):
            time.sleep(_TURN_S)
        rows = {row.clip_id: row for row in _read_failures(project)}
        for name in _stored(project, plan) if rows else ():
            rows.pop(name, None)
        rows |= {failure.clip_id: failure for failure in failures}
        write_private(project.failures, _failures_csv(rows.values()))


def _stored(project: Project, plan: Plan) -> set[str]:
    """Ids of the clips of which the cache holds all that the plan keeps."""
    try:
        cache = FeatureCache.open(project.cache)
    except CacheNotFoundError:
        return set()
    held = {space.fingerprint for space in cache.spaces}
    if not all(space.fingerprint in held for space in plan.spaces.values()):
        return set()
    return set.intersection(*(set(cache.clip_ids(space=space.fingerprint)) for space in plan.spaces.values()))


def _failures_csv(failures: Iterable[FailedClip]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip_id", "recording", "start_s", "end_s", "reason"])
    for clip in failures:
        times = (format_seconds(clip.start_us), format_seconds(clip.end_us))
        writer.writerow([clip.clip_id, guard_cell(clip.recording), *times, guard_cell(clip.reason)])
    return text.getvalue().encode()


def _read_failures(project: Project) -> list[FailedClip]:
    try:
        with project.failures.open(newline="", encoding="utf-8") as file:
            return [
                FailedClip(
                    row["clip_id"],
                    unguard_cell(row["recording"]),
                    parse_seconds(row["start_s"]),
                    parse_seconds(row["end_s"]),
                    unguard_cell(row["reason"]),
                )
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ClipTableError(
            f"{project.failures.name} must be as featurecache wrote it, but it is not ({error}). "
            "Remove it and run featurecache extract again."
        ) from error


def failed_clip_ids(project: Project) -> frozenset[str]:
    """Clips that the last extraction could not have; none where there was no extraction."""
    return frozenset(clip.clip_id for clip in _read_failures(project))


def contents(project: Project) -> dict[str, str]:
    """First 16 digits of each usable recording's sha256 -> all 64."""
    recordings, _ = find_recordings(project.videos, project.digest_memo)
    return {recording.sha256[:16]: recording.sha256 for recording in recordings}


def content_of(project: Project, recording: str) -> str:
    """Digits of a recording's sha256, from its name in the clip table or from digits.

    Raises:
        ClipTableError: If it is neither.
    """
    if len(recording) in range(16, 65) and not set(recording) - set("0123456789abcdef"):
        return recording
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    found = {clip.recording: clip.content for clip in table.clips}
    if recording not in found:
        near = difflib.get_close_matches(recording, found, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Take its name from clips.csv."
        raise ClipTableError(
            f"a recording must be in clips.csv or be named by its sha256, but {recording!r} is not. {hint}"
        )
    return found[recording]
