"""How fast this machine is at a model's arithmetic and at a recording, measured in about two seconds.

The model's own matrix products and attention are run on random numbers, on the device and in the dtype of a run; no
weights are needed. Where a product is too large for its share of the time, rows and then columns are left out. The
first clips of a recording are decoded and one of them resized.

Not here: what follows for a run (`featurecache.extraction.forecast`).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from featurecache.backbones.cost import Attention, Part, Product
from featurecache.backbones.resize import FrameResize
from featurecache.video.recordings import Recording
from featurecache.video.sampling import ClipFailure, read_clips

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_PRODUCTS_S, _ATTENTION_S, _DECODING_S = 0.8, 0.2, 1.0
_MEASURED_SHARE = 0.95  # of the operations; the rest is taken to be as fast
_PROBE, _PROBE_S = 128, 0.02
_LEAST_ROWS, _LEAST_COLUMNS, _LEAST_TOKENS = 128, 16, 64
_MOST_CLIPS = 64
_MOST_FRAMES = 4


@dataclass(frozen=True)
class PartCost:
    """What a part of the model costs for one clip.

    Attributes:
        name: For people.
        tflop: 10^12 operations.
        seconds: At the measured speed.
        per_frame: Whether clips that share a frame share it.
    """

    name: str
    tflop: float
    seconds: float
    per_frame: bool


@dataclass(frozen=True)
class DecodingSpeed:
    """How fast one decoder passes a recording.

    Attributes:
        video_per_s: Seconds of video a second, sampled frames converted; None where no clip could be had.
        frames: Some frames of one clip, each (H, W, 3), uint8; None likewise.
        problem: Why no clip could be had; empty where one was.
    """

    video_per_s: float | None
    frames: tuple[npt.NDArray[np.uint8], ...] | None
    problem: str = ""


def time_parts(parts: Sequence[Part], *, dtype: str, device: str, batch_size: int) -> tuple[PartCost, ...]:
    """Each part of a model with the seconds that its products and its attention take.

    Args:
        parts: For one clip.
        dtype: The dtype the model computes in.
        device: A torch device.
        batch_size: Clips at once.
    """
    bench = _Bench(DTYPES[dtype], torch.device(device), batch_size)
    products = _rates([one for part in parts for one in part.products], bench.product_rate, _PRODUCTS_S)
    attentions = _rates([one for part in parts for one in part.attentions], bench.attention_rate, _ATTENTION_S)
    return tuple(
        PartCost(
            part.name,
            part.flop / 1e12,
            sum(one.flop / products[_kind(one)] for one in part.products)
            + sum(one.flop / attentions[_kind(one)] for one in part.attentions),
            part.per_frame,
        )
        for part in parts
    )


def product_rate(dtype: str, device: str) -> float:
    """Operations a second of a middling matrix product, from a few milliseconds."""
    return _Bench(DTYPES[dtype], torch.device(device), 1).product_rate(Product(256, 1024, 1024), _PROBE_S)


def time_decoding(recording: Recording, spans: Sequence[tuple[int, int]], frames: int) -> DecodingSpeed:
    """Decodes the beginning of a recording, sampled as densely as `spans` are, for about a second.

    Args:
        recording: The recording.
        spans: Clips of it that are to be extracted.
        frames: T, frames sampled from a clip.
    """
    starts = sorted(start_us for start_us, _ in spans)
    length_us = spans[0][1] - spans[0][0]
    stride_us = int(np.median(np.diff(starts))) if len(starts) > 1 else length_us
    end_us = max(length_us, recording.info.duration_us)
    first = [(start, start + length_us) for start in range(0, end_us - length_us + 1, max(1, stride_us))][:_MOST_CLIPS]
    kept: list[npt.NDArray[np.uint8]] = []

    def fit(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Keep some whole frames and no more: a clip of them at 8K takes 1.7 GB."""
        if len(kept) < _MOST_FRAMES:
            kept.append(picture)
        return picture[:1, :1].copy()

    problem, passed_us, began = "", 0, time.perf_counter()
    for clip in read_clips(recording.path, first, frames, fit=fit):
        if isinstance(clip, ClipFailure):
            problem = problem or clip.reason
        else:
            passed_us = max(passed_us, clip.end_us)
        if time.perf_counter() - began > _DECODING_S:
            break
    if not passed_us:
        return DecodingSpeed(None, None, problem)
    return DecodingSpeed(passed_us / 1e6 / (time.perf_counter() - began), tuple(kept))


def time_resizing(resize: FrameResize, frames: Sequence[npt.NDArray[np.uint8]]) -> float:
    """Seconds that a decoder takes to resize one of these frames, each (H, W, 3)."""
    resize.smaller(frames[0])  # the first time also prepares
    began = time.perf_counter()
    for frame in frames:
        resize.smaller(frame)
    return (time.perf_counter() - began) / len(frames)


def _kind(one: Product | Attention) -> tuple[object, ...]:
    """What is measured once: products by their matrix, attention by its square."""
    if isinstance(one, Product):
        return (one.inner, one.columns)
    return (one.tokens, one.head_width, one.causal)


def _rates(ones: Sequence[Any], measure: Callable[[Any, float], float], budget_s: float) -> Mapping[Any, float]:
    """Operations a second of each kind: measured for those that make up nearly all, their mean for the rest."""
    flop: Counter[tuple[object, ...]] = Counter()
    example: dict[tuple[object, ...], Any] = {}
    for one in ones:
        flop[_kind(one)] += one.flop
        example.setdefault(_kind(one), one)
    total, covered = sum(flop.values()), 0
    rates: dict[tuple[object, ...], float] = {}
    for kind, operations in flop.most_common():
        if covered < _MEASURED_SHARE * total:
            rates[kind] = measure(example[kind], budget_s * operations / total)
            covered += operations
    mean = covered / sum(flop[kind] / rate for kind, rate in rates.items()) if rates else 1.0
    return {kind: rates.get(kind, mean) for kind in flop}


class _Bench:
    """Runs products and attention on random numbers.

    Args:
        dtype: Dtype of the numbers.
        place: The device.
        batch_size: Clips at once, on a CUDA device; on a CPU one clip fills the cores.
    """

    def __init__(self, dtype: torch.dtype, place: torch.device, batch_size: int) -> None:
        self._dtype, self._place = dtype, place
        self._clips = batch_size if place.type == "cuda" else 1
        self._probe = self._product(_PROBE, _PROBE, _PROBE, _PROBE_S)

    def product_rate(self, one: Product, budget_s: float) -> float:
        """Operations a second of a product of this matrix."""
        affordable = max(1, int(self._probe * budget_s / 4 / one.inner))  # rows x columns, in half of the time
        rows = min(self._clips * one.rows, max(_LEAST_ROWS, affordable // one.columns))
        columns = min(one.columns, max(_LEAST_COLUMNS, affordable // rows))
        return self._product(rows, one.inner, columns, budget_s)

    def attention_rate(self, one: Attention, budget_s: float) -> float:
        """Operations a second of attention over this square."""
        tokens = one.tokens
        while tokens > _LEAST_TOKENS and 4 * tokens**2 * one.head_width > self._probe * budget_s:
            tokens //= 2
        squares = max(1, int(self._probe * budget_s / 2 / (4 * tokens**2 * one.head_width)))
        squares = min(squares, self._clips * one.sequences * one.heads)
        q, k, v = (self._random(squares, tokens, one.head_width) for _ in range(3))
        flop = Attention(squares, tokens, 1, one.head_width, one.causal).flop
        return self._rate(lambda: scaled_dot_product_attention(q, k, v, is_causal=one.causal), flop, budget_s)

    def _product(self, rows: int, inner: int, columns: int, budget_s: float) -> float:
        states, matrix = self._random(rows, inner), self._random(columns, inner)
        return self._rate(lambda: linear(states, matrix), 2 * rows * inner * columns, budget_s)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32, device=self._place).to(self._dtype)

    @torch.inference_mode()
    def _rate(self, work: Callable[[], object], flop: int, budget_s: float) -> float:
        began = time.perf_counter()
        work()  # the first time also prepares; it counts where it is long
        _wait(self._place)
        spent_s = time.perf_counter() - began
        turns = 1
        if spent_s < budget_s:
            turns, began = 0, time.perf_counter()
            while turns == 0 or time.perf_counter() - began < budget_s - spent_s:
                work()
                _wait(self._place)
                turns += 1
            spent_s = time.perf_counter() - began
        return turns * flop / spent_s


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
