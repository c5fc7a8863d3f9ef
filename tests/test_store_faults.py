"""The fault table: each fault the store must survive, by number, and the outcome it must have.

1 to 3 kill -9, out of memory and power cuts; 5 to 8 failing operations; 9 to 15 damage; 16 to 21 several
processes; 22 to 37 the rest. 30 is in test_compact.py, 31 in test_care_faults.py, 32 in test_gc.py, 37 in
test_store_writer.py; relabelling (29) and hostile videos (36) do not reach the store: see tests of clips and of video.
"""

import errno
import hashlib
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
    CacheFormatError,
    CacheReadError,
    CacheWriteError,
    DamagedSegmentError,
    FingerprintMismatchError,
    MissingFeaturesError,
    NonFiniteFeatureError,
)
from featurecache.spec import canonical_json
from featurecache.store import CacheWriter, FeatureCache, forget, format, gc, repair, verify
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    LosingOs,
    PowerCutError,
    assert_serves,
    clips,
    digest,
    edit_record,
    fails_with,
    file_system,
    happens_and_fails_with,
    make_row,
    make_rows,
    names,
    segments,
    space,
    staged,
    unsynced,
    values,
    write,
    writes_half,
)

__all__ = ["unsynced"]
pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six rows in three segments."""
    write(tmp_path / "cache", make_rows(6), max_rows=2)
    return tmp_path / "cache"


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


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


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


# --- 9 to 15: damage ------------------------------------------------------------------------------


def test_fault_09_a_flipped_feature_byte_raises_and_names_the_segment(root: Path) -> None:
    flip(segments(root)[1] / "features" / "c.0.0", 11)
    with pytest.raises(DamagedSegmentError, match=rf"{segments(root)[1].name}.*repair.*extract"):
        FeatureCache.open(root).load(names(make_rows(6)))
    np.testing.assert_array_equal(FeatureCache.open(root).load(names(make_rows(2))), values(make_rows(2)))


def test_fault_10_a_flipped_key_byte_rejects_the_segment_at_open(root: Path) -> None:
    flip(segments(root)[1] / "key" / "c.0.0", 3)
    cache = FeatureCache.open(root)
    assert [one.segment_id for one in cache.damage] == [segments(root)[1].name]
    assert cache.spaces[0].rows == 4


@pytest.mark.parametrize("size", [0, 1, 40])
def test_fault_11_a_truncated_shard_is_rejected_never_nan(root: Path, size: int) -> None:
    shard = segments(root)[1] / "features" / "c.0.0"
    late = FeatureCache.open(root)
    shard.write_bytes(shard.read_bytes()[:size])
    for cache in (late, FeatureCache.open(root)):
        with pytest.raises(DamagedSegmentError, match=f"{size} bytes instead of"):
            cache.load(names(make_rows(6)))


def test_fault_12_a_deleted_shard_is_rejected_never_nan(root: Path) -> None:
    late = FeatureCache.open(root)
    (segments(root)[1] / "features" / "c.0.0").unlink()
    for cache in (late, FeatureCache.open(root)):
        with pytest.raises(DamagedSegmentError, match="not there"):
            cache.load(names(make_rows(6)))


def test_fault_13_a_deleted_segment_is_reported_against_the_plan(root: Path) -> None:
    shutil.rmtree(segments(root)[1])
    cache = FeatureCache.open(root)
    assert cache.missing(clips(make_rows(6)), space().fingerprint) == clips(make_rows(6))[2:4]
    with pytest.raises(MissingFeaturesError, match="2 of 6"):
        cache.load(names(make_rows(6)))


def test_fault_14_two_swapped_shards_are_found_even_when_loading(root: Path) -> None:
    first, second = (folder / "features" / "c.0.0" for folder in segments(root)[:2])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(DamagedSegmentError, match="2 segments are damaged"):
        FeatureCache.open(root).load(names(make_rows(6)))


@pytest.mark.parametrize("damage", ["flip", "provenance", "version", "empty", "gone", "other space", "not json"])
def test_fault_15_a_damaged_record_is_rejected_and_the_others_served(root: Path, damage: str) -> None:
    record = segments(root)[1] / "zarr.json"
    if damage == "flip":
        record.write_bytes(record.read_bytes().replace(b'"rows":2', b'"rows":3'))
    elif damage == "provenance":
        record.write_bytes(record.read_bytes().replace(b'"device":"cpu"', b'"device":"gpu"'))
    elif damage == "version":  # a flipped bit must not look like a newer format
        record.write_bytes(record.read_bytes().replace(b'"version":1', b'"version":3'))
    elif damage == "empty":
        record.write_bytes(b"")
    elif damage == "gone":
        record.unlink()
    elif damage == "other space":
        write(root, make_rows(1), of=space(pooling="motion"))
        record.write_bytes((next(root.glob("spaces/final-motion-*/segments/*-*/zarr.json"))).read_bytes())
    else:
        record.write_bytes(b"[" * 100_000)
    cache = FeatureCache.open(root)
    assert [one.segment_id for one in cache.damage] == [segments(root)[1].name]
    np.testing.assert_array_equal(cache.load(names(make_rows(2))), values(make_rows(2)))


def test_fault_15_a_whole_segment_in_the_wrong_space_is_rejected(root: Path) -> None:
    write(root, make_rows(2, "b"), of=space(pooling="motion"))
    [other] = root.glob("spaces/final-motion-*/segments/*-*")
    shutil.copytree(other, segments(root)[0].parent / other.name)
    cache = FeatureCache.open(root)
    assert [one.segment_id for one in cache.damage] == [other.name]
    assert sorted(one.rows for one in cache.spaces) == [2, 6]


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
        left = cache.missing(clips(make_rows(6)), space().fingerprint)
        np.testing.assert_array_equal(cache.load(names(make_rows(4))), values(make_rows(4)))
    assert left == clips(make_rows(6))[4:]
    write(root, make_rows(2, first=4))
    assert FeatureCache.open(root).spaces[0].rows == 6


# --- 22 to 35 -------------------------------------------------------------------------------------


def test_fault_22_an_interrupted_copy_is_flagged_and_copying_again_heals(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    sources = sorted(path for path in root.rglob("*") if path.is_file())
    for count in range(1, len(sources) + 1):
        shutil.rmtree(copy, ignore_errors=True)
        for path in sources[:count]:
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        try:
            cache = FeatureCache.open(copy)
        except CacheFormatError:
            continue
        whole = {path.name for path in segments(copy)} - {one.segment_id for one in cache.damage}
        for number, folder in enumerate(segments(root)):
            rows = make_rows(2, first=2 * number)
            if folder.name in whole and cache.spaces:
                np.testing.assert_array_equal(cache.load(names(rows)), values(rows))
            elif cache.spaces:
                with pytest.raises((DamagedSegmentError, MissingFeaturesError)):
                    cache.load(names(rows))
    assert_serves(copy, make_rows(6))


def test_fault_23_reading_writes_nothing(root: Path) -> None:
    class ReadOnly(FaultyOs):
        def __getattr__(self, name: str):
            if name in {"mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir", "chmod", "fchmod"}:
                return fails_with(errno.EROFS)
            if name == "open":
                return self._open
            return super().__getattr__(name)

        @staticmethod
        def _open(path: str, flags: int, mode: int = 0) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, "read-only")
            return os.open(path, flags, mode)

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with file_system(ReadOnly(-1, fails_with(0))):
        cache = FeatureCache.open(root)
        np.testing.assert_array_equal(cache.load(names(make_rows(6))), values(make_rows(6)))
        assert len(list(cache.iterate(4))) == 2
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_fault_24_another_model_is_a_new_space_and_cannot_be_written_into_this_one(root: Path) -> None:
    other = space(weights="xyz")
    write(root, make_rows(1), of=other)
    assert [one.rows for one in FeatureCache.open(root).spaces if one.fingerprint == space().fingerprint] == [6]
    folder = root / "spaces" / format.space_folder_name(other)
    (folder / "zarr.json").write_bytes(format.space_bytes(space()))
    with pytest.raises(FingerprintMismatchError):
        CacheWriter(root, other, PROVENANCE)


def test_fault_25_an_edited_fingerprint_or_input_is_refused(root: Path) -> None:
    record = segments(root)[0].parents[1] / "zarr.json"
    whole = record.read_bytes()
    for old, new in ((b'"frames":4', b'"frames":8'), (space().fingerprint.encode(), b"0" * 64)):
        record.write_bytes(whole.replace(old, new))
        assert "repair" in FeatureCache.open(root).damage[0].reason
        with pytest.raises(DamagedSegmentError, match="repair"):
            FeatureCache.open(root).load([])
        with pytest.raises(FingerprintMismatchError, match="repair"):
            CacheWriter(root, space(), PROVENANCE)


def test_fault_26_a_feature_with_nan_is_refused_with_its_clip(root: Path) -> None:
    row = make_row(9)
    row.feature[0] = np.nan
    with pytest.raises(NonFiniteFeatureError, match=names([row])[0]):
        write(root, [row])


def test_fault_27_and_28_content_decides_not_the_name(root: Path) -> None:
    """A renamed recording has the same digest and is found; a changed one has another and is not."""
    cache = FeatureCache.open(root)
    assert cache.missing([(digest("a"), 0, 3_000_000)], space().fingerprint) == []
    assert cache.missing([(digest("a, cut"), 0, 3_000_000)], space().fingerprint) == [(digest("a, cut"), 0, 3_000_000)]


def test_fault_33_clock_skew_changes_only_which_duplicate_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no leases; a clock that is wrong by years orders segments and does nothing else."""
    write(tmp_path / "cache", make_rows(3))
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    write(tmp_path / "cache", make_rows(5))
    cache = FeatureCache.open(tmp_path / "cache")
    assert (cache.spaces[0].rows, cache.damage) == (5, ())
    np.testing.assert_array_equal(cache.load(names(make_rows(5))), values(make_rows(5)))


@pytest.mark.parametrize("where", ["cache", "space", "segment"])
def test_fault_34_a_newer_format_version_is_refused_with_a_message(root: Path, where: str) -> None:
    folder = {"cache": root, "space": segments(root)[0].parents[1], "segment": segments(root)[0]}[where]
    edit_record(folder, version=3)
    with pytest.raises(CacheFormatError, match=r"version 3.*upgrade"):
        FeatureCache.open(root)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EMFILE, errno.EIO], ids=errno.errorcode.get)
def test_fault_35_a_disk_that_refuses_is_an_error_never_missing(root: Path, code: int) -> None:
    recorder = FaultyOs(-1, fails_with(0))
    with file_system(recorder):
        FeatureCache.open(root).load(names(make_rows(6)))
    passed_over = []
    for at in (i for i, name in enumerate(recorder.calls) if name != "close"):
        with file_system(FaultyOs(at, fails_with(code))):
            try:
                loaded = FeatureCache.open(root).load(names(make_rows(6)))
            except CacheReadError:
                continue
        np.testing.assert_array_equal(loaded, values(make_rows(6)))
        passed_over.append(recorder.calls[at])
    assert passed_over in ([], ["listdir"])  # the checkpoint's folder, which nothing depends on


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": -1},
        {"rows": "3"},
        {"rows": True},
        {"rows": 1 << 60},
        {"row_shape": []},
        {"row_shape": [0]},
        {"row_shape": "24"},
        {"dtype": "float64"},
        {"dtype": ["float16"]},
        {"timestamps": None},
        {"provenance": None},
        {"replaces": None},
        {"replaces": [3]},
        {"replaces": ["../../other"]},
        {"fingerprint": None},
        {"files": {}},
        {"files": None},
        {"files": {"../../../zarr.json": [3, "0" * 64]}},
        {"files": {"features/zarr.json": 3}},
    ],
)
def test_a_record_with_a_right_digest_and_a_wrong_form_is_damage_and_nothing_else(
    root: Path, changes: dict[str, object]
) -> None:
    """Somebody made it: every reader and every operation names it, and none ends in a traceback."""
    [victim, *_] = segments(root)
    edit_record(victim, **changes)
    assert [one.segment_id for one in FeatureCache.open(root).damage] == [victim.name]
    assert [one.segment_id for one in verify(root).damage] == [victim.name]
    forget(root, digest("other"))
    gc(root, apply=True)
    repair(root)
    assert verify(root, deep=True).damage == ()


def test_one_damaged_feature_space_leaves_the_others_readable(root: Path) -> None:
    write(root, make_rows(2), of=space(pooling="motion"))
    flip(next(root.glob("spaces/final-motion-*/zarr.json")), 200)
    cache = FeatureCache.open(root)
    assert "final-motion" in cache.damage[0].path
    assert len(cache.load(cache.clip_ids())) == cache.spaces[0].rows
    with pytest.raises(DamagedSegmentError, match="repair"):
        cache.load(names(make_rows(2)), pooling="motion")


@pytest.mark.parametrize("inputs", [None, [], {}, {"tap": 3, "pooling": "mean", "stored_dtype": "float16"}])
def test_a_feature_space_whose_record_somebody_made_is_named_and_the_others_are_served(
    root: Path, inputs: object
) -> None:
    fingerprint = hashlib.sha256(canonical_json(inputs).encode()).hexdigest()
    made = root / "spaces" / f"made-{fingerprint[:16]}"
    made.mkdir()
    attributes = {"format": "featurecache", "version": 1, "fingerprint": fingerprint, "inputs": inputs}
    (made / "zarr.json").write_bytes(format.group_bytes(attributes))
    cache = FeatureCache.open(root)
    assert [one.path for one in cache.damage] == [f"spaces/{made.name}/zarr.json"]
    assert len(cache.load(names(make_rows(6)))) == 6
    assert [one.path for one in verify(root).damage] == [f"spaces/{made.name}/zarr.json"]
