"""Small random models that can be asked: their vocabulary has yes, no and labels, and answers can end."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.asking import Asked, AskedBackbone, AskedInputs
from featurecache.backbones.wording import Wording
from tests import tiny_models, tiny_video_language
from tests.plain_forward import plain_batch
from tests.published_layouts import change_config

FRAMES = 4
ANSWERS = ["yes", "Yes", "no", "none", ",", "ventilation", "suction", "tube", "stimulation", "is", "there", "</s>"]


def make_llava_next_video(folder: Path, seed: int = 0) -> Path:
    return tiny_models.make_llava_next_video(folder, seed=seed, words=[*tiny_models.WORDS, *ANSWERS[:-1]])


def make_llava_onevision(folder: Path) -> Path:
    tiny_video_language.make_llava_onevision(folder, more_words=ANSWERS)
    return change_config(folder, {"text_config": {"eos_token_id": 12 + len(ANSWERS) - 1}})


def make_smolvlm(folder: Path) -> Path:
    tiny_video_language.make_smolvlm(folder, more_words=ANSWERS)
    return change_config(
        folder, {"text_config": {"eos_token_id": tiny_video_language.SMOLVLM_WORDS + len(ANSWERS) - 1}}
    )


def make_qwen3_vl(folder: Path) -> Path:
    tiny_video_language.make_qwen3_vl(folder, more_words=ANSWERS)
    return change_config(folder, {"text_config": {"eos_token_id": tiny_video_language.QWEN_WORDS + len(ANSWERS) - 1}})


def make_qwen2_5_vl(folder: Path) -> Path:
    tiny_video_language.make_qwen2_5_vl(folder, more_words=ANSWERS)
    end = {"eos_token_id": tiny_video_language.QWEN_WORDS + len(ANSWERS) - 1}
    (folder / "generation_config.json").write_text(json.dumps(end))
    return folder


def make_internvl(folder: Path) -> Path:
    tiny_video_language.make_internvl(folder, more_words=ANSWERS)
    return change_config(folder, {"text_config": {"eos_token_id": tiny_video_language.INTERN_WORDS + len(ANSWERS) - 1}})


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llava_next_video": make_llava_next_video,
    "llava_onevision": make_llava_onevision,
    "smolvlm": make_smolvlm,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "internvl": make_internvl,
}


def open_asked(folder: Path, ask: Callable[[Wording], Asked]) -> AskedBackbone:
    """The model with what it is asked, in float32 on the CPU."""
    inner = open_inputs(folder, prompt="<video>", frames=FRAMES, resize="model")
    backbone = open_backbone(AskedInputs(inner, ask(Wording(inner))), dtype="float32", device="cpu")
    assert isinstance(backbone, AskedBackbone)
    return backbone


def pixels_of_clips(backbone: AskedBackbone, clips: int) -> Tensor:
    """Random pixels, (B, T, 3, px, px)."""
    px = backbone.inputs.image_px
    return torch.randn(clips, FRAMES, 3, px, px, generator=torch.Generator().manual_seed(1))


def answers(backbone: AskedBackbone, pixels: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
    """The answers about clips (B, T, 3, px, px), by tap: (B, width)."""
    encoded = backbone.encode_frames(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    return {tap: states.tokens[:, 0, 0] for tap, states in backbone.states(encoded, taps)}


class Plain:
    """The whole model of transformers, one text about one clip at a time."""

    def __init__(self, folder: Path, backbone: AskedBackbone) -> None:
        config = backbone.inputs.config
        self.model: Any = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def inputs(self, clip: Tensor, prompt: str, more: Sequence[int] = ()) -> dict[str, Tensor]:
        """A prompt and the tokens behind it about a clip (T, 3, px, px), as the model takes them."""
        return plain_batch(self.model.config, self.tokenizer, clip, prompt, more)

    @torch.no_grad()
    def logits(self, clip: Tensor, prompt: str, more: Sequence[int] = ()) -> Tensor:
        """Logits behind the prompt and behind each of the tokens after it: (1 + len(more), V)."""
        found: Tensor = self.model(**self.inputs(clip, prompt, more), use_cache=False).logits
        return found[0, -1 - len(more) :]
