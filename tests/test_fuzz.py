"""Damage of every kind to every file that is read: a named error or what was written, never a traceback or a guess.

A fixed budget of damaged copies for each kind of file, drawn from a seed: one flipped bit, a stretch of zeros, a
truncation, a stretch from elsewhere in the file.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest

from featurecache.errors import BundleError, CacheFormatError, FeatureCacheError, StudyError, UnsafeFileError
from featurecache.store import CacheWriter, FeatureCache, compact, repair, verify
from featurecache.store.exchange import export_features, import_features
from featurecache.store.index import read_index, write_checkpoint
from heads.bundle import load_bundle, save_bundle
from heads.search.study import JOURNAL_NAME, open_study
from tests.bundle_samples import make_bundle
from tests.cache_samples import (
    PROVENANCE,
    Fault,
    FaultyOs,
    assert_serves,
    fails_with,
    file_system,
    make_rows,
    names,
    segments,
    space,
    values,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def damaged_copies(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    random = np.random.default_rng(seed)
    for number in range(count):
        copy, at = bytearray(whole), int(random.integers(len(whole)))
        length = int(random.integers(1, 1 + min(64, len(whole))))
        if number % 4 == 0:
            copy[at : at + length] = bytes(len(copy[at : at + length]))
        elif number % 4 == 1:
            del copy[at:]
        elif number % 4 == 2:
            start = int(random.integers(len(whole)))
            copy[at : at + length] = whole[start : start + length]
        else:
            copy[at] ^= 1 << int(random.integers(8))
        yield bytes(copy)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_damaged_export_is_refused_or_read_as_it_was(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "cache", make_rows(20), max_rows=7)
    export_features(tmp_path / "cache", tmp_path / f"x{suffix}")
    whole = (tmp_path / f"x{suffix}").read_bytes()
    for copy in damaged_copies(whole, 100):
        (tmp_path / f"x{suffix}").write_bytes(copy)
        try:
            import_features(tmp_path / "other", tmp_path / f"x{suffix}")
        except (CacheFormatError, UnsafeFileError):
            assert not (tmp_path / "other").exists()
        else:
            assert_serves(tmp_path / "other", make_rows(20))
            shutil.rmtree(tmp_path / "other")


@pytest.mark.slow
def test_damage_to_any_file_of_a_cache_is_named_and_repaired(tmp_path: Path) -> None:
    root, rows = tmp_path / "cache", make_rows(7)
    write(root, rows, max_rows=2)
    folder = segments(root)[0].parents[1]
    write_checkpoint(folder, space().fingerprint, read_index(folder, space().fingerprint, {})[0])
    victims = [
        *root.rglob("index/*"),
        *(path for path in segments(root)[3].rglob("*") if path.is_file()),
        root / "zarr.json",
        segments(root)[0].parent / "zarr.json",
        segments(root)[0].parents[1] / "zarr.json",
    ]
    for victim in victims:
        for copy in damaged_copies(victim.read_bytes(), 16):
            shutil.copytree(root, tmp_path / "copy")
            (tmp_path / "copy" / victim.relative_to(root)).write_bytes(copy)
            try:
                cache = FeatureCache.open(tmp_path / "copy")
                np.testing.assert_array_equal(cache.load(names(rows)), values(rows))
            except FeatureCacheError:
                assert verify(tmp_path / "copy", deep=True).damage
            repair(tmp_path / "copy")
            with CacheWriter(tmp_path / "copy", space(), PROVENANCE) as writer:
                held = set(FeatureCache.open(tmp_path / "copy").clip_ids(space=space().fingerprint))
                for row in rows:
                    if names([row])[0] not in held:
                        writer.add(row)
            np.testing.assert_array_equal(FeatureCache.open(tmp_path / "copy").load(names(rows)), values(rows))
            shutil.rmtree(tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundle.json", "head.safetensors"])
def test_a_damaged_bundle_is_refused_by_name_or_loads_as_it_was(tmp_path: Path, name: str) -> None:
    save_bundle(make_bundle(), tmp_path / "bundle")
    whole = (tmp_path / "bundle" / name).read_bytes()
    for copy in damaged_copies(whole, 200):
        (tmp_path / "bundle" / name).write_bytes(copy)
        try:
            loaded = load_bundle(tmp_path / "bundle")
        except BundleError:
            continue
        assert loaded.digest == make_bundle().digest


@pytest.mark.slow
def test_a_damaged_journal_is_refused_by_name_or_opens(tmp_path: Path) -> None:
    pruner = optuna.pruners.NopPruner()
    with open_study(tmp_path / "run", {"seed": 1}, pruner) as study:
        for number in range(3):
            trial = study.study.ask()
            trial.suggest_float("x", 0, 1)
            study.study.tell(trial, number)
    whole = (tmp_path / "run" / JOURNAL_NAME).read_bytes()
    for copy in damaged_copies(whole, 60):
        (tmp_path / "run" / JOURNAL_NAME).write_bytes(copy)
        try:
            with open_study(tmp_path / "run", {"seed": 1}, pruner):
                pass
        except StudyError:
            continue


# --- memory that runs out -------------------------------------------------------------------------


def runs_out(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
    if name == "close":  # the descriptor is gone all the same
        real(*args)
    raise MemoryError


@pytest.mark.parametrize("action", ["write", "compact"])
def test_memory_that_runs_out_loses_and_doubles_no_row(tmp_path: Path, action: str) -> None:
    def act(root: Path) -> None:
        if action == "write":
            write(root, make_rows(5, "b"))
        else:
            compact(root)

    write(tmp_path / "whole", make_rows(6), max_rows=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "trial")
    calls = FaultyOs(-1, fails_with(0))
    with file_system(calls):
        act(tmp_path / "trial")
    fault: Fault = runs_out
    for at in range(0, len(calls.calls), 23):
        root = tmp_path / f"cache{at}"
        shutil.copytree(tmp_path / "whole", root)
        with file_system(FaultyOs(at, fault)), pytest.raises(MemoryError):
            act(root)
        before = FeatureCache.open(root)
        np.testing.assert_array_equal(before.load(names(make_rows(6))), values(make_rows(6)))
        for claim in root.glob(".*"):  # its release ran out of memory: two minutes later it counts no more
            os.utime(claim, (0, 0))
        act(root)
        rows = [*make_rows(6), *(make_rows(5, "b") if action == "write" else [])]
        after = FeatureCache.open(root)
        assert (after.damage, after.spaces[0].rows) == ((), len(rows))
        np.testing.assert_array_equal(after.load(names(rows)), values(rows))
        shutil.rmtree(root)
