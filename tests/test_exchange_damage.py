"""Imports of damaged exports, failing disks and others at work: no wrong row, no row left behind, a named error."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.errors import (
    CacheFormatError,
    CacheNotFoundError,
    CacheWriteError,
    NonFiniteFeatureError,
    UnsafeFileError,
    WithdrawnRecordingError,
)
from featurecache.store import CacheWriter, FeatureCache, compact, forget
from featurecache.store.exchange import export_features, import_features
from featurecache.store.external import ExternalFile
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    digest,
    fails_with,
    file_system,
    make_rows,
    names,
    space,
    write,
)
from tests.exchange_samples import RECORDINGS, all_names, made_by_others, root, seal

__all__ = ["root"]
pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_no_flipped_bit_of_an_export_changes_what_is_imported(root: Path, tmp_path: Path, suffix: str) -> None:
    export_features(root, tmp_path / f"x{suffix}")
    whole, random = (tmp_path / f"x{suffix}").read_bytes(), np.random.default_rng(0)
    refused = 0
    for number, at in enumerate(random.choice(len(whole), 15, replace=False)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(8)
        (tmp_path / f"x{suffix}").write_bytes(flipped)
        target = tmp_path / f"other{number}"
        try:
            import_features(target, tmp_path / f"x{suffix}")
        except (CacheFormatError, UnsafeFileError):
            refused += 1
            assert not target.exists()
        else:
            assert_same(FeatureCache.open(target), FeatureCache.open(root))
    assert refused > 2


def assert_same(ours: FeatureCache, theirs: FeatureCache) -> None:
    assert [one.inputs for one in ours.spaces] == [one.inputs for one in theirs.spaces]
    assert ours.clips() == theirs.clips()
    np.testing.assert_array_equal(ours.load(all_names()), theirs.load(all_names()))
    np.testing.assert_array_equal(ours.timestamps_us(all_names()), theirs.timestamps_us(all_names()))


@pytest.mark.parametrize("array", ["clip_id", "start_us", "timestamps_us", "key", "row_crc32c", "features"])
def test_import_names_the_array_of_an_export_that_is_not_as_it_was_written(
    root: Path, tmp_path: Path, array: str
) -> None:
    export_features(root, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file[array][0] = file[array][1]
    with pytest.raises(CacheFormatError, match=r"feature of .* is another" if array == "features" else array):
        import_features(tmp_path / "other", tmp_path / "x.h5")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("array", ["clip_id", "key", "row_crc32c"])
def test_import_refuses_an_export_whose_arrays_contradict_each_other(root: Path, tmp_path: Path, array: str) -> None:
    export_features(root, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file[array][0] = file[array][1]
    seal(tmp_path / "x.h5")
    with pytest.raises(CacheFormatError, match="damaged"):
        import_features(tmp_path / "other", tmp_path / "x.h5")


def test_import_refuses_an_export_without_proof(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["version"] = "1"
    with pytest.raises(CacheFormatError, match=r"version 2, which proves itself.*Export it again from its cache"):
        import_features(tmp_path / "other", tmp_path / "x.h5")


def test_damage_that_makes_hdf5_loop_for_ever_ends_in_a_named_error(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "x.h5")
    contents = (tmp_path / "x.h5").read_bytes()
    texts = contents.find(b"GCOL") + 16
    (tmp_path / "x.h5").write_bytes(contents[:texts] + bytes(16) + contents[texts + 16 :])  # free space of no size
    with pytest.raises(UnsafeFileError, match="s of processor time"):
        import_features(tmp_path / "other", tmp_path / "x.h5")
    assert not (tmp_path / "other").exists()


def test_a_reader_that_dies_is_a_named_error(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "x.h5")
    with ExternalFile(tmp_path / "x.h5") as file:
        assert file.has("features")
        file._process.kill()
        with pytest.raises(UnsafeFileError, match="the process that read it died"):
            file.has("features")


def operations(calls: FaultyOs, name: str) -> list[int]:
    return [at for at, called in enumerate(calls.calls) if called == name]


@pytest.mark.parametrize("operation", ["write", "rename"])
def test_a_failed_import_leaves_no_row_and_no_space(tmp_path: Path, operation: str) -> None:
    write(tmp_path / "large", make_rows(2500))
    export_features(tmp_path / "large", tmp_path / "x.h5")
    write(tmp_path / "other", make_rows(3), of=space(frames=9))
    calls = FaultyOs(-1, fails_with(errno.EIO))
    with file_system(calls):
        import_features(tmp_path / "trial", tmp_path / "x.h5")
    last = operations(calls, operation)[-1]
    with file_system(FaultyOs(last, fails_with(errno.ENOSPC))), pytest.raises(CacheWriteError):
        import_features(tmp_path / "other", tmp_path / "x.h5")
    cache = FeatureCache.open(tmp_path / "other")
    assert [(one.rows, one.inputs["frames"]) for one in cache.spaces] == [(3, 9)]
    assert import_features(tmp_path / "other", tmp_path / "x.h5").rows == 2500


@contextmanager
def meanwhile(other: Callable[[], object], at: int, code: int | None) -> Iterator[None]:
    """At one operation another thread begins to work on the same cache; then the operation goes on, or fails."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            other()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)

    def fault(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
        thread.start()
        thread.join(2)  # it waits for its turn, or has done by then what must not be done meanwhile
        return real(*args) if code is None else fails_with(code)(real, name, args)

    with file_system(FaultyOs(at, fault)):
        yield
        thread.join()
    assert raised == []


def test_a_compaction_during_an_import_that_fails_does_not_keep_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "large", make_rows(2500))
    export_features(tmp_path / "large", tmp_path / "x.h5")
    other = tmp_path / "other"
    write(other, make_rows(3), of=space(frames=9))
    calls = FaultyOs(-1, fails_with(errno.EIO))
    with file_system(calls):
        import_features(tmp_path / "trial", tmp_path / "x.h5")
    last = operations(calls, "rename")[-1]
    with meanwhile(lambda: compact(other), last, errno.ENOSPC), pytest.raises(CacheWriteError):
        import_features(other, tmp_path / "x.h5")
    assert [(one.rows, one.inputs["frames"]) for one in FeatureCache.open(other).spaces] == [(3, 9)]


def test_of_two_imports_under_one_name_at_once_the_later_one_stays(tmp_path: Path) -> None:
    ids, features = names(make_rows(4)), np.arange(8, dtype=np.float32).reshape(4, 2)
    first, second = (made_by_others(tmp_path / f"{n}.npz", features + n, ids) for n in range(2))
    root = tmp_path / "cache"
    write(root, make_rows(3))
    calls = FaultyOs(-1, fails_with(errno.EIO))

    def take_in(source: Path) -> None:
        import_features(root, source, name="clip", recordings=RECORDINGS)

    with file_system(calls):
        take_in(made_by_others(tmp_path / "trial.npz", features + 2, ids))
    with meanwhile(lambda: take_in(second), operations(calls, "rename")[-1], None):
        take_in(first)
    np.testing.assert_array_equal(FeatureCache.open(root).load(ids, tap="imported", pooling="clip"), features + 1)


def test_a_failed_import_leaves_a_space_that_another_writer_uses(root: Path, tmp_path: Path) -> None:
    """It made the feature space, and an extraction has begun to write to it since."""
    importing = CacheWriter(tmp_path / "other", space(), PROVENANCE)
    with CacheWriter(tmp_path / "other", space(), PROVENANCE) as extracting:
        assert extracting.claim(digest("a"))
        importing.withdraw()
        for row in make_rows(2):
            extracting.add(row)
    assert FeatureCache.open(tmp_path / "other").load(names(make_rows(2))).shape == (2, 24)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_import_leaves_out_withdrawn_recordings_and_tells_which(root: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"features{suffix}"
    export_features(root, target)
    forget(root, digest("b"))
    done = import_features(root, target)
    assert (done.rows, done.present, done.withdrawn) == (0, 6, ((digest("b")[:16], 3),))
    assert FeatureCache.open(root).clip_ids() == names(make_rows(6))
    others = made_by_others(tmp_path / f"others{suffix}", np.arange(18.0).reshape(9, 2), all_names())
    done = import_features(root, others, name="x", recordings=RECORDINGS)
    assert (done.rows, done.present, done.withdrawn) == (6, 0, ((digest("b")[:16], 3),))


def test_import_of_withdrawn_recordings_alone_is_refused_and_replaces_nothing(root: Path, tmp_path: Path) -> None:
    earlier = made_by_others(tmp_path / "1.npz", np.arange(12.0).reshape(6, 2), names(make_rows(6)))
    import_features(root, earlier, name="x", recordings=RECORDINGS)
    forget(root, digest("b"))
    before = sorted(root.rglob("*"))
    source = made_by_others(tmp_path / "2.npz", np.arange(6.0).reshape(3, 2), names(make_rows(3, "b")))
    with pytest.raises(WithdrawnRecordingError, match=digest("b")[:16]):
        import_features(root, source, name="x", recordings=RECORDINGS)
    assert sorted(root.rglob("*")) == before


def test_a_feature_that_is_not_finite_is_found_before_the_first_row_is_written(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((3000, 4))
    features[2999, 3] = np.inf
    ids = names(make_rows(3000))
    source = made_by_others(tmp_path / "x.npz", features, ids)
    with pytest.raises(NonFiniteFeatureError, match=ids[2999]):
        import_features(tmp_path / "cache", source, name="x", recordings=RECORDINGS)
    assert not (tmp_path / "cache").exists()


def test_export_does_not_write_through_a_link_to_nowhere(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.h5").symlink_to(tmp_path / "nowhere.h5")
    with pytest.raises(CacheWriteError, match="new file"):
        export_features(root, tmp_path / "x.h5")
    with pytest.raises(CacheNotFoundError):
        import_features(root, tmp_path / "x.h5")
    assert not (tmp_path / "nowhere.h5").exists()
