"""The rule that makes a label of a tier and a value, or of a table's cells, by a project's settings.

Names are compared in one form (`plain_name`), so that what nobody can see tells no two labels apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from featurecache.spelling import plain_name

LabelsFrom = Literal["tiers", "values"]
ANY_OTHER = "*"
"""The value of a mapping that stands for every value it does not name."""
PREDICTED_TIER = re.compile(r"(?P<label>.+) \(predicted(?: (?P<number>[0-9]{1,6}))?\)", re.DOTALL)
"""What a tier of predictions is called: no annotation until a person renames it, or the settings name it."""
REQUESTED_TIER = re.compile(r"please annotate(?: [0-9]{1,6})?")
"""What a tier is called whose stretches are to be annotated; no annotation either."""


def is_written_here(tier: str) -> bool:
    """Whether a tier is called as those that this program adds to documents: predictions, and what to annotate."""
    return (PREDICTED_TIER.fullmatch(tier) or REQUESTED_TIER.fullmatch(tier)) is not None


@dataclass(frozen=True)
class LabelRule:
    """What is a label; the names are plain ones. The fields are the settings of `[data]`, `span` its annotated span."""

    labels_from: LabelsFrom = "tiers"
    tiers: tuple[str, ...] = ()
    mapping: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    span: str | None = None

    def name(self, text: str) -> str:
        """A tier's or label's name as it is meant."""
        plain = plain_name(text)
        return self.rename.get(plain, plain)

    def reads(self, tier: str) -> bool:
        """Whether a tier is read at all."""
        name = self.name(tier)
        if name in self.mapping or name == self.span:
            return True
        return name in self.tiers if self.tiers else not is_written_here(name)

    def label(self, tier: str, value: str) -> str:
        """The label of an annotation; "" where it has none: absence, another tier, or no value."""
        name = self.name(tier)
        if name == self.span:
            return name
        if name in self.mapping:
            own = self.mapping[name]
            return self.name(own.get(plain_name(value), own.get(ANY_OTHER, "")))
        if not self.reads(tier):
            return ""
        return name if self.labels_from == "tiers" else self.name(value)
