"""How fast the nearest clips are found: one clip's among all, and each clip's with all others.

    python -m benchmarks.bench_neighbours [--quick | --full]

Rows are 4096 wide float16, as the 7B backbone gives; the cache lies in memory (/dev/shm) where there is such a place.
One query reads, checks and compares every row once, so its time grows with the rows: a million rows, 8.2 GB, are
extrapolated from the largest size measured. Each with all others is what `--confusions` and `--duplicates` compute.
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
from featurecache.store.nearest import Directions, nearest


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


def main() -> None:
    """Run the sizes and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under 50 s")
    parser.add_argument("--full", action="store_true", help="also 160,000 rows: 1.3 GB")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    sizes = [2048] if options.quick else [16384, 160_000] if options.full else [16384]
    figures: dict[str, dict[str, float]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            figures[f"{rows}_rows"] = measure(Path(folder), rows, pairs=rows < 100_000)
    largest = figures[f"{sizes[-1]}_rows"]
    figures["extrapolated"] = {"rows": 1_000_000, "query_s": round(1_000_000 / largest["rows_per_s"], 1)}
    query_s = figures[f"{sizes[0]}_rows"]["query_s"]
    targets = [("one clip's neighbours, s", query_s, 2.0, 2.0, "lower")]
    print_document("neighbours", figures, targets, quick=options.quick, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
