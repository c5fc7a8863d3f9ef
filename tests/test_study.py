"""A study that several processes share in a real PostgreSQL: nothing twice, nothing lost, dead workers replaced."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import StudyError
from heads.search.search import search_heads
from heads.search.shared_study import open_shared_study
from heads.search.study import held
from tests.postgres import postgres_server
from tests.test_search import QUICK, noisy

ROOT = Path(__file__).parents[1]
NO_PRUNER = optuna.pruners.NopPruner()

# After each trial it waits for a line, or for the end of its input.
WORKER = """
import dataclasses, sys
from pathlib import Path
import torch
from heads.search.search import search_heads
from tests.test_search import QUICK, noisy
torch.set_num_threads(1)
url, folder = sys.argv[1], Path(sys.argv[2])
def on_progress(finished, asked, best):
    print("told", flush=True)
    sys.stdin.readline()
space = dataclasses.replace(QUICK, solver=("convex", "adamw"), components=(0, 8))
best = search_heads(noisy(), search_space=space, trials=24, seed=0, folder=folder, stacked_trials=4,
                    storage=url, heartbeat_s=1, on_progress=on_progress)
print("best", best["value"], best["trial"], flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("psycopg")
    with postgres_server() as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    """The address of a database without a study."""
    with stored(server) as storage:
        for study in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=study, storage=storage)
    return server


@contextmanager
def stored(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """The database as Optuna itself opens it."""
    storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trials_of(url: str) -> list[FrozenTrial]:
    with stored(url) as storage:
        return optuna.load_study(study_name="tune", storage=storage).trials


def start(url: str, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(folder)], cwd=ROOT, env=environment, text=True, **pipes
    )


def wait_for_a_trial(process: "subprocess.Popen[str]") -> None:
    """Until it has ended one; it then waits to go on."""
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n", process.communicate()[1]


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def output(process: "subprocess.Popen[str]") -> list[str]:
    try:
        stdout, stderr = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert (process.returncode, stderr) == (0, "")
    return stdout.splitlines()


def contents(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.number, trial.state, trial.value, trial.params, trial.user_attrs, trial.intermediate_values


def drawn(trial: FrozenTrial) -> str:
    return str(sorted(trial.params.items()))


def test_two_processes_share_a_study_without_double_work(url: str, tmp_path: Path) -> None:
    workers = [start(url, tmp_path / name) for name in ("a", "b")]
    for worker in workers:
        wait_for_a_trial(worker)
    told = [output(worker) for worker in workers]
    trials = trials_of(url)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(trials) == 24
    shares = [lines.count("told") for lines in told]
    assert sum(shares) == 24 - len(workers), "and one each before"
    assert len({drawn(trial) for trial in trials}) == 24, "no trial was trained twice"
    assert told[0][-1] == told[1][-1], "both found the same best trial"
    for name in ("a", "b"):
        assert (tmp_path / name / "best.json").is_file()
        assert (tmp_path / name / "trials.csv").read_text().count("\n") == 25


def test_a_process_that_is_killed_loses_nothing_for_the_others(url: str, tmp_path: Path) -> None:
    doomed = start(url, tmp_path / "a")
    for _ in range(4):
        wait_for_a_trial(doomed)
        go_on(doomed)
    wait_for_a_trial(doomed)
    survivor = start(url, tmp_path / "b")
    wait_for_a_trial(survivor)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    before = {t.number: t for t in trials_of(url) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)}
    output(survivor)
    after = {trial.number: trial for trial in trials_of(url)}
    failed = [trial for trial in after.values() if trial.state == TrialState.FAIL]
    finished = [trial for trial in after.values() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 24
    assert 1 <= len(failed) <= 4, "what the dead process had in training"
    assert len(failed) + len(finished) == len(after), "nothing is left running or waiting"
    assert all(after[number].value == trial.value for number, trial in before.items())
    again = {trial.user_attrs["again"]: trial for trial in finished if "again" in trial.user_attrs}
    assert again.keys() == {trial.number for trial in failed}, "each was tried again"
    for trial in failed:
        if trial.params.keys() == again[trial.number].params.keys():  # else it was killed while they were drawn
            assert trial.params == again[trial.number].params, "with its settings"
    assert len({drawn(trial) for trial in finished}) == 24


def test_a_process_that_is_killed_while_it_asks_keeps_nobody_waiting(url: str, tmp_path: Path) -> None:
    with stored(url) as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the heartbeat, which such a process does not come to
        optuna.create_study(storage=storage, study_name="tune", direction="maximize").ask()
    output(start(url, tmp_path / "a"))
    states = [trial.state for trial in trials_of(url)]
    assert states[0] == TrialState.FAIL
    assert states.count(TrialState.FAIL) == 1
    assert len(states) == 25


def search(url: str, folder: Path, **changes: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {"trials": 6, "seed": 0, "search_space": QUICK, "heartbeat_s": 1, **changes}
    return search_heads(noisy(), folder=folder, storage=url, **arguments)


def test_a_shared_study_goes_on_only_with_what_it_began_with(url: str, tmp_path: Path) -> None:
    search(url, tmp_path / "a")
    with pytest.raises(StudyError, match=r"in study 'tune' of local/postgres these differ: seed .then 0, now 1"):
        search(url, tmp_path / "b", seed=1)
    assert search(url, tmp_path / "b", seed=1, study_name="other")["trials"]["completed"] > 0
    assert search(url, tmp_path / "c", trials=9)["trials"]["interrupted"] == 0
    assert len(trials_of(url)) == 9
    for name, count in (("a", 6), ("c", 9)):  # each as its folder's run was written
        copy = tmp_path / name / "shared_study.journal"
        assert copy.stat().st_mode & 0o777 == 0o600
        backend = optuna.storages.journal.JournalFileBackend(str(copy))
        kept = optuna.load_study(study_name="tune", storage=optuna.storages.JournalStorage(backend)).trials
        assert [contents(trial) for trial in kept] == [contents(trial) for trial in trials_of(url)[:count]]


def test_a_shared_study_fails_what_an_interrupted_process_leaves(url: str, tmp_path: Path) -> None:
    def stop(finished: int, asked: int, best: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(url, tmp_path / "a", on_progress=stop)
    assert {trial.state for trial in trials_of(url)} == {TrialState.COMPLETE, TrialState.FAIL}
    search(url, tmp_path / "a")
    finished = [trial for trial in trials_of(url) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 6


def test_a_trial_that_others_gave_up_does_not_count_when_its_process_comes_back(url: str, tmp_path: Path) -> None:
    with open_shared_study(tmp_path, {}, NO_PRUNER, url=url, name="tune", heartbeat_s=1) as opened:
        with opened.claiming():
            trial = opened.ask()
        with stored(url) as storage:
            optuna.load_study(study_name="tune", storage=storage).tell(trial.number, state=TrialState.FAIL)
        opened.tell(trial, 1.0, TrialState.COMPLETE)
    assert [trial.state for trial in trials_of(url)] == [TrialState.FAIL]


def test_a_trial_is_kept_alive_while_its_process_works(url: str, tmp_path: Path) -> None:
    def shared(folder: str) -> Any:
        return open_shared_study(tmp_path / folder, {}, NO_PRUNER, url=url, name="tune", heartbeat_s=1)

    with shared("a") as ours, shared("b") as theirs:
        with ours.claiming():
            trial = ours.ask()
        time.sleep(7)
        with theirs.claiming():
            assert [one.state for one in theirs.study.trials] == [TrialState.RUNNING]
        ours.tell(trial, 0.5, TrialState.COMPLETE)
    assert [one.state for one in trials_of(url)] == [TrialState.COMPLETE]


def test_a_shared_study_names_what_is_wrong_with_its_address(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match=r"must lie in PostgreSQL, .* begins with 'sqlite'"):
        search("sqlite:///x.db", tmp_path)
    secret = server.replace("tester@", "tester:secret@")
    for wrong in (secret.replace("/postgres?", "/nothing?"), f"{secret}/nowhere"):
        with pytest.raises(StudyError, match=r"must answer, but local/.* gave: ") as caught:
            search(wrong, tmp_path)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"package psycopg, .*pip install 'featurecache\[postgresql\]'"):
        search(server, tmp_path)


def test_held_waits_for_the_other_when_asked(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from heads.search.study import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(1)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StudyError, match="one process at a time"), held(tmp_path):
        pass
    with held(tmp_path, wait=True):
        pass
    assert other.communicate()[0] == ""
    assert other.returncode == 0
