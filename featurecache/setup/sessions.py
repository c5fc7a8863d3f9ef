"""The sessions that `init` proposes for recordings: from a table's column, folders, names, and clock times."""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from featurecache.clips.clip import SessionFrom, session_of
from featurecache.clips.relatives import (
    BY_CHAPTER,
    BY_PREFIX,
    BY_VIEW,
    BY_VIEW_BEFORE,
    grouped,
    is_camera,
    recorded_together,
)
from featurecache.spelling import caseless, counted


@dataclass(frozen=True)
class SessionProposal:
    """What the settings shall say of sessions.

    Attributes:
        session_from: What names a session.
        pattern: The regular expression of "pattern".
        same_session: Groups of recordings that are one session by their clock times.
        reason: Why, in words.
    """

    session_from: SessionFrom
    pattern: str | None
    same_session: tuple[tuple[str, ...], ...]
    reason: str


def propose_sessions(
    names: Sequence[str], column: Mapping[str, str], spans: Mapping[str, tuple[int, int]]
) -> SessionProposal:
    """Proposes sessions.

    Args:
        names: The recordings.
        column: Recording -> session, where a table says so.
        spans: Recording -> start and end on the clock, where the file tells.
    """
    how, pattern, reason = _by_names(names, column)
    if column and how != "column":
        lacking = [name for name in names if name not in column]
        reason += (
            f"; the table's session column is not used, since it names no session of {lacking[0]}"
            f"{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}: fill it in, and set "
            'session_from = "column"'
        )
    sessions = {
        name: caseless(session_of(name, how, pattern=pattern, column=column)) for name in names if name in spans
    }
    together = [group for group in recorded_together(spans) if len({sessions[name] for name in group}) > 1]
    if together:
        reason += (
            f"; {counted(len(together), 'group', ('was', 'were'))} recorded at the same time by their clocks, and "
            f"each is proposed as one session in same_session (e.g. {', '.join(together[0])}); check that the clocks "
            "were set"
        )
    return SessionProposal(how, pattern, tuple(map(tuple, together)), reason)


def _by_names(names: Sequence[str], column: Mapping[str, str]) -> tuple[SessionFrom, str | None, str]:
    if set(names) <= column.keys():
        return "column", None, f"{len({column[name] for name in names})} from the CSV's session column"
    shared = os.path.commonpath([PurePosixPath(name).parent.as_posix() for name in names])
    prefix = f"{shared}/" if shared else ""
    below = [name.removeprefix(prefix) for name in names]
    folders = {name.partition("/")[0] for name in below if "/" in name}
    views = grouped(names, BY_VIEW)
    if all("/" in name for name in below) and len(folders) >= 2:
        if not all(map(is_camera, folders)):
            pattern = f"^{re.escape(prefix)}([^/]+)/" if prefix else None
            return "pattern" if prefix else "folder", pattern, f"{len(folders)}, one per folder"
        if len(views) < len(names):
            return "pattern", BY_VIEW, f"{len(views)}, by file name, since folders are called as cameras are"
    if len(views) < len(names) and sum(map(len, views.values())) == len(names):
        example = next(own for own in views.values() if len(own) > 1)
        of_one = ", ".join(example[:2])
        reason = f"{len(views)}, by names without camera or part ({of_one} are one); check that it is right"
        return "pattern", BY_VIEW, reason
    for pattern in (BY_CHAPTER, BY_VIEW_BEFORE, BY_PREFIX):
        groups = grouped(names, pattern)
        numbered = all(re.search("[0-9]", key) for key in groups)
        if sum(map(len, groups.values())) == len(names) > len(groups) >= (2 if numbered else 3):
            first = sorted(groups)[0]
            return "pattern", pattern, f"{len(groups)}, by part of the names (e.g. {first}); check that it is right"
    return "file", None, "one per recording; if one patient has several, group them (folder, pattern or column)"
