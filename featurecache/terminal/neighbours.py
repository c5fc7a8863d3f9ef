"""Clips near each other, as `featurecache neighbours` shows them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.csv_fields import format_seconds
from featurecache.spelling import counted
from featurecache.terminal.text import MOST_LISTED, Piece, Warn, plain_table

if TYPE_CHECKING:
    from featurecache.clips.clip import Clip
    from featurecache.workflow.neighbours import Neighbours

_PRIVACY = (
    "Neighbours across sessions can re-identify people and rooms: keep what is listed as you keep the recordings."
)


def neighbouring(found: "Neighbours") -> Iterator[Piece]:
    """The clips near one clip."""
    if found.pairs:
        clip = found.pairs[0].clip
        yield f"nearest to {_place(clip)} ({found.on(clip) or 'unlabelled'}) by {found.feature}:"
    rows = [
        (pair.other.clip_id, _place(pair.other), found.on(pair.other), _cosine(pair.cosine)) for pair in found.pairs
    ]
    yield plain_table(f"of {counted(found.searched, 'clip')}", ("clip", "where", "on", "cosine"), rows)
    yield _PRIVACY


def confused(found: "Neighbours") -> Iterator[Piece]:
    """Near pairs with different targets."""
    rows = [
        (_place(pair.clip), found.on(pair.clip), _place(pair.other), found.on(pair.other), _cosine(pair.cosine))
        for pair in found.pairs[:MOST_LISTED]
    ]
    title = f"alike by {found.feature}, annotated differently"
    yield plain_table(title, ("clip", "on", "other clip", "on", "cosine"), rows)
    yield f"{counted(len(found.pairs), 'pair')} for annotators to look at: {found.file}"
    yield from _recall(found)
    yield _PRIVACY


def duplicated(found: "Neighbours") -> Iterator[Piece]:
    """Copies across splits."""
    yield from _recall(found)
    if not found.pairs:
        yield f"of {found.searched} clips none that scores is a copy of one that learns, by {found.feature}"
        return
    rows = [
        (_place(pair.clip), pair.clip.split, _place(pair.other), pair.other.split, _cosine(pair.cosine))
        for pair in found.pairs[:MOST_LISTED]
    ]
    yield plain_table("copies across splits", ("clip", "split", "other clip", "split", "cosine"), rows)
    sessions = sorted({pair.other.session for pair in found.pairs})
    yield Warn(
        f"{counted(len(found.pairs), 'clip')} of {counted(len(sessions), 'session')} that score are copies of clips "
        f"that learn, so scores are optimistically biased: {found.file}. If the recordings are copies, take "
        "one away, or put both sessions into one split of clips.csv."
    )


def _recall(found: "Neighbours") -> Iterator[Piece]:
    if found.recall is not None:
        yield (
            f"by an approximate index: of clips drawn in this search it found the nearest of {found.recall:.0%}; "
            "cosines are exact"
        )


def _place(clip: "Clip") -> str:
    return f"{clip.recording} {format_seconds(clip.start_us)} s"


def _cosine(value: float) -> str:
    return f"{value:.4f}"
