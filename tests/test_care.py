"""Looking after a cache: verify, repair, gc, compact, forget, the checkpoint, and all of them mixed."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featurecache.errors import (
    CacheFormatError,
    CacheNotFoundError,
    CacheWriteError,
    DamagedSegmentError,
    MissingFeaturesError,
    NewerFormatError,
    SettingsError,
    WithdrawnRecordingError,
)
from featurecache.store import CacheWriter, FeatureCache, Row, compact, forget, format, gc, repair, verify
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    PowerCutError,
    assert_serves,
    clips,
    dead_writer,
    digest,
    edit_record,
    fails_with,
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
    unsynced,
    values,
    write,
)

__all__ = ["unsynced"]
pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight rows in four segments."""
    write(tmp_path / "cache", make_rows(8), max_rows=2)
    return tmp_path / "cache"


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_nothing_when_all_is_well(root: Path, deep: bool) -> None:
    found = verify(root, deep=deep, plan={space().fingerprint: names(make_rows(9))})
    assert (found.damage, found.spaces, found.segments, found.rows) == ((), 1, 4, 8)
    assert (found.duplicates, found.replaced) == (0, 0)


def test_verify_deeply_finds_a_flipped_bit_in_every_file_of_the_cache(root: Path) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        size = path.stat().st_size
        for at in {0, size // 2, size - 1}:
            whole = path.read_bytes()
            flip(path, at)
            assert len(verify(root, deep=True).damage) == 1, (path, at)
            path.write_bytes(whole)
    assert verify(root, deep=True).damage == ()


def test_verify_quickly_finds_a_truncation_of_every_file_of_the_cache(root: Path) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for length in (0, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert len(verify(root).damage) == 1, (path, length)
        path.write_bytes(whole)


def test_verify_deeply_finds_a_file_that_does_not_belong(root: Path) -> None:
    (segments(root)[0] / "features" / "c.0.1").write_bytes(b"x")
    assert "not its own" in verify(root, deep=True).damage[0].reason


def test_fault_14_verify_deeply_finds_two_swapped_shards(root: Path) -> None:
    first, second = (folder / "features" / "c.0.0" for folder in segments(root)[:2])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    assert verify(root).damage == ()
    assert len(verify(root, deep=True).damage) == 2


def test_verify_counts_copies(root: Path) -> None:
    write(root, make_rows(3))
    found = verify(root)
    assert (found.rows, found.duplicates) == (8, 3)


@pytest.mark.parametrize("portions", [1, 3])
def test_verify_in_portions_reads_every_byte_of_every_segment_once(root: Path, portions: int) -> None:
    for folder in segments(root):
        flip(folder / "features" / "c.0.0")
    found = [
        one.segment_id
        for number in range(1, portions + 1)
        for one in verify(root, deep=True, part=(number, portions)).damage
    ]
    assert sorted(found) == [folder.name for folder in segments(root)]


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0)])
def test_verify_refuses_a_portion_that_there_is_not(root: Path, part: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="1/30"):
        verify(root, deep=True, part=part)


def test_verify_names_no_damage_when_a_first_extraction_was_killed_while_it_made_its_folders(tmp_path: Path) -> None:
    """At any operation: what is half made is made whole by the next writer."""

    def stops(real, name, args):
        raise PowerCutError

    recorder = FaultyOs(-1, fails_with(0))
    with file_system(recorder):
        write(tmp_path / "count", make_rows(1))
    for at in range(len(recorder.calls)):
        cache = tmp_path / f"{at}"
        with file_system(FaultyOs(at, stops)), contextlib.suppress(PowerCutError):
            write(cache, make_rows(1))
        with contextlib.suppress(CacheNotFoundError):
            assert verify(cache).damage == (), at
        write(cache, make_rows(2))
        assert verify(cache, deep=True).damage == ()


def test_verify_tells_of_a_damaged_checkpoint_and_repair_makes_it_anew(checkpointed: Path) -> None:
    [path] = checkpointed.glob("spaces/*/index/*.npz")
    flip(path, path.stat().st_size // 2)
    [one] = verify(checkpointed).damage
    assert one.path == path.relative_to(checkpointed).as_posix()
    repair(checkpointed)
    assert verify(checkpointed, deep=True).damage == ()
    serves(checkpointed, make_rows(40))


@pytest.mark.parametrize("care", [verify, repair, gc, compact, lambda root: forget(root, digest("a"))])
def test_care_refuses_when_there_is_no_cache(tmp_path: Path, care) -> None:
    with pytest.raises(CacheNotFoundError):
        care(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("care", [verify, repair, gc, compact, lambda root: forget(root, digest("a"))])
@pytest.mark.parametrize("where", [".", "spaces/final-*", "spaces/*/segments/0*"])
def test_care_touches_nothing_when_the_format_is_newer(root: Path, care, where: str) -> None:
    edit_record(root if where == "." else next(root.glob(where)), version=3)
    before = sorted(root.rglob("*"))
    with pytest.raises(NewerFormatError):
        care(root)
    assert sorted(root.rglob("*")) == before


# --- repair ---------------------------------------------------------------------------------------


def test_repair_sets_damage_aside_and_the_next_extraction_heals(root: Path) -> None:
    victims = segments(root)
    flip(victims[0] / "features" / "c.0.0")
    (victims[2] / "features" / "c.0.0").unlink()
    flip(victims[3] / "zarr.json", 40)
    with pytest.raises(DamagedSegmentError):
        FeatureCache.open(root).load(names(make_rows(8)))
    done = repair(root)
    assert [one.segment_id for one in done.set_aside] == [victims[i].name for i in (0, 2, 3)]
    assert [name for _, name in done.lost] == names([make_row(i) for i in (0, 1, 4, 5)])
    assert done.unknown == (victims[3].name,)
    assert verify(root, deep=True).damage == ()
    left = FeatureCache.open(root).missing(clips(make_rows(8)), space().fingerprint)
    assert left == clips([make_row(i) for i in (0, 1, 4, 5, 6, 7)])
    write(root, [row for row in make_rows(8) if clips([row])[0] in left])
    assert_serves(root, make_rows(8))
    assert repair(root).set_aside == ()


def test_repair_counts_no_clip_as_lost_when_a_copy_is_served(root: Path) -> None:
    write(root, make_rows(2))
    flip(segments(root)[0] / "features" / "c.0.0")
    assert repair(root).lost == ()
    serves(root, make_rows(8))


def test_repair_puts_plain_records_back_and_sets_a_wrong_space_record_aside(root: Path) -> None:
    folder = segments(root)[0].parents[1]
    (root / "zarr.json").write_bytes(b"")
    (root / "spaces" / "zarr.json").unlink()
    (folder / "segments" / "zarr.json").write_text("{}")
    (folder / "zarr.json").write_bytes((folder / "zarr.json").read_bytes().replace(b'"frames":4', b'"frames":5'))
    done = repair(root)
    assert done.rewritten == ("zarr.json", "spaces/zarr.json", f"spaces/{folder.name}/segments/zarr.json")
    assert [one.path for one in done.set_aside] == [f"spaces/{folder.name}/zarr.json"]
    assert "extract" in FeatureCache.open(root).damage[0].reason
    write(root, [])
    assert_serves(root, make_rows(8))


# --- gc -------------------------------------------------------------------------------------------


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


# --- compact --------------------------------------------------------------------------------------


def test_compact_merges_and_keeps_every_row_and_value(root: Path) -> None:
    before = FeatureCache.open(root)
    done = compact(root)
    assert (done.merged, done.written, done.rows) == (4, 1, 8)
    serves(root, make_rows(8))
    assert FeatureCache.open(root).spaces[0].provenance == (PROVENANCE,)
    np.testing.assert_array_equal(
        FeatureCache.open(root).timestamps_us(names(make_rows(8))), before.timestamps_us(names(make_rows(8)))
    )
    assert compact(root).merged == 0
    gc(root, apply=True, grace_s=0)
    np.testing.assert_array_equal(before.load(names(make_rows(8))), values(make_rows(8)))
    assert verify(root, deep=True).damage == ()


def test_compact_respects_the_target_size_and_provenance(root: Path) -> None:
    with CacheWriter(root, space(), {"device": "other"}, max_rows=1) as writer:
        for row in make_rows(2, "b"):
            writer.add(row)
    done = compact(root, target_rows=5)
    assert (done.merged, done.written) == (6, 3)
    serves(root, [*make_rows(8), *make_rows(2, "b")])


def test_compact_keeps_the_copy_that_won(root: Path) -> None:
    """The first copy's value differs: after compaction of everything, or of parts, it is still the one served."""
    first = make_row(0)
    other = Row(first.video_sha256, first.start_us, first.end_us, first.feature + 1, first.timestamps_us)
    write(root, [other, *make_rows(3, "b")], max_rows=4)
    for _ in range(2):
        compact(root, target_rows=6)
        gc(root, apply=True, grace_s=0)
        serves(root, [*make_rows(8), *make_rows(3, "b")])


def test_compact_twice_replaces_every_generation(root: Path) -> None:
    first = {path.name for path in segments(root)}
    compact(root)
    write(root, make_rows(2, "b"), max_rows=1)
    compact(root)
    newest = max(FeatureCache.open(root)._views.values(), key=str).index.segments
    assert len(newest) == 1
    assert first < set(newest[0].replaces)
    serves(root, [*make_rows(8), *make_rows(2, "b")])


def test_compact_refuses_when_a_segment_is_damaged(root: Path) -> None:
    flip(segments(root)[1] / "features" / "c.0.0")
    with pytest.raises(DamagedSegmentError, match="repair"):
        compact(root)
    assert len(segments(root)) == 4


# --- checkpoint -----------------------------------------------------------------------------------


@pytest.fixture
def checkpointed(tmp_path: Path) -> Path:
    """Forty rows in forty segments, and a checkpoint of them."""
    write(tmp_path / "cache", make_rows(40), max_rows=1)
    [_] = (tmp_path / "cache").glob("spaces/*/index/*.npz")
    return tmp_path / "cache"


def operations_to_open(root: Path) -> int:
    recorder = FaultyOs(-1, fails_with(0))
    with file_system(recorder):
        FeatureCache.open(root)
    return len(recorder.calls)


def test_checkpoint_saves_opening_every_segment(checkpointed: Path) -> None:
    assert operations_to_open(checkpointed) < 30
    write(checkpointed, make_rows(2, "b"))
    assert operations_to_open(checkpointed) < 80
    serves(checkpointed, [*make_rows(40), *make_rows(2, "b")])
    shutil.rmtree(next(checkpointed.glob("spaces/*/index")))
    assert operations_to_open(checkpointed) > 500
    serves(checkpointed, [*make_rows(40), *make_rows(2, "b")])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "not a checkpoint", "other space"])
def test_fault_30_a_corrupt_checkpoint_is_ignored_and_rebuilt(checkpointed: Path, damage: str) -> None:
    [path] = checkpointed.glob("spaces/*/index/*.npz")
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "not a checkpoint":
        path.rename(path.with_name("checkpoint.npz"))
    else:
        other = space(pooling="motion")
        write(checkpointed, make_rows(33, "b"), of=other, max_rows=1)
        [theirs] = checkpointed.glob(f"spaces/{format.space_folder_name(other)}/index/*.npz")
        path.unlink()
        shutil.copy(theirs, path.parent)
    cache = FeatureCache.open(checkpointed)
    np.testing.assert_array_equal(cache.load(names(make_rows(40))), values(make_rows(40)))
    write(checkpointed, [])
    assert operations_to_open(checkpointed) < 60


def test_fault_30_a_stale_checkpoint_is_ignored(checkpointed: Path) -> None:
    shutil.rmtree(segments(checkpointed)[7])
    serves(checkpointed, [row for i, row in enumerate(make_rows(40)) if i != 7])
    compact(checkpointed)
    serves(checkpointed, [row for i, row in enumerate(make_rows(40)) if i != 7])


def test_checkpoint_does_not_hide_damage_from_load(checkpointed: Path) -> None:
    victim = segments(checkpointed)[3]
    flip(victim / "features" / "c.0.0", 5)
    (segments(checkpointed)[4] / "features" / "c.0.0").write_bytes(b"")
    cache = FeatureCache.open(checkpointed)
    with pytest.raises(DamagedSegmentError, match=victim.name):
        cache.load(names(make_rows(40)))
    assert len(cache.damage) == 2


def test_a_writer_with_an_older_name_wins_over_the_checkpoint(
    checkpointed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new segment may sort before those in the checkpoint (a clock that is behind): the rule still holds."""
    first = make_row(0)
    other = Row(first.video_sha256, first.start_us, first.end_us, first.feature + 1, first.timestamps_us)
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    write(checkpointed, [other])
    with_checkpoint = FeatureCache.open(checkpointed).load(names([first]))
    shutil.rmtree(next(checkpointed.glob("spaces/*/index")))
    np.testing.assert_array_equal(with_checkpoint, values([other]))
    np.testing.assert_array_equal(FeatureCache.open(checkpointed).load(names([first])), values([other]))


# --- the format of this version, for ever ---------------------------------------------------------


def test_a_cache_of_version_1_stays_readable_for_ever(tmp_path: Path) -> None:
    """`tests/data/cache_v1` was written by the first release; never write it again."""
    old = Path(__file__).parent / "data" / "cache_v1"
    assert sum(path.stat().st_size for path in old.rglob("*") if path.is_file()) < 40_000
    rows = make_rows(5, "old")
    cache = FeatureCache.open(old)
    assert cache.damage == ()
    [one] = cache.spaces
    assert (one.rows, one.dim, one.stored_dtype, one.provenance) == (5, 24, "float16", (PROVENANCE,))
    np.testing.assert_array_equal(cache.load(names(rows)), values(rows))
    np.testing.assert_array_equal(cache.timestamps_us(names(rows)), np.stack([row.timestamps_us for row in rows]))
    assert verify(old, deep=True).damage == ()
    shutil.copytree(old, tmp_path / "cache")
    write(tmp_path / "cache", make_rows(7, "old")[5:])
    compact(tmp_path / "cache")
    serves(tmp_path / "cache", make_rows(7, "old"))


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


@pytest.mark.parametrize("place", ["index", "quarantine", "segments", "segments/0*", "segments/0*/features"])
def test_care_is_not_stopped_by_folders_and_links_that_other_programs_left(root: Path, place: str) -> None:
    space_folder = segments(root)[0].parents[1]
    for name in ("index", "quarantine"):
        (space_folder / name).mkdir()
    folder = next(space_folder.glob(place))
    (folder / "theirs").mkdir()
    (folder / "theirs" / "file").write_bytes(b"x")
    (folder / "loop").symlink_to(folder)
    compact(root)
    repair(root)
    gc(root, apply=True, grace_s=0, quarantine=True)
    write(root, make_rows(2, "b"))
    forget(root, digest("b"))
    serves(root, make_rows(8))


def test_a_checkpoint_that_another_process_is_writing_stays(root: Path) -> None:
    """Taken away, it would end that process's compaction in an error although all is well."""
    writing = segments(root)[0].parents[1] / "index" / f".{format.new_segment_id()}.tmp"
    writing.parent.mkdir()
    writing.write_bytes(b"half")
    compact(root)
    assert writing.exists()


# --- everything mixed -----------------------------------------------------------------------------


def operate(name: str, root: Path, recording: str) -> None:
    """One operation on a cache in which nothing is damaged."""
    if name == "gc":
        gc(root, apply=True, grace_s=0)
    elif name == "compact":
        compact(root)
    elif name == "forget":
        assert forget(root, digest(recording)).lost == ()
    elif name == "repair":
        assert repair(root).set_aside == ()
    else:
        assert verify(root, deep=True).damage == ()


PAIRS = [
    *([("compact", "forget")] * 10),  # where operations that do not take turns fail most often
    *(("compact", "gc"), ("compact", "compact"), ("forget", "forget"), ("forget", "compact"), ("gc", "forget")),
    *(("gc", "compact"), ("repair", "forget"), ("repair", "gc"), ("verify", "gc"), ("verify", "forget")),
]
INSTANTS = [number / 32 for number in range(8, 25)]  # before them an operation has begun nothing, after them it is done


class Store(RuleBasedStateMachine):
    """Append, resume, damage, repair, forget, compact and gc in any order, against a dict of rows."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "cache"
        self.model: dict[str, Row] = {}
        self.withdrawn: set[str] = set()
        write(self.root, [])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(recording=st.sampled_from("abcd"), first=st.integers(0, 12), count=st.integers(1, 8), size=st.integers(1, 5))
    def append(self, recording: str, first: int, count: int, size: int) -> None:
        rows = make_rows(count, recording, first)
        if recording in self.withdrawn:
            with pytest.raises(WithdrawnRecordingError):
                write(self.root, rows)
            return
        write(self.root, rows, max_rows=size)
        self.model |= dict(zip(names(rows), rows, strict=True))

    @rule(recording=st.sampled_from("abcd"), count=st.integers(1, 15))
    def resume(self, recording: str, count: int) -> None:
        rows = make_rows(count, recording)
        left = FeatureCache.open(self.root).missing(clips(rows), space().fingerprint)
        assert left == clips(row for row in rows if names([row])[0] not in self.model)
        todo = [row for row in rows if clips([row])[0] in left and recording not in self.withdrawn]
        write(self.root, todo)
        self.model |= dict(zip(names(todo), todo, strict=True))

    @rule(at=st.integers(0, 140))
    def interrupted_append(self, at: int) -> None:
        rows = make_rows(4, "never withdrawn", first=20)
        with file_system(FaultyOs(at, fails_with(28))):
            try:
                write(self.root, rows)
            except OSError:
                left = set(FeatureCache.open(self.root).missing(clips(rows), space().fingerprint))
                rows = [row for row in rows if clips([row])[0] not in left]
        self.model |= dict(zip(names(rows), rows, strict=True))

    @rule(segment=st.integers(0, 999), file=st.integers(0, 999), byte=st.integers(0, 999_999))
    def damage_and_repair(self, segment: int, file: int, byte: int) -> None:
        """Numbers of any size, since what there is to choose from has random names."""
        folders = segments(self.root)
        if not folders:
            return
        victim = folders[segment % len(folders)]
        paths = sorted(path for path in victim.rglob("*") if path.is_file())
        path = paths[file % len(paths)]
        flip(path, byte % path.stat().st_size)
        repair(self.root)
        served = set(FeatureCache.open(self.root).clip_ids())
        assert served <= set(self.model)
        assert len(self.model) - len(served) <= path_rows_or_all(victim, self.root)
        self.model = {name: row for name, row in self.model.items() if name in served}

    @rule(recording=st.sampled_from("abcd"))
    def forget_one(self, recording: str) -> None:
        forget(self.root, digest(recording))
        self.expect_gone(recording)

    def expect_gone(self, recording: str) -> None:
        self.withdrawn.add(recording)
        self.model = {name: row for name, row in self.model.items() if not name.startswith(digest(recording)[:16])}
        assert not any(
            bytes.fromhex(digest(recording)) in path.read_bytes() for path in self.root.rglob("*") if path.is_file()
        )

    @rule(target_rows=st.sampled_from([6, 20, 1000]))
    def compact_some(self, target_rows: int) -> None:
        compact(self.root, target_rows=target_rows)

    @rule(grace_s=st.sampled_from([0.0, 3600.0]))
    def collect(self, grace_s: float) -> None:
        gc(self.root, apply=True, grace_s=grace_s)

    @rule(pair=st.sampled_from(PAIRS), share=st.sampled_from(INSTANTS))
    def two_at_once(self, pair: tuple[str, str], share: float) -> None:
        """The second begins in the middle of the first and goes as far as it can, as another process would."""
        first, second = pair
        recording = f"pair {len(self.withdrawn)}"
        self.append(recording, 0, 4, 1)
        counted = FaultyOs(-1, fails_with(0))
        shutil.copytree(self.root, self.folder / "count")
        with file_system(counted):
            operate(first, self.folder / "count", recording)
        shutil.rmtree(self.folder / "count")
        with ThreadPoolExecutor(1) as other:
            started: list[Future[None]] = []

            def starts_second(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
                started.append(other.submit(operate, second, self.root, recording))
                wait(started, 0.1)
                return real(*args)

            with file_system(FaultyOs(int(share * len(counted.calls)), starts_second)):
                operate(first, self.root, recording)
                for done in started or [other.submit(operate, second, self.root, recording)]:
                    done.result()
        if "forget" in pair:
            self.expect_gone(recording)

    @invariant()
    def the_cache_serves_the_model(self) -> None:
        if hasattr(self, "model"):
            serves(self.root, list(self.model.values()))


def path_rows_or_all(victim: Path, root: Path) -> int:
    [moved] = root.glob(f"spaces/*/quarantine/{victim.name}")
    return max(path_rows(moved), 1)


TestStoreStateMachine = Store.TestCase
TestStoreStateMachine.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_reports_are_plain_data(root: Path) -> None:
    from dataclasses import asdict
    from json import dumps

    for report in (verify(root), repair(root), compact(root), forget(root, digest("a"))):
        assert dumps(asdict(report))
    assert isinstance(CacheFormatError("x"), ValueError)
