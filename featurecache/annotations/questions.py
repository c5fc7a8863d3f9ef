"""Questions that only a person can answer about annotations, asked before anything is counted.

- Are two labels that differ in case, spaces, punctuation or one letter the same?
- Does a value such as "0" or "No" say that the activity is absent?
- What does a value mean that the settings' mapping does not name?
- Are two labels the same that are one entry of a vocabulary in two languages?

Each is an error with the line that answers it in the settings. Nothing is guessed: one activity in two spellings would
be a negative of itself, and an absence a positive.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from featurecache.annotations.rules import ANY_OTHER, LabelRule
from featurecache.errors import AnnotationError
from featurecache.project.toml_text import mapping_line, quoted
from featurecache.spelling import listed, look_alikes, plain_name, typos

Uses = Mapping[tuple[str, str], int]
"""(tier, value) -> how often, both as they were typed."""

# fmt: off
ABSENT = frozenset([
    "0", "no", "n", "none", "absent", "not present", "false", "off", "-", "negative", "neg", "n/a", "na", "nothing",
    "null", "nil", "nein", "non", "nej", "nei", "ingen", "ikke", "inte", "abwesend", "ausente", "assente",
])
# fmt: on
PRESENT = frozenset(
    ["1", "yes", "y", "present", "true", "on", "+", "x", "positive", "pos", "ja", "j", "oui", "si", "sí"]
)
_MAX_CODES = 40
_MAX_CODE_LENGTH = 40


def ask(uses: Uses, rule: LabelRule, labels: Sequence[str], translations: Iterable[Sequence[str]] = ()) -> None:
    """Raises the first question that annotations leave open.

    Args:
        uses: Every tier and value of a project; a tier without an annotation stands with the value "" and 0.
        rule: How labels are made.
        labels: The labels asked for; empty asks about all.
        translations: Groups of values that are one entry of a vocabulary in several languages.

    Raises:
        AnnotationError: With the lines for the settings that answer it.
    """
    values = values_by_tier(uses, rule)
    _ask_unmapped(values, rule)
    _ask_absence(values, rule, labels)
    _ask_spelling(uses, rule, labels, translations)


def values_by_tier(uses: Uses, rule: LabelRule) -> dict[str, Counter[str]]:
    """Tier -> its values, in plain spelling."""
    values: dict[str, Counter[str]] = {}
    plain = LabelRule()
    for (tier, value), count in uses.items():
        values.setdefault(rule.name(tier), Counter())[plain.name(value)] += count
    return values


def is_coded(counts: Mapping[str, int]) -> bool:
    """Whether a tier's values are few, short and repeated, not free text."""
    codes = {value: count for value, count in counts.items() if value and count}
    return (
        bool(codes)
        and len(codes) <= _MAX_CODES
        and max(map(len, codes)) <= _MAX_CODE_LENGTH
        and sum(codes.values()) >= 2 * len(codes)
    )


def says_absence(counts: Mapping[str, int]) -> bool:
    """Whether a tier's values are few and short, and one is a usual word for absence."""
    codes = {value for value, count in counts.items() if value and count}
    absent = {value for value in codes if value.casefold() in ABSENT}
    return bool(absent) and len(codes) <= _MAX_CODES and max(map(len, codes)) <= _MAX_CODE_LENGTH


def proposed_mapping(tier: str, values: Sequence[str]) -> dict[str, str]:
    """Value -> label for a tier: absence is ""; presence is the tier, and any other value is tier and value."""
    only_presence = all(value.casefold() in ABSENT | PRESENT | {""} for value in values)
    present = PRESENT | {""} if only_presence else {""}
    return {
        value: "" if value.casefold() in ABSENT else tier if value.casefold() in present else f"{tier} {value}"
        for value in values
    }


def _ask_unmapped(values: Mapping[str, Counter[str]], rule: LabelRule) -> None:
    for tier, own in rule.mapping.items():
        unknown = [value for value, count in values.get(tier, {}).items() if count and value not in own]
        if unknown and ANY_OTHER not in own:
            line = mapping_line(tier, {**own, **proposed_mapping(tier, unknown)})
            raise AnnotationError(
                f"data.mapping must name every value of a tier, but tier {tier!r} has {_listed(unknown)} besides. Say "
                f'under [data] what they mean ("": absent), e.g. {line}'
            )


def _ask_absence(values: Mapping[str, Counter[str]], rule: LabelRule, labels: Sequence[str]) -> None:
    unmapped = {tier: own for tier, own in values.items() if tier not in rule.mapping and tier != rule.span}
    if rule.labels_from == "tiers":
        asked = [
            tier
            for tier, own in unmapped.items()
            if says_absence(own) and rule.reads(tier) and (not labels or tier in labels)
        ]
    else:
        shared = [
            label
            for label in labels
            if label.casefold() in ABSENT | PRESENT
            and sum(1 for tier, own in unmapped.items() if own[label] and rule.reads(tier)) > 1
        ]
        asked = [tier for tier, own in unmapped.items() if any(own[label] for label in shared)]
    if asked:
        tier = asked[0]
        found = [value for value, count in values[tier].items() if count]
        more = f" So do {_listed(asked[1:])}." if asked[1:] else ""
        raise AnnotationError(
            f"a value that may say absence must be explained, but tier {tier!r} has the values {_listed(found)}.{more} "
            f'Say under [data] what each means ("": absent): {mapping_line(tier, proposed_mapping(tier, found))}'
        )


def _ask_spelling(uses: Uses, rule: LabelRule, labels: Sequence[str], translations: Iterable[Sequence[str]]) -> None:
    counts: Counter[str] = Counter()
    for (tier, value), count in uses.items():
        for name in {rule.label(tier, value), rule.name(tier) if rule.labels_from == "tiers" else ""}:
            counts[name] += count
    wanted = {*labels, *rule.tiers, *rule.mapping}
    found = {name for name in counts if name} - set(rule.rename)
    alike = [group for group in look_alikes(found) if not labels or wanted & set(group)]
    alike += same_entry(found, translations)
    alike += [pair for pair in typos(wanted & found, found) if not set(pair) <= wanted]
    for group in alike:
        kept = max(group, key=lambda name: (name in labels, counts[name]))
        other = next(name for name in group if name != kept)
        raise AnnotationError(
            f"a label must have one spelling, but the annotations have "
            f"{' and '.join(f'{name!r} ({counts[name]} times)' for name in group)}. If they are one, add under [data]: "
            f"rename.{quoted(other)} = {quoted(kept)}; if they are two: rename.{quoted(other)} = {quoted(other)}"
        )


def same_entry(names: Iterable[str], translations: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Groups of names that are one entry of a controlled vocabulary in several languages, its first language last."""
    known = set(names)
    entries = (dict.fromkeys(map(plain_name, reversed(entry))) for entry in translations)
    groups = {tuple(name for name in entry if name in known) for entry in entries}
    return sorted(group for group in groups if len(group) > 1)


def _listed(names: Sequence[str]) -> str:
    return listed([*map(repr, names)])
