"""The builder: recordings, intervals and sessions to a whole table."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from featurecache.annotations import Interval
from featurecache.clips.clip import ClipTable
from featurecache.clips.leakage import find_leak
from featurecache.errors import ClipTableError, NoRecordingsError, SplitError
from featurecache.video.recordings import Recording, UnusableRecording
from tests.clip_samples import S, built, recording

FOUR = [recording(f"S{i}.mp4") for i in range(4)]
FIRST_HALF = {f"S{i}.mp4": [Interval(0, 6 * S, "suction")] for i in range(4)}


def build(
    recordings: Sequence[Recording] = FOUR,
    intervals: Mapping[str, Sequence[Interval]] = FIRST_HALF,
    labels: Sequence[str] = ("suction",),
    sessions: Mapping[str, str] | None = None,
    **sections: Mapping[str, Any],
) -> tuple[ClipTable, tuple[UnusableRecording, ...]]:
    own = {recording.name: recording.name.removesuffix(".mp4") for recording in recordings}
    return built(recordings, intervals, labels, sessions or own, **sections)


def test_table_makes_every_clip_in_order_when_all_is_well() -> None:
    table, short = build(list(reversed(FOUR)))
    assert short == ()
    assert [clip.recording for clip in table.clips] == [f"S{i}.mp4" for i in range(4) for _ in range(4)]
    assert [clip.targets for clip in table.clips[:4]] == [(1,), (1,), (0,), (0,)]
    assert table.clips[1].clip_id == f"{FOUR[0].sha256[:16]}-3000000-6000000"
    assert {clip.split for clip in table.clips} == {"train", "validation", "test"}
    assert build() == (table, short)
    assert find_leak(table.clips) is None


def test_table_leaves_recordings_without_annotation_unlabelled_but_not_those_with_an_empty_one() -> None:
    intervals = {**{name: FIRST_HALF[name] for name in ("S0.mp4", "S1.mp4", "S2.mp4")}, "S3.mp4": []}
    clips = build(intervals=intervals)[0].clips
    assert {clip.targets for clip in clips if clip.recording == "S3.mp4"} == {(0,)}
    del intervals["S3.mp4"]
    alone = [clip for clip in build(intervals=intervals)[0].clips if clip.recording == "S3.mp4"]
    assert {(clip.targets, clip.labelled, clip.split) for clip in alone} == {((None,), False, "")}
    sessions = {f"S{i}.mp4": "AABB"[i] if i in (0, 3) else f"S{i}" for i in range(4)} | {"S3.mp4": "A"}
    together = build(intervals=intervals, sessions=sessions)[0].clips
    splits = {clip.recording: clip.split for clip in together}
    assert splits["S3.mp4"] == splits["S0.mp4"] != ""


def test_table_leaves_clips_outside_the_annotated_span_unlabelled() -> None:
    intervals = {name: [*spans, Interval(0, 7 * S, "seen")] for name, spans in FIRST_HALF.items()}
    intervals["S3.mp4"] = FIRST_HALF["S3.mp4"]
    clips = build(intervals=intervals, data={"annotated_span": "seen"})[0].clips
    assert [clip.targets for clip in clips[:4]] == [(1,), (1,), (None,), (None,)]
    assert {clip.targets for clip in clips[-4:]} == {(None,)}
    assert {clip.split for clip in clips[-4:]} == {""}


def test_table_gives_no_split_when_nothing_is_annotated() -> None:
    table, _ = build(FOUR[:1], {}, ())
    assert [(clip.split, clip.targets) for clip in table.clips] == [("", ())] * 4
    assert {clip.targets for clip in build(FOUR[:1], {"gone.mp4": FIRST_HALF["S0.mp4"]})[0].clips} == {(None,)}


def test_table_lists_recordings_that_are_shorter_than_a_clip() -> None:
    table, short = build([*FOUR, recording("x.mp4", 2.5)])
    assert short == (UnusableRecording("x.mp4", "shorter than one clip (2.5 s of 3 s)"),)
    assert "x.mp4" not in {clip.recording for clip in table.clips}


def test_table_makes_no_clip_beyond_the_end_when_windows_overlap() -> None:
    clips = [clip for clip in build(clips={"stride_s": 1})[0].clips if clip.recording == "S0.mp4"]
    assert [clip.start_us // S for clip in clips] == list(range(10))
    assert clips[-1].end_us == 12 * S


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recordings": []}, NoRecordingsError, "need a usable recording"),
        ({"labels": ("suktion",)}, ClipTableError, "'suktion' is in none of them. Did you mean 'suction'"),
        ({"labels": ("x",)}, ClipTableError, "They hold: suction"),
        ({"labels": ()}, ClipTableError, "none is set. The annotations hold: suction"),
        ({"labels": ("suction", "suction")}, ClipTableError, "stands there twice"),
        ({"labels": ("suction", " ")}, ClipTableError, "it is empty"),
        ({"labels": ("suction", "start_s")}, ClipTableError, "name of another column"),
        ({"intervals": {}, "labels": ("suction",)}, ClipTableError, "no label at all"),
        (
            {"data": {"annotated_span": "seen"}},
            ClipTableError,
            "the annotated span must be in the annotations, but 'seen'",
        ),
        ({"clips": {"length_s": 13}}, ClipTableError, "length_s is 13 and the longest recording, S0.mp4, lasts 12 s"),
        ({"splits": {"sessions": {"S9": "train"}}}, SplitError, "'S9' does not"),
    ],
)
def test_table_says_what_is_wrong_when_it_cannot_build(options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        build(**options)
