"""What a clip is: its length, the distance to the next, and how much of it a label must cover to be on.

A bundle keeps the rule it was fitted with: clips of another length are other features, and targets by another overlap
or of other samples are other questions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from featurecache.clips.clip import ClipTable
from featurecache.errors import BundleError, OutdatedTableError
from featurecache.project.samples import SampleSettings
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
        most_clips: Of the rule "recording": `SampleSettings.most_clips`; None where that is not known.
        roles: What stands at each place of a sample, none where places have no meaning; None where that is not known.
    """

    length_us: int
    stride_us: int
    min_overlap_us: int
    samples: str = "none"
    most_clips: int | None = None
    roles: tuple[str, ...] | None = None

    @property
    def unit(self) -> Unit:
        """What is scored."""
        return "clip" if self.samples == "none" else "sample"

    @classmethod
    def of(cls, project: Project) -> "ClipRule":
        """The rule of clips that the settings state."""
        clips = project.settings.clips
        return cls(clips.length_us, clips.stride_us, clips.min_overlap_us)

    def of_samples(self, settings: SampleSettings, roles: tuple[str, ...]) -> "ClipRule":
        """The same clips, several of which are a sample with these roles."""
        most = settings.most_clips if settings.rule == "recording" else None
        return replace(self, samples=settings.rule, most_clips=most, roles=roles)

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any]) -> "ClipRule":
        """The rule that a document holds.

        Raises:
            ValueError: If it is none.
        """
        found = cls(**record)
        times = (found.length_us, found.stride_us, found.min_overlap_us)
        if type(found.samples) is not str or not all(type(value) is int and value > 0 for value in times):
            raise ValueError(f"a clip rule must be of whole microseconds above 0, but is {record!r}")
        roles, most = found.roles, found.most_clips
        if not (most is None or (type(most) is int and most >= 0)) or not all(
            type(role) is str for role in roles or ()
        ):
            raise ValueError(f"samples must have a number of clips and names as roles, but are {record!r}")
        return replace(found, roles=None if roles is None else tuple(roles))

    def to_mapping(self) -> dict[str, Any]:
        """The rule as a document holds it; earlier versions read one whose samples are clips."""
        record = {name: value for name, value in asdict(self).items() if value not in ("none", None)}
        return record if self.roles is None else {**record, "roles": list(self.roles)}

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
        if fitted.roles not in (None, self.roles):
            theirs, ours = (", ".join(roles or ()) or "none" for roles in (fitted.roles, self.roles))
            raise BundleError(
                f"a bundle must be used on samples as it was fitted on, but their roles were {theirs} and are {ours}. "
                "Make samples with the same roles in the same order, or tune again."
            )
        if fitted.most_clips not in (None, self.most_clips):
            raise BundleError(
                f"a bundle must be used on samples as it was fitted on, but most_clips was {fitted.most_clips} and is "
                f"{self.most_clips}. Set most_clips = {fitted.most_clips} under [samples] and run featurecache clips; "
                "or tune again."
            )
        times = ("length_us", "stride_us", "min_overlap_us")
        name = next((name for name in times if getattr(fitted, name) != getattr(self, name)), None)
        if name is None:
            return
        theirs, ours = (_seconds(getattr(rule, name)) for rule in (fitted, self))
        setting = name.removesuffix("_us")
        line = f'{setting} = "{theirs} s"' if setting == "min_overlap" else f"{setting}_s = {theirs}"
        raise BundleError(
            f"a bundle must be used on clips as it was fitted on, but {setting} was {theirs} s and is {ours} s. Set "
            f"{line} under [clips] in {SETTINGS_NAME} and run featurecache clips; or tune again."
        )


def _seconds(time_us: int) -> str:
    return f"{time_us / 1e6:.6f}".rstrip("0").rstrip(".")
