"""Lists of labels as a model says them: which ones the labels' rules allow, and what a free answer names.

Labels are written as people say them (`baby_visible` as "baby visible"), in the order of the clip table, with ", "
between them, and "none" for no label. A free answer may have any order and any case; what it names besides is listed by
name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurecache.errors import SettingsError

NONE = "none"
MOST_LISTS = 1024
"""All of them are run behind each clip's video."""


@dataclass(frozen=True)
class Rules:
    """What labels say about each other.

    Attributes:
        exclusive: Groups of labels of which one at most is on at a time.
        implies: Label -> labels that are on whenever it is.
    """

    exclusive: tuple[tuple[str, ...], ...] = ()
    implies: Mapping[str, tuple[str, ...]] | None = None

    def among(self, labels: Sequence[str]) -> "Rules":
        """The rules that are about these labels alone."""
        groups = (tuple(label for label in group if label in labels) for group in self.exclusive)
        implied = {
            label: tuple(one for one in others if one in labels)
            for label, others in (self.implies or {}).items()
            if label in labels
        }
        return Rules(
            tuple(group for group in groups if len(group) > 1),
            {label: others for label, others in implied.items() if others},
        )

    def broken_by(self, on: frozenset[str]) -> list[str]:
        """The rules that a set of labels breaks, each in words."""
        found = [
            " and ".join(map(spoken, sorted(on.intersection(group)))) + " together"
            for group in self.exclusive
            if len(on.intersection(group)) > 1
        ]
        for label, others in (self.implies or {}).items():
            found += [f"{spoken(label)} without {spoken(one)}" for one in others if label in on and one not in on]
        return found

    def in_words(self) -> str:
        """All of them as sentences for a prompt; empty where there is none."""
        sentences = [f"Only one of {_joined(group)} takes place at a time." for group in self.exclusive]
        sentences += [
            f"With {spoken(label)} there is always {_joined(others)}." for label, others in (self.implies or {}).items()
        ]
        return " ".join(sentences)


def spoken(label: str) -> str:
    """A label as people say it."""
    return " ".join(label.replace("_", " ").split())


def check_rules(rules: Rules, labels: Sequence[str]) -> None:
    """Refuses rules of labels that there are not.

    Raises:
        SettingsError: Naming the label.
    """
    named = {label for label, others in (rules.implies or {}).items() for label in (label, *others)}
    for label in sorted(named - set(labels)):
        raise SettingsError(
            f"zeroshot.implies must name labels, which are {', '.join(labels)}, but it names {label!r}. "
            "Correct it, or take the rule out."
        )


def allowed_lists(labels: Sequence[str], rules: Rules) -> dict[str, tuple[int, ...]]:
    """Every list that breaks no rule, as it is said -> which labels are in it, 0 or 1, shape (C,).

    Raises:
        SettingsError: If labels hold a comma or sound alike, one is called "none", a rule leaves a label out of every
            list, or there are too many lists.
    """
    by_words: dict[str, str] = {}
    for label in labels:
        words = spoken(label)
        if "," in words or words.lower() == NONE or words.lower() in by_words:
            why = (
                "holds a comma"
                if "," in words
                else f"is what an empty list is called ({NONE})"
                if words.lower() == NONE
                else f"sounds like {by_words[words.lower()]!r}"
            )
            raise SettingsError(
                f"labels of a list must differ when they are said and hold no comma, but {label!r} {why}. "
                "Rename it under [data] (rename), or choose others with --labels."
            )
        by_words[words.lower()] = label
    lists: dict[str, tuple[int, ...]] = {}
    for chosen in _subsets(labels, rules):
        text = ", ".join(spoken(label) for label in labels if label in chosen) or NONE
        lists[text] = tuple(int(label in chosen) for label in labels)
        if len(lists) > MOST_LISTS:
            raise SettingsError(
                f"there must be at most {MOST_LISTS} allowed lists, all of which are scored, but {len(labels)} labels "
                "under these rules have more. Choose fewer with --labels, or add rules: exclusive under [timeline], "
                "implies under [zeroshot]."
            )
    for at, label in enumerate(labels):
        if not any(members[at] for members in lists.values()):
            raise SettingsError(
                f"every label must be in some allowed list, but the rules leave {label!r} in none. "
                "Correct exclusive under [timeline] or implies under [zeroshot]."
            )
    return lists


def _subsets(labels: Sequence[str], rules: Rules) -> Iterator[frozenset[str]]:
    """Sets of labels that break no rule, small ones first; a set that breaks an exclusion is never grown."""
    alone = Rules(rules.exclusive)
    grown: list[frozenset[str]] = [frozenset()]
    while grown:
        yield from (one for one in grown if not rules.broken_by(one))
        larger = {
            one | {label}
            for one in grown
            for label in labels[max((labels.index(own) for own in one), default=-1) + 1 :]
            if not alone.broken_by(one | {label})
        }
        grown = sorted(larger, key=lambda one: [label not in one for label in labels])


@dataclass(frozen=True)
class SaidList:
    """A free answer read as a list of labels.

    Attributes:
        on: Labels that it names.
        hallucinated: What it names that is no label, as it says it.
        duplicates: Labels that it names more than once.
        broken: Rules that it breaks, in words.
        is_parsable: Whether it names a label, or says that there is none.
        has_ended: Whether it came to its end within the tokens it had.
    """

    on: frozenset[str]
    hallucinated: tuple[str, ...]
    duplicates: tuple[str, ...]
    broken: tuple[str, ...]
    is_parsable: bool
    has_ended: bool

    @property
    def is_valid(self) -> bool:
        """Whether it is one of the allowed lists, in any order."""
        return self.is_parsable and self.has_ended and not (self.hallucinated or self.duplicates or self.broken)


def read_list(text: str, labels: Sequence[str], rules: Rules, *, has_ended: bool) -> SaidList:
    """Reads a free answer.

    Args:
        text: The answer.
        labels: The labels that were asked about.
        rules: Their rules.
        has_ended: Whether the answer came to its end.
    """
    by_words = {spoken(label).lower(): label for label in labels}
    items = [" ".join(item.split()).rstrip(".").strip() for item in text.split(",")]
    named = [by_words[item.lower()] for item in items if item.lower() in by_words]
    says_none = [item.lower() for item in items] == [NONE]
    others = tuple(dict.fromkeys(item for item in items if item and item.lower() not in by_words and not says_none))
    on = frozenset(named)
    return SaidList(
        on=on,
        hallucinated=others,
        duplicates=tuple(dict.fromkeys(label for label in named if named.count(label) > 1)),
        broken=tuple(rules.broken_by(on)),
        is_parsable=bool(named) or says_none,
        has_ended=has_ended,
    )


def _joined(labels: Sequence[str]) -> str:
    words = [spoken(label) for label in labels]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
