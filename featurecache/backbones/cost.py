"""What a clip costs: the matrix products and the attention that an extraction runs for it, counted without weights.

The model is laid out on PyTorch's meta device, where tensors have a shape and no content, and the forward of an
extraction runs there once. `torch.utils.flop_counter` counts 2 per multiply-add of each product, the patch embedding's
convolution included. Attention is noted where it is called, so that only half of the square counts where a token sees
those before it. Not counted: norms, activations, rotary positions, softmax, pooling and resizing. They are bound by
memory, not by arithmetic, and are below a hundredth of a large model's operations.

Not here: how long that takes (`featurecache.extraction.speed`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from featurecache.backbones import lay_out

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs


@dataclass(frozen=True)
class Product:
    """A matrix product (rows, inner) x (inner, columns) of one clip, done `count` times with other weights."""

    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flop(self) -> int:
        """Operations."""
        return 2 * self.rows * self.inner * self.columns * self.count

    @property
    def held(self) -> int:
        """About how many elements are in memory at once around it: its operands, twice a result, two more like them."""
        return self.rows * (2 * self.columns + 3 * self.inner)


@dataclass(frozen=True)
class Attention:
    """Attention of `sequences` x `heads` over `tokens` each of one clip, done `count` times."""

    sequences: int
    tokens: int
    heads: int
    head_width: int
    causal: bool = False
    count: int = 1

    @property
    def flop(self) -> int:
        """Operations; half of the square where a token sees only those before it."""
        square = 4 * self.sequences * self.tokens**2 * self.heads * self.head_width * self.count
        return square // 2 if self.causal else square


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        name: For people.
        products: Its matrix products for one clip.
        attentions: Its attention for one clip.
        per_frame: Whether it works on each frame alone, so that clips which share a frame share its work.
    """

    name: str
    products: tuple[Product, ...] = ()
    attentions: tuple[Attention, ...] = ()
    per_frame: bool = False

    @property
    def flop(self) -> int:
        """Operations for one clip."""
        return sum(one.flop for one in self.products) + sum(one.flop for one in self.attentions)


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parts: What is run for one clip, no deeper than the taps asked for.
        weights: Of the loaded model.
    """

    parts: tuple[Part, ...]
    weights: int

    @property
    def flop(self) -> int:
        """Operations for one clip that shares no frame."""
        return sum(part.flop for part in self.parts)

    @property
    def held(self) -> int:
        """About how many elements of a clip are in memory at once where the model is widest."""
        return max((one.held for part in self.parts for one in part.products), default=0)


def clip_cost(inputs: "Inputs", taps: Sequence[str]) -> Cost:
    """Counts the forward of one clip, of any family; takes a second for a large model, and reads no weights.

    Args:
        inputs: A model without its weights.
        taps: Names of `inputs.taps`.
    """
    backbone = lay_out(inputs)
    pixels = torch.empty(inputs.frames, 3, inputs.image_px, inputs.image_px, device="meta")
    alone, joined = _Noted(), _Noted()
    with alone, alone.counter:
        encoded = backbone.encode_frames(pixels, taps)[None]
    with joined, joined.counter:
        for _ in backbone.states(encoded, taps):
            pass
    model: Any = backbone.model if hasattr(backbone, "model") else backbone.parts.model  # type: ignore[attr-defined]
    return Cost(
        (*alone.parts("vision tower", per_frame=True), *joined.parts("encoder", per_frame=False)),
        sum(weight.numel() for weight in model.parameters()),
    )


class _Noted(TorchFunctionMode):
    """Notes the products and the attention that run while it and its counter are entered; computes no attention."""

    def __init__(self) -> None:
        super().__init__()
        self._products: Counter[tuple[int, int, int]] = Counter()
        self._attentions: Counter[tuple[int, int, int, int, bool]] = Counter()
        aten = torch.ops.aten
        self.counter = FlopCounterMode(
            display=False,
            custom_mapping={
                aten.mm: lambda left, right, **_: self._note(left[0], *right),
                aten.addmm: lambda _bias, left, right, **_: self._note(left[0], *right),
                aten.bmm: lambda left, right, **_: self._note(left[0] * left[1], *right[1:]),
                aten.convolution: lambda _pixels, kernel, *_rest, out_shape, **_: self._note(
                    math.prod(out_shape) // kernel[0], math.prod(kernel[1:]), kernel[0]
                ),
            },
        )

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        batch, heads, tokens, width = args[0].shape  # the query's
        keys = args[1].shape[2]
        if keys == tokens:
            self._attentions[batch, tokens, heads, width, bool((kwargs or {}).get("is_causal"))] += 1
        else:  # of a pooling query to all tokens: no square, and timed as the two products that it is
            self._note(batch * heads * tokens, width, keys)
            self._note(batch * heads * tokens, keys, width)
        return torch.empty_like(args[0])

    def _note(self, rows: int, inner: int, columns: int) -> int:
        self._products[rows, inner, columns] += 1
        return Product(rows, inner, columns).flop

    def parts(self, name: str, *, per_frame: bool) -> tuple[Part, ...]:
        """What was noted, as parts of that name; a language model, whose attention is causal, has it apart."""
        products = tuple(Product(*shape, count) for shape, count in self._products.items())
        attentions = tuple(Attention(*shape, count) for shape, count in self._attentions.items())
        if any(one.causal for one in attentions):
            of_attention = Part("its attention, causal", attentions=attentions, per_frame=per_frame)
            return Part("projector and language model", products, per_frame=per_frame), of_attention
        return (Part(name, products, attentions, per_frame),) if products else ()
