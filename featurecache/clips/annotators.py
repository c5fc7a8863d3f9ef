"""Which of several annotators' accounts of a recording counts: one of them, their union, or their intersection."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from featurecache.annotations import Interval, Marks
from featurecache.clips.annotated import Account
from featurecache.clips.clip import union_of
from featurecache.errors import AnnotationError
from featurecache.spelling import caseless

_BETWEEN_WORDS = re.compile(r"[\s_\-.()]+")


def chosen_account(recording: str, accounts: Sequence[Account], annotators: str) -> Account | None:
    """The account of a recording that trains and scores.

    Args:
        recording: Its name, for messages.
        accounts: What each annotator says.
        annotators: The setting: "", "union", "intersection", or an annotator's name. A recording that one person
            annotated has that account, whoever it was.

    Returns:
        The account, joined ones with the first one's file; None where none of them says anything.

    Raises:
        AnnotationError: If there are several and the setting does not choose.
    """
    saying = [account for account in accounts if not account.says_nothing]
    if len(saying) < 2:
        return saying[0] if saying else None
    if annotators == "union":
        joined = Marks(
            sorted({one for account in saying for one in account.marks.intervals}),
            sorted({one for account in saying for one in account.marks.points}),
        )
        return replace(saying[0], marks=joined)
    if annotators == "intersection":
        return replace(saying[0], marks=reduce(_common, (account.marks for account in saying)))
    own = [account for account in saying if annotators and _is_by(account, annotators)]
    if len(own) == 1:
        return own[0]
    wanted = f"the annotator {annotators!r} fits {len(own)} of them" if annotators else "nothing says which one counts"
    raise AnnotationError(
        f"a recording must have one annotation, but {recording!r} has "
        f"{' and '.join(account.source for account in saying)}, and {wanted}. Set annotators under [data] to a name "
        'that stands in one file\'s name, folder or AUTHOR, to "union" or to "intersection"; or move one away.'
    )


def _is_by(account: Account, annotator: str) -> bool:
    wanted = caseless(annotator)
    names = [caseless(name) for name in account.names]
    return wanted in names or any(wanted in _BETWEEN_WORDS.split(name) for name in names)


def _common(one: Marks, other: Marks) -> Marks:
    """What both mark; a label that one of them marks alone is off."""
    both = [
        Interval(max(a, c), min(b, d), label)
        for label in {each.label for each in one.intervals}
        for a, b in union_of([(each.start_us, each.end_us) for each in one.intervals if each.label == label])
        for c, d in union_of([(each.start_us, each.end_us) for each in other.intervals if each.label == label])
        if max(a, c) < min(b, d)
    ]
    return Marks(sorted(both), sorted(set(one.points) & set(other.points)))
