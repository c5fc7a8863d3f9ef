"""What the page shows of a recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heads.review.order import disagreement, doubt


@dataclass(frozen=True, eq=False)
class Reviewable:
    """A recording with its timeline.

    Attributes:
        content: First 16 hex digits of its sha256, by which pages name it.
        name: Relative to the folder of videos; the file's name elsewhere.
        path: The video.
        session: Group of recordings that splits never cut; "" where unknown.
        split: "train", "validation", "test" or "" where unknown.
        fps: Frames a second; None where unknown.
        timeline: The document of `heads.timelines.files`.
        suggested: Stretches that are to be annotated next: rank, start and end in microseconds.
    """

    content: str
    name: str
    path: Path
    session: str
    split: str
    fps: float | None
    timeline: Mapping[str, Any]
    suggested: Sequence[tuple[int, int, int]] = ()

    @cached_property
    def disagreement(self) -> float | None:
        """As `heads.review.order` tells."""
        return disagreement(self.timeline)

    @cached_property
    def doubt(self) -> float:
        """As `heads.review.order` tells."""
        return doubt(self.timeline)
