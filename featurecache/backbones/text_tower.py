"""The text tower of an image-text or video-text model: words as vectors in the space of the tap `joint`.

Texts are encoded by the tokenizer.json that the fingerprint digests, in the very way of its trial under limits, and
laid out as in the model's training: SigLIP's are in lower case, and SigLIP 1's without punctuation, which transformers
leaves to the classes of their tokenizers; CLIP's and PE's end at their last token, SigLIP's and VideoPrism's are filled
up to the full length. A text that is too long is refused, where a processor cuts it off. The tower computes in float32
on the CPU.

The similarity of a text's vector t and a picture's x is t . x; the model's logit for the pair is
`scale * t . x + bias`. Both are of unit length but in PE, which compares them as they are. VideoPrism has neither scale
nor bias of its own: they are 1 and 0. X-CLIP makes a text's vector anew for every clip (`xclip_prompts.py`): what
depends on the text alone is its vector before that, of any length.

Sources: Radford et al., https://arxiv.org/abs/2103.00020; Zhai et al., https://arxiv.org/abs/2303.15343;
Zhao et al., https://arxiv.org/abs/2402.13217; Tschannen et al., https://arxiv.org/abs/2502.14786; Vyas et al.,
https://arxiv.org/abs/2512.19687; Ni et al., https://arxiv.org/abs/2208.02816
"""

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPTextModelWithProjection,
    Siglip2Config,
    Siglip2TextModel,
    SiglipConfig,
    SiglipTextModel,
    VideoPrismConfig,
    VideoPrismTextModel,
    XCLIPConfig,
    XCLIPTextModel,
)
from transformers.models.pe_video.modeling_pe_video import PeVideoContrastiveHead, PeVideoPreTrainedModel
from transformers.models.x_clip.modeling_x_clip import XCLIPPreTrainedModel

from featurecache.backbones import model_type_of
from featurecache.backbones.encoder import inside
from featurecache.backbones.files import (
    LOCAL_ONLY,
    TOKENIZER_FILES,
    backbone_identity,
    digests,
    load_frozen,
    quiet_loading,
)
from featurecache.backbones.model_folder import read_json
from featurecache.backbones.perception import video_config
from featurecache.backbones.tokenizer import OWN_FILES, open_encoder
from featurecache.backbones.weight_files import find_weight_files
from featurecache.backbones.xclip_prompts import PromptGenerator, load_generator
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError


@dataclass(frozen=True)
class _Family:
    """What differs between families.

    Attributes:
        config_of: A folder -> the whole model's config.
        model_class: The text tower with its projection.
        attention: transformers' name of the attention implementation.
        is_filled: Whether texts are filled up to the full length.
        is_masked: Whether what fills them up is masked.
        is_lower: Whether texts are in lower case.
        is_unit: Whether vectors are compared at unit length.
        is_sigmoid: Whether a text's logit is a score by itself; otherwise texts compete by softmax.
        of_whole: Whether its class is made of the whole model's config.
        is_prompted: Whether clips change a text's vector before the two are compared.
    """

    config_of: Callable[[Path], Any]
    model_class: Any
    attention: str
    is_filled: bool
    is_masked: bool = False
    is_lower: bool = False
    is_unit: bool = True
    is_sigmoid: bool = False
    of_whole: bool = False
    is_prompted: bool = False


class _PeText(PeVideoPreTrainedModel):  # type: ignore[misc]
    """The text half of a PE Video."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.text_model = AutoModel.from_config(config.text_config)
        width = config.text_config.hidden_size
        self.text_video_head = PeVideoContrastiveHead(width, width)
        self.post_init()

    def forward(self, input_ids: Tensor) -> Any:
        """The text's vector is `pooler_output`."""
        out = self.text_model(input_ids=input_ids, output_hidden_states=True)
        out.pooler_output = self.text_video_head(out.hidden_states[-1][:, 0])
        return out


class _XClipText(XCLIPPreTrainedModel):  # type: ignore[misc]
    """The text tower of an X-CLIP with its projection."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.text_model = XCLIPTextModel(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor) -> Any:
        """The text's vector before any clip's prompt is `pooler_output`."""
        out = self.text_model(input_ids=input_ids)
        out.pooler_output = self.text_projection(out.pooler_output)
        return out


def _read(config_class: Any) -> Callable[[Path], Any]:
    return lambda folder: config_class.from_pretrained(folder, **LOCAL_ONLY)


_PE = _Family(video_config, _PeText, "sdpa", is_filled=False, is_unit=False, is_sigmoid=True, of_whole=True)
_SIGLIP = _Family(_read(SiglipConfig), SiglipTextModel, "sdpa", is_filled=True, is_lower=True, is_sigmoid=True)
_FAMILIES = {
    "clip": _Family(_read(CLIPConfig), CLIPTextModelWithProjection, "sdpa", is_filled=False),
    "siglip": _SIGLIP,
    "siglip2": replace(_SIGLIP, config_of=_read(Siglip2Config), model_class=Siglip2TextModel),
    "pe_video": _PE,
    "pe_audio_video": replace(_PE, model_class=inside(_PeText, "video_model")),
    "xclip": _Family(_read(XCLIPConfig), _XClipText, "sdpa", is_filled=False, of_whole=True, is_prompted=True),
    "videoprism": _Family(_read(VideoPrismConfig), VideoPrismTextModel, "eager", is_filled=True, is_masked=True),
}
"""`model_type` of whole models -> its family."""


class TextTower:
    """A model's text tower; its weights are loaded when a text is embedded first.

    Args:
        folder: The model's files.

    Attributes:
        is_sigmoid: Whether a text's logit is a score by itself (SigLIP, PE); otherwise texts compete by softmax.
        is_unit: Whether vectors and the model's `joint` are compared at unit length (all but PE's).
        is_prompted: Whether clips change a text's vector before the two are compared (X-CLIP).

    Raises:
        UnsupportedModelError: If the model has no text tower that compares a text with cached embeddings.
        ModelNotFoundError: If a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._type = folder, model_type_of(folder)
        if self._type not in _FAMILIES:
            raise UnsupportedModelError(
                f"scores from words need a model with a text tower, of {', '.join(_FAMILIES)}, but the project's is "
                f"{self._type!r}. Set features.model to such weights, e.g. google/siglip-base-patch16-224."
            )
        self._family = _FAMILIES[self._type]
        self.is_sigmoid, self.is_unit = self._family.is_sigmoid, self._family.is_unit
        self.is_prompted = self._family.is_prompted
        with quiet_loading(folder, self._type):
            config = self._family.config_of(folder)
        self._whole, self._config = config, config.text_config
        if self._type == "clip":
            self._config.projection_dim = config.projection_dim  # the whole model's word counts, as for its class

    def identity(self, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input but the words that changes a text's vector, JSON-ready, for the fingerprint."""
        own = backbone_identity(
            self._folder, self._type, dtype="float32", attention=self._family.attention, sha256_of=sha256_of
        )
        del own["processor"]
        lower = {"texts": "as trained"} if self._family.is_lower else {}
        return {**own, "tokenizer": digests(self._folder, TOKENIZER_FILES, sha256_of), **lower}

    @property
    def scale_and_bias(self) -> tuple[float, float]:
        """What a similarity is multiplied by, and what is added, to give the model's logit.

        Raises:
            ModelNotFoundError: If the weights lack one, or it is not finite.
        """
        if self._type == "videoprism":
            return 1.0, 0.0
        if not self.is_unit:
            return self._number("text_video_logit_scale"), self._number("text_video_logit_bias")
        scale = math.exp(self._number("logit_scale"))
        return scale, self._number("logit_bias") if self.is_sigmoid else 0.0

    def _number(self, name: str) -> float:
        for path in find_weight_files(self._folder).paths.values():
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # no mapping
                    value = file.get_tensor(key).float() if key.rpartition(".")[2] == name else None
                    if value is not None and value.numel() == 1 and bool(value.isfinite().all()):
                        return float(value)
        raise ModelNotFoundError(
            f"the weights of a {self._type} must hold {name}, one finite number, but those in {self._folder} do not. "
            "Take the weights of the whole model, text tower included, from its repository."
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as token ids, not filled up.

        Raises:
            SettingsError: If a text is empty or too long.
            UnsupportedModelError: If the tokenizer makes ids that the tower does not know.
            FeatureCacheError: As `open_encoder`.
        """
        most = self._config.max_position_embeddings
        told = [self._as_trained(text) for text in texts]
        encoder = open_encoder(self._folder, told, family=self._type)
        found = [list(encoder.encode(text).ids) for text in told]
        for text, ids in zip(texts, found, strict=True):
            if not text.strip() or not ids or len(ids) > most:
                raise SettingsError(
                    f"a text must have 1 to {most} of the model's tokens, but {text[:60]!r} has {len(ids)}. "
                    "Say it in other words."
                )
            if max(ids) >= self._config.vocab_size:
                raise UnsupportedModelError(
                    f"the tokenizer must fit the model, but that in {self._folder} makes token {max(ids)} where the "
                    f"text tower knows {self._config.vocab_size}. {OWN_FILES}"
                )
        return found

    def _as_trained(self, text: str) -> str:
        """A text as the classes of SigLIP's tokenizers spell it: in lower case, SigLIP 1's without punctuation."""
        own = self._tokenizer_config
        if not self._family.is_lower:
            return text
        text = text.lower() if own.get("do_lower_case", True) else text
        if not str(own.get("tokenizer_class")).startswith("SiglipTokenizer"):
            return text
        return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors, (Q, D) float32; of unit length where `is_unit`, but for those that clips change.

        Raises:
            FeatureCacheError: As `token_ids`, and if weights are missing or damaged.
        """
        rows = []
        for ids in self.token_ids(texts):
            told = torch.tensor([ids])
            masked = {}
            if self._family.is_filled:
                gap = self._config.max_position_embeddings - len(ids)
                is_left = self._tokenizer_config.get("padding_side") == "left"
                told = torch.nn.functional.pad(told, (gap, 0) if is_left else (0, gap), value=self._fill)
                if self._family.is_masked:
                    masked = {"attention_mask": torch.tensor([[1] * len(ids) + [0] * gap])}
            with torch.inference_mode():
                out = self._loaded(input_ids=told, **masked)
            vector = out.text_embeds if self._type == "clip" else out.pooler_output
            is_ready = self.is_unit and not self.is_prompted
            rows.append(vector[0] / vector[0].norm() if is_ready else vector[0])
        return torch.stack(rows)

    @cached_property
    def generator(self) -> PromptGenerator | None:
        """What clips change texts' vectors by; None where they do not."""
        return load_generator(self._folder, self._whole) if self.is_prompted else None

    @cached_property
    def _loaded(self) -> Any:
        return load_frozen(
            self._family.model_class,
            self._folder,
            family=self._type,
            dtype="float32",
            device="cpu",
            attention=self._family.attention,
            config=self._whole if self._family.of_whole else self._config,
        )

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        path = self._folder / "tokenizer_config.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def _fill(self) -> int:
        """The id that texts are filled up with."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if not (self._folder / name).is_file():
                continue
            token = read_json(self._folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            found = open_encoder(self._folder, [], family=self._type).token_to_id(token) if token else None
            if found is not None:
                return int(found)
        raise UnsupportedModelError(
            f"texts of a {self._type} are filled up with a token, but no pad_token of the vocabulary stands in "
            f"tokenizer_config.json or special_tokens_map.json of {self._folder}. {OWN_FILES}"
        )
