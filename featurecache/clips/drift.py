"""How settings and folders differ from what a clip table was made from: what every command asks before it uses one.

Settings that decide what the command is about to use are refused: it would do something else than asked. Files that
came, went or changed are told, and so are settings that only the next table shows: annotators save all day, and an
edited table may be meant to stay.

Files are compared by size and time of last change, so that none is opened where nothing happened. A copied project has
other times: there an annotation file counts as changed by its digest, and a video of the same size does not, for
extraction finds changed recordings by their content.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from featurecache.clips.csv_file import missing_table
from featurecache.clips.record import annotation_digest, files_of, read_record, settings_of
from featurecache.errors import OutdatedTableError, OutdatedTableWarning
from featurecache.project.settings import SETTINGS_NAME, Project
from featurecache.spelling import listed

_State = Sequence[int | str]

Use = Literal["windows", "targets", "nothing"]
"""What of the table a command relies on: when clips are, also what is on in them, or it only shows them."""

_WINDOWS = ("clips.length_s", "clips.stride_s")
_ASSIGNMENT = ("splits.seed", "splits.train", "splits.validation", "splits.test")


def check_table(project: Project, *, use: Use) -> None:
    """Compares settings and folders with what the clip table was made from; silent where that is not known.

    Warns with `OutdatedTableWarning`, one sentence, of what the command can do without.

    Args:
        project: The project.
        use: What the command relies on.

    Raises:
        ClipTableError: If there is no table and the command relies on its targets; the others can do without one.
        OutdatedTableError: If a setting that the command relies on has changed.
    """
    if not project.clips.exists():
        if use == "targets":
            raise missing_table(project.clips)
        return
    record = read_record(project.table_record)
    if not record.settings:
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
    with_reviews = "reviews" in record.files
    files = files_of(project, reviews=with_reviews)
    for kind, own in files.items():
        place = project.annotations if kind == "annotations" else None
        told += filter(None, [_file_changes(kind, record.files.get(kind, {}), own, place)])
    if told:
        warnings.warn(
            f"{project.clips.name} is used as it was made, but since then {'; '.join(told)}. "
            f"To take that in: featurecache clips{' --with-reviewed' * with_reviews}.",
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


def _file_changes(kind: str, then: Mapping[str, _State], now: Mapping[str, _State], place: Path | None) -> str:
    """What became of files, in words; a new one with size and time of one that is gone was renamed.

    `place` is where annotations are; None for videos.
    """
    gone = {name: tuple(then[name][:2]) for name in then.keys() - now.keys()}
    new = {name: tuple(now[name]) for name in sorted(now.keys() - then.keys())}
    changed = sorted(name for name in then.keys() & now.keys() if _is_changed(name, then[name], now[name], place))
    renamed, came = [], []
    for name, state in new.items():
        former = next((old for old in sorted(gone) if gone[old] == state), None)
        if former is None:
            came.append(name)
        else:
            renamed.append(f"{former} is {name}")
            del gone[former]
    parts = [
        f"{len(names)} {what} ({listed(names, 3)})"
        for what, names in (("new", came), ("gone", sorted(gone)), ("changed", changed), ("renamed", renamed))
        if names
    ]
    return f"{kind}: {', '.join(parts)}" if parts else ""


def _is_changed(name: str, then: _State, now: _State, place: Path | None) -> bool:
    if tuple(then[:2]) == tuple(now):
        return False
    if then[:1] != now[:1]:
        return True
    return place is not None and list(then[2:]) != [annotation_digest(place, name)]
