"""The full LLaVA-NeXT-Video-7B architecture on a CPU, with random weights: proof of shapes and of memory.

    python -m benchmarks.full_size [--frames 16] [--layers 32] [--upcast]

No weights are downloaded. The model is laid out on the meta device and filled with random bfloat16, and one clip of
noise goes through `VideoLanguageBackbone` as in an extraction. What rotary positions and the tower's position numbers
are made of is no parameter and is not filled but made anew. Needs 20 GB of memory that is free.

A CPU with AVX512-BF16 multiplies bfloat16 faster than float32; others are hundreds of times slower at it. For those
there is `--upcast`: each Linear converts its matrix while it is used, so that one at a time is there in float32, and
all else is float32. `--layers` lays out fewer layers of the language model, for a try.

This is no measurement of speed, and random weights give random features.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoModel,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    PreTrainedTokenizerFast,
)

from featurecache.backbones import llava_next_video, open_inputs
from featurecache.backbones.family import Backbone
from featurecache.backbones.pooling import pool

WIDTH, VOCABULARY = 4096, 32_064
PROMPT = "user: describe the hand <video>"
MOST_BYTES = 20e9
_BLOCK = 1 << 24


def write_model_files(folder: Path, *, layers: int = 32, config: LlavaNextVideoConfig | None = None) -> Path:
    """All of a LLaVA-NeXT-Video but its weights: the 7B's config by transformers' own defaults, and a small tokenizer.

    Args:
        folder: Where.
        layers: Of the language model.
        config: Another architecture, whose tokens for images and videos are 4 and 5.
    """
    config = config or LlavaNextVideoConfig(image_token_index=4, video_token_index=5)
    if config.text_config.vocab_size < VOCABULARY:
        config.text_config.vocab_size = VOCABULARY
    config.text_config.num_hidden_layers = min(layers, config.text_config.num_hidden_layers)
    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>", "user:", "describe", "the", "hand"]
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<video>"],
    )
    image_px = config.vision_config.image_size
    size = {"size": {"shortest_edge": image_px}, "crop_size": {"height": image_px, "width": image_px}}
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**size),
        image_processor=LlavaNextImageProcessor(**size),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_processor(folder: Path) -> LlavaNextVideoProcessor:
    """The model's own processor, each part opened by its class: transformers cannot infer them in published folders."""
    config = LlavaNextVideoConfig.from_pretrained(folder)
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor.from_pretrained(folder),
        image_processor=LlavaNextImageProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )


class UpcastLinear(nn.Module):
    """A Linear whose matrix lies in bfloat16 and is multiplied in float32."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # (out, in), (out,)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out), float32."""
        return nn.functional.linear(states, self.weight.float(), self.bias)


def random_model(config: LlavaNextVideoConfig, *, upcast: bool) -> LlavaNextVideoModel:
    """The inner model with random weights in bfloat16; with `upcast` only its matrices, and all else in float32."""
    torch.manual_seed(0)
    block = (0.02 * torch.randn(_BLOCK)).bfloat16()
    other = torch.float32 if upcast else torch.bfloat16
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlavaNextVideoModel(config)
    for module_name, module in list(model.named_modules()):
        is_matrix = isinstance(module, nn.Linear)
        for name, parameter in list(module.named_parameters(recurse=False)):
            filled = torch.ones(parameter.shape, dtype=torch.bfloat16 if is_matrix and name == "weight" else other)
            if parameter.ndim > 1:
                for part in filled.view(-1).split(_BLOCK):
                    part.copy_(block[: len(part)])
            elif name != "weight":
                filled.zero_()
            setattr(module, name, nn.Parameter(filled, requires_grad=False))
        if is_matrix and upcast:
            model.set_submodule(module_name, UpcastLinear(module.weight, module.bias))
    rotary = model.language_model.rotary_emb
    model.language_model.rotary_emb = type(rotary)(config=config.text_config)
    embeddings = model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise SystemExit(f"every tensor must be filled, but these are not: {left}")
    return model.eval()


def open_at_random(folder: Path, *, frames: int, device: str, upcast: bool = False) -> Backbone:
    """The backbone of files that `write_model_files` wrote, with random weights in bfloat16."""

    def load(_: object, *, config: LlavaNextVideoConfig) -> LlavaNextVideoModel:
        return random_model(config, upcast=upcast).to(device)

    save_file({"placeholder": torch.zeros(1)}, folder / "model.safetensors")  # a model folder must hold weights
    return llava_next_video.open_backbone(open_inputs(folder, prompt=PROMPT, frames=frames, resize="crop"), load)


def extract_one(folder: Path, *, frames: int, upcast: bool = False) -> dict[str, float]:
    """One clip through the backbone.

    Returns:
        Shape and soundness of the feature, seconds, and the process's peak memory.
    """
    began = time.monotonic()
    backbone = open_at_random(folder, frames=frames, device="cpu", upcast=upcast)
    laid_out_s, weights_bytes = time.monotonic() - began, peak_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (frames, 480, 640, 3), dtype=np.uint8)
    began, cpu = time.monotonic(), time.process_time()
    encoded = backbone.encode_frames(
        backbone.normalize(backbone.inputs.frame_resize.resized(torch.from_numpy(noise))), ["final"]
    )
    ((_, states),) = backbone.states(encoded[None], ["final"])
    feature = pool(states, "mean")  # (1, D)
    return {
        "frames": frames,
        "language_layers": backbone.model.config.text_config.num_hidden_layers,  # type: ignore[attr-defined]
        "feature_width": feature.shape[1],
        "feature_is_finite": bool(feature.isfinite().all()),
        "feature_std": float(feature.std()),
        "lay_out_s": laid_out_s,
        "clip_s": time.monotonic() - began,
        "clip_cpu_s": time.process_time() - cpu,
        "weights_bytes": weights_bytes,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="of the clip")
    parser.add_argument("--layers", type=int, default=32, help="of the language model")
    parser.add_argument("--upcast", action="store_true", help="for CPUs that are slow at bfloat16")
    parser.add_argument("--quick", action="store_true", help="under 50 s: 2 layers, 1 frame")
    options = parser.parse_args()
    layers, frames = (2, 1) if options.quick else (options.layers, options.frames)
    with tempfile.TemporaryDirectory() as name:
        figures = extract_one(write_model_files(Path(name), layers=layers), frames=frames, upcast=options.upcast)
    print(figures, file=sys.stderr)
    targets = [
        {"what": "width of the feature", "value": figures["feature_width"], "bound": WIDTH, "better": "higher"},
        {"what": "peak memory, bytes", "value": figures["peak_bytes"], "bound": MOST_BYTES, "better": "lower"},
    ]
    for target in targets:
        is_high = target["better"] == "higher"
        target["met"] = target["value"] >= target["bound"] if is_high else target["value"] <= target["bound"]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "full_size", "machine": machine, "figures": figures, "targets": targets}))


if __name__ == "__main__":
    main()
