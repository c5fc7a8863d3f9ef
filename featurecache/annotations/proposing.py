"""A proposal of what the labels of a project's annotations are, for `init`.

Three styles are told apart: a tier per activity, values that name the activity, and tiers whose values say which kind
of the activity it is, or that it is absent. A person looks the proposal over.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from featurecache.annotations.document import EafDocument
from featurecache.annotations.questions import ABSENT, PRESENT, is_coded, proposed_mapping, says_absence
from featurecache.annotations.rules import LabelsFrom, is_written_here
from featurecache.annotations.timing import resolve_times
from featurecache.errors import AnnotationError
from featurecache.spelling import counted, plain_name

_KINDS = 8
_SPAN = re.compile(
    r"\b(annotated|annotation[ -]span|coded|coding[ -](span|time|period)|observed|observation|watched|rated|scored)\b"
)
"""Not "visible": that a person is in view is an activity in many studies."""


@dataclass(frozen=True)
class LabelProposal:
    """Where the labels probably are.

    Attributes:
        labels_from: Whether tiers or values are labels, where `mapping` does not say.
        tiers: The tiers to read.
        labels: The labels' names.
        reason: One line for people.
        mapping: Tier -> value -> label; a label "" means absence.
        span: The tier that seems to mark what was annotated.
        unread: Annotated tiers that are not read.
    """

    labels_from: LabelsFrom
    tiers: tuple[str, ...]
    labels: tuple[str, ...]
    reason: str
    mapping: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    span: str | None = None
    unread: tuple[str, ...] = ()


def propose_labels(documents: Iterable[EafDocument]) -> LabelProposal:
    """Look at documents and propose what the labels are.

    A tier is *bare* if its annotations carry at most one distinct value besides nothing (or mostly nothing),
    and *coded* if they carry few, short, repeated values; where coded tiers with a controlled vocabulary
    exist, only those count as coded. Anything else is free text. Coded tiers with vocabularies of their own, and those
    whose values say present or absent, get a mapping.

    Args:
        documents: Documents of one project.

    Returns:
        `values` if there are coded tiers that share a vocabulary, or hardly any bare ones; else `tiers`.

    Raises:
        AnnotationError: If no document has an annotation.
    """
    values: dict[str, Counter[str]] = {}
    vocabulary: dict[str, tuple[str, ...]] = {}
    n_documents = 0
    for document in documents:
        n_documents += 1
        entries = document.vocabularies
        for tier in document.tiers.values():
            if tier.vocabulary:
                vocabulary[plain_name(tier.name)] = tuple(map(plain_name, entries.get(tier.vocabulary, ())))
        for annotation in resolve_times(document):
            if is_written_here(annotation.tier):
                continue
            values.setdefault(plain_name(annotation.tier), Counter())[plain_name(annotation.value)] += 1
    if not values:
        raise AnnotationError(
            f"labels need at least one annotation, but {counted(n_documents, 'file', ('has', 'have'))} none. "
            "Annotate first, or name a CSV."
        )
    return propose_from_values(values, vocabulary)


def propose_from_values(
    values: Mapping[str, Counter[str]], vocabulary: Mapping[str, Sequence[str]] | None = None
) -> LabelProposal:
    """As `propose_labels`, from each tier's values and how often each is used, and its vocabulary where it has one."""
    vocabulary = vocabulary or {}
    span = next((tier for tier, counts in values.items() if span_like(tier) and _is_bare(counts)), None)
    presence = [tier for tier, counts in values.items() if tier != span and _says_presence(counts)]
    rest = {tier: counts for tier, counts in values.items() if tier != span and tier not in presence}
    bare = tuple(tier for tier, counts in rest.items() if _is_bare(counts))
    coded = tuple(tier for tier, counts in rest.items() if tier not in bare and is_coded(counts))
    coded = tuple(tier for tier in coded if tier in vocabulary) or coded
    codes = sorted({value for tier in coded for value in values[tier] if value})
    sharing = sum(len([value for value in values[tier] if value]) for tier in coded) / max(1, len(codes))
    labels_from: LabelsFrom = "tiers"
    mapped = list(presence)
    if coded and len(bare) <= len(coded) and (len(coded) <= 2 or sharing >= 1.5):
        labels_from, tiers = "values", coded
        labels = [code for code in codes if code.casefold() not in ABSENT]
        reason = (
            f"{counted(len(coded), 'tier', ('holds', 'hold'))} {len(codes)} short values that "
            "repeat, so the values are the labels"
        )
    elif bare or coded:
        tiers = bare + coded
        mapped += [tier for tier in coded if says_absence(values[tier]) or len(values[tier]) <= _KINDS]
        labels = [tier for tier in tiers if tier not in mapped]
        reason = (
            f"{counted(len(tiers), 'tier')} with {'an empty or constant value' if not coded else 'few values'}, "
            "so each tier is one activity and its name the label"
        )
    else:
        tiers = tuple(rest)
        labels = list(tiers)
        reason = (
            f"the values of {counted(len(tiers), 'tier')} look like free text, so only the tiers' names can be labels"
        )
    mapping = {
        tier: proposed_mapping(tier, sorted({*values[tier], *vocabulary.get(tier, ())}))
        for tier in values
        if tier in mapped
    }
    labels += dict.fromkeys(
        label for tier, own in mapping.items() for value, label in own.items() if label and values[tier][value]
    )
    if mapping:
        reason = ("" if labels_from != "values" and not rest else f"{reason}; ") + (
            f"the values of {', '.join(mapping)} say which kind it is or that it is absent: look over mapping"
        )
    read = tuple(dict.fromkeys((*tiers, *mapping)))
    unread = tuple(tier for tier in values if tier not in read and tier != span)
    return LabelProposal(labels_from, read, tuple(labels), reason, mapping, span, unread)


def span_like(name: str) -> bool:
    """Whether a tier or label is called as one that marks what was annotated."""
    return _SPAN.search(name.casefold().replace("_", " ")) is not None


def _says_presence(counts: Mapping[str, int]) -> bool:
    return says_absence(counts) and all(not v or v.casefold() in ABSENT | PRESENT for v in counts)


def _is_bare(counts: Counter[str]) -> bool:
    total = sum(counts.values())
    only = counts.keys() - {""}
    return (len(only) <= 1 and not {value.casefold() for value in only} & ABSENT) or counts[""] >= 0.8 * total
