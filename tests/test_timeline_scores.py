"""Timeline scores: hand-computed cases, and what holds for any two timelines."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from featurecache.annotations import Interval
from featurecache.errors import BundleError, TimelineError, TrainingDataError
from featurecache.spec import sealed
from heads.scoring.intervals import macro_f1_interval
from heads.timelines.scores import (
    IOUS,
    compare_timelines,
    disagreements,
    intersection,
    kappas,
    match_events,
    scores_document,
)
from heads.timelines.timeline import TimelineSettings, default_settings, predict_intervals
from heads.timelines.tuning import NAME, ScoredRecording, load_timeline, save_timeline, tune_timeline

SECOND = 1_000_000
LABELS = ("a", "b")
MINUTE = [(0, 60 * SECOND)]


def timeline(*spans, label="a"):
    return [Interval(round(start * SECOND), round(end * SECOND), label) for start, end in spans]


def score(annotated, predicted, *, labels=("a",), within=None):
    comparison = compare_timelines(annotated, predicted, labels=labels, within=within or MINUTE)
    return scores_document([comparison], ["S"], labels=labels)


# Disjoint spans of whole milliseconds below a minute, by cutting at different points.
spans = st.lists(st.integers(0, 60_000), min_size=0, max_size=12, unique=True).map(
    lambda cuts: [(1000 * a, 1000 * b) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)
timelines = spans.map(lambda own: [Interval(start, end, "a") for start, end in own])


# --- hand-computed --------------------------------------------------------------------------------


def test_scores_document_matches_hand_computed_case():
    annotated = timeline((1, 11), (21, 31), (41, 45))
    # IoU: [2, 12) with [1, 11): 9/11 = .82; [28, 38) with [21, 31): 3/17 = .18; [44, 60) with [41, 45): 1/19 = .05.
    found = score(annotated, timeline((2, 12), (28, 38), (44, 60)))["per_class"]["a"]
    assert found["segment_f1"] == {"0.10": pytest.approx(2 / 3), "0.25": pytest.approx(1 / 3), "0.50": 1 / 3}
    assert (found["events_annotated"], found["events_predicted"], found["events_matched"]) == (3, 3, 2)
    assert (found["duration_annotated_s"], found["duration_predicted_s"], found["duration_error_s"]) == (24, 36, 12)
    # Matched at .10: onsets +1 and +7 s, ends +1 and +7 s.
    assert found["onset_error_s"] == found["offset_error_s"] == {"median": 4.0, "mean_absolute": 4.0}
    # On both 9 + 3 + 1 = 13 s, predicted only 23, annotated only 11, neither 13 of 60.
    expected = 36 / 60 * 24 / 60 + 24 / 60 * 36 / 60
    assert found["kappa"] == pytest.approx((26 / 60 - expected) / (1 - expected))


def test_match_events_takes_the_best_pair_first_and_each_event_once():
    # One long prediction covers two events: it can be right for one of them only.
    assert match_events([(0, 4), (5, 10)], [(0, 10)]) == [(1, 0, 0.5)]
    # The second prediction fits better, though it comes later.
    assert match_events([(10, 20)], [(5, 12), (12, 22)]) == [(0, 1, pytest.approx(8 / 12))]
    assert match_events([], [(0, 1)]) == match_events([(0, 1)], []) == []


def test_match_events_counts_an_overlap_of_exactly_the_threshold():
    comparison = compare_timelines(timeline((0, 10)), timeline((5, 10)), labels=["a"], within=MINUTE)
    assert comparison.counts[IOUS.index(0.5), :, 0].tolist() == [1, 0, 0]


def test_compare_timelines_joins_events_that_touch_or_overlap():
    annotated = timeline((0, 5), (5, 10), (8, 12))
    assert score(annotated, timeline((0, 12)))["per_class"]["a"]["segment_f1"] == {"0.10": 1, "0.25": 1, "0.50": 1}


def test_compare_timelines_looks_only_within_what_is_compared():
    within = [(10 * SECOND, 20 * SECOND), (30 * SECOND, 40 * SECOND)]
    found = score(timeline((5, 15)), timeline((5, 15), (22, 28)), within=within)
    assert found["per_class"]["a"]["segment_f1"]["0.50"] == 1
    assert found["per_class"]["a"]["duration_predicted_s"] == 5
    assert found["compared_s"] == 20


def test_compare_timelines_takes_no_error_of_a_border_that_the_scope_cuts():
    found = score(timeline((5, 15)), timeline((8, 17)), within=[(10 * SECOND, 20 * SECOND)])["per_class"]["a"]
    assert found["onset_error_s"] == {"median": None, "mean_absolute": None}
    assert found["offset_error_s"] == {"median": 2.0, "mean_absolute": 2.0}


def test_scores_document_leaves_undefined_scores_undefined():
    found = score(timeline((0, 10)), timeline((0, 10), (20, 30)) + timeline((3, 4), label="b"), labels=LABELS)
    assert found["undefined"] == ["b"]
    assert found["per_class"]["b"]["segment_f1"] == {"0.10": None, "0.25": None, "0.50": None}
    assert found["per_class"]["b"]["events_predicted"] == 1
    assert found["segment_f1"]["0.50"] == pytest.approx(2 / 3)  # of label a alone
    nothing = score([], [], labels=LABELS)
    assert nothing["segment_f1"]["0.50"] is None
    assert nothing["per_class"]["a"]["kappa"] is None


def test_scores_document_is_zero_not_undefined_when_every_event_is_missed():
    assert score(timeline((0, 10)), [])["per_class"]["a"]["segment_f1"]["0.10"] == 0


def test_scores_document_pools_events_of_all_recordings():
    one = compare_timelines(timeline((0, 10)), timeline((0, 10)), labels=["a"], within=MINUTE)
    other = compare_timelines(timeline((0, 10), (20, 25)), [], labels=["a"], within=MINUTE)
    found = scores_document([one, other], ["S1", "S2"], labels=["a"])
    assert found["segment_f1"]["0.50"] == pytest.approx(2 * 1 / (2 * 1 + 0 + 2))
    assert (found["n_recordings"], found["n_sessions"], found["compared_s"]) == (2, 2, 120)


def test_scores_document_gives_an_interval_only_when_sessions_suffice():
    draw = np.random.default_rng(0)
    comparisons = [
        compare_timelines(timeline((0, 10), (30, 40)), timeline((0, draw.uniform(4, 12))), labels=["a"], within=MINUTE)
        for _ in range(12)
    ]
    sessions = [f"S{i // 2}" for i in range(12)]
    found = scores_document(comparisons, sessions, labels=["a"])
    for iou, (low, high) in found["segment_f1_ci95"].items():
        assert low <= found["segment_f1"][iou] <= high
    counts = np.stack([one.counts for one in comparisons]).reshape(6, 2, len(IOUS), 3, 1).sum(axis=1)
    for at, iou in enumerate(IOUS):
        assert found["segment_f1_ci95"][f"{iou:.2f}"] == pytest.approx(macro_f1_interval(counts[:, at]))
    few = scores_document(comparisons[:8], sessions[:8], labels=["a"])
    assert few["segment_f1_ci95"] is None
    assert "at least 5 sessions" in few["segment_f1_ci95_reason"]


def test_scores_document_refuses_when_there_is_nothing():
    with pytest.raises(TimelineError, match="at least one recording"):
        scores_document([], [], labels=["a"])


def test_disagreements_lists_what_one_side_alone_has_longest_first():
    found = disagreements(timeline((10, 20)), timeline((12, 26)), labels=["a"], within=MINUTE)
    assert [(one.start_us // SECOND, one.end_us // SECOND, one.kind) for one in found] == [
        (20, 26, "extra"),
        (10, 12, "missed"),
    ]


# --- properties -----------------------------------------------------------------------------------


@given(timelines.filter(bool))
def test_a_timeline_agrees_wholly_with_itself(own):
    found = score(own, own)
    assert set(found["segment_f1"].values()) == {1.0}
    assert found["per_class"]["a"]["duration_error_s"] == 0
    assert found["per_class"]["a"]["kappa"] in (None, pytest.approx(1))
    assert disagreements(own, own, labels=["a"], within=MINUTE) == []


@given(timelines.filter(bool), timelines.filter(bool))
def test_scores_are_the_same_the_other_way_round_and_errors_change_sign(one, other):
    forth, back = score(one, other), score(other, one)
    assert forth["segment_f1"] == back["segment_f1"]
    here, there = forth["per_class"]["a"], back["per_class"]["a"]
    assert here["kappa"] == pytest.approx(there["kappa"])
    assert here["duration_error_s"] == -there["duration_error_s"]


@given(timelines, timelines)
def test_kappa_is_that_of_a_millisecond_grid(one, other):
    def grid(own):
        on = np.zeros(60_000, int)
        for interval in own:
            on[interval.start_us // 1000 : interval.end_us // 1000] = 1
        return on

    ours, theirs = grid(other), grid(one)
    kappa = score(one, other)["per_class"]["a"]["kappa"]
    if kappa is None:
        assert len(set(ours)) == len(set(theirs)) == 1
        assert ours[0] == theirs[0]
    else:
        assert kappa == pytest.approx(cohen_kappa_score(theirs, ours), abs=1e-9)


@given(timelines, timelines)
def test_disagreements_add_up_to_the_durations_that_differ(one, other):
    comparison = compare_timelines(one, other, labels=["a"], within=MINUTE)
    found = disagreements(one, other, labels=["a"], within=MINUTE)
    for kind, row in (("extra", 1), ("missed", 2)):
        total = sum(each.end_us - each.start_us for each in found if each.kind == kind)
        assert total == comparison.agreement_us[row, 0]
    assert comparison.agreement_us.sum() == 60 * SECOND


@given(timelines.filter(bool), st.integers(0, 5_000))
def test_shifting_a_timeline_shifts_its_borders_and_never_raises_the_score(own, shift_ms):
    wide = [(0, 100 * SECOND)]
    shifted = [Interval(one.start_us + 1000 * shift_ms, one.end_us + 1000 * shift_ms, "a") for one in own]
    found = score(own, shifted, within=wide)
    assert found["per_class"]["a"]["duration_error_s"] == 0
    further = [Interval(one.start_us + 60 * SECOND, one.end_us + 60 * SECOND, "a") for one in own]
    assert score(own, further, within=[(0, 200 * SECOND)])["segment_f1"]["0.10"] == 0
    if len(own) == 1 and found["per_class"]["a"]["events_matched"]:
        start_us = own[0].start_us
        expected = shift_ms / 1000 if start_us else None  # a border at the scope's edge has no error
        assert found["per_class"]["a"]["onset_error_s"]["median"] == expected


@given(spans, spans)
def test_intersection_is_what_lies_in_both(one, other):
    inside = np.zeros((2, 60_000), bool)
    for row, own in enumerate((one, other)):
        for start, end in own:
            inside[row, start // 1000 : end // 1000] = True
    both = np.zeros(60_000, bool)
    for start, end in intersection(one, other):
        assert not both[start // 1000 : end // 1000].any()
        both[start // 1000 : end // 1000] = True
    assert (both == inside.all(axis=0)).all()


def test_kappas_is_zero_when_one_side_never_changes():
    assert kappas(np.array([[30], [30], [0], [0]])).tolist() == [0.0]
    assert np.isnan(kappas(np.zeros((4, 1)))).all()


# --- tuning ---------------------------------------------------------------------------------------


def intervals_of(one, settings):
    return predict_intervals(one.spans_us, one.scores, settings, labels=["a"], thresholds=np.array([0.5]))


def noisy_recording(seed):
    """Two long events, and a score that drops out for single clips: smoothing pays."""
    draw = np.random.default_rng(seed)
    starts = np.arange(0, 57 * SECOND, 3 * SECOND // 2)
    clips = np.stack([starts, starts + 3 * SECOND], axis=1)
    annotated = timeline((10, 25), (35, 55))
    centres = clips.mean(axis=1)
    on = np.zeros(len(clips), bool)
    for one in annotated:
        on |= (one.start_us <= centres) & (centres < one.end_us)
    scores = np.where(on, 0.9, 0.1)
    dropped = draw.choice(len(clips), 6, replace=False)
    scores[dropped] = 1 - scores[dropped]
    return ScoredRecording(clips, scores[:, None], annotated, MINUTE)


def tuned(recordings):
    return tune_timeline(
        recordings, labels=["a"], thresholds=np.array([0.5]), length_us=3 * SECOND, stride_us=3 * SECOND // 2
    )


def test_tune_timeline_beats_no_smoothing_on_unseen_recordings_when_scores_are_noisy():
    found = tuned([noisy_recording(seed) for seed in range(6)])
    assert found.segment_f1 >= found.untuned_segment_f1
    unseen = [noisy_recording(seed) for seed in range(100, 106)]

    def value(settings):
        comparisons = []
        for one in unseen:
            intervals = intervals_of(one, settings)
            predicted = [each.interval for each in intervals]
            comparisons.append(compare_timelines(one.annotated, predicted, labels=["a"], within=one.within))
        return scores_document(comparisons, ["S"] * len(unseen), labels=["a"])["segment_f1"]["0.50"]

    assert value(found.settings) > value(TimelineSettings("none", 0, 0.0, 0, 0)) + 0.1


def test_tuned_settings_score_what_timelines_made_with_them_score():
    recordings = []
    for seed in range(4):
        one, draw = noisy_recording(seed), np.random.default_rng(seed)
        had = draw.random(len(one.spans_us)) < 0.8  # so that recordings have several runs
        within = [(5 * SECOND, 20 * SECOND), (22 * SECOND, 50 * SECOND)]
        recordings.append(ScoredRecording(one.spans_us[had], one.scores[had], one.annotated, within))
    found = tuned(recordings)
    for settings, value in (
        (found.settings, found.segment_f1),
        (default_settings(3 * SECOND), found.untuned_segment_f1),
    ):
        comparisons = []
        for one in recordings:
            predicted = intervals_of(one, settings)
            intervals = [each.interval for each in predicted]
            comparisons.append(compare_timelines(one.annotated, intervals, labels=["a"], within=one.within))
        of_ious = scores_document(comparisons, ["S"] * 4, labels=["a"])["segment_f1"]
        assert value == pytest.approx(np.mean(list(of_ious.values())))


def test_tune_timeline_alters_least_when_everything_is_perfect():
    one = noisy_recording(0)
    clean = ScoredRecording(one.spans_us, np.where(one.scores > 2, 0, 0.1), timeline((0, 1)), MINUTE)
    assert tuned([clean]).settings == TimelineSettings("none", 0, 0.0, 0, 0)


def test_tune_timeline_refuses_when_nothing_is_annotated():
    one = noisy_recording(0)
    for recordings in ([], [ScoredRecording(one.spans_us, one.scores, [], MINUTE)]):
        with pytest.raises(TrainingDataError, match="annotated event"):
            tuned(recordings)


def test_timeline_settings_come_back_from_the_bundles_folder(tmp_path):
    found = tuned([noisy_recording(0)])
    save_timeline(found, tmp_path)
    assert load_timeline(tmp_path) == found
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_timeline_settings_of_the_format_before_still_open(tmp_path):
    found = tuned([noisy_recording(0)])
    save_timeline(found, tmp_path)
    document = {key: value for key, value in json.loads((tmp_path / NAME).read_text()).items() if key != "sha256"}
    before = {**document, "format": 2, "validation_segment_f1": document.pop("segment_f1")}
    del before["segment_f1"]
    (tmp_path / NAME).write_text(json.dumps(sealed(before)))
    assert load_timeline(tmp_path) == found


def test_load_timeline_is_none_when_nothing_was_tuned(tmp_path):
    assert load_timeline(tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 3', '"format": 1', "format is 1"),
        ('"max_gap_us": ', '"max_gap_us": 1', "the sha256 that it states"),
        ('"hysteresis": 0', '"hysteresis": 7', "hysteresis"),
        ('"smoothing": "', '"smoothing": "x', "smoothing"),
        ('"max_gap_us": ', '"max_gap": ', "max_gap_us"),
        ("{", "[", "timeline.json"),
        ('"n_recordings": 1', '"n_recordings": "1"', "n_recordings"),
    ],
)
def test_load_timeline_names_what_is_wrong_when_the_file_was_changed(tmp_path, old, new, message):
    save_timeline(tuned([noisy_recording(0)]), tmp_path)
    text = (tmp_path / NAME).read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    if "sha256" not in message and changed.startswith("{"):  # by somebody, who vouches for it
        changed = json.dumps(sealed({k: v for k, v in json.loads(changed).items() if k != "sha256"}))
    (tmp_path / NAME).write_text(changed)
    with pytest.raises(BundleError, match=message):
        load_timeline(tmp_path)


def test_default_settings_are_in_the_grid():
    assert tuned([noisy_recording(1)]).untuned_segment_f1 > 0
    assert default_settings(3 * SECOND) == TimelineSettings("mean", 3 * SECOND, 0.0, SECOND * 3 // 2, SECOND * 3 // 2)
