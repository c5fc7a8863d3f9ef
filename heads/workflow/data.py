"""From a project to the arrays that heads learn from and are scored on, with every check of the splits.

What is left out is counted: clips that are missing from the cache for a recorded reason, and clips whose window touches
one that scores them. Labels, rules of the timeline and settings that do not fit are refused before any work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurecache import FeatureCache
from featurecache.clips.clip import ClipTable, union_of
from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.clips.leakage import leakage_record
from featurecache.clips.record import TableRecord, label_digests, read_record
from featurecache.clips.reviewed import stretches_in_sight
from featurecache.clips.samples import SampleTable
from featurecache.clips.samples_file import project_samples
from featurecache.device import device_of
from featurecache.errors import BundleError, SettingsError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.failures import KnownFailures, known_failures
from featurecache.extraction.spaces import project_spaces
from featurecache.extraction.words import JOINT_FEATURE
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from heads.bundle import Bundle
from heads.bundle_files import Stated
from heads.clip_rule import ClipRule, Unit
from heads.data import LearningData
from heads.loading import NONE_KNOWN, LoadedSplit, load_split
from heads.prior import Prior
from heads.samples.joining import selected
from heads.timelines.rules import checked_rules, timeline_rules
from heads.timelines.timeline import exclusive_groups
from heads.workflow.teaching import with_teacher

NO_TIMELINES = "timelines are made of the scores of clips, and this head scores samples of several clips"
"""Why there are none."""


@dataclass(frozen=True)
class DataSummary:
    """What a head learns from: each split's clips, and what the documents say of the splits (`leakage_record`).

    Attributes:
        splits: The splits by name.
        leakage: See above.
        unit: What is counted.
    """

    splits: Mapping[str, LoadedSplit]
    leakage: Mapping[str, Any]
    unit: Unit = "clip"


@dataclass(frozen=True, eq=False)
class ScoringData:
    """What a bundle is scored with.

    Attributes:
        table: The clip table; its labels are the bundle's.
        cache: The open cache.
        known: Why clips could not be extracted.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the splits.
        samples: The samples of several clips that the bundle scores; None where it scores clips.
    """

    table: ClipTable
    cache: FeatureCache
    known: KnownFailures
    leakage: Mapping[str, Any]
    samples: SampleTable | None = None

    def load(
        self, split: str, spaces: Mapping[str, FeatureSpace], *, needed: Iterable[FeatureSpace] = ()
    ) -> LoadedSplit:
        """What the bundle scores of a split, as `load_split`."""
        return load_split(self.table, split, self.cache, spaces, known=self.known, needed=needed, samples=self.samples)

    def label_digests(self, split: str) -> dict[str, str]:
        """`label_digests` of the split's recordings; the report compares them with the table that is there then."""
        contents = {clip.content for clip in self.table.clips if clip.split == split}
        return {content: digest for content, digest in label_digests(self.table).items() if content in contents}


def learning_data(
    project: Project,
    features: Sequence[str],
    *,
    cache: FeatureCache | None = None,
    imported: str | None = None,
    words: bool = False,
    allow_download: bool = False,
    taught: bool = False,
) -> tuple[LearningData, DataSummary]:
    """Training and validation clips with all the features that heads may read.

    Args:
        project: The project.
        features: What heads may read, each one selected feature or several joined by `+`.
        cache: The project's cache, where it is open already.
        imported: Name of imported features, which are then the only ones.
        words: Whether heads may have the prior that words make; it is there where some label has words.
        allow_download: Whether the model may be fetched from the hub.
        taught: Whether heads have a `teacher_weight`, so that findings of samples are read.

    Raises:
        ClipTableError: If there is no sound clip table.
        OutdatedTableError: If the settings of the table have changed since it was made.
        SettingsError: If a feature is not one that the project selects, or words are no prompts (`prepare_words`).
        TimelineError: If the section [timeline] names a label that the table has not.
        TrainingDataError: If a split has no labelled clip with features.
        MissingFeaturesError: If a clip is missing from the cache for no recorded reason.
    """
    check_table(project, use="targets")
    names = list(dict.fromkeys(name for one in features for name in selected(one)))
    if imported is None:
        _check_selected(project, names)
    table = _clip_table(project)
    rule, samples = ClipRule.of(project), None
    if project.settings.samples.rule != "none":
        samples = project_samples(project, table)
        rule = rule.of_samples(project.settings.samples, samples.roles)
    exclusive = checked_rules(project, table.labels).exclusive
    cache = cache or FeatureCache.open(project.cache)
    if imported is None:
        _, spaces = project_spaces(project, select=names, allow_download=allow_download)
        known = known_failures(project)
    else:
        spaces, known = {names[0]: FeatureSpace(cache.describe("imported", imported).inputs)}, NONE_KNOWN
    loaded = {
        split: load_split(table, split, cache, spaces, known=known, samples=samples)
        for split in ("train", "validation")
    }
    train, validation = loaded["train"].data, loaded["validation"].data
    if taught:
        train, validation = with_teacher(project, (train, validation), cache, allow_download=allow_download)
    reads_words = words and JOINT_FEATURE in spaces and samples is None
    data = LearningData(
        train,
        validation,
        labels=table.labels if samples is None else samples.labels,
        spaces=spaces,
        leakage=leakage_record(table.clips),
        clips=rule,
        seen=clips_seen(project, table, samples),
        exclusive=exclusive if samples is None else (),  # which exclude each other in one clip
        prior=_prior(project, table, allow_download=allow_download) if reads_words else None,
    )
    return data, DataSummary(loaded, data.leakage, rule.unit)


def _check_selected(project: Project, names: Sequence[str]) -> None:
    """Refuses features that the settings do not select."""
    kept = project.settings.features.select
    unknown = [name for name in names if name not in kept]
    if unknown:
        raise SettingsError(
            f"inputs must be features that features.select selects: {', '.join(kept)}; but {unknown[0]!r} is not "
            "one. Choose others, or add it to features.select and run: featurecache extract."
        )


def _clip_table(project: Project) -> ClipTable:
    """The clip table, refused where its clips are of another length or of other boxes than the settings say."""
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    RecordingBoxes(project).refuse_others(table)
    ClipRule.of(project).check_table(table)
    return table


def _prior(project: Project, table: ClipTable, *, allow_download: bool) -> Prior | None:
    """What words make of `joint/mean`; None where no label has words."""
    from heads.zeroshot.words import words_prior  # it loads torch

    recordings = sorted({clip.recording for clip in table.clips})
    return words_prior(project, table.labels, recordings, allow_download=allow_download)


def data_of_head(project: Project, bundle: Bundle, cache: FeatureCache) -> LearningData:
    """What a bundle's settings are fitted to again: as `learning_data`, with the bundle's own words."""
    return replace(learning_data(project, [bundle.settings.inputs], cache=cache)[0], prior=bundle.prior)


def clips_seen(project: Project, table: ClipTable, samples: SampleTable | None = None) -> frozenset[str]:
    """Ids of clips that touch a stretch labelled by a review with predictions in sight: no independent truth.

    Of samples of several clips, ids of those that hold such a clip. Where the table's record is missing, or knows other
    labels of a recording (one of the two was edited, or restored from a backup), nobody knows which reviews label it,
    so every stretch of it that was reviewed with predictions in sight counts.

    Raises:
        AnnotationError: If such a review is needed and cannot be read.
    """
    record = read_record(project.table_record)
    seen = {content: list(spans) for content, spans in record.seen.items()}
    if unknown := _unknown_labels(project, table, record):
        contents = {clip.recording: clip.content for clip in table.clips}
        for content, spans in stretches_in_sight(project, contents).items():
            if content in unknown:
                seen[content] = union_of([*seen.get(content, ()), *spans])
    own = [clip for clip in table.clips if clip.content in seen and clip.labelled]
    found = frozenset(
        clip.clip_id
        for clip in own
        if any(clip.start_us < end and start < clip.end_us for start, end in seen[clip.content])
    )
    if samples is None:
        return found
    return frozenset(sample.clip_id for sample in samples.samples if not found.isdisjoint(sample.clip_ids))


def _unknown_labels(project: Project, table: ClipTable, record: TableRecord) -> set[str]:
    """Content of recordings whose labels are not those that the table was written with."""

    def compared(own: ClipTable) -> set[str]:
        return {content for content, digest in label_digests(own).items() if record.labelled.get(content) != digest}

    if not compared(table):
        return set()
    return compared(read_table(project.clips, allow_clip_level=True))  # with all labels, where these are some of them


def scoring_data(project: Project, bundle: Bundle, table: ClipTable, cache: FeatureCache) -> ScoringData:
    """What a bundle is scored with, of its own table (`own_table`) and the open cache."""
    samples = project_samples(project, table) if reads_samples(bundle) else None
    return ScoringData(table, cache, known_failures(project), leakage_record(table.clips), samples)


def reads_samples(bundle: Bundle | Stated) -> bool:
    """Whether a bundle scores samples of several clips, not clips."""
    return bundle.clips is not None and bundle.clips.unit == "sample"


def refuse_samples(bundle: Bundle | Stated, folder: Path, made: str = "timelines") -> None:
    """Refuses a bundle that scores samples of several clips where something is made of the scores of clips.

    Raises:
        BundleError: Naming the folder.
    """
    if reads_samples(bundle):
        raise BundleError(
            f"{made} must be of a bundle that scores clips, but {folder} scores samples of several clips. "
            'Use one that was tuned with rule = "none" under [samples].'
        )


def own_table(project: Project, bundle: Bundle) -> ClipTable:
    """The clip table, refused where labels or clips are not the bundle's; of a zero-shot bundle, its own labels.

    Raises:
        BundleError: Naming both.
        OutdatedTableError: If its clips are of another length than the settings say.
    """
    table, rule = _clip_table(project), ClipRule.of(project)
    if bundle.is_zero_shot and set(bundle.labels) <= set(table.labels):
        table = table.of_labels(bundle.labels)
    labels, where = table.labels, "clips.csv"
    if reads_samples(bundle):
        rule = replace(rule, samples=project.settings.samples.rule)
        rule.check_fitted(replace(bundle.clips or rule, roles=None, most_clips=None))  # before samples are made
        samples = project_samples(project, table)
        rule = rule.of_samples(project.settings.samples, samples.roles)
        labels, where = samples.labels, "samples.csv"
    if labels != bundle.labels:
        raise BundleError(
            f"a bundle must be scored on its own labels, but it has {', '.join(bundle.labels)} and {where} has "
            f"{', '.join(labels)}. Train again: featurecache tune."
        )
    rule.check_fitted(bundle.clips)
    return table


def exclusive_labels(project: Project, bundle: Bundle | Stated) -> tuple[tuple[str, ...], ...]:
    """Groups of a bundle's labels of which one at most is on at a time; a zero-shot bundle may lack some of a rule's.

    Raises:
        TimelineError: If a rule names a label that there is not.
    """
    groups = timeline_rules(project).exclusive
    if bundle.is_zero_shot:
        groups = tuple(tuple(label for label in group if label in bundle.labels) for group in groups)
        groups = tuple(group for group in groups if len(group) > 1)
    exclusive_groups(groups, bundle.labels)
    return groups


def training_device(project: Project) -> str:
    """The torch device on which heads are trained: the one that the project extracts on."""
    return device_of(project.settings.extract.device)


def run_folder(project: Project, command: str, imported: str | None = None) -> Path:
    """Where a command's run lies; imported features have runs of their own."""
    return project.runs / (command if imported is None else f"{command}-{imported}")


def tuned_bundle(project: Project) -> Path:
    """The bundle of `tune`, which serves where no other is named."""
    return project.runs / "tune" / "bundle"
