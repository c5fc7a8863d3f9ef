"""LLaVA-NeXT-Video as a frozen feature extractor.

Attention is causal, so a video token's state depends on the text before the video and on nothing
after it: the forward ends at the last video token. The inner model is run (no logits, no KV cache,
no list of hidden states) and batches have one length, so no attention mask is built.

Not here: generating text, training, decoding video.

Source of the architecture: https://llava-vl.github.io/blog/2024-04-30-llava-next-video/
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoModel, LlavaNextVideoProcessor
from transformers.utils import logging as transformers_logging

from featurecache.errors import ModelNotFoundError, NoVideoTokensError, SettingsError, UnsupportedModelError

VIDEO_PLACEHOLDER = "<video>"
ATTENTION = "sdpa"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class LlavaNextVideoInputs:
    """All that stands in front of the weights: processor, token ids before the video, preprocessing.

    Cheap to open, so that a cache hit needs no weights in memory.

    Attributes:
        image_px: Height and width of a frame as the vision tower sees it.
        feature_dim: D, the width of the language model's states.
        video_tokens: S, the number of video tokens of one clip.
        prefix_ids: Token ids in front of the video, shape (S_prefix,).
        text_after_video: What the prompt puts behind the video; it cannot change a feature.
    """

    def __init__(self, folder: Path, *, prompt: str, frames: int, resize: Literal["crop", "pad", "squash"]) -> None:
        self.folder = folder
        self.frames = frames
        self.resize = resize
        with _quiet_loading(folder):
            self.processor = LlavaNextVideoProcessor.from_pretrained(folder, local_files_only=True)
            self.config = LlavaNextVideoConfig.from_pretrained(folder, local_files_only=True)
        self.image_px = _image_px(self.config, self.processor)
        self.feature_dim = int(self.config.text_config.hidden_size)
        self.prefix_ids, self.video_tokens = _prefix_ids(self.processor, prompt, frames, self.image_px)
        self.text_after_video = prompt.partition(VIDEO_PLACEHOLDER)[2].strip()

    def identity(self, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes a feature's value, JSON-ready, for the fingerprint.

        Args:
            dtype: The dtype the model computes in.
            sha256_of: Digest of a file's content.
        """
        weights = sorted(path.name for path in self.folder.glob("*.safetensors"))
        return {
            "backbone": {
                "family": "llava_next_video",
                "config": _digests(self.folder, ("config.json",), sha256_of),
                "weights": _digests(self.folder, weights, sha256_of),
                "processor": _digests(self.folder, _PROCESSOR_FILES, sha256_of),
                "tokenizer": _digests(self.folder, _TOKENIZER_FILES, sha256_of),
                "compute_dtype": dtype,
                "attention": ATTENTION,
            },
            "prefix_token_ids": self.prefix_ids.tolist(),
            "sampling": {"frames": self.frames, "rule": "last frame at or before start + (k + 1/2) * length / frames"},
            "preprocessing": {
                "resize": self.resize,
                "image_px": self.image_px,
                "kernel": "the processor's, on 8-bit frames",
            },
        }

    def preprocess(self, frames: np.ndarray, device: torch.device) -> Tensor:
        """One clip's frames as the vision tower takes them: resized, cropped or padded, normalised.

        Args:
            frames: RGB frames, shape (T, H, W, 3), uint8.
            device: Where the work is done.

        Returns:
            Pixel values, shape (T, 3, image_px, image_px), float32.
        """
        video = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2)  # (T, 3, H, W)
        settings: dict[str, Any] = {}
        if self.resize == "pad":
            video = _pad_to_square(video, self.processor.video_processor.image_mean)
        elif self.resize == "squash":
            settings = {"size": {"height": self.image_px, "width": self.image_px}, "do_center_crop": False}
        pixels: Tensor = self.processor.video_processor(
            [video],
            do_sample_frames=False,
            return_tensors="pt",
            device=device,
            **settings,
        )["pixel_values_videos"][0]
        return pixels


class LlavaNextVideoBackbone:
    """The loaded, frozen model behind its inputs.

    Attributes:
        inputs: Preprocessing and the token ids before the video.
    """

    def __init__(
        self, inputs: LlavaNextVideoInputs, *, dtype: Literal["float32", "bfloat16", "float16"], device: str
    ) -> None:
        self.inputs = inputs
        with _quiet_loading(inputs.folder):
            model = LlavaNextVideoModel.from_pretrained(
                inputs.folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=_DTYPES[dtype],
                attn_implementation=ATTENTION,
            )
        try:
            self.model = model.eval().requires_grad_(False).to(device)
        except (RuntimeError, AssertionError) as error:
            raise SettingsError(
                f"extract.device must be a device of this machine with room for the model, but {device!r} gave: "
                f"{_first_line(error)} Choose another device, e.g. cpu."
            ) from error

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Pixel values (T, 3, image_px, image_px) of frames (T, H, W, 3), in the model's dtype, on its device."""
        return self.inputs.preprocess(frames, self.model.device).to(self.model.dtype)

    @torch.inference_mode()
    def video_token_states(self, pixels: Tensor) -> Tensor:
        """States of the video tokens after the language model's final norm.

        Args:
            pixels: Pixel values, shape (B, T, 3, image_px, image_px).

        Returns:
            Shape (B, S, D), in the model's dtype.
        """
        video = self.model.get_video_features(pixels, return_dict=True).pooler_output  # (B, S, D)
        prefix = self.model.get_input_embeddings()(self.inputs.prefix_ids.to(self.model.device))  # (S_prefix, D)
        embeddings = torch.cat([prefix.expand(len(pixels), -1, -1), video.to(prefix.dtype)], dim=1)
        states: Tensor = self.model.language_model(
            inputs_embeds=embeddings, attention_mask=None, use_cache=False
        ).last_hidden_state
        return states[:, len(self.inputs.prefix_ids) :]


@contextmanager
def _quiet_loading(folder: Path) -> Iterator[None]:
    """Loading without the loader's chatter, and with its many exceptions as one of ours."""
    verbosity = transformers_logging.get_verbosity()
    # The checkpoint's language-model head is left out on purpose; the loader would warn about it.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the loader raises OSError, ValueError, KeyError, SafetensorError, ...
        raise ModelNotFoundError(
            f"the model folder must hold whole LLaVA-NeXT-Video files, but loading {folder} gave: "
            f"{type(error).__name__}: {_first_line(error)} "
            "Copy the folder again, safetensors and processor files included."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or "no reason given").splitlines()[0]
    return text if text.endswith(".") else text + "."


def _pad_to_square(video: Tensor, mean: Sequence[float]) -> Tensor:
    """Frames (T, 3, H, W) centred on a square of the processor's mean colour, (T, 3, max(H, W), max(H, W))."""
    height, width = video.shape[-2:]
    side = max(height, width)
    square = torch.tensor([round(255 * channel) for channel in mean], dtype=torch.uint8, device=video.device)
    square = square[None, :, None, None].repeat(len(video), 1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, :, top : top + height, left : left + width] = video
    return square


def _image_px(config: LlavaNextVideoConfig, processor: LlavaNextVideoProcessor) -> int:
    vision = config.vision_config
    size = int(vision.image_size)
    found: dict[str, Any] = {
        "crop_size": processor.video_processor.crop_size,
        "size": processor.video_processor.size,
        "patch_size": processor.patch_size,
    }
    crop = dict(found["crop_size"] or {})
    edges = set(dict(found["size"] or {}).values()) - {None}
    if (
        (crop.get("height"), crop.get("width")) != (size, size)
        or edges != {size}
        or processor.patch_size != vision.patch_size
    ):
        raise UnsupportedModelError(
            f"the processor must make frames of {size} px in patches of {vision.patch_size} px as the vision tower "
            f"expects, but its files say {found}. "
            "Copy processor_config.json and preprocessor_config.json of the model's own repository."
        )
    return size


def _prefix_ids(processor: LlavaNextVideoProcessor, prompt: str, frames: int, image_px: int) -> tuple[Tensor, int]:
    """Token ids before the video (S_prefix,), and how many video tokens follow."""
    if prompt.count(VIDEO_PLACEHOLDER) != 1:
        raise SettingsError(
            f"features.prompt must hold {VIDEO_PLACEHOLDER} exactly once, "
            f"but it holds it {prompt.count(VIDEO_PLACEHOLDER)} times. Write the words first, then {VIDEO_PLACEHOLDER}."
        )
    blank = torch.zeros(frames, 3, image_px, image_px, dtype=torch.uint8)
    ids = processor(text=[prompt], videos=[blank], do_sample_frames=False, return_tensors="pt")["input_ids"][0]
    positions = (ids == processor.video_token_id).nonzero()[:, 0]
    if len(positions) == 0:
        raise NoVideoTokensError(
            f"the prompt must become video tokens, but {frames} frames of {image_px} px gave none. "
            "Check the processor's patch_size."
        )
    start = int(positions[0])
    bos = processor.tokenizer.bos_token_id
    if bos is not None and ids[:2].tolist() == [bos, bos]:
        raise SettingsError(
            f"features.prompt must not begin with {processor.tokenizer.bos_token!r}, "
            "but it does, and the tokenizer adds its own. Remove it."
        )
    return ids[:start], len(positions)


def _digests(folder: Path, names: Sequence[str], sha256_of: Callable[[Path], str]) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}
