"""Reviews as annotation: within a recording's reviewed stretches they say what is on; elsewhere they say nothing.

A blind review is annotation like any other. One that was made with the predictions in sight is no independent truth, so
it trains and never scores: in sessions of the test split it is not used, it moves no annotated session to another
split, and a session that has nothing else trains. Its stretches are recorded with the table, for out-of-fold scores.
Of a recording with both, the blind one labels what it covers, unless it was made after the other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from featurecache.annotations import Interval
from featurecache.annotations.reviews import (
    FOLDER,
    How,
    Mark,
    Review,
    find_reviews,
    read_review,
    review_files,
    reviewed_content,
)
from featurecache.clips.annotated import annotated_spans
from featurecache.clips.clip import Clip, ClipTable, union_of
from featurecache.clips.inventory import Inventory
from featurecache.clips.kept_splits import NO_SPLITS, KeptSplits
from featurecache.clips.label_counts import LabelSources
from featurecache.clips.table import make_table
from featurecache.errors import FeatureCacheError
from featurecache.project.settings import DataSettings, Project
from featurecache.video.recordings import Recording, UnusableRecording

_CUT = "its session is cut into parts, of which one is tested; annotate three sessions first"


@dataclass(frozen=True)
class ReviewedTable:
    """A table that takes reviews in.

    Attributes:
        inventory: What the project holds, with what the reviews say.
        table: The table.
        short: Recordings that are shorter than a clip.
        seen: Content of a recording -> stretches that are labelled by a review with predictions in sight.
        left_out: Reviews that are not used, and why.
        sources: Who labelled the clips; None where no review was asked for.
    """

    inventory: Inventory
    table: ClipTable
    short: tuple[UnusableRecording, ...]
    seen: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    left_out: tuple[UnusableRecording, ...] = ()
    sources: LabelSources | None = None


def reviewed_table(project: Project, found: Inventory, *, kept: KeptSplits = NO_SPLITS) -> ReviewedTable:
    """The clip table of an inventory and of the reviews of its recordings.

    Args:
        project: The project.
        found: What it holds.
        kept: Splits that sessions keep.

    Raises:
        ClipTableError, SplitError: As `make_table`.
    """
    data = project.settings.data
    blind, unread = _read(project, found.recordings, blind=True)
    seen, more_unread = _read(project, found.recordings, blind=False)
    late = {name: _after(blind[name], review) for name, review in seen.items() if name in blind}
    blind |= {name: _outside(blind[name], spans) for name, spans in late.items()}
    seen |= {name: _outside(seen[name], union_of(blind[name].stretches)) for name in late}
    blind, seen = ({name: one for name, one in own.items() if one.stretches} for own in (blind, seen))
    left_out = [*unread, *more_unread, *_without_recording(project, found.recordings)]
    left_out += [
        UnusableRecording(
            f"blind review of {name}", "made after predictions were in sight there, it is not blind there"
        )
        for name, spans in late.items()
        if spans
    ]
    labels = {one.label for review in seen.values() for one in review.intervals}
    independent = with_reviews(found, blind, data)
    known = replace(independent, labels_of_absent={**dict.fromkeys(labels, "a review"), **independent.labels_of_absent})
    table, short = make_table(project.settings, known, kept=kept)
    split_of = {clip.recording: clip.split for clip in table.clips}
    cut = {clip.recording for clip in table.clips if clip.session != found.sessions[clip.recording]}
    refused = {
        name: "its session is of the test split, and it was made with the predictions in sight; "
        + ("what no blind review made before it covers stays as annotated" if name in late else "review it blind")
        for name in seen
        if split_of.get(name) == "test"
    }
    refused |= {name: _CUT for name in seen if cut}
    left_out += [UnusableRecording(f"review of {name}", why) for name, why in sorted(refused.items())]
    used = {name: review for name, review in seen.items() if name not in refused}
    if not used:
        return ReviewedTable(independent, table, short, {}, tuple(left_out), _sources(table, blind, {}))
    both = with_reviews(independent, used, data)
    splits = {clip.session: clip.split for clip in table.clips if clip.split}
    fixed = {**{found.sessions[name]: "train" for name in used}, **splits}
    table, short = make_table(project.settings, both, kept=kept, fixed=fixed)
    content = {one.name: one.sha256[:16] for one in found.recordings}
    spans = {content[name]: union_of(review.stretches) for name, review in used.items()}
    return ReviewedTable(both, table, short, spans, tuple(left_out), _sources(table, blind, used))


def _sources(table: ClipTable, blind: Mapping[str, Review], in_sight: Mapping[str, Review]) -> LabelSources:
    """Who labelled the labelled clips of a table, by the reviews that it uses."""
    count: Counter[str] = Counter()
    for clip in table.clips:
        if not clip.labelled:
            continue
        if _touching(clip, in_sight, "reviewed"):
            count["in_sight"] += 1
            count["accepted"] += not _touching(clip, in_sight, "annotated", "corrected", "added", "rejected")
        else:
            count["blind" if _touching(clip, blind, "reviewed") else "annotators"] += 1
    return LabelSources(**count)


def _touching(clip: Clip, reviews: Mapping[str, Review], *kinds: How) -> bool:
    """Whether the clip's recording has a review with a mark of these kinds in the clip's time."""
    marks = reviews[clip.recording].marks if clip.recording in reviews else ()
    return any(one.how in kinds and one.start_us < clip.end_us and clip.start_us < one.end_us for one in marks)


def with_reviews(found: Inventory, reviews: Mapping[str, Review], data: DataSettings) -> Inventory:
    """An inventory in which reviews say what is on in their stretches.

    Args:
        found: The inventory.
        reviews: Recording -> its review.
        data: How annotations are read.
    """
    intervals, annotated, reviewed = dict(found.intervals), dict(found.annotated), dict(found.reviewed)
    durations = {one.name: one.info.duration_us for one in found.recordings}
    for name, review in reviews.items():
        stretches = union_of(review.stretches)
        whole = [(0, durations[name])]
        before = annotated.get(name, []) if name in annotated or name not in intervals else None
        if before is None:
            before = annotated_spans(intervals[name], found.points.get(name, ()), data) or whole
        outside = _without(whole, stretches)
        own = [one for one in intervals.get(name, ()) if one.label == data.annotated_span]
        rest = [one for one in intervals.get(name, ()) if one.label != data.annotated_span]
        intervals[name] = sorted({*own, *_within(rest, outside), *_within(review.intervals, stretches)})
        annotated[name] = union_of([*before, *stretches])
        reviewed[name] = union_of([*reviewed.get(name, ()), *stretches])
    return replace(found, intervals=intervals, annotated=annotated, reviewed=reviewed)


def _read(
    project: Project, recordings: Sequence[Recording], *, blind: bool
) -> tuple[dict[str, Review], list[UnusableRecording]]:
    """The reviews with a reviewed stretch, and those that cannot be read."""
    found: dict[str, Review] = {}
    unread = []
    names = {one.sha256[:16]: one.name for one in recordings}
    folder = project.root / FOLDER
    places = find_reviews(folder, names, blind=blind)
    files = review_files(folder, blind=blind)
    for content, path in places.items():
        if path not in files:
            continue
        try:
            review = read_review(path, content=content)
        except FeatureCacheError as error:
            unread.append(UnusableRecording.because(path.name, error))
            continue
        if review.stretches:
            found[names[content]] = review
        elif review.marks:
            unread.append(UnusableRecording(f"review of {names[content]}", "no stretch of it is marked as reviewed"))
    for path in sorted(files.keys() - set(places.values())):
        try:
            content = reviewed_content(path)
        except FeatureCacheError as error:
            unread.append(UnusableRecording.because(path.name, error))
            continue
        if content in names:
            why = f"{names[content]} has another review, which is used; copy what it lacks from this one in ELAN"
        elif files[path] in names.values():
            why = "it was made of another video of the same name, which is gone; put that back, or move this one away"
        else:
            continue
        unread.append(UnusableRecording(path.name, why))
    return found, unread


def _without_recording(project: Project, recordings: Sequence[Recording]) -> list[UnusableRecording]:
    """One item for all reviews whose recordings are not there, whatever they are called now."""
    known = {one.sha256[:16] for one in recordings} | {one.name for one in recordings}
    lost = []
    for blind in (False, True):
        for path, named in review_files(project.root / FOLDER, blind=blind).items():
            try:
                is_lost = named not in known and reviewed_content(path) not in known
            except FeatureCacheError:
                continue  # it is named as unreadable
            if is_lost:
                lost.append(named)
    if not lost:
        return []
    why = "no usable recording of that content in the videos folder; add the video there, or move the review away"
    return [UnusableRecording(f"review of {', '.join(dict.fromkeys(lost))}", why)]


def stretches_in_sight(project: Project, contents: Mapping[str, str]) -> dict[str, list[tuple[int, int]]]:
    """Content of a recording -> all stretches that have a review with predictions in sight, read from the reviews.

    Args:
        project: The project.
        contents: Name of a recording -> first 16 digits of its sha256, for reviews that do not say theirs.

    Raises:
        AnnotationError: If a review cannot be read.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for path, name in review_files(project.root / FOLDER, blind=False).items():
        content = reviewed_content(path) or contents.get(name, "")
        found[content] = union_of([*found.get(content, []), *read_review(path, content=content).stretches])
    return found


def _after(blind: Review, seen: Review) -> list[tuple[int, int]]:
    """Where a stretch was reviewed blind after predictions were in sight; marks that tell no time count as before."""
    late = []
    for own in blind.marks:
        for start, end in seen.stretches if own.how == "reviewed" else ():
            low, high = max(own.start_us, start), min(own.end_us, end)
            times = [_time(one) for one in seen.marks if one.start_us < high and low < one.end_us]
            first, last = min(filter(None, times), default=None), _time(own)
            if low < high and first is not None and last is not None and first <= last:
                late.append((low, high))
    return union_of(late)


def _time(mark: Mark) -> datetime | None:
    try:
        at = datetime.fromisoformat(mark.at)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _outside(review: Review, spans: Sequence[tuple[int, int]]) -> Review:
    """A review whose reviewed stretches leave these spans out."""
    marks = [one for one in review.marks if one.how != "reviewed"]
    rest = _without(union_of(review.stretches), spans)
    return replace(review, marks=(*marks, *(Mark(start, end, "", "reviewed") for start, end in rest)))


def _within(intervals: Sequence[Interval], spans: Sequence[tuple[int, int]]) -> list[Interval]:
    return [
        Interval(max(one.start_us, start), min(one.end_us, end), one.label)
        for one in intervals
        for start, end in spans
        if max(one.start_us, start) < min(one.end_us, end)
    ]


def _without(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of disjoint, ordered spans the disjoint, ordered others leave free."""
    edges = [edge for span in others for edge in span]
    return [
        (max(start, low), min(end, high))
        for start, end in spans
        for low, high in zip([start, *edges[1::2]], [*edges[::2], end], strict=True)
        if max(start, low) < min(end, high)
    ]
