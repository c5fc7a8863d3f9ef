"""Verification finds every damage of a cache; repair quarantines it, and the next extraction heals."""

import contextlib
from pathlib import Path

import pytest

from featurecache.errors import (
    CacheNotFoundError,
    DamagedSegmentError,
    NewerFormatError,
    SettingsError,
)
from featurecache.store import FeatureCache, compact, forget, gc, repair, verify
from tests.cache_samples import (
    FaultyOs,
    PowerCutError,
    assert_serves,
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
    serves,
    space,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_nothing_when_all_is_well(root: Path, deep: bool) -> None:
    found = verify(root, deep=deep, plan={space().fingerprint: names(make_rows(9))})
    assert (found.damage, found.spaces, found.segments, found.rows) == ((), 1, 4, 8)
    assert (found.duplicates, found.replaced) == (0, 0)


def test_verify_deeply_finds_a_flipped_bit_in_every_file_of_the_cache(root: Path) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        size = path.stat().st_size
        for at in {0, size // 2, size - 1}:
            whole = path.read_bytes()
            flip(path, at)
            assert len(verify(root, deep=True).damage) == 1, (path, at)
            path.write_bytes(whole)
    assert verify(root, deep=True).damage == ()


def test_verify_quickly_finds_a_truncation_of_every_file_of_the_cache(root: Path) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for length in (0, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert len(verify(root).damage) == 1, (path, length)
        path.write_bytes(whole)


def test_verify_deeply_finds_a_file_that_does_not_belong(root: Path) -> None:
    (segments(root)[0] / "features" / "c.0.1").write_bytes(b"x")
    assert "not its own" in verify(root, deep=True).damage[0].reason


def test_verify_counts_copies(root: Path) -> None:
    write(root, make_rows(3))
    found = verify(root)
    assert (found.rows, found.duplicates) == (8, 3)


@pytest.mark.parametrize("portions", [1, 3])
def test_verify_in_portions_reads_every_byte_of_every_segment_once(root: Path, portions: int) -> None:
    for folder in segments(root):
        flip(folder / "features" / "c.0.0")
    found = [
        one.segment_id
        for number in range(1, portions + 1)
        for one in verify(root, deep=True, part=(number, portions)).damage
    ]
    assert sorted(found) == [folder.name for folder in segments(root)]


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0)])
def test_verify_refuses_a_portion_that_there_is_not(root: Path, part: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="1/30"):
        verify(root, deep=True, part=part)


def test_verify_names_no_damage_when_a_first_extraction_was_killed_while_it_made_its_folders(tmp_path: Path) -> None:
    """At any operation: what is half made is made whole by the next writer."""

    def stops(real, name, args):
        raise PowerCutError

    recorder = FaultyOs(-1, fails_with(0))
    with file_system(recorder):
        write(tmp_path / "count", make_rows(1))
    for at in range(len(recorder.calls)):
        cache = tmp_path / f"{at}"
        with file_system(FaultyOs(at, stops)), contextlib.suppress(PowerCutError):
            write(cache, make_rows(1))
        with contextlib.suppress(CacheNotFoundError):
            assert verify(cache).damage == (), at
        write(cache, make_rows(2))
        assert verify(cache, deep=True).damage == ()


def test_verify_tells_of_a_damaged_checkpoint_and_repair_makes_it_anew(checkpointed: Path) -> None:
    [path] = checkpointed.glob("spaces/*/index/*.npz")
    flip(path, path.stat().st_size // 2)
    [one] = verify(checkpointed).damage
    assert one.path == path.relative_to(checkpointed).as_posix()
    repair(checkpointed)
    assert verify(checkpointed, deep=True).damage == ()
    serves(checkpointed, make_rows(40))


@pytest.mark.parametrize("care", [verify, repair, gc, compact, lambda root: forget(root, digest("a"))])
def test_care_refuses_when_there_is_no_cache(tmp_path: Path, care) -> None:
    with pytest.raises(CacheNotFoundError):
        care(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("care", [verify, repair, gc, compact, lambda root: forget(root, digest("a"))])
@pytest.mark.parametrize("where", [".", "spaces/final-*", "spaces/*/segments/0*"])
def test_care_touches_nothing_when_the_format_is_newer(root: Path, care, where: str) -> None:
    edit_record(root if where == "." else next(root.glob(where)), version=3)
    before = sorted(root.rglob("*"))
    with pytest.raises(NewerFormatError):
        care(root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("place", ["index", "quarantine", "segments", "segments/0*", "segments/0*/features"])
def test_care_is_not_stopped_by_folders_and_links_that_other_programs_left(root: Path, place: str) -> None:
    space_folder = segments(root)[0].parents[1]
    for name in ("index", "quarantine"):
        (space_folder / name).mkdir()
    folder = next(space_folder.glob(place))
    (folder / "theirs").mkdir()
    (folder / "theirs" / "file").write_bytes(b"x")
    (folder / "loop").symlink_to(folder)
    compact(root)
    repair(root)
    gc(root, apply=True, grace_s=0, quarantine=True)
    write(root, make_rows(2, "b"))
    forget(root, digest("b"))
    serves(root, make_rows(8))


def test_repair_sets_damage_aside_and_the_next_extraction_heals(root: Path) -> None:
    victims = segments(root)
    flip(victims[0] / "features" / "c.0.0")
    (victims[2] / "features" / "c.0.0").unlink()
    flip(victims[3] / "zarr.json", 40)
    with pytest.raises(DamagedSegmentError):
        FeatureCache.open(root).load(names(make_rows(8)))
    done = repair(root)
    assert [one.segment_id for one in done.set_aside] == [victims[i].name for i in (0, 2, 3)]
    assert [name for _, name in done.lost] == names([make_row(i) for i in (0, 1, 4, 5)])
    assert done.unknown == (victims[3].name,)
    assert verify(root, deep=True).damage == ()
    left = FeatureCache.open(root).missing(clips(make_rows(8)), space().fingerprint)
    assert left == clips([make_row(i) for i in (0, 1, 4, 5, 6, 7)])
    write(root, [row for row in make_rows(8) if clips([row])[0] in left])
    assert_serves(root, make_rows(8))
    assert repair(root).set_aside == ()


def test_repair_counts_no_clip_as_lost_when_a_copy_is_served(root: Path) -> None:
    write(root, make_rows(2))
    flip(segments(root)[0] / "features" / "c.0.0")
    assert repair(root).lost == ()
    serves(root, make_rows(8))


def test_repair_puts_plain_records_back_and_sets_a_wrong_space_record_aside(root: Path) -> None:
    folder = segments(root)[0].parents[1]
    (root / "zarr.json").write_bytes(b"")
    (root / "spaces" / "zarr.json").unlink()
    (folder / "segments" / "zarr.json").write_text("{}")
    (folder / "zarr.json").write_bytes((folder / "zarr.json").read_bytes().replace(b'"frames":4', b'"frames":5'))
    done = repair(root)
    assert done.rewritten == ("zarr.json", "spaces/zarr.json", f"spaces/{folder.name}/segments/zarr.json")
    assert [one.path for one in done.set_aside] == [f"spaces/{folder.name}/zarr.json"]
    assert "extract" in FeatureCache.open(root).damage[0].reason
    write(root, [])
    assert_serves(root, make_rows(8))
