"""Small caches for tests, and file systems that fail: rows whose values follow from the clip alone."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.spec import FeatureSpace, canonical_json
from featurecache.store import CacheWriter, FeatureCache, Row, files, format

DIM = 24
PROVENANCE = {"featurecache": "test", "device": "cpu"}


def space(**changes: Any) -> FeatureSpace:
    inputs = {"tap": "final", "pooling": "mean", "stored_dtype": "float16", "weights": "abc", "frames": 4}
    return FeatureSpace(inputs | changes)


def digest(recording: str) -> str:
    return hashlib.sha256(recording.encode()).hexdigest()


def feature(video_sha256: str, start_us: int, dim: int = DIM) -> np.ndarray:
    seed = int(video_sha256[:12], 16) ^ start_us
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float16)


def make_row(number: int, recording: str = "a", dim: int = DIM) -> Row:
    """Clip number `number` of a recording; 3 s long."""
    start_us, sha256 = number * 3_000_000, digest(recording)
    timestamps_us = start_us + np.arange(4) * 750_000
    return Row(sha256, start_us, start_us + 3_000_000, feature(sha256, start_us, dim), timestamps_us)


def make_rows(count: int, recording: str = "a", first: int = 0) -> list[Row]:
    return [make_row(number, recording) for number in range(first, first + count)]


def names(rows: Iterable[Row]) -> list[str]:
    return [f"{row.video_sha256[:16]}-{row.start_us}-{row.end_us}" for row in rows]


def clips(rows: Iterable[Row]) -> list[tuple[str, int, int]]:
    return [(row.video_sha256, row.start_us, row.end_us) for row in rows]


def values(rows: Iterable[Row]) -> np.ndarray:
    return np.stack([row.feature for row in rows])


def write(root: Path, rows: Iterable[Row], *, of: FeatureSpace | None = None, **limits: Any) -> None:
    with CacheWriter(root, of or space(), PROVENANCE, **limits) as writer:
        for row in rows:
            writer.add(row)


def segments(root: Path) -> list[Path]:
    """Folders of all committed segments."""
    return sorted(path for path in root.glob("spaces/*/segments/*") if path.is_dir())


def staged(root: Path) -> list[Path]:
    return sorted(root.glob("spaces/*/staging/*"))


def assert_serves(root: Path, rows: list[Row]) -> None:
    """The cache holds exactly these clips, each once, with the right values."""
    cache = FeatureCache.open(root)
    assert cache.damage == ()
    assert sum(one.rows for one in cache.spaces) == len(rows)
    assert sum(path_rows(path) for path in segments(root)) == len(rows)
    if rows:
        np.testing.assert_array_equal(cache.load(names(rows)), values(rows))


def flip(path: Path, at: int = 0, bit: int = 4) -> None:
    """Flip a bit of one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def serves(cache_root: Path, rows: list[Row]) -> None:
    """These rows are served and no others; there may be copies and replaced segments on disk."""
    cache = FeatureCache.open(cache_root)
    assert cache.damage == ()
    assert sorted(cache.clip_ids()) == sorted(names(rows))
    if rows:
        np.testing.assert_array_equal(cache.load(names(rows)), values(rows))


def dead_writer(root: Path) -> Path:
    """A segment left in staging by a process that was killed in the middle of its commit."""
    code = (
        "import os, signal, sys; from tests.cache_samples import *\n"
        f"with file_system(FaultyOs(60, kills_after)): write({str(root)!r}, make_rows(3, 'left'))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == -9
    [path] = staged(root)
    return path


def path_rows(segment: Path) -> int:
    return (segment / "row_crc32c" / "c.0").stat().st_size // 4 - 1


def edit_record(group: Path, **changes: Any) -> None:
    """Change a group's attributes as a writer would, its own digest included."""
    record = json.loads((group / "zarr.json").read_bytes())["attributes"]["featurecache"] | changes
    if "self_sha256" in record:
        del record["self_sha256"]
        record["self_sha256"] = hashlib.sha256(canonical_json(record).encode()).hexdigest()
    (group / "zarr.json").write_bytes(format.group_bytes(record))


# --- file systems that fail -----------------------------------------------------------------------

Fault = Callable[[Callable[..., Any], str, tuple[Any, ...]], Any]


class FaultyOs:
    """`os` for the store, whose operation number `at` goes wrong; nothing is really synced."""

    COUNTED = frozenset(
        {"mkdir", "open", "write", "fsync", "close", "rename", "replace", "unlink", "rmdir", "chmod", "fchmod"}
        | {"stat", "fstat", "lstat", "listdir", "scandir", "read", "preadv"}
    )

    def __init__(self, at: int, fault: Fault) -> None:
        self.at, self.fault = at, fault
        self.calls: list[str] = []
        self.opened: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.COUNTED:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == "open":
                self.opened.append(str(args[0]))
            if len(self.calls) - 1 == self.at:
                return self.fault(real, name, args)
            return None if name == "fsync" else real(*args, **options)

        return call


def fails_with(code: int) -> Fault:
    def fault(real: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        if name == "close":  # the descriptor is gone all the same
            real(*args)
        raise OSError(code, os.strerror(code))

    return fault


def happens_and_fails_with(code: int) -> Fault:
    def fault(real: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        real(*args)
        raise OSError(code, os.strerror(code))

    return fault


def writes_half(real: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
    if name == "write":
        file, data = args
        return real(file, data[: max(1, len(data) // 2)])
    return real(*args)


def kills_after(real: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
    with contextlib.suppress(OSError):
        writes_half(real, name, args)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def file_system(replacement: Any) -> Iterator[None]:
    """The store works on another `os` meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", replacement)
        yield


class PowerCutError(Exception):
    pass


class LosingOs:
    """`os` for the store that remembers what is not synced, and forgets it all when the power goes.

    The worst a POSIX file system may do: contents of unsynced files are gone, names in unsynced folders are
    gone, but a rename may have lasted without them.
    """

    def __init__(self, cut_at: int, *, rename_lasts: bool) -> None:
        self.cut_at, self.rename_lasts = cut_at, rename_lasts
        self.operations = 0
        self.open_paths: dict[int, Path] = {}
        self.empty: set[Path] = set()  # files whose contents are not synced
        self.nameless: list[Path] = []  # names whose folder is not synced
        self.renames: list[tuple[Path, Path]] = []  # (from, to) whose folder is not synced

    def __getattr__(self, name: str) -> Any:
        if name not in FaultyOs.COUNTED:
            return getattr(os, name)
        real, note = getattr(os, name), getattr(self, f"_note_{name}", None)

        def call(*args: Any, **options: Any) -> Any:
            if self.operations == self.cut_at:
                raise PowerCutError
            self.operations += 1
            result = None if name == "fsync" else real(*args, **options)
            if note:
                note(result, *args)
            return result

        return call

    def _note_mkdir(self, _: None, path: Path, mode: int) -> None:
        self.nameless.append(Path(path))

    def _note_open(self, file: int, path: Path, flags: int, mode: int = 0) -> None:
        self.open_paths[file] = Path(path)
        if flags & os.O_CREAT:
            self.nameless.append(Path(path))
            self.empty.add(Path(path))

    def _note_fsync(self, _: None, file: int) -> None:
        path = self.open_paths[file]
        self.empty.discard(path)
        if path.is_dir():
            self.nameless = [name for name in self.nameless if name.parent != path]
            self.renames = [(old, new) for old, new in self.renames if new.parent != path]

    def _note_rename(self, _: None, old: Path, new: Path) -> None:
        def moved(path: Path) -> Path:
            return new / path.relative_to(old) if path.is_relative_to(old) else path

        self.nameless = [moved(path) for path in self.nameless if path != old]
        self.empty = {moved(path) for path in self.empty}
        self.renames.append((old, new))

    _note_replace = _note_rename

    def lose(self) -> None:
        """What the disk shows after the power came back."""
        for path in reversed(self.nameless):
            if path.is_dir():
                for inside in sorted(path.rglob("*"), reverse=True):
                    inside.rmdir() if inside.is_dir() else inside.unlink()
                path.rmdir()
            elif path.exists():
                path.unlink()
        for path in self.empty:
            if path.exists():
                path.write_bytes(b"")
        if not self.rename_lasts:
            for old, new in reversed(self.renames):
                if new.exists() and old.parent.exists():
                    new.rename(old)
