"""Run by tests in a process of its own: writers and operations of care that are killed, and kill themselves.

`python -m tests.crash_store kill-at ROOT` dies at operation after operation of one commit;
`python -m tests.crash_store loop ROOT COUNT SEED` kills two writers at random instants;
`python -m tests.crash_store care ROOT STEP` dies at every STEP-th operation of gc, compact, repair, forget and import.
The last line of stdout is JSON. A process of its own because forking is only safe where no thread runs.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from featurecache.errors import CacheNotFoundError
from featurecache.store import CacheWriter, FeatureCache, Row, compact, forget, gc, repair, verify
from featurecache.store.exchange import export_features, import_features
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    clips,
    digest,
    fails_with,
    file_system,
    flip,
    kills_after,
    make_rows,
    names,
    segments,
    serves,
    space,
    values,
    write,
)

CLIPS = 400
CARE: dict[str, Callable[[Path], object]] = {
    "gc": lambda root: gc(root, apply=True, grace_s=0),
    "compact": compact,
    "repair": repair,
    "forget": lambda root: forget(root, digest("gone")),
    "import": lambda root: import_features(root, root.parent / "export.npz"),
}


def kill_at(root: Path) -> dict[str, list[int]]:
    """One cache for each operation of a commit of 3 rows onto 2: killed in the middle of a write, after the others."""
    recorder = FaultyOs(-1, fails_with(0))
    write(root / "begun", make_rows(2))
    shutil.copytree(root / "begun", root / "count")
    with file_system(recorder):
        write(root / "count", make_rows(3, first=2))
    died = []
    for at in range(len(recorder.calls)):
        cache = root / f"{at}"
        shutil.copytree(root / "begun", cache)
        child = os.fork()
        if child == 0:
            with file_system(FaultyOs(at, kills_after)):
                write(cache, make_rows(3, first=2))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        died.append(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
    return {"died": died, "operations": [len(recorder.calls)]}


def loop(root: Path, wanted: int, seed: int) -> dict[str, int]:
    """Two writers on one list of clips, killed together at random instants until both counts are reached.

    Checked every few rounds. Where the list is done, however fast the machine is, a new cache is begun.
    """
    chance = random.Random(seed)
    kills = rounds = said = caches = 0
    while kills < wanted or rounds < wanted:
        folder = root / f"{caches}"
        folder.mkdir(exist_ok=True)
        writers = [_start_writer(folder, f"said-{who}-{rounds}", who, chance.random()) for who in range(2)]
        time.sleep(chance.uniform(0.0, 0.12))
        for writer in writers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer, signal.SIGKILL)
        ends = [os.waitpid(writer, 0)[1] for writer in writers]
        kills += sum(os.WIFSIGNALED(end) for end in ends)
        rounds += 1
        if not all(os.WIFSIGNALED(end) for end in ends):  # one found nothing left to do
            said += _finish(folder)
            caches += 1
        elif rounds % 5 == 0:
            _check(folder)
    said += _finish(folder)
    return {"said": said, "kills": kills, "rounds": rounds, "caches": caches}


def _finish(folder: Path) -> int:
    """Lets a writer come to its end; all clips must be there then. How many were said to be saved."""
    os.waitpid(_start_writer(folder, "said-last", 0, 0.5), 0)
    said = _check(folder)
    assert FeatureCache.open(folder / "cache").spaces[0].rows == CLIPS
    return said


def _start_writer(folder: Path, said: str, who: int, mood: float) -> int:
    """A process that plans, writes what is missing in small commits, and says what it was told is saved."""
    child = os.fork()
    if child:
        return child
    cache = folder / "cache"
    rows = make_rows(CLIPS)
    rows = rows if who == 0 else rows[::-1]
    file = os.open(folder / said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    left = set(clips(rows))
    with contextlib.suppress(CacheNotFoundError):
        left = set(FeatureCache.open(cache).missing(clips(rows), space().fingerprint))
    todo = [row for row in rows if (row.video_sha256, row.start_us, row.end_us) in left]
    size = 1 + int(mood * 6)
    with CacheWriter(cache, space(), PROVENANCE, max_rows=size) as writer:
        before = 0
        for row in todo:
            writer.add(row)
            if writer.rows_saved > before:
                saved = todo[before : writer.rows_saved]
                os.write(file, "".join(f"{name}\n" for name in names(saved)).encode())
                before = writer.rows_saved
    os._exit(0)


def _check(folder: Path) -> int:
    """Every row that a writer was told is saved is there and right; nothing is damaged; no row shows twice."""
    said = {line for path in folder.glob("said-*") for line in path.read_text().splitlines()}
    try:
        opened = FeatureCache.open(folder / "cache")
    except CacheNotFoundError:
        assert not said
        return 0
    assert opened.damage == (), opened.damage
    rows = dict(zip(names(make_rows(CLIPS)), make_rows(CLIPS), strict=True))
    asked = sorted(said)
    if asked:
        assert (opened.load(asked) == values(rows[name] for name in asked)).all()
        visible = opened.clip_ids()
        assert len(visible) == len(set(visible))
        assert (opened.load(visible) == values(rows[name] for name in visible)).all()
    return len(asked)


def prepared(folder: Path, operation: str) -> tuple[Path, list[Row], list[Row]]:
    """A cache with work for an operation of care, the rows that must be served at all times, and those after it."""
    rows = [row for pair in zip(make_rows(5), make_rows(5, "gone"), strict=True) for row in pair]
    root = folder / "cache"
    folder.mkdir(exist_ok=True)
    write(root, rows, max_rows=3)
    if operation == "gc":
        compact(root)
        write(root, rows[:2])  # copies, which a second compaction leaves out
    elif operation == "repair":
        flip(segments(root)[1] / "features" / "c.0.0")
        rows = [*rows[:3], *rows[6:]]
    elif operation == "import":
        export_features(root, folder / "export.npz")
        shutil.rmtree(root)
        write(root, rows[:4])
        return root, rows[:4], rows
    after = [row for row in rows if operation != "forget" or row.video_sha256 != digest("gone")]
    return root, after, after


def leftovers(root: Path) -> list[str]:
    """What an operation that was interrupted must not leave for good."""
    unfinished = {"staging", "claims"}
    return [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.startswith(".") or path.parent.name in unfinished
    ]


def check_interrupted(root: Path, at_once: list[Row]) -> None:
    """Whatever was interrupted: what must be served is, and right."""
    cache = FeatureCache.open(root)
    assert (cache.load(names(at_once)) == values(at_once)).all()


def check_run_again(root: Path, operation: str, after: list[Row]) -> None:
    """An interrupted operation, run again, ends as if nothing had been; gc takes what the dead left."""
    CARE[operation](root)
    serves(root, after)
    gc(root, apply=True, grace_s=0)
    serves(root, after)
    assert verify(root, deep=True).is_sound
    assert leftovers(root) == []


def kill_care(folder: Path, step: int) -> dict[str, dict[str, object]]:
    """Each operation of care, killed at every so many of its operations on files; what then was not as it must be."""
    found: dict[str, dict[str, object]] = {}
    for operation, care in CARE.items():
        root, at_once, after = prepared(folder / operation, operation)
        begun, recorder = root.rename(root.with_name("begun")), FaultyOs(-1, fails_with(0))
        shutil.copytree(begun, root)
        with file_system(recorder):
            care(root)
        shutil.rmtree(root)
        killed, bad = 0, []
        for at in range(0, len(recorder.calls), step):
            shutil.copytree(begun, root)
            child = os.fork()
            if child == 0:
                with file_system(FaultyOs(at, kills_after)):
                    care(root)
                os._exit(0)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            try:
                check_interrupted(root, at_once)
                check_run_again(root, operation, after)
            except Exception as error:
                bad.append(f"{at} {recorder.calls[at]}: {error!r}")
            shutil.rmtree(root)
        found[operation] = {"operations": len(recorder.calls), "killed": killed, "bad": bad}
    return found


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    found = {"kill-at": kill_at, "loop": loop, "care": kill_care}[what](Path(where), *map(int, numbers))
    sys.stdout.write(json.dumps(found) + "\n")
