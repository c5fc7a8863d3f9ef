"""Extraction of a project: which clips the cache lacks, and the run that fills it.

Planning needs no weights: the fingerprint comes from the model's files and the settings, so a second
run over finished work loads no model and decodes nothing.
"""

import csv
import difflib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache.backbones import find_model, open_inputs
from featurecache.cells import format_seconds, guard_cell, parse_seconds, unguard_cell
from featurecache.clips import clip_id
from featurecache.clips_csv import read_table
from featurecache.digests import DigestMemo
from featurecache.errors import CacheNotFoundError, ClipTableError
from featurecache.extract import Extraction, FailedClip, Progress, Work, extract, feature_space
from featurecache.files import write_private
from featurecache.project import Project
from featurecache.recordings import Recording, find_recordings
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, FeatureCache

if TYPE_CHECKING:
    from featurecache.backbones.llava_next_video import LlavaNextVideoInputs

_ITEM_BYTES = {"float16": 2, "float32": 4}
_MOST_ASPECT = 20  # scaled by its short edge, a longer strip would fill the memory
_ROW_OVERHEAD_BYTES = 76  # key, digest, span, checksum and the chunk index


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes:
        space: The feature space of the settings.
        inputs: The backbone without its weights.
        work: Clips to compute, by recording.
        planned: Clips of this worker.
        present: Those that the cache has.
        failures: Those whose recording is gone, changed or unusable.
        bytes_to_write: About how much the cache will grow.
    """

    space: FeatureSpace
    inputs: "LlavaNextVideoInputs"
    work: tuple[Work, ...]
    planned: int
    present: int
    failures: tuple[FailedClip, ...]
    bytes_to_write: int

    @property
    def todo(self) -> int:
        """Clips to compute."""
        return sum(len(item.spans) for item in self.work)


def project_space(project: Project, *, allow_download: bool = False) -> "tuple[LlavaNextVideoInputs, FeatureSpace]":
    """The feature space that the project's settings ask for, and the inputs behind it.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        UnsupportedModelError: If it is of another architecture.
        SettingsError: If the prompt does not fit.
    """
    features = project.settings.features
    folder = find_model(features.model, allow_download=allow_download)
    inputs = open_inputs(folder, prompt=features.prompt, frames=features.frames, resize=features.resize)
    digests = DigestMemo(project.digest_memo)
    space = feature_space(inputs, dtype=features.dtype, stored_dtype=features.stored_dtype, sha256_of=digests.sha256)
    digests.save()
    return inputs, space


def plan_extraction(
    project: Project, *, worker: tuple[int, int] = (1, 1), limit: int | None = None, allow_download: bool = False
) -> Plan:
    """Compares the clip table with the cache.

    Args:
        project: The project; its clip table must exist.
        worker: (i, n): plan only the i-th of n shares. Recordings are dealt by their content's digest.
        limit: At most this many clips to compute.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ClipTableError: If there is no sound clip table.
        CacheFormatError: If the cache is of a newer format or no cache.
    """
    table = read_table(project.clips)
    inputs, space = project_space(project, allow_download=allow_download)
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    usable = {recording.name: recording for recording in recordings}
    reasons = {item.name: item.reason for item in unusable}
    index, count = worker
    clips = [clip for clip in table.clips if int(clip.content, 16) % count == index - 1]
    failures: list[FailedClip] = []
    spans: dict[tuple[str, int, int], Recording] = {}
    for clip in clips:
        recording = usable.get(clip.recording)
        reason = reasons.get(clip.recording) or _unfit(recording, clip.content)
        if recording is None or reason:
            failures.append(FailedClip(clip.clip_id, clip.recording, clip.start_us, clip.end_us, reason))
        else:
            spans[recording.sha256, clip.start_us, clip.end_us] = recording
    missing = _missing(project, list(spans), space)
    by_recording: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for sha256, start_us, end_us in missing[:limit]:
        by_recording[spans[sha256, start_us, end_us].name].append((start_us, end_us))
    work = tuple(Work(usable[name], tuple(todo)) for name, todo in by_recording.items())
    row_bytes = inputs.feature_dim * _ITEM_BYTES[space.stored_dtype] + _ROW_OVERHEAD_BYTES + 8 * inputs.frames
    return Plan(
        space,
        inputs,
        work,
        planned=len(clips),
        present=len(spans) - len(missing),
        failures=tuple(failures),
        bytes_to_write=row_bytes * len(missing[:limit]),
    )


def run_plan(project: Project, plan: Plan, *, on_progress: Callable[[Progress], None] = lambda _: None) -> Extraction:
    """Computes what the plan found missing and writes `failed_clips.csv`.

    Loads no model when there is nothing to compute.

    Raises:
        SettingsError: If the device cannot be used.
        CacheWriteError: If features cannot be saved; what was saved before is kept.
    """
    done = Extraction(Progress(0, 0, 0, 0, 0.0, 0.0), ())
    if plan.work:
        from featurecache.backbones.llava_next_video import LlavaNextVideoBackbone

        settings = project.settings.extract
        device = device_of(settings.device)
        backbone = LlavaNextVideoBackbone(plan.inputs, dtype=project.settings.features.dtype, device=device)
        with CacheWriter(project.cache, plan.space, _provenance(device)) as writer:
            done = extract(
                plan.work,
                backbone,
                writer,
                batch_size=settings.batch_size,
                decoders=settings.decoders,
                begin=lambda item: _begin(project, plan, writer, item),
                known_timestamps=_known_timestamps(project, plan),
                on_progress=on_progress,
            )
    tried = {clip_id(item.recording.sha256, *span) for item in plan.work for span in item.spans}
    failures = (*plan.failures, *done.failures)
    earlier = [row for row in _read_failures(project) if row.clip_id not in tried | {f.clip_id for f in failures}]
    write_private(project.failures, _failures_csv([*earlier, *failures]))
    return Extraction(done.progress, failures)


def _begin(project: Project, plan: Plan, writer: CacheWriter, item: Work) -> Work | None:
    """The clips of a recording that are still missing; None while another process is computing them."""
    sha256 = item.recording.sha256
    if not writer.claim(sha256):
        return None
    missing = set(_missing(project, [(sha256, *span) for span in item.spans], plan.space))
    return Work(item.recording, tuple(span for span in item.spans if (sha256, *span) in missing))


def _known_timestamps(project: Project, plan: Plan) -> dict[str, npt.NDArray[np.int64]]:
    """Frame timestamps that other feature spaces with the same sampling hold of the clips to compute."""
    todo = {clip_id(item.recording.sha256, *span) for item in plan.work for span in item.spans}
    cache = FeatureCache.open(project.cache)
    known: dict[str, npt.NDArray[np.int64]] = {}
    for space in cache.spaces:
        if (
            space.fingerprint != plan.space.fingerprint
            and space.inputs.get("sampling") == plan.space.inputs["sampling"]
        ):
            chosen = (space.tap, space.pooling, space.fingerprint)
            ids = [name for name in cache.clip_ids(*chosen) if name in todo]
            known.update(zip(ids, cache.timestamps_us(ids, *chosen), strict=True))
    return known


def _missing(project: Project, clips: list[tuple[str, int, int]], space: FeatureSpace) -> list[tuple[str, int, int]]:
    try:
        cache = FeatureCache.open(project.cache)
    except CacheNotFoundError:
        return clips
    return cache.missing(clips, space.fingerprint)


def _unfit(recording: Recording | None, content: str) -> str:
    """Why a recording cannot give the clips of the table; empty where it can."""
    if recording is None:
        return "the recording is not in the folder of videos"
    if not recording.sha256.startswith(content):
        return "the recording's content is not the one clips.csv was made from; run featurecache clips"
    width, height = recording.info.width_px, recording.info.height_px
    if max(width, height) > _MOST_ASPECT * min(width, height):
        return f"a picture's sides must be within {_MOST_ASPECT} to 1, but they are {width} x {height} px"
    return ""


def device_of(name: str) -> str:
    """The torch device that a setting means: `auto` is the GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _provenance(device: str) -> dict[str, str]:
    return {"device": device, **{name: version(name) for name in ("featurecache", "torch", "transformers", "av")}}


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
    found = {clip.recording: clip.content for clip in read_table(project.clips).clips}
    if recording not in found:
        near = difflib.get_close_matches(recording, found, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Take its name from clips.csv."
        raise ClipTableError(
            f"a recording must be in clips.csv or be named by its sha256, but {recording!r} is not. {hint}"
        )
    return found[recording]
