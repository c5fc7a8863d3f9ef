"""Builds the clip table: recordings, their intervals and sessions become clips with targets and splits.

What is not annotated stays visible: a recording without annotations has clips with no targets, in its
session's split where that session has one. Nothing is read or written here.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from featurecache.annotations import Interval
from featurecache.clips.clip import Clip, ClipTable, check_labels, clip_id, clip_targets, clip_windows
from featurecache.clips.leakage import part_of
from featurecache.clips.splits import SPLITS, split_sessions
from featurecache.errors import ClipTableError, NoRecordingsError
from featurecache.spelling import did_you_mean, listed
from featurecache.video.recordings import Recording, UnusableRecording

_PARTS = 6
"""Of each labelled session where fewer than three are: enough for three splits and for folds over two of them."""


def build_table(
    recordings: Sequence[Recording],
    intervals: Mapping[str, Sequence[Interval]],
    labels: Sequence[str],
    *,
    length_us: int,
    stride_us: int,
    sessions: Mapping[str, str],
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    fixed_splits: Mapping[str, str] | None = None,
    annotated: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    annotated_span: str | None = None,
    until_last: bool = False,
    min_overlap_us: int | None = None,
    points: Mapping[str, Sequence[Interval]] | None = None,
    labels_of_absent: Collection[str] = (),
    may_cut_sessions: bool = False,
) -> tuple[ClipTable, tuple[UnusableRecording, ...]]:
    """Cuts recordings into clips, sets their targets, and splits their sessions.

    Args:
        recordings: The usable recordings.
        intervals: Recording -> its intervals of all labels. A recording that is a key counts as annotated, even
            without an interval; one that is not is unlabelled.
        labels: Columns of targets, in this order. Empty only where nothing is annotated.
        length_us: Length of a clip.
        stride_us: From one clip's start to the next one's.
        sessions: Recording -> session.
        fractions: Shares of the labelled clips for train, validation and test.
        seed: Chooses among equally good splits.
        fixed_splits: Session -> split, as the user decided.
        annotated: Recording -> what of it was annotated, where that is not what the next two make of its intervals.
        annotated_span: Label whose intervals mark what was annotated; clips not wholly inside are unlabelled. In a
            recording without it nothing counts as annotated. None: annotated recordings are annotated throughout.
        until_last: Whether clips that end behind a recording's last annotation are unlabelled.
        min_overlap_us: Time of a clip that a label must cover to be on; None: half of it.
        points: Recording -> its annotations of no duration: they are annotation, but cover nothing.
        labels_of_absent: Labels of annotations whose recordings are absent: columns of them have no positive clip.
        may_cut_sessions: Whether one or two labelled sessions are cut by time into parts, each a session of the table.

    Returns:
        The table in order of recording and time, and the recordings that are shorter than a clip.

    Raises:
        NoRecordingsError: If there is no recording.
        ClipTableError: If a label is in no annotation, or every recording is shorter than a clip.
        SplitError: If there are annotated clips but the sessions cannot be split.
    """
    if not recordings:
        raise NoRecordingsError(
            "clips need a usable recording, but there is none. See the reasons listed for each file."
        )
    points = points or {}
    _check_labels_exist(labels, annotated_span, intervals, points, labels_of_absent)
    windows = {
        recording.name: clip_windows(recording.info.duration_us, length_us, stride_us)
        for recording in sorted(recordings, key=lambda recording: recording.name)
    }
    short = _too_short([recording for recording in recordings if not windows[recording.name]], length_us)
    if len(short) == len(recordings):
        longest = max(recordings, key=lambda recording: recording.info.duration_us)
        raise ClipTableError(
            f"a clip must fit into a recording, but length_s is {length_us / 1e6:g} and the longest recording, "
            f"{longest.name}, lasts {longest.info.duration_us / 1e6:g} s. Lower length_s under [clips]."
        )
    targets = {
        name: clip_targets(
            spans,
            intervals.get(name),
            labels,
            (annotated or {}).get(name)
            or annotated_spans(intervals.get(name, ()), points.get(name, ()), annotated_span, until_last),
            min_overlap_us,
        )
        for name, spans in windows.items()
    }
    session_of = {name: [sessions[name]] * len(spans) for name, spans in windows.items()}
    if may_cut_sessions and (parts := _parts_of_few(targets, sessions)):
        session_of |= parts
        cut = {sessions[name] for name in parts}
        fixed_splits = {name: split for name, split in (fixed_splits or {}).items() if name not in cut}
    splits = _split(targets, labels, session_of, fractions, seed, fixed_splits)
    clips = [
        Clip(
            clip_id(recording.sha256, start, end),
            recording.name,
            session,
            splits[session],
            start,
            end,
            target,
        )
        for recording in sorted(recordings, key=lambda recording: recording.name)
        for (start, end), target, session in zip(
            windows[recording.name], targets[recording.name], session_of[recording.name], strict=True
        )
    ]
    return ClipTable(tuple(labels), tuple(clips)), short


def _too_short(recordings: Sequence[Recording], length_us: int) -> tuple[UnusableRecording, ...]:
    return tuple(
        UnusableRecording(
            recording.name, f"shorter than one clip ({recording.info.duration_us / 1e6:g} s of {length_us / 1e6:g} s)"
        )
        for recording in recordings
    )


def _check_labels_exist(
    labels: Sequence[str],
    annotated_span: str | None,
    intervals: Mapping[str, Sequence[Interval]],
    points: Mapping[str, Sequence[Interval]],
    labels_of_absent: Collection[str],
) -> None:
    check_labels(labels)
    points_of = {point.label for own in points.values() for point in own}
    found = {interval.label for spans in intervals.values() for interval in spans}
    held = listed(sorted(found), 20) or "no label at all"
    if intervals and not labels:
        raise ClipTableError(
            f"labels must name the clip table's columns, but none is set. The annotations hold: {held}."
        )
    for label in [*labels, *([annotated_span] if annotated_span is not None else [])]:
        if label not in found and label not in points_of and label not in labels_of_absent:
            role = "the annotated span" if label == annotated_span else "each label"
            hint = did_you_mean(label, found, f"They hold: {held}.")
            raise ClipTableError(f"{role} must be in the annotations, but {label!r} is in none of them. {hint}")


def annotated_spans(
    intervals: Sequence[Interval], points: Sequence[Interval], annotated_span: str | None, until_last: bool
) -> list[tuple[int, int]] | None:
    """What of a recording was annotated: marked spans, what lies before the last annotation, or None for all of it.

    Args:
        intervals: The recording's intervals of every label.
        points: Its annotations of no duration.
        annotated_span: Label whose intervals mark what was annotated.
        until_last: Whether annotation ended with the last one.
    """
    if annotated_span is not None:
        return [(interval.start_us, interval.end_us) for interval in intervals if interval.label == annotated_span]
    if until_last:
        return [(0, max((one.end_us for one in (*intervals, *points)), default=0))]
    return None


def _parts_of_few(
    targets: Mapping[str, Sequence[tuple[int | None, ...]]], sessions: Mapping[str, str]
) -> dict[str, list[str]]:
    """Recording -> a part of its session for each clip, where so few sessions are labelled that they are cut.

    The parts of a session follow each other in time and have as many labelled clips each.
    """
    labelled: dict[str, int] = Counter()
    for name, rows in targets.items():
        labelled[sessions[name]] += sum(map(_is_labelled, rows))
    few = {session: count for session, count in labelled.items() if count}
    if not 0 < len(few) < len(SPLITS):
        return {}
    found: dict[str, list[str]] = {}
    before: dict[str, int] = Counter()
    for name, rows in targets.items():
        session = sessions[name]
        if session not in few:
            continue
        found[name] = []
        for row in rows:
            part = min(before[session] * _PARTS // few[session], _PARTS - 1)
            found[name].append(part_of(session, part + 1, _PARTS))
            before[session] += _is_labelled(row)
    return found


def _is_labelled(row: tuple[int | None, ...]) -> bool:
    return bool(row) and None not in row


def _split(
    targets: Mapping[str, Sequence[tuple[int | None, ...]]],
    labels: Sequence[str],
    session_of: Mapping[str, Sequence[str]],
    fractions: tuple[float, float, float],
    seed: int,
    fixed_splits: Mapping[str, str] | None,
) -> dict[str, str]:
    """Session -> split, by the targets of its labelled clips; "" throughout where nothing is labelled."""
    counts = {session: 0 for name in targets for session in session_of[name]}
    positives = {session: [0] * len(labels) for session in counts}
    for name, rows in targets.items():
        for session, row in zip(session_of[name], rows, strict=True):
            if _is_labelled(row):
                counts[session] += 1
                positives[session] = [
                    count + (target or 0) for count, target in zip(positives[session], row, strict=True)
                ]
    if not any(counts.values()):
        return {session: (fixed_splits or {}).get(session, "") for session in counts}
    return split_sessions(counts, positives, fractions=fractions, seed=seed, fixed=fixed_splits)
