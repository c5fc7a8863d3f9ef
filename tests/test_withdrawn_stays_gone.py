"""A withdrawn recording does not come back: by writers, commits and compactions in flight, copies or imports."""

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    MissingFeaturesError,
    WithdrawnRecordingError,
    WithdrawnRecordingWarning,
)
from featurecache.store import (
    CacheWriter,
    FeatureCache,
    compact,
    forget,
    gc,
    rewrite,
    verify,
)
from featurecache.store.exchange import export_features
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    PowerCutError,
    digest,
    fails_with,
    file_system,
    make_row,
    make_rows,
    names,
    segments,
    serves,
    space,
    values,
    write,
)
from tests.withdrawal_samples import GONE, copied_features, copied_segment, half_removed_space, traces, write_mixed

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "cache")


# --- it never comes back ----------------------------------------------------------------------------


def test_a_withdrawn_recording_is_refused_by_every_later_writer(root: Path) -> None:
    forget(root, digest(GONE)[:16])
    with CacheWriter(root, space(pooling="motion"), PROVENANCE) as writer:
        writer.add(make_row(0))
        with pytest.raises(WithdrawnRecordingError, match="consent was given again"):
            writer.add(make_row(0, GONE))
    assert traces(root, GONE, make_rows(6, GONE)) == []


def test_a_writer_drops_what_it_gathered_of_a_recording_that_is_withdrawn_meanwhile(root: Path) -> None:
    writer = CacheWriter(root, space(), PROVENANCE)
    for row in (*make_rows(2, GONE, first=10), *make_rows(2, "b")):
        writer.add(row)
    forget(root, digest(GONE))
    with pytest.warns(WithdrawnRecordingWarning, match="2 computed rows"):
        writer.commit()
    assert writer.rows_saved == 2
    serves(root, [*make_rows(6), *make_rows(2, "b")])
    assert traces(root, GONE, make_rows(20, GONE)) == []


@pytest.mark.parametrize(("operation", "which"), [("mkdir", min), ("open", max), ("rename", max)])
def test_a_commit_in_flight_does_not_bring_a_withdrawn_recording_back(
    root: Path, operation: str, which: Callable[[Iterable[int]], int]
) -> None:
    """Withdrawn before anything is staged, while the segment is being staged, or just before the rename commits it."""
    done: list[object] = []
    saved: list[int] = []

    def forgets_first(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
        with file_system(FaultyOs(-1, fails_with(0))):
            done.append(forget(root, digest(GONE)))
        return real(*args)

    def commit(at: int) -> list[str]:
        recorder = FaultyOs(at, forgets_first)
        with CacheWriter(root, space(), PROVENANCE) as writer:
            for row in (*make_rows(2, GONE, first=10), *make_rows(2, "b")):
                writer.add(row)
            with file_system(recorder):
                writer.commit()
        saved.append(writer.rows_saved)
        return recorder.calls

    shutil.copytree(root, root.with_name("original"))
    calls = commit(-1)
    shutil.rmtree(root)
    root.with_name("original").rename(root)
    commit_point = max(number for number, name in enumerate(calls) if name == "rename")
    at = which(number for number, name in enumerate(calls[: commit_point + 1]) if name == operation)
    with pytest.warns(WithdrawnRecordingWarning, match="2 computed rows"):
        commit(at)
    assert done
    assert saved == [4, 2]
    serves(root, [*make_rows(6), *make_rows(2, "b")])
    assert traces(root, GONE, make_rows(20, GONE)) == []


def test_a_compaction_in_flight_does_not_bring_a_withdrawn_recording_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = rewrite.commit_segment

    def forget_first(folder: Path, segment_id: str, contents: dict[str, bytes]) -> None:
        monkeypatch.setattr(rewrite, "commit_segment", commit)
        forget(root, digest(GONE))
        commit(folder, segment_id, contents)

    monkeypatch.setattr(rewrite, "commit_segment", forget_first)
    compact(root)
    serves(root, make_rows(6))
    assert traces(root, GONE, make_rows(6, GONE)) == []


def test_rows_that_come_back_by_copying_are_not_served_and_gc_removes_them(root: Path, tmp_path: Path) -> None:
    """A folder restored from a backup: the mark keeps readers from it, `verify` tells, `gc` clears it."""
    shutil.copytree(root, tmp_path / "backup")
    forget(root, digest(GONE))
    for folder in segments(tmp_path / "backup"):
        shutil.copytree(folder, segments(root)[0].parent / folder.name)
    serves(root, make_rows(6))
    with pytest.raises(MissingFeaturesError):
        FeatureCache.open(root).load(names(make_rows(1, GONE)))
    assert verify(root).withdrawn == 6
    gc(root, apply=True, grace_s=0)
    assert verify(root).withdrawn == 0
    assert traces(root, GONE, make_rows(6, GONE)) == []
    serves(root, make_rows(6))


def test_a_copied_segment_that_held_nothing_else_is_not_served_again(tmp_path: Path) -> None:
    """No segment written anew replaces it, so that the mark alone keeps readers from it."""
    root = tmp_path / "cache"
    write(root, make_rows(4))
    kept = segments(root)
    write(root, make_rows(4, GONE))
    [gone] = set(segments(root)) - set(kept)
    shutil.copytree(gone, tmp_path / "backup")
    forget(root, digest(GONE))
    shutil.copytree(tmp_path / "backup", gone)
    cache = FeatureCache.open(root)
    assert set(cache.clip_ids()) == set(names(make_rows(4)))
    with pytest.raises(MissingFeaturesError):
        cache.load(names(make_rows(1, GONE)))
    assert export_features(root, tmp_path / "all.npz").rows == 4


def test_the_mark_does_not_tell_which_recording_it_was(root: Path) -> None:
    done = forget(root, digest(GONE))
    [mark] = (root / "withdrawn").iterdir()
    assert mark.name == done.mark
    assert digest(GONE)[:16] not in mark.name + mark.read_text()
    mark.unlink()
    write(root, make_rows(6, GONE))
    serves(root, [*make_rows(6), *make_rows(6, GONE)])


def test_forget_marks_a_recording_that_the_cache_never_held(root: Path) -> None:
    assert forget(root, digest("never seen")).rows == 0
    with pytest.raises(WithdrawnRecordingError):
        write(root, make_rows(1, "never seen"))


@pytest.mark.slow
def test_forget_killed_at_any_operation_leaves_nothing_when_run_again(tmp_path: Path) -> None:
    root = tmp_path / "whole"
    write(root, [row for pair in zip(make_rows(4), make_rows(4, GONE), strict=True) for row in pair], max_rows=3)
    for leave in (copied_features, copied_segment, half_removed_space):
        leave(root)
    recorder = FaultyOs(-1, fails_with(0))
    shutil.copytree(root, tmp_path / "count")
    with file_system(recorder):
        forget(tmp_path / "count", digest(GONE))

    def stops(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
        raise PowerCutError

    for at in range(0, len(recorder.calls), 17):
        copy = tmp_path / "cache"
        shutil.copytree(root, copy)
        with file_system(FaultyOs(at, stops)), contextlib.suppress(PowerCutError):
            forget(copy, digest(GONE))
        np.testing.assert_array_equal(FeatureCache.open(copy).load(names(make_rows(4))), values(make_rows(4)))
        forget(copy, digest(GONE))
        assert traces(copy, GONE, make_rows(4, GONE)) == [], at
        serves(copy, make_rows(4))
        shutil.rmtree(copy)
