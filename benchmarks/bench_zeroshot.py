"""Four yes/no questions about a clip: one video pass for all of them, beside a pass of its own for each.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_zeroshot [--quick] [--rounds 3]

The mid-size random model of bench_extract.py (16 frames of 336 px, 2,304 video tokens), prompts as people write them
(8 to 14 tokens after the video), float32 on a CPU, CPU time with one thread, batches of one clip, the ways in turn.

`separate`: the whole model of transformers, one forward for each question, logits at the last token alone.
`tower`: as `separate`, with the vision tower and projector run once for all questions. `ours`: what `featurecache
zeroshot zs-b` runs for a clip, from pixels to answers. All get the same pixels, and the log odds of yes against no
must agree. With Q questions `ours` cannot be more than Q times cheaper than `separate`. `lists`: what `zsc-co` runs
for the nine allowed lists of four labels, without the free answer, over one plain forward of the prompt.

With --quick everything is smaller, and fixed costs weigh more.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration

from benchmarks.bench_extract import Size, make_model
from benchmarks.targets import Target, print_document
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.asking import ActivityList, Asked, AskedBackbone, AskedInputs, YesNoQuestions

QUESTIONS = 4
TOLERANCE = 1e-4
YES, NO, END = (11, 12), (13,), 2
BEFORE = (1, 20, 21, 22)
LISTS = [(), (0,), (0, 1), (0, 2), (0, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)]


def yes_no() -> YesNoQuestions:
    """Questions of unequal lengths that begin alike, as those behind a chat template do."""
    questions = tuple((30, 31, *range(40 + 20 * at, 46 + 22 * at), 32) for at in range(QUESTIONS))
    return YesNoQuestions(BEFORE, questions, YES, NO)


def activity_list() -> ActivityList:
    """Lists of four labels of three tokens each."""
    words = [(100 + 10 * at, 101 + 10 * at, 102 + 10 * at) for at in range(4)]
    lists = tuple((*sum((words[at] for at in one), ()), END) for one in LISTS)
    members = tuple(tuple(int(at in one) for at in range(4)) for one in LISTS)
    return ActivityList(BEFORE, tuple(range(200, 240)), lists, members, (END,), 1)


def open_asked(folder: Path, size: Size, asked: Asked) -> AskedBackbone:
    """Ours."""
    inner = open_inputs(folder, prompt="<video>", frames=size.frames, resize="crop")
    backbone = open_backbone(AskedInputs(inner, asked), dtype="float32", device="cpu")
    assert isinstance(backbone, AskedBackbone)
    return backbone


def ours(backbone: AskedBackbone, pixels: Tensor) -> Tensor:
    """Numbers of the continuous tap, from pixels (T, 3, px, px)."""
    tap = backbone.inputs.asked.kind
    return next(iter(backbone.states(backbone.encode_frames(pixels)[None], [tap])))[1].tokens[0, 0, 0]


def log_odds(logits: Tensor) -> Tensor:
    """Of yes against no."""
    return logits[list(YES)].logsumexp(0) - logits[list(NO)].logsumexp(0)


def ids_of(model: Any, size: Size, question: tuple[int, ...]) -> Tensor:
    """The tokens of a whole prompt."""
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size // 2
    return torch.tensor([[*BEFORE, *[model.config.video_token_id] * (size.frames * side**2), *question]])


@torch.inference_mode()
def separate(model: Any, size: Size, pixels: Tensor, *, shares_tower: bool) -> Tensor:
    """Log odds by a forward for each question, (Q,)."""
    found, video = [], None
    for question in yes_no().questions:
        ids = ids_of(model, size, question)
        if shares_tower:
            if video is None:
                video = torch.cat(list(model.get_video_features(pixels[None]).pooler_output), dim=0).flatten(0, -2)
            embedded = model.get_input_embeddings()(ids)
            embedded[ids == model.config.video_token_id] = video
            logits = model(inputs_embeds=embedded, logits_to_keep=1, use_cache=False).logits
        else:
            logits = model(input_ids=ids, pixel_values_videos=pixels[None], logits_to_keep=1, use_cache=False).logits
        found.append(log_odds(logits[0, -1]))
    return torch.stack(found)


@torch.inference_mode()
def plain(model: Any, size: Size, pixels: Tensor) -> Tensor:
    """One forward of the list's prompt."""
    ids = ids_of(model, size, activity_list().question)
    return model(input_ids=ids, pixel_values_videos=pixels[None], logits_to_keep=1, use_cache=False).logits


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (
        Size(hidden=256, mlp=688, layers=3, vision_hidden=128, vision_layers=3, frames=8) if options.quick else Size()
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, size)
        model: Any = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        asked, lists = open_asked(folder, size, yes_no()), open_asked(folder, size, activity_list())
        pixels = torch.randn(size.frames, 3, 336, 336, generator=torch.Generator().manual_seed(0))
        reference = separate(model, size, pixels, shares_tower=False)
        differences = {
            "ours": float((ours(asked, pixels)[:QUESTIONS] - reference).abs().max()),
            "tower": float((separate(model, size, pixels, shares_tower=True) - reference).abs().max()),
        }
        if max(differences.values()) > TOLERANCE:
            raise SystemExit(f"all ways must give the same log odds, but they differ by {differences}")
        ways: dict[str, Callable[[], Any]] = {
            "separate": lambda: separate(model, size, pixels, shares_tower=False),
            "tower": lambda: separate(model, size, pixels, shares_tower=True),
            "ours": lambda: ours(asked, pixels),
            "plain": lambda: plain(model, size, pixels),
            "lists": lambda: ours(lists, pixels),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, work in ways.items():
                seconds[way].append(cpu_s(work))
    took = {way: statistics.median(own) for way, own in seconds.items()}
    figures = {
        **{f"{way}_cpu_s": own for way, own in took.items()},
        "cheaper_than_separate": took["separate"] / took["ours"],
        "cheaper_than_sharing_the_tower": took["tower"] / took["ours"],
        "lists_over_one_forward": took["lists"] / took["plain"],
        "largest_difference": differences["ours"],
        "questions": QUESTIONS,
        "rounds": options.rounds,
    }
    targets: list[Target] = [
        ("separate passes over one shared pass", figures["cheaper_than_separate"], 3.0, 2.0, "higher"),
        ("largest difference of log odds", figures["largest_difference"], 1e-5, 1e-5, "lower"),
    ]
    print_document("zeroshot", figures, targets, quick=options.quick, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
