"""Tiers of our own in an ELAN document, beside the annotator's: predictions, and stretches to be annotated.

A tier is called `ventilation (predicted)` or `please annotate`, and an annotation's value is what a reviewer should see
on its bar, such as "0.87". Where a tier of that name exists already, the new one is `ventilation (predicted 2)`, and so
on: no tier that was there is touched. Readers of annotations skip files named `*.predicted.eaf` and `*.suggested.eaf`,
and tiers called so that the settings do not name, so neither becomes a label by accident.
"""

from collections.abc import Mapping, Sequence

from featurecache.annotations.document import EafDocument
from featurecache.annotations.eaf_writer import add_tier
from featurecache.annotations.interval import Interval
from featurecache.annotations.labels import marks
from featurecache.annotations.rules import PREDICTED_TIER, LabelRule
from featurecache.spelling import plain_name


def add_predictions(
    document: EafDocument, predictions: Mapping[str, Sequence[Interval]], *, time_origin_ms: int
) -> int:
    """Adds a tier for each label; labels without an interval get an empty one.

    ELAN's time begins at the document's zero and counts milliseconds: what lies before is cut off, and what rounds to
    nothing is left out.

    Args:
        document: Changed in place.
        predictions: Label -> intervals in media time, not overlapping; an interval's `label` is the value shown.
        time_origin_ms: The origin of the media descriptor whose clock the intervals are on.

    Returns:
        Microseconds of intervals that lie before the document's time zero.
    """
    return sum(
        _add(document, (f"{label} (predicted", ")"), own, time_origin_ms=time_origin_ms)
        for label, own in predictions.items()
    )


def add_requests(document: EafDocument, stretches: Sequence[Interval], *, time_origin_ms: int) -> int:
    """Adds a tier `please annotate`, or `please annotate 2`, and so on; else as `add_predictions`.

    Args:
        document: Changed in place.
        stretches: In media time, not overlapping; an interval's `label` is the value shown.
        time_origin_ms: As `add_predictions`.
    """
    return _add(document, ("please annotate", ""), stretches, time_origin_ms=time_origin_ms)


def _add(document: EafDocument, name: tuple[str, str], own: Sequence[Interval], *, time_origin_ms: int) -> int:
    zero_us = 1000 * time_origin_ms
    cut = [Interval(max(one.start_us, zero_us), one.end_us, one.label) for one in own if one.end_us > zero_us]
    shown = [one for one in cut if (one.start_us + 500) // 1000 < (one.end_us + 500) // 1000]
    add_tier(document, _new_name(document, *name), shown, time_origin_ms=time_origin_ms)
    return sum(max(0, min(one.end_us, zero_us) - one.start_us) for one in own)


def predicted_intervals(document: EafDocument, *, time_origin_ms: int) -> list[Interval]:
    """The predictions of a document by label, in media time, sorted; of several for one label the latest.

    Args:
        document: One that `add_predictions` wrote to, whatever was done to it since.
        time_origin_ms: Of the recording's media descriptor.
    """
    latest: dict[str, tuple[int, str]] = {}
    for tier in document.tiers:
        if match := PREDICTED_TIER.fullmatch(tier):
            latest[match["label"]] = max(latest.get(match["label"], (0, "")), (int(match["number"] or 1), tier))
    return sorted(
        Interval(one.start_us, one.end_us, label)
        for label, (_, tier) in latest.items()
        for one in marks(document, LabelRule(tiers=(plain_name(tier),)), time_origin_ms=time_origin_ms).intervals
    )


def _new_name(document: EafDocument, begin: str, end: str) -> str:
    number, name, known = 1, f"{begin}{end}", document.tiers
    while name in known:
        number += 1
        name = f"{begin} {number}{end}"
    return name
