"""What a clip costs, in floating-point operations, from the shapes of a model's layers.

Counted: matrix products (2 per multiply-add), the patch embedding as the product it is, and attention's two products,
halved where it is causal. Not counted: norms, activations, rotary positions, softmax, pooling, resizing; they are
bound by memory, not by arithmetic, and are below a hundredth of a large model's operations.

Pure arithmetic: which shapes a model has, its family says (`featurecache.backbones.cost`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

_HELD_IN_ATTENTION = 9
"""States of a token, in widths, that are there at once inside attention: residual, normed, q, k, v, rotated, result."""


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
    def weights(self) -> int:
        """Elements of the matrices."""
        return self.inner * self.columns * self.count


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
        held: Elements per clip that are in memory at once where it is widest.
    """

    name: str
    products: tuple[Product, ...] = ()
    attentions: tuple[Attention, ...] = ()
    per_frame: bool = False
    held: int = 0

    @property
    def flop(self) -> int:
        """Operations for one clip."""
        return sum(product.flop for product in self.products) + sum(one.flop for one in self.attentions)

    @property
    def weights(self) -> int:
        """Elements of its matrices."""
        return sum(product.weights for product in self.products)


def transformer(
    name: str,
    *,
    layers: int,
    sequences: int,
    tokens: int,
    width: int,
    mlp_width: int,
    heads: int,
    embedding: Product,
    gated: bool = False,
    per_frame: bool = False,
) -> Part:
    """An encoder: a patch embedding and a pile of layers in which every token of a sequence sees every other.

    Args:
        name: For people.
        layers: How many are run.
        sequences: Sequences of one clip: its frames, or one.
        tokens: S, of a sequence, a class token included.
        width: D.
        mlp_width: Of the layer's hidden state in between.
        heads: Of attention, together as wide as the token.
        embedding: The patch embedding as a product.
        gated: Whether the MLP has a third matrix, its gate.
        per_frame: See `Part`.
    """
    rows = sequences * tokens
    return Part(
        name,
        (embedding, *_layer_products(rows, width, width, width, mlp_width, gated, layers)),
        (Attention(sequences, tokens, heads, width // heads, count=layers),),
        per_frame=per_frame,
        held=_held(rows, width, mlp_width, gated),
    )


def language_model(
    *,
    layers: int,
    tokens: int,
    width: int,
    mlp_width: int,
    heads: int,
    key_heads: int,
    head_width: int,
    causal: bool = True,
) -> tuple[Part, Part]:
    """A decoder's layers with a gated MLP over one sequence, and its attention apart.

    Args:
        layers: How many are run; no logits.
        tokens: S, prefix included.
        width: D.
        mlp_width: Of the MLP's hidden state.
        heads: Of the queries.
        key_heads: Of keys and values.
        head_width: Of one head.
        causal: False counts the whole square, which attention behind a mask computes.
    """
    products = _layer_products(tokens, width, heads * head_width, key_heads * head_width, mlp_width, True, layers)
    attention = Attention(1, tokens, heads, head_width, causal, layers)
    return (
        Part(f"language model, {_layers(layers)}", products, held=_held(tokens, width, mlp_width, True)),
        Part(f"its attention{', causal' if causal else ''}", attentions=(attention,)),
    )


def total_flop(parts: Iterable[Part], shared_frames: float = 0.0) -> float:
    """Operations of one clip of many, of whose frames this share is computed already."""
    return sum(part.flop * (1 - shared_frames if part.per_frame else 1.0) for part in parts)


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def _layer_products(
    rows: int, width: int, query_width: int, key_width: int, mlp_width: int, gated: bool, layers: int
) -> tuple[Product, ...]:
    """The products of `layers` layers, those of one shape together."""
    return (
        Product(rows, width, query_width, layers),
        Product(rows, width, key_width, 2 * layers),
        Product(rows, query_width, width, layers),
        Product(rows, width, mlp_width, (2 if gated else 1) * layers),
        Product(rows, mlp_width, width, layers),
    )


def _held(rows: int, width: int, mlp_width: int, gated: bool) -> int:
    in_mlp = 2 * width + (3 if gated else 2) * mlp_width
    return rows * max(in_mlp, _HELD_IN_ATTENTION * width)
