"""Run by test_turns.py in a process of its own: every pair of operations on one cache at once, in two processes.

`python -m tests.care_together FOLDER ROUNDS` prints each thing that is not as it should be, and nothing else. A
process of its own because forking is only safe where no thread runs.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from featurecache.store import FeatureCache, compact, forget, gc, repair, verify
from tests.cache_samples import FaultyOs, digest, fails_with, file_system, make_rows, names, values, write

OTHERS = [row for recording in "abcd" for row in make_rows(4, recording)]


def _verify(root: Path) -> None:
    assert verify(root, deep=True).damage == ()


def _repair(root: Path) -> None:
    assert repair(root).set_aside == ()


def _load(root: Path) -> None:
    np.testing.assert_array_equal(FeatureCache.open(root).load(names(OTHERS)), values(OTHERS))


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "gc": lambda root: gc(root, apply=True, grace_s=0),
    "compact": compact,
    "forget": lambda root: forget(root, digest("gone")),
    "repair": _repair,
    "verify": _verify,
    "load": _load,
}


def run_pair(root: Path, pair: tuple[str, str], seed: int) -> None:
    write(root, [*OTHERS, *make_rows(4, "gone")], max_rows=3)
    if "gc" in pair:
        compact(root)
    children = [(name, _start(name, root, seed * 2 + place)) for place, name in enumerate(pair)]
    for name, child in children:
        if os.waitpid(child, 0)[1]:
            sys.stdout.write(f"{name} of {pair} failed\n")
    _load(root)
    if "forget" in pair:
        assert not any(name.startswith(digest("gone")[:16]) for name in FeatureCache.open(root).clip_ids())


def _start(name: str, root: Path, seed: int) -> int:
    child = os.fork()
    if child:
        return child
    time.sleep(random.Random(seed).uniform(0, 0.02))
    try:
        OPERATIONS[name](root)
    except BaseException as error:
        sys.stderr.write(f"{name}: {error!r}\n")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    with file_system(FaultyOs(-1, fails_with(0))):
        for number in range(int(sys.argv[2])):
            for pair in combinations_with_replacement(OPERATIONS, 2):
                run_pair(Path(sys.argv[1]) / "cache", pair, number)
                shutil.rmtree(Path(sys.argv[1]) / "cache")
