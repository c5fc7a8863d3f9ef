"""Withdrawal of a recording: nothing of it is left, nothing of others is lost, and it never comes back."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    ClipTableError,
)
from featurecache.store import (
    FeatureCache,
    compact,
    forget,
    format,
    repair,
    rewrite,
    verify,
)
from tests.cache_samples import (
    dead_writer,
    digest,
    flip,
    make_rows,
    names,
    segments,
    serves,
    space,
    values,
    write,
)
from tests.withdrawal_samples import (
    GONE,
    copied_features,
    copied_segment,
    half_removed_space,
    space_folder,
    traces,
    write_mixed,
)

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "cache")


@pytest.mark.parametrize("digits", [64, 16])
def test_forget_leaves_no_byte_of_a_recording(tmp_path: Path, digits: int) -> None:
    root, gone = tmp_path / "cache", make_rows(9, "withdrawn")
    mixed = [row for pair in zip(make_rows(9), gone, strict=True) for row in pair]
    write(root, mixed, max_rows=4)
    write(root, gone[:3])  # a segment with nothing else, and copies
    compact(root)
    write(root, make_rows(2, "b"), max_rows=1)
    write(root, gone, of=space(pooling="motion"))
    flip(sorted(segments(root))[-1] / "key" / "c.0.0")
    repair(root)
    dead = dead_writer(root)
    (dead / "part").write_bytes(b"x" + bytes.fromhex(digest("withdrawn")))
    shutil.copytree(segments(root)[0], segments(root)[0].parents[1] / f".{format.new_segment_id()}.trash")
    assert traces(root, "withdrawn", gone)
    done = forget(root, digest("withdrawn")[:digits])
    assert done.rows >= 12
    assert done.rewritten >= 1
    assert done.removed >= 1
    assert done.leftovers >= 4
    assert traces(root, "withdrawn", gone) == []
    cache = FeatureCache.open(root)
    rest = [*make_rows(9), *make_rows(2, "b")]
    np.testing.assert_array_equal(cache.load(names(rest), space=space().fingerprint), values(rest))
    assert verify(root, deep=True).damage == ()
    assert forget(root, digest("withdrawn")).rows == 0


@pytest.mark.parametrize("bad", ["", "abc", "0" * 15, "0" * 17, "G" * 16, "0" * 66])
def test_forget_refuses_when_the_digest_is_malformed(root: Path, bad: str) -> None:
    with pytest.raises(ClipTableError):
        forget(root, bad)


# --- what is no segment in its place ----------------------------------------------------------------


def damaged_space_record(root: Path) -> None:
    flip(space_folder(root) / "zarr.json", 200)


def no_space_record(root: Path) -> None:
    (space_folder(root) / "zarr.json").unlink()


def features_beside_the_spaces(root: Path) -> None:
    (root / "recovered").mkdir()
    shutil.copy(segments(root)[0] / "features" / "c.0.0", root / "recovered" / "part1")


def copied_space(root: Path) -> None:
    shutil.copytree(space_folder(root), root / "spaces" / f"{space_folder(root).name} (copy)")


def text_file(root: Path) -> None:
    (root / "notes.txt").write_text(f"clip {names(make_rows(1, GONE))[0]} looks odd")


def unfinished_segment_elsewhere(root: Path) -> None:
    here = format.this_machine()
    name = format.new_segment_id().replace(here, "elsewhere.01234567")
    shutil.copytree(segments(root)[0], space_folder(root) / "staging" / name)


def unfinished_features_of_a_dead_process(root: Path) -> None:
    """As an earlier release wrote them: the features before the digest of their recording."""
    staged_folder = dead_writer(root)
    for path in staged_folder.iterdir():
        shutil.rmtree(path)
    shutil.copytree(segments(root)[0] / "features", staged_folder / "features")


def quarantined_segment(root: Path) -> None:
    shutil.copytree(segments(root)[0], space_folder(root) / "quarantine" / segments(root)[0].name)
    flip(space_folder(root) / "quarantine" / segments(root)[0].name / "zarr.json", 300)


@pytest.mark.parametrize(
    "leave",
    [
        damaged_space_record,
        no_space_record,
        half_removed_space,
        copied_segment,
        copied_features,
        features_beside_the_spaces,
        copied_space,
        text_file,
        unfinished_segment_elsewhere,
        unfinished_features_of_a_dead_process,
        quarantined_segment,
    ],
)
def test_forget_leaves_no_byte_wherever_in_the_cache_it_lies(root: Path, leave: Callable[[Path], None]) -> None:
    leave(root)
    done = forget(root, digest(GONE))
    assert traces(root, GONE, make_rows(6, GONE)) == []
    assert (done.unsearched, done.lost, done.unknown) == ((), (), 0)
    assert done.rows >= 6
    if leave in (damaged_space_record, no_space_record):
        shutil.rmtree(space_folder(root) / "index", ignore_errors=True)
        (space_folder(root) / "zarr.json").write_bytes(format.space_bytes(space()))
    if leave is copied_space:
        shutil.rmtree(next(root.glob("spaces/*(copy)")))
    serves(root, make_rows(6))


def compressed(root: Path) -> Path:
    path = root / "features.tar.gz"
    path.write_bytes(gzip.compress(segments(root)[0].name.encode()))
    return path


def a_link(root: Path) -> Path:
    path = space_folder(root) / "elsewhere"
    path.symlink_to(root.parent)
    return path


def unfinished_features_of_another_machine(root: Path) -> Path:
    name = format.new_segment_id().replace(format.this_machine(), "elsewhere.01234567")
    path = space_folder(root) / "staging" / name
    (path / "features").mkdir(parents=True)
    (path / "features" / "c.0.0").write_bytes(b"whose?" * 9)
    return path


@pytest.mark.parametrize("leave", [compressed, a_link, unfinished_features_of_another_machine])
def test_forget_tells_what_it_could_not_search_and_leaves_it(root: Path, leave: Callable[[Path], Path]) -> None:
    path = leave(root)
    [(told, why)] = forget(root, digest(GONE)).unsearched
    assert told == path.relative_to(root).as_posix()
    assert why
    assert path.is_symlink() or path.exists()
    serves(root, make_rows(6))


# --- others' rows -----------------------------------------------------------------------------------


def test_forget_removes_no_intact_row_of_others_when_a_bit_is_flipped_anywhere(tmp_path: Path) -> None:
    """In any file of a segment that three recordings share: each row of the others is served, or named as lost."""
    others = [*make_rows(8), *make_rows(8, "b")]
    write(tmp_path / "whole", [*others, *make_rows(8, GONE)])
    [segment] = segments(tmp_path / "whole")
    for path in sorted(path for path in segment.rglob("*") if path.is_file()):
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 9):
            root = tmp_path / "cache"
            shutil.copytree(tmp_path / "whole", root)
            flip(root / path.relative_to(tmp_path / "whole"), at)
            done = forget(root, digest(GONE))
            assert traces(root, GONE, make_rows(8, GONE)) == [], (path, at)
            cache = FeatureCache.open(root)
            served = cache.clip_ids() if cache.spaces[0].rows else []
            told = [name for _, name in done.lost]
            assert sorted([*served, *told]) == sorted(names(others)), (path, at, done)
            assert done.unknown == 0
            if path.parent.name == "timestamps_us" and path.name != "zarr.json":
                assert not served, "nothing proves the timestamps of a single row"
            else:
                assert len(told) <= 1, (path, at, told)
            kept = [row for row in others if names([row])[0] in served]
            if kept:
                np.testing.assert_array_equal(cache.load(names(kept)), values(kept))
                np.testing.assert_array_equal(
                    cache.timestamps_us(names(kept)), np.stack([row.timestamps_us for row in kept])
                )
            assert verify(root, deep=True).damage == ()
            shutil.rmtree(root)


def test_forget_leaves_a_damaged_segment_of_others_alone(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write(root, [*make_rows(4), *make_rows(4, GONE)], max_rows=4)
    damaged = segments(root)[0]
    flip(damaged / "features" / "c.0.0", 3)
    before = {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()}
    done = forget(root, digest(GONE))
    assert (done.rows, done.removed, done.rewritten, done.lost) == (4, 1, 0, ())
    assert {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()} == before


def test_forget_keeps_rows_whose_compacted_copy_is_damaged(root: Path) -> None:
    old = [path.name for path in segments(root)]
    compact(root)
    [new] = [path for path in segments(root) if path.name not in old]
    flip(new / "features" / "c.0.0", 3)
    forget(root, digest(GONE))
    np.testing.assert_array_equal(FeatureCache.open(root).load(names(make_rows(6))), values(make_rows(6)))


def test_forget_removes_nothing_when_the_new_segment_does_not_read_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stores something else than was written: the old segment stays."""
    commit = rewrite.commit_segment

    def commit_badly(folder: Path, segment_id: str, contents: dict[str, bytes]) -> None:
        commit(folder, segment_id, contents)
        flip(folder / "segments" / segment_id / "features" / "c.0.0", 3)

    monkeypatch.setattr(rewrite, "commit_segment", commit_badly)
    with pytest.raises(OSError, match="read back"):
        forget(root, digest(GONE))
    monkeypatch.setattr(rewrite, "commit_segment", commit)
    np.testing.assert_array_equal(FeatureCache.open(root).load(names(make_rows(6))), values(make_rows(6)))
    forget(root, digest(GONE))
    serves(root, make_rows(6))
