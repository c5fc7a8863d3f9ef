"""Faults 9 to 15 and 22 to 35 of the table in test_store_faults.py: damage, copies, clocks, newer formats."""

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    CacheFormatError,
    CacheReadError,
    DamagedSegmentError,
    FingerprintMismatchError,
    MissingFeaturesError,
)
from featurecache.spec import canonical_json
from featurecache.store import CacheWriter, FeatureCache, forget, format, gc, repair, verify
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    assert_serves,
    clips,
    digest,
    edit_record,
    fails_with,
    file_system,
    flip,
    make_rows,
    names,
    segments,
    space,
    values,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def test_fault_09_a_flipped_feature_byte_raises_and_names_the_segment(root: Path) -> None:
    flip(segments(root)[1] / "features" / "c.0.0", 11)
    with pytest.raises(DamagedSegmentError, match=rf"{segments(root)[1].name}.*repair.*extract"):
        FeatureCache.open(root).load(names(make_rows(6)))
    np.testing.assert_array_equal(FeatureCache.open(root).load(names(make_rows(2))), values(make_rows(2)))


@pytest.mark.parametrize("size", [0, 1, 40, None])
def test_faults_11_and_12_a_truncated_or_deleted_shard_is_rejected_never_nan(root: Path, size: int | None) -> None:
    shard = segments(root)[1] / "features" / "c.0.0"
    late = FeatureCache.open(root)
    if size is None:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:size])
    for cache in (late, FeatureCache.open(root)):
        with pytest.raises(DamagedSegmentError, match="not there" if size is None else f"{size} bytes instead of"):
            cache.load(names(make_rows(6)))


def test_fault_13_a_deleted_segment_is_reported_against_the_plan(root: Path) -> None:
    shutil.rmtree(segments(root)[1])
    cache = FeatureCache.open(root)
    assert cache.missing(clips(make_rows(6)), space().fingerprint) == clips(make_rows(6))[2:4]
    with pytest.raises(MissingFeaturesError, match="2 of 6"):
        cache.load(names(make_rows(6)))


def test_fault_14_two_swapped_shards_are_found_when_loading_and_by_a_deep_verification(root: Path) -> None:
    first, second = (folder / "features" / "c.0.0" for folder in segments(root)[:2])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    assert verify(root).damage == ()
    assert len(verify(root, deep=True).damage) == 2
    with pytest.raises(DamagedSegmentError, match="2 segments are damaged"):
        FeatureCache.open(root).load(names(make_rows(6)))


@pytest.mark.parametrize("damage", ["flip", "provenance", "version", "empty", "gone", "other space", "not json"])
def test_fault_15_a_damaged_record_is_rejected_and_the_others_served(root: Path, damage: str) -> None:
    record = segments(root)[1] / "zarr.json"
    if damage == "flip":
        record.write_bytes(record.read_bytes().replace(b'"rows":2', b'"rows":3'))
    elif damage == "provenance":
        record.write_bytes(record.read_bytes().replace(b'"device":"cpu"', b'"device":"gpu"'))
    elif damage == "version":  # a flipped bit must not look like a newer format
        record.write_bytes(record.read_bytes().replace(b'"version":1', b'"version":3'))
    elif damage == "empty":
        record.write_bytes(b"")
    elif damage == "gone":
        record.unlink()
    elif damage == "other space":
        write(root, make_rows(1), of=space(pooling="motion"))
        record.write_bytes((next(root.glob("spaces/final-motion-*/segments/*-*/zarr.json"))).read_bytes())
    else:
        record.write_bytes(b"[" * 100_000)
    cache = FeatureCache.open(root)
    assert [one.segment_id for one in cache.damage] == [segments(root)[1].name]
    np.testing.assert_array_equal(cache.load(names(make_rows(2))), values(make_rows(2)))


def test_fault_15_a_whole_segment_in_the_wrong_space_is_rejected(root: Path) -> None:
    write(root, make_rows(2, "b"), of=space(pooling="motion"))
    [other] = root.glob("spaces/final-motion-*/segments/*-*")
    shutil.copytree(other, segments(root)[0].parent / other.name)
    cache = FeatureCache.open(root)
    assert [one.segment_id for one in cache.damage] == [other.name]
    assert sorted(one.rows for one in cache.spaces) == [2, 8]


def test_fault_22_an_interrupted_copy_is_flagged_and_copying_again_heals(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    sources = sorted(path for path in root.rglob("*") if path.is_file())
    for count in range(1, len(sources) + 1):
        shutil.rmtree(copy, ignore_errors=True)
        for path in sources[:count]:
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        try:
            cache = FeatureCache.open(copy)
        except CacheFormatError:
            continue
        whole = {path.name for path in segments(copy)} - {one.segment_id for one in cache.damage}
        for number, folder in enumerate(segments(root)):
            rows = make_rows(2, first=2 * number)
            if folder.name in whole and cache.spaces:
                np.testing.assert_array_equal(cache.load(names(rows)), values(rows))
            elif cache.spaces:
                with pytest.raises((DamagedSegmentError, MissingFeaturesError)):
                    cache.load(names(rows))
    assert_serves(copy, make_rows(8))


def test_fault_23_reading_writes_nothing(root: Path) -> None:
    class ReadOnly(FaultyOs):
        def __getattr__(self, name: str):
            if name in {"mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir", "chmod", "fchmod"}:
                return fails_with(errno.EROFS)
            if name == "open":
                return self._open
            return super().__getattr__(name)

        @staticmethod
        def _open(path: str, flags: int, mode: int = 0) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, "read-only")
            return os.open(path, flags, mode)

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with file_system(ReadOnly(-1, fails_with(0))):
        cache = FeatureCache.open(root)
        np.testing.assert_array_equal(cache.load(names(make_rows(6))), values(make_rows(6)))
        assert len(list(cache.iterate(4))) == 2
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_fault_24_another_model_is_a_new_space_and_cannot_be_written_into_this_one(root: Path) -> None:
    other = space(weights="xyz")
    write(root, make_rows(1), of=other)
    assert [one.rows for one in FeatureCache.open(root).spaces if one.fingerprint == space().fingerprint] == [8]
    folder = root / "spaces" / format.space_folder_name(other)
    (folder / "zarr.json").write_bytes(format.space_bytes(space()))
    with pytest.raises(FingerprintMismatchError):
        CacheWriter(root, other, PROVENANCE)


def test_fault_25_an_edited_fingerprint_or_input_is_refused(root: Path) -> None:
    record = segments(root)[0].parents[1] / "zarr.json"
    whole = record.read_bytes()
    for old, new in ((b'"frames":4', b'"frames":8'), (space().fingerprint.encode(), b"0" * 64)):
        record.write_bytes(whole.replace(old, new))
        assert "repair" in FeatureCache.open(root).damage[0].reason
        with pytest.raises(DamagedSegmentError, match="repair"):
            FeatureCache.open(root).load([])
        with pytest.raises(FingerprintMismatchError, match="repair"):
            CacheWriter(root, space(), PROVENANCE)


def test_fault_33_clock_skew_changes_only_which_duplicate_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no leases; a clock that is wrong by years orders segments and does nothing else."""
    write(tmp_path / "cache", make_rows(3))
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    write(tmp_path / "cache", make_rows(5))
    cache = FeatureCache.open(tmp_path / "cache")
    assert (cache.spaces[0].rows, cache.damage) == (5, ())
    np.testing.assert_array_equal(cache.load(names(make_rows(5))), values(make_rows(5)))


@pytest.mark.parametrize("where", ["cache", "space", "segment"])
def test_fault_34_a_newer_format_version_is_refused_with_a_message(root: Path, where: str) -> None:
    folder = {"cache": root, "space": segments(root)[0].parents[1], "segment": segments(root)[0]}[where]
    edit_record(folder, version=3)
    with pytest.raises(CacheFormatError, match=r"version 3.*upgrade"):
        FeatureCache.open(root)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EMFILE, errno.EIO], ids=errno.errorcode.get)
def test_fault_35_a_disk_that_refuses_is_an_error_never_missing(root: Path, code: int) -> None:
    recorder = FaultyOs(-1, fails_with(0))
    with file_system(recorder):
        FeatureCache.open(root).load(names(make_rows(6)))
    passed_over = []
    for at in (i for i, name in enumerate(recorder.calls) if name != "close"):
        with file_system(FaultyOs(at, fails_with(code))):
            try:
                loaded = FeatureCache.open(root).load(names(make_rows(6)))
            except CacheReadError:
                continue
        np.testing.assert_array_equal(loaded, values(make_rows(6)))
        passed_over.append(recorder.calls[at])
    assert passed_over in ([], ["listdir"])  # the checkpoint's folder, which nothing depends on


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": -1},
        {"rows": "3"},
        {"rows": True},
        {"rows": 1 << 60},
        {"row_shape": []},
        {"row_shape": [0]},
        {"row_shape": "24"},
        {"dtype": "float64"},
        {"dtype": ["float16"]},
        {"timestamps": None},
        {"provenance": None},
        {"replaces": None},
        {"replaces": [3]},
        {"replaces": ["../../other"]},
        {"fingerprint": None},
        {"files": {}},
        {"files": None},
        {"files": {"../../../zarr.json": [3, "0" * 64]}},
        {"files": {"features/zarr.json": 3}},
    ],
)
def test_a_record_with_a_right_digest_and_a_wrong_form_is_damage_and_nothing_else(
    root: Path, changes: dict[str, object]
) -> None:
    """Somebody made it: every reader and every operation names it, and none ends in a traceback."""
    [victim, *_] = segments(root)
    edit_record(victim, **changes)
    assert [one.segment_id for one in FeatureCache.open(root).damage] == [victim.name]
    assert [one.segment_id for one in verify(root).damage] == [victim.name]
    forget(root, digest("other"))
    gc(root, apply=True)
    repair(root)
    assert verify(root, deep=True).damage == ()


def test_one_damaged_feature_space_leaves_the_others_readable(root: Path) -> None:
    write(root, make_rows(2), of=space(pooling="motion"))
    flip(next(root.glob("spaces/final-motion-*/zarr.json")), 200)
    cache = FeatureCache.open(root)
    assert "final-motion" in cache.damage[0].path
    assert len(cache.load(cache.clip_ids())) == cache.spaces[0].rows
    with pytest.raises(DamagedSegmentError, match="repair"):
        cache.load(names(make_rows(2)), pooling="motion")


@pytest.mark.parametrize("inputs", [None, [], {}, {"tap": 3, "pooling": "mean", "stored_dtype": "float16"}])
def test_a_feature_space_whose_record_somebody_made_is_named_and_the_others_are_served(
    root: Path, inputs: object
) -> None:
    fingerprint = hashlib.sha256(canonical_json(inputs).encode()).hexdigest()
    made = root / "spaces" / f"made-{fingerprint[:16]}"
    made.mkdir()
    attributes = {"format": "featurecache", "version": 1, "fingerprint": fingerprint, "inputs": inputs}
    (made / "zarr.json").write_bytes(format.group_bytes(attributes))
    cache = FeatureCache.open(root)
    assert [one.path for one in cache.damage] == [f"spaces/{made.name}/zarr.json"]
    assert len(cache.load(names(make_rows(6)))) == 6
    assert [one.path for one in verify(root).damage] == [f"spaces/{made.name}/zarr.json"]
