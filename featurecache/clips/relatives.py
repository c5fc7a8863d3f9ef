"""Recordings that may be of one session: by their names, and by the clock times at which they were recorded.

Views and parts of one session are named alike (`P01_cam1.mp4`, `P01_cam2.mp4`), lie in folders of cameras, or were
recorded at the same time. `init` proposes sessions by these signs, and `clips` warns where a split goes through one.
What this is not: proof. A person decides, by `session_from` or `same_session`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from featurecache.video.recordings import Recording

_VIEW = (
    r"(?:cam(?:era)?|view|angle|part|pt|seg(?:ment)?|take|chunk|left|right|front|back|rear|side|top|ceiling|overhead"
    r"|wide|close|gopro|mic|ch)"
)
BY_VIEW = (
    rf"^(?:.*/)?([^/]*?[^/ _.\-])(?:(?:[ _.\-]+|(?<=[0-9]))(?i:{_VIEW})[ _.\-]*[0-9]{{0,2}}[a-dA-D]?)*"
    r"(?:(?<=[0-9])[a-dA-D])?\.[^./]+$"
)
"""Finds in any path the file's name without suffix and without what names a camera or a part at its end."""

BY_VIEW_BEFORE = rf"^(?:.*/)?(?i:{_VIEW})[0-9]{{0,2}}[a-dA-D]?[ _.\-]+([^/]*)\.[^./]+$"
"""Finds the file's name without suffix and without the camera at its beginning."""

BY_PREFIX = r"^(sub-[0-9A-Za-z]+|[^_\- (/]+)(?:[_\- (]|\.[^./]+$)"
"""Finds the first part of a name, before the first underscore, hyphen, space or bracket; BIDS's subject, `sub-01`."""

BY_CHAPTER = r"^(?:.*/)?(?:G[HXLS][0-9]{2}|GOPR|GP[0-9]{2})([0-9]{4})\."
"""Finds the number that the chapters of one GoPro recording share."""

_CAMERA_FOLDER = re.compile(rf"(?i:{_VIEW})[ _.\-]*[0-9a-z]{{0,2}}")
_LEAST_OVERLAP_US = 1_000_000
_GAP_US = 2_000_000  # a camera that splits its files begins the next one within a tick of its clock
_MOST_AT_ONCE = 8


def is_camera(folder: str) -> bool:
    """Whether a folder is called as a camera is, not as a session."""
    return _CAMERA_FOLDER.fullmatch(folder) is not None


def grouped(names: Sequence[str], pattern: str) -> dict[str, list[str]]:
    """Names by what a pattern finds in them, in any case; a name in which it finds nothing is left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if match := re.search(pattern, name):
            groups[match[1].casefold()].append(name)
    return dict(groups)


def named_alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of recordings whose names say that they are views or parts of one session.

    A first part that has no number ("session_01", "session_02") or that all share says nothing; nor does a name that
    returns in folders which are sessions themselves.
    """
    groups: list[list[str]] = []
    for pattern in (BY_VIEW, BY_VIEW_BEFORE, BY_PREFIX, BY_CHAPTER):
        found = grouped([name if pattern == BY_VIEW else PurePosixPath(name).name for name in names], pattern)
        if len(found) < 2:
            continue
        for key, own in found.items():
            full = own if pattern == BY_VIEW else [name for name in names if PurePosixPath(name).name in own]
            if len(full) > 1 and (pattern == BY_CHAPTER or re.search("[0-9]", key)) and _side_by_side(full):
                groups.append(sorted(full))
    return [group for at, group in enumerate(groups) if group not in groups[:at]]


def _side_by_side(names: Sequence[str]) -> bool:
    """Whether names lie in one folder, or in folders of cameras."""
    folders = {PurePosixPath(name).parent.as_posix() for name in names}
    return len(folders) == 1 or all(is_camera(PurePosixPath(folder).name) for folder in folders)


def clock_spans(recordings: Sequence[Recording]) -> dict[str, tuple[int, int]]:
    """Recording -> start and end by the camera's clock, in microseconds since 1970, where its file tells."""
    return {
        one.name: (one.info.recorded_at_us, one.info.recorded_at_us + one.info.duration_us)
        for one in recordings
        if one.info.recorded_at_us is not None
    }


def recorded_together(spans: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Groups of recordings whose clock times overlap, or follow each other at once.

    Clocks that say that many were recorded at once were never set, or tell when files were copied: no group then.

    Args:
        spans: As `clock_spans`.
    """
    starts = Counter(start for start, _ in spans.values())
    groups: list[list[str]] = []
    end = None
    for name, (start_us, end_us) in sorted(spans.items(), key=lambda item: item[1]):
        if starts[start_us] > max(2, len(spans) // 2):
            continue
        if end is not None and (start_us < end - _LEAST_OVERLAP_US or 0 <= start_us - end <= _GAP_US):
            groups[-1].append(name)
        else:
            groups.append([name])
        end = end_us if end is None else max(end, end_us)
    return [sorted(group) for group in groups if 2 <= len(group) <= _MOST_AT_ONCE]
