"""Several processes on one project: nothing twice, nothing lost when one is killed, no network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import zarr

from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheNotFoundError
from featurecache.extraction.leases import acquire
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project, open_project
from featurecache.store import CacheWriter
from featurecache.store.claims import Claims
from tests.extraction_samples import extracted, rows_on_disk, selecting
from tests.processes import start, wait_for


def test_processes_started_alike_share_the_list_and_compute_nothing_twice(project: Project) -> None:
    plan = plan_extraction(project)  # digests are remembered, so that both begin at once
    outputs = [project.root / f"{number}.out" for number in range(2)]
    both = [start("extract", "--config", project.root, "--json", out=out, save_each_s=0.05) for out in outputs]
    assert [wait_for(process) for process in both] == [0, 0]
    reports = [json.loads(out.read_text()) for out in outputs]
    assert sum(report["extracted"] for report in reports) == 24
    assert plan_extraction(project).todo == 0
    (space,) = FeatureCache.open(project.cache).spaces
    assert space.rows == 24
    held = sum(zarr.open_group(path, mode="r")["key"].shape[0] for path in project.cache.glob("spaces/*/segments/0*"))
    assert held == 24
    assert not list(project.cache.glob("spaces/*/claims/*"))
    assert plan.space.fingerprint == space.fingerprint


def test_processes_that_keep_different_features_compute_none_twice(project: Project) -> None:
    """Their lists overlap in one feature; neither waits for the other."""
    plan_extraction(project)
    base = (project.root / "featurecache.toml").read_text()
    keeps = {"one": ["final/mean", "vision/mean"], "other": ["layer_1/mean", "final/mean"]}
    for name, keep in keeps.items():
        (project.root / f"{name}.toml").write_text(base.replace("[features]", f"[features]\nselect = {keep}"))
    configs = [project.root / f"{name}.toml" for name in keeps]
    both = [start("extract", "--config", config, out=config.with_suffix(".out")) for config in configs]
    assert [wait_for(process) for process in both] == [0, 0]
    for name in keeps:  # what was left to the other is there by now, or is done now
        other = open_project(project.root / f"{name}.toml")
        run_plan(other, plan_extraction(other))
    assert rows_on_disk(project) == {"final/mean": 24, "vision/mean": 24, "layer_1/mean": 24}
    assert not list(project.cache.glob("spaces/*/claims/*"))


def test_a_recording_is_left_to_the_process_that_claims_it_while_it_lives(project: Project) -> None:
    plan = plan_extraction(project)
    sha256 = plan.work[0][0].recording.sha256
    code = (
        "import sys, time\n"
        "from featurecache.store import CacheWriter\n"
        "from featurecache.spec import FeatureSpace\n"
        "import json\n"
        "writer = CacheWriter(sys.argv[1], FeatureSpace(json.loads(sys.argv[2])), {})\n"
        "print(writer.claim(sys.argv[3]), flush=True)\n"
        "time.sleep(60)\n"
    )
    arguments = [str(project.cache), json.dumps(plan.space.inputs), sha256]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        done = run_plan(project, plan)
        assert (done.progress.extracted, done.progress.claimed_by_others) == (20, 4)
        other.kill()
    again = run_plan(project, plan_extraction(project))
    assert (again.progress.extracted, again.progress.claimed_by_others) == (4, 0), (
        "the claim of a killed process counts no longer"
    )


def test_a_recording_is_deferred_whole_and_what_is_free_of_it_is_acquired_at_the_last_try(project: Project) -> None:
    project = selecting(project, "final/mean", "vision/mean", "layer_1/mean")
    plan = plan_extraction(project)
    clips = plan.work[0]
    order = sorted(plan.spaces, key=lambda name: plan.spaces[name].fingerprint)

    def claim(*names: str, again: bool = False) -> set[str] | None:
        """The features that a new process gets of the first recording, with these held by another."""
        with ExitStack() as stack:
            others, ours = (
                {n: stack.enter_context(CacheWriter(project.cache, s, {})) for n, s in plan.spaces.items()}
                for _ in range(2)
            )
            assert all(others[name].claim(clips[0].recording.sha256) for name in names)
            found = acquire(clips, ours, is_last_try=again)
            assert found is None or [clip.span for clip in found] == [clip.span for clip in clips]
            return None if found is None else {name for clip in found for name in clip.wanted}

    assert claim() == set(order)
    assert claim(order[0]) is None
    assert claim(order[0], again=True) == set(order[1:])
    assert claim(order[1]) == {order[0], order[2]}
    assert claim(*order) is claim(*order, again=True) is None


def test_a_claim_of_another_machine_ends_with_its_lease(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    with Claims(tmp_path / "space") as first:
        assert first.take("a" * 64)
        assert first.take("a" * 64), "one's own claim"
        (claim,) = (tmp_path / "space/claims").iterdir()
        claim.write_text("01795313882948605292-elsewhere.73bf134d-32373-d026ecb11973eafb")
        with Claims(tmp_path / "space") as second:
            assert not second.take("a" * 64)
            os.utime(claim, (time.time() - 121, time.time() - 121))
            assert second.take("a" * 64)
            assert second.take("b" * 64)
            assert claim.read_text() != "01795313882948605292-elsewhere.73bf134d-32373-d026ecb11973eafb"
        assert not claim.exists()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_extraction_resumes_where_it_was_when_it_is_killed(project: Project, sent: signal.Signals) -> None:
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text() + "[extract]\nbatch_size = 1\n")
    out = project.root / "extract.out"
    running = start("extract", "--config", project.root, out=out, save_each_s=0.1)
    while _present(project) < 3 and running.is_alive():
        time.sleep(0.05)
    os.kill(running.pid, sent)
    ended, said = wait_for(running), out.with_suffix(".err").read_text()
    saved = _present(project)
    assert 3 <= saved < 24
    if sent != signal.SIGKILL:
        assert ended == 130
        assert "interrupted" in said
        assert "Traceback" not in said
    assert extracted(project) == 24 - saved
    ids = [clip.clip_id for clip in read_table(project.clips).clips]
    assert len(FeatureCache.open(project.cache).load(ids)) == 24


def _present(project: Project) -> int:
    try:
        spaces = FeatureCache.open(project.cache).spaces
    except CacheNotFoundError:
        return 0
    return spaces[0].rows if spaces else 0


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_extraction_uses_no_network(project: Project) -> None:
    """In a network namespace without any interface, everything works."""
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not allow network namespaces")
    command = ["unshare", "-rn", sys.executable, "-m", "cli", "extract", "--config", str(project.root), "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"extracted": 24' in done.stdout
