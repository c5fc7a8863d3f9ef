"""Checking a project's cache against its clip table: what `featurecache cache verify` calls."""

import contextlib
import re
from collections.abc import Sequence

from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.errors import CacheFormatError, CacheNotFoundError, ModelNotFoundError, UsageError
from featurecache.extraction.failures import known_failures
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from featurecache.store import FeatureCache, VerifyReport, verify
from featurecache.store.view import Space
from featurecache.store.withdrawn import read_withdrawn


def verify_project(project: Project, *, deep: bool = False, part: str = "1/1") -> VerifyReport:
    """Check a project's cache, and whether the features that its settings name hold every clip of its table.

    Clips that could not be extracted for a reason that is known, and those of withdrawn recordings, are not asked for.

    Args:
        project: The project; without a clip table, only the cache is checked.
        deep: As for `verify`.
        part: "I/N", the portion to read deeply.

    Raises:
        UsageError: If `part` is not of that form, or is given without `deep`.
        CacheNotFoundError, NewerFormatError, SettingsError, CacheReadError: As for `verify`.
        ClipTableError: If there is a clip table that is not sound.
    """
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
    if numbers is None:
        raise UsageError(f"--part must be I/N, such as 3/30, but is {part!r}.")
    portion = (int(numbers[1]), int(numbers[2]))
    if portion[1] != 1 and not deep:
        raise UsageError("--part must come with --deep, but came alone. Add --deep.")
    return verify(project.cache, deep=deep, part=portion, plan=_wanted(project))


def _wanted(project: Project) -> dict[str, Sequence[str]]:
    """Ids of the clips that should be there, by fingerprint, or by name where the cache has no such feature space."""
    if not project.clips.exists():
        return {}
    check_table(project, use="nothing")
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    withdrawn, failures = read_withdrawn(project.cache), known_failures(project)
    clips = [clip.clip_id for clip in table.clips if not withdrawn.covers(clip.content)]
    try:
        spaces = FeatureCache.open(project.cache).spaces
    except (CacheNotFoundError, CacheFormatError):
        return {}
    fingerprints = [one for name in project.settings.features.select for one in _fingerprints(project, spaces, name)]
    return {one: [clip for clip in clips if failures.reason(clip, one) is None] for one in fingerprints}


def _fingerprints(project: Project, spaces: Sequence[Space], name: str) -> list[str]:
    """The feature space that a name of the settings means: only where several have it must the model's files tell."""
    named = [space for space in spaces if f"{space.tap}/{space.pooling}" == name]
    if len(named) > 1:
        with contextlib.suppress(ModelNotFoundError):  # elsewhere than the model: the one with the most clips
            _, asked = project_spaces(project, select=[name])
            return [space.fingerprint for space in asked.values()]
    return [max(named, key=lambda space: space.rows).fingerprint] if named else [name]
