"""Parts of the report: differences, baselines, figures and names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import StudyError
from heads.report.documents import read_documents
from heads.report.figures import cooccurrence_figure, threshold_figure
from heads.report.names import ShownNames
from heads.report.searching import search_figures
from heads.report.summary import all_positive_f1, floor_of
from heads.report.timelines import Timeline, differences, not_compared
from tests.report_samples import (
    LABELS,
    make_table,
    metrics_of,
    project_at,
    report_on,
    timeline_scores,
    write_json,
    write_study,
)

_SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


def _covered(spans: Any) -> set[int]:
    return {time for start, end in spans for time in range(start, end)}


@given(annotated=_SPANS, predicted=_SPANS, compared=_SPANS)
def test_differences_are_the_compared_time_of_exactly_one_side(annotated: Any, predicted: Any, compared: Any) -> None:
    from featurecache.clips.clip import union_of

    scope = [(start, min(end, 40)) for start, end in union_of(compared) if start < 40]
    timeline = Timeline("r", "0" * 16, "", "", 40, {"a": predicted}, {"a": []}, scope, {"a": annotated})
    found = differences([timeline])
    sides = {
        kind: _covered([(one.start_us, one.end_us) for one in found if one.kind == kind])
        for kind in ("missed", "extra")
    }
    assert sides["missed"] == (_covered(annotated) - _covered(predicted)) & _covered(scope)
    assert sides["extra"] == (_covered(predicted) - _covered(annotated)) & _covered(scope)
    assert [one.duration_us for one in found] == sorted((one.duration_us for one in found), reverse=True)
    assert _covered(not_compared(timeline)) == set(range(40)) - _covered(scope)


def test_all_positive_baseline_equals_the_score_of_predicting_every_label() -> None:
    Y = (np.random.default_rng(0).random((50, 3)) < 0.3).astype(int)
    Y[:, 2] = 0
    metrics = metrics_of(Y, np.ones(Y.shape), LABELS, "test")
    expected = {label: one["f1"] for label, one in metrics["per_class"].items() if one["f1"] is not None}
    assert all_positive_f1(metrics) == pytest.approx(expected)
    assert floor_of(metrics) == pytest.approx(metrics["macro_f1"])


def test_cooccurrence_is_the_share_of_the_rows_clips() -> None:
    table = make_table(LABELS, ("a.mp4",), 50, ("train",))
    figure = cooccurrence_figure(table.labels, table.clips)
    assert figure is not None
    rows = [clip.targets for clip in table.clips]
    both, first = sum(row[0] == row[1] == 1 for row in rows), sum(row[0] == 1 for row in rows)
    assert figure["data"][0]["z"][0][1] == both / first


def test_threshold_figure_peaks_at_the_f1_of_the_metrics(written_report: Path) -> None:
    (run,) = (run for run in read_documents(project_at(written_report)).runs if run.name == "tune")
    figure = threshold_figure(run, "ventilation")
    assert figure is not None
    f1, metrics = figure["data"][0], run.validation["per_class"]["ventilation"]
    nearest = min(range(len(f1["x"])), key=lambda at: abs(f1["x"][at] - metrics["threshold"]))
    assert f1["y"][nearest] == pytest.approx(metrics["f1"], abs=0.02)


def test_names_are_told_apart_without_their_folders() -> None:
    recordings = ["a/x/1.mp4", "a/y/1.mp4", "b/x/1.mp4", "c/2.mp4", "3.mp4", "C:\\films\\4.mp4"]
    names = ShownNames(recordings)
    shown = [names[one] for one in recordings]
    assert shown == ["1.mp4 (x)", "1.mp4 (y)", "1.mp4 (x) no. 2", "2.mp4", "3.mp4", "4.mp4"]


def test_search_figures_leave_out_what_a_study_is_too_small_for(tmp_path: Path) -> None:
    write_study(tmp_path / "one.journal", 1)
    assert set(search_figures(tmp_path / "one.journal")) == {"history"}
    write_study(tmp_path / "none.journal", 0)
    assert search_figures(tmp_path / "none.journal") == {}


def test_search_figures_neither_make_nor_change_a_journal(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="journal must be readable"):
        search_figures(tmp_path / "study.journal")
    assert not list(tmp_path.iterdir())
    write_study(tmp_path / "study.journal", 5)
    before = (tmp_path / "study.journal").read_bytes()
    search_figures(tmp_path / "study.journal")
    assert (tmp_path / "study.journal").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_the_report_shows_how_well_annotators_agree_and_survives_a_broken_file(reported: Path) -> None:
    whole = report_on(reported).path.read_text(encoding="utf-8")
    assert "Agreement of annotators" not in whole
    assert "kappa of annotators" not in whole
    write_json(reported / "runs" / "agreement.json", timeline_scores(["ventilation"]))
    text = report_on(reported).path.read_text(encoding="utf-8")
    assert "kappa of annotators" in text, "as the ceiling, next to the activities"
    shown = text[text.index("<h3>Agreement of annotators") :]
    assert "on 2 recordings that both annotated" in shown
    assert "ventilation" in shown[: shown.index("</table>")]
    (reported / "runs" / "agreement.json").write_text("[1")
    broken = report_on(reported)
    assert any("agreement.json" in problem for problem in broken.problems)
    assert "Agreement of annotators" not in broken.path.read_text(encoding="utf-8")
