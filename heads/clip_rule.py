"""What a clip is: its length, the distance to the next, and how much of it a label must cover to be on.

A bundle keeps the rule it was fitted with: clips of another length are other features, and targets by another overlap
or of other samples are other questions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featurecache.clips.clip import ClipTable
from featurecache.errors import BundleError, OutdatedTableError
from featurecache.project.settings import SETTINGS_NAME, Project

Unit = Literal["clip", "sample"]
"""What targets belong to: a clip, or a sample of several."""


@dataclass(frozen=True)
class ClipRule:
    """The section [clips] of the settings in microseconds.

    Attributes:
        length_us: Length of a clip.
        stride_us: From one clip's start to the next one's.
        min_overlap_us: Time that a label must cover.
        samples: The rule by which several clips are one sample (`SampleSettings.rule`); "none" where each clip is one.
    """

    length_us: int
    stride_us: int
    min_overlap_us: int
    samples: str = "none"

    @property
    def unit(self) -> Unit:
        """What is scored."""
        return "clip" if self.samples == "none" else "sample"

    @classmethod
    def of(cls, project: Project) -> "ClipRule":
        """The rule that the settings state."""
        clips = project.settings.clips
        return cls(clips.length_us, clips.stride_us, clips.min_overlap_us)

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any]) -> "ClipRule":
        """The rule that a document holds.

        Raises:
            ValueError: If it is none.
        """
        found = cls(**record)
        times = (value for name, value in asdict(found).items() if name != "samples")
        if type(found.samples) is not str or not all(type(value) is int and value > 0 for value in times):
            raise ValueError(f"a clip rule must be of whole microseconds above 0, but is {record!r}")
        return found

    def to_mapping(self) -> dict[str, Any]:
        """The rule as a document holds it; earlier versions read one whose samples are clips."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("samples", "none")}

    def check_table(self, table: ClipTable) -> None:
        """Refuses a table of clips of another length, whoever made it.

        Raises:
            OutdatedTableError: Naming both lengths.
        """
        other = next((clip for clip in table.clips if clip.end_us - clip.start_us != self.length_us), None)
        if other is not None:
            raise OutdatedTableError(
                f"clips.csv must have clips as the settings say, but length_s is {_seconds(self.length_us)} and clip "
                f"{other.clip_id} lasts {_seconds(other.end_us - other.start_us)} s. Set length_s under [clips] to "
                "that, or make the table again: featurecache clips."
            )

    def check_fitted(self, fitted: "ClipRule | None") -> None:
        """Refuses a bundle that was fitted with another rule; one that does not tell its rule is taken.

        Raises:
            BundleError: Naming the setting, and the line to change.
        """
        if fitted is None or fitted == self:
            return
        if fitted.samples != self.samples:
            raise BundleError(
                f'a bundle must be used on samples as it was fitted on, but its are of rule = "{fitted.samples}" '
                f'and these of "{self.samples}". Use it where {SETTINGS_NAME} has that rule under [samples], or take a '
                "bundle that was fitted on such samples."
            )
        name = next(name for name, value in self.to_mapping().items() if fitted.to_mapping()[name] != value)
        theirs, ours = (_seconds(rule.to_mapping()[name]) for rule in (fitted, self))
        setting = name.removesuffix("_us")
        line = f'{setting} = "{theirs} s"' if setting == "min_overlap" else f"{setting}_s = {theirs}"
        raise BundleError(
            f"a bundle must be used on clips as it was fitted on, but {setting} was {theirs} s and is {ours} s. Set "
            f"{line} under [clips] in {SETTINGS_NAME} and run featurecache clips; or tune again."
        )


def _seconds(time_us: int) -> str:
    return f"{time_us / 1e6:.6f}".rstrip("0").rstrip(".")
