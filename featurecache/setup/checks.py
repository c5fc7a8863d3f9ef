"""One check of `doctor` and `init`, and its words."""

import re
from dataclasses import dataclass

from featurecache.errors import FeatureCacheError

GIB = 1024**3
_SENTENCE_END = re.compile(r"(?<!e\.g)\. (?=[A-Z])")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was looked at.
        ok: Whether it holds.
        found: What was found.
        fix: What to do; empty where nothing is to be done.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""


def failed(name: str, error: FeatureCacheError) -> Check:
    """A check that ended with a named error: what must hold, but what was found. What to do."""
    rule, but, rest = str(error).partition(", but ")
    found, *fix = _SENTENCE_END.split(rest if but else rule, maxsplit=1)
    return Check(name, False, (rule + but if but else "") + found, "".join(fix))


def size(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB / 10 else f"{size_bytes / 1024**2:.1f} MiB"
