"""Agreement of two annotations of the same recordings: two annotators, or a reviewed prediction and its annotator.

A file named `*.predicted.eaf` is read by its `(predicted)` tiers, any other by the rule for labels. All are put on the
recording's clock by their own time origins. Compared is what both annotated: the annotated span where the rule names
one and both have it, else from the recording's start to the last annotation of either, since files do not say how long
a recording is. Several recordings are scored together, as one body of time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.annotations import (
    EafDocument,
    Interval,
    LabelRule,
    marks,
    matching_recordings,
    predicted_intervals,
    propose_labels,
    read_csv,
    read_eaf,
)
from featurecache.annotations.columns import recognise
from featurecache.annotations.media import match_name
from featurecache.annotations.table import header_of
from featurecache.clips.annotated import read_annotations, rule_of
from featurecache.errors import AnnotationError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import Project
from heads.timelines.scores import Comparison, compare_timelines, disagreements, events, intersection, scores_document
from heads.timelines.timeline import Spans


@dataclass(frozen=True)
class Pair:
    """Two accounts of one recording: who gave them, and their intervals in media time."""

    recording: str
    first: str
    second: str
    intervals: tuple[Sequence[Interval], Sequence[Interval]]


def agreement(
    first: Path,
    second: Path,
    *,
    labels: Sequence[str] = (),
    rule: LabelRule | None = None,
    columns: ColumnSettings | None = None,
) -> dict[str, Any]:
    """Scores of the second file against the first, over all recordings that both annotate.

    Args:
        first: The reference, an `.eaf` or a table.
        second: The `.eaf` or table that is held against it.
        labels: The labels to compare; empty compares all that either file has.
        rule: What is a label; None: as it looks from the files.
        columns: The columns of tables; None: by their headers.

    Returns:
        The document of `compared`.

    Raises:
        AnnotationError: If a file is unreadable, they share no recording, there is no time or label to compare, or a
            prediction has no predicted tier.
    """
    sides = [_open(path, columns) for path in (first, second)]
    if rule is None:
        rule = _rule_by_looks([side for side in sides if isinstance(side, EafDocument)])
    read = _common_recordings(sides, (first, second), rule)
    pairs = [Pair(name, first.name, second.name, both) for name, both in read.items()]
    names = [_names(side, rule) for side in sides]
    alone = [
        f"{label!r} is in {path.name} alone, so all of it counts as disagreement; is it spelt otherwise in the other?"
        for path, own, other in ((first, names[0], names[1]), (second, names[1], names[0]))
        for label in sorted(own - other)
        if (not labels or label in labels) and label != rule.span
    ]
    return {
        **compared(pairs, labels=labels, span=rule.span),
        "first": first.name,
        "second": second.name,
        "warnings": alone,
    }


def project_agreement(project: Project) -> dict[str, Any]:
    """Agreement over all doubly annotated recordings of a project: the ceiling for any model trained on them.

    Returns:
        The document of `compared`, and `left_out`: files, annotations and rows that are not used.

    Raises:
        AnnotationError: If no recording is doubly annotated, or annotations leave a question open.
    """
    data = project.settings.data
    videos = project.videos
    names = [path.relative_to(videos).as_posix() for path in sorted(videos.rglob("*")) if path.is_file()]
    reading = read_annotations(project, [names])
    pairs = [
        Pair(name, one.source, other.source, (one.marks.intervals, other.marks.intervals))
        for name, accounts in sorted(reading.accounts.items())
        for one, other in combinations([account for account in accounts if not account.says_nothing], 2)
    ]
    if not pairs:
        raise AnnotationError(
            f"agreement needs a recording that two people annotated, but none of the {len(reading.accounts)} is. "
            "Put both annotators' files under data.annotations, or name two files: featurecache agreement A B"
        )
    left_out = [{"name": item.name, "reason": item.reason} for item in reading.left_out]
    return {
        **compared(pairs, labels=data.labels, span=rule_of(data).span),
        "first": "one annotator",
        "second": "another",
        "warnings": [],
        "left_out": left_out,
    }


def compared(pairs: Sequence[Pair], *, labels: Sequence[str], span: str | None) -> dict[str, Any]:
    """Scores of pairs of accounts, all their time together.

    Returns:
        The document of `scores_document`, and `labels`, `recordings` (for each pair {"recording", "first", "second",
        "compared_us": spans, "timelines": [{label: [[start_us, end_us], ..]} of each]}; of a single pair the last two
        also stand alone) and `disagreements` ([{"recording", "start_us", "end_us", "label", "kind"}, ..]: `missed` is
        in the first alone; the longest first).

    Raises:
        AnnotationError: If there is no time or label to compare.
    """
    present = sorted({one.label for pair in pairs for own in pair.intervals for one in own} - {span})
    if labels and present and not set(labels) & set(present):
        raise AnnotationError(
            f"two files must have a label of the project to be compared, which has {', '.join(labels)}, but "
            f"{pairs[0].first} and {pairs[0].second} have {', '.join(present)}. Correct labels and tiers under [data]."
        )
    labels = labels or present
    comparisons: list[Comparison] = []
    recordings: list[dict[str, Any]] = []
    differing: list[dict[str, Any]] = []
    for pair in pairs:
        within = _within(pair.intervals, span)
        if not any(start < end for start, end in within):
            continue
        comparisons.append(compare_timelines(*pair.intervals, labels=labels, within=within))
        recordings.append(
            {
                "recording": pair.recording,
                "first": pair.first,
                "second": pair.second,
                "compared_us": [list(each) for each in within],
                "timelines": [
                    {label: [list(each) for each in events(own, label, within)] for label in labels}
                    for own in pair.intervals
                ],
            }
        )
        differing += [
            {"recording": pair.recording, **asdict(one)}
            for one in disagreements(*pair.intervals, labels=labels, within=within)
        ]
    if not comparisons:
        raise AnnotationError(
            f"two files must share annotated time to be compared, but of {', '.join(labels)} they have none in common. "
            "Check the tiers under [data]."
        )
    return {
        **scores_document(comparisons, [one["recording"] for one in recordings], labels=labels),
        "labels": list(labels),
        "recordings": recordings,
        **({key: recordings[0][key] for key in ("compared_us", "timelines")} if len(recordings) == 1 else {}),
        "disagreements": sorted(differing, key=lambda one: one["start_us"] - one["end_us"]),
    }


_Side = EafDocument | Mapping[str, Sequence[Interval]]


def _open(path: Path, columns: ColumnSettings | None) -> _Side:
    if path.suffix.lower() == ".eaf":
        return read_eaf(path)
    table = read_csv(path, columns or recognise(header_of(path)) or ColumnSettings())
    if table.left_out:
        raise AnnotationError(f"{path.name}, {table.left_out[0]}")
    return table.intervals


def _rule_by_looks(documents: Sequence[EafDocument]) -> LabelRule:
    """The rule that `init` would propose for these files, with every tier read."""
    if not any(
        True for document in documents for tier in document.tiers.values() for _ in document.raw_annotations(tier)
    ):
        return LabelRule()
    proposed = propose_labels(documents)
    tiers = proposed.tiers if proposed.labels_from == "values" else ()
    return LabelRule(proposed.labels_from, tiers, proposed.mapping, span=proposed.span)


def _names(side: _Side, rule: LabelRule) -> set[str]:
    """The labels that a file has, also those of empty tiers; predicted tiers by their labels."""
    if isinstance(side, EafDocument):
        if ".predicted." in side.name:
            return {one.label for one in predicted_intervals(side, time_origin_ms=0)}
        bare = {rule.label(tier, "") for tier in side.tiers} if rule.labels_from == "tiers" else set()
        found = marks(side, rule, time_origin_ms=0)
        return {*bare, *(one.label for one in (*found.intervals, *found.points))} - {""}
    return {rule.name(one.label) for own in side.values() for one in own}


def _common_recordings(
    sides: Sequence[_Side], paths: tuple[Path, Path], rule: LabelRule
) -> dict[str, tuple[Sequence[Interval], Sequence[Interval]]]:
    """Recording -> the intervals of both sides."""
    named = [_recordings_of(side) for side in sides]
    common: dict[str, tuple[Sequence[Interval], Sequence[Interval]]] = {}
    for name in [*named[0], *named[1]]:
        both = [_of_recording(side, path, name, rule) for side, path in zip(sides, paths, strict=True)]
        if both[0] is not None and both[1] is not None:
            stem = PurePosixPath(name).with_suffix("").name.casefold()
            if not any(PurePosixPath(known).with_suffix("").name.casefold() == stem for known in common):
                common[name] = both[0], both[1]
        if common and all(isinstance(side, EafDocument) for side in sides):
            break
    if not common:
        raise AnnotationError(
            f"two files must be of one recording to be compared, but {paths[0].name} is of "
            f"{', '.join(named[0][:5]) or 'none'} and {paths[1].name} of {', '.join(named[1][:5]) or 'none'}. "
            "Name files of one recording, or correct their media."
        )
    return common


def _recordings_of(side: _Side) -> list[str]:
    if isinstance(side, EafDocument):
        return [PurePosixPath(media.media_url.replace("\\", "/")).name for media in side.media]
    return list(side)


def _of_recording(side: _Side, path: Path, name: str, rule: LabelRule) -> list[Interval] | None:
    """The intervals of a recording in one file; None where it does not annotate it."""
    if not isinstance(side, EafDocument):
        for own_name, own in side.items():
            if match_name(own_name, [name], where=path.name, ignore_folders=True) is not None:
                return [Interval(one.start_us, one.end_us, rule.name(one.label)) for one in own]
        return None
    matches = matching_recordings(side, path, [name], ignore_folders=True)
    if not matches:
        return None
    origin_ms = matches[0].time_origin_ms
    own = marks(side, rule, time_origin_ms=origin_ms).intervals
    if ".predicted." not in path.name:
        return own
    if not any(" (predicted" in tier for tier in side.tiers):
        raise AnnotationError(
            f"a file named *.predicted.eaf must have tiers named '... (predicted)', but {path.name} has "
            f"{', '.join(side.tiers) or 'no tier'}. Rename the file to compare the tiers that it has."
        )
    spans = [interval for interval in own if interval.label == rule.span]
    return sorted(spans + predicted_intervals(side, time_origin_ms=origin_ms))


def _within(both: Sequence[Sequence[Interval]], span: str | None) -> Spans:
    whole = [(0, max((one.end_us for own in both for one in own), default=0))]
    marked = [events(own, span, whole) for own in both] if span is not None else []
    return intersection(*marked) if marked and all(marked) else whole
