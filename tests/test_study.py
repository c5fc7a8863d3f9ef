"""A study on disk: resumed after any kill with the same trials, refused when it is another's, damaged or in use."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from featurecache.errors import StudyError
from featurecache.spec import FeatureSpace
from heads.search.study import open_study
from tests.learning_samples import make_clips
from tests.studies import (
    COMBINATIONS,
    QUICK,
    SPACE,
    by_place,
    ended,
    kept,
    noisy,
    search,
    stored,
    table,
)


def test_search_heads_gives_the_same_numbers_when_repeated_and_others_with_another_seed(tmp_path: Path) -> None:
    first, second = search(tmp_path / "a", trials=20), search(tmp_path / "b", trials=20)
    assert first == second
    for name in (
        "trials.csv",
        "best.json",
        "out_of_fold_metrics.json",
        "bundle/bundle.json",
        "bundle/head.safetensors",
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    search(tmp_path / "c", trials=20, seed=1)
    assert (tmp_path / "a/trials.csv").read_bytes() != (tmp_path / "c/trials.csv").read_bytes()


def test_search_heads_finds_itself_done_when_called_again(tmp_path: Path) -> None:
    best = search(tmp_path / "tune", trials=10)
    (tmp_path / "tune/best.json").unlink()
    told: list[object] = []
    assert search(tmp_path / "tune", trials=10, on_progress=lambda *now: told.append(now)) == best
    assert told == []
    assert len(table(tmp_path / "tune")) == 10
    assert (tmp_path / "tune/best.json").is_file()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.studies import search
def die(finished, asked, best):
    if finished == 11:
        os.kill(os.getpid(), signal.SIGKILL)
search(Path(sys.argv[1]), trials=24, on_progress=die)
"""


def test_search_heads_loses_and_repeats_no_finished_trial_when_killed(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ended(folder)
    assert len(before) == 11
    with (folder / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 6, "worker_')  # what a kill within a write leaves
    best = search(folder, trials=24)
    after = ended(folder)
    assert len(after) == 24
    assert {number: after[number] for number in before} == before
    assert len({line.split(" ", 2)[2] for line in after.values()}) == 24
    assert 1 <= best["trials"]["interrupted"] <= 8, "what was in training"
    assert {row["state"] for row in table(folder)} >= {"complete", "interrupted"}


def test_search_heads_resumes_with_the_same_trials_wherever_a_kill_cuts_the_journal(tmp_path: Path) -> None:
    """What a kill leaves is a journal's beginning, so beginnings of an unbroken study's stand for kills at any time."""
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), components=(0, 8))
    search(tmp_path / "unbroken", trials=20, search_space=space)
    journal, whole = (tmp_path / "unbroken/study.journal").read_bytes(), by_place(tmp_path / "unbroken")
    assert all(len(tries) == 1 for tries in whole.values())
    cuts = np.random.default_rng(0).integers(len(journal) // 20, len(journal), 6)
    again = 0
    for cut in cuts.tolist():
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "study.journal").write_bytes(journal[:cut].rpartition(b"\n")[0] + b"\n")
        begun, before = len(stored(folder)), ended(folder)
        search(folder, trials=20, search_space=space)
        after, resumed = ended(folder), by_place(folder)
        assert len(after) == 20
        assert {number: after[number] for number in before} == before, "no finished trial is lost"
        assert all(
            [trial.number in after for trial in tries] == [False] * (len(tries) - 1) + [True]
            for tries in resumed.values()
        )
        for place in range(max(begun, 10)):  # begun before, or drawn before the sampler learns from others
            ours, theirs = resumed[place][-1], whole[place][0]
            assert ours.params == theirs.params, (cut, place)
            if ours.state == theirs.state == optuna.trial.TrialState.COMPLETE:
                assert ours.value == pytest.approx(theirs.value, abs=0.01)
        again += sum(len(tries) - 1 for tries in resumed.values())
    assert again > 10


def test_search_heads_gives_a_trial_up_when_each_try_is_interrupted(tmp_path: Path) -> None:
    def stop(finished: int, asked: int, best: float | None) -> None:
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "tune", trials=12, stacked_trials=6, on_progress=stop)
    tries = [[trial.state.name for trial in tries] for tries in by_place(tmp_path / "tune").values()]
    assert ["FAIL"] * 3 in tries
    assert max(map(len, tries)) == 3
    search(tmp_path / "tune", trials=12)
    assert len(ended(tmp_path / "tune")) == 12


KILLED_WHILE_SOLVING = """
import os, signal, sys
from pathlib import Path
from tests.studies import COMBINATIONS, search
begun = 0
def die(frame, event, argument):
    global begun
    if event == "call" and frame.f_code.co_name == "solve_grid":
        begun += 1
        if begun == 2:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(die)
search(Path(sys.argv[1]), trials=8, search_space=COMBINATIONS)
"""


def test_search_heads_solves_a_combination_again_when_a_kill_interrupted_it(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED_WHILE_SOLVING, str(folder)]
    killed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ended(folder)
    assert list(before) == [0]
    best = search(folder, trials=8, search_space=COMBINATIONS)
    after = ended(folder)
    assert len(after) == 8
    assert after[0] == before[0]
    convex = [trial for trial in stored(folder) if trial.user_attrs.get("solver") == "convex"]
    solved = {trial.user_attrs["combination"] for trial in convex if trial.number in after}
    assert solved == {
        f"final/mean {normalization} {components} 1" for normalization in ("standardize", "l2") for components in (0, 8)
    }
    assert [trial.number in after for trial in convex] == [True, False, True, True, True], "each is solved once"
    assert convex[2].user_attrs["combination"] == convex[1].user_attrs["combination"], "the interrupted one comes next"
    assert best["trials"]["interrupted"] == 1


def test_search_heads_can_be_resumed_when_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    def stop(finished: int, asked: int, best: float | None) -> None:
        if finished == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "tune", trials=16, on_progress=stop)
    before = ended(tmp_path / "tune")
    assert len(before) == 5
    assert not [trial for trial in stored(tmp_path / "tune") if trial.state.name == "RUNNING"]
    search(tmp_path / "tune", trials=16)
    after = ended(tmp_path / "tune")
    assert len(after) == 16
    assert {number: after[number] for number in before} == before


def test_search_heads_is_refused_when_the_study_was_started_with_something_else(tmp_path: Path) -> None:
    search(tmp_path / "tune", trials=8)
    relabelled = make_clips(noise=2.0)
    relabelled.Y[0, 0] ^= 1
    other = FeatureSpace({**SPACE.inputs, "model": "other"})
    clips = "the clips, their labels, targets or features"
    (tmp_path / "tune-1").mkdir()
    new = f"tart a new search, after: mv {tmp_path}/tune {tmp_path}/tune-2$"
    for found, changes in {
        f"{clips}. S": {"data": noisy(train=kept(relabelled))},
        f"{clips}. S ": {"data": noisy(labels=("a", "b", "c"))},
        "seed .then 0, now 3.. Put them back, or s": {"seed": 3},
        "search_space.*. Put them back, or s": {"search_space": dataclasses.replace(QUICK, dropout=(0.0, 0.1))},
        "how the features are computed. S": {"data": noisy(spaces={"final/mean": other})},
    }.items():
        with pytest.raises(StudyError, match=f"tune was started: {found.strip()}{new}"):
            search(tmp_path / "tune", trials=16, **changes)
    assert len(ended(tmp_path / "tune")) == 8
    journal = tmp_path / "tune/study.journal"
    journal.write_text(journal.read_text().replace('"signature"', '"of an earlier version"'))
    with pytest.raises(StudyError, match=r"tune was started: .*the clips"):
        search(tmp_path / "tune", trials=16)


def test_search_heads_is_refused_while_another_holds_the_study(tmp_path: Path) -> None:
    with open_study(tmp_path / "tune", {}, optuna.pruners.NopPruner()), pytest.raises(StudyError, match="one process"):
        search(tmp_path / "tune", trials=8)


def test_search_heads_is_refused_when_the_journal_is_damaged(tmp_path: Path) -> None:
    search(tmp_path / "tune", trials=8)
    journal = tmp_path / "tune/study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"not a record\n", *lines[6:]]))
    with pytest.raises(StudyError, match="journal must be readable"):
        search(tmp_path / "tune", trials=8)


@pytest.mark.parametrize(
    "record", [{"op_code": 77}, {"op_code": 2, "study_id": 0, "user_attr": {}}, [], {"op_code": 4, "study_id": 0}]
)
def test_open_study_is_refused_whatever_optuna_makes_of_a_damaged_record(tmp_path: Path, record: Any) -> None:
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()):
        pass
    with (tmp_path / "study.journal").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with (
        pytest.raises(StudyError, match=r"journal must be readable, but .* is damaged \(\w+Error.*Restore it"),
        open_study(tmp_path, {}, optuna.pruners.NopPruner()),
    ):
        pass


def test_study_continues_when_the_disk_was_full_for_a_while(tmp_path: Path) -> None:
    """A full disk cuts a line short; here the limit on file sizes does, as the kernel reports it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()) as opened:
        study = opened.study
        size = (tmp_path / "study.journal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                study.set_user_attr("first", "x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "study.journal").stat().st_size == size
        study.set_user_attr("second", 2)
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()) as opened:
        assert opened.study.user_attrs == {"signature": {}, "second": 2}
