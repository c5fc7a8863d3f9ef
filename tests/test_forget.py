"""Withdrawal of a recording: nothing of it is left, nothing of others is lost, and it never comes back."""

import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import (
    ClipTableError,
    MissingFeaturesError,
    WithdrawnRecordingError,
    WithdrawnRecordingWarning,
)
from featurecache.store import (
    CacheWriter,
    FeatureCache,
    Row,
    compact,
    forget,
    format,
    gc,
    layout,
    repair,
    rewrite,
    verify,
)
from featurecache.store.exchange import export_features, import_features
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    PowerCutError,
    dead_writer,
    digest,
    fails_with,
    file_system,
    flip,
    make_row,
    make_rows,
    names,
    segments,
    serves,
    space,
    unsynced,
    values,
    write,
)

__all__ = ["unsynced"]
pytestmark = pytest.mark.usefixtures("unsynced")

GONE = "withdrawn"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Rows of a recording that stays and one that goes, mixed in every segment."""
    mixed = [row for pair in zip(make_rows(6), make_rows(6, GONE), strict=True) for row in pair]
    write(tmp_path / "cache", mixed, max_rows=4)
    return tmp_path / "cache"


def traces(root: Path, recording: str, rows: list[Row]) -> list[str]:
    """Files that hold anything of a recording: its digest in bytes or text, a key, a feature."""
    needles = [bytes.fromhex(digest(recording)), digest(recording).encode(), digest(recording)[:16].encode()]
    for row in rows:
        needles += [row.feature.tobytes(), row.feature.tobytes()[:16]]
        needles += [format.row_key(space().fingerprint, row.video_sha256, row.start_us, row.end_us)]
    return [
        f"{path}: {needle[:8]!r}"
        for path in root.rglob("*")
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]


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


def space_folder(root: Path) -> Path:
    return segments(root)[0].parents[1]


def damaged_space_record(root: Path) -> None:
    flip(space_folder(root) / "zarr.json", 200)


def no_space_record(root: Path) -> None:
    (space_folder(root) / "zarr.json").unlink()


def half_removed_space(root: Path) -> None:
    copy = root / f".{format.new_segment_id()}{layout.TRASH}"
    shutil.copytree(space_folder(root), copy)
    (copy / "zarr.json").unlink()


def copied_segment(root: Path) -> None:
    shutil.copytree(segments(root)[0], segments(root)[0].with_name(f".{segments(root)[0].name}.Xy8f3a"))


def copied_features(root: Path) -> None:
    """A copy program's unfinished file, of features alone."""
    whole = segments(root)[0] / "features" / "c.0.0"
    whole.with_name(".c.0.0.Xy8f3a").write_bytes(whole.read_bytes()[:-7])


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


# --- it never comes back ----------------------------------------------------------------------------


def test_a_withdrawn_recording_is_refused_by_every_later_writer(root: Path) -> None:
    forget(root, digest(GONE)[:16])
    with CacheWriter(root, space(pooling="motion"), PROVENANCE) as writer:
        writer.add(make_row(0))
        with pytest.raises(WithdrawnRecordingError, match="consent was given again"):
            writer.add(make_row(0, GONE))
    assert traces(root, GONE, make_rows(6, GONE)) == []


def test_a_writer_drops_what_it_gathered_of_a_recording_that_is_withdrawn_meanwhile(root: Path) -> None:
    writer = CacheWriter(root, space(), PROVENANCE)
    for row in (*make_rows(2, GONE, first=10), *make_rows(2, "b")):
        writer.add(row)
    forget(root, digest(GONE))
    with pytest.warns(WithdrawnRecordingWarning, match="2 computed rows"):
        writer.commit()
    assert writer.rows_saved == 2
    serves(root, [*make_rows(6), *make_rows(2, "b")])
    assert traces(root, GONE, make_rows(20, GONE)) == []


@pytest.mark.parametrize(("operation", "which"), [("mkdir", min), ("open", max), ("rename", max)])
def test_a_commit_in_flight_does_not_bring_a_withdrawn_recording_back(
    root: Path, operation: str, which: Callable[[Iterable[int]], int]
) -> None:
    """Withdrawn before anything is staged, while the segment is being staged, or just before the rename commits it."""
    done: list[object] = []
    saved: list[int] = []

    def forgets_first(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
        with file_system(FaultyOs(-1, fails_with(0))):
            done.append(forget(root, digest(GONE)))
        return real(*args)

    def commit(at: int) -> list[str]:
        recorder = FaultyOs(at, forgets_first)
        with CacheWriter(root, space(), PROVENANCE) as writer:
            for row in (*make_rows(2, GONE, first=10), *make_rows(2, "b")):
                writer.add(row)
            with file_system(recorder):
                writer.commit()
        saved.append(writer.rows_saved)
        return recorder.calls

    shutil.copytree(root, root.with_name("original"))
    calls = commit(-1)
    shutil.rmtree(root)
    root.with_name("original").rename(root)
    commit_point = max(number for number, name in enumerate(calls) if name == "rename")
    at = which(number for number, name in enumerate(calls[: commit_point + 1]) if name == operation)
    with pytest.warns(WithdrawnRecordingWarning, match="2 computed rows"):
        commit(at)
    assert done
    assert saved == [4, 2]
    serves(root, [*make_rows(6), *make_rows(2, "b")])
    assert traces(root, GONE, make_rows(20, GONE)) == []


def test_a_compaction_in_flight_does_not_bring_a_withdrawn_recording_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = rewrite.commit_segment

    def forget_first(folder: Path, segment_id: str, contents: dict[str, bytes]) -> None:
        monkeypatch.setattr(rewrite, "commit_segment", commit)
        forget(root, digest(GONE))
        commit(folder, segment_id, contents)

    monkeypatch.setattr(rewrite, "commit_segment", forget_first)
    compact(root)
    serves(root, make_rows(6))
    assert traces(root, GONE, make_rows(6, GONE)) == []


def test_rows_that_come_back_by_copying_are_not_served_and_gc_removes_them(root: Path, tmp_path: Path) -> None:
    """A folder restored from a backup: the mark keeps readers from it, `verify` tells, `gc` clears it."""
    shutil.copytree(root, tmp_path / "backup")
    forget(root, digest(GONE))
    for folder in segments(tmp_path / "backup"):
        shutil.copytree(folder, segments(root)[0].parent / folder.name)
    serves(root, make_rows(6))
    with pytest.raises(MissingFeaturesError):
        FeatureCache.open(root).load(names(make_rows(1, GONE)))
    assert verify(root).withdrawn == 6
    gc(root, apply=True, grace_s=0)
    assert verify(root).withdrawn == 0
    assert traces(root, GONE, make_rows(6, GONE)) == []
    serves(root, make_rows(6))


def test_a_copied_segment_that_held_nothing_else_is_not_served_again(tmp_path: Path) -> None:
    """No segment written anew replaces it, so that the mark alone keeps readers from it."""
    root = tmp_path / "cache"
    write(root, make_rows(4))
    kept = segments(root)
    write(root, make_rows(4, GONE))
    [gone] = set(segments(root)) - set(kept)
    shutil.copytree(gone, tmp_path / "backup")
    forget(root, digest(GONE))
    shutil.copytree(tmp_path / "backup", gone)
    cache = FeatureCache.open(root)
    assert set(cache.clip_ids()) == set(names(make_rows(4)))
    with pytest.raises(MissingFeaturesError):
        cache.load(names(make_rows(1, GONE)))
    assert export_features(root, tmp_path / "all.npz").rows == 4


def test_an_import_leaves_out_withdrawn_recordings(root: Path, tmp_path: Path) -> None:
    export_features(root, tmp_path / "all.npz")
    forget(root, digest(GONE))
    for row in make_rows(6):
        assert names([row])[0] in FeatureCache.open(root).clip_ids()
    done = import_features(root, tmp_path / "all.npz")
    assert (done.rows, done.present, done.withdrawn) == (0, 6, ((digest(GONE)[:16], 6),))
    serves(root, make_rows(6))
    assert traces(root, GONE, make_rows(6, GONE)) == []


def test_the_mark_does_not_tell_which_recording_it_was(root: Path) -> None:
    done = forget(root, digest(GONE))
    [mark] = (root / "withdrawn").iterdir()
    assert mark.name == done.mark
    assert digest(GONE)[:16] not in mark.name + mark.read_text()
    mark.unlink()
    write(root, make_rows(6, GONE))
    serves(root, [*make_rows(6), *make_rows(6, GONE)])


def test_forget_marks_a_recording_that_the_cache_never_held(root: Path) -> None:
    assert forget(root, digest("never seen")).rows == 0
    with pytest.raises(WithdrawnRecordingError):
        write(root, make_rows(1, "never seen"))


@pytest.mark.slow
def test_forget_killed_at_any_operation_leaves_nothing_when_run_again(tmp_path: Path) -> None:
    root = tmp_path / "whole"
    write(root, [row for pair in zip(make_rows(4), make_rows(4, GONE), strict=True) for row in pair], max_rows=3)
    for leave in (copied_features, copied_segment, half_removed_space):
        leave(root)
    recorder = FaultyOs(-1, fails_with(0))
    shutil.copytree(root, tmp_path / "count")
    with file_system(recorder):
        forget(tmp_path / "count", digest(GONE))

    def stops(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
        raise PowerCutError

    for at in range(0, len(recorder.calls), 17):
        copy = tmp_path / "cache"
        shutil.copytree(root, copy)
        with file_system(FaultyOs(at, stops)), contextlib.suppress(PowerCutError):
            forget(copy, digest(GONE))
        np.testing.assert_array_equal(FeatureCache.open(copy).load(names(make_rows(4))), values(make_rows(4)))
        forget(copy, digest(GONE))
        assert traces(copy, GONE, make_rows(4, GONE)) == [], at
        serves(copy, make_rows(4))
        shutil.rmtree(copy)
