"""X-CLIP's generator of prompts: what each clip adds to a text's vector before the two are compared.

A text's vector t becomes t + g(t, the clip's patches), at unit length, where g is two layers of attention from the text
to the patches. Texts do not see each other, so each can be computed alone. The generator is small, needs neither tower
and runs on what the cache holds (`prompted/tokens`); whoever saves it keeps `sizes_of` beside its weights.

Source: Ni et al., section 3.3. https://arxiv.org/abs/2208.02816
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize
from transformers import XCLIPConfig
from transformers.models.x_clip.modeling_x_clip import XCLIPPreTrainedModel, XCLIPPromptGenerator

from featurecache.backbones.files import load_frozen

ATTENTION = "sdpa"
_SIZES = ("projection_dim", "prompt_layers", "prompt_num_attention_heads")
_MOST = 65_536


class PromptGenerator(XCLIPPreTrainedModel):  # type: ignore[misc]
    """The generator of prompts alone, as transformers' module of it.

    Args:
        config: The whole model's config.

    Raises:
        ValueError: If its heads do not share the width evenly.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.projection_dim % config.prompt_num_attention_heads:
            raise ValueError(
                f"{config.prompt_num_attention_heads} prompt_num_attention_heads share a projection_dim of "
                f"{config.projection_dim}"
            )
        self.prompts_generator = XCLIPPromptGenerator(config)
        self.post_init()

    def forward(self, texts: Tensor, clips: Tensor) -> Tensor:
        """Texts (Q, D) as the text tower projects them, `prompted/tokens` (B, 1 + P, D) -> unit vectors (B, Q, D)."""
        texts = texts.expand(len(clips), -1, -1)
        return normalize(texts + self.prompts_generator(texts, clips[:, 1:]), dim=-1)


def load_generator(folder: Path, config: Any) -> PromptGenerator:
    """The generator of a model on the CPU in float32; errors as `load_frozen`."""
    loaded: PromptGenerator = load_frozen(
        PromptGenerator, folder, family="xclip", dtype="float32", device="cpu", attention=ATTENTION, config=config
    )
    return loaded


def sizes_of(generator: PromptGenerator) -> dict[str, Any]:
    """What `sized_generator` makes the same module of, JSON-ready."""
    config = generator.config
    return {
        **{name: getattr(config, name) for name in _SIZES},
        "prompt_hidden_act": config.prompt_hidden_act,
        "text_eps": config.text_config.layer_norm_eps,
        "vision_eps": config.vision_config.layer_norm_eps,
    }


def sized_generator(sizes: Mapping[str, Any]) -> PromptGenerator:
    """A generator of these sizes, untrained.

    Raises:
        ValueError, KeyError, TypeError: If they are not what `sizes_of` gives.
    """
    wrong = [name for name in _SIZES if type(sizes[name]) is not int or not 0 < sizes[name] <= _MOST]
    if wrong or not all(0 < float(sizes[name]) < 1 for name in ("text_eps", "vision_eps")):
        raise ValueError(f"sizes of the generator of prompts are {dict(sizes)!r:.200}")
    config = XCLIPConfig(
        **{name: sizes[name] for name in _SIZES},
        prompt_hidden_act=str(sizes["prompt_hidden_act"]),
        text_config={"layer_norm_eps": float(sizes["text_eps"])},
        vision_config={"layer_norm_eps": float(sizes["vision_eps"])},
    )
    return PromptGenerator(config)
