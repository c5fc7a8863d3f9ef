"""From annotations to labels: intervals of media time, and points, which have no duration.

Two styles exist. A tier per activity: whatever stands on tier X is an interval of label X. One or few
tiers with values: the annotation's value is the label. A mapping says it for tiers that mix both (`rules`).

What lies before the recording's first instant (a camera that started late has a negative origin) is cut off: it cannot
be seen in the video.
"""

from dataclasses import dataclass

from featurecache.annotations.document import EafDocument
from featurecache.annotations.interval import Interval
from featurecache.annotations.rules import LabelRule
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
