"""From annotations to labels: intervals of media time, and a proposal of what the labels are.

Two styles exist. A tier per activity: whatever stands on tier X is an interval of label X. One or few
tiers with values: the annotation's value is the label. The settings choose; `init` proposes.

Annotations of no duration cover no time and give no interval. What lies before the recording's first
instant (a camera that started late has a negative origin) is cut off: it cannot be seen in the video.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurecache.annotations.document import EafDocument
from featurecache.annotations.interval import Interval
from featurecache.annotations.timing import resolve_times
from featurecache.errors import AnnotationError

LabelsFrom = Literal["tiers", "values"]

_MAX_CODES = 40
_MAX_CODE_LENGTH = 40
_USES_PER_CODE = 2


def intervals(
    document: EafDocument, *, labels_from: LabelsFrom, tiers: Sequence[str] = (), time_origin_ms: int
) -> list[Interval]:
    """The labelled intervals of a document, on the recording's clock.

    Args:
        document: The document.
        labels_from: `"tiers"`: the label is the tier's name. `"values"`: it is the annotation's value,
            without surrounding spaces; empty values are ignored.
        tiers: Names of the tiers to read; empty reads all.
        time_origin_ms: Of the recording's media descriptor; added to every time.

    Returns:
        Intervals, sorted, each once; those of one label may overlap.

    Raises:
        AnnotationError: If a tier does not exist, or a time cannot be resolved.
    """
    known = document.tiers
    for name in tiers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            advice = f"Did you mean {near[0]!r}?" if near else "It has no tiers."
            raise document.error(f"tiers must exist in the file, but {name!r} does not. {advice}")
    wanted = set(tiers or known)
    found = set()
    for annotation in resolve_times(document):
        label = annotation.tier if labels_from == "tiers" else annotation.value.strip()
        start_us = max(0, annotation.start_us + 1000 * time_origin_ms)
        end_us = annotation.end_us + 1000 * time_origin_ms
        if annotation.tier in wanted and label and start_us < end_us:
            found.add(Interval(start_us, end_us, label))
    return sorted(found)


@dataclass(frozen=True)
class LabelProposal:
    """Where the labels probably are.

    `tiers` are the tiers to read, `labels` the label names; `reason` is one line for people.
    """

    labels_from: LabelsFrom
    tiers: tuple[str, ...]
    labels: tuple[str, ...]
    reason: str


def propose_labels(documents: Iterable[EafDocument]) -> LabelProposal:
    """Look at documents and propose whether tiers or values are the labels.

    A tier is *bare* if its annotations carry at most one distinct value besides nothing (or mostly nothing),
    and *coded* if they carry few, short, repeated values; where coded tiers with a controlled vocabulary
    exist, only those count as coded. Anything else is free text.

    Args:
        documents: Documents of one project.

    Returns:
        `values` if there are coded tiers that share a vocabulary, or hardly any bare ones; else `tiers`.

    Raises:
        AnnotationError: If no document has an annotation.
    """
    values: dict[str, Counter[str]] = {}
    with_vocabulary = set()
    n_documents = 0
    for document in documents:
        n_documents += 1
        with_vocabulary |= {tier.name for tier in document.tiers.values() if tier.vocabulary}
        for annotation in resolve_times(document):
            values.setdefault(annotation.tier, Counter())[annotation.value.strip()] += 1
    if not values:
        raise AnnotationError(
            f"labels need at least one annotation, but {n_documents} files have none. Annotate first, or name a CSV."
        )

    bare = tuple(tier for tier, counts in values.items() if _is_bare(counts))
    coded = tuple(tier for tier, counts in values.items() if tier not in bare and _is_coded(counts))
    coded = tuple(tier for tier in coded if tier in with_vocabulary) or coded
    vocabulary = sorted({value for tier in coded for value in values[tier] if value})
    sharing = sum(len([value for value in values[tier] if value]) for tier in coded) / max(1, len(vocabulary))
    if coded and len(bare) <= len(coded) and (len(coded) <= 2 or sharing >= 1.5):
        return LabelProposal(
            "values",
            coded,
            tuple(vocabulary),
            f"{_tiers(len(coded))} {'holds' if len(coded) == 1 else 'hold'} {len(vocabulary)} short values that "
            "repeat, so the values are the labels",
        )
    named = bare + coded
    if named:
        return LabelProposal(
            "tiers",
            named,
            named,
            f"{_tiers(len(named))} with {'an empty or constant value' if not coded else 'few values'}, "
            "so each tier is one activity and its name the label",
        )
    return LabelProposal(
        "tiers",
        tuple(values),
        tuple(values),
        f"the values of {_tiers(len(values))} look like free text, so only the tiers' names can be labels",
    )


def _is_bare(counts: Counter[str]) -> bool:
    total = sum(counts.values())
    return len(counts.keys() - {""}) <= 1 or counts[""] >= 0.8 * total


def _is_coded(counts: Counter[str]) -> bool:
    codes = {value: count for value, count in counts.items() if value}
    return (
        len(codes) <= _MAX_CODES
        and max(map(len, codes)) <= _MAX_CODE_LENGTH
        and sum(codes.values()) >= _USES_PER_CODE * len(codes)
    )


def _tiers(count: int) -> str:
    return "1 tier" if count == 1 else f"{count} tiers"
