"""Why a clip's feature is found or not: the answer to "I changed nothing, and yet it extracts again".

A feature is found by the inputs of its feature space on a recording's content and a span of time. So one of
three things differs, and this says which, with both values.
"""

from dataclasses import dataclass

from featurecache.clips.drift import check_table
from featurecache.extraction.failures import known_failures
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, differences
from featurecache.spelling import listed
from featurecache.store import FeatureCache
from featurecache.store.clip_columns import parse_clip_ids


@dataclass(frozen=True)
class Explanation:
    """Whether the project's settings find the clip, and the reasons, one sentence each.

    Attributes:
        clip_id: The clip.
        fingerprint: Fingerprint of the feature space that the clip is missing from, or of the first where none is.
        found: Whether every selected feature is there.
        reasons: Why, for the first selected feature that is missing.
    """

    clip_id: str
    fingerprint: str
    found: bool
    reasons: tuple[str, ...]


def explain(project: Project, clip_id: str) -> Explanation:
    """Says whether the cache has a clip's features for the project's settings, and if not, what differs.

    Warns with `OutdatedTableWarning` where settings or files are others than the clip table was made from.

    Raises:
        ClipTableError: If the id is malformed.
        ModelNotFoundError: If the settings' model is not on this machine.
    """
    parse_clip_ids([clip_id])
    check_table(project, use="nothing")
    _, spaces = project_spaces(project)
    wanted = next(iter(spaces.values()))

    def answer(*reasons: str, found: bool = False) -> Explanation:
        return Explanation(clip_id, wanted.fingerprint, found, reasons)

    cache = FeatureCache.open_if_made(project.cache)
    if cache is None:
        return answer("there is no cache yet. Make it: featurecache extract.")
    holders = cache.find(clip_id)
    held = {space.fingerprint for space in holders}
    missing = {name: space for name, space in spaces.items() if space.fingerprint not in held}
    if not missing:
        return answer("the cache has it.", found=True)
    name, wanted = next(iter(missing.items()))
    reasons = [f"{name} is missing."] if len(spaces) > 1 else []
    told = len(reasons)
    holders = tuple(space for space in holders if (space.tap, space.pooling) == (wanted.tap, wanted.pooling))
    why = known_failures(project).reason(clip_id, wanted.fingerprint)
    if why is not None:
        reasons.append(f"its extraction failed: {why}.")
    for space in holders:
        unlike = differences(wanted, FeatureSpace(space.inputs))
        both = "; ".join(f"{name}: settings {ours!r}, cache {theirs!r}" for name, (ours, theirs) in unlike.items())
        reasons.append(f"feature space {space.fingerprint[:16]} has it, but computed otherwise: {both}.")
    content = clip_id.partition("-")[0]
    for space in cache.spaces if not holders else ():
        same = [
            name for name in cache.clip_ids(space.tap, space.pooling, space.fingerprint) if name.startswith(content)
        ]
        if same:
            where = f"feature space {space.fingerprint[:16]}"
            reasons.append(f"{where} has this recording at other times: {listed(same)}.")
    if len(reasons) == told:
        reasons.append("no feature space has anything of this recording's content. Extract it: featurecache extract.")
    return answer(*reasons)
