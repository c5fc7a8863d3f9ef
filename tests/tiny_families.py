"""Small models of every family but LLaVA-NeXT-Video: real classes, random weights, laid out as published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeVideoConfig,
    PeVideoModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoPrismClipModel,
    VideoPrismConfig,
    VideoPrismVisionConfig,
    VideoPrismVisionModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    XCLIPConfig,
    XCLIPModel,
)

from tests import published_layouts
from tests.published_layouts import Files, lay_out

IMAGE_PX = 32
FRAMES = 4
LAYERS = 3
WIDTH = 24
LAYER_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
}


TOWER_SIZES = {**LAYER_SIZES, "image_size": IMAGE_PX, "patch_size": 8}
_TEXT = {**LAYER_SIZES, "vocab_size": 30}


def save_model(model: Any, files: Files, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the default initialisation, so that attention and positions matter.
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return lay_out(folder, files)


def make_timesformer(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A TimeSformer fine-tuned for classification."""
    model = TimesformerForVideoClassification(TimesformerConfig(**{**TOWER_SIZES, "num_frames": FRAMES, **changes}))
    return save_model(model, published_layouts.timesformer(IMAGE_PX), folder, seed)


TEXT_WORDS = ["a", "photo", "of", "video", "something", "else", "ventilation", "stimulation", "hands", "on", "chest"]


def _save_text_tokenizer(folder: Path, kind: str, form: str, fill: str) -> None:
    """Writes an image-text model's tokenizer of whole words in lower case, as `form` ends and begins a text."""
    vocabulary = ["<unk>", "<pad>", *TEXT_WORDS, "</s>", "<|startoftext|>", "<|endoftext|>"]
    ids = {word: k for k, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = [(word, ids[word]) for word in form.split() if word in ids]
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    backend.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": kind, "pad_token": fill, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """A whole CLIP, text tower and tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "CLIPTokenizer", "<|startoftext|> $A <|endoftext|>", "<|endoftext|>")
    text = {**_TEXT, "projection_dim": 16, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**TOWER_SIZES, "projection_dim": 16}, projection_dim=16)
    return save_model(CLIPModel(config), published_layouts.clip(IMAGE_PX), folder, seed)


def make_clip_vision(folder: Path, *, seed: int = 0) -> Path:
    """CLIP's vision tower with its projection."""
    config = CLIPVisionConfig(**TOWER_SIZES, projection_dim=16)
    return save_model(CLIPVisionModelWithProjection(config), published_layouts.clip(IMAGE_PX), folder, seed)


def make_siglip(folder: Path, *, seed: int = 0) -> Path:
    """A whole SigLIP, text tower, tokenizer and pooling head included."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "SiglipTokenizer", "$A </s>", "</s>")
    config = SiglipConfig(text_config={**_TEXT, "projection_size": WIDTH}, vision_config=TOWER_SIZES)
    return save_model(SiglipModel(config), published_layouts.siglip(IMAGE_PX), folder, seed)


def make_siglip_vision(folder: Path, *, seed: int = 0) -> Path:
    """SigLIP's vision tower without the pooling head."""
    config = SiglipVisionConfig(**TOWER_SIZES, vision_use_head=False)
    return save_model(SiglipVisionModel(config), published_layouts.siglip(IMAGE_PX, resample=2), folder, seed)


def make_siglip2(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP 2 NaFlex, whose positions were learned on 3 x 3 patches."""
    vision = {**LAYER_SIZES, "patch_size": 8, "num_patches": 9}
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "GemmaTokenizer", "$A </s>", "<pad>")
    config = Siglip2Config(text_config={**_TEXT, "projection_size": WIDTH}, vision_config=vision)
    return save_model(Siglip2Model(config), published_layouts.siglip2(16), folder, seed)


def make_xclip(folder: Path, *, seed: int = 0) -> Path:
    """A whole X-CLIP, text tower and tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "CLIPTokenizer", "<|startoftext|> $A <|endoftext|>", "<|endoftext|>")
    joined = {"mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 2, "num_frames": FRAMES}
    text = {**_TEXT, "eos_token_id": 2}
    more = {"projection_dim": 16, "prompt_num_attention_heads": 2, "prompt_layers": 2}
    model = XCLIPModel(XCLIPConfig(text_config=text, vision_config={**TOWER_SIZES, **joined}, **more))
    return save_model(model, published_layouts.xclip(IMAGE_PX), folder, seed)


def make_dinov2(folder: Path, *, seed: int = 0) -> Path:
    """A DINOv2 classifier trained on larger frames (40 px) than its processor makes, as the real ones."""
    config = Dinov2Config(**{**TOWER_SIZES, "image_size": 40})
    return save_model(Dinov2ForImageClassification(config), published_layouts.dinov2(IMAGE_PX, short=36), folder, seed)


def make_dinov2_registers(folder: Path, *, seed: int = 0) -> Path:
    """A DINOv2 with registers."""
    config = Dinov2WithRegistersConfig(**{**TOWER_SIZES, "image_size": 40}, num_register_tokens=3)
    return save_model(Dinov2WithRegistersModel(config), published_layouts.dinov2(IMAGE_PX, short=36), folder, seed)


def make_dinov3(folder: Path, *, seed: int = 0) -> Path:
    """A DINOv3 with register tokens and rotary positions."""
    config = DINOv3ViTConfig(**TOWER_SIZES, num_register_tokens=2)
    return save_model(DINOv3ViTModel(config), published_layouts.dinov3(IMAGE_PX), folder, seed)


_PRISM = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_spatial_layers": 2,
    "num_temporal_layers": LAYERS - 2,
    "num_auxiliary_layers": 1,
    "num_frames": FRAMES,
    "image_size": IMAGE_PX,
    "tubelet_size": [1, 8, 8],
}


def make_videoprism(folder: Path, *, seed: int = 0) -> Path:
    """A VideoPrism encoder of two spatial layers and one in time."""
    model = VideoPrismVisionModel(VideoPrismVisionConfig(**_PRISM))
    return save_model(model, published_layouts.videoprism(IMAGE_PX), folder, seed)


def make_videoprism_lvt(folder: Path, *, seed: int = 0) -> Path:
    """A VideoPrism with auxiliary layers, a pooling head, a text tower and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "VideoPrismTokenizer", "$A", "<pad>")
    text = {**_TEXT, "max_position_embeddings": 8}
    model = VideoPrismClipModel(VideoPrismConfig(vision_config=_PRISM, text_config=text))
    return save_model(model, published_layouts.videoprism(IMAGE_PX), folder, seed)


def make_videomae(folder: Path, *, seed: int = 0) -> Path:
    """A VideoMAE fine-tuned for classification by mean pooling: no final norm."""
    config = VideoMAEConfig(**TOWER_SIZES, num_frames=FRAMES, tubelet_size=2)
    return save_model(VideoMAEForVideoClassification(config), published_layouts.videomae(IMAGE_PX), folder, seed)


def make_videomae_pretrained(folder: Path, *, seed: int = 0) -> Path:
    """A pre-trained VideoMAE with its decoder and a final norm."""
    decoder = {
        "decoder_num_attention_heads": 2,
        "decoder_hidden_size": 12,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 24,
    }
    config = VideoMAEConfig(**TOWER_SIZES, **decoder, num_frames=FRAMES, tubelet_size=2, use_mean_pooling=False)
    files = published_layouts.videomae(IMAGE_PX, named="VideoMAEImageProcessor")
    return save_model(VideoMAEForPreTraining(config), files, folder, seed)


def _vjepa2_config() -> VJEPA2Config:
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    encoder = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": LAYERS, "mlp_ratio": 2.0}
    frames = {"patch_size": 8, "crop_size": IMAGE_PX, "frames_per_clip": 8, "tubelet_size": 2}
    return VJEPA2Config(**predictor, **encoder, **frames, num_pooler_layers=1)


def make_vjepa2(folder: Path, *, seed: int = 0) -> Path:
    """A V-JEPA 2 fine-tuned for classification, pre-trained on 8 frames."""
    return save_model(VJEPA2ForVideoClassification(_vjepa2_config()), published_layouts.vjepa2(IMAGE_PX), folder, seed)


def make_vjepa2_pretrained(folder: Path, *, seed: int = 0) -> Path:
    """A pre-trained V-JEPA 2 with its predictor."""
    return save_model(VJEPA2Model(_vjepa2_config()), published_layouts.vjepa2(IMAGE_PX), folder, seed)


_PE_LAYERS = {**LAYER_SIZES, "head_dim": WIDTH // 2}
_PE_TEXT = {**_TEXT, "model_type": "modernbert", "num_hidden_layers": 1, "global_attn_every_n_layers": 1}


_PE_TEXT |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)


def _pe_frames(**changes: Any) -> dict[str, Any]:
    """PE core, a model of timm by its name, with sizes of its own."""
    sizes = {"embed_dim": WIDTH, "depth": 2, "img_size": IMAGE_PX, "patch_size": 8, "num_heads": 2, **changes}
    named = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "global_pool": "map"}
    return {**named, "do_pooling": True, "model_args": sizes, "label_names": [f"LABEL_{k}" for k in range(16)]}


def make_pe_video(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A PE Video with its text tower: embeddings of frames by PE core of 4 x 4 patches, and three layers in time."""
    video = {**_PE_LAYERS, "vision_config": _pe_frames(**changes)}
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "PreTrainedTokenizerFast", "<|startoftext|> $A </s>", "<pad>")
    model = PeVideoModel(PeVideoConfig(text_config=_PE_TEXT, video_config=video))
    return save_model(model, published_layouts.pe_video(IMAGE_PX), folder, seed)


def make_pe_audio_video(folder: Path, *, seed: int = 0) -> Path:
    """A whole PE-AV: towers for text and audio besides, and one for both."""
    codec = {"model_type": "dac", "encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "hidden_size": 16}
    small = {"decoder_hidden_size": 16, "n_codebooks": 1, "codebook_size": 8, "codebook_dim": 4}
    both = {
        **_PE_LAYERS,
        "num_hidden_layers": 1,
        "audio_config": {**_PE_LAYERS, "model_type": "pe_audio_encoder", "dac_config": {**codec, **small}},
        "video_config": {**_PE_LAYERS, "model_type": "pe_video_encoder", "vision_config": _pe_frames()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    _save_text_tokenizer(folder, "PreTrainedTokenizerFast", "<|startoftext|> $A </s>", "<pad>")
    model = PeAudioVideoModel(PeAudioVideoConfig(text_config=_PE_TEXT, audio_video_config=both))
    return save_model(model, published_layouts.pe_video(IMAGE_PX), folder, seed)


FAMILIES: dict[str, Callable[..., Path]] = {
    "timesformer": make_timesformer,
    "clip": make_clip,
    "clip vision": make_clip_vision,
    "siglip": make_siglip,
    "siglip vision": make_siglip_vision,
    "siglip2": make_siglip2,
    "xclip": make_xclip,
    "dinov2": make_dinov2,
    "dinov2 registers": make_dinov2_registers,
    "dinov3": make_dinov3,
    "videoprism": make_videoprism,
    "videoprism lvt": make_videoprism_lvt,
    "videomae": make_videomae,
    "videomae pretrained": make_videomae_pretrained,
    "vjepa2": make_vjepa2,
    "vjepa2 pretrained": make_vjepa2_pretrained,
    "pe video": make_pe_video,
    "pe audio video": make_pe_audio_video,
}
"""The vision encoders, each once as fine-tuned or whole, some once more as pre-trained or alone."""
