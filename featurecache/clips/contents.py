"""From what people call a recording to the digest of its content, which the cache knows it by."""

import contextlib
import json
import re
from collections import Counter
from pathlib import Path

from featurecache.clips.csv_file import read_table
from featurecache.csv_fields import unguard_cell
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project
from featurecache.spelling import did_you_mean
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import find_recordings

_ROW = re.compile(rb'^"?([0-9a-f]{16})-[0-9]+-[0-9]+"?[,;\t](?:"((?:[^"]|"")*)"|([^,;\t\r\n]*))', re.MULTILINE)


def contents(project: Project) -> dict[str, str]:
    """First 16 digits of each usable recording's sha256 -> all 64."""
    recordings, _ = find_recordings(project.videos, project.digest_memo)
    return {recording.sha256[:16]: recording.sha256 for recording in recordings}


def content_of(project: Project, recording: str) -> str:
    """Digits of a recording's sha256, from its name in the clip table or its predictions, from a file, or from digits.

    Raises:
        ClipTableError: If it is none of them.
        OSError: If it is a file that cannot be read.
    """
    if len(recording) in range(16, 65) and not set(recording) - set("0123456789abcdef"):
        return recording
    rows, is_sound = table_contents(project)
    named: dict[str, str] = {}
    for name, content in sorted(rows, key=rows.__getitem__):  # of a damaged table's contents the most frequent
        named[name] = content
    named |= predicted_contents(project)
    paths = [path for path in (project.videos / recording, Path(recording)) if path.is_file()]
    if recording in named and (is_sound or not paths):
        return named[recording]
    if paths:
        return DigestMemo(project.digest_memo).sha256(paths[0])
    hint = did_you_mean(recording, named, "Take its name from clips.csv or predictions, or name the file.")
    if not is_sound:
        hint = f"{project.clips.name} is damaged, and other names are lost: pass the file, or 16 digits of its sha256."
    raise ClipTableError(
        f"a recording must be in clips.csv or predicted, be a file, or be named by its sha256, but {recording!r} is "
        f"not. {hint}"
    )


def table_contents(project: Project) -> tuple[Counter[tuple[str, str]], bool]:
    """What the clip table tells of which recording is which, even where it is damaged.

    Returns:
        How many rows say so of each (recording, first 16 digits of its sha256), and whether the table is sound. Of a
        damaged one those rows that can be told.
    """
    path = project.clips
    if not path.exists():
        return Counter(), True
    with contextlib.suppress(ClipTableError):
        return Counter((clip.recording, clip.content) for clip in read_table(path, allow_clip_level=True).clips), True
    try:
        data = path.read_bytes().replace(b"\0", b"")  # as UTF-16 has them between the letters
    except OSError:
        return Counter(), False
    rows = Counter(
        (unguard_cell((quoted.replace(b'""', b'"') or plain).decode(errors="surrogateescape")), content.decode())
        for content, quoted, plain in _ROW.findall(data)
    )
    return rows, False


def predicted_contents(project: Project) -> dict[str, str]:
    """Recordings that were predicted, in the project or from elsewhere -> first 16 digits of the sha256."""
    found = {}
    for path in sorted(project.predictions.rglob("*.predicted.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not ours, or damaged: it says nothing
            one = json.loads(path.read_bytes())["recording"]
            found[str(one["name"])] = str(one["content"])
    return found
