"""A video language model as a frozen feature extractor: what LLaVA, SmolVLM2 and the Qwen models share.

A vision tower makes tokens of frames, a projector makes video tokens of these, and a causal language model reads them:
first the words before the video, then time step after time step, with words between the steps where the model's own
processor writes them (timestamps). A video token's state depends on what is before it and on nothing after the video:
the forward ends at the last video token. Tower and projector see each frame, or each group of frames that the model
joins, alone; the language model runs once a clip, up to the deepest tap asked for.

Taps: `vision` is what the projector gets, `layer_0` what it gives, `layer_k` the language model's `hidden_states[k]`
at the video tokens, and `final` the last of these, after the final norm.

Not here: what differs between families (a file for each), generating text, training, decoding video.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.decoder import (
    Embedded,
    hidden_states,
    language_taps,
    prefix_states,
    require_decoder,
    require_window,
)
from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.files import (
    SAMPLING_RULE,
    TOKENIZER_FILES,
    backbone_identity,
    digests,
    read_as,
)
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER, text_after_video
from featurecache.backbones.preprocessing import FrameRule, Resize, frame_resize
from featurecache.backbones.prompt import prompt_words

ATTENTION = "sdpa"

_BEFORE_WORDS = ("vision", "layer_0")
"""Taps that no word of the prompt can change."""


@dataclass(frozen=True)
class Architecture:
    """What a family's configuration says of its tokens.

    Attributes:
        family: The family's name, part of the identity.
        title: The family's name for people.
        video_token_id: The token that the model replaces by video tokens.
        vision: The vision tower's tokens as the projector gets them.
        video: The video tokens of the language model.
        video_text: What the model's processor writes in the place of a video, `<video>` for each run of video tokens:
            one for the whole video, or one for each time step with words between them.
        markers: Tokens of `video_text` that the tokenizer must have.
        joined_frames: Neighbouring frames that the tower joins into one time step.
        deepstack: Layers of the language model after which tower states are added to the video tokens.
        more_identity: What else of the video changes states, JSON-ready.
        digests_tokenizer: Whether the tokenizer's files are part of the identity besides the token ids that they make.
    """

    family: str
    title: str
    video_token_id: int
    vision: TapShape
    video: TapShape
    video_text: str = VIDEO_PLACEHOLDER
    markers: tuple[str, ...] = ()
    joined_frames: int = 1
    deepstack: int = 0
    more_identity: Any = None
    digests_tokenizer: bool = False


def read_config(folder: Path, config_class: Any, title: str) -> Any:
    """A model's config.json, whose language model is one of those known here.

    Args:
        folder: The model's files.
        config_class: The class of the family in transformers.
        title: The family's name for people.

    Raises:
        ModelNotFoundError: If the file does not fit the class.
        UnsupportedModelError: If the language model is of another kind.
    """
    config = read_as(config_class, folder, title)
    require_decoder(config.text_config)
    return config


class VideoLanguageInputs:
    """All of a video language model but its weights. Cheap to open, so that a cache hit needs no weights in memory.

    Attributes:
        folder: The model's files.
        config: The architecture, as the transformers class of the family reads config.json.
        architecture: What it says of tokens.
        title: The family's name for people.
        attention: transformers' name of the attention implementation.
        frames: T, frames sampled from a clip.
        image_px: Height and width of a frame as the vision tower sees it.
        words: Token ids around and between the video's steps.
        text_after_video: What the prompt puts after the video; it cannot change a feature.
        taps: Every tap by name, in order of depth, with its shape.
        resumable: Taps from whose stored tokens alone the language model can resume.
        frame_resize: What makes a frame fit, as the processor's files say.

    Raises:
        SettingsError: If the prompt does not fit.
        UnsupportedModelError: If the language model sees fewer tokens than a clip has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Any,
        architecture: Architecture,
        prompt: str,
        frames: int,
        resize: Resize,
        rule: FrameRule,
    ) -> None:
        self.folder, self.config, self.architecture = folder, config, architecture
        self.title, self.attention = architecture.title, ATTENTION
        self.frames = frames
        self.frame_resize = frame_resize(rule, resize)
        self.image_px = rule.image_px
        self.text_after_video = text_after_video(prompt)
        language = config.text_config
        self.words = prompt_words(
            folder,
            prompt,
            video_token_id=architecture.video_token_id,
            vocab_size=language.vocab_size,
            family=architecture.title,
            video_text=architecture.video_text,
            markers=architecture.markers,
        )
        deeper = language_taps(language.num_hidden_layers, architecture.video)
        self.taps = {"vision": architecture.vision, **deeper}
        self.resumable = (
            ("vision",)
            if architecture.deepstack
            else ("vision", "layer_0")
            if any(self.words.between)
            else ("vision", *list(deeper)[:-1])
        )
        require_window(language, len(self.words.before) + self.video_length)

    @property
    def video_length(self) -> int:
        """Tokens from the first video token to the last, with the words between them."""
        video = self.architecture.video
        return video.steps * video.tokens_per_step + sum(map(len, self.words.between))

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes the value of a tap's states, JSON-ready, for the fingerprint.

        Files are taken whole: weights of layers above the tap count too, although they change nothing. Words do
        not count for the taps that lie before them.

        Args:
            tap: One of `taps`.
            dtype: The dtype the model computes in.
            sha256_of: Digest of a file's content.
        """
        family = self.architecture.family
        backbone = backbone_identity(self.folder, family, dtype=dtype, attention=ATTENTION, sha256_of=sha256_of)
        identity: dict[str, Any] = {
            "backbone": backbone,
            "sampling": {"frames": self.frames, "rule": SAMPLING_RULE},
            "preprocessing": self.frame_resize.identity(),
        }
        if tap not in _BEFORE_WORDS:
            if self.architecture.digests_tokenizer:
                backbone["tokenizer"] = digests(self.folder, TOKENIZER_FILES, sha256_of)
            identity["prefix_token_ids"] = list(self.words.before)
            if any(self.words.between):
                identity["token_ids_between_steps"] = [list(ids) for ids in self.words.between]
            if self.architecture.more_identity is not None:
                identity["video"] = self.architecture.more_identity
        return identity


class VideoLanguageBackbone:
    """The loaded, frozen model behind its inputs.

    Args:
        inputs: All but the weights.
        model: The inner model, without logits.
        decoder: Its language model.
        tower: Pixels of frames (N, 3, px, px), or of joined frames (N, frames, 3, px, px), to the projector's input
            (N, P, D_vision).
        project: The projector's input (N, P, D_vision) to video tokens (N, P', D); where tower states are added in the
            language model, these stand behind one another, (N, P', D + deepstack * D).
        projects_frames: Whether frames are projected one by one with the tower, because that makes them smaller.
        after_video: What the model itself puts after a video before more text, shape (tokens, D).
        positions: Place of each token in its sequence by the number of words before the video, shape (S,) or (3, S);
            None for 0, 1, ...

    Attributes:
        inputs: All but the weights.
        model: The inner model.
    """

    def __init__(
        self,
        inputs: VideoLanguageInputs,
        model: Any,
        *,
        decoder: Any,
        tower: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        projects_frames: bool = False,
        after_video: Tensor | None = None,
        positions: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.inputs, self.model, self.decoder = inputs, model, decoder
        self._tower, self._project, self._projects_frames = tower, project, projects_frames
        self._after_video, self._positions = after_video, positions

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures (F, px, px, 3) uint8 of `frame_resize` -> pixels (F, 3, px, px), model's dtype, on its device."""
        return self.inputs.frame_resize.normalized(pictures.to(self.model.device), self.model.dtype)

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, taps: Sequence[str] = ()) -> Tensor:
        """What the model computes on each frame alone, of pixels (F, 3, px, px).

        The tower's tokens as the projector gets them, (F, P, D_vision); video tokens where frames are projected one by
        one and `vision` is not among the taps; the pixels themselves where the tower joins frames.
        """
        if self.inputs.architecture.joined_frames > 1:
            return pixels
        tokens = self._tower(pixels)
        return self._project(tokens) if self._projects_frames and "vision" not in taps else tokens

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """Each tap's states in order of depth, nothing deeper than the deepest; `encoded` is (B, T, ...)."""
        wanted = set(taps)
        is_projected = self._projects_frames and "vision" not in wanted
        tokens = encoded if is_projected else self.vision(encoded)
        if "vision" in wanted:
            wanted.remove("vision")
            yield "vision", TapStates(tokens)
        if not wanted:
            return
        video = self.embedded(tokens if is_projected else self.project(tokens))
        del tokens
        depths = hidden_states(self.decoder, video)
        for tap in list(self.inputs.taps)[1:]:
            if not wanted:
                return
            states = self.at_video(next(depths))  # (B, T', P, D)
            if tap in wanted:
                wanted.remove(tap)
                yield tap, TapStates(states)
            del states  # before the next layer runs

    def vision(self, encoded: Tensor) -> Tensor:
        """Tap `vision` of what `encode_frames` gave for it: (B, T, ...) -> (B, T', P, D_vision)."""
        joined = self.inputs.architecture.joined_frames
        if joined == 1:
            return encoded
        tokens = self._tower(encoded.reshape(-1, joined, *encoded.shape[2:]))  # of (B * T', frames, 3, px, px)
        return tokens.reshape(len(encoded), -1, *tokens.shape[1:])

    def project(self, tokens: Tensor) -> Tensor:
        """Video tokens of tap `vision`: (B, T', P, D_vision) -> (B, T', P', D), or wider by what is added deeper."""
        video = self._project(tokens.flatten(0, 1))
        return video.reshape(*tokens.shape[:2], *video.shape[1:])

    def embedded(self, video: Tensor, before: Sequence[int] | None = None, *, to_go_on: bool = False) -> Embedded:
        """The sequence that the language model reads.

        Args:
            video: Of `project`, (B, T', P, D) or wider.
            before: Token ids before the video; None for those of the prompt.
            to_go_on: Whether text will follow, which the model may want to be parted from the video.
        """
        between: Sequence[Sequence[int]] = self.inputs.words.between or ((),) * (video.shape[1] - 1)
        before = self.inputs.words.before if before is None else before
        steps, *added = torch.split(video, self.inputs.architecture.video.width, dim=-1)
        words = [self._embed(ids, len(video)) for ids in (before, *between)]
        parts = [part for pair in zip(words, steps.to(words[0].dtype).unbind(1), strict=True) for part in pair]
        if to_go_on and self._after_video is not None:
            parts.append(self._after_video.to(words[0]).expand(len(video), -1, -1))
        silent = [torch.zeros_like(one) for one in words] if added else []
        return Embedded(
            torch.cat(parts, dim=1),
            None if self._positions is None else self._positions(len(before)),
            tuple(
                torch.cat([part for pair in zip(silent, one.unbind(1), strict=True) for part in pair], dim=1)
                for one in added
            ),
        )

    def at_video(self, states: Tensor) -> Tensor:
        """Video tokens' states of a sequence behind the prompt's words: (B, S, D) -> (B, T', P, D)."""
        words, video = self.inputs.words, self.inputs.architecture.video
        if not any(words.between):
            states = states[:, len(words.before) :]
            return states.reshape(len(states), video.steps, video.tokens_per_step, -1)
        starts, at = [], len(words.before)
        for ids in (*words.between, ()):
            starts.append(at)
            at += video.tokens_per_step + len(ids)
        return torch.stack([states[:, start : start + video.tokens_per_step] for start in starts], dim=1)

    def resumed(self, tokens: Tensor, tap: str) -> Embedded:
        """The sequence that resumes from stored tokens (B, S, D) of `vision` or `layer_0` (one of `resumable`)."""
        in_steps = tokens.to(self.model.dtype).reshape(len(tokens), self.inputs.taps[tap].steps, -1, tokens.shape[-1])
        return self.embedded(self.project(in_steps) if tap == "vision" else in_steps)

    def prefix_states(self, layer: int) -> Tensor:
        """`hidden_states[layer]` of the words before the video, which no video changes, shape (S_prefix, D)."""
        return prefix_states(self.model, self.decoder, self.inputs.words.before, layer)

    def _embed(self, ids: Sequence[int], count: int) -> Tensor:
        """Token ids as embedded words of a batch, (count, len(ids), D)."""
        tokens = torch.tensor(ids, dtype=torch.int64, device=self.model.device)
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded.expand(count, -1, -1)
