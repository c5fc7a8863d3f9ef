"""Tiny random-weight video language models of every family, laid out as published."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests import published_layouts
from tests.published_layouts import lay_out, name_tower_weights_as_published
from tests.tiny_families import IMAGE_PX, LAYER_SIZES, LAYERS, TOWER_SIZES, WIDTH, save_model
from tests.tiny_models import make_llava_next_video

_WORDS = ["user:", "describe", "the", "hand", "moves", "what", "?", "."]


def _save_tokenizer(folder: Path, special: Sequence[str], words: Sequence[str]) -> list[str]:
    """Writes a tokenizer of whole words, and says its vocabulary in order of the ids."""
    vocabulary = ["<unk>", "<pad>", *special, *words]
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=list(special)
    )
    tokenizer.save_pretrained(folder)
    return vocabulary


def make_llava_onevision(
    folder: Path, *, seed: int = 0, image_px: int = 40, more_words: Sequence[str] = (), **changes: Any
) -> Path:
    """A LLaVA-OneVision: SigLIP of 5 x 5 patches, pooled to 3 x 3 tokens a frame, and a Qwen2 of grouped heads."""
    words = _save_tokenizer(folder, ["<image>", "<video>"], [*_WORDS, *more_words])
    text = {
        **LAYER_SIZES,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(words),
    }
    vision = {**TOWER_SIZES, "image_size": image_px, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        **{
            "vision_config": SiglipVisionConfig(**vision),
            "text_config": Qwen2Config(**text, pad_token_id=1),
            "image_token_index": 2,
            "video_token_index": 3,
            **changes,
        }
    )
    save_model(
        LlavaOnevisionForConditionalGeneration(config), published_layouts.llava_onevision(image_px), folder, seed
    )
    name_tower_weights_as_published(folder)
    return folder


_SMOLVLM_SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_SMOLVLM_TEXT = ["You", "four", "frames", "Frame", "from", "00", "01", "02", "03", ":", "\n"]
SMOLVLM_WORDS = 2 + len(_SMOLVLM_SPECIAL) + len(_WORDS) + len(_SMOLVLM_TEXT)
"""Words of the small SmolVLM2's vocabulary before those that a caller adds."""


def make_smolvlm(folder: Path, *, seed: int = 0, more_words: Sequence[str] = (), **changes: Any) -> Path:
    """A SmolVLM2 of 4 x 4 patches, laid side by side to 2 x 2 tokens a frame, and a Llama of grouped heads."""
    words = _save_tokenizer(folder, _SMOLVLM_SPECIAL, [*_WORDS, *_SMOLVLM_TEXT, *more_words])
    text = {
        **LAYER_SIZES,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(words),
    }
    config = SmolVLMConfig(
        **{
            "vision_config": dict(TOWER_SIZES),
            "text_config": LlamaConfig(**text, pad_token_id=1, bos_token_id=None, eos_token_id=None),
            "image_token_id": 2,
            "scale_factor": 2,
            **changes,
        }
    )
    save_model(SmolVLMForConditionalGeneration(config), published_layouts.smolvlm(IMAGE_PX), folder, seed)
    return lay_out(folder, published_layouts.smolvlm(IMAGE_PX), published_layouts.SMOLVLM_CONFIG)


_QWEN_SPECIAL = ["<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
_QWEN_TEXT = ["<", ">", "seconds", "0", "2", "8"]
QWEN_WORDS = 2 + len(_QWEN_SPECIAL) + len(_WORDS) + len(_QWEN_TEXT)
"""Words of the small Qwen3-VL's vocabulary before those that a caller adds."""


def make_qwen3_vl(folder: Path, *, seed: int = 0, more_words: Sequence[str] = (), **changes: Any) -> Path:
    """A Qwen3-VL of 4 x 4 patches (positions learned on 6 x 6), merged to 2 x 2 tokens, with two DeepStack layers."""
    words = _save_tokenizer(folder, _QWEN_SPECIAL, [*_WORDS, *_QWEN_TEXT, *more_words])
    text = {**LAYER_SIZES, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    config = Qwen3VLConfig(
        **{
            "vision_config": {
                **vision,
                "out_hidden_size": 32,
                "num_position_embeddings": 36,
                "deepstack_visual_indexes": [0, 2],
            },
            "text_config": {**text, "vocab_size": len(words), "rope_parameters": rope, "pad_token_id": 1},
            "video_token_id": 2,
            "vision_start_token_id": 3,
            "vision_end_token_id": 4,
            "image_token_id": 5,
            **changes,
        }
    )
    save_model(Qwen3VLForConditionalGeneration(config), published_layouts.qwen3_vl(), folder, seed)
    return lay_out(folder, published_layouts.qwen3_vl(), published_layouts.QWEN3_VL_CONFIG)


def make_qwen2_5_vl(folder: Path, *, seed: int = 0, more_words: Sequence[str] = (), **changes: Any) -> Path:
    """A Qwen2.5-VL of 6 x 6 patches, merged to 3 x 3 tokens, in windows of up to 2 x 2 tokens but for one layer."""
    words = _save_tokenizer(folder, _QWEN_SPECIAL, [*_WORDS, *_QWEN_TEXT, *more_words])
    text = {
        **LAYER_SIZES,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(words),
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    windows = {"window_size": 32, "fullatt_block_indexes": [1], "tokens_per_second": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        **{
            "vision_config": {**vision, **windows},
            "text_config": {**text, "rope_parameters": rope, "pad_token_id": 1},
            "video_token_id": 2,
            "vision_start_token_id": 3,
            "vision_end_token_id": 4,
            "image_token_id": 5,
            **changes,
        }
    )
    save_model(Qwen2_5_VLForConditionalGeneration(config), published_layouts.qwen2_5_vl(), folder, seed)
    published_layouts.name_qwen2_5_vl_as_published(folder)
    return folder


_INTERN_SPECIAL = ["<IMG_CONTEXT>", "<img>", "</img>"]
_INTERN_TEXT = ["Frame1", "Frame2", "Frame3", "Frame4", ":"]
INTERN_WORDS = 2 + len(_INTERN_SPECIAL) + len(_WORDS) + len(_INTERN_TEXT)
"""Words of the small InternVL's vocabulary before those that a caller adds."""


def make_internvl(folder: Path, *, seed: int = 0, more_words: Sequence[str] = (), **changes: Any) -> Path:
    """An InternVL of 4 x 4 patches, laid side by side to 2 x 2 tokens a frame, and a Qwen3 as InternVL3.5 has it."""
    words = _save_tokenizer(folder, _INTERN_SPECIAL, [*_WORDS, *_INTERN_TEXT, *more_words])
    text = {**LAYER_SIZES, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = InternVLConfig(
        **{
            "vision_config": {**LAYER_SIZES, "image_size": [IMAGE_PX, IMAGE_PX], "patch_size": [8, 8]},
            "text_config": Qwen3Config(**text, vocab_size=len(words), pad_token_id=1),
            "image_token_id": 2,
            "image_seq_length": 4,
            **changes,
        }
    )
    return save_model(InternVLForConditionalGeneration(config), published_layouts.internvl(IMAGE_PX), folder, seed)


VIDEO_LANGUAGE: dict[str, Callable[..., Path]] = {
    "llava_next_video": partial(make_llava_next_video, layers=LAYERS),
    "llava_onevision": make_llava_onevision,
    "smolvlm": make_smolvlm,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "internvl": make_internvl,
}
