"""Append, resume, damage, repair, forget, compact and gc in any order serve the rows of a dict."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featurecache.errors import (
    WithdrawnRecordingError,
)
from featurecache.store import FeatureCache, Row, compact, forget, gc, repair, verify
from tests.cache_samples import (
    FaultyOs,
    clips,
    digest,
    fails_with,
    file_system,
    flip,
    make_rows,
    names,
    path_rows,
    segments,
    serves,
    space,
    write,
)

pytestmark = pytest.mark.usefixtures("unsynced")


def operate(name: str, root: Path, recording: str) -> None:
    """One operation on a cache in which nothing is damaged."""
    if name == "gc":
        gc(root, apply=True, grace_s=0)
    elif name == "compact":
        compact(root)
    elif name == "forget":
        assert forget(root, digest(recording)).lost == ()
    elif name == "repair":
        assert repair(root).set_aside == ()
    else:
        assert verify(root, deep=True).damage == ()


PAIRS = [
    *([("compact", "forget")] * 10),  # where operations that do not take turns fail most often
    *(("compact", "gc"), ("compact", "compact"), ("forget", "forget"), ("forget", "compact"), ("gc", "forget")),
    *(("gc", "compact"), ("repair", "forget"), ("repair", "gc"), ("verify", "gc"), ("verify", "forget")),
]
INSTANTS = [number / 32 for number in range(8, 25)]  # before them an operation has begun nothing, after them it is done


class Store(RuleBasedStateMachine):
    """Append, resume, damage, repair, forget, compact and gc in any order, against a dict of rows."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "cache"
        self.model: dict[str, Row] = {}
        self.withdrawn: set[str] = set()
        write(self.root, [])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(recording=st.sampled_from("abcd"), first=st.integers(0, 12), count=st.integers(1, 8), size=st.integers(1, 5))
    def append(self, recording: str, first: int, count: int, size: int) -> None:
        rows = make_rows(count, recording, first)
        if recording in self.withdrawn:
            with pytest.raises(WithdrawnRecordingError):
                write(self.root, rows)
            return
        write(self.root, rows, max_rows=size)
        self.model |= dict(zip(names(rows), rows, strict=True))

    @rule(recording=st.sampled_from("abcd"), count=st.integers(1, 15))
    def resume(self, recording: str, count: int) -> None:
        rows = make_rows(count, recording)
        left = FeatureCache.open(self.root).missing(clips(rows), space().fingerprint)
        assert left == clips(row for row in rows if names([row])[0] not in self.model)
        todo = [row for row in rows if clips([row])[0] in left and recording not in self.withdrawn]
        write(self.root, todo)
        self.model |= dict(zip(names(todo), todo, strict=True))

    @rule(at=st.integers(0, 140))
    def interrupted_append(self, at: int) -> None:
        rows = make_rows(4, "never withdrawn", first=20)
        with file_system(FaultyOs(at, fails_with(28))):
            try:
                write(self.root, rows)
            except OSError:
                left = set(FeatureCache.open(self.root).missing(clips(rows), space().fingerprint))
                rows = [row for row in rows if clips([row])[0] not in left]
        self.model |= dict(zip(names(rows), rows, strict=True))

    @rule(segment=st.integers(0, 999), file=st.integers(0, 999), byte=st.integers(0, 999_999))
    def damage_and_repair(self, segment: int, file: int, byte: int) -> None:
        """Numbers of any size, since what there is to choose from has random names."""
        folders = segments(self.root)
        if not folders:
            return
        victim = folders[segment % len(folders)]
        paths = sorted(path for path in victim.rglob("*") if path.is_file())
        path = paths[file % len(paths)]
        flip(path, byte % path.stat().st_size)
        repair(self.root)
        served = set(FeatureCache.open(self.root).clip_ids())
        assert served <= set(self.model)
        assert len(self.model) - len(served) <= path_rows_or_all(victim, self.root)
        self.model = {name: row for name, row in self.model.items() if name in served}

    @rule(recording=st.sampled_from("abcd"))
    def forget_one(self, recording: str) -> None:
        forget(self.root, digest(recording))
        self.expect_gone(recording)

    def expect_gone(self, recording: str) -> None:
        self.withdrawn.add(recording)
        self.model = {name: row for name, row in self.model.items() if not name.startswith(digest(recording)[:16])}
        assert not any(
            bytes.fromhex(digest(recording)) in path.read_bytes() for path in self.root.rglob("*") if path.is_file()
        )

    @rule(target_rows=st.sampled_from([6, 20, 1000]))
    def compact_some(self, target_rows: int) -> None:
        compact(self.root, target_rows=target_rows)

    @rule(grace_s=st.sampled_from([0.0, 3600.0]))
    def collect(self, grace_s: float) -> None:
        gc(self.root, apply=True, grace_s=grace_s)

    @rule(pair=st.sampled_from(PAIRS), share=st.sampled_from(INSTANTS))
    def two_at_once(self, pair: tuple[str, str], share: float) -> None:
        """The second begins in the middle of the first and goes as far as it can, as another process would."""
        first, second = pair
        recording = f"pair {len(self.withdrawn)}"
        self.append(recording, 0, 4, 1)
        counted = FaultyOs(-1, fails_with(0))
        shutil.copytree(self.root, self.folder / "count")
        with file_system(counted):
            operate(first, self.folder / "count", recording)
        shutil.rmtree(self.folder / "count")
        with ThreadPoolExecutor(1) as other:
            started: list[Future[None]] = []

            def starts_second(real: Callable[..., object], name: str, args: tuple[object, ...]) -> object:
                started.append(other.submit(operate, second, self.root, recording))
                wait(started, 0.1)
                return real(*args)

            with file_system(FaultyOs(int(share * len(counted.calls)), starts_second)):
                operate(first, self.root, recording)
                for done in started or [other.submit(operate, second, self.root, recording)]:
                    done.result()
        if "forget" in pair:
            self.expect_gone(recording)

    @invariant()
    def the_cache_serves_the_model(self) -> None:
        if hasattr(self, "model"):
            serves(self.root, list(self.model.values()))


def path_rows_or_all(victim: Path, root: Path) -> int:
    [moved] = root.glob(f"spaces/*/quarantine/{victim.name}")
    return max(path_rows(moved), 1)


TestStoreStateMachine = Store.TestCase
TestStoreStateMachine.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
