"""One process per device: the rows of one process, each once, whatever dies, and nobody outlives the parent."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import SettingsError, WorkerDiedError
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan, still_missing
from featurecache.project.settings import Project, open_project
from featurecache.store import CacheWriter
from featurecache.workers.devices import Device, choose_devices, extract_on_devices
from tests.claimers import claimer, kill_a_claimer
from tests.extraction_samples import count_rows
from tests.make_videos import write_video
from tests.processes import start, wait_for
from tests.projects import failed_clip_ids, make_project, make_table

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PROCESSORS = [Device("first", "cpu", ONE_THREAD), Device("second", "cpu", ONE_THREAD)]
BROKEN = Device("broken", "cpu", {"PYTHONHOME": "/nowhere"})


def keep_a_claimer_from_working(project: Project) -> None:
    """Stops the first process that claims a recording, until all the others have ended."""
    pid = claimer(project)
    os.kill(pid, signal.SIGSTOP)
    try:
        _wait_until(lambda: _children(os.getpid()) == [pid])
    finally:
        os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    """The extracting processes of a process."""
    found = [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]
    return [one for one in found if b"featurecache.workers.devices" in Path(f"/proc/{one}/cmdline").read_bytes()]


def _wait_until(holds, every_s: float = 0.02) -> None:
    end = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(every_s)


def test_two_processes_give_the_rows_and_failures_of_one(project: Project) -> None:
    quick_start = {"container_options": {"movflags": "faststart"}}
    torn = write_video(project.videos / "torn.mp4", count=40, fps=5, options={"g": "5"}, **quick_start)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 3 // 5])
    make_table(project)
    (project.videos / "S3.mp4").unlink()
    one = open_project(Path(shutil.copytree(project.root, project.root.parent / "one")))
    alone = run_plan(one, plan_extraction(one))
    plan = plan_extraction(project)
    with ThreadPoolExecutor(1) as pool:
        kept_from_working = pool.submit(keep_a_claimer_from_working, project)
        both = extract_on_devices(project.root, project, plan, devices=PROCESSORS)
        kept_from_working.result()
    assert alone.progress.failed > 0
    assert {failure.recording for failure in alone.failures} == {"S3.mp4", "torn.mp4"}
    assert (both.failures, both.crashes) == (alone.failures, ())
    for count in ("extracted", "failed", "claimed_by_others", "total"):
        assert getattr(both.progress, count) == getattr(alone.progress, count)
    assert sorted(project.failures.read_text().splitlines()) == sorted(one.failures.read_text().splitlines())
    assert failed_clip_ids(project) == {failure.clip_id for failure in alone.failures}
    ids = FeatureCache.open(one.cache).clip_ids()
    found, expected = (FeatureCache.open(each.cache).load(ids) for each in (project, one))
    assert np.abs(found - expected).max() <= 1e-5
    assert count_rows(project) == len(ids) == alone.progress.extracted, "what one had claimed, the other left to it"
    assert not list(project.cache.glob("spaces/*/claims/*"))


def test_nothing_is_lost_or_computed_twice_when_a_process_is_killed_and_a_device_is_broken(project: Project) -> None:
    plan = plan_extraction(project, limit=22)
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(kill_a_claimer(project)))
    killer.start()
    done = extract_on_devices(project.root, project, plan, devices=[BROKEN, *PROCESSORS])
    killer.join()
    assert sorted(crash.reason for crash in done.crashes) == ["ended with code 1"] * 2 + ["was killed by SIGKILL"]
    assert (done.progress.extracted, done.progress.claimed_by_others) == (22, 0)
    assert not still_missing(project, plan)
    assert count_rows(project) == 22


def test_extraction_ends_with_a_named_error_when_every_process_dies(project: Project) -> None:
    with pytest.raises(WorkerDiedError, match=r"24 clips are left, of S0\.mp4, S1\.mp4, S2\.mp4 and 3 more"):
        extract_on_devices(project.root, project, plan_extraction(project), devices=[BROKEN])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_error_of_a_process_is_raised_as_it_was(project: Project) -> None:
    device = Device("GPU 0", "cuda", {})
    with pytest.raises(SettingsError, match="cuda"):
        extract_on_devices(project.root, project, plan_extraction(project), devices=[device])
    assert not _children(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent_when_that_is_ended(tmp_path: Path, tiny_model: Path, number: int) -> None:
    project = make_project(tmp_path / "project", tiny_model, sessions=3, clips=130)
    make_table(project)
    plan = plan_extraction(project)
    process = start("extract", "--config", project.root, "--devices", "cpu,cpu", out=tmp_path / "out")
    assert process.pid is not None
    _wait_until(lambda: len(_children(process.pid)) == 2)
    children = _children(process.pid)
    _wait_until(lambda: len(list(project.cache.glob("spaces/*/claims/*"))) > 0)
    os.kill(process.pid, number)
    assert wait_for(process) == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    _wait_until(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in children))
    assert not list(project.cache.glob("spaces/*/claims/*")), "they ended in order, and gave back what they had claimed"
    assert count_rows(project) == 390 - len(still_missing(project, plan)) < 390, "they did not go on to the end"


def test_no_failure_is_lost_when_several_runs_end_at_once(project: Project) -> None:
    for path in sorted(project.videos.iterdir()):
        path.write_bytes(path.read_bytes() + b" ")
    ids = [clip.clip_id for clip in read_table(project.clips).clips]
    plans = [plan_extraction(project, clip_ids=ids[number::12]) for number in range(12)]
    assert sum(len(plan.failures) for plan in plans) == 24
    ends = [threading.Thread(target=run_plan, args=(project, plan)) for plan in plans]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    assert len(failed_clip_ids(project)) == 24


def test_a_failure_stays_listed_until_the_clip_is_there_when_another_process_is_at_it(project: Project) -> None:
    plan = plan_extraction(project)
    clip = read_table(project.clips).clips[0]
    row = f"{clip.clip_id},{clip.recording},0,1,{plan.space.fingerprint},its decoder stalled\n"
    project.failures.write_text("clip_id,recording,start_s,end_s,feature_space,reason\n" + row)
    with CacheWriter(project.cache, plan.space, {}) as other:
        assert all(other.claim(clips[0].recording.sha256) for clips in plan.work)
        assert run_plan(project, plan).progress.claimed_by_others == 24
        assert failed_clip_ids(project) == {clip.clip_id}
    run_plan(project, plan_extraction(project))
    assert failed_clip_ids(project) == frozenset()


@pytest.mark.parametrize(
    ("text", "visible", "expected"),
    [
        ("all", None, ["0", "1", "2"]),
        ("all", "5,GPU-7e,3", ["5", "GPU-7e", "3"]),
        ("2, 0", "5,GPU-7e,3", ["3", "5"]),
        ("cpu,1", None, ["", "1"]),
    ],
)
def test_each_process_sees_its_device_alone(text: str, visible: str | None, expected: list[str]) -> None:
    devices = choose_devices(text, gpus=3, visible=visible)
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices] == expected
    assert len({device.name for device in devices}) == len(expected)


@pytest.mark.parametrize(("text", "gpus"), [("all", 0), ("0", 0), ("3", 3), ("0,0", 3), ("", 3), ("cuda:0", 3)])
def test_devices_are_refused_when_they_are_not_there_or_named_twice(text: str, gpus: int) -> None:
    with pytest.raises(SettingsError, match="--devices must name"):
        choose_devices(text, gpus=gpus, visible=None)
