"""Each family's forward on a GPU beside the same on the CPU, in float32; run by `benchmarks/on_gpu.sh`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.pooling import pool
from tests.tiny_families import FAMILIES, FRAMES
from tests.tiny_models import make_llava_next_video
from tests.tiny_video_language import VIDEO_LANGUAGE

EVERY = {**FAMILIES, **VIDEO_LANGUAGE}
RELATIVE = 1e-4
"""Of a feature's size: sums of some thousand float32 products in another order, through a few layers."""


def features(folder: Path, device: str, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """The mean of every tap's tokens of two clips of noise, each (2, D), on the CPU."""
    inputs = open_inputs(folder, prompt="user: baby <video>", frames=FRAMES, resize="model")
    backbone = open_backbone(inputs, dtype=dtype, device=device)
    noise = np.random.default_rng(0).integers(0, 256, (2 * FRAMES, 48, 64, 3), dtype=np.uint8)
    pixels = backbone.normalize(inputs.frame_resize.resized(torch.from_numpy(noise)))
    taps = list(inputs.taps)
    with torch.inference_mode():
        encoded = backbone.encode_frames(pixels, taps).unflatten(0, (2, FRAMES))
        return {tap: pool(states, "mean").float().cpu() for tap, states in backbone.states(encoded, taps)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", EVERY)
def test_features_of_every_family_are_the_same_on_a_gpu(family: str, tmp_path: Path) -> None:
    make: Callable[..., Path] = EVERY[family]
    folder = make(tmp_path / "model")
    on_cpu, on_gpu = features(folder, "cpu"), features(folder, "cuda")
    assert on_cpu.keys() == on_gpu.keys()
    for tap, expected in on_cpu.items():
        assert (on_gpu[tap] - expected).norm() <= RELATIVE * expected.norm(), tap


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_gpu_is_within_its_rounding(dtype: str, tmp_path: Path) -> None:
    folder = make_llava_next_video(tmp_path / "model")
    exact, rounded = features(folder, "cpu")["final"], features(folder, "cuda", dtype)["final"]
    assert (rounded - exact).norm() <= (0.05 if dtype == "bfloat16" else 0.01) * exact.norm()
