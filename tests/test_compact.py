"""Compaction merges segments and keeps every row; the checkpoint saves opening them and hides no damage."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    DamagedSegmentError,
)
from featurecache.store import CacheWriter, FeatureCache, Row, compact, format, gc, verify
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    fails_with,
    file_system,
    flip,
    make_row,
    make_rows,
    names,
    segments,
    serves,
    space,
    values,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


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


def test_a_checkpoint_that_another_process_is_writing_stays(root: Path) -> None:
    """Taken away, it would end that process's compaction in an error although all is well."""
    writing = segments(root)[0].parents[1] / "index" / f".{format.new_segment_id()}.tmp"
    writing.parent.mkdir()
    writing.write_bytes(b"half")
    compact(root)
    assert writing.exists()
