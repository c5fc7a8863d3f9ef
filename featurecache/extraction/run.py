"""A plan carried out: the backbone opened, stored clips checked, what is missing computed, failures recorded."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import clip_id
from featurecache.device import device_of
from featurecache.extraction.failures import record_failures
from featurecache.extraction.opening import open_planned
from featurecache.extraction.pipeline import Extraction, Progress, Span, Work, extract
from featurecache.extraction.plan import Plan
from featurecache.extraction.spot_check import check_canaries
from featurecache.project.settings import Project
from featurecache.store import CacheWriter, FeatureCache
from featurecache.store.clip_columns import Wanted
from featurecache.store.live import live_cache

_SEGMENT_MIB, _TOKENS_SEGMENT_MIB = 64, 256


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
    if plan.table is not None:
        record_failures(project, plan.spaces, failures, table=plan.table)
    return replace(done, failures=failures)


def still_lacking(project: Project, plan: Plan) -> frozenset[str]:
    """Ids of the plan's clips to compute that the cache lacks by now."""
    spans = [span for item in plan.work for span in item.spans]
    of = np.repeat(np.arange(len(plan.work)), [len(item.spans) for item in plan.work])
    wanted = Wanted.of([item.recording.sha256 for item in plan.work], of, spans)
    live = live_cache(project.cache)
    left = np.flatnonzero(np.any([live.lacks(wanted, space) for space in plan.spaces.values()], axis=0)).tolist()
    return frozenset(clip_id(plan.work[of[clip]].recording.sha256, *spans[clip]) for clip in left)


def claim_work(
    project: Project, plan: Plan, writers: Mapping[str, CacheWriter], item: Work, *, again: bool
) -> Work | None:
    """What a recording still lacks and this process has claimed; None while another process is computing it.

    Claims are taken in one order everywhere, and a recording whose first claim is held elsewhere is deferred whole:
    processes that keep the same features never divide a recording's features among them. Nothing waits for a claim,
    so there is no deadlock; what others hold is left to them.

    Args:
        project: The project.
        plan: What it lacks.
        writers: An open writer of each feature space, by the name of what is kept.
        item: The recording, and what the plan found lacking.
        again: Whether it was deferred before: then everything is taken that is free.
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
    live, clips = live_cache(project.cache), Wanted.of([sha256], 0, item.spans)
    lacks = {name: live.lacks(clips, plan.spaces[name]) for name in claimed}
    still: dict[Span, tuple[str, ...]] = {}
    for clip, (span, names) in enumerate(item.lacking.items()):
        left = tuple(name for name in names if name in lacks and lacks[name][clip])
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


def _segment_bytes(plan: Plan, name: str) -> int:
    """Bytes that a segment gathers: more for tokens, of which a clip alone may take 20 MB."""
    return (_TOKENS_SEGMENT_MIB if plan.kept[name].pooling == "tokens" else _SEGMENT_MIB) << 20


def _provenance(device: str) -> dict[str, str]:
    return {"device": device, **{name: version(name) for name in ("featurecache", "torch", "transformers", "av")}}
