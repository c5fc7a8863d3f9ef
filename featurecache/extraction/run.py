"""A plan carried out: the backbone opened, stored clips checked, what is missing computed, failures recorded."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from featurecache.device import device_of
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.failures import record_failures
from featurecache.extraction.opening import open_planned
from featurecache.extraction.pipeline import Extraction, Progress, extract
from featurecache.extraction.plan import Plan
from featurecache.extraction.spot_check import check_stored
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, FeatureCache
from featurecache.store.clip_columns import Wanted
from featurecache.store.live import live_cache

_SEGMENT_MIB, _TOKENS_SEGMENT_MIB = 64, 256
_log = logging.getLogger(__name__)


def run_plan(project: Project, plan: Plan, *, on_progress: Callable[[Progress], None] = lambda _: None) -> Extraction:
    """Computes what the plan found missing; `failed_clips.csv` then explains what is missing still.

    Loads no model when there is nothing to compute. Where the cache holds clips already, a few of them are computed
    again first.

    Raises:
        SettingsError: If the device cannot be used.
        FingerprintMismatchError: If the model's files changed since the plan was made.
        ChangedFeaturesError: If stored clips do not come out as they were stored; nothing is written then.
        CacheWriteError: If features cannot be saved; what was saved before is kept.
    """
    done = Extraction(Progress(), ())
    if plan.work:
        settings, dtype = project.settings.extract, project.settings.features.dtype
        device = device_of(settings.device)
        backbone = open_planned(
            project, plan.model.open(), plan.spaces, dtype=dtype, device=device, adapter=plan.adapter, asked=plan.asked
        )
        _log.debug("extracting %d clips of %d recordings on %s", plan.todo, len(plan.work), device)
        cache = FeatureCache.open_if_made(project.cache)  # as it is before the run
        checked = 0
        if cache is not None:
            checked = check_stored(plan.spot_checks, backbone, cache, spaces=plan.spaces, compute_dtype=dtype)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    CacheWriter(project.cache, space, _provenance(device), max_bytes=_segment_bytes(space))
                )
                for name, space in plan.spaces.items()
            }
            RecordingBoxes(project).note(clips[0].recording for clips in plan.work)
            done = extract(
                plan.work,
                backbone,
                writers,
                batch_size=settings.batch_size,
                decoders=settings.decoders,
                device=device,
                known_timestamps={} if cache is None else _known_timestamps(cache, plan),
                on_progress=on_progress,
            )
        done = replace(done, checked=checked)
        now = done.progress
        _log.debug("%d clips extracted, %d failed, %d left to others", now.extracted, now.failed, now.claimed_by_others)
    failures = (*plan.failures, *done.failures)
    if plan.table is not None:
        record_failures(project, plan.spaces, failures, table=plan.table)
    return replace(done, failures=failures)


def still_missing(project: Project, plan: Plan) -> frozenset[str]:
    """Ids of the plan's clips to compute that are missing from the cache by now."""
    clips = [clip for clips in plan.work for clip in clips]
    of = np.repeat(np.arange(len(plan.work)), list(map(len, plan.work)))
    wanted = Wanted.of([clips[0].recording.sha256 for clips in plan.work], of, [clip.span for clip in clips])
    live = live_cache(project.cache)
    left = np.flatnonzero(np.any([live.lacks(wanted, space) for space in plan.spaces.values()], axis=0)).tolist()
    return frozenset(clips[number].clip_id for number in left)


def _known_timestamps(cache: FeatureCache, plan: Plan) -> dict[str, npt.NDArray[np.int64]]:
    """Frame timestamps that feature spaces with the same sampling hold of the clips to compute."""
    todo = {clip.clip_id for clips in plan.work for clip in clips}
    known: dict[str, npt.NDArray[np.int64]] = {}
    for space in cache.spaces:
        if space.rows and space.inputs.get("sampling") == plan.space.inputs["sampling"]:
            ids = [name for name in cache.clip_ids(space=space.fingerprint) if name in todo]
            known.update(zip(ids, cache.timestamps_us(ids, space=space.fingerprint), strict=True))
    return known


def _segment_bytes(space: FeatureSpace) -> int:
    """Bytes that a segment gathers: more for tokens, of which a clip alone may take 20 MB."""
    return (_TOKENS_SEGMENT_MIB if space.pooling == "tokens" else _SEGMENT_MIB) << 20


def _provenance(device: str) -> dict[str, str]:
    return {"device": device, **{name: version(name) for name in ("featurecache", "torch", "transformers", "av")}}
