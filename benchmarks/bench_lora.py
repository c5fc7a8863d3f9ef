"""A training step of LoRA from cached tokens beside the plain recipe from pixels, and beside the arithmetic.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_lora [--quick] [--rounds 3]

The mid-size random model, recordings and prompt of bench_extract.py; adapters of rank 16 on q, k, v, o; float32 on a
CPU, CPU time with one thread, batches of one clip.

`plain`: decode the clip, the model's processor, the whole model with PEFT, all its hidden states and logits, mean of
the last state at the video tokens, loss, backward. `ours`: read the clip's tokens from the cache, our network with
adapters, the same loss, backward. Both get the same clips in turn and their gradients must agree. `deep`: ours with
adapters in the last quarter of the layers alone, from the tokens below it. `floor`: matrix products forward and back
to the states (frozen weights need no gradient of their own), attention forward and twice that back, adapters, at the
speed of the model's own products, measured between the rounds. `twice`: ours with each layer computed twice (gradient
checkpointing), the default of `featurecache lora-finetune`. Memory is the peak of a process beyond what it held when
its model was loaded, with every large block given back at once (MALLOC_MMAP_THRESHOLD_): else it were that of a heap.

With --quick everything is smaller and the ratios are not those of the
mid-size model; in both, the plain recipe's decoding and vision tower weigh more beside a small language model than
beside a large one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.bench_decode import CLIP_US, make
from benchmarks.bench_extract import KIND, PROMPT, Naive, Size, flop_per_s, make_model, status_bytes, taken
from benchmarks.targets import Target, print_document
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.cost import Product, clip_cost
from featurecache.backbones.family import Inputs
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.pipeline import extract
from featurecache.spec import feature_space, parse_feature
from featurecache.store import CacheWriter, FeatureCache
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import find_recordings
from heads.finetuning.adapters import AdaptedNetwork
from heads.models import Front, LinearHead

LABELS, RANK = 4, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TOLERANCE = 1e-4
Step = Callable[[int], None]
"""Forward and backward of one clip, by its number."""


def loss_of(logits: Tensor) -> Tensor:
    """The same for every way."""
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))


def make_network(model: Path, size: Size, first: int, *, checkpointing: bool = False) -> AdaptedNetwork:
    """Ours from a layer on; its adapters change something, so that every gradient does."""
    inputs = open_inputs(model, prompt=PROMPT, frames=size.frames, resize="crop")
    torch.manual_seed(0)
    head = LinearHead(Front(size.hidden), LABELS)
    nn.init.normal_(head.output.weight)
    network = AdaptedNetwork(
        open_backbone(inputs, dtype="float32", device="cpu"),
        head,
        inputs=["final/mean"],
        tokens=f"layer_{first}/tokens",
        rank=RANK,
        alpha=2 * RANK,
        dropout=0.0,
        targets=TARGETS,
        gradient_checkpointing=checkpointing,
        seed=0,
    ).train()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return network


def extract_tokens(model: Path, video: Path, size: Size, root: Path, layers: list[int]) -> float:
    """Puts the tokens of a recording's clips at these layers into a cache; CPU seconds a clip for the first of them."""
    inputs = open_inputs(model, prompt=PROMPT, frames=size.frames, resize="crop")
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    (recording,), _ = find_recordings(video.parent)
    spans = [(k * CLIP_US, (k + 1) * CLIP_US) for k in range(size.clips)]
    seconds = []
    for layer in layers:
        name = f"layer_{layer}/tokens"
        kept = parse_feature(name, inputs.taps)
        space = feature_space(inputs, kept, dtype="float32", stored_dtype="float32", sha256_of=DigestMemo(None).sha256)
        with CacheWriter(root, space, {}) as writer:
            done, took = taken(
                lambda name=name, writer=writer: extract(
                    [[ClipRecord(recording, *span, (name,)) for span in spans]],
                    backbone,
                    {name: writer},
                    batch_size=1,
                    decoders=2,
                    device="cpu",
                ),
                "cpu",
            )
        if done.failures:
            raise SystemExit(f"every clip must be had, but: {done.failures[0].reason}")
        seconds.append(took / size.clips)
    return seconds[0]


def our_step(network: AdaptedNetwork, root: Path, video: Path, first: int) -> Step:
    """Ours, from the cache on."""
    cache = FeatureCache.open(root)
    (recording,), _ = find_recordings(video.parent)

    def step(clip: int) -> None:
        name = f"{recording.sha256[:16]}-{clip * CLIP_US}-{(clip + 1) * CLIP_US}"
        rows = torch.from_numpy(cache.load([name], f"layer_{first}", "tokens"))
        loss_of(network({f"layer_{first}/tokens": rows})).backward()

    return step


class Plain:
    """The recipe people write: `preprocess` from the file, `learn` on the device."""

    def __init__(self, model: Path, video: Path, size: Size, adapter: Path, *, checkpointing: bool = False) -> None:
        self.naive, self.video = Naive(model, size.frames, "float32", "cpu"), video
        self.model = self.naive.model.requires_grad_(False)
        decoder = self.model.model.language_model
        self.adapted = PeftModel.from_pretrained(decoder, adapter, is_trainable=True, local_files_only=True)
        if checkpointing:
            decoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        self.head = nn.Linear(size.hidden, LABELS)
        self.model.train()

    def preprocess(self, clip: int) -> Any:
        """What the processor makes of a clip."""
        return self.naive.batch(self.video, clip * CLIP_US, (clip + 1) * CLIP_US)

    def learn(self, batch: Any) -> None:
        """Forward and backward."""
        states = self.model(**batch, output_hidden_states=True, use_cache=False).hidden_states[-1]
        is_video = batch["input_ids"][0] == self.naive.processor.video_token_id
        loss_of(self.head(states[:, is_video].mean(1))).backward()

    def step(self, clip: int) -> None:
        """All of it."""
        self.learn(self.preprocess(clip))


def step_flop(inputs: Inputs, size: Size) -> tuple[float, tuple[Product, ...]]:
    """Operations of a step's forward and backward, and the products that the forward is made of."""
    _, language, attention = clip_cost(inputs, ["final"]).parts
    _, projector = clip_cost(inputs, ["layer_0"]).parts
    tokens = attention.attentions[0].tokens
    adapters = size.layers * len(TARGETS) * 2 * (2 * tokens * size.hidden * RANK)
    not_needed = 3 * 2 * tokens * size.hidden**2  # nothing below the first layer wants a gradient
    flop = 2 * (language.flop - projector.flop) + 3 * attention.flop + 3 * adapters - not_needed
    return flop, language.products


def gradients(parameters: Any) -> Tensor:
    """All of them as one vector; forgotten then."""
    found = []
    for _, parameter in sorted(parameters, key=lambda item: item[0]):
        if parameter.requires_grad and parameter.grad is not None:
            found.append(parameter.grad.flatten().clone())
            parameter.grad = None
    return torch.cat(found)


def measure(folder: Path, size: Size, rounds: int) -> dict[str, Any]:
    """Rounds of all ways on the clips of a recording."""
    model, video, root, adapter = folder / "model", folder / "videos/0.mp4", folder / "cache.zarr", folder / "adapter"
    deep = size.layers * 3 // 4
    extract_s = extract_tokens(model, video, size, root, [0, deep])
    ours, from_deep = make_network(model, size, 0), make_network(model, size, deep)
    ours.write_adapter(adapter)
    plain = Plain(model, video, size, adapter)
    with torch.no_grad():
        plain.head.weight.copy_(ours.head.output.weight)
        plain.head.bias.copy_(ours.head.output.bias)
    twice = our_step(make_network(model, size, 0, checkpointing=True), root, video, 0)
    our, deeper = our_step(ours, root, video, 0), our_step(from_deep, root, video, deep)
    for step in (our, plain.step):
        step(0)
    theirs, mine = (
        gradients((name, one) for name, one in way.named_parameters() if "lora" in name)
        for way in (plain.adapted, ours.language_model)
    )
    difference = float((theirs - mine).norm() / theirs.norm())
    if difference > TOLERANCE:
        raise SystemExit(f"gradients must agree within {TOLERANCE}, but they differ by {difference} of their size")
    deeper(0)
    inputs = open_inputs(model, prompt=PROMPT, frames=size.frames, resize="crop")
    flop, products = step_flop(inputs, size)
    found: list[dict[str, float]] = []
    for turn in range(rounds * size.clips):
        clip = turn % size.clips
        batch, decode_s = taken(lambda clip=clip: plain.preprocess(clip), "cpu")
        _, plain_s = taken(lambda batch=batch: plain.learn(batch), "cpu")
        _, ours_s = taken(lambda clip=clip: our(clip), "cpu")
        _, twice_s = taken(lambda clip=clip: twice(clip), "cpu")
        _, deep_s = taken(lambda clip=clip: deeper(clip), "cpu")
        floor_s = flop / flop_per_s(set(products), "float32", "cpu", 1)
        found.append(
            {
                "plain_s": decode_s + plain_s,
                "plain_decode_s": decode_s,
                "ours_s": ours_s,
                "twice_s": twice_s,
                "deep_s": deep_s,
                "floor_s": floor_s,
                "plain_over_ours": (decode_s + plain_s) / ours_s,
                "plain_over_deep": (decode_s + plain_s) / deep_s,
                "plain_step_over_ours": plain_s / ours_s,
                "ours_over_floor": ours_s / floor_s,
                "ours_over_deep": ours_s / deep_s,
                "deep_share_of_expected_gain": ours_s / deep_s * (size.layers - deep) / size.layers,
            }
        )
        print({key: round(value, 3) for key, value in found[-1].items()}, file=sys.stderr, flush=True)
    figures: dict[str, Any] = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return figures | {
        "tokens_s": extract_s,
        "tokens_over_epoch": extract_s / figures["ours_s"],
        "plain_over_ours_lowest": min(one["plain_over_ours"] for one in found),
        "plain_over_ours_highest": max(one["plain_over_ours"] for one in found),
        "largest_difference_of_gradients": difference,
    }


def peak_beyond_weights(kind: str, folder: Path, size: Size) -> int:
    """Bytes that this process holds at most in two steps, beyond what it held when its model was loaded."""
    torch.set_num_threads(1)
    video, checkpointing = folder / "videos/0.mp4", kind.endswith("twice")
    if kind.startswith("plain"):
        plain = Plain(folder / "model", video, size, folder / "adapter", checkpointing=checkpointing)
        loaded, step = plain.model, plain.step
    else:
        first = size.layers * 3 // 4 if kind == "deep" else 0
        network = make_network(folder / "model", size, first, checkpointing=checkpointing)
        loaded, step = network._backbone[0].model, our_step(network, folder / "cache.zarr", video, first)
    for parameter in loaded.parameters():
        float(parameter.sum())  # a mapped weight is in memory only when it was read
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    for clip in range(2):
        step(clip)
    return status_bytes("VmHWM") - before


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(hidden=256, mlp=688, layers=4, vision_hidden=128, vision_layers=3, frames=8, clips=2)
    if not options.quick:
        size = Size(clips=2)
    if options.peak:
        kind, folder = options.peak
        print(peak_beyond_weights(kind, Path(folder), size))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        make_model(folder / "model", size)
        make({KIND: folder / "videos/0.mp4"}, "veryfast", seconds=size.clips * CLIP_US // 1_000_000)
        figures = measure(folder, size, options.rounds)
        kinds = ["plain", "ours", "twice"] + ([] if options.quick else ["plain_twice", "deep"])
        peaks = {}
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
        for kind in kinds:
            command = [sys.executable, "-m", "benchmarks.bench_lora", "--peak", kind, str(folder), *sys.argv[1:]]
            peaks[kind] = int(
                subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()[-1]
            )
    figures["peak_ours_over_plain"] = peaks["ours"] / peaks["plain"]
    figures["peak_bytes_beyond_weights"] = peaks
    targets: list[Target] = [
        ("our step over its floor", figures["ours_over_floor"], 1.15, 2.0, "lower"),
        (
            "our peak memory beyond weights, gradient checkpointing as by default, over plain",
            peaks["twice"] / peaks["plain"],
            0.5,
            0.5,
            "lower",
        ),
        (
            "share of the arithmetic's gain from three quarters of the depth",
            figures["deep_share_of_expected_gain"],
            0.8,
            0.6,
            "higher",
        ),
    ]
    print_document("lora", figures, targets, quick=options.quick, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
