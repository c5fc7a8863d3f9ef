"""What a person should see of a table's sessions: what they are made of, what may belong together, how few they are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from featurecache.clips.clip import ClipTable
from featurecache.clips.leakage import split_level
from featurecache.clips.relatives import clock_spans, named_alike, recorded_together
from featurecache.project.toml_text import toml_value
from featurecache.spelling import counted, listed
from featurecache.video.recordings import Recording

FEW_SESSIONS = 5
"""With fewer test sessions than these a score has no interval, and one session can decide it."""

_SHOWN = 5
_PILOTS = {
    1: "1 annotated session: it trains, and none is left to choose settings by, so train and tune stop;",
    2: "2 annotated sessions: one trains, one validates, none tests; train, tune and predict work, evaluate does not;",
}
_PILOT_ADVICE = (
    "extract and zeroshot need no more. Annotate others: 3 in all for a test split, 5 for a score with an interval "
    '(independent recordings are sessions of their own by session_from = "file"). Or, to label the rest of recordings '
    "whose annotated stretches are marked (annotated_span), set allow_clip_level = true under [splits]: it cuts them "
    "by time into parts, and every result says so."
)


def recordings_of_sessions(sessions: Mapping[str, str]) -> dict[str, list[str]]:
    """Session -> its recordings, both in order of name."""
    found: dict[str, list[str]] = defaultdict(list)
    for recording, session in sorted(sessions.items()):
        found[session].append(recording)
    return dict(sorted(found.items()))


def sessions_in_words(sessions: Mapping[str, str]) -> str:
    """A sentence: which recordings form one session."""
    several = {session: own for session, own in recordings_of_sessions(sessions).items() if len(own) > 1}
    if not several:
        return "each recording is a session of its own (session_from, same_session under [data])."
    named = "; ".join(f"{session}: {listed(own)}" for session, own in list(several.items())[:_SHOWN])
    more = "; ..." if len(several) > _SHOWN else ""
    of_all = f"{len(several)} of {counted(len(set(sessions.values())), 'session')}"
    return f"{of_all} {'has' if len(several) == 1 else 'have'} several recordings ({named}{more})."


def few_in_words(table: ClipTable) -> list[str]:
    """What to do where the test split has few annotated sessions; nothing where it has enough, or none."""
    if split_level(table.clips) == "clip":
        return [
            "splits cut sessions, as allow_clip_level under [splits] allows: scores tell how well the rest of the same "
            "recordings would be labelled, and nothing of other sessions. Annotate those, too."
        ]
    if (annotated := annotated_sessions(table)) in _PILOTS:
        return [f"{_PILOTS[annotated]} {_PILOT_ADVICE}"]
    tested = [clip.session for clip in table.clips if clip.split == "test" and clip.labelled]
    found = len(set(tested))
    if not 0 < found < FEW_SESSIONS:
        return []
    return [
        f"few sessions: test has {found} with {counted(len(tested), 'clip')}, and below {FEW_SESSIONS} a score has "
        "no interval; "
        f"{instead_of_interval(annotated_sessions(table))}."
    ]


def annotated_sessions(table: ClipTable) -> int:
    """How many sessions of a table have a labelled clip in a split, and so take part in leave-one-session-out."""
    return len({clip.session for clip in table.clips if clip.split and clip.labelled})


def instead_of_interval(annotated: int) -> str:
    """What to do where the sessions that were scored are too few for an interval, by the number of annotated ones."""
    if annotated >= FEW_SESSIONS:
        return (
            "score every session by a head that was fitted without it: featurecache evaluate --leave-one-session-out, "
            "after featurecache tune"
        )
    missing = FEW_SESSIONS - annotated
    return f"annotate at least {counted(missing, 'more session')}: until then each session's own score is what there is"


def across_splits(
    table: ClipTable, recordings: Sequence[Recording], copies: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Sentences on recordings of different splits that may be of one session, by their pictures, names or clock times.

    Args:
        table: The table.
        recordings: The usable recordings.
        copies: Pairs of recordings, by content, that show the same pictures.
    """
    split_of = {clip.recording: clip.split for clip in table.clips if clip.split}
    session_of = {clip.recording: clip.session for clip in table.clips}
    signs = (
        ("show the same pictures, as copies do,", _joined(copies, {one.sha256[:16]: one.name for one in recordings})),
        ("are named alike", named_alike(list(split_of))),
        ("were recorded at the same time by their clocks", recorded_together(clock_spans(recordings))),
    )
    lines: list[str] = []
    for sign, groups in signs:
        own = []
        for group in groups:
            placed = [name for name in group if name in split_of]
            if len({split_of[name] for name in placed}) > 1 and len({session_of[name] for name in placed}) > 1:
                own.append(apart_in_words(placed, split_of, sign))
        lines += own[:_SHOWN]
        lines += [f"{len(own) - _SHOWN} more groups of recordings {sign} and lie in different splits."] * (
            len(own) > _SHOWN
        )
    return lines


def _joined(pairs: Sequence[tuple[str, str]], names: Mapping[str, str]) -> list[list[str]]:
    """Groups of names that pairs of contents connect."""
    groups: dict[str, list[str]] = {}
    for one, other in pairs:
        if one in names and other in names:
            joined = list(dict.fromkeys([*groups.get(one, [one]), *groups.get(other, [other])]))
            groups.update(dict.fromkeys(joined, joined))
    return [sorted(names[content] for content in group) for group in {id(own): own for own in groups.values()}.values()]


def apart_in_words(names: Sequence[str], split_of: Mapping[str, str], sign: str) -> str:
    """A sentence on recordings that may belong together and lie in several splits, with the line that joins them."""
    return (
        f"{listed([f'{name} ({split_of[name]})' for name in names])} {sign} and lie in different splits. "
        f"If they are of one session or patient, set same_session = [{toml_value(names)}] under [data]."
    )
