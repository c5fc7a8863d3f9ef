"""What a page sends as a recording's review: checked, stamped with who and when, and written.

A mark that the version before has keeps who made it and when. Times are rounded to ELAN's milliseconds. What the page
must not send is refused with the reason: unknown labels, times outside of the recording. Overlaps are refused by who
writes the tiers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from featurecache.annotations.reviews import Mark, Review
from featurecache.errors import AnnotationError
from featurecache.spelling import visible

_KINDS = frozenset({"annotated", "accepted", "corrected", "added", "rejected", "reviewed"})
_MILLISECOND_US = 1000


def stamped_marks(
    sent: object, before: Review, *, labels: Sequence[str], duration_us: int, reviewer: str
) -> list[Mark]:
    """The marks that a page sent, in order, each with who made it and when.

    Args:
        sent: JSON: a list of `{"start_us", "end_us", "label", "how"}`.
        before: The review that they were made from.
        labels: The labels that may be marked.
        duration_us: Length of the recording.
        reviewer: Who made what is new.

    Raises:
        AnnotationError: Naming the first mark that cannot be, and why.
    """
    if not isinstance(sent, list):
        raise AnnotationError("marks must be a list, but the page sent something else. Load it again.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {(one.start_us, one.end_us, one.label, one.how): one for one in before.marks}
    marks = sorted({_checked(one, labels, duration_us) for one in sent})
    return [
        known.get((one.start_us, one.end_us, one.label, one.how))
        or Mark(one.start_us, one.end_us, one.label, one.how, reviewer, now)
        for one in marks
    ]


def _checked(sent: Any, labels: Sequence[str], duration_us: int) -> Mark:
    try:
        start, end = (_MILLISECOND_US * round(int(sent[key]) / _MILLISECOND_US) for key in ("start_us", "end_us"))
        label, how = str(sent["label"]), sent["how"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnnotationError(
            "a mark must have start_us, end_us, label and how, but one has not. Load the page again."
        ) from error
    end = min(end, duration_us // _MILLISECOND_US * _MILLISECOND_US)
    if str(how) not in _KINDS or (label not in labels if how != "reviewed" else label != ""):
        raise AnnotationError(
            f"a mark must be of a label of the head, but one is {visible(label[:40])!r}, {visible(str(how)[:40])}. "
            "Load the page again."
        )
    if not 0 <= start < end:
        raise AnnotationError(
            "a mark must last a millisecond and lie inside the recording, but one goes from "
            f"{start / 1e6:g} to {end / 1e6:g} s. Undo it."
        )
    return Mark(start, end, label, how)
