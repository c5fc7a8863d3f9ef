"""Samples of several clips, and the rules that make them of a clip table: pure functions.

A sample has P places, the same for all samples of a table. Each holds a clip or nothing: a group may be smaller than
another, and a camera may have failed. A sample lies in one session, and so in one split, whole.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from featurecache.clips.clip import Clip, ClipTable, is_labelled
from featurecache.csv_fields import format_seconds
from featurecache.errors import ClipTableError, SettingsError
from featurecache.project.samples import SampleSettings
from featurecache.spelling import listed

BETWEEN_PARTS = "+"
"""What joins the ids of a sample's clips to its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Several clips with one target.

    Attributes:
        name: What people call it.
        parts: The clip id at each of P places; "" where there is none.
        session: The session of all its clips.
        split: Their split.
        targets: One of 1, 0 or None for each label of the sample table.
        columns: What its other columns say, by name.
        findings: What somebody wrote of it, e.g. in a report; empty where nothing is known.
    """

    name: str
    parts: tuple[str, ...]
    session: str
    split: str
    targets: tuple[int | None, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    findings: str = ""

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """Its clips, in order."""
        return tuple(part for part in self.parts if part)

    @property
    def clip_id(self) -> str:
        """The ids of its clips as one: by content and time, never by a name."""
        return BETWEEN_PARTS.join(self.clip_ids)

    @property
    def labelled(self) -> bool:
        """Whether it can train or score: every target is known."""
        return is_labelled(self.targets)


@dataclass(frozen=True)
class SampleTable:
    """All samples of a project.

    Attributes:
        labels: Names of the labels that targets follow.
        samples: The samples.
        roles: What stands at each of the P places, e.g. ("before", "after"); empty where places have no meaning.
    """

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    roles: tuple[str, ...] = ()

    @property
    def places(self) -> int:
        """P."""
        return max((len(sample.parts) for sample in self.samples), default=0)


def make_samples(table: ClipTable, settings: SampleSettings) -> SampleTable:
    """The samples that a rule makes of the labelled clips of a table.

    Raises:
        SettingsError: If the label of the rule "event" is none of the table.
        ClipTableError: If the rule finds no sample, or cannot tell the cameras of a session apart.
    """
    clips = [clip for clip in table.clips if clip.labelled]
    if settings.rule == "moment":
        found = _moments(table)
    elif settings.rule == "event":
        found = _events(clips, table.labels, settings.event)
    else:
        found = SampleTable(table.labels, tuple(groups_of_recordings(clips, settings.most_clips)))
    if not found.samples:
        raise ClipTableError(
            f'samples.rule = "{settings.rule}" must find samples among the clips, but of {len(clips)} labelled clips '
            "it makes none. Choose another rule under [samples], or annotate recordings that have such samples."
        )
    return found


def groups_of_recordings(clips: Iterable[Clip], most: int) -> Iterator[Sample]:
    """The clips of each recording, in groups of so many that follow each other; 0 for all of them."""
    of_recording: defaultdict[tuple[str, str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        of_recording[clip.recording, clip.session, clip.split].append(clip)
    for (recording, _, _), own in of_recording.items():
        own.sort(key=lambda clip: clip.start_us)
        for start in range(0, len(own), most or len(own)):
            group = own[start : start + (most or len(own))]
            since = f" from {format_seconds(group[0].start_us)} s" if most else ""
            yield _sample(f"{recording}{since}", group)


def moments(clips: Iterable[Clip], cameras: Sequence[str]) -> Iterator[Sample]:
    """Clips of one session that start and end together, at a place for each camera.

    Raises:
        ClipTableError: If the cameras of a session cannot be told apart.
    """
    for (session, _, start_us, _), moment in _together(clips).items():
        yield _sample(f"{session} at {format_seconds(start_us)} s", [moment.get(camera) for camera in cameras])


def _together(clips: Iterable[Clip]) -> dict[tuple[str, str, int, int], dict[str, Clip]]:
    """Clips by camera, of one session and split that start and end together."""
    together: defaultdict[tuple[str, str, int, int], dict[str, Clip]] = defaultdict(dict)
    for clip in clips:
        camera = camera_of(clip.recording, clip.session)
        other = together[clip.session, clip.split, clip.start_us, clip.end_us].setdefault(camera, clip)
        if other is not clip:
            raise ClipTableError(
                f"the cameras of a session must differ in their recordings' names, but {clip.recording!r} and "
                f'{other.recording!r} do not once {clip.session!r} is left out. Rename them, or set rule = "file" '
                "under [samples] and write samples.csv."
            )
    return together


def _moments(table: ClipTable) -> SampleTable:
    """The moments of a table at which a clip is labelled."""
    together = _together(table.clips)
    cameras = tuple(sorted({camera for moment in together.values() for camera in moment}))
    recordings = {(clip.session, clip.recording) for clip in table.clips}
    sessions = len({session for session, _ in recordings})
    if len(recordings) == sessions:
        raise ClipTableError(
            'samples.rule = "moment" must have sessions of several recordings, but each session has one. Set '
            "session_from or same_session under [data] so that a session holds all its cameras."
        )
    if len(cameras) == len(recordings) and sessions > 1:
        raise ClipTableError(
            "a camera must have the same name in all sessions, but the names of the recordings without their sessions "
            f"all differ: {listed(cameras)}. Name them e.g. S01_front.mp4 "
            'and S02_front.mp4, or set rule = "file" under [samples] and write samples.csv.'
        )
    labelled = [moment.values() for moment in together.values() if any(clip.labelled for clip in moment.values())]
    return SampleTable(table.labels, tuple(moments(chain.from_iterable(labelled), cameras)), cameras)


def camera_of(recording: str, session: str) -> str:
    """What a recording's name says besides its session: `front` of S01_front.mp4 in the session S01."""
    return str(PurePosixPath(recording).with_suffix("")).replace(session, "").strip("/_-. ") or "camera"


def _events(clips: Iterable[Clip], labels: tuple[str, ...], event: str | None) -> SampleTable:
    """The clips right before and right after each stretch of a label, with the targets of the one after."""
    if event not in labels or len(labels) < 2:
        raise SettingsError(
            f"samples.event must be a label of clips.csv beside others, but it is {event!r} and the labels are "
            f"{', '.join(labels)}. Name one of them under [samples]."
        )
    at, found = labels.index(event), []
    for own in _stretches(clips):
        is_on = [clip.targets[at] == 1 for clip in own]
        for first in range(1, len(own)):
            if is_on[first] and not is_on[first - 1]:
                after = next((place for place in range(first, len(own)) if not is_on[place]), None)
                if after is not None:
                    name = f"{own[first].recording} {event} at {format_seconds(own[first].start_us)} s"
                    targets = tuple(target for place, target in enumerate(own[after].targets) if place != at)
                    found.append(_sample(name, [own[first - 1], own[after]], targets))
    others = tuple(label for label in labels if label != event)
    return SampleTable(others, tuple(found), ("before", "after"))


def _stretches(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    """Clips of one recording, session and split that follow each other without a gap."""
    stretch: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: (clip.recording, clip.start_us)):
        last = stretch[-1] if stretch else clip
        same = (last.recording, last.session, last.split) == (clip.recording, clip.session, clip.split)
        if stretch and not (same and clip.start_us <= last.end_us):
            yield stretch
            stretch = []
        stretch.append(clip)
    if stretch:
        yield stretch


def _sample(name: str, clips: Sequence[Clip | None], targets: tuple[int | None, ...] | None = None) -> Sample:
    """A sample of clips; without targets of its own, a label is on where it is in any labelled clip."""
    there = [clip for clip in clips if clip is not None]
    if targets is None:
        known = (clip.targets for clip in there if clip.labelled)
        targets = tuple(int(any(of_label)) for of_label in zip(*known, strict=True))
    parts = tuple("" if clip is None else clip.clip_id for clip in clips)
    return Sample(name, parts, there[0].session, there[0].split, targets)
