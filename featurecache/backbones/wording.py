"""Questions in words as what a model is asked in token ids, and its answers in words again.

Everything is checked here, before any weight is loaded: the words before the video are the same for all questions, the
tokenizer has tokens for yes and no, an answer can end, and every allowed list can be said within its tokens.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.backbones import model_type_of
from featurecache.backbones.asking import ActivityList, YesNoQuestions, check_can_answer
from featurecache.backbones.captioning import JudgedCaption
from featurecache.backbones.continuation import NOTHING_SAID
from featurecache.backbones.files import quiet_loading
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER as _VIDEO
from featurecache.backbones.placeholder import require_one_video
from featurecache.backbones.prompt import split_ids
from featurecache.backbones.tokenizer import open_tokenizer
from featurecache.errors import SettingsError, UnsupportedModelError

if TYPE_CHECKING:
    from featurecache.backbones.video_language import Architecture

_SPACE_MARKS = " ▁Ġ"
"""How tokenizers write a space before a word."""

_YES_NO = ("yes", "no")


class Wording:
    """A model's tokenizer, which makes token ids of questions and words of answers.

    Args:
        inputs: The model without its weights, with or without what it is asked.

    Raises:
        UnsupportedModelError: If the model cannot be asked in words.
    """

    def __init__(self, inputs: Any) -> None:
        check_can_answer(model_type_of(inputs.folder))
        self._folder, self._config = inputs.folder, inputs.config
        self._architecture: Architecture = inputs.architecture
        self._tokenizer: Any = None

    def yes_no(self, prompts: Mapping[str, str]) -> YesNoQuestions:
        """Questions to be answered with yes or no.

        Args:
            prompts: Words around `<video>` of each question, by its name for messages.

        Raises:
            SettingsError: If a prompt does not hold the video once, ends with it, or has other words before it than
                the first.
            UnsupportedModelError: If the tokenizer has no token of its own for yes or for no.
        """
        self._open(prompts.values())
        parts = {name: self._split(prompt, name) for name, prompt in prompts.items()}
        first = next(iter(parts))
        for name, (before, _) in parts.items():
            if before != parts[first][0]:
                raise SettingsError(
                    f"all questions must have the same words before {_VIDEO}, because the video is run once behind "
                    f"them, but {name} and {first} differ. Put what differs after {_VIDEO}."
                )
        yes, no = (self._spellings(word) for word in _YES_NO)
        return YesNoQuestions(tuple(parts[first][0]), tuple(tuple(after) for _, after in parts.values()), yes, no)

    def activity_list(
        self,
        prompt: str,
        lists: Mapping[str, Sequence[int]],
        *,
        name: str,
        new_tokens: int,
        samples: int = 0,
        seed: int = 0,
    ) -> ActivityList:
        """A question to be answered with a list of labels.

        Args:
            prompt: Words around `<video>`.
            lists: Each allowed list as it is said -> which labels are in it, 0 or 1.
            name: The prompt's, for messages.
            new_tokens: Tokens of a free answer at most.
            samples: Lists and free answers drawn besides.
            seed: Of the draws.

        Raises:
            SettingsError: If the prompt does not hold the video once or ends with it, or a list takes more tokens.
            UnsupportedModelError: If the model has no token that ends an answer, or the tokenizer writes lists so that
                they do not continue the prompt.
        """
        prompt = prompt.rstrip(" ")
        self._open([prompt, *lists])
        before, question = self._split(prompt, name)
        ends = self._ends()
        space = "" if prompt[-1].isspace() else " "
        said = {}
        for text in lists:
            whole = self._split(f"{prompt}{space}{text}", name)[1]
            if whole[: len(question)] != question or len(whole) == len(question):
                raise UnsupportedModelError(
                    f"the tokens of {name} must stay as they are when an answer follows, but before {text!r} they "
                    "change. End the prompt as the model's chat template does, e.g. with ' ASSISTANT:'."
                )
            said[text] = (*whole[len(question) :], ends[0])
        longest = max(said, key=lambda text: len(said[text]))
        if len(said[longest]) > new_tokens:
            raise SettingsError(
                f"zeroshot.new_tokens must hold the longest allowed list, but {longest!r} takes {len(said[longest])} "
                f"tokens with its end, and new_tokens is {new_tokens}. Raise it."
            )
        if len(set(said.values())) < len(said):
            raise UnsupportedModelError(
                f"the tokenizer must tell all labels apart, but some lists of {name} have the same tokens. "
                "Rename the labels under [data] (rename), or choose others with --labels."
            )
        return ActivityList(
            tuple(before),
            tuple(question),
            tuple(said.values()),
            tuple(tuple(map(int, members)) for members in lists.values()),
            ends,
            new_tokens,
            samples,
            seed,
        )

    def caption(self, prompt: str, *, name: str, new_tokens: int, **judged: Any) -> JudgedCaption:
        """A request to be answered with a caption.

        Args:
            prompt: Words around `<video>`.
            name: The prompt's, for messages.
            new_tokens: Tokens of a caption at most.
            judged: What is asked about the caption, as fields of `JudgedCaption`.

        Raises:
            SettingsError: If the prompt does not hold the video once, or ends with it.
            UnsupportedModelError: If the model has no token that ends an answer.
        """
        prompt = prompt.rstrip(" ")
        self._open([prompt])
        before, request = self._split(prompt, name)
        return JudgedCaption(tuple(before), tuple(request), self._ends(), new_tokens, **judged)

    def _open(self, texts: Iterable[str]) -> None:
        """Opens the tokenizer for these texts."""
        written = self._architecture.video_text
        parts = [part for text in texts for part in text.replace(_VIDEO, written).split(_VIDEO)]
        self._tokenizer = open_tokenizer(
            self._folder, parts, self._architecture.video_token_id, family=self._config.model_type
        )

    def text(self, ids: Sequence[int]) -> str:
        """Token ids of an answer as words, without what fills it up and special tokens."""
        if self._tokenizer is None:
            self._open([])
        said = [int(one) for one in ids if int(one) != NOTHING_SAID]
        words: str = self._tokenizer.decode(said, skip_special_tokens=True)
        return words.strip()

    def _split(self, prompt: str, name: str) -> tuple[list[int], list[int]]:
        require_one_video(prompt, name)
        with quiet_loading(self._folder, "tokenizer"):
            words = split_ids(
                self._tokenizer,
                prompt,
                video_token_id=self._architecture.video_token_id,
                vocab_size=self._config.text_config.vocab_size,
                video_text=self._architecture.video_text,
                folder=self._folder,
                name=name,
            )
        if not prompt.partition(_VIDEO)[2]:
            raise SettingsError(
                f"{name} must ask something after {_VIDEO}, but it ends with it. Write the question behind it."
            )
        return list(words.before), list(words.after)

    def _spellings(self, word: str) -> tuple[int, ...]:
        """Tokens that are this word alone, in any case, with or without a space before it."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        found = sorted(id for token, id in vocabulary.items() if token.strip(_SPACE_MARKS).lower() == word)
        if not found:
            raise UnsupportedModelError(
                f"the tokenizer must have {word!r} as one token, which an answer is read by, but that in "
                f"{self._folder} has none. Use another model, or the method zsc-co."
            )
        return tuple(found)

    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: the generation settings', else the model's, else the tokenizer's."""
        path = self._folder / "generation_config.json"
        own: Any = None
        if path.exists():
            with quiet_loading(self._folder, "generation settings"):
                own = json.loads(path.read_text()).get("eos_token_id")
        for found in (own, self._config.text_config.eos_token_id, self._tokenizer.eos_token_id):
            if found is not None and found != []:
                ends = tuple(found) if isinstance(found, list) else (found,)
                known = self._config.text_config.vocab_size
                if not all(type(one) is int and 0 <= one < known for one in ends):
                    raise UnsupportedModelError(
                        f"an end token (eos_token_id) must be one of the model's {known} tokens, but the files in "
                        f"{self._folder} say {found!r:.100}. Take them from the model's repository."
                    )
                return ends
        raise UnsupportedModelError(
            "an answer must be able to end, but neither generation_config.json, config.json nor the tokenizer in "
            f"{self._folder} names an end token (eos_token_id). Take these files from the model's repository."
        )
