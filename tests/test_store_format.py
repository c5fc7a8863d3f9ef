"""The bytes of the format: equal to what zarr writes, read by plain zarr, and checked by crc32c."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from featurecache.store import FeatureCache, compact, format, verify
from featurecache.store.checksums import joined_checksums, row_checksums, wrong_rows
from featurecache.store.segment import Rows, encode_segment
from tests.cache_samples import PROVENANCE, digest, make_rows, names, segments, serves, space, values, write

pytestmark = pytest.mark.usefixtures("unsynced")


def written_by_zarr(array: np.ndarray, *, shard: bool, dimension_names: tuple[str, ...]) -> dict[str, bytes]:
    """The same array as the zarr package stores it."""
    store = MemoryStore()
    rows = len(array)
    inner = format.inner_rows(rows, array[0].nbytes) if shard else rows
    with zarr.config.set({"array.write_empty_chunks": True}):
        made = zarr.create_array(
            store,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(inner, *array.shape[1:]),
            shards=(-(-rows // inner) * inner, *array.shape[1:]) if shard else None,
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=np.nan if shard else 0,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=dimension_names,
        )
        made[...] = array
    return {name: data.to_bytes() for name, data in store._store_dict.items()}


def comparable(metadata: bytes) -> dict:
    document = json.loads(metadata)
    assert document.pop("storage_transformers", []) == []
    return document


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_encode_shard_equals_zarr_when_rows_fill_chunks_or_not(rows: int, dtype: str) -> None:
    features = np.random.default_rng(rows).standard_normal((rows, 5)).astype(dtype)
    ours = format.encode_shard(features, ("row", "feature"))
    theirs = written_by_zarr(features, shard=True, dimension_names=("row", "feature"))
    assert ours.keys() == theirs.keys()
    assert ours["c.0.0"] == theirs["c.0.0"]
    assert comparable(ours["zarr.json"]) == comparable(theirs["zarr.json"])
    assert len(ours["c.0.0"]) == format.shard_size(
        rows, features[0].nbytes, format.inner_rows(rows, features[0].nbytes)
    )


@pytest.mark.parametrize("dtype", ["u1", "<u4", "<i8"])
@pytest.mark.parametrize("shape", [(7,), (7, 3)])
def test_encode_small_equals_zarr_when_any_type_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    dimension_names = ("row", "byte")[: len(shape)]
    ours = format.encode_small(array, dimension_names)
    theirs = written_by_zarr(array, shard=False, dimension_names=dimension_names)
    chunk = format.chunk_name(array.ndim)
    assert ours.keys() == theirs.keys()
    assert ours[chunk] == theirs[chunk]
    assert comparable(ours["zarr.json"]) == comparable(theirs["zarr.json"])


@given(rows=st.integers(1, 20_000), row_bytes=st.integers(2, 30 << 20))
def test_inner_rows_divides_with_little_padding(rows: int, row_bytes: int) -> None:
    inner = format.inner_rows(rows, row_bytes)
    assert 1 <= inner <= 64
    assert inner == 1 or inner * row_bytes <= 4 << 20
    chunks = -(-rows // inner)
    assert chunks * inner - rows < chunks


def test_plain_zarr_reads_every_array_of_a_segment(tmp_path: Path) -> None:
    rows = make_rows(70)
    write(tmp_path / "cache", rows)
    group = zarr.open_group(segments(tmp_path / "cache")[0], mode="r")
    np.testing.assert_array_equal(group["features"][:], values(rows))
    np.testing.assert_array_equal(group["features"][65], rows[65].feature)
    assert group["span_us"][1].tolist() == [3_000_000, 6_000_000]
    assert group["video_sha256"][3].tobytes().hex() == digest("a")
    assert group["timestamps_us"][2].tolist() == rows[2].timestamps_us.tolist()
    assert group["row_crc32c"][5] == google_crc32c.value(rows[5].feature.tobytes())
    key = json.dumps([space().fingerprint, digest("a"), 0, 3_000_000], separators=(",", ":"))
    assert group["key"][0].tobytes() == hashlib.sha256(key.encode()).digest()[:16]
    assert group.attrs["featurecache"]["rows"] == 70
    top = zarr.open_group(tmp_path / "cache", mode="r")
    assert top.attrs["featurecache"] == {"format": "featurecache", "version": 1}
    [name] = [name for name, _ in top["spaces"].groups()]
    assert top[f"spaces/{name}"].attrs["featurecache"]["inputs"] == space().inputs


def test_plain_zarr_reads_timestamps_when_there_are_none(tmp_path: Path) -> None:
    rows = Rows(np.ones((2, 3), "f4"), np.zeros((2, 32), "u1"), np.array([[0, 1], [1, 2]]), np.empty((2, 0), "i8"))
    contents = encode_segment(space().fingerprint, rows, {})
    for path, data in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert zarr.open_group(tmp_path, mode="r")["timestamps_us"][:].shape == (2, 0)


def test_the_python_in_format_md_reads_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a feature space that a killed writer left half made, and an unfinished copy of a segment."""
    rows = make_rows(5)
    write(tmp_path / "features.zarr", rows[:3])
    write(tmp_path / "features.zarr", rows)
    (tmp_path / "features.zarr/spaces/final-mean-0000000000000000").mkdir()
    (first, *_) = segments(tmp_path / "features.zarr")
    (first.parent / f".{first.name}.Xy8f3a").mkdir()
    text = (Path(format.__file__).parents[1] / "FORMAT.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    code = code.replace("0123456789abcdef", digest("a")[:16])
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    np.testing.assert_array_equal(found["features"][found["i"]], rows[1].feature)
    assert len(found["rows"]) == 5


@settings(max_examples=60, deadline=None)
@given(data=st.data(), row_bytes=st.integers(1, 40), rows=st.integers(1, 40))
def test_joined_checksums_equal_checksum_of_joined_rows(data: st.DataObject, row_bytes: int, rows: int) -> None:
    raw = data.draw(st.binary(min_size=row_bytes * rows, max_size=row_bytes * rows))
    parts = np.frombuffer(raw, np.uint8).reshape(rows, row_bytes)
    joined = joined_checksums(row_checksums(parts)[None], row_bytes)
    assert joined.tolist() == [google_crc32c.value(raw)]


@pytest.mark.parametrize("rows", [1, 63, 64, 300, 1000])
def test_wrong_rows_finds_exactly_the_flipped_ones(rows: int) -> None:
    data = np.random.default_rng(rows).integers(0, 256, (rows, 8192), dtype=np.uint8)
    checksums = row_checksums(data)
    assert wrong_rows(data, checksums).tolist() == []
    flipped = sorted({0, rows // 2, rows - 1})
    data[flipped, 17] ^= 4
    assert wrong_rows(data, checksums).tolist() == flipped


def test_group_attributes_refuses_when_any_bit_is_flipped() -> None:
    whole = format.plain_group_bytes()
    assert format.group_attributes(whole) == {"format": "featurecache", "version": 1}
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            if whole[:at].endswith(b'"version":') and flipped[at : at + 1] in b"1234567890":
                continue  # another version, which the caller judges
            with pytest.raises((ValueError, KeyError)):
                format.group_attributes(bytes(flipped))


def test_segment_ids_sort_by_time_and_never_repeat() -> None:
    ids = [format.new_segment_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(format.SEGMENT_ID.fullmatch(name) for name in ids)
    assert format.new_segment_id(1) < ids[0] < ids[-1] or ids[0][:20] == ids[-1][:20]


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
