"""The section [samples]: how clips are put together where a target belongs to several of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class SampleSettings:
    """Samples of several clips: what a target belongs to where that is not one clip.

    Attributes:
        rule: "none": each clip is a sample. `clips` writes samples.csv by "recording": all labelled clips of one, on
            where any is; "moment": the clips of a session's recordings (cameras) that start together; "event": the
            clips right before and after each stretch in which the label `event` is on. "file": yours is read.
        most_clips: Of "recording": a sample has at most so many clips that follow each other; 0 for all.
        event: Of "event": the label. E.g. `event = "suction"`.
        slices: Columns of samples.csv that are no labels; `evaluate` scores the samples of each value on their own.
    """

    rule: Literal["none", "recording", "moment", "event", "file"] = "none"
    most_clips: Annotated[int, Field(ge=0, le=10_000)] = 0
    event: str | None = None
    slices: tuple[str, ...] = ()
