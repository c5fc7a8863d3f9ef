"""How fast the cache writes and reads, beside the floor (a raw file) and beside HDF5.

    python -m benchmarks.bench_store [--quick | --full] [--folder DIR]

Rows are 4096 wide float16, as the 7B backbone gives. Reading is `FeatureCache.load` of every clip, in stored
and in shuffled order, against `readinto` of the same bytes from one plain file into new memory. All of it is
warm, so the files lie in memory (/dev/shm) where there is such a place; each figure is the median of several
turns, taken in turn with the floor's. Writing is `CacheWriter` onto a disk, synced, against one plain file that
is written and synced, and against HDF5, which syncs nothing. What grows with recordings, rows and segments stands in
`store_scale.py`.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from benchmarks.store_scale import measure_claims, measure_opening, measure_planning
from benchmarks.targets import Target, print_document
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, FeatureCache, Row

DIM = 4096
SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float16"})
DIGESTS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(40)]


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def clip(i: int) -> tuple[str, int, int]:
    """Clip number `i`: digest, start, end."""
    return DIGESTS[i % len(DIGESTS)], i * 3_000_000, (i + 1) * 3_000_000


def fill(root: Path, features: np.ndarray, segments: int) -> float:
    """Seconds to write all rows in so many segments."""
    timestamps_us = np.arange(16)

    def work() -> None:
        with CacheWriter(
            root, SPACE, {}, max_rows=-(-len(features) // segments), max_bytes=1 << 40, max_age_s=1e9
        ) as writer:
            for i, feature in enumerate(features):
                writer.add(Row(*clip(i), feature, timestamps_us))

    return timed(work)


def write_raw(path: Path, features: np.ndarray) -> None:
    """One plain file, synced."""
    with path.open("wb") as file:
        file.write(features.data)
        file.flush()
        os.fsync(file.fileno())


def read_raw(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A plain file into new memory."""
    result = np.empty(shape, np.float16)
    with path.open("rb", buffering=0) as file:
        view, at = memoryview(result).cast("B"), 0
        while at < len(view):
            at += file.readinto(view[at:])
    return result


def write_hdf5(path: Path, features: np.ndarray) -> None:
    """One HDF5 file with checksums, not synced."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(64, DIM), fletcher32=True)


def read_hdf5(path: Path) -> np.ndarray:
    """All of it, checksums verified."""
    with h5py.File(path) as file:
        return file["features"][:]


def measure_reading(folder: Path, rows: int, segments: int, turns: int) -> dict[str, float]:
    """Seconds and ratios of opening and loading."""
    features = np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32).astype(np.float16)
    raw, hdf5, root = folder / "raw.bin", folder / "features.h5", folder / "cache"
    fill(root, features, segments)
    write_raw(raw, features)
    write_hdf5(hdf5, features)
    figures = {"rows": rows, "segments": segments, "open_s": timed(lambda: FeatureCache.open(root))}
    if segments >= 32:
        shutil.rmtree(next(root.glob("spaces/*/index")))
        figures["open_without_checkpoint_s"] = timed(lambda: FeatureCache.open(root))
        with CacheWriter(root, SPACE, {}):
            pass  # leaving a writer brings the checkpoint up to date
    cache = FeatureCache.open(root)
    ids = [f"{digest[:16]}-{start}-{end}" for digest, start, end in map(clip, range(rows))]
    order = np.random.default_rng(1).permutation(rows)
    shuffled = [ids[i] for i in order]
    if not np.array_equal(cache.load(ids), features) or not np.array_equal(cache.load(shuffled), features[order]):
        raise SystemExit("the cache returned wrong rows")
    works: dict[str, Callable[[], object]] = {
        "read_raw_s": lambda: read_raw(raw, features.shape),
        "read_s": lambda: cache.load(ids),
        "read_shuffled_s": lambda: cache.load(shuffled),
        "read_hdf5_s": lambda: read_hdf5(hdf5),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            taken[name].append(timed(work))
    figures |= {name: statistics.median(times) for name, times in taken.items()}
    figures |= {
        "read_over_raw": figures["read_s"] / figures["read_raw_s"],
        "read_shuffled_over_raw": figures["read_shuffled_s"] / figures["read_raw_s"],
        "read_hdf5_over_raw": figures["read_hdf5_s"] / figures["read_raw_s"],
    }
    return {name: round(value, 5) for name, value in figures.items()}


def measure_writing(folder: Path, rows: int, segments: int) -> dict[str, float]:
    """Rows per second onto a disk."""
    features = np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32).astype(np.float16)
    seconds = {
        "write": fill(folder / "cache", features, segments),
        "write_raw": timed(lambda: write_raw(folder / "raw.bin", features)),
        "write_hdf5": timed(lambda: write_hdf5(folder / "features.h5", features)),
    }
    return {"rows": rows, "segments": segments} | {f"{name}_rows_per_s": round(rows / s) for name, s in seconds.items()}


def measure_full(folder: Path, rows: int = 1_600_000) -> dict[str, float]:
    """Rows per second, opening and iterating of a cache that does not fit the memory of a workstation."""
    block = np.random.default_rng(0).standard_normal((4096, DIM), dtype=np.float32).astype(np.float16)
    timestamps_us = np.arange(16)

    def write() -> None:
        with CacheWriter(folder / "cache", SPACE, {}, max_rows=16384, max_bytes=1 << 40, max_age_s=1e9) as writer:
            for i in range(rows):
                writer.add(Row(*clip(i), block[i % len(block)], timestamps_us))

    seconds = timed(write)
    open_s = timed(lambda: FeatureCache.open(folder / "cache"))
    started = time.perf_counter()
    iterated = iterate_memory(folder / "cache")
    iterate_s = time.perf_counter() - started
    return iterated | {
        "write_rows_per_s": round(rows / seconds),
        "open_s": round(open_s, 2),
        "iterate_s": round(iterate_s),
    }


def iterate_memory(root: Path) -> dict[str, float]:
    """Peak memory that opening and iterating adds, in a process of its own, MiB."""
    code = (
        "import json, re; from featurecache.store import FeatureCache\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        f"before = peak(); rows = sum(len(names) for names, _ in FeatureCache.open({str(root)!r}).iterate(1024))\n"
        "print(json.dumps({'rows': rows, 'added_mib': round(peak() - before, 1)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_scale(folder: Path, *, quick: bool) -> dict[str, dict[str, float]]:
    """Opening, claiming and planning in caches of many rows and segments."""
    rows, segments, recordings = (80_000, 200, 1000) if quick else (1_600_000, 1000, 100_000)
    parts = [folder / name for name in ("opening", "claims", "planning")]
    for part in parts:
        part.mkdir()
    opening = measure_opening(parts[0], rows, segments)
    few, many = (measure_claims(parts[1], count) for count in (10, segments))
    claims = {"segments": segments, "claim_ms_at_10": few, "claim_ms": many, "claim_ratio": many / few}
    shutil.rmtree(parts[1])
    found = {"opening": opening, "claims": claims, "planning": measure_planning(parts[2], recordings)}
    return {f"scale_{name}": {key: round(value, 3) for key, value in one.items()} for name, one in found.items()}


def main() -> None:
    """Run every size and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under 50 s")
    parser.add_argument("--full", action="store_true", help="also 1,600,000 rows: 13 GB of disk, some minutes")
    parser.add_argument("--folder", type=Path, help="the disk to write to")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    sizes = [(16384, segments) for segments in (1, 100, 1000)]  # smaller arrays fit reused memory: no honest floor
    if not options.quick:
        sizes += [(160_000, segments) for segments in (10, 100, 1000)]
    figures: dict[str, dict[str, float]] = {}
    for rows, segments in sizes:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            turns = 5 if rows > 100_000 or options.quick else 15
            figures[f"{rows}_rows_{segments}_segments"] = measure_reading(Path(folder), rows, segments, turns)
            if segments in (10, 100):
                figures[f"iterate_{rows}"] = iterate_memory(Path(folder) / "cache")
    for rows, segments in [(2048, 8)] if options.quick else [(16384, 4), (16384, 16), (16384, 64)]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures[f"write_{rows}_rows_{segments}_segments"] = measure_writing(Path(folder), rows, segments)
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        figures |= measure_scale(Path(folder), quick=options.quick)
    if options.full:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures["full"] = measure_full(Path(folder))
    first, last = (f"{sizes[0][0]}_rows_{segments}_segments" for segments in (1, 1000))
    targets: list[Target] = [
        ("load over raw readinto, 1 segment", figures[first]["read_over_raw"], 2.5, 4.0, "lower"),
        (
            "load over raw readinto, 1000 segments with the checkpoint",
            figures[last]["read_over_raw"],
            4.0,
            6.0,
            "lower",
        ),
        ("open with 1,000 new segments, s", figures["scale_opening"]["open_s"], 1.0, 2.0, "lower"),
        ("claim at 1,000 segments over 10", figures["scale_claims"]["claim_ratio"], 1.5, 3.0, "lower"),
        (
            "plan 1e5 recordings x 20 clips, nothing to do, CPU-s",
            figures["scale_planning"]["plan_cpu_s"],
            30.0,
            30.0,
            "lower",
        ),
        (
            "peak of that, the libraries included, MiB",
            figures["scale_planning"]["plan_peak_mib"],
            1024.0,
            1024.0,
            "lower",
        ),
    ]
    print_document("store", figures, targets, quick=options.quick, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
