"""The page's tables of timelines, and their spans as the page's program draws them."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from featurecache.clips.clip import union_of
from featurecache.spelling import visible
from heads.report.documents import Document, Run, number
from heads.report.figures import per_class
from heads.report.frames import Thumbnail
from heads.report.names import ShownNames, last_part
from heads.report.timelines import Difference, Timeline, not_compared, total_us
from heads.timelines.scores import intersection
from heads.timelines.timeline import Spans

LISTED = 200
"""Differences that the page lists: the longest."""


def clock(time_s: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(time_s)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def timelines_content(
    timelines: Sequence[Timeline], found: Sequence[Difference], thumbnails: Sequence[Thumbnail], names: ShownNames
) -> dict[str, Any]:
    """What the timelines section shows."""
    position = {timeline.recording: at for at, timeline in enumerate(timelines)}
    of_recording = by_recording(found)
    listed = [
        {
            "recording": names[one.recording],
            "split": timelines[position[one.recording]].split,
            "label": one.label,
            "kind": one.kind,
            "start_s": one.start_us / 1e6,
            "goto": f"{position[one.recording]} {one.start_us} {one.end_us}",
            "length_s": one.duration_us / 1e6,
            "at": clock(one.start_us / 1e6),
        }
        for one in found[:LISTED]
    ]
    note = f"The {len(listed)} longest of {len(found)}." if len(found) > LISTED else f"{len(found)} in all."
    if not found:
        annotated = any(timeline.annotated is not None for timeline in timelines)
        note = (
            "Predictions and annotations agree throughout." if annotated else "None of these recordings is annotated."
        )
    return {
        "timelines": [_recording_row(one, of_recording[one.recording], names) for one in timelines],
        "differences": listed,
        "difference_note": note,
        "thumbnails": [
            {
                "jpeg": base64.b64encode(one.jpeg).decode(),
                "width": one.width_px,
                "height": one.height_px,
                "recording": names[one.of.recording],
                "label": one.of.label,
                "kind": one.of.kind,
                "at": clock(one.time_us / 1e6),
                "goto": f"{position[one.of.recording]} {one.of.start_us} {one.of.end_us}",
            }
            for one in thumbnails
        ],
    }


def timeline_scores_content(run: Run | None, agreement: Document) -> dict[str, Any]:
    """The tables of timeline scores: of the best run, and of annotators against each other; None without scores."""
    own = _scores_table(run.timelines.get("scores") if run is not None else None)
    annotators = _scores_table(agreement)
    return {
        "timeline_scores": None if run is None or own is None else {"run": run.name, **own},
        "annotator_scores": None
        if annotators is None
        else {"recordings": number(agreement.get("n_recordings")), **annotators},
    }


def _scores_table(scores: object) -> dict[str, Any] | None:
    if not isinstance(scores, Mapping) or not isinstance(scores.get("segment_f1"), Mapping):
        return None
    ious = list(scores["segment_f1"])
    rows = [
        {
            "label": label,
            "f1": [_at(per_class(scores, label), "segment_f1", iou) for iou in ious],
            "kappa": number(per_class(scores, label).get("kappa")),
            "events": [
                number(per_class(scores, label).get(f"events_{side}")) for side in ("predicted", "annotated", "matched")
            ],
            "errors": [
                _at(per_class(scores, label), border, "mean_absolute") for border in ("onset_error_s", "offset_error_s")
            ],
        }
        for label in scores.get("per_class") or ()
    ]
    macro = ", ".join(f"F1@{iou} {value:.2f}" for iou in ious if (value := _at(scores, "segment_f1", iou)) is not None)
    return {"ious": ious, "rows": rows, "macro": macro}


def _at(document: Document, *path: str) -> float | None:
    """A number inside nested mappings; None where there is none."""
    value: object = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return number(value)


def by_recording(found: Sequence[Difference]) -> defaultdict[str, list[Difference]]:
    """Recording -> its differences, in the order given."""
    of_recording = defaultdict(list)
    for one in found:
        of_recording[one.recording].append(one)
    return of_recording


def _recording_row(timeline: Timeline, found: Sequence[Difference], names: ShownNames) -> dict[str, Any]:
    """Times in which at least one label is on, so that none is longer than the recording."""

    def of_any(spans: Iterable[tuple[int, int]]) -> int:
        return total_us(intersection(union_of(list(spans)), [(0, timeline.duration_us)]))

    missed, extra = (
        of_any((one.start_us, one.end_us) for one in found if one.kind == kind) for kind in ("missed", "extra")
    )
    predicted = of_any(span for own in timeline.predicted.values() for span in own)
    annotated = None
    if timeline.annotated is not None:
        annotated = of_any(span for own in timeline.annotated.values() for span in own)
    both = (missed, extra) if annotated is not None else (None, None)
    times = (timeline.duration_us, annotated, predicted, *both)
    return {
        "name": names[timeline.recording],
        "session": last_part(timeline.session),
        "split": timeline.split,
        "times": [None if time is None else time / 1e6 for time in times],
    }


def drawn_timelines(
    timelines: Sequence[Timeline], found: Sequence[Difference], names: ShownNames
) -> list[dict[str, Any]]:
    """Timelines as the page's program reads them."""
    of_recording = by_recording(found)
    return [_drawn(one, of_recording[one.recording], names) for one in timelines]


def _drawn(timeline: Timeline, found: Sequence[Difference], names: ShownNames) -> dict[str, Any]:
    """Spans of a label are one list of starts and ends."""

    def flat(spans: Spans) -> list[int]:
        return [time for span in spans for time in span]

    differ: dict[str, Spans] = {label: [] for label in timeline.labels}
    for one in found:
        differ[one.label].append((one.start_us, one.end_us))
    return {
        "name": names[timeline.recording],
        "duration_us": timeline.duration_us,
        "unknown": flat(not_compared(timeline)),
        "labels": [
            {
                "name": visible(label),
                "annotated": None if timeline.annotated is None else flat(timeline.annotated.get(label, [])),
                "predicted": flat(timeline.predicted.get(label, [])),
                "confidence": timeline.confidence.get(label),
                "differ": flat(sorted(differ[label])),
            }
            for label in timeline.labels
        ],
    }
