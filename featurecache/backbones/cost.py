"""What a clip costs in each family, from a model's config and its inputs; no weights are needed.

A clip's parts are those that are run for the taps asked for, and no deeper. Convolutional pooling
(`spatial_pool_mode = "conv"`) and DINOv2's interpolated positions are not counted.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurecache.backbones.flops import Attention, Part, Product, language_model, transformer

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs

_CHANNELS = 3


def clip_parts(inputs: "Inputs", taps: Sequence[str]) -> tuple[Part, ...]:
    """What is run for one clip.

    Args:
        inputs: A model without its weights, of any family.
        taps: Names of `inputs.taps`.
    """
    config = inputs.config
    if config.model_type == "llava_next_video":
        return _llava_next_video(config, inputs, taps)
    if config.model_type == "llava_onevision":
        return _llava_onevision(config, inputs, taps)
    layers = _depth(taps, config.num_hidden_layers)
    if config.model_type == "timesformer":
        return (_timesformer(config, inputs, layers),)
    if config.model_type in ("videomae", "vjepa2"):
        return (_tubelets(config, inputs, layers),)
    return (_tower(config, inputs, layers, "vision tower"),)


def loaded_weights(inputs: "Inputs") -> int:
    """About how many weights the loaded model has: its matrices, all layers, and its table of words."""
    parts = clip_parts(inputs, list(inputs.taps))
    language = getattr(inputs.config, "text_config", None)
    words = language.vocab_size * language.hidden_size if language is not None and "vision" in inputs.taps else 0
    return sum(part.weights for part in parts) + int(words)


def _llava_next_video(config: Any, inputs: "Inputs", taps: Sequence[str]) -> tuple[Part, ...]:
    vision, chosen = config.vision_config, config.vision_feature_layer
    layers = max(layer % (vision.num_hidden_layers + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    tower = _tower(vision, inputs, layers, "vision tower")
    return (tower, *_behind_tower(config, inputs, taps, projected="layer_0", per_frame=False))


def _llava_onevision(config: Any, inputs: "Inputs", taps: Sequence[str]) -> tuple[Part, ...]:
    layers = config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1)
    tower = _tower(config.vision_config, inputs, layers, "vision tower")
    return (tower, *_behind_tower(config, inputs, taps, projected="vision", per_frame="vision" not in taps))


def _behind_tower(
    config: Any, inputs: "Inputs", taps: Sequence[str], *, projected: str, per_frame: bool
) -> tuple[Part, ...]:
    """Projector and language model; the projector works on tokens of tap `projected`."""
    if set(taps) <= {"vision"}:
        return ()
    vision, video, language = inputs.taps["vision"], inputs.taps["layer_0"], config.text_config
    rows = inputs.frames * inputs.taps[projected].tokens_per_step
    products = (
        Product(rows, vision.width, language.hidden_size),
        Product(rows, language.hidden_size, language.hidden_size),
    )
    projector = Part("projector", products, per_frame=per_frame, held=rows * (vision.width + 3 * language.hidden_size))
    layers = _depth([tap for tap in taps if tap != "vision"], language.num_hidden_layers)
    if layers == 0:
        return (projector,)
    prefix = len(inputs.prefix_ids)  # type: ignore[attr-defined]  # families with a language model have it
    heads = language.num_attention_heads
    return (
        projector,
        *language_model(
            layers=layers,
            tokens=prefix + video.steps * video.tokens_per_step,
            width=language.hidden_size,
            mlp_width=language.intermediate_size,
            heads=heads,
            key_heads=getattr(language, "num_key_value_heads", None) or heads,
            head_width=getattr(language, "head_dim", None) or language.hidden_size // heads,
        ),
    )


def _tower(config: Any, inputs: "Inputs", layers: int, name: str) -> Part:
    """A tower that sees each frame alone: CLIP, SigLIP, DINOv2."""
    patches = (inputs.image_px // config.patch_size) ** 2
    has_cls = config.model_type != "siglip_vision_model"
    return transformer(
        f"{name}, {layers} layers",
        layers=layers,
        sequences=inputs.frames,
        tokens=patches + has_cls,
        width=config.hidden_size,
        mlp_width=_mlp_width(config),
        heads=config.num_attention_heads,
        embedding=Product(inputs.frames * patches, _CHANNELS * config.patch_size**2, config.hidden_size),
        gated=getattr(config, "use_swiglu_ffn", False),
        per_frame=True,
    )


def _tubelets(config: Any, inputs: "Inputs", layers: int) -> Part:
    """An encoder in which all tokens of a clip see each other: VideoMAE, V-JEPA 2."""
    shape = inputs.taps["final"]
    tokens = shape.steps * shape.tokens_per_step
    return transformer(
        f"encoder, {layers} layers",
        layers=layers,
        sequences=1,
        tokens=tokens,
        width=config.hidden_size,
        mlp_width=_mlp_width(config),
        heads=config.num_attention_heads,
        embedding=Product(tokens, _CHANNELS * config.tubelet_size * config.patch_size**2, config.hidden_size),
    )


def _timesformer(config: Any, inputs: "Inputs", layers: int) -> Part:
    """Joint attention over all tokens, or over time and then over space with a second set of projections."""
    shape = inputs.taps["final"]
    frames, patches, width, heads = shape.steps, shape.tokens_per_step, shape.width, config.num_attention_heads
    tokens, mlp_width = frames * patches, config.intermediate_size
    embedding = Product(tokens, _CHANNELS * config.patch_size**2, width)
    mlp = (Product(tokens + 1, width, mlp_width, layers), Product(tokens + 1, mlp_width, width, layers))
    attended: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    if config.attention_type == "joint_space_time":
        attended = (Product(tokens + 1, width, width, 4 * layers),)
        attentions = (Attention(1, tokens + 1, heads, width // heads, count=layers),)
    else:
        attended = (
            Product(tokens, width, width, 5 * layers),  # over time, and a projection behind it
            Product(tokens + frames, width, width, 4 * layers),  # over space, each frame with its class token
        )
        attentions = (
            Attention(patches, frames, heads, width // heads, count=layers),
            Attention(frames, patches + 1, heads, width // heads, count=layers),
        )
    squares = max(one.sequences * one.heads * one.tokens**2 for one in attentions)  # eager attention holds them
    held = (tokens + frames) * max(2 * width + 2 * mlp_width, 9 * width) + 2 * squares
    return Part(f"encoder, {layers} layers", (embedding, *attended, *mlp), attentions, held=held)


def _mlp_width(config: Any) -> int:
    """Width inside an MLP, which some configs give as a ratio."""
    if not hasattr(config, "mlp_ratio"):
        return int(config.intermediate_size)
    width = int(config.hidden_size * config.mlp_ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if getattr(config, "use_swiglu_ffn", False) else width


def _depth(taps: Sequence[str], layers: int) -> int:
    """Layers that lie before the deepest of these taps."""
    return max(layers if tap == "final" else int(tap.removeprefix("layer_")) for tap in taps)
