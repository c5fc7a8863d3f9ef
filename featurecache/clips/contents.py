"""From what people call a recording to the digest of its content, which the cache knows it by."""

import difflib

from featurecache.clips.csv_file import read_table
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project
from featurecache.video.recordings import find_recordings


def contents(project: Project) -> dict[str, str]:
    """First 16 digits of each usable recording's sha256 -> all 64."""
    recordings, _ = find_recordings(project.videos, project.digest_memo)
    return {recording.sha256[:16]: recording.sha256 for recording in recordings}


def content_of(project: Project, recording: str) -> str:
    """Digits of a recording's sha256, from its name in the clip table or from digits.

    Raises:
        ClipTableError: If it is neither.
    """
    if len(recording) in range(16, 65) and not set(recording) - set("0123456789abcdef"):
        return recording
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    found = {clip.recording: clip.content for clip in table.clips}
    if recording not in found:
        near = difflib.get_close_matches(recording, found, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Take its name from clips.csv."
        raise ClipTableError(
            f"a recording must be in clips.csv or be named by its sha256, but {recording!r} is not. {hint}"
        )
    return found[recording]
