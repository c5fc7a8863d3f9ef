"""Windows, targets and sessions: the half rule against counting microseconds, and the ways to go wrong."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.annotations import Interval
from featurecache.clips.clip import clip_id, clip_targets, clip_windows, covered_us, session_of, union_of
from featurecache.errors import ClipTableError

spans = st.tuples(st.integers(-20, 60), st.integers(0, 30)).map(lambda span: (span[0], span[0] + span[1]))
windows = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda window: (window[0], window[0] + window[1]))


def counted(window: tuple[int, int], covering: list[tuple[int, int]]) -> int:
    """The oracle: microseconds of the window that lie in any span, one by one."""
    return sum(any(start <= t < end for start, end in covering) for t in range(*window))


@given(st.lists(windows, max_size=8), st.lists(spans, max_size=8))
def test_covered_us_equals_counting_every_microsecond(
    some: list[tuple[int, int]], covering: list[tuple[int, int]]
) -> None:
    assert covered_us(some, covering).tolist() == [counted(window, covering) for window in some]


@given(st.lists(spans, max_size=8))
def test_union_of_is_disjoint_sorted_and_covers_the_same(covering: list[tuple[int, int]]) -> None:
    union = union_of(covering)
    assert all(one[1] < other[0] for one, other in pairwise(union))
    assert counted((-30, 100), union) == counted((-30, 100), covering)


@given(
    st.lists(windows, max_size=6),
    st.lists(st.tuples(spans, st.sampled_from("abx")), max_size=8),
    st.none() | st.lists(spans, max_size=3),
)
def test_clip_targets_equal_the_half_rule_counted_by_microseconds(
    some: list[tuple[int, int]], annotated: list[tuple[tuple[int, int], str]], inside: list[tuple[int, int]] | None
) -> None:
    intervals = [Interval(start, end, label) for (start, end), label in annotated]
    expected: list[tuple[int | None, ...]] = []
    for window in some:
        length = window[1] - window[0]
        on = [
            int(2 * counted(window, [span for span, of in annotated if of == label]) >= length) for label in ("a", "b")
        ]
        known = inside is None or counted(window, inside) == length
        expected.append(tuple(on) if known else (None, None))
    assert clip_targets(some, intervals, ("a", "b"), inside) == expected


@pytest.mark.parametrize(("covered", "target"), [(1_500_000, 1), (1_499_999, 0), (1_500_001, 1)])
def test_clip_targets_turn_on_when_exactly_half_is_covered(covered: int, target: int) -> None:
    assert clip_targets([(0, 3_000_000)], [Interval(0, covered, "a")], ["a"]) == [(target,)]


def test_clip_targets_count_overlapping_intervals_of_a_label_once() -> None:
    twice = [Interval(0, 1_000_000, "a"), Interval(0, 1_000_000, "a"), Interval(500_000, 1_400_000, "a")]
    assert clip_targets([(0, 3_000_000)], twice, ["a"]) == [(0,)]


def test_clip_targets_are_none_when_there_is_no_annotation_and_zero_when_it_is_empty() -> None:
    assert clip_targets([(0, 10)], None, ["a", "b"]) == [(None, None)]
    assert clip_targets([(0, 10)], [], ["a", "b"]) == [(0, 0)]
    assert clip_targets([(0, 10)], [], ["a"], annotated=[]) == [(None,)]


def test_clip_targets_accept_intervals_beyond_64_bits() -> None:
    assert clip_targets([(0, 10), (10, 20)], [Interval(5, 2**80, "a")], ["a"]) == [(1,), (1,)]


@given(st.integers(-5, 200), st.integers(1, 30), st.integers(1, 30))
def test_clip_windows_are_all_that_fit(duration: int, length: int, stride: int) -> None:
    expected = [(s, s + length) for s in range(0, 400, stride) if s + length <= duration]
    assert clip_windows(duration, length, stride) == expected


def test_clip_id_is_content_and_time() -> None:
    assert clip_id("0123456789abcdef" * 4, 0, 3_000_000) == "0123456789abcdef-0-3000000"


def test_session_of_follows_the_rule_when_it_applies() -> None:
    assert session_of("a/b/cam1.mp4", "file") == "a/b/cam1"
    assert session_of("a/b/cam1.mp4", "folder") == "a"
    assert session_of("a/S07_cam1.mp4", "pattern", pattern=r"(S[0-9]+)") == "S07"
    assert session_of("x.mp4", "column", column={"x.mp4": " S1 "}) == "S1"


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("folder", {}, "'x.mp4' lies beside the folders"),
        ("pattern", {"pattern": "(S[0-9]+)"}, r"finds no session in 'x.mp4'"),
        ("pattern", {"pattern": "(S)?x"}, "finds no session"),
        ("pattern", {"pattern": "(x"}, "must be a regular expression"),
        ("pattern", {"pattern": "x"}, "has 0"),
        ("pattern", {"pattern": "(x)(.)"}, "has 2"),
        ("pattern", {}, "exactly one group"),
        ("column", {"column": {"y.mp4": "S1"}}, "names none for 'x.mp4'. The nearest there is 'y.mp4'"),
        ("column", {"column": {"x.mp4": " "}}, "must be a plain name"),
    ],
)
def test_session_of_names_recording_and_remedy_when_there_is_none(how, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ClipTableError, match=message):
        session_of("x.mp4", how, **options)


@settings(max_examples=20)
@given(st.integers(1, 3000))
def test_clip_targets_are_fast_when_recordings_are_long(count: int) -> None:
    some = clip_windows(13 * 3_600_000_000, 3_000_000, 3_000_000)
    intervals = [Interval(i * 15_000_000, i * 15_000_000 + 7_000_000, "a") for i in range(count)]
    on = sum(target[0] or 0 for target in clip_targets(some, intervals, ["a"]))
    assert on == 2 * count
