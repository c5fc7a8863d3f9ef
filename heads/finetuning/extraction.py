"""A split's features as a bundle reads them: of a fine-tuned backbone, or answers of one that is asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurecache.backbones.adapter_files import Adapter
from featurecache.clips.csv_file import read_table
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.project.settings import Project

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked


def plan_split(
    project: Project, select: Sequence[str], split: str, *, adapter: Adapter | None = None, asked: "Asked | None" = None
) -> Plan:
    """Which features of a split are missing from the cache.

    Args:
        project: The project; where a bundle has a model of its own, with that (`Bundle.project_of`).
        select: Names of the features (`tap/pooling`).
        split: All clips of it, labelled or not: timelines need them.
        adapter: What the backbone is run with; None for none.
        asked: What it is asked; None for features of its states.

    Raises:
        ClipTableError: If there is no sound clip table.
    """
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    wanted = {clip.clip_id for clip in table.clips if clip.split == split}
    return plan_extraction(project, select=select, clip_ids=wanted, adapter=adapter, asked=asked)
