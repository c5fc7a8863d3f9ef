"""Makes the clip table: recordings, their intervals and sessions become clips with targets and splits.

What is not annotated stays visible: a recording without annotations has clips with no targets, in its
session's split where that session has one. Nothing is read or written here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from featurecache.clips.annotated import annotated_spans
from featurecache.clips.clip import Clip, ClipTable, check_labels, clip_id, clip_targets, clip_windows, is_labelled
from featurecache.clips.inventory import Inventory
from featurecache.clips.kept_splits import NO_SPLITS, KeptSplits
from featurecache.clips.leakage import part_of
from featurecache.clips.sessions import spelled_as
from featurecache.clips.splits import SPLITS, split_sessions
from featurecache.errors import ClipTableError, NoRecordingsError
from featurecache.project.settings import DataSettings, Settings, SplitSettings
from featurecache.spelling import did_you_mean, listed
from featurecache.video.recordings import Recording, UnusableRecording

_PARTS = 6
"""Of each labelled session where fewer than three are: enough for three splits and for folds over two of them."""


def make_table(
    settings: Settings, found: Inventory, *, kept: KeptSplits = NO_SPLITS, fixed: Mapping[str, str] | None = None
) -> tuple[ClipTable, tuple[UnusableRecording, ...]]:
    """Cuts the recordings of an inventory into clips, sets their targets, and splits their sessions.

    A recording with intervals, even none, counts as annotated; one that is no key of them is unlabelled. One or two
    labelled sessions are cut by time into parts, each a session of the table, where the settings allow it.

    Args:
        settings: How clips, targets and splits are made.
        found: What the project holds.
        kept: Splits that sessions keep unless the settings fix another; new sessions are placed around them.
        fixed: Session -> split, over those that sessions keep.

    Returns:
        The table in order of recording and time, and the recordings that are shorter than a clip.

    Raises:
        NoRecordingsError: If there is no recording.
        ClipTableError: If a label is in no annotation, or every recording is shorter than a clip.
        SplitError: If there are annotated clips but the sessions cannot be split.
    """
    data, splits, sessions = settings.data, settings.splits, found.sessions
    recordings = sorted(found.recordings, key=lambda recording: recording.name)
    if not recordings:
        raise NoRecordingsError(
            "clips need a usable recording, but there is none. See the reasons listed for each file."
        )
    _check_labels_exist(data, found)
    length_us = settings.clips.length_us
    windows = {
        recording.name: clip_windows(recording.info.duration_us, length_us, settings.clips.stride_us)
        for recording in recordings
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
            found.intervals.get(name),
            data.labels,
            found.annotated.get(name)
            or annotated_spans(found.intervals.get(name, ()), found.points.get(name, ()), data),
            settings.clips.min_overlap_us,
        )
        for name, spans in windows.items()
    }
    session_of = {name: [sessions[name]] * len(spans) for name, spans in windows.items()}
    of_sessions = kept.of_sessions(recordings, sessions)
    fixed = {**of_sessions, **(fixed or {}), **spelled_as(splits.sessions, sessions.values())}
    if splits.allow_clip_level and (parts := _parts_of_few(targets, sessions)):
        session_of |= parts
        cut = {sessions[name] for name in parts}
        fixed = {name: split for name, split in fixed.items() if name not in cut}
    split_of = _split(targets, data.labels, session_of, splits, fixed)
    clips = [
        Clip(clip_id(recording.sha256, start, end), recording.name, session, split_of[session], start, end, target)
        for recording in recordings
        for (start, end), target, session in zip(
            windows[recording.name], targets[recording.name], session_of[recording.name], strict=True
        )
    ]
    return ClipTable(data.labels, tuple(clips)), short


def _too_short(recordings: Sequence[Recording], length_us: int) -> tuple[UnusableRecording, ...]:
    return tuple(
        UnusableRecording(
            recording.name, f"shorter than one clip ({recording.info.duration_us / 1e6:g} s of {length_us / 1e6:g} s)"
        )
        for recording in recordings
    )


def _check_labels_exist(data: DataSettings, inventory: Inventory) -> None:
    check_labels(data.labels)
    points = {point.label for own in inventory.points.values() for point in own}
    found = {interval.label for spans in inventory.intervals.values() for interval in spans}
    held = listed(sorted(found), 20) or "no label at all"
    if inventory.intervals and not data.labels:
        raise ClipTableError(
            f"labels must name the clip table's columns, but none is set. The annotations hold: {held}."
        )
    for label in [*data.labels, *([data.annotated_span] if data.annotated_span is not None else [])]:
        if label not in found and label not in points and label not in inventory.labels_of_absent:
            role = "the annotated span" if label == data.annotated_span else "each label"
            hint = did_you_mean(label, found, f"They hold: {held}.")
            raise ClipTableError(f"{role} must be in the annotations, but {label!r} is in none of them. {hint}")


def _parts_of_few(
    targets: Mapping[str, Sequence[tuple[int | None, ...]]], sessions: Mapping[str, str]
) -> dict[str, list[str]]:
    """Recording -> a part of its session for each clip, where so few sessions are labelled that they are cut.

    The parts of a session follow each other in time and have as many labelled clips each.
    """
    labelled: dict[str, int] = Counter()
    for name, rows in targets.items():
        labelled[sessions[name]] += sum(map(is_labelled, rows))
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
            before[session] += is_labelled(row)
    return found


def _split(
    targets: Mapping[str, Sequence[tuple[int | None, ...]]],
    labels: Sequence[str],
    session_of: Mapping[str, Sequence[str]],
    settings: SplitSettings,
    fixed: Mapping[str, str],
) -> dict[str, str]:
    """Session -> split, by the targets of its labelled clips; "" throughout where nothing is labelled."""
    counts = {session: 0 for name in targets for session in session_of[name]}
    positives = {session: [0] * len(labels) for session in counts}
    for name, rows in targets.items():
        for session, row in zip(session_of[name], rows, strict=True):
            if is_labelled(row):
                counts[session] += 1
                positives[session] = [
                    count + (target or 0) for count, target in zip(positives[session], row, strict=True)
                ]
    if not any(counts.values()):
        return {session: fixed.get(session, "") for session in counts}
    fractions = (settings.train, settings.validation, settings.test)
    return split_sessions(counts, positives, fractions=fractions, seed=settings.seed, fixed=fixed)
