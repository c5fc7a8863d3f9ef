"""The leakage guard: what stands on both sides of a split's border, and what is purged there.

Notable choices: splits go by session, and a table in which a session lies in two splits is refused unless the
project forces it (`[splits] allow_clip_level = true`), which every result then says. A recording may hold several
sessions if each is one stretch of it. Where windows of the same content overlap or touch across splits, the side
that learns gives way: training to validation and test, validation to test. Windows are compared by their ids, so
by content and time, never by a file's name.

What this is not: a search for re-encoded copies. The same bytes under two names are found, another encoding is not.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurecache.clips.clip import Clip, ClipColumns, Coded, union_of
from featurecache.clips.samples import BETWEEN_PARTS
from featurecache.spelling import caseless, plain_name

FORCED = "splits cut sessions: clips of one session train and score, so these scores are optimistically biased"
"""What every result of a forced clip-level split says."""

_PART = re.compile(r" part \d+ of \d+$")
_GIVES_WAY_TO = {"train": ("validation", "test"), "validation": ("test",)}


@dataclass(frozen=True)
class Leak:
    """A clip through which a session, a recording or its content stands in two places.

    Attributes:
        position: Index of the clip that disagrees with another one.
        earlier: Index of that one.
        column: The table's column to correct.
        reason: What crosses, in words.
        clip_level: Whether it is a split by clips, which the project may force.
    """

    position: int
    earlier: int
    column: str
    reason: str
    clip_level: bool = False

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if not self.clip_level:
            return f"Correct the {self.column} column, or delete the lines."
        return (
            f"Correct the {self.column} column; or, if optimistically biased scores will do, set "
            "allow_clip_level = true under [splits]."
        )


def find_leak(clips: Sequence[Clip], *, allow_clip_level: bool = False) -> Leak | None:
    """The first thing that crosses: a recording of two contents, a content of two names, a session cut by splits.

    Likewise a session in two spellings, which nothing behind the table would know to be one.

    Clips with an empty split take part in none, so they may touch any.

    Args:
        clips: The clips of a table.
        allow_clip_level: Whether splits may cut sessions.
    """
    columns = ClipColumns.of(clips)
    leak = _two_identities(columns) or _spelled_twice(columns)
    return leak if leak or allow_clip_level else _mingled_sessions(columns) or _cut_session(columns)


def part_of(session: str, number: int, parts: int) -> str:
    """What a table calls a part of a session that it cuts by time; splits of its parts are splits of its clips."""
    return f"{session} part {number} of {parts}"


def _disagreement(group: NDArray[np.integer], value: NDArray[np.int32]) -> tuple[int, int] | None:
    """The first clip with another value than the first clip of its group has, and that clip; codes of shape (N,)."""
    _, first, of = np.unique(group, return_index=True, return_inverse=True)
    earlier = first[of]
    differs = np.flatnonzero(value != value[earlier])
    return (int(differs[0]), int(earlier[differs[0]])) if len(differs) else None


def _two_identities(clips: ClipColumns) -> Leak | None:
    """A recording of two contents, or a content of two names."""
    recording, content = clips.recording, clips.content
    if places := _disagreement(recording.codes, content.codes):
        at, earlier = places
        found = f"recording {recording[at]!r} has the contents {content[earlier]} and {content[at]}"
        return Leak(at, earlier, "recording", found)
    if places := _disagreement(content.codes, recording.codes):
        at, earlier = places
        found = f"recordings {recording[earlier]!r} and {recording[at]!r} have the same content"
        return Leak(at, earlier, "recording", found)
    return None


def _spelled_twice(clips: ClipColumns) -> Leak | None:
    """A session in two spellings, which everything behind the table would take for two sessions."""
    session = clips.session
    spelled = Coded.of(caseless(plain_name(name)) for name in session.values)
    if places := _disagreement(spelled.codes[session.codes], session.codes):
        at, earlier = places
        return Leak(at, earlier, "session", f"session {session[at]!r} is also spelled {session[earlier]!r}")
    return None


def _mingled_sessions(clips: ClipColumns) -> Leak | None:
    """A session that goes on in its recording after another one began: a split by clips under another name."""
    recording, session = clips.recording.codes, clips.session.codes
    order = np.lexsort((clips.span_us[:, 0], recording))  # stable: of clips that start together, the table's order
    own = recording[order].astype(np.int64) << 32 | session[order]
    begins = np.flatnonzero(np.diff(own, prepend=-1))  # of each stretch of one session in one recording
    again = np.setdiff1d(np.arange(len(begins)), np.unique(own[begins], return_index=True)[1])
    if not len(again):
        return None
    before, at = order[begins[again[0]] - 1 : begins[again[0]] + 1].tolist()
    found = (
        f"the sessions {clips.session[before]!r} and {clips.session[at]!r} alternate in recording "
        f"{clips.recording[at]!r}, where each must be one stretch"
    )
    return Leak(at, before, "session", found, clip_level=True)


def _cut_session(clips: ClipColumns) -> Leak | None:
    """A session, of which parts may be cut by time, in two splits."""
    whole = Coded.of(_PART.sub("", name) for name in clips.session.values)
    whole = Coded(whole.codes[clips.session.codes], whole.values)
    taking_part = np.flatnonzero(np.array([split != "" for split in clips.split.values], bool)[clips.split.codes])
    if places := _disagreement(whole.codes[taking_part], clips.split.codes[taking_part]):
        at, earlier = taking_part[list(places)].tolist()
        found = f"session {whole[at]!r} lies in {clips.split[earlier]} and in {clips.split[at]}"
        return Leak(at, earlier, "split", found, clip_level=True)
    return None


Spans = Mapping[str, Sequence[tuple[int, int]]]
"""Stretches of recordings: digits of their contents -> disjoint [start_us, end_us)."""


def spans_of(clip_ids: Iterable[str], *, joined_to: Spans | None = None) -> dict[str, list[tuple[int, int]]]:
    """The stretches that clips cover, by content, joined to others; no name of a recording is in it."""
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for content, spans in (joined_to or {}).items():
        found[content].extend(spans)
    for content, start, end in itertools.chain.from_iterable(map(_windows, clip_ids)):
        found[content].append((start, end))
    return {content: union_of(found[content]) for content in sorted(found)}


def sessions_in(clip_ids: Iterable[str], sessions: Iterable[str], spans: Spans) -> list[str]:
    """Sessions of which a clip overlaps one of the stretches, in their order.

    Args:
        clip_ids: N ids, of clips or of samples of several.
        sessions: The session of each.
        spans: The stretches.
    """
    found: dict[str, None] = {}
    for clip_id, session in zip(clip_ids, sessions, strict=True):
        for content, start, end in _windows(clip_id):
            if any(start_us < end and start < end_us for start_us, end_us in spans.get(content, ())):
                found[session] = None
    return list(found)


def split_level(clips: Sequence[Clip]) -> Literal["session", "clip"]:
    """What the splits go by: `clip` where one cuts a session, which only a forced table does."""
    columns = ClipColumns.of(clips)
    return "clip" if _mingled_sessions(columns) or _cut_session(columns) else "session"


def touching(clip_ids: Sequence[str], others: Iterable[str]) -> NDArray[np.bool_]:
    """Which windows overlap or touch one of the others in the same content.

    Args:
        clip_ids: N ids, of clips or of samples of several, which touch where one of their clips does.
        others: Such ids.

    Returns:
        Shape (N,). A window that ends where another begins touches it: they share a border frame.
    """
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for content, start_us, end_us in itertools.chain.from_iterable(map(_windows, others)):
        spans[content].append((start_us, end_us))
    unions = {content: np.array(union_of(windows), np.int64) for content, windows in spans.items()}  # (M, 2) each
    touches = np.zeros(len(clip_ids), bool)
    for index, windows_here in enumerate(map(_windows, clip_ids)):
        for content, start_us, end_us in windows_here:
            if content in unions:
                union = unions[content]
                first = int(np.searchsorted(union[:, 1], start_us))  # the first span that ends at our start or later
                touches[index] |= first < len(union) and union[first, 0] <= end_us
    return touches


def purged_clips(clips: Sequence[Clip]) -> dict[str, frozenset[str]]:
    """Labelled clips to be left out, because their window overlaps or touches one that scores them.

    Args:
        clips: The clips of a table.

    Returns:
        "train" and "validation" -> clip ids: training clips that touch validation or test, and validation clips that
        touch test.
    """
    of_split: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        if clip.labelled:
            of_split[clip.split].append(clip.clip_id)
    purged = {}
    for split, stronger in _GIVES_WAY_TO.items():
        here = of_split[split]
        touches = touching(here, [clip_id for name in stronger for clip_id in of_split[name]])
        purged[split] = frozenset(clip_id for clip_id, is_touching in zip(here, touches, strict=True) if is_touching)
    return purged


def leakage_record(clips: Sequence[Clip]) -> dict[str, Any]:
    """What a result says of its splits: goes into `best.json` and `*_metrics.json` as it is.

    Returns:
        `split_level`, the number of recordings that lie in several splits, that of purged clips of each split,
        and, for a forced split, `split_warning`.
    """
    level = split_level(clips)
    places = {(clip.recording, clip.split) for clip in clips if clip.split}
    record: dict[str, Any] = {
        "split_level": level,
        "recordings_in_several_splits": len(_doubled(places)),
        "purged_clips": {split: len(gone) for split, gone in purged_clips(clips).items()},
    }
    return record | ({"split_warning": FORCED} if level == "clip" else {})


def shared_recordings(clips: Sequence[Clip]) -> list[str]:
    """Recordings that hold more than one session."""
    return _doubled({(clip.recording, clip.session) for clip in clips})


def _doubled(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return sorted(name for name, count in Counter(first for first, _ in pairs).items() if count > 1)


def _windows(clip_id: str) -> list[tuple[str, int, int]]:
    """Content and times of a clip, or of each clip of a sample."""
    parts = (part.split("-") for part in clip_id.split(BETWEEN_PARTS))
    return [(content, int(start_us), int(end_us)) for content, start_us, end_us in parts]
