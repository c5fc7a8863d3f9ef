"""The view of a cache that follows it: what it finds, and what it reads for that."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import CacheFormatError, FingerprintMismatchError
from featurecache.store import CacheWriter, FeatureCache, Row, forget, live
from featurecache.store import writer as writer_module
from featurecache.store.clip_columns import Wanted
from featurecache.store.index import EMPTY, SpaceIndex, index_of, merged
from featurecache.store.live import LiveCache
from featurecache.store.segment import read_segment
from tests.cache_samples import (
    FaultyOs,
    clips,
    digest,
    fails_with,
    file_system,
    flip,
    make_rows,
    segments,
    space,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(autouse=True)
def listed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RELIST_S", 0.0)


def lacking(view: LiveCache, rows: list[Row], **inputs: object) -> list[Row]:
    wanted = Wanted.of(
        [row.video_sha256 for row in rows], np.arange(len(rows)), [(row.start_us, row.end_us) for row in rows]
    )
    return [row for row, is_lacking in zip(rows, view.lacks(wanted, space(**inputs)), strict=True) if is_lacking]


def test_a_live_view_finds_what_others_write_and_reads_each_segment_once(tmp_path: Path) -> None:
    rows = make_rows(300)
    view = LiveCache(tmp_path / "cache")
    assert lacking(view, rows) == rows
    for number in range(100):
        write(tmp_path / "cache", rows[3 * number : 3 * number + 3])
        calls = FaultyOs(-1, fails_with(errno.EIO))
        with file_system(calls):
            assert lacking(view, rows) == rows[3 * number + 3 :]
        if number:
            newest = segments(tmp_path / "cache")[-1].name
            assert calls.opened
            assert all(newest in path for path in calls.opened), "only what is new is read"
    assert lacking(view, rows[:5], frames=9) == rows[:5]


def test_a_live_view_drops_what_was_removed_and_what_is_damaged(tmp_path: Path) -> None:
    root, rows = tmp_path / "cache", [*make_rows(6), *make_rows(6, "b")]
    write(root, rows, max_rows=6)
    view = LiveCache(root)
    assert lacking(view, rows) == []
    forget(root, digest("b"))
    assert lacking(view, rows) == rows[6:]
    others = make_rows(4, "c")
    write(root, others)
    flip(segments(root)[-1] / "span_us" / "c.0.0", 0)
    assert lacking(view, others) == others
    shutil.rmtree(root)
    assert lacking(view, rows) == rows


def test_a_live_view_refuses_what_a_reader_refuses(tmp_path: Path) -> None:
    write(tmp_path / "cache", make_rows(3))
    (tmp_path / "cache" / "zarr.json").unlink()
    with pytest.raises(CacheFormatError):
        lacking(LiveCache(tmp_path / "cache"), make_rows(3))
    write(tmp_path / "other", make_rows(3))
    [folder] = (tmp_path / "other" / "spaces").glob("final-*")
    (folder / "zarr.json").write_bytes((folder / "zarr.json").read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(FingerprintMismatchError):
        lacking(LiveCache(tmp_path / "other"), make_rows(3))


def test_indexes_merged_in_any_order_are_the_index_of_all_segments(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(12):  # with copies of the same clips in several segments
        chosen = random.choice(40, 15, replace=False)
        write(tmp_path / "cache", [make_rows(1, "ab"[number % 2], number)[0] for number in chosen.tolist()])
    parts = [read_segment(path, space().fingerprint) for path in segments(tmp_path / "cache")]
    whole = index_of(parts)
    for _ in range(10):
        index = EMPTY
        for place in random.permutation(len(parts)).tolist():
            index = merged(index, index_of([parts[place]]))
        assert_equal(index, whole)


def assert_equal(ours: SpaceIndex, theirs: SpaceIndex) -> None:
    assert [one.segment_id for one in ours.segments] == [one.segment_id for one in theirs.segments]
    for column in ("hashes", "video_sha256", "span_us", "segment", "row", "row_crc32c"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))


def test_a_long_run_writes_checkpoints_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_CHECKPOINT_AGE_S", 0.0)
    with CacheWriter(tmp_path / "cache", space(), {}, max_rows=1) as writer:
        for row in make_rows(40):
            writer.add(row)
        assert len(list(tmp_path.glob("cache/spaces/*/index/*.npz"))) == 1
        assert FeatureCache.open(tmp_path / "cache").spaces[0].rows == 40


def test_clips_of_one_recording_share_its_digest_in_memory(tmp_path: Path) -> None:
    write(tmp_path / "cache", [*make_rows(50), *make_rows(50, "b")])
    found = FeatureCache.open(tmp_path / "cache").clips()
    assert found == clips([*make_rows(50), *make_rows(50, "b")])
    assert len({id(sha256) for sha256, _, _ in found}) == 2


@pytest.mark.parametrize("others_write", [False, True])
def test_a_run_does_not_list_its_own_segments_and_sees_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_write: bool
) -> None:
    """Listing takes as long as there are segments: a run that listed its own would slow down as it grows."""
    monkeypatch.setattr(live, "_RELIST_S", 1e9)
    view, listed = live.live_cache(tmp_path / "cache"), []
    with CacheWriter(tmp_path / "cache", space(), {}, max_rows=2) as writer:
        for number in range(20):
            mine, theirs = make_rows(2, "a", 2 * number), make_rows(2, "b", 2 * number)
            assert lacking(view, mine) == mine
            if others_write:
                write(tmp_path / f"other {number}", theirs)
            for row in mine:
                writer.add(row)
            for folder in segments(tmp_path / f"other {number}"):  # as another process's, which tells nobody here
                folder.rename(segments(tmp_path / "cache")[0].parent / folder.name)
            calls = FaultyOs(-1, fails_with(errno.EIO))
            with file_system(calls):
                assert lacking(view, [*mine, *theirs]) == ([] if others_write else theirs)
            listed.append("listdir" in calls.calls)
    assert listed == [others_write] * 20


def test_a_live_view_that_looked_while_a_feature_space_was_being_made_sees_what_comes(tmp_path: Path) -> None:
    rows, view = make_rows(6), LiveCache(tmp_path / "cache")
    write(tmp_path / "cache", rows[:1])
    folder = segments(tmp_path / "cache")[0].parents[1]
    shutil.rmtree(folder / "segments" / segments(tmp_path / "cache")[0].name)
    record = (folder / "zarr.json").read_bytes()
    (folder / "zarr.json").unlink()
    assert lacking(view, rows) == rows
    (folder / "zarr.json").write_bytes(record)
    write(tmp_path / "cache", rows)
    assert lacking(view, rows) == []
