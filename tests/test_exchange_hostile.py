"""Files to import that were made to do harm are refused before they do any."""

import io
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.errors import (
    CacheFormatError,
    UnsafeFileError,
)
from featurecache.store import FeatureCache
from featurecache.store.exchange import import_features
from tests.cache_samples import (
    make_rows,
    names,
)
from tests.exchange_samples import RECORDINGS, all_names

pytestmark = pytest.mark.usefixtures("unsynced")


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
        ({"features": np.empty((9, 0))}, r"at least one number.*\(9, 0\)"),
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
