"""Names that people typed: one form for what looks the same, and a key for what nearly does.

Two spellings that nobody can tell apart on a screen (accents composed or not, zero-width characters, no-break spaces,
spaces at the ends) are one name. Two that a reader can tell apart are never joined here: `look_alikes` finds them, and
whoever calls asks the user. `visible` is how any text from outside is shown, `counted` how numbers of things are,
`listed` how names are, and `did_you_mean` asks about one that is not known.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f]")
_SPACES = re.compile(r"[^\S\t\n\r\v\f\x1c-\x1f\x85]+")
_TYPO_LENGTH = 5
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # letters and marks that show nothing


def plain_name(text: str) -> str:
    """A name without what cannot be seen: composed, without format characters, with single plain spaces.

    Control characters stay where they are not at an end, so that whoever refuses them can; so does a name that consists
    of nothing to be seen.
    """
    seen = "".join(character for character in text if unicodedata.category(character) != "Cf")
    seen = _SPACES.sub(" ", _VARIATION_SELECTORS.sub("", seen))
    return unicodedata.normalize("NFC", seen).strip() or text.strip()


def counted(number: int, noun: str, verbs: tuple[str, str] | None = None) -> str:
    """A number and its noun, and the verb of one or of many: 1 clip, 2 clips; 1 clip is, 2 clips are."""
    return f"{number} {noun}{'s' * (number != 1)}" + (f" {verbs[number != 1]}" if verbs else "")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are besides: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The question whether the known name that is nearest was meant; `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else otherwise


def visible(text: str) -> str:
    """Text as a terminal and a page can show it: what would act there, or could not be seen, stands as its escape.

    These are control characters (of both ranges), format characters (they turn the direction of writing, join, or take
    no width), line and paragraph separators, lone surrogates, and letters that show nothing. Spaces stay. Text that
    came from here comes through unchanged.
    """
    return "".join(character if _is_seen(character) else _escape(character) for character in text)


def _is_seen(character: str) -> bool:
    if character.isprintable():
        return character not in _BLANK
    return unicodedata.category(character) in ("Zs", "Co", "Cn")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def composed(text: str) -> str:
    """One form of accented letters: macOS takes them apart in file names; other systems and ELAN do not."""
    return unicodedata.normalize("NFC", text)


def caseless(text: str) -> str:
    """A form in which names compare that differ in case or in how accents are composed alone."""
    return composed(text).casefold()


def look_alikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ in case, width, spaces or punctuation alone: "Suction", "suction", "suc-tion"."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        key = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())
        groups.setdefault(key or name, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def typos(names: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a name and another one that differ by one letter inside one long word: "suction", "suktion".

    A digit, a first letter, or a letter that stands alone tells names apart on purpose ("hand 1", "grasp L",
    "walking" and "talking").
    """
    names, ordered = set(names), sorted(set(others))
    return [
        (one, other)
        for one in sorted(names)
        for other in ordered
        if (one < other or other not in names)
        if _one_letter_apart(one.casefold().split(), other.casefold().split())
    ]


def _one_letter_apart(one: Sequence[str], other: Sequence[str]) -> bool:
    if len(one) != len(other):
        return False
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if len(differing) != 1:
        return False
    short, long = sorted(differing[0], key=len)
    if len(short) < _TYPO_LENGTH or len(long) - len(short) > 1 or short[0] != long[0]:
        return False
    start = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest, skipped = short[start:], long[start + 1 :]
    swapped = long[start + 1 : start + 2] + long[start : start + 1] + long[start + 2 :]
    if len(short) < len(long):
        return rest == skipped and long[start].isalpha()
    changed = short[start] + long[start]
    return changed.isalpha() and (rest[1:] == skipped or rest == swapped)
