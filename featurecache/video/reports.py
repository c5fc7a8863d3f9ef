"""What FFmpeg reports while it reads and decodes: often a line in its log is the only sign of damage.

A decoder that finds an error in a frame conceals it and hands the frame out, without an error code and often without
a flag. So the log is read, per thread, around each call. Nothing of it is shown.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import av.logging

_SAYS_NOTHING_OF_FRAMES = ("SEI", "VPS", "SPS", "VUI", "APP field", "unregistered", "caption")
_HABITS = ("overread",)  # MJPEG of webcams whose every frame ends some bits early


class Reports:
    """The errors that FFmpeg reported inside a block.

    Attributes:
        lines: Its log records: level, what wrote it, text.
    """

    def __init__(self, lines: "list[tuple[int, str, str]]") -> None:
        self.lines = lines

    def __bool__(self) -> bool:
        """Whether anything was reported that may concern a frame; metadata and parameter sets show by what follows."""
        return self.concern(frozenset())

    def concern(self, habits: frozenset[str]) -> bool:
        """Whether anything else was reported than the habits of a stream and what does not concern its frames."""
        passed_over = (*_SAYS_NOTHING_OF_FRAMES, *habits)
        return any(not any(word in text for word in passed_over) for _, _, text in self.lines)

    def habits(self) -> frozenset[str]:
        """What was reported that is a habit of a stream where its first frame has it."""
        return frozenset(word for word in _HABITS for _, _, text in self.lines if text.startswith(word))

    def come_from(self, name: str) -> bool:
        """Whether any was reported by a part of FFmpeg, a demuxer or decoder."""
        return any(by == name for _, by, _ in self.lines)


def listen() -> None:
    """Make FFmpeg's errors readable, and keep them from the terminal where nobody asked for them."""
    logging.getLogger("libav").addHandler(_NOWHERE)  # adding it again changes nothing
    level = av.logging.get_level()
    if level is None or level < av.logging.ERROR:
        av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the same error of the next packet counts


@contextmanager
def reported() -> Iterator[Reports]:
    """The errors that this thread's calls of FFmpeg report inside the block."""
    with av.logging.Capture() as lines:
        yield Reports(lines)


_NOWHERE = logging.NullHandler()
