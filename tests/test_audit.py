"""The audit: every count by hand on a small table, and a sentence for what can spoil a study."""

import dataclasses
import json

from featurecache.annotations import Interval
from featurecache.clips.audit import audit
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.label_counts import LabelAudit
from tests.clip_samples import S, built, recording

SPLITS = {"A": "train", "B": "validation", "C": "test", "D": "train"}
RECORDINGS = [recording(f"{name}.mp4", 300) for name in "ABCDE"]
LABELS = ("baby", "ventilation", "suction")


def baby(until_s: float = 300) -> Interval:
    return Interval(0, round(until_s * S), "baby")


INTERVALS = {
    "A.mp4": [
        baby(),
        Interval(0, 60 * S, "ventilation"),
        Interval(30 * S, 60 * S, "ventilation"),
        Interval(60 * S, 90 * S, "suction"),
        Interval(0, S, "note"),
    ],
    "B.mp4": [baby(), Interval(0, round(1.5 * S), "ventilation")],
    "C.mp4": [baby(301), Interval(-2 * S, 90 * S, "ventilation"), Interval(120 * S, round(121.3 * S), "suction")],
    "D.mp4": [baby(200)],
    "gone.mp4": [baby()],
}


SESSIONS = {f"{name}.mp4": name for name in "ABCDE"}


def made_table(**data: str) -> ClipTable:
    return built(RECORDINGS, INTERVALS, LABELS, SESSIONS, splits={"sessions": SPLITS}, data=data)[0]


def audited(**options: str) -> LabelAudit:
    return audit(made_table(**options), RECORDINGS, INTERVALS, **options)


def test_audit_counts_clips_and_prevalence() -> None:
    found = audited()
    assert (found.clips, found.labelled_clips, found.unlabelled_clips, found.left_out_clips) == (500, 400, 100, 0)
    assert found.unlabelled_recordings == ["E.mp4"]
    train, validation, test = found.splits
    assert (train.name, train.sessions, train.clips, train.labelled) == ("train", 2, 200, 200)
    assert train.positives == {"baby": 167, "ventilation": 20, "suction": 10}
    assert validation.prevalence == {"baby": 1.0, "ventilation": 0.01, "suction": 0.0}
    assert test.positives == {"baby": 100, "ventilation": 30, "suction": 0}
    assert [(s.name, s.split, s.labelled) for s in found.sessions][3:] == [("D", "train", 100), ("E", "", 0)]
    assert found.sessions[4].prevalence == dict.fromkeys(LABELS)


def test_audit_counts_labels_by_the_union_of_their_intervals() -> None:
    by_label = {label.label: label for label in audited().labels}
    ventilation = by_label["ventilation"]
    assert (ventilation.intervals, ventilation.minutes, ventilation.positives, ventilation.sessions) == (
        4,
        round((60 + 1.5 + 92) / 60, 3),
        51,
        3,
    )
    assert (ventilation.near_half, by_label["suction"].near_half) == (1, 1)
    assert by_label["suction"].no_positive_in == ["validation", "test"]
    assert by_label["baby"].no_negative_in == ["validation", "test"]
    assert audited().clips_near_half == 2


def test_audit_names_pairs_that_exclude_or_imply_each_other() -> None:
    pairs = {(pair.first, pair.second): pair for pair in audited().pairs}
    apart = pairs["ventilation", "suction"]
    assert (apart.relation, apart.together, apart.first_clips, apart.second_clips) == ("never together", 0, 51, 10)
    assert apart.expected_together == round(51 * 10 / 400, 2)
    implied = {pair for pair, counts in pairs.items() if counts.relation == "first only with second"}
    assert implied == {("ventilation", "baby"), ("suction", "baby")}


def test_audit_names_annotations_that_fit_no_recording_or_lie_outside_it() -> None:
    found = audited()
    assert found.unmatched_annotations == ["gone.mp4"]
    assert [dataclasses.astuple(item) for item in found.out_of_range] == [("C.mp4", 2.0, 1.0)]
    assert [dataclasses.astuple(item) for item in found.silent_tails] == [("D.mp4", 200.0, 300.0)]
    assert found.unused_labels == {"note": 1}


def test_audit_takes_the_annotated_span_for_no_label_and_no_silence() -> None:
    found = audited(annotated_span="note")
    assert found.unused_labels == {}
    assert found.silent_tails == []
    assert found.labelled_clips == 0


def test_audit_warns_in_sentences_of_what_can_spoil_a_study() -> None:
    text = "\n".join(audited().warnings)
    for part in (
        "suction: no positive clip in validation and test (positive in 1 session)",
        "baby: every clip is positive in validation and test",
        "ventilation is on only where baby is (51 and 367 clips)",
        "1 recording without annotations",
        "annotations of 1 recording that cannot be used or found: gone.mp4",
        "C.mp4 (2 s before 0, 1 s beyond the end)",
        "D.mp4 (after 200 of 300 s)",
        "does not use: note (1)",
    ):
        assert part in text
    assert all(line.endswith(".") and "\n" not in line for line in audited().warnings)


def test_audit_warns_when_two_labels_never_meet_that_would_by_chance() -> None:
    intervals = {
        f"{name}.mp4": [Interval(0, 100 * S, "ventilation"), Interval(100 * S, 300 * S, "suction")] for name in "ABC"
    }
    table, _ = built(RECORDINGS, intervals, ("ventilation", "suction"), SESSIONS)
    warnings = audit(table, RECORDINGS, intervals).warnings
    assert any(line.startswith("ventilation and suction are never on in one clip") for line in warnings)


def test_audit_counts_left_out_clips_and_labels_without_positives_when_the_table_is_edited() -> None:
    table = made_table()
    clips = tuple(
        dataclasses.replace(clip, split="", targets=(1, 0, 0)) if clip.recording == "A.mp4" else clip
        for clip in table.clips
    )
    found = audit(dataclasses.replace(table, clips=clips), RECORDINGS, INTERVALS)
    assert found.left_out_clips == 100
    assert "suction: no clip is positive, so it cannot be learned or scored." in found.warnings
    assert "100 labelled clips have no split and take part in nothing." in found.warnings


def test_audit_names_what_crosses_the_splits_when_the_table_is_edited() -> None:
    honest = audited()
    assert (honest.split_level, honest.shared_recordings) == ("session", [])
    assert honest.purged_clips == {"train": 0, "validation": 0}
    table = made_table()

    def edited(clips: list[Clip]) -> LabelAudit:
        return audit(dataclasses.replace(table, clips=tuple(clips)), RECORDINGS, INTERVALS)

    half = 150 * S
    cut = [
        dataclasses.replace(clip, split="test") if clip.recording == "A.mp4" and clip.start_us >= half else clip
        for clip in table.clips
    ]
    assert edited(cut).split_level == "clip"
    assert edited(cut).purged_clips == {"train": 1, "validation": 0}
    text = "\n".join(edited(cut).warnings)
    assert "the splits cut sessions" in text
    assert "1 labelled clip is left out of train, because they overlap or touch" in text
    shared = [
        dataclasses.replace(clip, session="A2") if clip.split == "test" and clip.session == "A" else clip
        for clip in cut
    ]
    assert (edited(shared).split_level, edited(shared).shared_recordings) == ("session", ["A.mp4"])
    assert any(line.startswith("1 recording with several sessions") for line in edited(shared).warnings)


def test_audit_is_ready_for_json() -> None:
    found = dataclasses.asdict(audited())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
