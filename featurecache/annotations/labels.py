"""From annotations to labels: intervals of media time, and points, which have no duration.

Two styles exist. A tier per activity: whatever stands on tier X is an interval of label X. One or few
tiers with values: the annotation's value is the label. A mapping says it for tiers that mix both (`rules`).

What lies before the recording's first instant (a camera that started late has a negative origin) is cut off: it cannot
be seen in the video.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from featurecache.annotations.document import EafDocument
from featurecache.annotations.interval import Interval
from featurecache.annotations.rules import LabelRule, LabelsFrom
from featurecache.annotations.timing import resolve_times


@dataclass(frozen=True)
class Marks:
    """What a document marks, on the recording's clock.

    Attributes:
        intervals: Sorted, each once; those of one label may overlap.
        points: Annotations of no duration, as intervals that end where they begin.
    """

    intervals: list[Interval]
    points: list[Interval]


def marks(document: EafDocument, rule: LabelRule, *, time_origin_ms: int) -> Marks:
    """The labelled intervals and points of a document; tiers that it lacks mark nothing.

    Args:
        document: The document.
        rule: What is a label.
        time_origin_ms: Of the recording's media descriptor; added to every time.
    """
    lasting: set[Interval] = set()
    points: set[Interval] = set()
    for annotation in resolve_times(document):
        label = rule.label(annotation.tier, annotation.value)
        start_us = annotation.start_us + 1000 * time_origin_ms
        end_us = annotation.end_us + 1000 * time_origin_ms
        if not label or end_us < 0 or (end_us == 0 and start_us < end_us):
            continue
        (points if start_us == end_us else lasting).add(Interval(max(0, start_us), end_us, label))
    return Marks(sorted(lasting), sorted(points))


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
    rule = LabelRule(labels_from, tuple(map(LabelRule().name, tiers)))
    return marks(document, rule, time_origin_ms=time_origin_ms).intervals
