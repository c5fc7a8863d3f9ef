"""The leakage guard: what crosses is named, a forced table says so, and the purge is exact."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.clips.clip import Clip, clip_id
from featurecache.clips.leakage import (
    find_leak,
    leakage_record,
    purged_clips,
    sessions_in,
    shared_recordings,
    spans_of,
    split_level,
    touching,
)


def clip(recording: str, session: str, split: str, start: int = 0, *, content: str = "", length: int = 1) -> Clip:
    digest = (content or recording).encode().hex().ljust(16, "0")
    return Clip(clip_id(digest, start, start + length), recording, session, split, start, start + length, (1,))


def test_find_leak_passes_when_each_session_has_one_split_or_none() -> None:
    clips = [clip("a", "A", "train"), clip("a", "A", "", 1), clip("b", "A", "train"), clip("c", "C", "test")]
    assert find_leak(clips) is None


def test_find_leak_passes_when_a_recording_holds_sessions_one_after_the_other() -> None:
    clips = [clip("a", "A", "train"), clip("a", "A", "train", 1), clip("a", "B", "test", 2), clip("b", "B", "test")]
    assert find_leak(clips) is None
    assert shared_recordings(clips) == ["a"]


CUT = [clip("a", "A", "train"), clip("b", "A", "test")]
ALTERNATING = [clip("a", "A", "train", 0), clip("a", "B", "test", 2), clip("a", "A", "train", 1), clip("a", "B", "", 0)]


@pytest.mark.parametrize(
    ("clips", "places", "message"),
    [
        (CUT, (1, 0, "split"), "session 'A' lies in train and in test.*allow_clip_level = true"),
        (
            [clip("a", "A", "train"), clip("a", "B", "test", 1), clip("a", "A", "train", 2)],
            (2, 1, "session"),
            "the sessions 'B' and 'A' alternate in recording 'a'.*allow_clip_level = true",
        ),
        (
            [clip("a", "A", "", content="k"), clip("b", "B", "", content="k")],
            (1, 0, "recording"),
            "'a' and 'b' have the same content.*delete the lines",
        ),
        (
            [clip("a", "A", "train"), clip("a", "A", "train", 1, content="k")],
            (1, 0, "recording"),
            "has the contents",
        ),
    ],
)
def test_find_leak_names_what_crosses_when_something_does(
    clips: list[Clip], places: tuple[int, int, str], message: str
) -> None:
    leak = find_leak(clips)
    assert leak is not None
    assert (leak.position, leak.earlier, leak.column) == places
    assert re.search(message, f"{leak.reason} {leak.remedy}")


def test_find_leak_passes_a_split_by_clips_only_when_forced() -> None:
    assert find_leak(CUT, allow_clip_level=True) is None
    assert find_leak(ALTERNATING, allow_clip_level=True) is None
    twins = [clip("a", "A", "train", content="k"), clip("b", "B", "test", content="k")]
    leak = find_leak(twins, allow_clip_level=True)
    assert leak is not None
    assert "same content" in leak.reason


def test_leakage_record_says_what_the_splits_go_by() -> None:
    honest = [clip("a", "A", "train"), clip("b", "B", "test")]
    assert leakage_record(honest) == {
        "split_level": "session",
        "recordings_in_several_splits": 0,
        "purged_clips": {"train": 0, "validation": 0},
    }
    forced = leakage_record([clip("a", "A", "train"), clip("a", "A", "test", 1), clip("a", "A", "train", 3)])
    assert (forced["split_level"], forced["recordings_in_several_splits"]) == ("clip", 1)
    assert "optimistically biased" in forced["split_warning"]
    assert forced["purged_clips"] == {"train": 1, "validation": 0}
    assert split_level(ALTERNATING) == "clip"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["train", "validation", "test", ""]),
            st.integers(0, 30),
            st.integers(1, 4),
            st.booleans(),
        ),
        max_size=30,
        unique_by=lambda row: (row[0], row[2], row[3]),
    )
)
def test_purged_clips_are_exactly_those_that_meet_a_clip_that_scores_them(
    rows: list[tuple[str, str, int, int, bool]],
) -> None:
    clips = [
        Clip(clip_id(name.encode().hex().ljust(16, "0"), start, start + length), name, "S", split, start,
             start + length, (1,) if known else (None,))
        for name, split, start, length, known in rows
    ]  # fmt: skip
    stronger = {"train": {"validation", "test"}, "validation": {"test"}}
    expected = {
        split: {
            one.clip_id
            for one in clips
            for other in clips
            if one.split == split and other.split in stronger[split] and one.labelled and other.labelled
            if one.recording == other.recording and one.start_us <= other.end_us and other.start_us <= one.end_us
        }
        for split in stronger
    }
    assert purged_clips(clips) == expected
    ids = [one.clip_id for one in clips]
    assert touching(ids, ids).all()


def test_touching_tells_apart_windows_that_meet_and_windows_with_a_gap() -> None:
    windows = [clip("a", "A", "", start, length=3).clip_id for start in (0, 3, 7, 13, 14)]
    assert touching(windows, [clip("a", "A", "", 10, length=3).clip_id]).tolist() == [False, False, True, True, False]
    assert not touching(windows, [clip("b", "A", "", 10, length=3).clip_id]).any()


def test_sessions_that_were_seen_are_found_by_content_and_time() -> None:
    seen = [clip("a", "A", "train"), clip("a", "A", "train", 1), clip("b", "B", "validation", 5, length=3)]
    spans = spans_of([one.clip_id for one in seen], joined_to={"c" * 16: [(0, 4)]})
    assert list(spans.values()) == [[(0, 2)], [(5, 8)], [(0, 4)]]
    now = [
        clip("a", "D", "test", 2),  # behind what was seen of the recording
        clip("renamed", "E", "test", 7, content="b"),
        clip("a", "F", "test", 1),
        clip("g", "G", "test"),
    ]
    ids, sessions = [one.clip_id for one in now], [one.session for one in now]
    assert sessions_in(ids, sessions, spans) == ["E", "F"]
    assert sessions_in(ids, sessions, {}) == []
