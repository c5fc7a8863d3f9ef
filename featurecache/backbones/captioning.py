"""A caption that a video language model gives, and what a judging language model says of it (ZSC-J).

The video language model makes the caption alone. Its judge reads words, never the video, and answers after the captions
are stored (`heads/zeroshot/answering.py`): another judge or other questions cost no second pass over the videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from featurecache.backbones.continuation import SAID, Continuation

CAPTION_TAP, JUDGED_TAP = "zsc-j_caption" + SAID, "zsc-j" + SAID
BLOCKS = 5
"""Numbers of each question in the tap of the judge's answers."""


@dataclass(frozen=True)
class JudgedCaption:
    """A request for a caption, and Q questions about it.

    The tap `zsc-j_caption_said` holds the token ids of the caption, by greedy decoding. `zsc-j_said` holds the judge's
    answers to the questions, block by block of Q numbers: the log odds of 1 that serve as score, those that were read,
    the log probability of 0 and 1 together, what the answer begins with (1, 0, or -1 for neither), and whether only
    that is known (1) or probabilities too (0). Both hang on words that the model chose, so neither is held against a
    second computation.

    Attributes:
        before: Token ids before the video.
        request: Token ids of the request, after the video, up to where the caption begins.
        ends: Tokens that end a caption.
        new_tokens: Tokens of a caption at most.
        judge: What the judge is, JSON-ready, for the fingerprint.
        questions: What the judge is asked, with `{caption}` where the caption goes.
        least_mass: Below this probability of 0 and 1 together an answer is unparsable.

    Source: Guerriero et al., section 3.4.
    """

    before: tuple[int, ...]
    request: tuple[int, ...]
    ends: tuple[int, ...]
    new_tokens: int
    judge: Mapping[str, Any] = field(default_factory=dict)
    questions: tuple[str, ...] = ()
    least_mass: float = 0.5
    kind: str = "zsc-j"

    @property
    def widths(self) -> dict[str, int]:
        """As `featurecache.backbones.asking.Asked`; a caption without questions has no judge's answers."""
        judged = {JUDGED_TAP: BLOCKS * len(self.questions)} if self.questions else {}
        return {CAPTION_TAP: self.new_tokens, **judged}

    @property
    def longest(self) -> int:
        """As `Asked`."""
        return len(self.request) + self.new_tokens

    def fields(self, tap: str) -> dict[str, Any]:
        """As `Asked`: the judge and its questions change no caption."""
        fields: dict[str, Any] = {
            "kind": self.kind,
            "before": list(self.before),
            "request": list(self.request),
            "ends": list(self.ends),
            "new_tokens": self.new_tokens,
        }
        if tap == JUDGED_TAP:
            fields |= {"judge": dict(self.judge), "questions": list(self.questions), "least_mass": self.least_mass}
        return fields

    def answers(self, clips: Continuation, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As `Asked`, of the caption alone."""
        said = clips.say(self.request, most=self.new_tokens, ends=self.ends)
        if CAPTION_TAP in taps:
            yield CAPTION_TAP, said.float()
