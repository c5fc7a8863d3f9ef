"""Out to one file and in again; files made by others; and files made to do harm."""

import errno
import io
import json
import stat
import threading
import zipfile
import zlib
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
    ClipTableError,
    FingerprintMismatchError,
    NonFiniteFeatureError,
    SettingsError,
    UnsafeFileError,
    WithdrawnRecordingError,
)
from featurecache.store import CacheWriter, FeatureCache, compact, forget
from featurecache.store.exchange import export_features, import_features
from featurecache.store.external import ExternalFile
from featurecache.store.proof import digest_of, proof_notes
from featurecache.terminal.cache import exported
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    digest,
    fails_with,
    file_system,
    make_rows,
    names,
    space,
    unsynced,
    values,
    write,
)

__all__ = ["unsynced"]
pytestmark = pytest.mark.usefixtures("unsynced")
RECORDINGS = {digest(name)[:16]: digest(name) for name in "ab"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "cache", [*make_rows(6), *make_rows(3, "b")], max_rows=4)
    return tmp_path / "cache"


def all_names() -> list[str]:
    return names([*make_rows(6), *make_rows(3, "b")])


def made_by_others(path: Path, features: np.ndarray, clip_ids: list[str]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, features=features, clip_id=np.array(clip_ids))
    else:
        with h5py.File(path, "w") as file:
            file["features"], file["clip_id"] = features, clip_ids
    return path


def seal(path: Path) -> None:
    """Let an edited export prove what it holds now."""
    with h5py.File(path, "r+") as file:
        texts = {name: text for name, text in file.attrs.items() if not name.startswith("proof")}
        file.attrs.update(proof_notes({name: digest_of(found[()]) for name, found in file.items()}, texts))


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".npz"])
def test_export_then_import_loses_nothing(root: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"features{suffix}"
    done = export_features(root, target)
    assert (done.rows, done.fingerprint) == (9, space().fingerprint)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    back = import_features(tmp_path / "other", target)
    assert (back.rows, back.present, back.tap, back.pooling) == (9, 0, "final", "mean")
    ours, theirs = FeatureCache.open(root), FeatureCache.open(tmp_path / "other")
    np.testing.assert_array_equal(theirs.load(all_names()), ours.load(all_names()))
    np.testing.assert_array_equal(theirs.timestamps_us(all_names()), ours.timestamps_us(all_names()))
    assert theirs.clips() == ours.clips()
    assert theirs.spaces[0].inputs == ours.spaces[0].inputs
    assert theirs.spaces[0].provenance == ({"imported_from_export": [PROVENANCE]},)
    again = import_features(tmp_path / "other", target)
    assert (again.rows, again.present) == (0, 9)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_export_says_which_feature_spaces_are_not_in_the_file(root: Path, tmp_path: Path) -> None:
    assert export_features(root, tmp_path / "one.h5").not_in_file == ()
    other = space(tap="layer_3")
    write(root, make_rows(6), of=other)
    done = export_features(root, tmp_path / "features.h5", tap="final")
    assert (done.fingerprint, done.not_in_file) == (space().fingerprint, (other.fingerprint,))
    said = "\n".join(str(piece) for piece in exported(done))
    assert "not in the file: 1 other feature space; " in said
    assert f"--space {other.fingerprint[:16]}" in said


def test_export_opens_with_plain_h5py(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5") as file:
        assert file["clip_id"].asstr()[:].tolist() == all_names()
        np.testing.assert_array_equal(file["features"][:], values([*make_rows(6), *make_rows(3, "b")]))
        assert file["video_sha256"].asstr()[0] == digest("a")
        assert (file["start_us"][1], file["end_us"][1]) == (3_000_000, 6_000_000)
        assert file["timestamps_us"].shape == (9, 4)
        assert json.loads(file.attrs["inputs"]) == space().inputs
        assert json.loads(file.attrs["provenance"]) == [PROVENANCE]
        assert file.attrs["fingerprint"] == space().fingerprint


@pytest.mark.parametrize(
    ("column", "value"), [("video_sha256", b"no digest"), ("start_us", -1), ("start_us", 3_000_000), ("end_us", 0)]
)
def test_import_writes_nothing_of_an_export_whose_clips_cannot_be(
    root: Path, tmp_path: Path, column: str, value: object
) -> None:
    export_features(root, tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        file[column][0] = value
    seal(tmp_path / "features.h5")
    with pytest.raises(CacheFormatError, match="a recording's sha256 and a stretch of it, but row 0 has"):
        import_features(tmp_path / "other", tmp_path / "features.h5")
    assert not (tmp_path / "other").exists()


def test_export_opens_with_plain_numpy(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["features"], values([*make_rows(6), *make_rows(3, "b")]))
        assert file["clip_id"].astype(str).tolist() == all_names()
        assert json.loads(str(file["inputs"])) == space().inputs


def test_export_refuses_when_the_file_exists_or_has_another_suffix(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("precious")
    with pytest.raises(CacheWriteError, match="new file"):
        export_features(root, tmp_path / "x.h5")
    assert (tmp_path / "x.h5").read_text() == "precious"
    with pytest.raises(CacheFormatError, match=r"x\.csv"):
        export_features(root, tmp_path / "x.csv")
    with pytest.raises(CacheWriteError, match="writable"):
        export_features(root, tmp_path / "no" / "x.h5")


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_import_of_others_makes_a_space_of_their_own(tmp_path: Path, suffix: str, dtype: str) -> None:
    features = np.random.default_rng(0).standard_normal((9, 7)).astype(dtype)
    source = made_by_others(tmp_path / f"dino{suffix}", features, all_names())
    done = import_features(tmp_path / "cache", source, name="dinov2", recordings=RECORDINGS)
    assert (done.rows, done.tap, done.pooling) == (9, "imported", "dinov2")
    cache = FeatureCache.open(tmp_path / "cache")
    stored = "float16" if dtype == "float16" else "float32"
    assert (cache.spaces[0].stored_dtype, cache.spaces[0].dim) == (stored, 7)
    np.testing.assert_array_equal(cache.load(all_names(), "imported", "dinov2"), features.astype(stored))
    assert cache.missing([(digest("a"), 0, 3_000_000)], done.fingerprint) == []


def test_a_corrected_file_replaces_the_one_imported_under_its_name(tmp_path: Path) -> None:
    done = []
    for number in (1, 2):
        features = np.full((9, 3), number) + np.eye(9, 3)
        source = made_by_others(tmp_path / f"{number}.npz", features, all_names())
        done.append(import_features(tmp_path / "cache", source, name="x", recordings=RECORDINGS))
        import_features(tmp_path / "cache", source, name=f"y{number}", recordings=RECORDINGS)
        cache = FeatureCache.open(tmp_path / "cache")
        np.testing.assert_array_equal(cache.load(all_names(), "imported", "x"), features.astype("f4"))
    assert (done[0].replaced, done[1].replaced) == ((), (done[0].fingerprint,))
    assert len(cache.spaces) == 3
    np.testing.assert_array_equal(cache.load(all_names(), "imported", "y2"), features.astype("f4"))


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_import_of_others_refuses_what_does_not_fit(tmp_path: Path, suffix: str) -> None:
    good, ids = np.random.default_rng(0).standard_normal((9, 4)), all_names()
    cases = {
        "clip": (good, [*ids[:8], "0" * 16 + "-0-1"], ClipTableError),
        "malformed": (good, [*ids[:8], digest("a")[:16] + "-0"], ClipTableError),
        "twice": (good, [*ids[:8], ids[0]], ClipTableError),
        "short": (good[:8], ids, CacheFormatError),
        "whole": (good.astype(int), ids, CacheFormatError),
        "flat": (good[:, 0], ids, CacheFormatError),
        "nan": (np.where(good > 1, np.nan, good), ids, NonFiniteFeatureError),
    }
    for case, (features, clip_ids, error) in cases.items():
        source = made_by_others(tmp_path / f"{case}{suffix}", features, clip_ids)
        with pytest.raises(error):
            import_features(tmp_path / "cache", source, name="x", recordings=RECORDINGS)
    with pytest.raises(CacheFormatError, match="Pass a name"):
        import_features(tmp_path / "cache", source, recordings=RECORDINGS)
    with pytest.raises(CacheNotFoundError):
        import_features(tmp_path / "cache", tmp_path / f"absent{suffix}", name="x")


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_import_refuses_what_is_no_such_file(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"x{suffix}"
    source.write_bytes(b"nonsense")
    with pytest.raises(CacheFormatError):
        import_features(tmp_path / "cache", source, name="x")
    made_by_others(source, np.ones((1, 2)), ["x"])
    if suffix == ".h5":
        with h5py.File(source, "w") as file:
            file["other"] = [1.0]
    else:
        np.savez(source, other=[1.0])
    with pytest.raises(CacheFormatError, match="it has no clip_id"):
        import_features(tmp_path / "cache", source, name="x")


def test_import_refuses_an_export_whose_inputs_were_edited(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "x.h5")
    for text, error in ((json.dumps(space(frames=99).inputs), FingerprintMismatchError), ("{", CacheFormatError)):
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            file.attrs["inputs"] = text
        with pytest.raises(CacheFormatError, match="inputs does not match its sha256"):
            import_features(tmp_path / "other", tmp_path / "x.h5")
        seal(tmp_path / "x.h5")
        with pytest.raises(error):
            import_features(tmp_path / "other", tmp_path / "x.h5")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("compress", [False, True])
def test_import_names_a_damaged_npz_and_leaves_nothing(root: Path, tmp_path: Path, compress: bool) -> None:
    export_features(root, tmp_path / "b.npz")
    if compress:
        with np.load(tmp_path / "b.npz") as file:
            arrays = dict(file)
        np.savez_compressed(tmp_path / "b.npz", **arrays)
    _flip(tmp_path / "b.npz", _middle_of_member(tmp_path / "b.npz", "features.npy"))
    with pytest.raises(
        CacheFormatError, match=r"^a file must be whole, but b\.npz is damaged \(.+\)\. Export it again"
    ):
        import_features(tmp_path / "other", tmp_path / "b.npz")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("rows", [9, 2000])
def test_import_names_a_damaged_hdf5_and_leaves_nothing(root: Path, tmp_path: Path, rows: int) -> None:
    write(tmp_path / "large", make_rows(rows))
    export_features(tmp_path / "large", tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        chunks = file["features"].id
        last = chunks.get_chunk_info(chunks.get_num_chunks() - 1)
    _flip(tmp_path / "b.h5", last.byte_offset)
    with pytest.raises(CacheFormatError, match=r"^a file must be whole, but b\.h5 is damaged \(.+\)\. Export it again"):
        import_features(tmp_path / "other", tmp_path / "b.h5")
    assert not (tmp_path / "other").exists()


def _middle_of_member(path: Path, member: str) -> int:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    return info.header_offset + 30 + len(member) + info.compress_size * 3 // 4


def _flip(path: Path, at: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[at] ^= 0xFF
    path.write_bytes(contents)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_import_refuses_features_of_no_numbers(tmp_path: Path, suffix: str) -> None:
    source = made_by_others(tmp_path / f"d{suffix}", np.empty((9, 0)), all_names())
    with pytest.raises(CacheFormatError, match=r"at least one number.*\(9, 0\)"):
        import_features(tmp_path / "cache", source, name="d", recordings=RECORDINGS)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["foo", ""])
def test_import_refuses_a_name_for_an_export_which_has_its_own(root: Path, tmp_path: Path, name: str) -> None:
    export_features(root, tmp_path / "x.npz")
    with pytest.raises(CacheFormatError, match=r"x\.npz is an export.*Leave out --name"):
        import_features(tmp_path / "other", tmp_path / "x.npz", name=name)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["", " ", "a/b", "a+b", "a b", "a\n", "a\u2003b", "-a"])
def test_import_refuses_a_name_that_tune_cannot_take(tmp_path: Path, name: str) -> None:
    source = made_by_others(tmp_path / "x.npz", np.eye(9), all_names())
    with pytest.raises(SettingsError, match="name for features") as refused:
        import_features(tmp_path / "cache", source, name=name, recordings=RECORDINGS)
    assert repr(name) in str(refused.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["dinov2", "größe-2.1", "a_b@c"])
def test_import_takes_any_name_that_tune_can(tmp_path: Path, name: str) -> None:
    source = made_by_others(tmp_path / "x.npz", np.eye(9), all_names())
    assert import_features(tmp_path / "cache", source, name=name, recordings=RECORDINGS).pooling == name
    assert FeatureCache.open(tmp_path / "cache").describe("imported", name).rows == 9


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_no_flipped_bit_of_an_export_changes_what_is_imported(root: Path, tmp_path: Path, suffix: str) -> None:
    export_features(root, tmp_path / f"x{suffix}")
    whole, random = (tmp_path / f"x{suffix}").read_bytes(), np.random.default_rng(0)
    refused = 0
    for number, at in enumerate(random.choice(len(whole), 30, replace=False)):
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
    assert refused > 5


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


# --- files made to do harm ------------------------------------------------------------------------


def hostile(path: Path, what: str) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(np.arange(36, dtype=np.float32).tobytes())
    with h5py.File(path, "w") as file:
        file["clip_id"] = all_names()
        if what == "external storage":
            file.create_dataset("features", (9, 4), "f4", external=[(str(secret), 0, 144)])
        elif what == "external link":
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other["features"] = np.ones((9, 4), "f4")
            file["features"] = h5py.ExternalLink("other.h5", "/features")
        elif what == "dangling external link":
            file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif what == "soft link":
            file["real"] = np.ones((9, 4), "f4")
            file["features"] = h5py.SoftLink("/real")
        elif what == "virtual data set":
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other["features"] = np.ones((9, 4), "f4")
            layout = h5py.VirtualLayout((9, 4), "f4")
            layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "features", (9, 4))
            file.create_virtual_dataset("features", layout)
        elif what == "terabytes never written":
            file.create_dataset("features", (9, 10**12), "f4", chunks=(1, 10**6))
        elif what == "a chunk larger than the file can hold":
            file.create_dataset("features", (9, 4), "f4", maxshape=(9, None), chunks=(9, 7 * 10**6), compression="gzip")
        elif what == "a chunk that inflates without end":
            features = file.create_dataset("features", (9, 4), "f4", chunks=(9, 4), compression="gzip")
            features.id.write_direct_chunk((0, 0), zlib.compress(bytes(256 << 20), 1))
        elif what == "compressed twice":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((9, 4))
            plist.set_deflate(9)
            plist.set_deflate(9)
            h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((9, 4)), plist)
        elif what == "arrays of variable length":
            file.create_dataset("features", (9,), h5py.vlen_dtype(np.dtype("f4")))
        else:
            file.create_dataset("features", (9, 10**9), "f4", chunks=(1, 10**6), compression="gzip")


@pytest.mark.parametrize(
    "what",
    [
        "external storage",
        "external link",
        "dangling external link",
        "soft link",
        "virtual data set",
        "terabytes never written",
        "terabytes compressed",
        "a chunk larger than the file can hold",
        "a chunk that inflates without end",
        "compressed twice",
        "arrays of variable length",
    ],
)
def test_import_refuses_hdf5_that_could_do_harm(tmp_path: Path, what: str) -> None:
    hostile(tmp_path / "x.h5", what)
    with pytest.raises(UnsafeFileError, match="features"):
        import_features(tmp_path / "cache", tmp_path / "x.h5", name="x", recordings=RECORDINGS)
    assert not (tmp_path / "cache").exists()


def test_import_refuses_texts_that_all_name_one_large_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        texts = file.create_dataset("clip_id", (60000,), h5py.string_dtype())
        texts[0] = "x" * 1_000_000
        file["features"] = np.ones((60000, 2))
        at = texts.id.get_offset()
    contents = bytearray((tmp_path / "x.h5").read_bytes())
    contents[at : at + 16 * 60000] = contents[at : at + 16] * 60000
    (tmp_path / "x.h5").write_bytes(contents)
    with pytest.raises(UnsafeFileError, match="texts of more than 256 bytes"):
        import_features(tmp_path / "cache", tmp_path / "x.h5", name="x", recordings=RECORDINGS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.ones((9, 2, 2, 2, 2))}, r"shape \(9, 2, 2, 2, 2\)"),
        ({"features": h5py.Empty("f4")}, "null data space"),
        ({"features": 1.0}, r"shape \(\)"),
        ({"features": np.ones((9, 4), np.longdouble)}, "16 to 64 bits"),
        ({"features": np.eye(9), "timestamps_us": np.full((9, 2), np.nan)}, "timestamps_us must be whole microseconds"),
        ({"features": np.eye(9), "timestamps_us": h5py.Empty("i8")}, "null data space"),
        ({"features": np.eye(9), "timestamps_us": np.ones((8, 2), int)}, r"shape \(9, T\).*shape \(8, 2\)"),
    ],
)
def test_import_names_arrays_that_no_feature_can_have(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["clip_id"] = all_names()
        for name, array in arrays.items():
            file[name] = array
    with pytest.raises(CacheFormatError, match=message):
        import_features(tmp_path / "cache", tmp_path / "x.h5", name="x", recordings=RECORDINGS)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("order", ["C", "F"])
def test_import_takes_rows_and_columns_first_compressed_or_not(tmp_path: Path, order: str) -> None:
    features = np.asarray(np.random.default_rng(0).standard_normal((2500, 5)), order=order)
    ids = names(make_rows(2500))
    np.savez_compressed(tmp_path / "x.npz", features=features, clip_id=np.array(ids))
    import_features(tmp_path / "cache", tmp_path / "x.npz", name="x", recordings=RECORDINGS)
    cache = FeatureCache.open(tmp_path / "cache")
    np.testing.assert_array_equal(cache.load(ids, "imported", "x"), features.astype("f4"))


def test_import_refuses_npz_compressed_by_a_method_that_takes_any_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(9))
    with zipfile.ZipFile(tmp_path / "x.npz", "a", zipfile.ZIP_LZMA) as archive:
        member = io.BytesIO()
        np.lib.format.write_array(member, np.array(all_names()))
        archive.writestr("clip_id.npy", member.getvalue())
    with pytest.raises(UnsafeFileError, match="another method than deflate"):
        import_features(tmp_path / "cache", tmp_path / "x.npz", name="x", recordings=RECORDINGS)


def test_import_refuses_npz_with_pickled_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.array([[object()]] * 9, object), clip_id=np.array(all_names()))
    with pytest.raises(UnsafeFileError, match="pickled"):
        import_features(tmp_path / "cache", tmp_path / "x.npz", name="x", recordings=RECORDINGS)


@pytest.mark.parametrize("what", ["header", "bomb"])
def test_import_refuses_npz_that_claims_more_than_it_holds(tmp_path: Path, what: str) -> None:
    np.savez(tmp_path / "x.npz", clip_id=np.array(all_names()))
    with zipfile.ZipFile(tmp_path / "x.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        member = io.BytesIO()
        shape = (9, 10**12) if what == "header" else (9, 10**6)
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        archive.writestr("features.npy", member.getvalue() + (b"" if what == "header" else bytes(36 * 10**6)))
    with pytest.raises(UnsafeFileError, match="claims"):
        import_features(tmp_path / "cache", tmp_path / "x.npz", name="x", recordings=RECORDINGS)
