"""A pool of workers for one extraction: they share the list by claims in the cache, and a crash loses no clip.

Every worker gets the whole list and claims recordings from it, the longest first, as processes started by hand do. A
recording is claimed by one worker, so that no row is computed twice. A worker that crashes is restarted once and
resumes with what the cache is missing. Where all workers have ended and clips are left after a crash, those that may
still run are started once more. The result is read from the cache at the end, not from the workers' reports.

What a worker runs in (a process per device, a Ray actor) and how its messages travel is not here.
"""

import functools
import json
import logging
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from featurecache.errors import FingerprintMismatchError, WorkerDiedError
from featurecache.extraction.pipeline import Extraction, Progress, WorkerCrash
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.extraction.run import run_plan, still_missing
from featurecache.project.settings import Project, open_project
from featurecache.spelling import counted, listed
from featurecache.workers.messages import Report, Share

_MOST_CRASHES = 2
_log = logging.getLogger(__name__)
_GRACE_S = 60.0  # to finish a batch and save what is gathered


Tell = Callable[[Report], None]


class Worker(Protocol):
    """A started worker; it always sends one last message, also when it crashes."""

    def stop(self) -> None:
        """Asks it to save what it has and end."""

    def join(self, timeout_s: float) -> None:
        """Waits until it is gone, for so long at most."""

    def kill(self) -> None:
        """Ends it now; returns when it is gone."""


def shares(config: Path, project: Project, plan: Plan, *, devices: Sequence[str]) -> list[Share]:
    """One share for each device, but none for devices that would find no recording left."""
    devices = devices[: len(plan.work)]
    ids = tuple(clip.clip_id for clips in sorted(plan.work, key=len, reverse=True) for clip in clips)
    fingerprints = tuple(sorted(space.fingerprint for space in plan.spaces.values()))
    each = -(-len(plan.work) // max(1, len(devices)))
    decoders = min(project.settings.extract.decoders, each)
    # The fields of the last tap, that of decisions and words, are all that there are.
    asked = "" if plan.asked is None else json.dumps(plan.asked.fields(list(plan.asked.widths)[-1]))
    return [Share(str(config), ids, fingerprints, device, decoders, tuple(plan.spaces), asked) for device in devices]


def run_share(share: Share, *, on_progress: Callable[[Progress], None]) -> Extraction:
    """One worker's work, where it is done: what of its list is missing from the cache and claimed by no other worker.

    Raises:
        FingerprintMismatchError: If the project or the model has changed since the list was made.
        FeatureCacheError: As `plan_extraction` and `run_plan`.
    """
    project = open_project(Path(share.config))
    extract = replace(project.settings.extract, device=share.device, decoders=share.decoders)
    project = replace(project, settings=replace(project.settings, extract=extract))
    asked = None
    if share.asked:
        from featurecache.backbones.asking import asked_of  # it loads torch

        asked = asked_of(json.loads(share.asked))
    plan = plan_extraction(project, select=share.select or None, asked=asked)
    found = tuple(sorted(space.fingerprint for space in plan.spaces.values()))
    if found != share.fingerprints:
        raise FingerprintMismatchError(
            f"all workers must fill the feature spaces of the run's start ({_short(share.fingerprints)}), "
            f"but the project now asks for {_short(found)}. Settings or model "
            "were changed: run the command again."
        )
    place = {name: number for number, name in enumerate(share.clip_ids)}
    mine = (tuple(clip for clip in clips if clip.clip_id in place) for clips in plan.work)
    work = tuple(sorted(filter(None, mine), key=lambda clips: min(place[clip.clip_id] for clip in clips)))
    return run_plan(project, replace(plan, work=work), on_progress=on_progress)


def run_pool(
    project: Project,
    plan: Plan,
    names: Sequence[str],
    start: Callable[[str, Tell], Worker],
    *,
    lease_s: float = 0.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Starts a worker for each name, waits until all have ended, and restarts those that crash.

    Whatever ends this call, an interruption included, no worker outlives it.

    Args:
        project: The project.
        plan: What was missing at the start.
        names: What workers are called.
        start: Starts the worker of a name; what it tells may come from any thread.
        lease_s: How long the claims of a dead worker may count, where its machine is another one.
        on_progress: Called with everybody's progress together.

    Raises:
        WorkerDiedError: If clips are left that no worker survived to compute. What was saved stays.
        FeatureCacheError: What made a worker give up; the others are stopped then.
    """
    pool = _Pool(names, start)
    began = time.monotonic()

    def together() -> Progress:
        return _together(pool.latest.values(), plan.todo, len(names), time.monotonic() - began)

    try:
        pool.begin(names)
        died = False
        while pool.running:
            report = pool.receive()
            if isinstance(report, Progress):
                on_progress(together())
                continue
            died |= isinstance(report, WorkerCrash)
            if not pool.running and died and pool.sound() and still_missing(project, plan) - _failed(pool.done):
                died = False
                time.sleep(lease_s)
                pool.begin(pool.sound())
    finally:
        _end([worker for _, worker in pool.running.values()])
    missing = still_missing(project, plan)
    left = missing - _failed(pool.done)
    if left and died:
        raise _died(plan, left, pool.crashes)
    failures = {failure.clip_id: failure for one in pool.done for failure in one.failures}
    progress = replace(
        together(),
        extracted=plan.todo - len(missing),
        failed=len(missing) - len(left),
        claimed_by_others=len(left),
    )
    ordered = sorted(failures.values(), key=lambda f: (f.recording, f.start_us, f.end_us))
    checked = sum(one.checked for one in pool.done)
    return Extraction(progress, tuple(ordered), checked, tuple(pool.crashes))


class _Pool:
    """Workers that run, by the number of their start, and what all have told; one that crashes is restarted once."""

    def __init__(self, names: Sequence[str], start: Callable[[str, Tell], Worker]) -> None:
        self._names, self._start, self._started = names, start, 0
        self._reports: queue.SimpleQueue[tuple[int, Report]] = queue.SimpleQueue()
        self.running: dict[int, tuple[str, Worker]] = {}
        self.latest: dict[int, Progress] = {}
        self.done: list[Extraction] = []
        self.crashes: list[WorkerCrash] = []

    def begin(self, names: Sequence[str]) -> None:
        for name in names:
            number, self._started = self._started, self._started + 1
            tell = functools.partial(self._tell, number)
            self.running[number] = name, self._start(name, tell)

    def _tell(self, number: int, report: Report) -> None:
        self._reports.put((number, report))

    def sound(self) -> list[str]:
        """The names of workers that have not crashed too often."""
        return [name for name in self._names if sum(one.worker == name for one in self.crashes) < _MOST_CRASHES]

    def receive(self) -> Progress | Extraction | WorkerCrash:
        """Waits for what a worker tells next, and raises the error that made one give up."""
        number, report = self._reports.get()
        name, worker = self.running[number]
        if isinstance(report, Exception):
            raise report
        if isinstance(report, Progress):
            self.latest[number] = report
            return report
        worker.kill()  # it has sent its last message
        del self.running[number]
        if isinstance(report, WorkerCrash):
            self.crashes.append(report)
            _log.debug("%s %s", name, report.reason)
            if name in self.sound():
                self.begin([name])
        else:
            self.done.append(report)
            self.latest[number] = report.progress
        return report


def _end(workers: Sequence[Worker]) -> None:
    """Lets workers save what they have; ends those at once that take too long, or when interrupted again."""
    deadline = time.monotonic() + _GRACE_S
    try:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(deadline - time.monotonic())
    finally:
        for worker in workers:
            worker.kill()


def _failed(done: Iterable[Extraction]) -> frozenset[str]:
    return frozenset(failure.clip_id for one in done for failure in one.failures)


def _together(parts: Iterable[Progress], total: int, workers: int, elapsed_s: float) -> Progress:
    """Everybody's progress as one; what a crashed worker had not saved is counted again by its successor."""
    told = list(parts)
    failed = sum(part.failed for part in told)
    extracted = min(sum(part.extracted for part in told), total - failed)
    return Progress(
        extracted=extracted,
        failed=failed,
        total=total,
        elapsed_s=elapsed_s,
        waited_s=sum(part.waited_s for part in told) / workers,
        preprocess_s=sum(part.preprocess_s for part in told) / workers,
        model_s=sum(part.model_s for part in told) / workers,
        write_s=sum(part.write_s for part in told) / workers,
        batch_size=max((part.batch_size for part in told), default=0),
        shared_frames=sum(part.shared_frames * part.extracted for part in told)
        / max(1, sum(p.extracted for p in told)),
    )


def _died(plan: Plan, left: frozenset[str], crashes: Sequence[WorkerCrash]) -> WorkerDiedError:
    names = sorted({clip.recording.name for clips in plan.work for clip in clips if clip.clip_id in left})
    how = "; ".join(f"{crash.worker} {crash.reason}" for crash in crashes)
    return WorkerDiedError(
        f"a worker must live until its clips are computed, but {how}, and "
        f"{counted(len(left), 'clip', ('is', 'are'))} left, of {listed(names, 3)}. What was saved stays. "
        "If memory ran out, set extract.batch_size lower; then run the command again."
    )


def _short(fingerprints: Sequence[str]) -> str:
    return ", ".join(fingerprint[:16] for fingerprint in fingerprints)
