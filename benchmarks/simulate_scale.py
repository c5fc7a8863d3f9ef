"""A million hours of video, on paper: arithmetic, and a simulation of what workers do to each other.

    python -m benchmarks.simulate_scale [--quick]

`docs/scale.md` explains the figures. The arithmetic multiplies out the assumptions below. Two things are simulated,
event by event: workers that share a list of recordings by claims, by claims of blocks, or by fixed shares (how much
longer the run takes than its work divided evenly, for how many attempts to claim), and writers that commit to one log
by compare-and-swap (how many commits a second it takes, and how often one is tried). Writers that put an object of a
new name each need no simulation: nobody contends for it.
Nothing is read or written, and no object store is asked: latencies are assumptions.
"""

import argparse
import heapq
import os

import numpy as np

from benchmarks.targets import print_document

HOURS = 1_000_000
CLIPS_PER_HOUR = 1200  # 3 s each
ROW_BYTES = 4096 * 2
INDEX_BYTES = 60  # digest 32, span 16, segment, row and checksum 4 each
LOOKUP_BYTES = 16  # hash and prefix, made when an index is asked
SEGMENT_BYTES = 64 << 20
SEGMENT_OBJECTS = 13
CLIPS_PER_S = {"H100": 16.1, "RTX 4090": 3.5}  # 7B in bfloat16, by arithmetic: not measured
USD_PER_GPU_HOUR = {"H100": (2.0, 4.0), "RTX 4090": (0.35, 0.7)}
VIDEO_MBIT_S = 4
USD_PER_TB_MONTH = 23
SWAP_S = 0.05  # a conditional put that is answered
HOLD_S = 120.0  # a recording's computation


def arithmetic() -> dict[str, float]:
    """What follows from the assumptions alone."""
    clips = HOURS * CLIPS_PER_HOUR
    segments = clips * ROW_BYTES / SEGMENT_BYTES
    figures: dict[str, float] = {
        "clips": clips,
        "feature_tb": clips * ROW_BYTES / 1e12,
        "video_pb": HOURS * 3600 * VIDEO_MBIT_S / 8 / 1e9,
        "segments": segments,
        "objects": segments * SEGMENT_OBJECTS,
        "index_gb": clips * INDEX_BYTES / 1e9,
        "index_with_lookup_gb": clips * (INDEX_BYTES + LOOKUP_BYTES) / 1e9,
        "feature_usd_month": clips * ROW_BYTES / 1e12 * USD_PER_TB_MONTH,
        "video_usd_month": HOURS * 3600 * VIDEO_MBIT_S / 8 / 1e6 * USD_PER_TB_MONTH,
    }
    for name, rate in CLIPS_PER_S.items():
        hours = clips / rate / 3600
        figures |= {f"{name}_hours": hours} | {
            f"{name}_usd_{which}": hours * usd
            for which, usd in zip(("low", "high"), USD_PER_GPU_HOUR[name], strict=True)
        }
    return figures


def makespan(workers: int, recordings: int, block: int, seed: int = 0) -> float:
    """How much longer a run takes than its work divided evenly: 1 is perfect.

    Args:
        workers: They start together and never die.
        recordings: Of unequal length.
        block: Recordings that are claimed at once; 0: each worker has a fixed share, by digest.
        seed: Of lengths and digests.
    """
    random = np.random.default_rng(seed)
    seconds = random.gamma(4, HOLD_S / 4, recordings)
    if block == 0:
        busy_s = np.bincount(random.integers(workers, size=recordings), seconds, workers)
        return float(busy_s.max() * workers / seconds.sum())
    free_s = [0.0] * workers
    for first in range(0, recordings, block):
        heapq.heapreplace(free_s, free_s[0] + seconds[first : first + block].sum())
    return float(max(free_s) * workers / seconds.sum())


def swap_commits(writers: int, every_s: float, duration_s: float = 600.0, seed: int = 0) -> dict[str, float]:
    """Commits by compare-and-swap on one log: what a second takes in, and how often one commit is tried.

    A try reads the log's head and, `SWAP_S` later, succeeds where nobody else succeeded in between.
    """
    random = np.random.default_rng(seed)
    events = [(random.uniform(0, every_s), writer, -1) for writer in range(writers)]  # -1: reads the head next
    heapq.heapify(events)
    head = done = tries = 0
    while events and events[0][0] < duration_s:
        now_s, writer, seen = heapq.heappop(events)
        if seen < 0:
            heapq.heappush(events, (now_s + SWAP_S, writer, head))
            continue
        tries += 1
        if seen == head:
            head, done = head + 1, done + 1
            heapq.heappush(events, (now_s + every_s * random.uniform(0.9, 1.1), writer, -1))
        else:
            heapq.heappush(events, (now_s + random.exponential(SWAP_S), writer, -1))
    return {
        "wanted_per_s": writers / every_s,
        "done_per_s": done / duration_s,
        "tries_per_commit": tries / max(done, 1),
    }


def main() -> None:
    """Print every figure; the last line is one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller lists, a few seconds")
    options = parser.parse_args()
    recordings, crowds = (20_000, (16, 256)) if options.quick else (1_000_000, (16, 256, 1024))
    ways = {"claims_of_1": 1, "claims_of_64": 64, "fixed_shares": 0}
    claims = {
        f"{way}_{workers}_workers": {
            "over_even": makespan(workers, recordings, block),
            "attempts": workers * -(-recordings // block) if block else 0,  # each worker goes once through the list
        }
        for way, block in ways.items()
        for workers in crowds
    }
    swaps = {f"writers_{writers}": swap_commits(writers, 60.0) for writers in (16, 256, 1024)}
    figures = {"arithmetic": arithmetic(), "claims": claims, "one_log": swaps}
    print_document("simulate_scale", figures, [], load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
