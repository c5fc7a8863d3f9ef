"""A video language model with questions as a backbone: its answers are features, cached and found again as others are.

`AskedInputs` and `AskedBackbone` wrap those of a family, so extraction, claims, checksums and withdrawal serve answers
as they serve features. What is asked is token ids (`wording.py` makes them of words): the fingerprint holds these, the
weights, the sampling of frames and the model's dtype, and a bundle can ask again from its feature space alone.

Each kind of question has two taps. Its own, e.g. `zs-b`, holds numbers that vary continuously; `zs-b_said` holds
decisions and words that the model chose, as token ids, in which a rounding can flip a near tie. Captions and what is
said of them (`captioning.py`) are such throughout.

Not here: what answers mean for labels (`heads/zeroshot/`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from featurecache.backbones.captioning import JudgedCaption
from featurecache.backbones.continuation import (
    SAID,
    Continuation,
    Pick,
    gumbel_noise,
    most_probable,
    output_weights,
    sampled,
)
from featurecache.backbones.decoder import require_window
from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.resize import FrameResize
from featurecache.backbones.token_tree import TokenTree
from featurecache.errors import UnsupportedModelError

if TYPE_CHECKING:
    from featurecache.backbones.video_language import VideoLanguageBackbone


class Asked(Protocol):
    """What a model is asked about each clip, as token ids."""

    @property
    def kind(self) -> str:
        """Names the kind, and its tap."""
        ...

    @property
    def before(self) -> tuple[int, ...]:
        """Token ids before the video."""
        ...

    @property
    def widths(self) -> dict[str, int]:
        """Numbers that each tap holds of a clip, by the tap's name."""
        ...

    @property
    def longest(self) -> int:
        """Tokens after the video at most."""
        ...

    def fields(self, tap: str) -> dict[str, Any]:
        """What of it changes a tap's numbers, JSON-ready, for the fingerprint."""
        ...

    def answers(self, clips: Continuation, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each of these taps with its numbers of B clips, shape (B, width)."""
        ...


@dataclass(frozen=True)
class YesNoQuestions:
    """Q questions that are answered with yes or no (ZS-B).

    The tap `zs-b` holds log p(yes) / p(no) of each question, then the log probability of yes and no together;
    `zs-b_said` the most probable first token of each answer.

    Attributes:
        before: Token ids before the video, the same for all.
        questions: Token ids of each question, after the video, up to where the answer begins.
        yes: Tokens that say yes.
        no: Tokens that say no.

    Source: Guerriero et al., section 3.3.
    """

    before: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    yes: tuple[int, ...]
    no: tuple[int, ...]
    kind: str = "zs-b"

    @property
    def widths(self) -> dict[str, int]:
        """As `Asked`."""
        return {self.kind: 2 * len(self.questions), self.kind + SAID: len(self.questions)}

    @property
    def longest(self) -> int:
        """As `Asked`."""
        return max(map(len, self.questions))

    def fields(self, tap: str) -> dict[str, Any]:  # noqa: ARG002  # both taps are of one pass
        """As `Asked`."""
        return _as_lists(self)

    def answers(self, clips: Continuation, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As `Asked`."""
        tree = TokenTree.of(self.questions)
        logits = clips.logits(clips.after(tree)[:, list(tree.ends)])  # (B, Q, V)
        if self.kind in taps:
            normalised = torch.log_softmax(logits, dim=-1)
            yes, no = (normalised[..., list(ids)].logsumexp(dim=-1) for ids in (self.yes, self.no))
            yield self.kind, torch.cat([yes - no, torch.logaddexp(yes, no)], dim=1)
        if self.kind + SAID in taps:
            yield self.kind + SAID, logits.argmax(dim=-1).float()


@dataclass(frozen=True)
class ActivityList:
    """One question whose answer is a comma-separated list of labels (ZSC-CO), of which L are allowed.

    The tap `zsc-co` holds the log odds of each label under the allowed lists' probabilities (C numbers), the log
    probability of all allowed lists together, then that of each (L). `zsc-co_said` holds which labels (1 or -1) are in
    the list that greedy decoding gives where only allowed lists can be said (C), and in the most probable list (C);
    the places of `samples` drawn lists; the free answer's token ids, greedy, and those of `samples` drawn ones.

    Attributes:
        before: Token ids before the video.
        question: Token ids of the question, after the video.
        lists: Token ids of each allowed list, ended by the first of `ends`.
        members: Which of the C labels are in each list: L rows of 0 and 1.
        ends: Tokens that end an answer.
        new_tokens: Tokens of a free answer at most.
        samples: Lists and free answers that are drawn besides.
        seed: Of the draws.
        temperature: Of the draws.

    Source: Guerriero et al., section 3.2.
    """

    before: tuple[int, ...]
    question: tuple[int, ...]
    lists: tuple[tuple[int, ...], ...]
    members: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    new_tokens: int = 0
    samples: int = 0
    seed: int = 0
    temperature: float = 1.0
    kind: str = "zsc-co"

    @property
    def widths(self) -> dict[str, int]:
        """As `Asked`."""
        labels = len(self.members[0])
        return {
            self.kind: labels + 1 + len(self.lists),
            self.kind + SAID: 2 * labels + self.samples + (1 + self.samples) * self.new_tokens,
        }

    @property
    def longest(self) -> int:
        """As `Asked`."""
        return len(self.question) + max(self.new_tokens, *map(len, self.lists))

    def fields(self, tap: str) -> dict[str, Any]:
        """As `Asked`."""
        fields = _as_lists(self)
        if tap == self.kind:
            fields = {name: one for name, one in fields.items() if name not in _OF_ANSWERS}
        elif not self.samples:
            fields = {name: one for name, one in fields.items() if name not in ("samples", "seed", "temperature")}
        return fields

    @cached_property
    def _tree(self) -> TokenTree:
        return TokenTree.of([(*self.question, *one) for one in self.lists])

    def answers(self, clips: Continuation, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As `Asked`."""
        tree = self._tree
        ways = clips.log_probabilities(tree, clips.after(tree))  # (B, nodes, most children)
        lists = self.list_log_probabilities(ways)  # (B, L)
        if self.kind in taps:
            yield self.kind, torch.cat([self.log_odds(lists), lists.logsumexp(dim=1, keepdim=True), lists], dim=1)
        if self.kind + SAID in taps:
            draws = self._draws(clips.words)
            members = 2.0 * torch.tensor(self.members, device=lists.device) - 1  # (L, C)
            chosen = [members[self.walked(ways, most_probable)], members[lists.argmax(dim=1)]]
            drawn = [self.walked(ways, pick)[:, None].float() for pick in draws]
            said = [
                clips.say(self.question, most=self.new_tokens, ends=self.ends, pick=pick).float()
                for pick in (most_probable, *draws)
            ]
            yield self.kind + SAID, torch.cat([*chosen, *drawn, *said], dim=1)

    def _draws(self, words: int) -> list[Pick]:
        """What draws each sample, of lists or of any of so many words."""
        numbers = torch.Generator().manual_seed(self.seed)
        steps = max(self.new_tokens, *map(len, self.lists))
        return [sampled(self.temperature, gumbel_noise((steps, words), numbers)) for _ in range(self.samples)]

    def list_log_probabilities(self, ways: Tensor) -> Tensor:
        """Log probability of each allowed list, from those of each step: (B, nodes, most children) -> (B, L)."""
        tree = self._tree
        of_node = torch.zeros(ways.shape[:2], device=ways.device)  # (B, nodes): of each node behind its parent
        nodes, columns = torch.nonzero(tree.children >= 0, as_tuple=True)
        of_node[:, tree.children[nodes, columns].to(ways.device)] = ways[
            :, nodes.to(ways.device), columns.to(ways.device)
        ]
        paths = torch.zeros(len(self.lists), len(tree.tokens), device=ways.device)
        for at in range(len(self.lists)):
            paths[at, tree.path(at)[len(self.question) :]] = 1.0
        return of_node @ paths.T

    def log_odds(self, lists: Tensor) -> Tensor:
        """Log odds of each label under the lists' probabilities, normalised to sum to 1: (B, L) -> (B, C)."""
        with_label = torch.tensor(self.members, dtype=torch.bool, device=lists.device).T  # (C, L)
        on, off = (
            lists[:, None].masked_fill(~chosen, -torch.inf).logsumexp(dim=-1) for chosen in (with_label, ~with_label)
        )
        return on - off

    def walked(self, ways: Tensor, pick: Pick) -> Tensor:
        """The list said when at each step an allowed token is picked: (B, nodes, most children) -> places (B,)."""
        tree, device = self._tree, ways.device
        children = tree.children.to(device)
        list_of = torch.full((len(tree.tokens),), -1, device=device)
        list_of[list(tree.ends)] = torch.arange(len(self.lists), device=device)
        rows = torch.arange(len(ways), device=device)
        at = torch.full((len(ways),), len(self.question) - 1, device=device)
        for step in range(max(map(len, self.lists))):
            ahead = children[at, pick(ways[rows, at], step)]
            at = torch.where(ahead >= 0, ahead, at)
        return list_of[at]


_OF_ANSWERS = ("new_tokens", "samples", "seed", "temperature")
"""Fields of `ActivityList` that change the free answers and the draws alone."""

KINDS: Mapping[str, Callable[..., Asked]] = {"zs-b": YesNoQuestions, "zsc-co": ActivityList, "zsc-j": JudgedCaption}


def asked_of(fields: Mapping[str, Any]) -> Asked:
    """What was asked, from the fields of a feature space (`Asked.fields`)."""
    return KINDS[fields["kind"]](**{name: _as_tuples(value) for name, value in fields.items()})


def _as_lists(asked: Any) -> dict[str, Any]:
    """The fields of a kind of question as JSON gives them back."""
    fields = dataclasses.asdict(asked)
    return {name: _listed(value) for name, value in fields.items()}


def _listed(value: Any) -> Any:
    return [_listed(one) for one in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(one) for one in value) if isinstance(value, list) else value


class AskedInputs:
    """A model without its weights, and what it is asked; as `featurecache.backbones.family.Inputs`.

    Attributes:
        inner: The model's own inputs, of a video language model.
        asked: What is asked.
    """

    def __init__(self, inner: Any, asked: Asked) -> None:
        self.inner, self.asked = inner, asked
        self.folder: Path = inner.folder
        self.config: Any = inner.config
        self.architecture: Any = inner.architecture
        self.frames: int = inner.frames
        self.image_px: int = inner.image_px
        self.frame_resize: FrameResize = inner.frame_resize
        self.text_after_video = ""
        self.taps = {tap: TapShape(1, 1, width) for tap, width in asked.widths.items()}
        require_window(inner.config.text_config, len(asked.before) + inner.video_length + 1 + asked.longest)

    def identity(self, tap: str, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """Every input that changes an answer: the model's, and what is asked."""
        own = self.inner.identity("final", dtype, sha256_of)
        own.pop("prefix_token_ids")
        return {**own, "asked": self.asked.fields(tap)}


class AskedBackbone:
    """The loaded model with its output layer; as `featurecache.backbones.family.Backbone`.

    Attributes:
        inputs: The model without its weights, and what it is asked.
        model: The inner model.
    """

    def __init__(self, inputs: AskedInputs, inner: "VideoLanguageBackbone", *, family: str) -> None:
        self.inputs, self._inner, self.model = inputs, inner, inner.model
        self._to_logits = output_weights(inner.model, inputs.folder, family)

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures (F, px, px, 3) uint8 -> pixels (F, 3, px, px)."""
        pixels: Tensor = self._inner.normalize(pictures)
        return pixels

    def encode_frames(self, pixels: Tensor, taps: Sequence[str] = ()) -> Tensor:  # noqa: ARG002
        """The tower's tokens as the projector gets them: (F, 3, px, px) -> (F, patches, D_vision)."""
        tokens: Tensor = self._inner.encode_frames(pixels, ["vision"])
        return tokens

    @torch.inference_mode()
    def states(self, encoded: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, TapStates]]:
        """The answers about each clip as the states of one token: (B, T, patches, D_vision) -> (tap, (B, 1, 1, width)).

        A clip's words before the video and the video run once, whatever is asked.
        """
        clips = self.continuation(encoded)
        for tap, numbers in self.inputs.asked.answers(clips, taps):
            yield tap, TapStates(numbers[:, None, None])

    def continuation(self, encoded: Tensor) -> Continuation:
        """Clips that ran up to the last token of the video, of `encode_frames`, shape (B, T, ...)."""
        video = self._inner.project(self._inner.vision(encoded))
        return Continuation(
            self.model, self._to_logits, self._inner.embedded(video, self.inputs.asked.before, to_go_on=True)
        )


def check_can_answer(model_type: str) -> None:
    """Refuses a model that cannot be asked in words.

    Raises:
        UnsupportedModelError: Naming those that can.
    """
    if model_type not in ANSWERING:
        raise UnsupportedModelError(
            f"a zero-shot method needs a video language model, of {', '.join(ANSWERING)}, but the project's is "
            f"{model_type!r}. Set features.model to such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )


ANSWERING: Mapping[str, tuple[str, str]] = {
    "llava_next_video": ("USER: <video>\n", " ASSISTANT:"),
    "llava_onevision": ("<|im_start|>user <video>\n", "<|im_end|><|im_start|>assistant\n"),
    "smolvlm": ("<|im_start|>User: <video>", "<end_of_utterance>\nAssistant:"),
    "internvl": ("<|im_start|>user\n<video>\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen2_5_vl": ("<|im_start|>user\n<video>", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen3_vl": ("<|im_start|>user\n<video>", "<|im_end|>\n<|im_start|>assistant\n"),
}
"""Models that can be asked -> what their chat template puts before and after a question."""
