"""The one thing annotations come down to: a labelled stretch of a recording.

Half-open, integer microseconds, on the recording's own clock (an annotation file's time origin has
been applied). It is not an annotation: tiers, identifiers and vocabularies stay in the file.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """`[start_us, end_us)` of media time during which `label` holds."""

    start_us: int
    end_us: int
    label: str
