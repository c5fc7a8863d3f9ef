"""What a writer promises: limits, refusals, warnings, modes, and what survives an exception."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    CacheFormatError,
    CacheWriteError,
    ClipTableError,
    ConstantFeatureWarning,
    FingerprintMismatchError,
    NonFiniteFeatureError,
    WithdrawnRecordingWarning,
)
from featurecache.store import CacheWriter, FeatureCache, Row, forget
from featurecache.store.withdrawn import mark_withdrawn
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    assert_serves,
    digest,
    fails_with,
    file_system,
    make_row,
    make_rows,
    space,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def test_writer_commits_when_rows_reach_the_limit(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE, max_rows=4) as writer:
        for row in make_rows(10):
            writer.add(row)
        assert writer.rows_saved == 8
        assert FeatureCache.open(tmp_path / "cache").spaces[0].rows == 8
    assert writer.rows_saved == 10
    assert_serves(tmp_path / "cache", make_rows(10))


def test_writer_commits_when_bytes_reach_the_limit(tmp_path: Path) -> None:
    row_bytes = make_row(0).feature.nbytes
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE, max_bytes=3 * row_bytes) as writer:
        for row in make_rows(3):
            writer.add(row)
        assert writer.rows_saved == 3


def test_writer_commits_when_the_oldest_row_is_old(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", space(), PROVENANCE, max_age_s=0.0) as writer:
        writer.add(make_row(0))
        assert writer.rows_saved == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_writer_saves_gathered_rows_when_an_exception_leaves(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[Row]:
        yield from make_rows(3)
        raise error

    with pytest.raises(error):
        write(tmp_path / "cache", interrupted())
    assert_serves(tmp_path / "cache", make_rows(3))


def test_writer_keeps_the_first_error_when_saving_fails_too(tmp_path: Path) -> None:
    def unmounted() -> Iterator[Row]:
        yield make_row(0)
        (tmp_path / "spaces").rename(tmp_path / "elsewhere")
        raise RuntimeError("first")

    with pytest.raises(RuntimeError, match="first") as caught:
        write(tmp_path, unmounted())
    assert "1 gathered rows could not be saved" in caught.value.__notes__[0]


def test_writer_makes_one_space_folder_for_each_space(tmp_path: Path) -> None:
    write(tmp_path, make_rows(2))
    write(tmp_path, make_rows(2), of=space(pooling="motion"))
    assert [one.pooling for one in FeatureCache.open(tmp_path).spaces] == ["mean", "motion"]
    folders = [path.name for path in sorted((tmp_path / "spaces").iterdir()) if path.is_dir()]
    assert folders == [
        f"final-mean-{space().fingerprint[:16]}",
        f"final-motion-{space(pooling='motion').fingerprint[:16]}",
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fault_26_writer_refuses_and_names_the_clip_when_a_feature_is_not_finite(tmp_path: Path, bad: float) -> None:
    row = make_row(1)
    row.feature[3] = bad
    with pytest.raises(NonFiniteFeatureError, match=f"{digest('a')[:16]}-3000000-6000000 holds NaN"):
        write(tmp_path, [make_row(0), row])
    assert_serves(tmp_path, [make_row(0)])


def test_writer_refuses_when_a_feature_overflows_float16(tmp_path: Path) -> None:
    row = Row(digest("a"), 0, 1, np.array([1.0, 70000.0], np.float32), np.empty(0, np.int64))
    with pytest.raises(NonFiniteFeatureError, match=r'70000.*stored_dtype = "float32"'):
        write(tmp_path, [row])
    write(tmp_path, [row], of=space(stored_dtype="float32"))
    assert FeatureCache.open(tmp_path).load([f"{digest('a')[:16]}-0-1"]).tolist() == [[1.0, 70000.0]]


def test_writer_warns_when_all_features_of_a_segment_are_equal(tmp_path: Path) -> None:
    rows = [Row(digest("a"), i, i + 1, np.ones(4), np.arange(2)) for i in range(3)]
    write(tmp_path / "one", rows[:1])  # which says nothing: a warning would be an error here
    with pytest.warns(ConstantFeatureWarning, match="all 3"):
        write(tmp_path / "all", rows)
    assert FeatureCache.open(tmp_path / "all").spaces[0].rows == 3


def test_writer_copies_the_feature_when_the_caller_reuses_its_memory(tmp_path: Path) -> None:
    buffer = np.zeros(4, np.float16)
    with CacheWriter(tmp_path, space(), PROVENANCE) as writer:
        for i in range(3):
            buffer[:] = i
            writer.add(Row(digest("a"), i, i + 1, buffer, np.arange(2)))
    assert FeatureCache.open(tmp_path).load([f"{digest('a')[:16]}-{i}-{i + 1}" for i in range(3)])[:, 0].tolist() == [
        0,
        1,
        2,
    ]


def test_writer_stores_rows_of_two_dimensions(tmp_path: Path) -> None:
    feature = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float16)
    write(tmp_path, [Row(digest("a"), 0, 1, feature, np.arange(4))], of=space(pooling="frames"))
    cache = FeatureCache.open(tmp_path)
    np.testing.assert_array_equal(cache.load([f"{digest('a')[:16]}-0-1"], pooling="frames"), feature[None])
    assert (cache.spaces[0].row_shape, cache.spaces[0].dim) == ((4, 6), 6)


@pytest.mark.parametrize("second", [np.ones(5), np.ones((1, 4))])
def test_writer_refuses_when_shapes_differ_within_a_run_or_from_the_stored(tmp_path: Path, second: np.ndarray) -> None:
    first = Row(digest("a"), 0, 1, np.ones(4), np.arange(2))
    other = Row(digest("a"), 1, 2, second, np.arange(2))
    with pytest.raises(FingerprintMismatchError, match="one shape"):
        write(tmp_path, [first, other])
    with pytest.raises(FingerprintMismatchError, match="one shape"):
        write(tmp_path, [other])


@pytest.mark.parametrize(
    ("sha256", "start_us", "end_us"),
    [("xyz", 0, 1), (digest("a").upper(), 0, 1), (digest("a"), 5, 5), (digest("a"), -1, 1), (digest("a"), 0, 10**18)],
)
def test_writer_refuses_when_a_clip_is_impossible(tmp_path: Path, sha256: str, start_us: int, end_us: int) -> None:
    with pytest.raises(ClipTableError):
        write(tmp_path, [Row(sha256, start_us, end_us, np.ones(4), np.arange(2))])


def test_writer_refuses_when_the_folder_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(CacheFormatError, match=r"thesis\.docx"):
        write(tmp_path, make_rows(1))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_writer_refuses_when_inputs_are_not_plain_json(tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match="survive"):
        write(tmp_path, make_rows(1), of=space(layers={10: "x", 9: "y"}))


def test_writer_refuses_when_the_stored_dtype_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="float8"):
        write(tmp_path, make_rows(1), of=space(stored_dtype="float8"))


def test_writer_says_so_at_once_when_the_folder_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path, make_rows(1))
    recorder = FaultyOs(-1, fails_with(errno.EROFS))
    with file_system(recorder):
        CacheWriter(tmp_path, space(), PROVENANCE)
    probe = max(i for i, name in enumerate(recorder.calls) if name == "mkdir")
    with file_system(FaultyOs(probe, fails_with(errno.EROFS))), pytest.raises(CacheWriteError, match="read-only"):
        CacheWriter(tmp_path, space(), PROVENANCE)


def test_writer_stores_provenance_with_each_segment(tmp_path: Path) -> None:
    write(tmp_path, make_rows(2), max_rows=1)
    with CacheWriter(tmp_path, space(), {"device": "cuda"}) as writer:
        writer.add(make_row(2))
    assert FeatureCache.open(tmp_path).spaces[0].provenance == (PROVENANCE, {"device": "cuda"})


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_fault_37_modes_are_private_when_umask_is_wrong(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "cache", make_rows(40), max_rows=1)
    finally:
        os.umask(before)
    found = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert any("index" in str(path) for path in found)
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()} == {0o600}


# --- undoing what a writer did ----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["after the commit", "during the commit"])
def test_a_writer_that_is_undone_leaves_no_row_though_a_recording_is_withdrawn_meanwhile(
    tmp_path: Path, when: str
) -> None:
    """Withdrawal writes the segment's other rows anew: these are the undone writer's too."""
    root = tmp_path / "cache"
    write(root, make_rows(3, "other"), of=space(pooling="motion"))
    with CacheWriter(root, space(), PROVENANCE) as writer:
        for row in (*make_rows(3), *make_rows(3, "gone")):
            writer.add(row)
        if when == "after the commit":
            writer.commit()
            forget(root, digest("gone"))
        else:

            def forgets_first(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
                with file_system(FaultyOs(-1, fails_with(0))):
                    mark_withdrawn(root, digest("gone"))
                return real(*args)

            with pytest.warns(WithdrawnRecordingWarning), file_system(FaultyOs(60, forgets_first)):
                writer.commit()
        assert FeatureCache.open(root).spaces[0].rows == 3
        writer.withdraw()
        writer.withdraw()
        assert writer.rows_saved == 0
    cache = FeatureCache.open(root)
    assert [one.pooling for one in cache.spaces] == ["motion"]
    assert len(cache.load(cache.clip_ids(pooling="motion"), pooling="motion")) == 3


def test_a_writer_that_is_undone_keeps_what_another_commits_at_any_instant(tmp_path: Path) -> None:
    """At each operation of the removal of the feature space another writer begins to use it and commits."""
    saved: list[int] = []

    def undo(root: Path, at: int) -> int:
        def commits(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
            with file_system(FaultyOs(-1, fails_with(0))):
                try:
                    write(root, make_rows(2, "b"))
                    saved.append(2)
                except CacheWriteError:
                    saved.append(0)
            return real(*args)

        recorder = FaultyOs(at, commits)
        with CacheWriter(root, space(), PROVENANCE) as writer:
            writer.add(make_row(0))
            writer.commit()
            with file_system(recorder):
                writer.withdraw()
        return len(recorder.calls)

    for at in range(undo(tmp_path / "count", -1)):
        undo(tmp_path / f"{at}", at)
        assert_serves(tmp_path / f"{at}", make_rows(saved[-1], "b"))
    assert set(saved) == {2}
