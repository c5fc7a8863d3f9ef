"""bfloat16 on disk: rounding, bits that every reader can turn into numbers, and readers that do not know it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import CacheFormatError, NewerFormatError, NonFiniteFeatureError
from featurecache.store import CacheWriter, FeatureCache, Row, bfloat16, compact, format, verify
from featurecache.store.exchange import export_features
from tests.cache_samples import digest, make_rows, names, segments, space, write

TOKENS = space(pooling="tokens", stored_dtype="bfloat16")


def _rows(count: int = 3, dtype: torch.dtype = torch.bfloat16) -> list[Row]:
    """Clips of 6 tokens of width 5."""
    torch.manual_seed(0)
    tokens = (300 * torch.randn(count, 6, 5)).to(dtype)
    arrays = tokens.view(torch.uint16).numpy() if dtype == torch.bfloat16 else tokens.numpy()
    times = np.arange(4)
    return [Row(digest("a"), 10 * i, 10 * i + 10, one, times + 10 * i) for i, one in enumerate(arrays)]


TIES = st.integers(0, 0xFFFF).map(lambda upper: upper << 16 | 0x8000)


@given(st.lists(st.integers(0, 2**32 - 1) | TIES, min_size=1, max_size=20))
def test_from_float32_rounds_as_torch_does(bits: list[int]) -> None:
    floats = np.array(bits, np.uint32).view(np.float32)
    ours = torch.from_numpy(bfloat16.from_float32(floats)).view(torch.bfloat16)
    torchs = torch.from_numpy(floats).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), torchs.isnan())
    assert torch.equal(ours.nan_to_num(nan=0.0), torchs.nan_to_num(nan=0.0))
    finite = bool(torchs.isfinite().all())
    assert bfloat16.is_finite(bfloat16.from_float32(floats)) == finite
    if finite:
        np.testing.assert_array_equal(bfloat16.to_float32(bfloat16.from_float32(floats)), torchs.float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_come_back_as_the_bits_that_were_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = _rows(dtype=dtype)
    write(tmp_path / "cache", rows, of=TOKENS)
    cache = FeatureCache.open(tmp_path / "cache")
    assert (cache.spaces[0].stored_dtype, cache.spaces[0].row_shape) == ("bfloat16", (6, 5))
    loaded = cache.load(names(rows), "final", "tokens")
    assert (loaded.dtype, loaded.shape) == (np.uint16, (3, 6, 5))
    tensor = torch.from_numpy(loaded).view(torch.bfloat16)
    expected = torch.stack([torch.from_numpy(row.feature) for row in rows])
    expected = expected.view(torch.bfloat16) if dtype == torch.bfloat16 else expected.to(torch.bfloat16)
    assert torch.equal(tensor, expected)
    np.testing.assert_array_equal(bfloat16.to_float32(loaded), expected.float().numpy())


def test_bfloat16_segments_are_read_by_plain_zarr_checked_and_compacted(tmp_path: Path) -> None:
    rows = _rows()
    for row in rows:
        write(tmp_path, [row], of=TOKENS)
    compact(tmp_path)
    assert not verify(tmp_path, deep=True).damage
    groups = [zarr.open_group(path, mode="r") for path in segments(tmp_path)]
    (group,) = [group for group in groups if group.attrs["featurecache"]["replaces"]]
    np.testing.assert_array_equal(group["features"][:], np.stack([row.feature for row in rows]))
    assert group["features"].fill_value == bfloat16.NAN
    record = group.attrs["featurecache"]
    assert (record["dtype"], record["version"]) == ("bfloat16", 2)


def test_an_older_reader_refuses_bfloat16_and_reads_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "old", make_rows(2))
    write(tmp_path / "new", _rows(), of=TOKENS)
    monkeypatch.setattr(format, "VERSION", 1)
    assert FeatureCache.open(tmp_path / "old").load(names(make_rows(2))).shape == (2, 24)
    with pytest.raises(NewerFormatError, match=r"version 2.*upgrade"):
        FeatureCache.open(tmp_path / "new")
    (folder,) = (tmp_path / "new").glob("spaces/final-*")
    record = folder / "zarr.json"
    text = json.loads(record.read_bytes())["attributes"]["featurecache"] | {"version": 1}
    record.write_bytes(format.group_bytes(text))
    with pytest.raises(NewerFormatError, match=r"segment .* has version 2"):
        FeatureCache.open(tmp_path / "new")


@pytest.mark.parametrize("bad", [np.float32(3.4e38), np.float32(np.inf), np.uint16(0x7F80), np.uint16(bfloat16.NAN)])
def test_bfloat16_that_is_not_finite_is_refused(tmp_path: Path, bad: np.generic) -> None:
    row = Row(digest("a"), 0, 10, np.full((6, 5), bad), np.arange(4))
    refused = pytest.raises(NonFiniteFeatureError, match=r"finite|fit bfloat16")
    with CacheWriter(tmp_path, TOKENS, {}) as writer, refused:
        writer.add(row)


def test_export_refuses_bfloat16(tmp_path: Path) -> None:
    write(tmp_path / "cache", _rows(), of=TOKENS)
    with pytest.raises(CacheFormatError, match=r"is in bfloat16.*FeatureCache\.load"):
        export_features(tmp_path / "cache", tmp_path / "out.npz", tap="final", pooling="tokens")
