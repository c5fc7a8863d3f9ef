"""The report from documents on disk: what it says of methods, activities, searches and comparisons."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from featurecache.clips.csv_file import format_table
from heads.report.documents import Run
from heads.report.figures import reliability_figure
from heads.report.searching import search_figures
from heads.report.summary import floor_of
from tests.report_samples import (
    LABELS,
    Page,
    content_of,
    edit,
    make_table,
    metrics_of,
    report_on,
    write_json,
    write_learning,
    write_prediction,
    write_project,
    write_study,
)


def test_report_says_what_was_found_and_how_sure_it_is(written_report: Path) -> None:
    page = Page(written_report / "runs" / "report.html")
    metrics = json.loads((written_report / "runs" / "tune" / "test_metrics.json").read_text())
    low, high = metrics["macro_f1_ci95"]
    assert f"{metrics['macro_f1']:.2f}" in page.text
    assert f"95% CI {low:.2f} to {high:.2f}" in page.text
    assert f"The all-positive baseline, every label in every clip, reaches {floor_of(metrics):.2f}" in page.text
    assert "The test split was evaluated 2 times" in page.text
    assert "ventilation 0.5, stimulation 0.5, suction 0.5" in page.text
    assert page.text.count("How to read this.") >= 12


def test_a_paragraph_for_a_paper_holds_the_runs_own_numbers_and_claims_nothing_else(reported: Path) -> None:
    root = reported
    metrics = json.loads((root / "runs" / "tune" / "test_metrics.json").read_text())
    low, high = metrics["macro_f1_ci95"]
    clips = {"length_us": 3_000_000, "stride_us": 1_000_000, "min_overlap_us": 600_000}
    edit(root / "runs" / "tune" / "bundle" / "bundle.json", clips=clips)
    edit(root / "runs" / "tune" / "best.json", scored="out-of-fold", trials="lost", train_clips=120)
    report_on(root)
    text = Page(root / "runs" / "report.html").text
    assert "clips of 3 s, one each 1 s; an activity counted as present in a clip when its annotations covered" in text
    assert "was trained on 120 clips with weighted binary cross-entropy" in text
    assert (
        f"macro-F1 was {metrics['macro_f1']:.2f} (95% confidence interval over sessions {low:.2f} to {high:.2f})"
        in text
    )
    assert "Its settings were set beforehand" in text
    assert "trials of a TPE search" not in text
    assert "Features were computed once" not in text, "its bundle does not say how"

    (root / "runs" / "tune").rename(root / "runs" / "zeroshot-zs-b")
    edit(root / "runs" / "zeroshot-zs-b" / "bundle" / "bundle.json", clips={**clips, "samples": "recording"})
    report_on(root)
    text = Page(root / "runs" / "report.html").text
    assert "ZS-B was asked about each clip without training" in text
    assert "ZS-B was trained" not in text
    assert f"On {metrics['n_clips']} samples of" in text


def test_report_has_every_figure_when_every_document_is_there(written_report: Path) -> None:
    figures = Page(written_report / "runs" / "report.html").blocks["figures"]
    panels = {f"{kind}-{at}" for kind in ("pr", "reliability", "threshold", "decision") for at in range(len(LABELS))}
    search = {f"search-tune-{kind}" for kind in ("history", "importances", "parallel")}
    assert set(figures) == panels | search | {"macro", "cooccurrence", "sessions"}
    (bars,) = figures["search-tune-importances"]["data"]
    assert (bars["y"], bars["x"]) == (["dropout", "learning_rate"], [0.375, 0.625]), "as tune printed them"


def test_methods_stand_in_the_order_of_the_papers_table(reported: Path) -> None:
    root = reported
    metrics = root / "runs" / "tune" / "test_metrics.json"
    for folder in ("lora", "timesformer"):
        (root / "runs" / folder).mkdir()
        shutil.copy(metrics, root / "runs" / folder)
    assert list(report_on(root).methods) == ["TimeSformer", "FT-LC", "FT-MLP", "FT-C-LoRA"]
    for kind, method in (("attention", "FT-Attention"), ("temporal", "FT-Temporal"), ("other", "train")):
        edit(root / "runs" / "train" / "best.json", settings={"kind": kind})
        assert set(report_on(root).methods) == {"TimeSformer", "FT-LC", method, "FT-C-LoRA"}


def test_report_counts_how_often_each_head_was_scored(reported: Path) -> None:
    page = (reported / "runs" / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="methods-table"') :].split("</table>")[0]
    scored = [re.findall(r'data-value="(\d*)"', row)[-1] for row in table.split("<tr")[2:]]
    assert scored == ["", "2", "0"]  # the baseline, `tune`, `train`


def test_report_flags_a_forced_clip_level_split(reported: Path) -> None:
    assert "clip-level split" not in Page(reported / "runs" / "report.html").text
    edit(reported / "runs" / "tune" / "test_metrics.json", split_level="clip")
    report_on(reported)
    text = Page(reported / "runs" / "report.html").text
    assert "a clip-level split was forced" in text
    assert "clip-level split, biased" in text  # next to the method


def test_report_flags_a_clip_table_whose_splits_cut_sessions(reported: Path) -> None:
    table = reported / "clips.csv"
    table.write_text(table.read_text().replace("session 1", "session 0"))
    report_on(reported)
    assert "a clip-level split was forced" in Page(reported / "runs" / "report.html").text


def test_report_says_why_there_is_no_confidence_interval(reported: Path) -> None:
    reason = "an interval needs at least 5 sessions to resample, but test has 2"
    metrics = reported / "runs" / "tune" / "test_metrics.json"
    edit(metrics, macro_f1_ci95=None, macro_f1_ci95_reason=reason, undefined=["suction"])
    report_on(reported)
    text = Page(reported / "runs" / "report.html").text
    assert reason in text
    assert "no confidence interval" in text
    assert "Never on in the test split, and so without a score: \u2068suction\u2069" in text


def test_report_calls_a_validation_score_too_kind_when_nothing_was_evaluated(reported: Path) -> None:
    for run in ("tune", "train"):
        (reported / "runs" / run / "test_metrics.json").unlink()
    report_on(reported)
    text = Page(reported / "runs" / "report.html").text
    assert "on the validation split" in text
    assert "it is optimistically biased" in text
    assert "featurecache evaluate" in text


def test_report_shows_leave_one_session_out_and_the_paired_comparison(reported: Path) -> None:
    metrics = json.loads((reported / "runs" / "tune" / "test_metrics.json").read_text())
    write_json(reported / "runs" / "tune" / "leave_one_session_out_metrics.json", metrics | {"macro_f1": 0.4321})
    comparison = {
        "against": "/home/me/runs/train/bundle",
        "difference": 0.1,
        "difference_ci95": [0.02, 0.2],
        "p_value": 0.03,
    }
    write_json(reported / "runs" / "tune" / "test_comparison.json", comparison)
    report_on(reported)
    text = Page(reported / "runs" / "report.html").text
    assert "each session left out once" in text
    assert "0.43" in text
    assert "difference of macro-F1 +0.100 (95% CI +0.020 to +0.200), p = 0.03" in text
    assert "/home/me" not in text


def test_report_shows_what_compare_found_beside_the_scores_and_what_is_missing(reported: Path) -> None:
    row = {
        "run": "zeroshot-zsc-j",
        "method": "ZSC-J",
        "difference": {"difference": -0.1234, "difference_ci95": [-0.2, 0.01], "p_holm": 0.04},
        "another_session": 0.31,
        "seconds_per_clip": 1.5,
        "audit": {"unparsable": 7, "n_clips": 20},
    }
    damaged = {"run": 3, "difference": [1], "audit": None, "another_session": "x"}
    missing = {"TimeSformer": "featurecache finetune"}
    baselines = {"ridge regression": {"macro_f1": 0.123, "macro_f1_ci95": [0.1, 0.15]}, "none": {}, "text": "x"}
    write_json(
        reported / "runs" / "compare.json", {"rows": [row, damaged, "row"], "missing": missing, "baselines": baselines}
    )
    report_on(reported)
    text = " ".join(Page(reported / "runs" / "report.html").text.split())
    for shown in ("-0.123", "-0.200 to +0.010", "0.04", "0.31", "1.5", "TimeSformer is missing: featurecache finetune"):
        assert shown in text
    assert "ridge regression compare 0.12 0.10 to 0.15" in text


def test_differences_are_listed_longest_first_with_their_times(written_report: Path) -> None:
    page = Page(written_report / "runs" / "report.html")
    listed = [a["data-goto"].split() for tag, a in page.elements if tag == "button" and a.get("data-goto")]
    lengths = [int(end) - int(start) for _, start, end in listed]
    assert len(lengths) > 10
    assert lengths == sorted(lengths, reverse=True)
    timeline = page.blocks["timelines-data"][int(listed[0][0])]
    borders = {time for label in timeline["labels"] for time in label["differ"]}
    assert {int(time) for time in listed[0][1:]} <= borders


@pytest.mark.parametrize(("bundle", "predicted_s"), [(content_of("tune"), "5"), (content_of("train"), "7")])
def test_timelines_of_the_best_run_are_not_mixed_with_predictions_by_another_head(
    reported: Path, bundle: str, predicted_s: str
) -> None:
    path = reported / "predictions" / "S1" / "a.mp4.predicted.json"
    edit(path, predicted={"ventilation": [[0, 7_000_000, 0.9]]})
    edit(reported / "runs" / "tune" / "test_timelines.json", recordings=[json.loads(path.read_text())])
    edit(path, predicted={"ventilation": [[0, 5_000_000, 0.9]]}, bundle=bundle)
    table = report_on(reported).activities
    assert table is not None
    with table.open(newline="") as file:
        rows = [one for one in csv.DictReader(file) if (one["level"], one["session"]) == ("recording", "session 0")]
    assert [one["predicted_s"] for one in rows if one["label"] == "ventilation"] == [predicted_s]


def test_report_begins_with_what_each_activity_took_annotated_beside_predicted(reported: Path) -> None:
    shutil.rmtree(reported / "predictions")
    for at in range(4):
        recording = f"T{at}/a.mp4"
        predicted = {"ventilation": [[5_000_000, (15 + at) * 1_000_000, 0.9]], "suction": []}
        annotated = {"ventilation": [[4_000_000, 10_000_000], [20_000_000, 24_000_000]], "suction": []}
        write_prediction(reported, recording, predicted, annotated, duration_us=60_000_000)
    table = reported / "clips.csv"
    rows = make_table(("ventilation", "suction"), [f"T{at}/a.mp4" for at in range(4)], 20, ("test",))
    table.write_bytes(format_table(rows))
    report = report_on(reported)
    page = Page(report.path)
    ids = [attributes.get("id") for tag, attributes in page.elements if tag == "section"]
    assert ids[:3] == ["summary", "activities", "methods"]
    shown = page.text[page.text.index("Seconds and bouts") : page.text.index("Each recording")]
    assert "ventilation 40 s 46 s +1.5 s -0.6 to +3.6 -1 to +4 s each ±4 8 4" in shown
    assert "ventilation 4.0 s 5.0 s +1.0 s +1.0 to +1.0 +1.0 to +1.0 s 4 0 0" in shown
    assert f"report {reported.name} :" in page.text
    assert "4 sessions, 4 recordings, 4 minutes of video; 80 of 80 clips have labels" in page.text
    assert report.activities is not None
    with report.activities.open(newline="") as file:
        lines = list(csv.DictReader(file))
    (one,) = [
        line
        for line in lines
        if (line["session"], line["label"], line["level"]) == ("session 3", "ventilation", "recording")
    ]
    assert (one["annotated_s"], one["predicted_s"], one["difference_s"]) == ("10", "13", "3")
    assert (one["annotated_bouts"], one["predicted_bouts"]) == ("2", "1")
    assert (one["annotated_first_start_s"], one["predicted_first_start_s"]) == ("4", "5")
    assert (one["annotated_median_between_starts_s"], one["predicted_median_between_starts_s"]) == ("16", "")
    assert len(lines) == 16


def test_activity_table_has_no_formula_and_no_folder(tmp_path: Path) -> None:
    root = write_project(tmp_path / "p", labels=("=1+1", "b"), recordings=("ward 7/jane doe/=a.mp4", "S2/b.mp4"))
    report = report_on(root)
    assert report.activities is not None
    text = report.activities.read_text()
    assert "ward 7" not in text
    assert "jane" not in text
    assert {line.split(",")[4] for line in text.splitlines()[1:]} == {"'=1+1", "b"}
    assert report.activities.stat().st_mode & 0o777 == 0o600


def test_best_trials_of_the_parallel_coordinates_are_those_of_the_highest_scores(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    write_study(journal, 40, numeric_choice=True)
    lines = search_figures(journal)["parallel"]["data"]
    study = optuna.load_study(study_name="tune", storage=JournalStorage(JournalFileBackend(str(journal))))
    of_best = sorted((trial.value for trial in study.trials), reverse=True)[:4]
    coloured = [float(line["customdata"][0][1]) for line in lines if line["line"]["color"] == "@c1"]
    assert sorted(coloured, reverse=True) == pytest.approx(of_best, rel=0.01)  # shown to three digits
    assert lines[-1]["y"][0] == 1.0  # the best is drawn last, on top


def test_no_method_below_the_all_positive_baseline_is_set_in_bold(reported: Path) -> None:
    for run in ("tune", "train"):
        metrics = json.loads((reported / "runs" / run / "test_metrics.json").read_text())
        for scores in metrics["per_class"].values():
            scores["f1"] = 0.0
        edit(reported / "runs" / run / "test_metrics.json", per_class=metrics["per_class"], macro_f1=0.0)
    page = report_on(reported).path.read_text(encoding="utf-8")
    assert 'class="best"' not in page
    assert "the score is not above it. Nothing shows that the head learned." in Page(report_on(reported).path).text


def test_few_clips_are_no_calibration_curve() -> None:
    Y = np.tile([[1], [0]], (80, 1))
    scores = np.linspace(0, 1, 160)[:, None]
    for clips, mode in ((160, "markers"), (1600, "lines+markers")):
        metrics = metrics_of(np.repeat(Y, clips // 160, 0), np.repeat(scores, clips // 160, 0), ["a"], "test")
        run = Run("tune", "FT-LC", {}, {}, metrics, {}, {}, {}, 0, None, {}, {})
        figure = reliability_figure([run], "a", "test")
        assert figure is not None
        (trace,) = figure["data"]
        assert trace["mode"] == mode
        assert min(trace["error_y"]["array"]) >= 0
        assert max(trace["error_y"]["arrayminus"]) > 0


def test_epochs_are_counted_in_whole_numbers(reported: Path) -> None:
    for epochs, step in ((2, 1), (30, 4)):
        write_learning(reported / "runs" / "lora", epochs=epochs, kept=1)
        axis = Page(report_on(reported).path).blocks["figures"]["learning-lora-loss"]["layout"]["xaxis"]
        assert (axis["tick0"], axis["dtick"]) == (0, step)


def test_report_says_that_a_training_which_kept_its_start_changed_nothing(reported: Path) -> None:
    write_learning(reported / "runs" / "lora", epochs=3, kept=0)
    assert "Training changed nothing" in Page(report_on(reported).path).text
    write_learning(reported / "runs" / "lora", epochs=3, kept=2)
    assert "Training changed nothing" not in Page(report_on(reported).path).text


def test_no_recording_has_more_annotated_time_than_it_is_long(reported: Path) -> None:
    spans = {"ventilation": [[0, 9_000_000]], "suction": [[0, 12_000_000]]}
    predicted = {label: [[0, 9_000_000, 0.5]] for label in spans}
    write_prediction(reported, "short.mp4", predicted, spans, duration_us=9_000_000)
    page = report_on(reported).path.read_text(encoding="utf-8")
    row = page[page.index("short.mp4</bdi></button>") :].split("</tr>")[0]
    assert re.findall(r'data-value="([\d.]+)"', row)[:3] == ["9.0", "9.0", "9.0"]


def test_report_shows_every_comparison_with_its_adjusted_p_value(reported: Path) -> None:
    one = {
        "against": "/x/train/bundle",
        "difference": 0.1,
        "difference_ci95": [0.02, 0.2],
        "p_value": 0.03,
        "p_holm": 0.06,
    }
    both = [one, {**one, "against": "/x/lora/bundle", "difference": -0.2}]
    write_json(reported / "runs" / "tune" / "test_comparison.json", {**one, "comparisons": both})
    text = Page(report_on(reported).path).text
    assert "against train on the same clips: difference of macro-F1 +0.100" in text
    assert "against lora on the same clips: difference of macro-F1 -0.200" in text
    assert text.count("0.06 adjusted for all comparisons (Holm)") == 2


def test_report_shows_how_far_the_score_depends_on_rule_prevalence_and_cost(reported: Path) -> None:
    text = Page(reported / "runs" / "report.html").text
    assert "any time of it, as here 0.50 0.40 to 0.60 27" in text
    assert "are predicted together in 3 of 168 clips" in text
    assert re.search(
        r"labels of clips.csv are not those of the annotation files \(\S+: [0-9]+ clips in the table, 9", text
    )
    for path in (reported / "runs").glob("*/test_metrics.json"):
        of_table = {label: one["support"] for label, one in json.loads(path.read_text())["per_class"].items()}
        edit(path, overlap_sensitivity=[{"share": 0.5, "own": True, "macro_f1": 0.5, "support": of_table}])
    assert "not those of the annotation files" not in Page(report_on(reported).path).text
    kept = [{"labels": ["ventilation", "suction"], "clips": 0, "of": 168, "kept": True}]
    edit(reported / "runs" / "tune" / "test_metrics.json", exclusive_violations=kept)
    assert "ventilation, suction are never predicted together: each clip keeps" in Page(report_on(reported).path).text
    for title in ("If another share of a clip", "Where a label is rarer", "Is it worth acting on?"):
        shown = text[text.index(title) :]
        assert "How to read this." in shown[:3000], title
    for name in ("overlap_sensitivity", "prevalence_shift", "decision_curves", "exclusive_violations"):
        for damage in (3, [3], {"a": 3}, [{}]):
            edit(reported / "runs" / "tune" / "test_metrics.json", **{name: damage})
            report_on(reported)
