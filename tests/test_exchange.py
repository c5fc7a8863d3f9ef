"""Out to one file and in again; files made by others; and files made to do harm."""

import json
import stat
import zipfile
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
)
from featurecache.store import FeatureCache
from featurecache.store.exchange import export_features, import_features
from featurecache.terminal.cache import exported
from tests.cache_samples import (
    PROVENANCE,
    digest,
    make_rows,
    space,
    values,
    write,
)
from tests.exchange_samples import RECORDINGS, all_names, made_by_others, root, seal

__all__ = ["root"]
pytestmark = pytest.mark.usefixtures("unsynced")


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
