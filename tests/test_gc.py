"""Garbage collection: what a living process writes stays, and what nothing refers to goes when asked."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    CacheWriteError,
    MissingFeaturesError,
)
from featurecache.store import CacheWriter, FeatureCache, compact, format, gc, repair
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    assert_serves,
    dead_writer,
    file_system,
    flip,
    make_row,
    make_rows,
    names,
    path_rows,
    segments,
    serves,
    space,
    staged,
    values,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def test_gc_tells_and_removes_only_when_applied(root: Path) -> None:
    left = dead_writer(root)
    [one] = gc(root)
    assert (one.path, one.reason) == (left.relative_to(root).as_posix(), "its process is gone")
    assert one.size_bytes > 0
    assert left.exists()
    assert gc(root, apply=True) == (one,)
    assert staged(root) == []
    assert gc(root) == ()
    assert_serves(root, make_rows(8))


def test_fault_32_gc_leaves_the_staging_of_a_living_writer(root: Path) -> None:
    ours = segments(root)[0].parents[1] / "staging" / format.new_segment_id()
    ours.mkdir()
    age(ours, 100)
    assert gc(root, apply=True) == ()
    assert ours.exists()


@pytest.mark.parametrize(("hours", "goes"), [(23, False), (25, True)])
def test_gc_waits_a_day_when_the_process_cannot_be_known(root: Path, hours: float, goes: bool) -> None:
    here = format.this_machine()
    other = format.new_segment_id().replace(here, "elsewhere.01234567")
    path = segments(root)[0].parents[1] / "staging" / other
    path.mkdir()
    age(path, hours)
    assert bool(gc(root, apply=True)) is goes
    assert path.exists() is not goes


def test_gc_removes_replaced_segments_after_the_grace_period(root: Path) -> None:
    compact(root)
    assert gc(root, apply=True) == ()
    assert len(gc(root, apply=True, grace_s=0)) == 4
    assert_serves(root, make_rows(8))


def test_gc_removes_a_space_only_when_it_is_named(root: Path) -> None:
    old = space(frames=2)
    write(root, make_rows(2), of=old)
    assert gc(root) == ()
    for wrong in ("", old.fingerprint[:7], "0" * 8):
        with pytest.raises(MissingFeaturesError):
            gc(root, spaces=[wrong])
    assert [one.reason for one in gc(root, apply=True, spaces=[old.fingerprint[:8]])] == [
        "feature space named for removal"
    ]
    assert_serves(root, make_rows(8))


def test_gc_removes_quarantine_only_when_asked(root: Path) -> None:
    flip(segments(root)[0] / "key" / "c.0.0")
    repair(root)
    assert gc(root) == ()
    assert len(gc(root, apply=True, quarantine=True)) == 1
    assert not any(root.glob("spaces/*/quarantine/*"))


def test_fault_18_a_writer_whose_staging_was_removed_commits_again(root: Path) -> None:
    """A frozen worker that wakes after gc took its unfinished segment."""

    def gc_strikes(real, name, args):
        shutil.rmtree(staged(root)[0])
        return real(*args)

    with CacheWriter(root, space(), PROVENANCE) as writer:
        writer.add(make_row(8))
        with file_system(FaultyOs(60, gc_strikes)), pytest.raises(CacheWriteError):
            writer.commit()
        writer.commit()
    assert_serves(root, make_rows(9))


def test_gc_keeps_originals_when_what_replaces_them_is_damaged_anywhere(root: Path, tmp_path: Path) -> None:
    """Whatever bit of the compacted segment is flipped, gc leaves what readers fall back to."""
    compact(root)
    new = min(segments(root), key=lambda path: -path_rows(path))
    for path in sorted(path for path in new.rglob("*") if path.is_file()):
        copy = tmp_path / "copy"
        shutil.copytree(root, copy)
        flip(copy / path.relative_to(root), path.stat().st_size // 2)
        told = gc(copy, apply=True, grace_s=0)
        assert all(one.stays for one in told)
        np.testing.assert_array_equal(FeatureCache.open(copy).load(names(make_rows(8))), values(make_rows(8)))
        repair(copy)
        assert gc(copy, apply=True, grace_s=0) == ()
        serves(copy, make_rows(8))
        shutil.rmtree(copy)


def test_gc_judges_age_by_the_clock_of_the_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is a day ahead must not take another machine's unfinished segment for abandoned."""
    other = format.new_segment_id().replace(format.this_machine(), "elsewhere.01234567")
    path = segments(root)[0].parents[1] / "staging" / other
    path.mkdir()
    present = time.time()
    monkeypatch.setattr(time, "time", lambda: present + 25 * 3600)
    assert gc(root, apply=True) == ()
    assert path.exists()


def test_gc_clears_what_a_killed_checkpoint_and_a_killed_mark_left(root: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    name = format.new_segment_id().replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    for folder in (root / "withdrawn", segments(root)[0].parents[1] / "index"):
        folder.mkdir(exist_ok=True)
        (folder / f".{name}.tmp").write_bytes(b"half")
    gc(root, apply=True)
    assert [path for path in root.rglob("*") if path.suffix == ".tmp"] == []
    serves(root, make_rows(8))
