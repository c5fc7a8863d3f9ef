"""`lora-finetune` through torchrun: two real processes over gloo train what one does, and a death costs little."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from cli import app
from featurecache.annotations import Interval
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import open_project
from tests.lora_samples import tuned
from tests.projects import make_project, make_table, write_labels
from tests.tiny_models import make_llava_next_video

ROOT = Path(__file__).parents[1]
LORA = """
[lora]
rank = 4
alpha = 8
dropout = 0.0
epochs = {epochs}
patience = 0
select = "loss"
learning_rate = 5e-3
head_learning_rate = 1e-2
batch_size = 5
micro_batch = 2
checkpoint_minutes = 1e-9
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tuned head; tests work on copies."""
    folder = tmp_path_factory.mktemp("torchrun")
    project = make_project(folder / "project", make_llava_next_video(folder / "model", layers=2), sessions=6, clips=4)
    on = [Interval(0, 2_000_000, "ventilation"), Interval(1_000_000, 3_000_000, "stimulation")]
    # All recordings show the same pictures; with the same labels, what is learned of some holds for the others.
    write_labels(project.root / "labels.csv", {f"S{number}.mp4": on for number in range(6)})
    make_table(project)
    run_plan(project, plan_extraction(project))
    tuned(project, "final/mean", l2=1.0, variance_exponent=1.0)  # held back, so that adapters find something to do
    return project.root


def copied(start: Path, folder: Path, *, epochs: int = 2) -> Path:
    root = Path(shutil.copytree(start, folder))
    with (root / "featurecache.toml").open("a") as settings:
        settings.write(LORA.format(epochs=epochs))
    return open_project(root).root


def launch(root: Path) -> "subprocess.Popen[str]":
    """Starts two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "cli", "lora-finetune", "--config", str(root), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def adapter(root: Path) -> dict[str, np.ndarray]:
    return load_file(root / "runs" / "lora" / "bundle" / "adapter" / "adapter_model.safetensors")


def test_two_processes_write_one_bundle_with_the_adapter_of_one(start: Path, tmp_path: Path) -> None:
    process = launch(copied(start, tmp_path / "2"))
    done = CliRunner().invoke(app, ["lora-finetune", "--config", str(copied(start, tmp_path / "1"))])
    assert done.exit_code == 0, done.stderr
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert json.loads(out)["lora"]["rank"] == 4  # one document, of the first process
    assert told.count("wrote ") == 1
    assert told.count("epoch 2: ") == 1
    alone, both = (adapter(tmp_path / str(count)) for count in (1, 2))
    assert alone.keys() == both.keys()
    assert json.loads((tmp_path / "1" / "runs" / "lora" / "learning.json").read_text())["kept_epoch"] > 0
    for name, one in alone.items():
        assert np.abs(both[name] - one).max() < 1e-5, name  # steps are of 1e-3: sums in another order, no more
    curves = [json.loads((tmp_path / str(count) / "runs" / "lora" / "learning.json").read_text()) for count in (1, 2)]
    for one, two in zip(curves[0]["epochs"], curves[1]["epochs"], strict=True):
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "2" / "runs" / "lora").iterdir()) == [
        "best.json",
        "bundle",
        "learning.json",
        "validation_metrics.json",
    ]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_resumes_to_the_same_result(
    start: Path, tmp_path: Path
) -> None:
    unbroken, broken = (copied(start, tmp_path / name, epochs=40) for name in ("unbroken", "broken"))
    process = launch(unbroken)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    process = launch(broken)
    checkpoint = broken / "runs" / "lora" / "checkpoint.safetensors"
    while step_of(checkpoint) < 8:  # two epochs
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "another process of this run ended" in told
    assert "RuntimeError" not in told
    assert checkpoint.exists()
    assert not (broken / "runs" / "lora" / "bundle").exists()
    process = launch(broken)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "epoch 1: " not in told
    for name, one in adapter(unbroken).items():
        assert np.array_equal(adapter(broken)[name], one), name


def step_of(checkpoint: Path) -> int:
    """Steps that a checkpoint holds; 0 where there is none yet."""
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="np") as file:
        return int(json.loads(file.metadata()["document"])["step"])


def process_of_rank(launcher: int, rank: int) -> int:
    """The process id of one of a launcher's workers."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no worker of rank {rank}")
