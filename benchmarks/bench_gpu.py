"""What a GPU makes of the full 7B architecture: an extraction, a search over heads, and a LoRA step, each by its bound.

    python -m benchmarks.bench_gpu [--quick] [--device cuda] [--clips 24] [--trials 64]

LLaVA-NeXT-Video-7B with random weights in bfloat16 (`full_size.py`), 16 frames of 336 px a clip, made-up recordings of
1024 x 768 (`bench_decode.py`). By the clock.

- `extract`: `featurecache.extraction.pipeline.extract` from files to cache, in batches found from the memory. The bound
  is the clip's operations (`featurecache.backbones.cost`) at the speed of the model's own products, measured here;
  beside it stands 16.1 clips/s, which is 37.26 TFLOP a clip at 600 TFLOP/s. Idle is the time in which the model did
  not run.
- `tune`: `heads.search_heads` on 15,912 x 4096 drawn features.
- `lora`: forward and backward of a micro-batch from stored tokens, adapters of rank 128 in all layers, layers computed
  twice. The bound is three forwards of the language model: frozen weights need no gradient of their own.

With --quick a small model, small data and a CPU will do: it shows that the script works, not what a GPU can.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.bench_decode import CLIP_US, make, repeat
from benchmarks.bench_extract import H100_CLIPS_PER_S, KIND, SMALL, flop_per_s, make_model
from benchmarks.bench_search import make_data
from benchmarks.full_size import PROMPT, open_at_random, write_model_files
from benchmarks.targets import Target, judged
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.cost import Cost, clip_cost
from featurecache.backbones.family import Backbone
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.pipeline import extract
from featurecache.spec import feature_space, parse_feature
from featurecache.store import CacheWriter
from featurecache.video.recordings import find_recordings
from heads import SearchSpace, search_heads
from heads.finetuning.adapters import AdaptedNetwork
from heads.models import Front, LinearHead

FEATURE, TOKENS = "final/mean", "layer_0/tokens"
LABELS, RANK, MICRO_BATCH = 4, 128, 4
RECORDINGS, SCENE_CLIPS = 8, 4


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int | None:
    """Peak memory of a GPU since the last call; None on a CPU."""
    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def make_recordings(folder: Path, clips: int) -> None:
    """Recordings of one scene, each with a content of its own."""
    folder.mkdir()
    made = folder.with_name("scene.mp4")
    make({KIND: made}, "veryfast", seconds=min(clips, SCENE_CLIPS) * CLIP_US // 1_000_000)
    repeat(made, folder / "0.mp4", -(-clips // SCENE_CLIPS))
    whole = (folder / "0.mp4").read_bytes()
    for number in range(1, RECORDINGS):
        (folder / f"{number}.mp4").write_bytes(whole + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))


def open_model(folder: Path, *, quick: bool, frames: int, dtype: str, device: str) -> Backbone:
    """The full architecture with random weights, or with `quick` a small model."""
    if quick:
        make_model(folder, SMALL)
        return open_backbone(
            open_inputs(folder, prompt=PROMPT, frames=frames, resize="crop"), dtype=dtype, device=device
        )
    write_model_files(folder)
    return open_at_random(folder, frames=frames, device=device)


def measure_extraction(
    backbone: Backbone, cost: Cost, rate: float, root: Path, *, clips: int, dtype: str, device: str
) -> dict[str, Any]:
    """From files to cache."""
    recordings, _ = find_recordings(root / "videos")
    feature = parse_feature(FEATURE, backbone.inputs.taps)
    space = feature_space(backbone.inputs, feature, dtype=dtype, stored_dtype="float16", sha256_of=lambda _: "0" * 64)
    spans = [(k * CLIP_US, (k + 1) * CLIP_US) for k in range(clips)]
    work = [[ClipRecord(recording, *span, (FEATURE,)) for span in spans] for recording in recordings]
    peak_bytes(device)
    with CacheWriter(root / "cache.zarr", space, {}) as writer:
        done = extract(
            work,
            backbone,
            {FEATURE: writer},
            batch_size="auto",
            decoders=min(RECORDINGS, os.cpu_count() or 1),
            device=device,
        )
    if done.failures:
        raise SystemExit(f"every clip must be extractable, but: {done.failures[0].reason}")
    progress = done.progress
    clips_per_s = progress.extracted / progress.elapsed_s
    return {
        "clips": progress.extracted,
        "clips_per_s": clips_per_s,
        "h100_at_600_tflop": H100_CLIPS_PER_S,
        "tflop_per_clip": cost.flop / 1e12,
        "gemm_tflop_per_s": rate / 1e12,
        "share_of_bound": clips_per_s * cost.flop / rate,
        "share_of_bound_while_the_model_runs": progress.extracted / progress.model_s * cost.flop / rate,
        "idle_share": progress.idle_share,
        "waited_share": progress.waited_s / progress.elapsed_s,
        "batch_size": progress.batch_size,
        "peak_bytes": peak_bytes(device),
    }


def measure_search(folder: Path, *, quick: bool, trials: int, device: str) -> dict[str, Any]:
    """A search over heads."""
    N, D = (2000, 256) if quick else (15_912, 4096)
    data, _ = make_data(N, D, power_law=False, draw=0)
    peak_bytes(device)
    began = time.monotonic()
    best = search_heads(data, search_space=SearchSpace(), trials=trials, seed=0, folder=folder, device=device)
    return {
        "rows": N,
        "width": D,
        "trials": trials,
        "seconds": time.monotonic() - began,
        "value": best["value"],
        "peak_bytes": peak_bytes(device),
    }


def measure_lora(backbone: Backbone, cost: Cost, rate: float, *, device: str) -> dict[str, Any]:
    """A micro-batch, the third time."""
    shape = backbone.inputs.taps["layer_0"]
    head = LinearHead(Front(shape.width), LABELS).to(device)
    network = AdaptedNetwork(
        backbone,
        head,
        inputs=[FEATURE],
        tokens=TOKENS,
        rank=RANK,
        alpha=2 * RANK,
        dropout=0.0,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        gradient_checkpointing=True,
        seed=0,
    ).train()
    rows = {TOKENS: torch.randn(MICRO_BATCH, shape.steps * shape.tokens_per_step, shape.width).bfloat16().to(device)}
    targets = torch.ones(MICRO_BATCH, LABELS, device=device)
    peak_bytes(device)
    took = 0.0
    for _ in range(3):
        wait(device)
        began = time.monotonic()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            logits = network(rows)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), targets).backward()
        wait(device)
        took = time.monotonic() - began
    decoder = sum(part.flop for part in cost.parts if not part.per_frame)
    bound_s = MICRO_BATCH * 3 * decoder / rate
    return {
        "clips": MICRO_BATCH,
        "seconds": took,
        "bound_s": bound_s,
        "over_bound": took / bound_s,
        "peak_bytes": peak_bytes(device),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under 50 s on a CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=24, help="of each of 8 recordings")
    parser.add_argument("--trials", type=int, default=64)
    options = parser.parse_args()
    clips, trials, frames = (1, 4, SMALL.frames) if options.quick else (options.clips, options.trials, 16)
    dtype, device = "float32" if options.quick and options.device == "cpu" else "bfloat16", options.device
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_recordings(root / "videos", clips)
        backbone = open_model(root / "model", quick=options.quick, frames=frames, dtype=dtype, device=device)
        cost = clip_cost(backbone.inputs, ["final"])
        rate = flop_per_s({one for part in cost.parts for one in part.products}, dtype, device, 4)
        figures["extract"] = measure_extraction(backbone, cost, rate, root, clips=clips, dtype=dtype, device=device)
        print(figures["extract"], file=sys.stderr, flush=True)
        figures["lora"] = measure_lora(backbone, cost, rate, device=device)
        print(figures["lora"], file=sys.stderr, flush=True)
        del backbone
        figures["tune"] = measure_search(root / "tune", quick=options.quick, trials=trials, device=device)
        print(figures["tune"], file=sys.stderr, flush=True)
    share, idle, over = figures["extract"]["share_of_bound"], figures["extract"]["idle_share"], figures["lora"]
    targets: list[Target] = [
        ("extraction, share of the arithmetic bound", share, 0.6, 0.1, "higher"),
        ("extraction, share of the time without the model", idle, 0.1, 0.6, "lower"),
        ("LoRA step over its bound", over["over_bound"], 2.0, 8.0, "lower"),
    ]
    chip = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    machine = {"device": chip, "cores": os.cpu_count(), "torch": torch.__version__}
    print(
        json.dumps(
            {
                "benchmark": "gpu",
                "machine": machine,
                "figures": figures,
                "targets": judged(targets, quick=options.quick),
            }
        )
    )


if __name__ == "__main__":
    main()
