"""What a long extraction costs beside its backbone: planning, claiming and opening, as the cache grows.

The recordings of the planned project are small files that only their digests tell apart, and a memo that knows them:
what is measured is a second `extract` over finished work, from the clip table to the plan. Features are 8 numbers wide,
since nothing here reads them. Used by `bench_store.py`.
"""

import hashlib
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.leases import acquire
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import open_project
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, FeatureCache, Row, format, layout
from featurecache.store.index import read_index, write_checkpoint
from featurecache.store.segment import Rows, encode_segment
from featurecache.store.writer import commit_segment

CLIP_S = 3
CLIPS = 20  # of a recording
DIM = 8
ROOT = Path(__file__).parents[1]
SPACES = {
    name: FeatureSpace({"tap": name, "pooling": "mean", "stored_dtype": "float16"})
    for name in ("final", "vision", "layer_2")
}


def content(number: int) -> bytes:
    """Of a recording that is none."""
    return f"recording {number}".encode()


def fill(root: Path, space: FeatureSpace, rows: int, segments: int, first: int = 0) -> Path:
    """Rows of recordings one after the other, in so many segments; the feature space's folder."""
    layout.make_cache(root)
    folder = layout.make_space(root, space)
    size = rows // segments
    for at in range(first, first + size * segments, size):
        recordings, clips = np.divmod(np.arange(at, at + size), CLIPS)
        names, place = np.unique(recordings, return_inverse=True)
        digests = b"".join(hashlib.sha256(content(int(name))).digest() for name in names)
        starts_us = clips * CLIP_S * 1_000_000
        made = Rows(
            features=np.random.default_rng(at).standard_normal((size, DIM)).astype(np.float16),
            video_sha256=np.frombuffer(digests, np.uint8).reshape(-1, 32)[place],
            span_us=np.stack([starts_us, starts_us + CLIP_S * 1_000_000], 1),
            timestamps_us=np.empty((size, 0), np.int64),
        )
        commit_segment(folder, format.new_segment_id(), encode_segment(space.fingerprint, made, {}))
    return folder


def measure_opening(folder: Path, rows: int, new_segments: int) -> dict[str, float]:
    """Time to open a cache with a checkpoint and newer segments, also of a CPU; MiB that lists of its clips take."""
    root, space = folder / "cache", SPACES["final"]
    space_folder = fill(root, space, rows, 100)
    index, _ = read_index(space_folder, space.fingerprint, {})
    write_checkpoint(space_folder, space.fingerprint, index)
    fill(root, space, 16 * new_segments, new_segments, first=rows)
    start, start_cpu = time.perf_counter(), time.process_time()
    FeatureCache.open(root)
    opened_s, opened_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    code = (
        "import json, re, sys; from featurecache.store import FeatureCache\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "cache = FeatureCache.open(sys.argv[1]); fingerprint = cache.spaces[0].fingerprint; before = peak()\n"
        "ids = cache.clip_ids(); a = peak(); del ids; clips = cache.clips(); b = peak()\n"
        "assert cache.missing(clips, fingerprint) == []\n"
        "print(json.dumps({'clip_ids_mib': a - before, 'clips_mib': b - before, 'missing_mib': peak() - b}))"
    )
    return {"rows": rows, "new_segments": new_segments, "open_s": opened_s, "open_cpu_s": opened_cpu_s} | _in_a_process(
        code, root
    )


def measure_claims(folder: Path, segments: int, recordings: int = 120) -> float:
    """Milliseconds of processor time to claim a recording, in a cache of so many segments in each feature space."""
    root = folder / f"claims_{segments}"
    for space in SPACES.values():
        fill(root, space, 96 * segments, segments)
    features = np.random.default_rng(0).standard_normal((CLIPS, DIM)).astype(np.float16)
    spent_s = 0.0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(CacheWriter(root, space, {}, max_rows=96)) for name, space in SPACES.items()
        }
        for number in range(-1, recordings):
            sha256 = hashlib.sha256(content(10**6 + number)).hexdigest()
            spans = [(clip * CLIP_S * 1_000_000, (clip + 1) * CLIP_S * 1_000_000) for clip in range(CLIPS)]
            clips = [ClipRecord(SimpleNamespace(sha256=sha256), *span, tuple(SPACES)) for span in spans]
            start = time.process_time()
            acquired = acquire(clips, writers, is_last_try=False)
            if number >= 0:  # the first one reads the cache
                spent_s += time.process_time() - start
            for number_of_clip, clip in enumerate(acquired):
                for name in clip.wanted:
                    writers[name].add(Row(sha256, *clip.span, features[number_of_clip], np.empty(0, np.int64)))
    return 1000 * spent_s / recordings


def measure_planning(folder: Path, recordings: int) -> dict[str, float]:
    """Processor seconds and peak MiB of planning an extraction with nothing to do."""
    (folder / "videos").mkdir()
    (folder / "featurecache.toml").write_text(
        f'[data]\nvideos = "videos"\nannotations = "none.csv"\nlabels = ["a"]\n'
        f'[features]\nmodel = "{ROOT / "featurecache/demo/backbone"}"\n'
    )
    project = open_project(folder)
    for number in range(recordings):
        (folder / "videos" / f"{number:07d}.mp4").write_bytes(content(number))
    with project.clips.open("w") as table:
        table.write("clip_id,recording,session,split,start_s,end_s,a\n")
        for number in range(recordings):
            digits = hashlib.sha256(content(number)).hexdigest()[:16]
            for start in range(0, CLIPS * CLIP_S, CLIP_S):
                end = start + CLIP_S
                name = f"{digits}-{start * 1_000_000}-{end * 1_000_000}"
                table.write(f"{name},{number:07d}.mp4,S{number:07d},train,{start},{end},1\n")
    time.sleep(2.5)  # a file is remembered when it did not change just now
    remember = (
        "import dataclasses, sys; from pathlib import Path; from featurecache.video import recordings as r\n"
        "from featurecache.project.settings import open_project; from featurecache.video.probing import VideoInfo\n"
        "project = open_project(Path(sys.argv[1])); memo = r.DigestMemo(project.digest_memo)\n"
        "info = dataclasses.asdict(VideoInfo(60_000_000, 320, 240, 0, 'h264', 'yuv420p', 25.0))\n"
        "for path in sorted(project.videos.iterdir()): memo.sha256(path); memo.remember(path, r._probed_by(), info)\n"
        "memo.save(); print('{}')"
    )
    _in_a_process(remember, folder)
    _, spaces = project_spaces(project)
    for space in spaces.values():
        fill(project.cache, space, recordings * CLIPS, max(1, recordings // 1000))
    with CacheWriter(project.cache, next(iter(spaces.values())), {}):
        pass  # leaving a writer brings the checkpoint up to date
    code = (
        "import json, re, sys, time; from pathlib import Path; from featurecache.project.settings import open_project\n"
        "from featurecache.extraction.plan import plan_extraction\n"
        "project = open_project(Path(sys.argv[1])); start = time.process_time(); plan = plan_extraction(project)\n"
        "spent = time.process_time() - start; assert (plan.todo, plan.failures) == (0, ()), plan.failures[:2]\n"
        "peak = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "print(json.dumps({'clips': plan.present, 'plan_cpu_s': spent, 'plan_peak_mib': peak}))"
    )
    return {"recordings": recordings} | _in_a_process(code, folder)


def _in_a_process(code: str, folder: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found
