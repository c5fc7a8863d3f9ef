"""The review page as `review` tells of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.terminal.clips import left_out
from featurecache.terminal.text import Piece

if TYPE_CHECKING:
    from heads.workflow.reviewing import OpenReview, Reviewing


def open_review(found: "OpenReview") -> Iterator[Piece]:
    """Where the page is, and what is not on it."""
    yield from left_out(found.left_out)
    recordings = "1 recording" if found.recordings == 1 else f"{found.recordings} recordings"
    yield f"{recordings} to review, on this machine alone. Open in a browser (Ctrl-C here ends it):"
    yield f"  {found.address}"


def reviewing(found: "Reviewing") -> Iterator[Piece]:
    """What is there now."""
    yield (
        f"{found.reviewed} of {found.recordings} recordings have a review in {found.folder}. "
        "To use them: featurecache clips --with-reviewed."
        if found.reviewed
        else "nothing was reviewed."
    )
