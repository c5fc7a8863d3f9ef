"""Run by test_store_faults.py in a process of its own: writers that are killed, and kill themselves.

`python -m tests.crash_store kill-at ROOT` dies at operation after operation of one commit;
`python -m tests.crash_store loop ROOT COUNT SEED` kills two writers at random instants. The last line of
stdout is JSON. A process of its own because forking is only safe where no thread runs.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from featurecache.errors import CacheNotFoundError
from featurecache.store import CacheWriter, FeatureCache
from tests.cache_samples import (
    PROVENANCE,
    FaultyOs,
    clips,
    fails_with,
    file_system,
    kills_after,
    make_rows,
    names,
    space,
    values,
    write,
)

CLIPS = 400


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


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    found = {"kill-at": kill_at, "loop": loop}[what](Path(where), *map(int, numbers))
    sys.stdout.write(json.dumps(found) + "\n")
