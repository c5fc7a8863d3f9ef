"""Extraction by Ray actors, on a real Ray: nothing lost, no row twice, no open port, nothing left behind."""

import os
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from featurecache.errors import SettingsError
from featurecache.extraction.pipeline import Progress
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import still_missing
from featurecache.project.settings import Project
from tests.claimers import claimer, kill_a_claimer
from tests.extraction_samples import count_rows
from tests.projects import make_project, make_table

LISTENS = "0A"


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    project = make_project(tmp_path / "project", tiny_model, sessions=4, clips=40)
    make_table(project)
    return project


def _descendants(pid: int) -> dict[int, str]:
    """Processes below a process, with their command lines."""
    found: dict[int, str] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found |= {int(child): command} | _descendants(int(child))
    return found


def _listening(pid: int) -> set[str]:
    """Addresses on which a process listens, as in /proc/net."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENS and row[9] in inodes}


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Half a minute, most of it Ray's start. Not importorskip: Ray reads its environment when it is imported."""
    test = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")(test)
    ignored = ("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
    return pytest.mark.slow(pytest.mark.filterwarnings(*ignored)(test))


@needs_ray
def test_nothing_is_lost_or_computed_twice_when_an_actor_is_killed(project: Project) -> None:
    from featurecache.workers.ray_workers import extract_on_ray

    plan = plan_extraction(project)
    folders = set(Path(tempfile.gettempdir()).glob("ray-*"))
    heard: set[str] = set()

    def listen(_: Progress) -> None:
        heard.update(address for pid in (*_descendants(os.getpid()), os.getpid()) for address in _listening(pid))

    killer = threading.Thread(target=kill_a_claimer, args=(project,))
    killer.start()
    done = extract_on_ray(project.root, project, plan, address="local", on_progress=listen)
    killer.join()
    assert len(done.crashes) == 1
    assert done.progress.extracted == plan.todo == 160
    assert not still_missing(project, plan)
    assert count_rows(project) == 160
    assert heard == {"0100007F", "0000000000000000FFFF00000100007F"}, "loopback alone"
    assert not _descendants(os.getpid())
    assert set(Path(tempfile.gettempdir()).glob("ray-*")) == folders


@needs_ray
def test_nothing_is_lost_or_computed_twice_when_a_node_of_the_cluster_dies(project: Project) -> None:
    from ray.cluster_utils import Cluster

    from featurecache.workers.ray_workers import extract_on_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {
        node.all_processes["raylet"][0].process.pid: node
        for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))
    }
    lost: list[int] = []

    def lose_a_node_at_work() -> None:
        raylet = int(Path(f"/proc/{claimer(project)}/stat").read_text().rpartition(")")[2].split()[1])
        cluster.remove_node(nodes[raylet], allow_graceful=False)
        lost.append(raylet)

    plan = plan_extraction(project)
    killer = threading.Thread(target=lose_a_node_at_work)
    killer.start()
    try:
        done = extract_on_ray(project.root, project, plan, address=cluster.address)
    finally:
        killer.join()
        cluster.shutdown()
    assert len(lost) == 1
    assert done.crashes
    assert done.progress.extracted == plan.todo == 160
    assert not still_missing(project, plan)
    assert count_rows(project) == 160


@pytest.mark.skipif(find_spec("ray") is not None, reason="the extra `ray` is installed")
def test_the_extra_is_named_when_ray_is_not_installed(project: Project) -> None:
    from featurecache.workers.ray_workers import extract_on_ray

    folders = set(Path(tempfile.gettempdir()).glob("ray-*"))
    with pytest.raises(SettingsError, match=r"pip install 'featurecache\[ray\]'"):
        extract_on_ray(project.root, project, plan_extraction(project), address="local")
    assert set(Path(tempfile.gettempdir()).glob("ray-*")) == folders


def test_devices_and_ray_are_refused_together(project: Project) -> None:
    asked = CliRunner().invoke(app, ["extract", "--config", str(project.root), "--devices", "cpu", "--ray", "local"])
    assert asked.exit_code == 2
    assert not project.cache.exists()
