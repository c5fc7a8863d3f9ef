"""The session of each recording: by the settings' rule, with spellings and recordings joined that are one session."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from featurecache.clips.clip import session_of
from featurecache.errors import SettingsError
from featurecache.project.settings import DataSettings
from featurecache.spelling import caseless, did_you_mean, plain_name

T = TypeVar("T")


def name_sessions(
    names: Sequence[str], data: DataSettings, column: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Names each recording's session.

    Args:
        names: The recordings.
        data: The settings' rule.
        column: Recording -> session, where a table of annotations names it.

    Returns:
        Recording -> session, and a sentence for each two spellings that are one session ("S01" and "s01").

    Raises:
        ClipTableError: If a recording has no session by the rule.
        SettingsError: If the rule needs a column that there is not, or `same_session` names no recording.
    """
    if data.session_from == "column" and not column:
        raise SettingsError(
            "data.session_from = 'column' needs a CSV of annotations with a session column, but there is none. "
            "Add the column, or choose file, folder or pattern."
        )
    sessions = {
        name: plain_name(session_of(name, data.session_from, pattern=data.session_pattern, column=column))
        for name in names
    }
    for group in data.same_session:
        _check_known(group, names)
        joined = {caseless(sessions[name]) for name in group}
        first = sessions[group[0]]
        sessions.update({name: first for name, own in sessions.items() if caseless(own) in joined})
    spellings: dict[str, set[str]] = {}
    for session in sessions.values():
        spellings.setdefault(caseless(session), set()).add(session)
    notes = [
        f"the sessions {' and '.join(map(repr, sorted(own)))} are one, called {min(own)!r}."
        for own in spellings.values()
        if len(own) > 1
    ]
    return {name: min(spellings[caseless(session)]) for name, session in sessions.items()}, notes


def spelled_as(given: Mapping[str, T], sessions: Iterable[str]) -> dict[str, T]:
    """What is given by session, in the spelling that the sessions have; others stay as they are."""
    known = {caseless(session): session for session in sessions}
    return {known.get(caseless(plain_name(session)), session): value for session, value in given.items()}


def _check_known(group: Sequence[str], names: Collection[str]) -> None:
    for name in group:
        if name not in names:
            hint = did_you_mean(name, names, "Take it out, or put the recording back.")
            raise SettingsError(f"data.same_session must name recordings, but {name!r} is none. {hint}")
