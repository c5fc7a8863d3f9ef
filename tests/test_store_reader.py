"""What a reader promises: the order asked, errors with names, damage found, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    AmbiguousSpaceError,
    CacheFormatError,
    CacheNotFoundError,
    ClipTableError,
    DamagedSegmentError,
    MissingFeaturesError,
)
from featurecache.store import CacheWriter, FeatureCache, Row, compact, format, gc
from featurecache.store.clip_columns import parse_clip_ids
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    clips,
    digest,
    edit_record,
    fails_with,
    file_system,
    flip,
    make_row,
    make_rows,
    names,
    segments,
    space,
    values,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def cache_root(tmp_path: Path) -> Path:
    """30 rows of two recordings in 4 segments."""
    write(tmp_path / "cache", [*make_rows(20, "a"), *make_rows(10, "b")], max_rows=9)
    return tmp_path / "cache"


def all_rows() -> list[Row]:
    return [*make_rows(20, "a"), *make_rows(10, "b")]


@pytest.mark.parametrize("order", ["stored", "reversed", "shuffled", "repeated", "some", "one"])
def test_load_returns_rows_in_the_order_asked(cache_root: Path, order: str) -> None:
    rows = all_rows()
    chosen = {
        "stored": np.arange(30),
        "reversed": np.arange(30)[::-1],
        "shuffled": np.random.default_rng(0).permutation(30),
        "repeated": np.array([3, 3, 29, 3, 0, 0, 12]),
        "some": np.array([8, 9, 10, 28]),
        "one": np.array([17]),
    }[order]
    asked = [rows[i] for i in chosen]
    loaded = FeatureCache.open(cache_root).load(names(asked))
    assert (loaded.dtype, loaded.flags.c_contiguous, loaded.flags.writeable) == (np.float16, True, True)
    np.testing.assert_array_equal(loaded, values(asked))


def test_load_returns_rows_of_large_chunks_when_shuffled(tmp_path: Path) -> None:
    rows = [make_row(i, dim=700) for i in range(300)]
    write(tmp_path, rows, max_rows=130)
    order = np.random.default_rng(1).permutation(300)
    asked = [rows[i] for i in order]
    cache = FeatureCache.open(tmp_path)
    np.testing.assert_array_equal(cache.load(names(asked)), values(asked))
    np.testing.assert_array_equal(cache.load(names(rows)), values(rows))


def test_load_returns_no_rows_when_none_are_asked(cache_root: Path) -> None:
    assert FeatureCache.open(cache_root).load([]).shape == (0, 24)


def test_spaces_tell_what_is_inside(cache_root: Path) -> None:
    [one] = FeatureCache.open(cache_root).spaces
    assert (one.fingerprint, one.tap, one.pooling, one.dim, one.rows, one.segments) == (
        space().fingerprint,
        "final",
        "mean",
        24,
        30,
        4,
    )
    assert one.inputs == space().inputs
    assert one.provenance == (PROVENANCE,)
    assert one.bytes == sum(
        path.stat().st_size for folder in segments(cache_root) for path in folder.rglob("c.*")
    ) + sum(path.stat().st_size for folder in segments(cache_root) for path in folder.rglob("zarr.json"))


def test_timestamps_are_returned_in_the_order_asked(cache_root: Path) -> None:
    rows = all_rows()[::-2]
    stored = FeatureCache.open(cache_root).timestamps_us(names(rows))
    np.testing.assert_array_equal(stored, np.stack([row.timestamps_us for row in rows]))


def test_iterate_gives_every_row_once_in_batches(cache_root: Path) -> None:
    cache = FeatureCache.open(cache_root)
    seen = list(cache.iterate(7))
    assert [len(ids) for ids, _ in seen] == [7, 7, 7, 7, 2]
    ids = [name for batch, _ in seen for name in batch]
    assert ids == names(all_rows()) == cache.clip_ids()
    np.testing.assert_array_equal(np.concatenate([features for _, features in seen]), values(all_rows()))


def test_missing_is_empty_when_all_are_there_and_keeps_order_when_not(cache_root: Path) -> None:
    cache = FeatureCache.open(cache_root)
    wanted = clips([make_row(25), make_row(3), make_row(3, "c"), make_row(25), make_row(9, "b")])
    assert cache.missing(clips(all_rows()), space().fingerprint) == []
    assert cache.missing(wanted, space().fingerprint) == [wanted[0], wanted[2]]
    assert cache.missing(wanted, "0" * 64) == [*wanted[:3], wanted[4]]


def test_missing_compares_the_whole_digest_when_the_first_digits_agree(cache_root: Path) -> None:
    alike = digest("a")[:16] + "0" * 48
    assert FeatureCache.open(cache_root).missing([(alike, 0, 3_000_000)], space().fingerprint)


def test_open_refuses_when_two_recordings_share_their_first_digits(tmp_path: Path) -> None:
    alike = digest("a")[:16] + "0" * 48
    row = make_row(0)
    write(tmp_path, [row, Row(alike, row.start_us, row.end_us, row.feature + 1, row.timestamps_us)])
    with pytest.raises(CacheFormatError, match="first 16 digits"):
        FeatureCache.open(tmp_path)


def test_find_names_the_spaces_that_hold_a_clip(cache_root: Path) -> None:
    write(cache_root, make_rows(2), of=space(pooling="motion"))
    cache = FeatureCache.open(cache_root)
    assert [one.pooling for one in cache.find(names(make_rows(1))[0])] == ["mean", "motion"]
    assert [one.pooling for one in cache.find(names([make_row(5)])[0])] == ["mean"]
    assert cache.find("0123456789abcdef-0-1") == ()


def test_load_names_how_many_and_the_first_when_rows_are_missing(cache_root: Path) -> None:
    asked = names([*make_rows(2), *make_rows(9, "z")])
    with pytest.raises(
        MissingFeaturesError, match=rf"9 of 11 are missing.*{digest('z')[:16]}-0-3000000.* and 4 more\).*extract"
    ):
        FeatureCache.open(cache_root).load(asked)


def test_load_tells_what_there_is_when_the_space_is_not(cache_root: Path) -> None:
    with pytest.raises(MissingFeaturesError, match=r"final/motion.*it holds final/mean"):
        FeatureCache.open(cache_root).load(names(make_rows(1)), pooling="motion")


def test_load_asks_which_when_two_spaces_match(cache_root: Path) -> None:
    write(cache_root, make_rows(1), of=space(frames=8))
    cache = FeatureCache.open(cache_root)
    with pytest.raises(AmbiguousSpaceError, match=r"differ in frames.*--space FINGERPRINT \(in Python space=\)"):
        cache.load(names(make_rows(1)))
    assert cache.load(names(make_rows(1)), space=space(frames=8).fingerprint[:12]).shape == (1, 24)


def test_a_fingerprint_alone_decides_when_tap_and_pooling_are_not_given(cache_root: Path) -> None:
    motion = space(pooling="motion")
    write(cache_root, make_rows(2), of=motion)
    cache = FeatureCache.open(cache_root)
    for given in (motion.fingerprint, motion.fingerprint[:12]):
        assert cache.describe(space=given).pooling == "motion"
        assert cache.describe("final", space=given) == cache.describe("final", "motion") == cache.describe(space=given)
    assert cache.load(names(make_rows(2)), space=motion.fingerprint[:12]).shape == (2, 24)
    assert (len(cache.clip_ids(space=motion.fingerprint)), len(cache.clip_ids())) == (2, 30)


@pytest.mark.parametrize("given", [{"pooling": "mean"}, {"tap": "layer_2"}, {"tap": "layer_2", "pooling": "motion"}])
def test_a_fingerprint_is_refused_when_tap_or_pooling_contradict_it(cache_root: Path, given: dict[str, str]) -> None:
    motion = space(pooling="motion")
    write(cache_root, make_rows(2), of=motion)
    cache = FeatureCache.open(cache_root)
    with pytest.raises(
        MissingFeaturesError, match=rf"{motion.fingerprint[:16]} must be the .*, but it is final/motion"
    ):
        cache.describe(space=motion.fingerprint, **given)
    with pytest.raises(MissingFeaturesError, match="must hold a feature space ffffffffffff, but it holds final/mean"):
        cache.describe(space="f" * 12)


@pytest.mark.parametrize(
    "bad", ["", "abc", "0123456789abcdef-0", "0123456789abcdef-0-1-2", "0123456789ABCDEF-0-1", "0123456789abcdef--1-1"]
)
def test_parse_clip_ids_names_the_malformed_one(bad: str) -> None:
    good = "0123456789abcdef-0-1"
    for asked in ([bad], [good, bad], [bad, good], [f"{good},{good}"]):
        with pytest.raises(ClipTableError, match="clip id must be"):
            parse_clip_ids(asked)


def test_parse_clip_ids_reads_every_part() -> None:
    parsed = parse_clip_ids(["0123456789abcdef-0-1", "ffffffffffffffff-999999999999-1000000000000"])
    assert parsed.prefixes.tolist() == [0x0123456789ABCDEF, 0xFFFFFFFFFFFFFFFF]
    assert parsed.span_us.tolist() == [[0, 1], [999999999999, 1000000000000]]


def test_open_makes_nothing_when_there_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="extract"):
        FeatureCache.open(tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheNotFoundError):
        FeatureCache.open(tmp_path / "empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_open_refuses_when_the_folder_is_another_zarr(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group","attributes":{}}')
    with pytest.raises(CacheFormatError):
        FeatureCache.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"attributes": 3}', "\xff"])
def test_open_refuses_when_the_root_record_is_damaged(cache_root: Path, text: str) -> None:
    (cache_root / "zarr.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheFormatError, match="repair"):
        FeatureCache.open(cache_root)


def test_open_ignores_what_is_no_segment(cache_root: Path) -> None:
    folder = segments(cache_root)[0].parent
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes").mkdir()
    (cache_root / "spaces" / ".hidden").mkdir()
    assert FeatureCache.open(cache_root).spaces[0].rows == 30
    assert FeatureCache.open(cache_root).damage == ()


def test_open_serves_an_empty_space_folder_as_nothing(cache_root: Path) -> None:
    (cache_root / "spaces" / "final-mean-0123456789abcdef").mkdir()
    cache = FeatureCache.open(cache_root)
    assert (len(cache.spaces), cache.damage) == (1, ())


def test_open_reports_a_space_whose_record_is_gone(cache_root: Path) -> None:
    (segments(cache_root)[0].parents[1] / "zarr.json").unlink()
    cache = FeatureCache.open(cache_root)
    assert cache.spaces == ()
    assert "extract" in cache.damage[0].reason
    write(cache_root, [])
    assert FeatureCache.open(cache_root).spaces[0].rows == 30


def test_a_replacing_segment_hides_the_replaced(tmp_path: Path) -> None:
    from featurecache.store.commit import commit_segment
    from featurecache.store.segment import Rows, encode_segment

    rows = make_rows(4)
    write(tmp_path, rows, max_rows=2)
    first = segments(tmp_path)[0]
    newer = Rows(
        values(rows[:1]),
        np.frombuffer(bytes.fromhex(rows[0].video_sha256), np.uint8)[None],
        np.array([[rows[0].start_us, rows[0].end_us]]),
        rows[0].timestamps_us[None],
    )
    contents = encode_segment(space().fingerprint, newer, PROVENANCE, [first.name])
    commit_segment(first.parents[1], format.new_segment_id(int(first.name[:20])), contents)
    cache = FeatureCache.open(tmp_path)
    assert cache.clip_ids() == names([rows[0], rows[2], rows[3]])


def test_load_uses_the_other_copy_when_the_first_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, make_rows(5))
    write(tmp_path, make_rows(8))
    cache = FeatureCache.open(tmp_path)
    flip(segments(tmp_path)[0] / "features" / "c.0.0", 30)
    np.testing.assert_array_equal(cache.load(names(make_rows(8))), values(make_rows(8)))
    assert [one.segment_id for one in cache.damage] == [segments(tmp_path)[0].name]


def test_load_follows_when_a_segment_was_compacted_since_opening(tmp_path: Path) -> None:
    write(tmp_path, make_rows(3))
    cache = FeatureCache.open(tmp_path)
    write(tmp_path, make_rows(3))
    segments(tmp_path)[0].rename(tmp_path / "gone")
    np.testing.assert_array_equal(cache.load(names(make_rows(3))), values(make_rows(3)))
    assert cache.damage == ()


def test_open_lists_again_when_a_segment_vanishes_after_the_listing(tmp_path: Path) -> None:
    """Compaction and removal between a reader's listing and its reading must not look like missing rows."""
    write(tmp_path, make_rows(6), max_rows=2)
    first = segments(tmp_path)[0].parent

    class Compacting(FaultyOs):
        def __getattr__(self, name: str):
            if name != "listdir":
                return super().__getattr__(name)
            return self._list

        def _list(self, path: str) -> list[str]:
            found = os.listdir(path)  # noqa: PTH208
            if Path(path) == first and self.at < 0:
                self.at = 10**9
                compact(tmp_path)
                gc(tmp_path, apply=True, grace_s=0)
            return found

    with file_system(Compacting(-1, fails_with(0))):
        cache = FeatureCache.open(tmp_path)
    assert cache.damage == ()
    np.testing.assert_array_equal(cache.load(names(make_rows(6))), values(make_rows(6)))


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_segment_is_found_or_harmless(cache_root: Path, bit: int) -> None:
    """Faults 9 and 10: reading finds flips in all it relies on; what it does not rely on cannot change a value."""
    files = sorted(path for path in segments(cache_root)[1].rglob("*") if path.is_file())
    relied_on = {
        "zarr.json",
        "features/zarr.json",
        "key/c.0.0",
        "video_sha256/c.0.0",
        "span_us/c.0.0",
        "row_crc32c/c.0",
    }
    for path in files:
        name = path.relative_to(segments(cache_root)[1]).as_posix()
        size = path.stat().st_size
        for at in (0, size - 1):  # a shard ends in its index
            flip(path, at, bit)
            cache = FeatureCache.open(cache_root)
            if name in relied_on:
                assert [one.segment_id for one in cache.damage] == [segments(cache_root)[1].name], (name, at)
                assert cache.spaces[0].rows == 21
            if name in relied_on or (name == "features/c.0.0" and at == 0):
                with pytest.raises(DamagedSegmentError, match=rf"{segments(cache_root)[1].name}.*repair"):
                    cache.load(names(all_rows()))
            else:
                np.testing.assert_array_equal(cache.load(names(all_rows())), values(all_rows()))
            flip(path, at, bit)
    assert FeatureCache.open(cache_root).damage == ()


def test_every_truncation_of_a_segment_is_found_at_open(cache_root: Path) -> None:
    victim = segments(cache_root)[2]
    for path in sorted(path for path in victim.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            cache = FeatureCache.open(cache_root)
            assert [one.segment_id for one in cache.damage] == [victim.name]
            with pytest.raises(DamagedSegmentError, match=victim.name):
                cache.load(names(all_rows()))
        path.write_bytes(whole)


def test_damage_says_the_clips_are_missing_so_that_extraction_heals(cache_root: Path) -> None:
    (segments(cache_root)[0] / "features" / "c.0.0").unlink()
    cache = FeatureCache.open(cache_root)
    left = cache.missing(clips(all_rows()), space().fingerprint)
    assert left == clips(all_rows()[:9])
    write(cache_root, all_rows()[:9])
    np.testing.assert_array_equal(FeatureCache.open(cache_root).load(names(all_rows())), values(all_rows()))


def test_record_claiming_more_than_its_files_is_damage(cache_root: Path) -> None:
    """A small file cannot make a reader allocate terabytes."""
    edit_record(segments(cache_root)[0], row_shape=[10**12])
    assert "cannot hold" in FeatureCache.open(cache_root).damage[0].reason


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_load_takes_no_more_memory_than_the_result_and_one_segment(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((8192, 4096), dtype=np.float32).astype(np.float16)
    with CacheWriter(tmp_path / "cache", space(), {}, max_rows=2048, max_age_s=1e9) as writer:
        for number, feature in enumerate(features):
            span_us = (number * 1000, number * 1000 + 1000)
            writer.add(Row(digest("a"), *span_us, feature, np.zeros(1, np.int64)))
    code = (
        "import re, sys; from featurecache.store import FeatureCache\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "cache = FeatureCache.open(sys.argv[1]); ids = cache.clip_ids()[::-1]; before = peak()\n"
        "assert cache.load(ids).shape == (8192, 4096); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert 60 < float(done.stdout) < 64 + 16 + 4, "MiB: the result has 64, a segment 16"
