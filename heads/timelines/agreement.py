"""Agreement of two annotation files of one recording: two annotators, or a reviewed prediction and its annotator.

A file named `*.predicted.eaf` is read by its `(predicted)` tiers, any other by the settings' tiers or values. Both are
put on the recording's clock by their own time origins. Compared is what both annotated: the annotated span where the
settings name one and both files have it, else from the recording's start to the last annotation of either file, since
the files do not say how long the recording is.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.annotations import EafDocument, Interval, matching_recordings, predicted_intervals, read_eaf
from featurecache.annotations.labels import LabelsFrom
from featurecache.clips.inventory import document_intervals
from featurecache.errors import AnnotationError
from heads.timelines.scores import compare_timelines, disagreements, events, intersection, scores_document
from heads.timelines.timeline import Spans


def agreement(
    first: Path,
    second: Path,
    *,
    labels: Sequence[str],
    labels_from: LabelsFrom,
    tiers: tuple[str, ...] = (),
    annotated_span: str | None = None,
) -> dict[str, Any]:
    """Scores of the second file against the first.

    Args:
        first: The reference, an `.eaf`.
        second: The `.eaf` that is held against it.
        labels: The labels to compare; empty compares all that either file has.
        labels_from: Whether tiers or values name the labels.
        tiers: Tiers to read; empty reads all.
        annotated_span: The label that marks what was annotated.

    Returns:
        The document of `scores_document`, and `first`, `second`, `labels`, `compared_us` (spans), `timelines`
        ([{label: [[start_us, end_us], ..]} of the first, the same of the second]) and `disagreements`
        ([{"start_us", "end_us", "label", "kind"}, ..]: `missed` is in the first file alone; the longest first).

    Raises:
        AnnotationError: If a file is unreadable, they are of different recordings, there is no time or label to
            compare, or a prediction has no predicted tier.
    """
    documents = read_eaf(first), read_eaf(second)
    origins = _origins(documents, (first, second))
    both = [
        _read(document, path, labels_from, tiers, annotated_span, origin_ms)
        for document, path, origin_ms in zip(documents, (first, second), origins, strict=True)
    ]
    present = sorted({one.label for own in both for one in own} - {annotated_span})
    if labels and present and not set(labels) & set(present):
        raise AnnotationError(
            f"two files must have a label of the project to be compared, which has {', '.join(labels)}, but "
            f"{first.name} and {second.name} have {', '.join(present)}. Correct labels and tiers under [data]."
        )
    labels = labels or present
    within = _within(both, labels, annotated_span)
    compared = compare_timelines(*both, labels=labels, within=within)
    timelines = [{label: [list(span) for span in events(own, label, within)] for label in labels} for own in both]
    return {
        **scores_document([compared], [""], labels=labels),
        "first": first.name,
        "second": second.name,
        "labels": list(labels),
        "compared_us": [list(span) for span in within],
        "timelines": timelines,
        "disagreements": [
            {"start_us": one.start_us, "end_us": one.end_us, "label": one.label, "kind": one.kind}
            for one in disagreements(*both, labels=labels, within=within)
        ],
    }


def _origins(documents: tuple[EafDocument, EafDocument], paths: tuple[Path, Path]) -> tuple[int, int]:
    """The time origins of the first media file that both documents are of."""
    names = [PurePosixPath(media.media_url.replace("\\", "/")).name for media in documents[0].media]
    for name in names:
        found = [matching_recordings(one, path, [name]) for one, path in zip(documents, paths, strict=True)]
        if all(found):
            return found[0][0].time_origin_ms, found[1][0].time_origin_ms
    theirs = [PurePosixPath(media.media_url.replace("\\", "/")).name for media in documents[1].media]
    raise AnnotationError(
        f"two files must be of one recording to be compared, but {paths[0].name} is of {', '.join(names) or 'none'} "
        f"and {paths[1].name} of {', '.join(theirs) or 'none'}. Name files of one recording, or correct their media."
    )


def _read(
    document: EafDocument,
    path: Path,
    labels_from: LabelsFrom,
    tiers: tuple[str, ...],
    span: str | None,
    origin_ms: int,
) -> list[Interval]:
    own = document_intervals(document, labels_from, tiers, span, origin_ms)
    if ".predicted." not in path.name:
        return own
    if not any(" (predicted" in tier for tier in document.tiers):
        raise AnnotationError(
            f"a file named *.predicted.eaf must have tiers named '... (predicted)', but {path.name} has "
            f"{', '.join(document.tiers) or 'no tier'}. Rename the file to compare the tiers that it has."
        )
    marks = [interval for interval in own if interval.label == span]
    return sorted(marks + predicted_intervals(document, time_origin_ms=origin_ms))


def _within(both: Sequence[Sequence[Interval]], labels: Sequence[str], span: str | None) -> Spans:
    whole = [(0, max((one.end_us for own in both for one in own), default=0))]
    marked = [events(own, span, whole) for own in both] if span is not None else []
    within = intersection(*marked) if marked and all(marked) else whole
    if not any(start < end for start, end in within):
        raise AnnotationError(
            f"two files must share annotated time to be compared, but of {', '.join(labels)} they have none in common. "
            "Check the tiers under [data]."
        )
    return within
