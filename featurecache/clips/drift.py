"""How settings and folders differ from what a clip table was made from: what every command asks before it uses one.

Settings that decide what the command is about to use are refused: it would do something else than asked. Files that
came, went or changed are told, and so are settings that only the next table shows: annotators save all day, and an
edited table may be meant to stay. Files are compared by size and time of last change; none is opened.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from featurecache.clips.record import files_of, read_record, settings_of
from featurecache.errors import OutdatedTableError, OutdatedTableWarning
from featurecache.project.settings import SETTINGS_NAME, Project

Use = Literal["windows", "targets", "nothing"]
"""What of the table a command relies on: when clips are, also what is on in them, or it only shows them."""

_WINDOWS = ("clips.length_s", "clips.stride_s")
_ASSIGNMENT = ("splits.seed", "splits.train", "splits.validation", "splits.test")
_SHOWN = 3


def check_table(project: Project, *, use: Use) -> None:
    """Compares settings and folders with what the clip table was made from; silent where that is not known.

    Warns with `OutdatedTableWarning`, one sentence, of what the command can do without.

    Args:
        project: The project; without a table there is nothing to compare.
        use: What the command relies on.

    Raises:
        OutdatedTableError: If a setting that the command relies on has changed.
    """
    record = read_record(project.table_record)
    if not record.settings or not project.clips.exists():
        return
    now = settings_of(project)
    changed = [name for name, value in record.settings.items() if name in now and now[name] != value]
    relied_on = {"windows": _WINDOWS, "targets": tuple(set(now) - set(_ASSIGNMENT)), "nothing": ()}[use]
    refused = [name for name in changed if name in relied_on]
    told = _in_words([name for name in refused or changed if name not in _ASSIGNMENT], record.settings, now)
    if refused:
        raise OutdatedTableError(
            f"{project.clips.name} must be made with the settings of today, but {'; '.join(told)}. "
            f"Make it again: featurecache clips; or put that back in {SETTINGS_NAME}."
        )
    files = files_of(project)
    told += [text for kind, own in files.items() if (text := _file_changes(kind, record.files.get(kind, {}), own))]
    if told:
        warnings.warn(
            f"{project.clips.name} is used as it was made, but since then {'; '.join(told)}. "
            "To take that in: featurecache clips.",
            OutdatedTableWarning,
            stacklevel=2,
        )
    if assignment := [name for name in changed if name in _ASSIGNMENT]:
        warnings.warn(
            f"sessions keep their splits, but {'; '.join(_in_words(assignment, record.settings, now))}. "
            "To assign all of them anew: featurecache clips --redeal.",
            OutdatedTableWarning,
            stacklevel=2,
        )


def _in_words(names: Sequence[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for name in names:
        short = all(len(str(value)) <= 60 for value in (then[name], now[name]))
        found.append(f"{name} was {then[name]!r} and is {now[name]!r}" if short else f"{name} has changed")
    return found


def _file_changes(kind: str, then: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    """What became of files, in words; a new one with size and time of one that is gone was renamed."""
    gone = {name: tuple(then[name]) for name in then.keys() - now.keys()}
    new = {name: tuple(now[name]) for name in sorted(now.keys() - then.keys())}
    changed = sorted(name for name in then.keys() & now.keys() if tuple(then[name]) != tuple(now[name]))
    renamed, came = [], []
    for name, state in new.items():
        former = next((old for old in sorted(gone) if gone[old] == state), None)
        if former is None:
            came.append(name)
        else:
            renamed.append(f"{former} is {name}")
            del gone[former]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("new", came), ("gone", sorted(gone)), ("changed", changed), ("renamed", renamed))
        if names
    ]
    return f"{kind}: {', '.join(parts)}" if parts else ""
