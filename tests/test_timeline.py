"""Clip scores to intervals: hand-computed borders, and what holds for any scores."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.annotations import Interval
from featurecache.clips.clip import clip_targets
from featurecache.errors import TimelineError
from heads.timelines.timeline import (
    TimelineSettings,
    close_gaps,
    default_settings,
    drop_short,
    predict_intervals,
    smoothed_runs,
)

SECOND = 1_000_000
PLAIN = TimelineSettings("none", 0, 0.0, 0, 0)


def clips(count, *, length_s=3.0, stride_s=1.5, start_s=0.0):
    starts = np.round((start_s + np.arange(count) * stride_s) * SECOND).astype(np.int64)
    return np.stack([starts, starts + round(length_s * SECOND)], axis=1)


def predict(spans, scores, settings=PLAIN, *, labels=("a",), thresholds=None, exclusive=(), calibrated=None):
    scores = np.asarray(scores, dtype=np.float32)
    scores = scores[:, None] if scores.ndim == 1 else scores
    at = np.full(len(labels), 0.5) if thresholds is None else np.array(thresholds)
    options = {"exclusive": exclusive, "calibrated": calibrated}
    return predict_intervals(spans, scores, settings, labels=labels, thresholds=at, **options)


def seconds(found, label="a"):
    return [(round(one.start_us / SECOND, 4), round(one.end_us / SECOND, 4)) for one in found if one.label == label]


def borders(found):
    return np.array([(one.start_us, one.end_us) for one in found], np.int64).reshape(-1, 2)


# --- borders --------------------------------------------------------------------------------------


def test_predict_intervals_interpolates_crossings_when_scores_pass_the_threshold():
    # The example of the module's docstring: centres at 1.5, 3, ..., 9 s.
    (one,) = predict(clips(6), [0.1, 0.2, 0.8, 0.9, 0.9, 0.3])
    assert (one.start_us, one.end_us) == (3_750_000, 8_500_000)
    # Trapezoids between the border (.5), the centres (.8, .9, .9) and the border (.5), over 4.75 s.
    area = 0.75 * (0.5 + 0.8) / 2 + 1.5 * (0.8 + 0.9) / 2 + 1.5 * 0.9 + 1.0 * (0.9 + 0.5) / 2
    assert one.confidence == pytest.approx(area / 4.75, abs=1e-6)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    st.sampled_from(["none", "mean", "median"]),
    st.integers(0, 2**32 - 1),
)
def test_predict_intervals_takes_only_its_confidence_from_calibrated_probabilities(scores, smoothing, seed):
    settings = TimelineSettings(smoothing, 3 * SECOND, 0.25, SECOND, SECOND)
    spans, other = clips(len(scores)), np.random.default_rng(seed).random((len(scores), 1))
    own, calibrated = (predict(spans, scores, settings, calibrated=given) for given in (None, other))
    assert (borders(own) == borders(calibrated)).all()
    everywhere = predict(spans, np.ones(len(scores)), settings, calibrated=other)[0]
    assert other.min() - 1e-9 <= everywhere.confidence <= other.max() + 1e-9
    assert predict(spans, scores, settings, calibrated=np.float32(scores)[:, None]) == own


def test_predict_intervals_uses_each_labels_own_threshold():
    scores = np.array([[0.1, 0.1], [0.4, 0.4], [0.1, 0.1]])
    found = predict(clips(3, stride_s=3), scores, labels=("a", "b"), thresholds=[0.5, 0.25])
    assert seconds(found, "a") == []
    assert seconds(found, "b") == [(3.0, 6.0)]


def test_predict_intervals_holds_end_scores_to_the_ends_of_their_clips():
    assert seconds(predict(clips(3), [0.9, 0.9, 0.9])) == [(0.0, 6.0)]
    assert seconds(predict(clips(1), [0.9])) == [(0.0, 3.0)]
    assert predict(clips(1), [0.4]) == []


def test_predict_intervals_counts_a_score_on_the_threshold_as_on():
    assert seconds(predict(clips(1), [0.5])) == [(0.0, 3.0)]


@pytest.mark.parametrize("stride_s", [0.25, 0.5, 1.0, 1.5, 3.0])
@given(start=st.integers(3_000, 30_000), duration=st.integers(6_000, 60_000))
def test_predict_intervals_finds_borders_within_half_a_stride_when_targets_are_known(stride_s, start, duration):
    """A perfect model gives each clip its target; the timeline of targets is the annotation to half a stride."""
    truth = Interval(1000 * start, 1000 * (start + duration), "a")
    spans = clips(int(100 / stride_s), stride_s=stride_s)
    targets = clip_targets([tuple(span) for span in spans.tolist()], [truth], ["a"])
    (one,) = predict(spans, targets)
    assert abs(one.start_us - truth.start_us) <= stride_s * SECOND / 2 + 1
    assert abs(one.end_us - truth.end_us) <= stride_s * SECOND / 2 + 1


# --- runs -----------------------------------------------------------------------------------------


def test_predict_intervals_predicts_nothing_where_no_clip_was_scored():
    spans = np.concatenate([clips(2, stride_s=3), clips(2, stride_s=3, start_s=9)])  # nothing from 6 s to 9 s
    widest_gap = dataclasses.replace(PLAIN, max_gap_us=10 * SECOND)
    assert seconds(predict(spans, [0.9] * 4, widest_gap)) == [(0.0, 6.0), (9.0, 15.0)]


def test_predict_intervals_smooths_no_score_across_unscored_time():
    spans = np.concatenate([clips(1), clips(1, start_s=4)])
    wide = TimelineSettings("mean", 100 * SECOND, 0.0, 0, 0)
    assert seconds(predict(spans, [0.9, 0.3], wide)) == [(0.0, 3.0)]


def test_predict_intervals_is_empty_when_there_are_no_clips():
    assert predict(np.zeros((0, 2), np.int64), np.zeros((0, 1))) == []


@given(st.permutations(range(8)))
def test_predict_intervals_ignores_the_order_of_clips(order):
    spans, scores = clips(8), np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.7, 0.9, 0.4])
    assert predict(spans[order], scores[order]) == predict(spans, scores)


# --- smoothing, hysteresis, gaps, durations -------------------------------------------------------


def test_predict_intervals_averages_covering_clips_when_window_is_one_clip():
    # Around each centre the clips that cover it: itself and its two neighbours at half a clip's distance.
    settings = TimelineSettings("mean", 3 * SECOND, 0.0, 0, 0)
    (one,) = predict(clips(5), [0.0, 0.0, 0.9, 0.9, 0.9], settings)  # means 0, .3, .6, .9, .9
    assert one.start_us == pytest.approx(3_000_000 + 1_500_000 * (0.5 - 0.3) / 0.3, abs=1)


def test_predict_intervals_drops_a_single_outlier_when_smoothing_is_median():
    scores = [0.9, 0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1]
    settings = TimelineSettings("median", 3 * SECOND, 0.0, 0, 0)
    assert len(predict(clips(10), scores, PLAIN)) == 3
    assert len(predict(clips(10), scores, settings)) == 1


def test_smoothing_equals_plain_means_and_medians_when_spacing_is_irregular():
    draw = np.random.default_rng(0)
    starts = np.cumsum(draw.integers(200_000, 2_500_000, 60))
    spans = np.stack([starts, starts + 3 * SECOND], axis=1)
    scores = draw.random((60, 2))
    centres = spans.mean(axis=1)
    for smoothing, reduce in (("mean", np.mean), ("median", np.median)):
        (run,) = smoothed_runs(spans, scores, smoothing, 4 * SECOND)
        for at, centre in enumerate(centres):
            assert run.scores[at] == pytest.approx(reduce(scores[np.abs(centres - centre) <= 2 * SECOND], axis=0))


def test_hysteresis_keeps_a_label_on_through_a_dip_but_never_starts_it():
    scores = [0.1, 0.4, 0.9, 0.4, 0.9, 0.4, 0.1, 0.1, 0.4, 0.4, 0.1]
    spans = clips(11, stride_s=3)
    assert len(predict(spans, scores)) == 2
    (one,) = predict(spans, scores, dataclasses.replace(PLAIN, hysteresis=0.5))  # on from .25, if .5 is reached
    assert (one.start_us, one.end_us) == (3 * SECOND, 18 * SECOND)


def test_close_gaps_closes_up_to_the_limit_and_not_beyond():
    spans = [(0, 10), (15, 20), (26, 30)]
    assert close_gaps(spans, 4) == spans
    assert close_gaps(spans, 5) == [(0, 20), (26, 30)]
    assert close_gaps(spans, 6) == [(0, 30)]


def test_drop_short_keeps_what_lasts_exactly_as_long():
    assert drop_short([(0, 4), (10, 15)], 5) == [(10, 15)]


def test_predict_intervals_closes_gaps_before_it_drops_what_is_short():
    scores = [0.1, 0.9, 0.1, 0.9, 0.1]
    settings = dataclasses.replace(PLAIN, max_gap_us=3 * SECOND, min_duration_us=5 * SECOND)
    assert seconds(predict(clips(5, stride_s=3), scores, settings)) == [(3.0, 12.0)]


# --- labels that exclude each other ---------------------------------------------------------------


def test_exclusive_labels_change_over_where_their_margins_cross():
    # a falls from .9 to .6, b rises from .6 to .9: they cross halfway between the centres 4.5 s and 7.5 s.
    scores = np.array([[0.9, 0.6], [0.9, 0.6], [0.6, 0.9], [0.6, 0.9]])
    found = predict(clips(4, stride_s=3), scores, labels=("a", "b"), exclusive=[("a", "b")])
    assert seconds(found, "a") == [(0.0, 6.0)]
    assert seconds(found, "b") == [(6.0, 12.0)]


def test_exclusive_labels_compare_scores_with_their_own_thresholds():
    scores = np.array([[0.6, 0.5]] * 3)
    found = predict(clips(3), scores, labels=("a", "b"), thresholds=[0.55, 0.1], exclusive=[("a", "b")])
    assert (seconds(found, "a"), seconds(found, "b")) == ([], [(0.0, 6.0)])


def test_exclusive_labels_leave_others_alone():
    scores = np.full((3, 3), [0.9, 0.6, 0.7])
    found = predict(clips(3), scores, labels=("a", "b", "c"), exclusive=[("a", "b")])
    assert [one.label for one in found] == ["a", "c"]


def test_exclusive_labels_drop_what_the_rule_cuts_too_short():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.95], [0.9, 0.1], [0.9, 0.1]])
    settings = dataclasses.replace(PLAIN, min_duration_us=3 * SECOND)
    spans = clips(5, stride_s=3)
    assert len(seconds(predict(spans, scores, settings, labels=("a", "b")), "b")) == 1  # 3.2 s
    found = predict(spans, scores, settings, labels=("a", "b"), exclusive=[("a", "b")])
    assert [one.label for one in found] == ["a", "a"]


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=20))
def test_exclusive_labels_never_overlap_and_only_lose_time(rows):
    spans, scores = clips(len(rows)), np.array(rows)
    labels = ("a", "b", "c")
    found = predict(spans, scores, labels=labels, exclusive=[("a", "b", "c")])
    ordered = sorted((one.start_us, one.end_us) for one in found)
    assert all(end <= start for (_, end), (start, _) in pairwise(ordered))
    free = predict(spans, scores, labels=labels)
    for one in found:
        assert any(
            other.label == one.label and other.start_us <= one.start_us and one.end_us <= other.end_us for other in free
        )
    taken = sum(end - start for start, end in ordered)
    union = 0
    last = -1
    for start, end in sorted((one.start_us, one.end_us) for one in free):
        union += max(0, end - max(start, last))
        last = max(last, end)
    assert taken == union  # somebody keeps every moment at which anybody was on


# --- what always holds ----------------------------------------------------------------------------

any_settings = st.builds(
    TimelineSettings,
    smoothing=st.sampled_from(["none", "mean", "median"]),
    smoothing_us=st.integers(0, 10 * SECOND),
    hysteresis=st.floats(0, 0.9),
    min_duration_us=st.integers(0, 6 * SECOND),
    max_gap_us=st.integers(0, 6 * SECOND),
)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), any_settings)
def test_predict_intervals_keeps_its_promises_for_any_scores(scores, settings):
    spans = clips(len(scores))
    found = predict(spans, scores, settings)
    for one in found:
        assert 0 <= one.start_us < one.end_us <= spans[-1, 1]
        assert one.end_us - one.start_us >= settings.min_duration_us
        assert 0 <= one.confidence <= 1
    for one, following in pairwise(found):
        assert following.start_us - one.end_us > settings.max_gap_us


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), any_settings, st.integers(0, 10**9))
def test_predict_intervals_moves_with_the_clock(scores, settings, shift_us):
    here = predict(clips(len(scores)), scores, settings)
    there = predict(clips(len(scores)) + shift_us, scores, settings)
    assert borders(here) + shift_us == pytest.approx(borders(there), abs=1)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
def test_predict_intervals_is_the_same_backwards(scores):
    spans = clips(len(scores))
    end_us = int(spans[-1, 1])
    forwards = predict(spans, scores, default_settings(3 * SECOND))
    backwards = predict(spans, scores[::-1], default_settings(3 * SECOND))
    assert borders(forwards) == pytest.approx(end_us - borders(backwards)[::-1, ::-1], abs=1)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": clips(3)[:, 0]}, "spans \\(N, 2\\) and scores"),
        ({"spans": clips(2)}, "spans \\(N, 2\\) and scores"),
        ({"spans": np.repeat(clips(1), 3, axis=0)}, "centres of their own"),
        ({"exclusive": [("a", "x")]}, "'x' is none of a, b"),
        ({"exclusive": [("a",)]}, "two or more"),
        ({"exclusive": [("a", "a")]}, "two or more"),
    ],
)
def test_predict_intervals_says_what_does_not_fit(change, message):
    given_ = {"spans": clips(3), "scores": np.zeros((3, 2)), "labels": ("a", "b"), **change}
    with pytest.raises(TimelineError, match=message):
        predict(given_.pop("spans"), given_.pop("scores"), **given_)


@pytest.mark.parametrize(
    "wrong",
    [{"smoothing": "mode"}, {"smoothing_us": -1}, {"hysteresis": 1.0}, {"hysteresis": -0.1}, {"max_gap_us": -1}],
)
def test_timeline_settings_refuse_values_out_of_range(wrong):
    with pytest.raises(TimelineError, match="a timeline needs smoothing"):
        dataclasses.replace(PLAIN, **wrong)
