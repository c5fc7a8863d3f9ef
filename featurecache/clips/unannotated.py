"""What the rules for unannotated time and for short annotations do to a table: counted, and said in words.

Inside an annotated recording time without an annotation is negative, unless the settings say where annotation took
place. A label marks the clips that it covers enough of; annotations that mark none are counted by label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.annotations import Interval
from featurecache.clips.clip import ClipTable, by_recording, covered_us, union_of
from featurecache.project.settings import Settings
from featurecache.spelling import counted
from featurecache.video.recordings import Recording

_SHOWN = 5


@dataclass(frozen=True)
class UnannotatedTime:
    """Time of a recording that no annotation covers.

    Attributes:
        recording: Its name.
        negative_clips: Labelled clips in which no label is on.
        seconds: Time without an interval of any label.
        longest_s: The longest stretch of it.
        counts_as: "negative", "unlabelled" where nothing of it trains, or "both".
    """

    recording: str
    negative_clips: int
    seconds: float
    longest_s: float
    counts_as: str


@dataclass(frozen=True)
class LostAnnotations:
    """Annotations of a label that mark no clip.

    Attributes:
        label: Its name.
        points: Annotations of no duration.
        short: Intervals none of whose clips they are enough for.
        outside: Intervals that lie where no clip is labelled: outside of what was annotated, or of the video.
        of: All annotations of the label.
    """

    label: str
    points: int
    short: int
    of: int
    outside: int = 0


def unannotated_time(
    table: ClipTable, recordings: Sequence[Recording], intervals: Mapping[str, Sequence[Interval]], span: str | None
) -> list[UnannotatedTime]:
    """Time without an annotation, per recording that has some; the annotated span itself annotates nothing."""
    clips = by_recording(table)
    found = []
    for recording in sorted(recordings, key=lambda one: one.name):
        own = [one for one in intervals.get(recording.name, ()) if one.label != span]
        gaps = _gaps(union_of([(one.start_us, one.end_us) for one in own]), recording.info.duration_us)
        if not gaps:
            continue
        labelled = [clip for clip in clips.get(recording.name, ()) if clip.labelled]
        negative = sum(1 for clip in labelled if not any(clip.targets))
        whole = len(labelled) == len(clips.get(recording.name, ()))
        counts_as = "unlabelled" if not negative else "negative" if whole else "both"
        found.append(UnannotatedTime(recording.name, negative, sum(gaps) / 1e6, max(gaps) / 1e6, counts_as))
    return found


def lost_annotations(
    table: ClipTable, intervals: Mapping[str, Sequence[Interval]], points: Mapping[str, Sequence[Interval]]
) -> list[LostAnnotations]:
    """Annotations that mark no clip, per label of the table that has some."""
    clips = by_recording(table)
    short: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    count: Counter[str] = Counter(one.label for name, own in intervals.items() if name in clips for one in own)
    for name, own in intervals.items():
        for at, label in enumerate(table.labels):
            on = [(clip.start_us, clip.end_us) for clip in clips.get(name, ()) if clip.targets[at]]
            spans = [(one.start_us, one.end_us) for one in own if one.label == label]
            if name in clips and spans:
                lost = covered_us(spans, on) == 0
                away = covered_us(spans, [(clip.start_us, clip.end_us) for clip in clips[name] if clip.labelled]) == 0
                short[label] += int((lost & ~away).sum())
                outside[label] += int(away.sum())
    at_once: Counter[str] = Counter()
    for name, own in points.items():
        for one in own:
            if name not in clips or one.label not in table.labels:
                continue
            column = table.labels.index(one.label)
            holding = [clip for clip in clips[name] if clip.start_us <= one.start_us < clip.end_us]
            count[one.label] += 1
            at_once[one.label] += not any(clip.targets[column] for clip in holding)
    return [
        LostAnnotations(label, at_once[label], short[label], count[label], outside[label])
        for label in table.labels
        if at_once[label] or short[label] or outside[label]
    ]


def rules_in_words(settings: Settings) -> list[str]:
    """How time is read, a sentence each."""
    data, clips = settings.data, settings.clips
    if data.annotated_span is not None:
        time = f"time is annotated where {data.annotated_span!r} is marked; outside of it clips are unlabelled"
    elif data.unannotated_time == "until_last_annotation":
        time = "an annotated recording is annotated up to its last annotation; later clips are unlabelled"
    else:
        time = (
            "time without an annotation is negative in an annotated recording; a recording without annotations is "
            "unlabelled (to change it: annotated_span, unannotated_time under [data])"
        )
    how = {"any": "any time of it", "0.5": "at least half of it (min_overlap)"}.get(
        str(clips.min_overlap), f"at least {clips.min_overlap_us / 1e6:g} s of it (min_overlap)"
    )
    return [f"{time}.", f"a label is on in a clip when it covers {how}."]


def lost_in_words(lost: Sequence[LostAnnotations]) -> list[str]:
    """A sentence for each label whose annotations partly mark no clip."""
    lines = []
    for one in lost:
        parts = [f"{one.points} of no duration"] * bool(one.points)
        parts += [f"{one.short} too short or cut by clip borders"] * bool(one.short)
        parts += [f"{one.outside} outside of the time that counts as annotated, or of the video"] * bool(one.outside)
        advice = (
            ', since a label must cover min_overlap of a clip; min_overlap = "0.2 s" or "any" under [clips], or '
            "shorter clips, take the short ones in"
        )
        lines.append(
            f"{one.label}: {one.points + one.short + one.outside} of {counted(one.of, 'annotation')} mark no clip "
            f"({' and '.join(parts)}){advice if one.points or one.short else ''}."
        )
    return lines


def unannotated_in_words(found: Sequence[UnannotatedTime]) -> list[str]:
    """One sentence: how much time is negative for want of an annotation."""
    negative = [one for one in found if one.negative_clips]
    if not negative:
        return []
    longest = sorted(negative, key=lambda one: -one.longest_s)[:_SHOWN]
    named = ", ".join(f"{one.recording} ({one.longest_s:g} s)" for one in longest)
    clips = sum(one.negative_clips for one in negative)
    return [
        f"{counted(clips, 'clip')} of {counted(len(negative), 'recording')} {'is' if clips == 1 else 'are'} negative "
        f"since nothing is annotated in them; the longest stretches: {named}."
    ]


def _gaps(union: Sequence[tuple[int, int]], duration_us: int) -> list[int]:
    """Lengths of the stretches of a recording that disjoint, sorted spans leave free."""
    edges = np.array([0, *(edge for span in union for edge in span), duration_us], np.int64).clip(0, duration_us)
    lengths = edges[1::2] - edges[::2]
    return [int(length) for length in lengths if length > 0]
