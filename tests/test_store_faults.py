"""The fault table: each fault the store must survive, by number, and the outcome it must have.

1 to 3 kill -9, out of memory and power cuts; 5 to 8 failing operations; 9 to 15 damage; 16 to 21 several
processes; 22 to 37 the rest. 10 is in test_store_reader.py, 30 in test_compact.py, 31 in test_care_faults.py, 32 in
test_gc.py, 26 and 37 in test_store_writer.py; recordings that are renamed or changed (27, 28), relabelling (29) and
hostile videos (36) do not reach the store: see tests of extraction, of clips and of video.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    CacheReadError,
    CacheWriteError,
)
from featurecache.store import CacheWriter, FeatureCache
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    LosingOs,
    PowerCutError,
    assert_serves,
    clips,
    fails_with,
    file_system,
    happens_and_fails_with,
    make_row,
    make_rows,
    names,
    segments,
    space,
    staged,
    values,
    write,
    writes_half,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def run_crash(*arguments: object) -> dict:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_store", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def operations_of(tmp_path: Path) -> list[str]:
    """The names of all file operations from opening a writer on two rows to having saved three more."""
    recorder = FaultyOs(-1, fails_with(0))
    write(tmp_path / "count", make_rows(2))
    with file_system(recorder):
        write(tmp_path / "count", make_rows(3, first=2))
    return recorder.calls


def operations_of_commit(tmp_path: Path) -> list[str]:
    """The names of all file operations of committing one row."""
    recorder = FaultyOs(-1, fails_with(0))
    with CacheWriter(tmp_path / "counted", space(), PROVENANCE) as writer:
        writer.add(make_row(0))
        with file_system(recorder):
            writer.commit()
    return recorder.calls


# --- 1 to 4: the process or the power goes ---------------------------------------------------------


def test_fault_01_kill_at_any_operation_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    found = run_crash("kill-at", tmp_path)
    assert found["died"] == [9] * found["operations"][0]
    states = []
    for at in range(len(found["died"])):
        cache = FeatureCache.open(tmp_path / f"{at}")
        assert cache.damage == ()
        states.append(cache.spaces[0].rows)
        np.testing.assert_array_equal(cache.load(names(make_rows(states[-1]))), values(make_rows(states[-1])))
    assert states == sorted(states)
    assert set(states) == {2, 5}
    for at in range(0, len(states), 9):  # start it again: nothing is computed twice, nothing is missing
        left = FeatureCache.open(tmp_path / f"{at}").missing(clips(make_rows(5)), space().fingerprint)
        assert len(left) == 5 - states[at]
        write(tmp_path / f"{at}", [row for row in make_rows(5) if clips([row])[0] in left])
        assert_serves(tmp_path / f"{at}", make_rows(5))


def test_fault_01_two_writers_killed_a_hundred_times_lose_nothing(tmp_path: Path) -> None:
    found = run_crash("loop", tmp_path, 100, 7)
    assert min(found["kills"], found["rounds"]) >= 100
    assert found["said"] > 100


@pytest.mark.parametrize("rename_lasts", [False, True])
def test_fault_02_and_03_power_cut_at_any_operation_keeps_what_was_said_saved(
    tmp_path: Path, rename_lasts: bool
) -> None:
    at, saved = int(rename_lasts), 0  # odd operations in one case, even ones in the other
    while saved < 5:
        cache = tmp_path / f"{at}"
        disk, saved = LosingOs(at, rename_lasts=rename_lasts), 0
        with file_system(disk):
            try:
                with CacheWriter(cache, space(), PROVENANCE, max_rows=3) as writer:
                    for row in make_rows(5):
                        writer.add(row)
                        saved = writer.rows_saved
                saved = writer.rows_saved
            except PowerCutError:
                pass
        disk.lose()
        if saved or (cache / "zarr.json").exists():
            opened = FeatureCache.open(cache)
            assert opened.damage == ()
            rows = sum(one.rows for one in opened.spaces)
            assert rows >= saved
            if rows:
                np.testing.assert_array_equal(opened.load(names(make_rows(rows))), values(make_rows(rows)))
        shutil.rmtree(cache, ignore_errors=True)
        at += 2
    assert at > 150


def test_power_cut_test_catches_a_writer_that_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(LosingOs, "_note_fsync", lambda self, result, file: None)
    disk = LosingOs(10**9, rename_lasts=True)
    with file_system(disk):
        write(tmp_path / "cache", make_rows(3))
    disk.lose()
    with pytest.raises(Exception, match="cache"):
        assert FeatureCache.open(tmp_path / "cache").damage == ()


def test_fault_04_out_of_memory_kill_loses_at_most_one_buffer(tmp_path: Path) -> None:
    """An out-of-memory kill is a SIGKILL: what was committed before it is there."""
    code = (
        "import os, signal, pathlib; from tests.cache_samples import *\n"
        f"w = CacheWriter({str(tmp_path / 'cache')!r}, space(), PROVENANCE, max_rows=4)\n"
        "for row in make_rows(11): w.add(row)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    assert_serves(tmp_path / "cache", make_rows(8))


# --- 5 to 8, 21: an operation fails ---------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_fault_05_and_06_each_operation_of_a_commit_failing_once_hurts_nothing(tmp_path: Path, code: int) -> None:
    operations = operations_of_commit(tmp_path)
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE) as writer:
        for at in range(len(operations)):
            writer.add(make_row(at))
            with file_system(FaultyOs(at, fails_with(code))), pytest.raises(CacheWriteError) as caught:
                writer.commit()
            assert (caught.value.errno, writer.rows_saved) == (code, at)
            assert staged(tmp_path / "cache") == []
            writer.commit()
            assert writer.rows_saved == at + 1
    assert_serves(tmp_path / "cache", make_rows(len(operations)))


def test_fault_05_each_operation_of_a_whole_run_failing_once_can_be_run_again(tmp_path: Path) -> None:
    operations = operations_of(tmp_path)
    write(tmp_path / "begun", make_rows(2))
    outcomes = set()
    for at in range(len(operations)):
        cache = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "begun", cache)
        with file_system(FaultyOs(at, fails_with(errno.EDQUOT))):
            try:
                write(cache, make_rows(3, first=2))
                outcomes.add("done")
            except (CacheWriteError, CacheReadError) as error:
                outcomes.add(type(error).__name__)
        assert staged(cache) == [] or operations[at] in ("rmdir", "scandir")
        left = FeatureCache.open(cache).missing(clips(make_rows(5)), space().fingerprint)
        assert len(left) in (0, 3)
        write(cache, [row for row in make_rows(5) if clips([row])[0] in left])
        assert_serves(cache, make_rows(5))
    assert outcomes == {"done", "CacheWriteError", "CacheReadError"}


def test_fault_06_a_file_whose_sync_failed_is_abandoned(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE) as writer:
        writer.add(make_row(0))
        failing = FaultyOs(operations_of_commit(tmp_path).index("fsync"), fails_with(errno.EIO))
        with file_system(failing), pytest.raises(CacheWriteError, match="EIO"):
            writer.commit()
        again = FaultyOs(-1, fails_with(0))
        with file_system(again):
            writer.commit()
    assert len(failing.opened) == 1
    assert failing.opened[0] not in again.opened
    assert_serves(tmp_path / "cache", make_rows(1))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT, errno.ESTALE], ids=errno.errorcode.get)
def test_fault_07_an_error_after_the_rename_shows_no_duplicate(tmp_path: Path, code: int) -> None:
    last_sync = max(i for i, name in enumerate(operations_of_commit(tmp_path)) if name == "fsync")
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE) as writer:
        writer.add(make_row(0))
        with file_system(FaultyOs(last_sync, fails_with(code))), pytest.raises(CacheWriteError):
            writer.commit()
        assert writer.rows_saved == 0
        assert len(segments(tmp_path / "cache")) == 1
        writer.add(make_row(1))
        writer.commit()
        assert writer.rows_saved == 2
    assert_serves(tmp_path / "cache", make_rows(2))


def test_fault_08_short_writes_are_completed(tmp_path: Path) -> None:
    class Short(FaultyOs):
        def __getattr__(self, name: str):
            if name == "write":
                return lambda file, data: writes_half(os.write, "write", (file, data))
            return super().__getattr__(name)

    with file_system(Short(-1, fails_with(0))):
        write(tmp_path / "cache", make_rows(4))
    assert_serves(tmp_path / "cache", make_rows(4))


def test_fault_08_a_write_that_stores_nothing_is_an_error(tmp_path: Path) -> None:
    at = operations_of(tmp_path).index("write")
    write(tmp_path / "cache", make_rows(2))
    with file_system(FaultyOs(at, lambda *_: 0)), pytest.raises(CacheWriteError):
        write(tmp_path / "cache", make_rows(3, first=2))
    assert_serves(tmp_path / "cache", make_rows(2))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO], ids=errno.errorcode.get)
def test_fault_21_a_lost_rename_reply_is_a_success(tmp_path: Path, code: int) -> None:
    at = operations_of(tmp_path).index("rename")
    write(tmp_path / "cache", make_rows(2))
    with file_system(FaultyOs(at, happens_and_fails_with(code))):
        write(tmp_path / "cache", make_rows(3, first=2))
    assert_serves(tmp_path / "cache", make_rows(5))


# --- 16 to 20: several processes ------------------------------------------------------------------


def test_fault_16_two_writers_with_different_clips_are_both_complete(tmp_path: Path) -> None:
    spawn = get_context("spawn")
    parts = [make_rows(30, "a"), make_rows(30, "b")]
    writers = [spawn.Process(target=write, args=(tmp_path / "cache", part), kwargs={"max_rows": 3}) for part in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert_serves(tmp_path / "cache", [*parts[0], *parts[1]])


def test_fault_17_of_two_writers_of_one_clip_always_the_same_is_visible(tmp_path: Path) -> None:
    writers = [CacheWriter(tmp_path / "cache", space(), {"who": who}) for who in "ab"]
    row = make_row(0)
    for number, writer in enumerate(writers):
        row.feature[0] = number
        writer.add(row)
    for writer in reversed(writers):  # whoever commits first has the smaller segment id
        writer.commit()
    for _ in range(3):
        cache = FeatureCache.open(tmp_path / "cache")
        assert cache.spaces[0].rows == 1
        assert cache.load(names([row]))[0, 0] == 1


def test_fault_18_a_frozen_writer_that_wakes_makes_a_harmless_duplicate(tmp_path: Path) -> None:
    frozen = CacheWriter(tmp_path / "cache", space(), PROVENANCE)
    frozen.add(make_row(0))
    write(tmp_path / "cache", make_rows(2))
    frozen.commit()
    cache = FeatureCache.open(tmp_path / "cache")
    assert cache.spaces[0].rows == 2
    np.testing.assert_array_equal(cache.load(names(make_rows(2))), values(make_rows(2)))


def test_fault_19_a_reader_during_appends_sees_whole_commits_only(tmp_path: Path) -> None:
    write(tmp_path / "cache", make_rows(2))
    writer = get_context("spawn").Process(
        target=write, args=(tmp_path / "cache", make_rows(200, first=2)), kwargs={"max_rows": 2}
    )
    writer.start()
    sizes = []
    while writer.is_alive():
        cache = FeatureCache.open(tmp_path / "cache")
        assert cache.damage == ()
        rows = cache.spaces[0].rows
        np.testing.assert_array_equal(cache.load(names(make_rows(rows))), values(make_rows(rows)))
        assert cache.spaces[0].rows == rows
        sizes.append(rows)
        time.sleep(0.01)
    assert writer.exitcode == 0
    assert sizes == sorted(sizes)
    assert all(size % 2 == 0 for size in sizes)
    assert_serves(tmp_path / "cache", make_rows(202))


def test_fault_20_a_stale_listing_is_late_never_wrong(root: Path) -> None:
    """A listing that does not show the newest segment yet: its rows are missing, the rest is right."""

    class Stale(FaultyOs):
        def __getattr__(self, name: str):
            if name == "listdir":
                hidden = segments(root)[-1].name
                return lambda path: [entry.name for entry in Path(path).iterdir() if entry.name != hidden]
            return super().__getattr__(name)

    with file_system(Stale(-1, fails_with(0))):
        cache = FeatureCache.open(root)
        left = cache.missing(clips(make_rows(8)), space().fingerprint)
        np.testing.assert_array_equal(cache.load(names(make_rows(6))), values(make_rows(6)))
    assert left == clips(make_rows(8))[6:]
    write(root, make_rows(2, first=6))
    assert FeatureCache.open(root).spaces[0].rows == 8
