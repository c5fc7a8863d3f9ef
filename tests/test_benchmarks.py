"""Every benchmark runs at its small size and ends with a document of the agreed form; no time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.targets import Target, judged

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if path.stem != "seed_study" and "--quick" in path.read_text() and "def main" in path.read_text()
)  # the seed study reads data sets that are not part of this repository
QUICK = ("bench_neighbours", "bench_zeroshot", "interval_coverage", "simulate_scale")
"""Those that end within 20 CPU seconds; the others take six minutes together, in `.ci/run` alone."""

WITHOUT_TARGETS = ("deeper_heads", "simulate_scale")
"""They answer a question and judge nothing."""


def test_targets_of_the_small_size_have_bounds_of_their_own() -> None:
    targets: list[Target] = [("time", 3.0, 2.0, 4.0, "lower"), ("gain", 3.0, 4.0, 2.0, "higher")]
    assert [[one["met"] for one in judged(targets, quick=quick)] for quick in (False, True)] == [
        [False, False],
        [True, True],
    ]


def test_every_benchmark_starts_as_its_documentation_says() -> None:
    code = f"import importlib; [importlib.import_module('benchmarks.' + name) for name in {NAMES}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in NAMES:
        assert f"python -m benchmarks.{name}" in (ROOT / f"benchmarks/{name}.py").read_text()


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in NAMES])
def test_benchmark_ends_with_its_document_at_the_small_size(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert list(document) == ["benchmark", "machine", "figures", "targets"]
    assert document["figures"]
    assert bool(document["targets"]) == (name not in WITHOUT_TARGETS)
    for target in document["targets"]:
        assert list(target) == ["what", "value", "bound", "better", "met"]
        assert target["met"] == (
            target["value"] >= target["bound"] if target["better"] == "higher" else target["value"] <= target["bound"]
        )
