"""The section `[timeline]` of the settings: how far scored clips lie apart, and which labels exclude each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from featurecache.project.settings import Project, Seconds, parse_section
from heads.timelines.timeline import exclusive_groups


@dataclass(frozen=True)
class TimelineRules:
    """How `featurecache predict` makes intervals of clip scores.

    Attributes:
        stride_s: Seconds from one scored clip's start to the next one's; left out: half a clip. E.g. `stride_s = 1.5`.
        exclusive: Groups of labels of which one at most is on at a time; clips follow where that costs the out-of-fold
            score nothing. E.g. `exclusive = [["ventilation", "suction"]]`.
    """

    stride_s: Seconds | None = None
    exclusive: tuple[tuple[str, ...], ...] = ()


def timeline_rules(project: Project) -> TimelineRules:
    """The section [timeline]."""
    return parse_section(project.settings.timeline, TimelineRules, "timeline")


def checked_rules(project: Project, labels: Sequence[str]) -> TimelineRules:
    """The section [timeline], refused where it names labels that there are not.

    Raises:
        TimelineError: Naming the label.
    """
    rules = timeline_rules(project)
    exclusive_groups(rules.exclusive, labels)
    return rules
