"""What a label audit counts: targets by split and session, labels, pairs of labels, annotations out of range."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupCounts:
    """Targets of one split or one session.

    Attributes:
        name: Of the split or session.
        split: The session's split; the split itself.
        sessions: Number of sessions.
        clips: All clips.
        labelled: Clips with targets.
        positives: Label -> clips in which it is on.
        prevalence: Label -> share of the labelled clips, or None where there is none.
    """

    name: str
    split: str
    sessions: int
    clips: int
    labelled: int
    positives: dict[str, int]
    prevalence: dict[str, float | None]


@dataclass(frozen=True)
class LabelCounts:
    """One label over the project.

    Attributes:
        label: Its name.
        intervals: Annotated intervals in the recordings of the table.
        minutes: Time that their union covers.
        positives: Clips in which it is on.
        sessions: Sessions with such a clip.
        near_half: Labelled clips that its intervals cover by 40 to 60%.
        no_positive_in: Splits with labelled clips but no positive one.
        no_negative_in: Splits with labelled clips that are all positive.
    """

    label: str
    intervals: int
    minutes: float
    positives: int
    sessions: int
    near_half: int
    no_positive_in: list[str]
    no_negative_in: list[str]


@dataclass(frozen=True)
class PairCounts:
    """Two labels that never stand together, or of which the first never stands without the second.

    Attributes:
        first: A label.
        second: Another one.
        relation: "never together", or "first only with second".
        together: Clips with both.
        first_clips: Clips with the first.
        second_clips: Clips with the second.
        expected_together: Clips with both if they were independent.
    """

    first: str
    second: str
    relation: str
    together: int
    first_clips: int
    second_clips: int
    expected_together: float


@dataclass(frozen=True)
class OutOfRange:
    """Annotated time that lies where the recording has no picture.

    Attributes:
        recording: Its name.
        before_s: Time before 0.
        beyond_s: Time beyond the end.
    """

    recording: str
    before_s: float
    beyond_s: float


@dataclass(frozen=True)
class SilentTail:
    """A long end of an annotated recording without any interval: all its clips count as negative.

    Attributes:
        recording: Its name.
        last_interval_s: End of the last interval.
        duration_s: Length of the recording.
    """

    recording: str
    last_interval_s: float
    duration_s: float


@dataclass(frozen=True)
class LabelSources:
    """Who labelled the labelled clips of a table.

    Attributes:
        annotators: Clips that only annotators labelled.
        blind: Clips that touch a stretch which was reviewed without sight of predictions.
        in_sight: Clips that touch one which was reviewed with predictions in sight: they train and never score.
        accepted: Those of them where predictions were merely accepted, and nothing corrected, added or rejected.
    """

    annotators: int = 0
    blind: int = 0
    in_sight: int = 0
    accepted: int = 0

    def in_words(self) -> str:
        """The counts, where reviews label something; else nothing."""
        if not self.blind and not self.in_sight:
            return ""
        return (
            f"{self.annotators} by annotators, {self.blind} by blind review, {self.in_sight} by review with "
            f"predictions in sight, of which {self.accepted} merely accepted"
        )


UNKNOWN_SOURCES = LabelSources()


@dataclass(frozen=True)
class LabelAudit:
    """The audit; `dataclasses.asdict` of it is ready for JSON.

    Attributes:
        clips: All clips.
        labelled_clips: Those with targets.
        unlabelled_clips: Those without.
        left_out_clips: Labelled clips whose split is empty.
        clips_near_half: Labelled clips that some label covers by 40 to 60%.
        unlabelled_recordings: Recordings none of whose clips has targets.
        splits: Counts of each split.
        sessions: Counts of each session.
        labels: Counts of each label.
        pairs: Labels that exclude or imply each other.
        unmatched_annotations: Recordings that the annotations name but the folder lacks.
        out_of_range: Annotated time outside a recording.
        silent_tails: Long ends of annotated recordings without an interval.
        unused_labels: Label in the annotations that is no column -> its intervals.
        split_level: What the splits go by: "session", or "clip" where they cut one.
        shared_recordings: Recordings that hold several sessions.
        purged_clips: Split -> clips left out of it because they overlap or touch one that scores them.
        sources: Who labelled the labelled clips.
        warnings: One sentence for each finding that can spoil a study.
    """

    clips: int
    labelled_clips: int
    unlabelled_clips: int
    left_out_clips: int
    clips_near_half: int
    unlabelled_recordings: list[str]
    splits: list[GroupCounts]
    sessions: list[GroupCounts]
    labels: list[LabelCounts]
    pairs: list[PairCounts]
    unmatched_annotations: list[str]
    out_of_range: list[OutOfRange]
    silent_tails: list[SilentTail]
    unused_labels: dict[str, int]
    split_level: str
    shared_recordings: list[str]
    purged_clips: dict[str, int]
    sources: LabelSources
    warnings: list[str]
