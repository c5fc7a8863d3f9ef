"""Extraction beside the recipe people write with transformers, and beside the arithmetic it cannot go below.

    python -m benchmarks.bench_extract [--quick] [--rounds 3] [--device cuda]

One pinned mid-size LLaVA-NeXT-Video with random weights (hidden 1024, 8 layers; CLIP 6 x 256; vocabulary 32,064), 16
frames at 336 px, a prompt with 60 tokens after the video, recordings of 1024 x 768 at 25 fps, clips of 3 s end to end.

`naive`: for each clip seek and decode it to RGB, pick its frames, the model's processor, the whole model with
`output_hidden_states=True`, mean of the last at the video tokens. `ours`:
`featurecache.extraction.pipeline.extract`, from file to cache. Both get the same clips of the same recording in turn,
and their features must agree. `floor`: the operations of
`featurecache.backbones.cost` at the speed of the model's own matrix products, measured between the rounds.

On a CPU everything is CPU time with one thread for products, in batches of one clip; a busy machine changes it little.
On a CUDA device it is time by the clock, in bfloat16 and in batches found from the memory; `as_seven_billion` is what
the measured TFLOP/s would make of the 7B model's 37.26 TFLOP a clip, to be read beside an H100's 16.1 at 600 TFLOP/s.

Memory is the peak of a process beyond what it held when its model was loaded. With --quick everything is smaller and
the ratios are not those of the pinned model.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import av
import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from benchmarks.bench_decode import CLIP_US, make, measure_preprocessing
from benchmarks.full_size import plain_processor, write_model_files
from benchmarks.targets import Target, print_document
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.cost import Product, clip_cost
from featurecache.backbones.family import Backbone
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.pipeline import Progress, extract
from featurecache.spec import feature_space, parse_feature
from featurecache.store import CacheWriter, FeatureCache
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import Recording, find_recordings

KEPT = "final/mean"
PROMPT = "user: describe the hand <video> " + "hand " * 60
SEVEN_BILLION_TFLOP, H100_CLIPS_PER_S = 37.26, 16.1
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Of the differences between the two, over the differences from clip to clip."""
KIND = "h264, 3 B-frames"
"""Of `bench_decode`'s recordings."""


@dataclass(frozen=True)
class Size:
    """Of the model and of a round."""

    hidden: int = 1024
    mlp: int = 2752
    layers: int = 8
    vision_hidden: int = 256
    vision_layers: int = 6
    frames: int = 16
    clips: int = 4


SMALL = Size(hidden=512, mlp=1376, layers=3, vision_hidden=128, vision_layers=3, frames=8, clips=3)


def make_model(folder: Path, size: Size) -> None:
    """Writes the whole model with its processor."""
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=4 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_hidden // 64,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=32_064,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 128,
            max_position_embeddings=4096,
            pad_token_id=3,
        ),
        image_token_index=4,
        video_token_index=5,
    )
    write_model_files(folder, config=config)
    torch.manual_seed(0)
    LlavaNextVideoForConditionalGeneration(config).save_pretrained(folder)


class Naive:
    """The recipe people write."""

    def __init__(self, folder: Path, frames: int, dtype: str, device: str) -> None:
        self.processor = plain_processor(folder)
        kind = getattr(torch, dtype)
        self.model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=kind).eval().to(device)
        self.frames = frames

    def batch(self, path: Path, start_us: int, end_us: int) -> Any:
        """What the processor makes of one clip."""
        with av.open(str(path)) as container:
            container.seek(start_us)
            pictures = []
            for frame in container.decode(video=0):
                if frame.time * 1e6 >= end_us - 1:
                    break
                if frame.time * 1e6 >= start_us - 1:
                    pictures.append(frame.to_ndarray(format="rgb24"))
        chosen = np.stack([pictures[int((k + 0.5) * len(pictures) / self.frames)] for k in range(self.frames)])
        batch = self.processor(text=[PROMPT], videos=[chosen], do_sample_frames=False, return_tensors="pt")
        return batch.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def clip(self, path: Path, start_us: int, end_us: int) -> npt.NDArray[np.float32]:
        """The feature of one clip, (D,)."""
        batch = self.batch(path, start_us, end_us)
        out = self.model(**batch, output_hidden_states=True)
        is_video = batch["input_ids"][0] == self.processor.video_token_id
        return out.hidden_states[-1][0, is_video].float().mean(0).cpu().numpy()


class Ours:
    """`extract`, from file to cache."""

    def __init__(self, folder: Path, frames: int, dtype: str, device: str) -> None:
        inputs = open_inputs(folder, prompt=PROMPT, frames=frames, resize="crop")
        self.backbone: Backbone = open_backbone(inputs, dtype=dtype, device=device)  # type: ignore[arg-type]
        self.space = feature_space(
            inputs,
            parse_feature(KEPT, inputs.taps),
            dtype=dtype,
            stored_dtype="float32",
            sha256_of=DigestMemo(None).sha256,
        )
        self.device = device

    def clips(self, recording: Recording, spans: list[tuple[int, int]]) -> tuple[npt.NDArray[np.float32], Progress]:
        """The features of a recording's clips, (N, D), and where the time went."""
        with tempfile.TemporaryDirectory() as name:
            root = Path(name) / "features.zarr"
            with CacheWriter(root, self.space, {}) as writer:
                done = extract(
                    [[ClipRecord(recording, *span, (KEPT,)) for span in spans]],
                    self.backbone,
                    {KEPT: writer},
                    batch_size="auto" if self.device == "cuda" else 1,
                    decoders=2,
                    device=self.device,
                )
            if done.failures:
                raise SystemExit(f"every clip must be had, but: {done.failures[0].reason}")
            cache = FeatureCache.open(root)
            rows = [f"{recording.sha256[:16]}-{start_us}-{end_us}" for start_us, end_us in spans]
            return cache.load(rows, "final", "mean"), done.progress


def taken(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What work gives, and the seconds it took: of the CPU, or by the clock where a GPU works."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, clock() - began


def flop_per_s(products: set[Product], dtype: str, device: str, batch: int) -> float:
    """Of the model's own mix of matrix products, at their full size."""
    spent = total = 0.0
    for one in products:
        states = torch.randn(batch * one.rows, one.inner, device=device).to(getattr(torch, dtype))
        matrix = torch.randn(one.columns, one.inner, device=device).to(getattr(torch, dtype))
        torch.nn.functional.linear(states[:256], matrix)
        turns = 20 if device == "cuda" else 1

        def run(states: torch.Tensor = states, matrix: torch.Tensor = matrix, turns: int = turns) -> None:
            for _ in range(turns):
                torch.nn.functional.linear(states, matrix)

        spent += taken(run, device)[1] / turns / batch * one.count
        total += one.flop
    return total / spent


def measure(model: Path, videos: Path, size: Size, rounds: int, dtype: str, device: str) -> dict[str, Any]:
    """Rounds of naive, ours and the floor on the clips of one recording after another."""
    naive, ours = Naive(model, size.frames, dtype, device), Ours(model, size.frames, dtype, device)
    cost = clip_cost(ours.backbone.inputs, ["final"])
    products = {one for part in cost.parts for one in part.products}
    recordings, _ = find_recordings(videos)
    spans = [(k * CLIP_US, (k + 1) * CLIP_US) for k in range(size.clips)]
    naive.clip(recordings[0].path, *spans[0])
    ours.clips(recordings[0], spans[:1])
    found: list[dict[str, float]] = []
    worst = 0.0
    for turn in range(rounds):
        recording = recordings[turn % len(recordings)]
        theirs, naive_s = taken(
            lambda path=recording.path: np.stack([naive.clip(path, *span) for span in spans]), device
        )
        (features, progress), ours_s = taken(lambda recording=recording: ours.clips(recording, spans), device)
        rate = flop_per_s(products, dtype, device, progress.batch_size)
        spread = np.linalg.norm(theirs - theirs.mean(0))  # from clip to clip
        worst = max(worst, float(np.linalg.norm(features - theirs) / spread))
        found.append(
            {
                "naive_s": naive_s / len(spans),
                "ours_s": ours_s / len(spans),
                "speedup": naive_s / ours_s,
                "floor_s": cost.flop / rate,
                "over_floor": ours_s / len(spans) / (cost.flop / rate),
                "gemm_tflop_per_s": rate / 1e12,
                "elapsed_over_model": progress.elapsed_s / progress.model_s,
                "model_share": progress.model_s / progress.elapsed_s,
                "preprocess_share": progress.preprocess_s / progress.elapsed_s,
                "waited_share": progress.waited_s / progress.elapsed_s,
                "write_share": progress.write_s / progress.elapsed_s,
                "batch_size": progress.batch_size,
            }
        )
        print({key: round(value, 3) for key, value in found[-1].items()}, file=sys.stderr, flush=True)
    if worst > TOLERANCE[dtype]:
        raise SystemExit(
            f"features must agree within {TOLERANCE[dtype]}, but they differ by {worst} of the clips' spread"
        )
    figures = {key: statistics.median(one[key] for one in found) for key in found[0]}
    tflop = {part.name: part.flop / 1e12 for part in cost.parts}
    clips_per_s = 1 / figures["ours_s"]
    seven = clips_per_s * sum(tflop.values()) / SEVEN_BILLION_TFLOP
    return figures | {
        "tflop_per_clip": tflop,
        "clips_per_s": clips_per_s,
        "as_seven_billion": seven,
        "h100_at_600_tflop": H100_CLIPS_PER_S,
        "speedup_lowest": min(one["speedup"] for one in found),
        "speedup_highest": max(one["speedup"] for one in found),
        "largest_difference_over_spread": worst,
    }


def status_bytes(key: str) -> int:
    """A line of this process's memory, in bytes."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) * 1024


def peak_beyond_weights(kind: str, model: Path, videos: Path, size: Size) -> int:
    """Bytes that this process holds at most while it works, beyond what it held when its model was loaded."""
    torch.set_num_threads(1)
    recordings, _ = find_recordings(videos)
    spans = [(k * CLIP_US, (k + 1) * CLIP_US) for k in range(2)]
    if kind == "naive":
        naive = Naive(model, size.frames, "float32", "cpu")
        loaded, work = naive.model, lambda: [naive.clip(recordings[0].path, *span) for span in spans]
    else:
        ours = Ours(model, size.frames, "float32", "cpu")
        loaded, work = ours.backbone.model, lambda: ours.clips(recordings[0], spans)  # type: ignore[attr-defined]
    for parameter in loaded.parameters():
        float(parameter.sum())  # a mapped weight is in memory only when it was read
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    work()
    return status_bytes("VmHWM") - before


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "MODEL", "VIDEOS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SMALL if options.quick else Size(clips=64) if options.device == "cuda" else Size()
    if options.peak:
        kind, model, videos = options.peak
        print(peak_beyond_weights(kind, Path(model), Path(videos), size))
        return
    if options.device == "cpu":
        torch.set_num_threads(1)
    rounds, turns = (1, 1) if options.quick else (options.rounds, 3)
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as name:
        model, videos = Path(name) / "model", Path(name) / "videos"
        videos.mkdir()
        make_model(model, size)
        make({KIND: videos / "0.mp4"}, "veryfast", seconds=size.clips * CLIP_US // 1_000_000)
        figures = measure(model, videos, size, rounds, dtype, options.device)
        figures["preprocess"] = measure_preprocessing(videos / "0.mp4", turns)
        peaks = {}
        for kind in ("naive", "ours"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.bench_extract",
                "--peak",
                kind,
                str(model),
                str(videos),
                *sys.argv[1:],
            ]
            peaks[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        figures["peak_bytes_beyond_weights"] = peaks
    targets: list[Target] = [
        ("time over the floor", figures["over_floor"], 1.12, 2.5, "lower"),
        ("our peak memory beyond weights over naive", peaks["ours"] / peaks["naive"], 1 / 3, 0.5, "lower"),
        (
            "naive decoding and preprocessing over ours",
            figures["preprocess"]["usual_over_ours"],
            3.0,
            2.0,
            "higher",
        ),
    ]
    is_cuda = options.device == "cuda"
    chip = {"device": torch.cuda.get_device_name()} if is_cuda else {}
    print_document("extract", figures, targets, quick=options.quick, torch=torch.__version__, **chip)


if __name__ == "__main__":
    main()
