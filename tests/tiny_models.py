"""Small real models with random weights, made on the spot through the real classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    PreTrainedTokenizerFast,
)

from featurecache.backbones.family import Backbone
from tests.published_layouts import (
    LLAVA_NEXT_VIDEO_CONFIG,
    lay_out,
    llava_next_video,
    name_tower_weights_as_published,
)

WORDS = ["user:", "assistant:", "what", "happens", "here", "the", "hand", "moves", "describe", "baby", "?", "."]
IMAGE_PX = 56


def make_llava_next_video(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    key_heads: int = 4,
    vision_feature_layer: int | list[int] = -2,
    words: Sequence[str] = WORDS,
) -> Path:
    """Writes a random LLaVA-NeXT-Video (4 tokens a frame), laid out as main of the 7B model, into `folder`."""
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
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
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=IMAGE_PX,
            patch_size=14,
            projection_dim=24,
        ),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=key_heads,
            max_position_embeddings=512,
            pad_token_id=3,
        ),
        image_token_index=4,
        video_token_index=5,
        vision_feature_layer=vision_feature_layer,
    )
    torch.manual_seed(seed)
    model = LlavaNextVideoForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the default initialisation, so that attention and prompts matter.
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name_tower_weights_as_published(folder)
    return lay_out(folder, llava_next_video(IMAGE_PX), LLAVA_NEXT_VIDEO_CONFIG)


def change_weights(folder: Path) -> None:
    """Other numbers in a model's file of weights."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: one * 1.5 for name, one in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def plain_processor(folder: Path) -> LlavaNextVideoProcessor:
    """The model's own processor, each part opened by its class: for this layout transformers cannot infer them."""
    own = json.loads((folder / "processor_config.json").read_text())
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor.from_pretrained(folder),
        image_processor=LlavaNextImageProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=own["patch_size"],
        vision_feature_select_strategy=own["vision_feature_select_strategy"],
        num_additional_image_tokens=own["num_additional_image_tokens"],
    )


def pixels_of(backbone: Backbone, frames: np.ndarray) -> torch.Tensor:
    """What a backbone sees of frames (F, H, W, 3) of any size: (F, 3, px, px)."""
    return backbone.normalize(backbone.inputs.frame_resize.resized(torch.from_numpy(frames)))
