"""The label audit: what a person should know about the targets before trusting a score.

Counts over the clip table as it stands (edited or not), and over the annotations behind it. Each finding
that can spoil a study is also one sentence in `warnings`; nothing here refuses anything.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from featurecache.annotations import Interval
from featurecache.clips.clip import Clip, ClipTable, covered_us, union_of
from featurecache.clips.label_counts import (
    GroupCounts,
    LabelAudit,
    LabelCounts,
    LabelSources,
    OutOfRange,
    PairCounts,
    SilentTail,
)
from featurecache.clips.leakage import purged_clips, shared_recordings, split_level
from featurecache.clips.splits import SPLITS
from featurecache.spelling import counted, listed
from featurecache.video.recordings import Recording

NEAR_HALF = (0.4, 0.6)
"""Coverage of a clip at which another annotator could have decided otherwise."""

_SILENT_TAIL_CLIPS = 3
_SILENT_TAIL_SHARE = 0.25
_EXPECTED_TOGETHER = 5.0
_OUTSIDE_S = 1.0


def audit(
    table: ClipTable,
    recordings: Sequence[Recording],
    intervals: Mapping[str, Sequence[Interval]],
    *,
    annotated_span: str | None = None,
    reviewed: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    sources: LabelSources | None = None,
) -> LabelAudit:
    """Audits a clip table against the annotations it came from.

    Args:
        table: The clip table, built or read back.
        recordings: The usable recordings.
        intervals: Recording -> its intervals of all labels.
        annotated_span: Label whose intervals mark what was annotated; it is no target.
        reviewed: Recording -> stretches that a review labels: there somebody looked, though nothing may be on.
        sources: Who labelled the labelled clips; None: annotators alone.
    """
    labelled = [clip for clip in table.clips if clip.labelled]
    splits = [_group(name, table.labels, [clip for clip in table.clips if clip.split == name]) for name in SPLITS]
    by_session: dict[str, list[Clip]] = defaultdict(list)
    for clip in table.clips:
        by_session[clip.session].append(clip)
    sessions = [_group(name, table.labels, clips) for name, clips in sorted(by_session.items())]
    near = _near_half(table, labelled, intervals)
    labelled_names = {clip.recording for clip in labelled}
    known = {recording.name for recording in recordings}
    unused = Counter(i.label for spans in intervals.values() for i in spans)
    for label in (*table.labels, *([] if annotated_span is None else [annotated_span])):
        unused.pop(label, None)
    findings = LabelAudit(
        clips=len(table.clips),
        labelled_clips=len(labelled),
        unlabelled_clips=len(table.clips) - len(labelled),
        left_out_clips=sum(1 for clip in labelled if not clip.split),
        clips_near_half=int(near.any(axis=1).sum()),
        unlabelled_recordings=sorted({clip.recording for clip in table.clips} - labelled_names),
        splits=splits,
        sessions=sessions,
        labels=_labels(table, splits, sessions, near, {name: intervals[name] for name in known & intervals.keys()}),
        pairs=_pairs(table.labels, labelled),
        unmatched_annotations=sorted(intervals.keys() - known),
        out_of_range=_out_of_range(recordings, intervals),
        silent_tails=[] if annotated_span is not None else _silent_tails(table, recordings, intervals, reviewed or {}),
        unused_labels=dict(sorted(unused.items())),
        split_level=split_level(table.clips),
        shared_recordings=shared_recordings(table.clips),
        purged_clips={split: len(gone) for split, gone in purged_clips(table.clips).items()},
        sources=LabelSources(len(labelled)) if sources is None else sources,
        warnings=[],
    )
    findings.warnings.extend(_warnings(findings))
    return findings


def _group(name: str, labels: Sequence[str], clips: Sequence[Clip]) -> GroupCounts:
    rows = [clip.targets for clip in clips if clip.labelled]
    positives = [sum(row[index] or 0 for row in rows) for index in range(len(labels))]
    return GroupCounts(
        name=name,
        split=next((clip.split for clip in clips if clip.split), ""),
        sessions=len({clip.session for clip in clips}),
        clips=len(clips),
        labelled=len(rows),
        positives=dict(zip(labels, positives, strict=True)),
        prevalence={label: count / len(rows) if rows else None for label, count in zip(labels, positives, strict=True)},
    )


def _near_half(
    table: ClipTable, labelled: Sequence[Clip], intervals: Mapping[str, Sequence[Interval]]
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether each label covers each labelled clip by about half: shape (N, C)."""
    near = np.zeros((len(labelled), len(table.labels)), bool)
    positions: dict[str, list[int]] = defaultdict(list)
    for position, clip in enumerate(labelled):
        positions[clip.recording].append(position)
    for name, rows in positions.items():
        windows = [(labelled[row].start_us, labelled[row].end_us) for row in rows]
        lengths = np.array([end - start for start, end in windows])
        spans = _spans(intervals.get(name, ()))
        for column, label in enumerate(table.labels):
            share = covered_us(windows, spans[label]) / lengths
            near[rows, column] = (share >= NEAR_HALF[0]) & (share <= NEAR_HALF[1])
    return near


def _spans(intervals: Sequence[Interval]) -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for interval in intervals:
        spans[interval.label].append((interval.start_us, interval.end_us))
    return spans


def _labels(
    table: ClipTable,
    splits: Sequence[GroupCounts],
    sessions: Sequence[GroupCounts],
    near: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    intervals: Mapping[str, Sequence[Interval]],
) -> list[LabelCounts]:
    count: Counter[str] = Counter()
    time_us: Counter[str] = Counter()
    for spans in map(_spans, intervals.values()):
        for label, own in spans.items():
            count[label] += len(own)
            time_us[label] += sum(end - start for start, end in union_of(own))
    return [
        LabelCounts(
            label=label,
            intervals=count[label],
            minutes=round(time_us[label] / 60e6, 3),
            positives=sum(session.positives[label] for session in sessions),
            sessions=sum(1 for session in sessions if session.positives[label]),
            near_half=int(near[:, column].sum()),
            no_positive_in=[split.name for split in splits if split.labelled and not split.positives[label]],
            no_negative_in=[
                split.name for split in splits if split.labelled and split.positives[label] == split.labelled
            ],
        )
        for column, label in enumerate(table.labels)
    ]


def _pairs(labels: Sequence[str], labelled: Sequence[Clip]) -> list[PairCounts]:
    on = np.array([clip.targets for clip in labelled], np.int64).reshape(len(labelled), len(labels))  # (N, C)
    together = on.T @ on  # (C, C)
    pairs = []
    for i, j in combinations(range(len(labels)), 2):
        a, b, both = int(together[i, i]), int(together[j, j]), int(together[i, j])
        if not a or not b:
            continue
        expected = round(a * b / len(labelled), 2)
        if both == 0:
            pairs.append(PairCounts(labels[i], labels[j], "never together", both, a, b, expected))
        if both == a:
            pairs.append(PairCounts(labels[i], labels[j], "first only with second", both, a, b, expected))
        if both == b:
            pairs.append(PairCounts(labels[j], labels[i], "first only with second", both, b, a, expected))
    return pairs


def _out_of_range(recordings: Sequence[Recording], intervals: Mapping[str, Sequence[Interval]]) -> list[OutOfRange]:
    found = []
    for recording in recordings:
        union = union_of([(i.start_us, i.end_us) for i in intervals.get(recording.name, ())])
        before = sum(min(end, 0) - min(start, 0) for start, end in union)
        last = recording.info.duration_us
        beyond = sum(max(end, last) - max(start, last) for start, end in union)
        if before or beyond:
            found.append(OutOfRange(recording.name, before / 1e6, beyond / 1e6))
    return found


def _silent_tails(
    table: ClipTable,
    recordings: Sequence[Recording],
    intervals: Mapping[str, Sequence[Interval]],
    reviewed: Mapping[str, Sequence[tuple[int, int]]],
) -> list[SilentTail]:
    least_us = _SILENT_TAIL_CLIPS * max((clip.end_us - clip.start_us for clip in table.clips), default=0)
    at_the_end = {clip.recording: clip.labelled for clip in table.clips}
    found = []
    for recording in recordings:
        if recording.name in intervals and at_the_end.get(recording.name):
            ends = [i.end_us for i in intervals[recording.name]]
            last = max([*ends, *(end for _, end in reviewed.get(recording.name, ()))], default=0)
            tail = recording.info.duration_us - last
            if tail > max(least_us, _SILENT_TAIL_SHARE * recording.info.duration_us):
                found.append(SilentTail(recording.name, last / 1e6, recording.info.duration_us / 1e6))
    return found


def _warnings(audit: LabelAudit) -> list[str]:
    return [*_label_warnings(audit), *_pair_warnings(audit), *_recording_warnings(audit), *_split_warnings(audit)]


def _label_warnings(audit: LabelAudit) -> Iterator[str]:
    """What spoils single labels: too few clips, of one kind alone, or decided by little."""
    if never := [label.label for label in audit.labels if not label.positives]:
        so = "it cannot" if len(never) == 1 else "they cannot"
        yield f"{', '.join(never)}: no clip is positive, so {so} be learned or scored."
    for label in audit.labels:
        if not label.positives:
            continue
        if label.no_positive_in:
            yield (
                f"{label.label}: no positive clip in {_and(label.no_positive_in)} (positive in "
                f"{counted(label.sessions, 'session')}); it cannot be scored there."
            )
        if label.no_negative_in:
            here = _and(label.no_negative_in)
            yield f"{label.label}: every clip is positive in {here}; its score there says nothing."
        if label.near_half > label.positives / 5:
            yield (
                f"{label.label}: {counted(label.near_half, 'clip', ('is', 'are'))} covered by 40 to 60%, beside "
                f"{label.positives} positive ones; the half rule decides many of them by little."
            )


def _pair_warnings(audit: LabelAudit) -> Iterator[str]:
    """Labels that are never on together, or one only where the other is."""
    for pair in audit.pairs:
        if pair.relation == "never together" and pair.expected_together >= _EXPECTED_TOGETHER:
            yield (
                f"{pair.first} and {pair.second} are never on in one clip ({pair.first_clips} and {pair.second_clips} "
                f"clips; {pair.expected_together:.0f} together by chance)."
            )
        elif pair.relation == "first only with second" and audit.labelled_clips > pair.second_clips:
            yield f"{pair.first} is on only where {pair.second} is ({pair.first_clips} and {pair.second_clips} clips)."


def _recording_warnings(audit: LabelAudit) -> Iterator[str]:
    """Recordings and annotations that do not fit each other, and labels that nothing uses."""
    if unlabelled := audit.unlabelled_recordings:
        yield (
            f"{counted(len(unlabelled), 'recording')} without annotations, extracted but neither trained nor scored "
            f"on: {listed(unlabelled)}."
        )
    if unmatched := audit.unmatched_annotations:
        yield (
            f"annotations of {counted(len(unmatched), 'recording')} that cannot be used or found: {listed(unmatched)}."
        )
    far = [item for item in audit.out_of_range if item.before_s + item.beyond_s > _OUTSIDE_S]
    if outside := [f"{o.recording} ({o.before_s:g} s before 0, {o.beyond_s:g} s beyond the end)" for o in far]:
        yield (
            f"{counted(len(outside), 'recording')} with annotated time outside the video, so check time origin and "
            f"file, and of a table the unit (columns.unit under [data]): {listed(outside)}."
        )
    tails = audit.silent_tails
    if silent := [f"{t.recording} (after {t.last_interval_s:g} of {t.duration_s:g} s)" for t in tails]:
        yield (
            f"{counted(len(silent), 'recording')} with nothing annotated in a long end, which all counts as negative: "
            f"{listed(silent)}; if annotation stopped there, mark what was annotated and set annotated_span, or set "
            'unannotated_time = "until_last_annotation" under [data].'
        )
    if unused := [f"{label} ({count})" for label, count in audit.unused_labels.items()]:
        yield f"the annotations hold labels that the table does not use: {listed(unused)}."


def _split_warnings(audit: LabelAudit) -> Iterator[str]:
    """Splits that leak, and clips that take part in nothing."""
    if audit.split_level == "clip":
        yield "the splits cut sessions: clips of one session train and score, so every score is optimistically biased."
    if shared := audit.shared_recordings:
        yield (
            f"{counted(len(shared), 'recording')} with several sessions, which are less apart than they look: "
            f"{listed(shared)}."
        )
    for split, gone in audit.purged_clips.items():
        if gone:
            yield (
                f"{counted(gone, 'labelled clip', ('is', 'are'))} left out of {split}, because they overlap or touch "
                "clips that score it."
            )
    if audit.left_out_clips:
        have = ("has no split and takes", "have no split and take")
        yield f"{counted(audit.left_out_clips, 'labelled clip', have)} part in nothing."


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
