"""Annotated and predicted intervals of a recording, and where the two differ.

A difference is a stretch in which exactly one of the two has the label: *missed* where only the annotator has it,
*extra* where only the model has it. The longest come first, so those at the borders of an interval, which are
short, come last. Only time that was scored and annotated is compared. What this is not: scores of timelines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurecache.annotations import Interval
from featurecache.clips.clip import Clip, ClipTable, union_of
from heads.report.documents import TIMELINES_NAME, Document, Run, number, read_json
from heads.timelines.scores import disagreements, intersection
from heads.timelines.timeline import Spans


@dataclass(frozen=True)
class Timeline:
    """What a recording holds by the model and by the annotator.

    Attributes:
        recording: Its name in the project.
        content: First 16 hex digits of its sha256.
        session: Group of recordings that splits never cut; "" where unknown.
        split: "train", "validation", "test", or "" where unknown.
        duration_us: Length.
        predicted: Label -> spans by the model.
        confidence: Label -> the model's confidence in each of its spans; None where it is not known.
        compared_us: What was scored, and annotated where there is an annotation; elsewhere nothing is known.
        annotated: Label -> spans by the annotator; None where nobody annotated.
    """

    recording: str
    content: str
    session: str
    split: str
    duration_us: int
    predicted: Mapping[str, Spans]
    confidence: Mapping[str, list[float | None]]
    compared_us: Spans
    annotated: Mapping[str, Spans] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted labels, and those that only the annotator has."""
        return tuple(dict.fromkeys([*self.predicted, *(self.annotated or {})]))


@dataclass(frozen=True)
class Difference:
    """A stretch in which only one of the two has the label."""

    recording: str
    content: str
    label: str
    kind: Literal["missed", "extra"]
    start_us: int
    end_us: int

    @property
    def duration_us(self) -> int:
        """Its length."""
        return self.end_us - self.start_us


def read_timelines(folder: Path, run: Run | None, table: ClipTable | None) -> tuple[list[Timeline], list[str]]:
    """Reads every `*.predicted.json` of a folder and its subfolders; their shape stands in `heads.timelines.files`.

    Args:
        folder: The folder of predictions; it may be missing.
        run: The run whose scored timelines serve for recordings without a prediction by its own bundle; predictions by
            another bundle serve for recordings that it did not score.
        table: The clip table: tells the session and split of a recording, by its content. What was predicted of
            another video that had the name of one of its recordings is left out.

    Returns:
        The timelines, and what was left out or could not be read with the reasons.
    """
    problems: list[str] = []
    paths = sorted(folder.rglob("*.predicted.json"))
    predicted = [(path.name, document) for path in paths if (document := read_json(path, problems))]
    own = run.bundle.get("sha256") if run is not None else None
    scored = run.timelines.get("recordings") if run is not None else None
    documents = [
        *(one for one in predicted if one[1].get("bundle") == own),
        *(
            (f"{TIMELINES_NAME}, recording {at + 1}", one)
            for at, one in enumerate(scored if isinstance(scored, list) else [])
        ),
        *(one for one in predicted if one[1].get("bundle") != own),
    ]
    known = {clip.content: clip for clip in table.clips} if table is not None else {}
    named = {clip.recording for clip in known.values()}
    timelines: dict[str, Timeline] = {}
    for name, document in documents:
        try:
            timeline = _timeline(document, known)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            problems.append(f"{name}: it is no timeline ({type(error).__name__}: {error})")
        else:
            if timeline.content in known or timeline.recording not in named:
                timelines.setdefault(timeline.recording, timeline)
            else:
                problems.append(f"{name}: it is of another video of that name; move it away, or evaluate again")
    return list(timelines.values()), problems


def in_order(timelines: Sequence[Timeline]) -> list[Timeline]:
    """As the page lists them: annotated ones first, unseen splits before the others, then by name."""
    ranks = {"test": 0, "validation": 1, "": 2, "train": 3}
    return sorted(timelines, key=lambda one: (one.annotated is None, ranks.get(one.split, 4), one.recording))


def _timeline(document: Document, known: Mapping[str, Clip]) -> Timeline:
    about = document["recording"]
    clip, duration_us = known.get(about["content"]), int(about["duration_us"])
    predicted = {
        str(label): [(int(start), int(end), number(sure)) for start, end, sure in sorted(own)]
        for label, own in document["predicted"].items()
    }
    scope = union_of(_spans(document["scored_us"]))
    annotated = None
    if document["annotated"] is not None:
        annotated = {str(label): union_of(_spans(own)) for label, own in document["annotated"].items()}
        scope = intersection(scope, union_of(_spans(document["annotated_us"] or [(0, duration_us)])))
    return Timeline(
        recording=clip.recording if clip is not None else str(about["name"]),
        content=str(about["content"]),
        session=clip.session if clip is not None else "",
        split=clip.split if clip is not None else "",
        duration_us=duration_us,
        predicted={label: [span[:2] for span in own] for label, own in predicted.items()},
        confidence={label: [span[2] for span in own] for label, own in predicted.items()},
        annotated=annotated,
        compared_us=scope,
    )


def _spans(pairs: Sequence[Sequence[int]]) -> Spans:
    return [(int(start), int(end)) for start, end in pairs]


def differences(timelines: Sequence[Timeline]) -> list[Difference]:
    """Where the annotated recordings' two sides differ, the longest first."""
    found = [
        Difference(timeline.recording, timeline.content, one.label, one.kind, one.start_us, one.end_us)
        for timeline in timelines
        if timeline.annotated is not None
        for one in disagreements(
            _intervals(timeline.annotated),
            _intervals(timeline.predicted),
            labels=timeline.labels,
            within=timeline.compared_us,
        )
    ]
    return sorted(found, key=lambda one: (-one.duration_us, one.recording, one.start_us, one.label))


def not_compared(timeline: Timeline) -> Spans:
    """The recording's time that was not scored, or not annotated where there is an annotation."""
    edges = [0, *(border for span in timeline.compared_us for border in span), timeline.duration_us]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _intervals(spans: Mapping[str, Spans]) -> list[Interval]:
    return [Interval(start, end, label) for label, own in spans.items() for start, end in own]


def total_us(spans: Sequence[tuple[int, int]]) -> int:
    """Length of disjoint spans together."""
    return sum(end - start for start, end in spans)
