"""Hits of a search by words, as `featurecache find` shows them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.csv_fields import format_seconds
from featurecache.spelling import counted
from featurecache.terminal.text import Piece, Warn, plain_table

if TYPE_CHECKING:
    from featurecache.workflow.finding import Found


def hits(found: "Found") -> Iterator[Piece]:
    """The best clips, and what was written."""
    rows = [
        (hit.recording, format_seconds(hit.start_us), format_seconds(hit.end_us), f"{hit.similarity:.4f}")
        for hit in found.hits
    ]
    title = f"{found.words!r} in {counted(found.searched, 'clip')}"
    yield plain_table(title, ("recording", "from, s", "to, s", "similarity"), rows)
    if found.missing:
        yield Warn(f"{counted(found.missing, 'clip')} of clips.csv are not in the cache and were not searched.")
    for path in found.written:
        yield f"wrote {path}"
