"""How fast the nearest clips are found: one clip's among all, and each clip's with all others.

    python -m benchmarks.bench_neighbours [--quick | --full]

Rows are 4096 wide float16, as the 7B backbone gives; the cache lies in memory (/dev/shm) where there is such a place.
One query reads, checks and compares every row once, so its time grows with the rows: a million rows, 8.2 GB, are
extrapolated from the largest size measured. Each with all others is what `--confusions` and `--duplicates` compute.

The approximate index of `--index` finds each clip's nearest of other recordings. Its rows are of recordings of 500
clips with a look of their own, that change slowly, with variances that fall off as a power law (1 / rank), as those of
hidden states do. Exact search of 1,024 drawn clips gives the recall, and by their time that of exact search for all.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench_store import DIM, SPACE, clip, fill, timed
from benchmarks.targets import print_document
from featurecache.store import FeatureCache
from featurecache.store.approximate import likely_nearest
from featurecache.store.nearest import Directions, nearest

RECORDING_CLIPS = 500


def measure(folder: Path, rows: int, *, pairs: bool) -> dict[str, float]:
    """Seconds of one query and, where wanted, of each clip with all others."""
    features = np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32).astype(np.float16)
    fill(folder / "cache", features, segments=max(1, rows // 16384))
    del features
    cache = FeatureCache.open(folder / "cache")
    ids = [f"{digest[:16]}-{start}-{end}" for digest, start, end in map(clip, range(rows))]
    everyone = np.arange(rows)

    def search(queries: np.ndarray, top: int) -> None:
        directions = Directions(cache, ids, SPACE.fingerprint)
        nearest(directions, queries, everyone, top=top, allowed=lambda one, other: one[:, None] != other)

    query_s = statistics.median(timed(lambda: search(everyone[5:6], 10)) for _ in range(3))
    found = {"rows": rows, "query_s": round(query_s, 3), "rows_per_s": round(rows / query_s)}
    return found | ({"each_with_all_s": round(timed(lambda: search(everyone, 1)), 1)} if pairs else {})


def measure_index(folder: Path, rows: int, *, width: int = DIM, recordings: int | None = None) -> dict[str, float]:
    """Seconds of the approximate index for each clip with all others, over exact search's, and its recall.

    Where only the clips of some `recordings` are asked for, seconds for all follow from theirs.
    """
    draw, scale = np.random.default_rng(0), (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    features = np.empty((rows, width), np.float16)
    for first in range(0, rows, RECORDING_CLIPS):
        look, changes = draw.standard_normal(width), draw.standard_normal((RECORDING_CLIPS, width), np.float32)
        for at in range(1, RECORDING_CLIPS):
            changes[at] = 0.9 * changes[at - 1] + 0.44 * changes[at]
        features[first : first + RECORDING_CLIPS] = (scale * (look + 0.8 * changes))[: rows - first]
    fill(folder / "cache", features, segments=max(1, rows // 16384))
    del features
    cache = FeatureCache.open(folder / "cache")
    ids = [f"{digest[:16]}-{start}-{end}" for digest, start, end in map(clip, range(rows))]
    everyone, recording = np.arange(rows), np.arange(rows) // RECORDING_CLIPS
    directions = Directions(cache, ids, SPACE.fingerprint)
    names = np.unique(recording)
    asked = np.flatnonzero(np.isin(recording, names[:: 1 if recordings is None else len(names) // recordings]))
    at = np.sort(draw.permutation(len(asked))[:1024])
    drawn = asked[at]
    found: dict[str, np.ndarray] = {}

    def allowed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return recording[one, None] != recording[other]

    def exact() -> None:
        found["exact"] = nearest(directions, drawn, everyone, top=1, allowed=allowed)[1]

    def by_index(queries: np.ndarray) -> None:
        found["index"] = likely_nearest(directions, queries, everyone, allowed=allowed, alike=recording)[1]

    exact_s, build_s = timed(exact) / len(drawn) * rows, timed(lambda: by_index(asked[:1]))
    index_s = build_s + (timed(lambda: by_index(asked)) - build_s) / len(asked) * rows
    missed_by = found["exact"] - found["index"][at]
    return {
        "rows": rows,
        "width": width,
        "build_s": round(build_s, 1),
        "index_s": round(index_s, 1),
        "exact_s_extrapolated": round(exact_s, 1),
        "times_faster": round(exact_s / index_s, 2),
        "recall": round(float((missed_by <= 1e-5).mean()), 4),
        "cosine_lost_mean": round(float(missed_by.mean()), 6),
    }


def main() -> None:
    """Run the sizes and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under 50 s")
    parser.add_argument("--full", action="store_true", help="also 160,000 rows, 1.3 GB, and a million of 512 by index")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    sizes = [2048] if options.quick else [16384, 160_000] if options.full else [16384]
    figures: dict[str, dict[str, float]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            figures[f"{rows}_rows"] = measure(Path(folder), rows, pairs=rows < 100_000)
    largest = figures[f"{sizes[-1]}_rows"]
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        figures["index"] = measure_index(Path(folder), 2048 if options.quick else 100_000 if options.full else 16384)
        if options.full:
            figures["index_of_a_million"] = measure_index(Path(folder) / "more", 1_000_000, width=512, recordings=40)
    figures["extrapolated"] = {"rows": 1_000_000, "query_s": round(1_000_000 / largest["rows_per_s"], 1)}
    query_s = figures[f"{sizes[0]}_rows"]["query_s"]
    targets = [
        ("one clip's neighbours, s", query_s, 2.0, 2.0, "lower"),
        ("recall of the nearest by index", figures["index"]["recall"], 0.95, 0.95, "higher"),
    ]
    print_document("neighbours", figures, targets, quick=options.quick, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
