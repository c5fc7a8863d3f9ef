"""From what people call a recording to the digest of its content, which the cache knows it by."""

import contextlib
import difflib
import json
from pathlib import Path

from featurecache.clips.csv_file import read_table
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import find_recordings


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
    table = read_table(project.clips, allow_clip_level=True).clips if project.clips.exists() else ()
    named = {clip.recording: clip.content for clip in table}
    named |= predicted_contents(project)
    if recording in named:
        return named[recording]
    for path in (project.videos / recording, Path(recording)):
        if path.is_file():
            return DigestMemo(project.digest_memo).sha256(path)
    near = difflib.get_close_matches(recording, named, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Take its name from clips.csv or predictions, or name the file."
    raise ClipTableError(
        f"a recording must be in clips.csv or predicted, be a file, or be named by its sha256, but {recording!r} is "
        f"not. {hint}"
    )


def predicted_contents(project: Project) -> dict[str, str]:
    """Recordings that were predicted, in the project or from elsewhere -> first 16 digits of the sha256."""
    found = {}
    for path in sorted(project.predictions.rglob("*.predicted.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not ours, or damaged: it says nothing
            one = json.loads(path.read_bytes())["recording"]
            found[str(one["name"])] = str(one["content"])
    return found
