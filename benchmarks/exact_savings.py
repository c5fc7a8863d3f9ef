"""What each exact saving of extraction is worth, one after the other, with the same features.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.exact_savings [--quick] [--rounds 3]

The mid-size random model and prompt of bench_extract.py, one clip of noise pictures, float32, CPU time of one thread.
Each line of `seconds` adds one saving to the line above; all are taken in turn in each round, and the last of them is
the backbone itself. Then, from the backbone: a tap below the top, overlapping clips with and without shared frames,
four clips at once, and bfloat16. A ratio above 1 is a saving. Features must agree with the first line's; bfloat16's are
not compared.

Not here: decoding and preprocessing (bench_extract.py), and the split of an out-of-memory batch, which saves a run.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration

from benchmarks.bench_extract import PROMPT, SMALL, Size, make_model, taken
from benchmarks.full_size import plain_processor
from benchmarks.targets import Target, print_document
from featurecache.backbones import open_backbone, open_inputs

TOLERANCE = 1e-5
"""Of a feature's largest difference, over its largest value."""


class Plain:
    """The plain forward of one clip, and what can be taken off it."""

    def __init__(self, folder: Path, pictures: np.ndarray) -> None:
        processor = plain_processor(folder)
        self.model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.batch = processor(text=[PROMPT], videos=[pictures], do_sample_frames=False, return_tensors="pt")
        self.is_video = self.batch["input_ids"][0] == processor.video_token_id
        self.end = int(self.is_video.nonzero().max()) + 1

    def pooled(self, states: Tensor) -> Tensor:
        """Mean over the video tokens: (S, D) -> (D,)."""
        return states[self.is_video[: len(states)]].mean(0)

    def whole(self) -> Tensor:
        """With logits, cache and every layer's states."""
        return self.pooled(self.model(**self.batch, output_hidden_states=True).hidden_states[-1][0])

    def inner(self, **changes: Any) -> Tensor:
        """The inner model's last state."""
        return self.pooled(self.model.model(**self.batch, **changes).last_hidden_state[0])

    def cut(self, *, mask: bool = True) -> Tensor:
        """Without what follows the last video token, and without a mask."""
        ids = self.batch["input_ids"][:, : self.end]
        videos = self.batch["pixel_values_videos"]
        given = {"attention_mask": torch.ones_like(ids)} if mask else {}
        out = self.model.model(input_ids=ids, pixel_values_videos=videos, use_cache=False, **given)
        return self.pooled(out.last_hidden_state[0])


def ladder(plain: Plain, backbone: Any, pixels: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The lines, each with one saving more."""
    return {
        "whole model, all states, logits, cache": plain.whole,
        "inner model: no logits, no list of states": plain.inner,
        "no key-value cache": lambda: plain.inner(use_cache=False),
        "nothing after the last video token": plain.cut,
        "no mask": lambda: plain.cut(mask=False),
        "the backbone: tower stopped at its layer, frames by fours": lambda: final(backbone, pixels),
    }


def final(backbone: Any, pixels: Tensor) -> Tensor:
    """The feature of the top layer: encoded by fours, (D,)."""
    return states_of(backbone, encoded_by_fours(backbone, pixels), "final")[0].flatten(0, -2).mean(0)


def encoded_by_fours(backbone: Any, pixels: Tensor) -> Tensor:
    """Frames as the loop encodes them on a CPU."""
    return torch.cat([backbone.encode_frames(some, ["final"]) for some in torch.split(pixels, 4)])[None]


def states_of(backbone: Any, encoded: Tensor, tap: str) -> Tensor:
    """A tap's states at the video tokens of encoded clips (B, T, ...)."""
    ((_, states),) = backbone.states(encoded, [tap])
    tokens: Tensor = states.tokens
    return tokens


@torch.inference_mode()
def measure(folder: Path, size: Size, rounds: int) -> dict[str, Any]:
    """Seconds of each line, and ratios from the backbone."""
    pictures = np.random.default_rng(0).integers(0, 256, (size.frames, 336, 336, 3), dtype=np.uint8)
    plain = Plain(folder, pictures)
    inputs = open_inputs(folder, prompt=PROMPT, frames=size.frames, resize="crop")
    backbone: Any = open_backbone(inputs, dtype="float32", device="cpu")
    pixels = backbone.normalize(inputs.frame_resize.resized(torch.from_numpy(pictures)))
    lines = ladder(plain, backbone, pixels)
    encoded = encoded_by_fours(backbone, pixels)
    below = f"layer_{3 * size.layers // 4}"
    half = size.frames // 2
    half_bfloat16: Any = open_backbone(inputs, dtype="bfloat16", device="cpu")
    others: dict[str, Callable[[], Any]] = {
        "top": lambda: states_of(backbone, encoded, "final"),
        "below": lambda: states_of(backbone, encoded, below),
        "frames": lambda: encoded_by_fours(backbone, pixels),
        "new frames": lambda: encoded_by_fours(backbone, pixels[:half]),
        "four": lambda: states_of(backbone, encoded.expand(4, *encoded.shape[1:]).contiguous(), "final"),
        "bfloat16": lambda: final(half_bfloat16, pixels.bfloat16()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*lines, *others)}
    reference, worst = plain.whole(), 0.0
    for _ in range(rounds):
        for name, work in lines.items():
            feature, spent = taken(work, "cpu")
            seconds[name].append(spent)
            worst = max(worst, float((feature - reference).abs().max() / reference.abs().max()))
        for name, work in others.items():
            seconds[name].append(taken(work, "cpu")[1])
        print({name: round(spent[-1], 2) for name, spent in seconds.items()}, file=sys.stderr, flush=True)
    median = {name: statistics.median(spent) for name, spent in seconds.items()}
    whole, ours = (median[name] for name in (next(iter(lines)), list(lines)[-1]))
    return {
        "seconds": {name: median[name] for name in lines},
        "all_of_them": whole / ours,
        f"tap_{below}": median["top"] / median["below"],
        "shared_frames_of_half_overlap": ours / (ours - median["frames"] + median["new frames"]),
        "four_clips_at_once": 4 * median["top"] / median["four"],
        "bfloat16": ours / median["bfloat16"],
        "largest_difference": worst,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = SMALL if options.quick else Size()
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), size)
        figures = measure(Path(name), size, 1 if options.quick else options.rounds)
    target: Target = ("largest difference of a feature", figures["largest_difference"], TOLERANCE, TOLERANCE, "lower")
    print_document("exact_savings", figures, [target], quick=options.quick, torch=torch.__version__)


if __name__ == "__main__":
    main()
