"""The report from documents on disk: what it says, what it must not hold, and that anything may be missing."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from featurecache.clips.csv_file import format_table
from featurecache.errors import StudyError
from featurecache.spelling import visible
from heads.report.documents import Run
from heads.report.figures import cooccurrence_figure, plain, reliability_figure, threshold_figure
from heads.report.frames import thumbnails
from heads.report.names import ShownNames
from heads.report.searching import search_figures
from heads.report.summary import all_positive_f1, floor_of
from heads.report.timelines import Difference, Timeline, differences, not_compared
from tests.make_videos import number_in, write_video
from tests.report_samples import (
    LABELS,
    make_table,
    metrics_of,
    report_on,
    timeline_scores,
    write_json,
    write_learning,
    write_prediction,
    write_project,
    write_study,
)

HOSTILE = '<script>alert("1")</script>'
RIGHT_TO_LEFT = "\u05d4\u05d7\u05d9\u05d9\u05d0\u05d4 \u202e\u2067"


class _Page(HTMLParser):
    """What a browser would see: its elements with their attributes, its text, its two JSON blocks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.texts: list[str] = []
        self.blocks: dict[str, Any] = {}
        self._in: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in = (tag, dict(attributes))
        self.elements.append(self._in)

    def handle_data(self, data: str) -> None:
        tag, attributes = self._in
        if tag == "script" and attributes.get("type") == "application/json" and data.strip():
            self.blocks[str(attributes["id"])] = json.loads(data)
        elif tag not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything, and its report; tests work on copies."""
    root = write_project(tmp_path_factory.mktemp("report") / "project")
    report_on(root)
    return root


@pytest.fixture
def project(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "project"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what it says -----------------------------------------------------------------------------------


def test_report_says_what_was_found_and_how_sure_it_is(written: Path) -> None:
    page = _Page(written / "runs" / "report.html")
    metrics = json.loads((written / "runs" / "tune" / "test_metrics.json").read_text())
    low, high = metrics["macro_f1_ci95"]
    assert f"{metrics['macro_f1']:.2f}" in page.text
    assert f"95% CI {low:.2f} to {high:.2f}" in page.text
    assert f"The all-positive baseline, every label in every clip, reaches {floor_of(metrics):.2f}" in page.text
    assert "The test split was evaluated 2 times" in page.text
    assert "ventilation 0.5, stimulation 0.5, suction 0.5" in page.text
    assert page.text.count("How to read this.") >= 12


def test_report_has_every_figure_when_every_document_is_there(written: Path) -> None:
    figures = _Page(written / "runs" / "report.html").blocks["figures"]
    panels = {f"{kind}-{at}" for kind in ("pr", "reliability", "threshold", "decision") for at in range(len(LABELS))}
    search = {f"search-tune-{kind}" for kind in ("history", "importances", "parallel")}
    assert set(figures) == panels | search | {"macro", "cooccurrence", "sessions"}
    (bars,) = figures["search-tune-importances"]["data"]
    assert (bars["y"], bars["x"]) == (["dropout", "learning_rate"], [0.375, 0.625]), "as tune printed them"


def test_methods_stand_in_the_order_of_the_papers_table(written: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(written, tmp_path / "project"))
    metrics = root / "runs" / "tune" / "test_metrics.json"
    for folder in ("lora", "timesformer"):
        (root / "runs" / folder).mkdir()
        shutil.copy(metrics, root / "runs" / folder)
    assert list(report_on(root).methods) == ["TimeSformer", "FT-LC", "FT-MLP", "FT-C-LoRA"]
    for kind, method in (("attention", "FT-Attention"), ("temporal", "FT-Temporal"), ("other", "train")):
        _edit(root / "runs" / "train" / "best.json", settings={"kind": kind})
        assert set(report_on(root).methods) == {"TimeSformer", "FT-LC", method, "FT-C-LoRA"}


def test_report_counts_how_often_each_head_was_scored(project: Path) -> None:
    page = (project / "runs" / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="methods-table"') :].split("</table>")[0]
    scored = [re.findall(r'data-value="(\d*)"', row)[-1] for row in table.split("<tr")[2:]]
    assert scored == ["", "2", "0"]  # the baseline, `tune`, `train`


def test_report_flags_a_forced_clip_level_split(project: Path) -> None:
    assert "clip-level split" not in _Page(project / "runs" / "report.html").text
    _edit(project / "runs" / "tune" / "test_metrics.json", split_level="clip")
    report_on(project)
    text = _Page(project / "runs" / "report.html").text
    assert "a clip-level split was forced" in text
    assert "clip-level split, biased" in text  # next to the method


def test_report_flags_a_clip_table_whose_splits_cut_sessions(project: Path) -> None:
    table = project / "clips.csv"
    table.write_text(table.read_text().replace("session 1", "session 0"))
    report_on(project)
    assert "a clip-level split was forced" in _Page(project / "runs" / "report.html").text


def test_report_says_why_there_is_no_confidence_interval(project: Path) -> None:
    reason = "an interval needs at least 5 sessions to resample, but test has 2"
    metrics = project / "runs" / "tune" / "test_metrics.json"
    _edit(metrics, macro_f1_ci95=None, macro_f1_ci95_reason=reason, undefined=["suction"])
    report_on(project)
    text = _Page(project / "runs" / "report.html").text
    assert reason in text
    assert "no confidence interval" in text
    assert "Without a positive clip in the test split, and so without a score: \u2068suction\u2069" in text


def test_report_calls_a_validation_score_too_kind_when_nothing_was_evaluated(project: Path) -> None:
    for run in ("tune", "train"):
        (project / "runs" / run / "test_metrics.json").unlink()
    report_on(project)
    text = _Page(project / "runs" / "report.html").text
    assert "on the validation split" in text
    assert "it is optimistically biased" in text
    assert "featurecache evaluate" in text


def test_report_shows_leave_one_session_out_and_the_paired_comparison(project: Path) -> None:
    metrics = json.loads((project / "runs" / "tune" / "test_metrics.json").read_text())
    write_json(project / "runs" / "tune" / "leave_one_session_out_metrics.json", metrics | {"macro_f1": 0.4321})
    comparison = {
        "against": "/home/me/runs/train/bundle",
        "difference": 0.1,
        "difference_ci95": [0.02, 0.2],
        "p_value": 0.03,
    }
    write_json(project / "runs" / "tune" / "test_comparison.json", comparison)
    report_on(project)
    text = _Page(project / "runs" / "report.html").text
    assert "each session left out once" in text
    assert "0.43" in text
    assert "difference of macro-F1 +0.100 (95% CI +0.020 to +0.200), p = 0.03" in text
    assert "/home/me" not in text


def test_report_shows_what_compare_found_beside_the_scores_and_what_is_missing(project: Path) -> None:
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
    write_json(project / "runs" / "compare.json", {"rows": [row, damaged, "row"], "missing": missing})
    report_on(project)
    text = " ".join(_Page(project / "runs" / "report.html").text.split())
    for shown in ("-0.123", "-0.200 to +0.010", "0.04", "0.31", "1.5", "TimeSformer is missing: featurecache finetune"):
        assert shown in text


def test_differences_are_listed_longest_first_with_their_times(written: Path) -> None:
    page = _Page(written / "runs" / "report.html")
    listed = [a["data-goto"].split() for tag, a in page.elements if tag == "button" and a.get("data-goto")]
    lengths = [int(end) - int(start) for _, start, end in listed]
    assert len(lengths) > 10
    assert lengths == sorted(lengths, reverse=True)
    timeline = page.blocks["timelines-data"][int(listed[0][0])]
    borders = {time for label in timeline["labels"] for time in label["differ"]}
    assert {int(time) for time in listed[0][1:]} <= borders


# --- what it must not hold --------------------------------------------------------------------------


def test_report_forbids_every_connection_and_runs_only_its_own_programs(written: Path) -> None:
    page = _Page(written / "runs" / "report.html")
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/=]+'", source) for source in rules["script-src"].split())
    assert not any(scheme in str(policy) for scheme in ("http", "unsafe-eval", "*", "blob: data: http"))
    assert not [a for _, a in page.elements if a.get("src") or re.match("https?:|//", a.get("href") or "")]


def test_report_escapes_names_from_annotations_and_files(tmp_path: Path) -> None:
    labels = (HOSTILE, RIGHT_TO_LEFT, "a&b")
    recordings = (f"S1/{HOSTILE.replace('/', '')}.mp4", f"S2/{RIGHT_TO_LEFT}.mp4", 'S3/"onload="x.mp4')
    root = write_project(tmp_path / "p", labels=labels, recordings=recordings)
    report_on(root, prompt=f"{HOSTILE} <!-- <video>")
    page = _Page(root / "runs" / "report.html")
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == 4  # two JSON blocks, plotly, the page's own
    assert not [a for _, a in page.elements if "onload" in a]
    assert [one["name"] for one in page.blocks["timelines-data"][0]["labels"]] == list(map(visible, labels))
    assert HOSTILE in page.text
    assert page.elements.count(("bdi", {})) > 20
    ticks = page.blocks["figures"]["cooccurrence"]["data"][0]["x"]
    assert ticks[0] == plain(HOSTILE) != HOSTILE  # plotly reads markup


def test_nothing_in_a_name_acts_on_the_page(tmp_path: Path) -> None:
    """Marks of direction, characters without width, separators and controls of the second range stand as escapes."""
    acting = "\x9b\u202e\u2066\u2069\u200b\u2028\ufeff"
    labels = (f"x{acting}y", "z")
    root = write_project(tmp_path / "p", labels=labels, recordings=(f"S1/a{acting}.mp4", "S2/b.mp4"))
    (root / "runs" / "tune").rename(root / "runs" / f"tune-{acting}")
    report_on(root, prompt=f"{acting} <video>")
    text = (root / "runs" / "report.html").read_text(encoding="utf-8")
    page = _Page(root / "runs" / "report.html")
    program = text.index("<script>", text.index("timelines-data"))
    shown = text[:program].replace("\u2068", "").replace("\u2069", "")  # ours, around names
    assert not [hex(ord(one)) for one in shown if one != "\n" and visible(one) != one]
    assert visible(f"a{acting}.mp4") in page.text
    blocks = json.dumps(page.blocks, ensure_ascii=False)
    assert not set(blocks) & set(acting) - {"\u2069"}
    assert blocks.count("\u2068") == blocks.count("\u2069")
    figures = {str(a["data-figure"]) for _, a in page.elements if a.get("data-figure")}
    assert figures <= set(page.blocks["figures"])


def test_report_holds_no_folder_of_a_recording_and_no_path(tmp_path: Path) -> None:
    recordings = ("ward 7/jane doe/a.mp4", "ward 7/john doe/a.mp4", "ward 8/b.mp4")
    root = write_project(tmp_path / "p", recordings=recordings)
    (root / "failed_clips.csv").write_text(
        "clip_id,recording,start_s,end_s,reason\nx,ward 7/jane doe/a.mp4,0,3,its picture is damaged\n"
    )
    report_on(root)
    text = (root / "runs" / "report.html").read_text()
    for secret in ("ward 7/", "ward 8", str(tmp_path), "/models/secret", "john doe/a"):
        assert secret not in text, secret
    assert "a.mp4 (jane doe)" in text  # told apart by the nearest folder only
    assert "its picture is damaged" in text


def test_report_holds_frames_only_when_asked(project: Path) -> None:
    (project / "videos" / "S1").mkdir(parents=True)
    write_video(project / "videos" / "S1" / "a.mp4", count=600, fps=5)
    assert report_on(project).frames == 0
    page = _Page(project / "runs" / "report.html")
    assert "img" not in {tag for tag, _ in page.elements}
    assert "holds frames of the recordings" not in page.text
    report = report_on(project, with_frames=True)
    page = _Page(project / "runs" / "report.html")
    pictures = [str(a["src"]) for tag, a in page.elements if tag == "img"]
    assert len(pictures) == report.frames > 0
    assert all(picture.startswith("data:image/jpeg;base64,/9j/") for picture in pictures)
    assert "This file holds frames of the recordings" in page.text
    shutil.rmtree(project / "videos")
    report = report_on(project, with_frames=True)
    assert report.frames == 0
    assert any("frames of a.mp4: it is not in the folder" in problem for problem in report.problems)


def test_a_frame_is_the_one_shown_in_the_middle_of_its_difference(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", count=600, fps=5, options={"g": "100"})
    shutil.copy(videos / "a.mp4", tmp_path)
    found = [Difference("a.mp4", "x", "missed", at * 1_000_000, (at + 1) * 1_000_000) for at in (0, 59, 107)]
    not_there = [Difference(name, "x", "missed", 0, 1) for name in ("../a.mp4", str(tmp_path / "a.mp4"), "b.mp4")]
    (videos / "torn.mp4").write_bytes((videos / "a.mp4").read_bytes()[:500])
    torn = [Difference("torn.mp4", "x", "extra", at, at + 1) for at in (0, 5)]
    pictures, without = thumbnails([*not_there, *torn, *found], videos)
    assert [picture.of for picture in pictures] == found
    assert [line.split(":")[0] for line in without] == [f"frames of {name}.mp4" for name in ("a", "a", "b", "torn")]
    assert "not in the folder of recordings" in without[2]
    assert "cannot be opened or decoded" in without[3]
    assert str(tmp_path) not in "".join(without)
    for picture in pictures:
        with av.open(io.BytesIO(picture.jpeg)) as file:
            pixels = next(file.decode(video=0)).reformat(176, 96).to_ndarray(format="rgb24")
        assert (picture.width_px, picture.height_px) == (320, 174)
        assert number_in(pixels) == (picture.of.start_us + 500_000) * 5 // 1_000_000


def test_report_is_for_this_user_alone(written: Path) -> None:
    assert (written / "runs" / "report.html").stat().st_mode & 0o777 == 0o600


# --- anything may be missing or damaged -------------------------------------------------------------


def test_report_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    report = report_on(tmp_path)
    text = _Page(report.path).text
    assert not report.problems
    for command in ("extract", "tune", "clips", "predict", "evaluate"):
        assert f"featurecache {command}" in text, command


@pytest.mark.parametrize(
    "name",
    [
        "best.json",
        "bundle/bundle.json",
        "validation_metrics.json",
        "test_metrics.json",
        "test_timelines.json",
        "study.journal",
    ],
)
@pytest.mark.parametrize("content", [None, b"[1", b'{"macro_f1": "high", "per_class": [], "curves": 3}'])
def test_report_of_a_damaged_run_keeps_the_others(project: Path, name: str, content: bytes | None) -> None:
    path = project / "runs" / "tune" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    report = report_on(project)
    assert "FT-MLP" in report.methods
    assert bool(report.problems) == (content is not None)
    assert all(str(project) not in problem for problem in report.problems)


def _without_its_start(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = re.sub(rb'"datetime_start":"[^"]*"', b'"datetime_start":null', lines[1])
    journal.write_bytes(b"".join(lines))


def _with_an_unknown_record(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 77}\n')


def _with_zeros_inside(journal: Path) -> None:
    content = journal.read_bytes()
    journal.write_bytes(content[:2000] + bytes(50) + content[2050:])


def _as_a_folder(journal: Path) -> None:
    journal.unlink()
    journal.mkdir()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_without_its_start, "ValueError: `datetime_start` is supposed to be set"),
        (_with_an_unknown_record, "AssertionError"),
        (_with_zeros_inside, "JSONDecodeError: "),
        (_as_a_folder, "it is no file"),
    ],
)
def test_report_names_a_damaged_journal_and_leaves_its_search_out(project: Path, damage: Any, found: str) -> None:
    damage(project / "runs" / "tune" / "study.journal")
    report = report_on(project)
    (problem,) = report.problems
    assert problem.startswith("tune/study.journal: a study's journal must be readable, but ")
    assert found in problem
    assert "\n" not in problem
    assert str(project) not in problem
    page = _Page(report.path)
    assert not [name for name in page.blocks["figures"] if name.startswith("search")]
    assert {"macro", "cooccurrence"} <= page.blocks["figures"].keys()


@pytest.mark.parametrize(
    "damage",
    [{"macro_f1": "high"}, {"macro_f1_ci95": [0.1, "x"]}, {"per_class": {"a": {"f1": "b"}}}, {"per_class": {"a": 1}}],
)
def test_report_leaves_a_run_out_of_the_methods_when_its_scores_are_no_numbers(
    project: Path, damage: dict[str, Any]
) -> None:
    whole = report_on(project).methods
    _edit(project / "runs" / "tune" / "test_metrics.json", **damage)
    report = report_on(project)
    assert len(report.methods) == len(whole) - 1
    assert [problem for problem in report.problems if problem.startswith("tune/test_metrics.json: ")]


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"recording": 3}', b'{"recording": {"content": [], "name": 1}}'])
def test_report_names_a_prediction_that_is_none(project: Path, content: bytes) -> None:
    (project / "predictions" / "x.predicted.json").write_bytes(content)
    report = report_on(project)
    assert report.recordings == 3
    (problem,) = report.problems
    assert "x.predicted.json" in problem


@pytest.mark.parametrize("scored", [3, [None], [{}], [{"recording": {"content": "a", "duration_us": float("inf")}}]])
def test_report_names_a_scored_timeline_that_is_none(project: Path, scored: Any) -> None:
    _edit(project / "runs" / "tune" / "test_timelines.json", recordings=scored)
    (problem,) = report_on(project).problems
    assert "test_timelines.json" in problem


def test_report_names_what_it_leaves_out_of_a_comparison_and_the_log_of_looks(project: Path) -> None:
    (project / "runs" / "tune" / "test_comparison.json").write_text('{"difference": "more"}')
    with (project / "runs" / "test_looks.jsonl").open("a") as log:
        log.write("{\n[]\n")
    report = report_on(project)
    assert report.problems == (
        "test_looks.jsonl: 2 of its lines cannot be read, and each counts as a test-set evaluation",
        "tune/test_comparison.json: its difference is not a number",
    )
    assert "The test split was evaluated 4 times" in _Page(report.path).text


@pytest.mark.parametrize(
    ("learning", "reason"),
    [
        ({"epochs": 3}, "it has no list of epochs"),
        ({"epochs": [1]}, "it has no list of epochs"),
        ({"epochs": [{"epoch": "a"}]}, "its epochs are not counted"),
        ({"epochs": [{"epoch": 0}, {"epoch": 0}]}, "its epochs are not counted"),
        ({"epochs": [{"epoch": 0, "train_loss": float("nan")}]}, "its losses and scores are not all numbers"),
        ({"epochs": [{"epoch": 0}], "kept_epoch": 2}, "the selected epoch is none of its epochs"),
        ({}, "it holds an empty JSON object"),
    ],
)
def test_report_names_learning_curves_that_are_none(project: Path, learning: Any, reason: str) -> None:
    write_json(project / "runs" / "train" / "learning.json", learning)
    report = report_on(project)
    assert report.problems == (f"train/learning.json: {reason}",)
    assert not [id for id in _Page(report.path).blocks["figures"] if id.startswith("learning")]


def test_report_draws_losses_and_macro_f1_over_epochs_with_the_kept_one_marked(project: Path) -> None:
    write_learning(project / "runs" / "lora", epochs=5, kept=3)
    page = _Page(report_on(project).path)
    losses, scores = (page.blocks["figures"][f"learning-lora-{kind}"] for kind in ("loss", "macro"))
    train, validation = losses["data"]
    assert train["x"] == validation["x"] == [0, 1, 2, 3, 4, 5]
    assert train["y"][0] is None
    assert min(validation["y"]) == validation["y"][3]
    assert max(scores["data"][0]["y"]) == scores["data"][0]["y"][3]
    for figure in (losses, scores):
        (kept,) = figure["layout"]["shapes"]
        assert kept["x0"] == kept["x1"] == 3
    assert "lora : 5 epochs, epoch 3 selected" in page.text


def test_report_says_in_words_what_one_epoch_did(project: Path) -> None:
    write_learning(project / "runs" / "lora", epochs=1, kept=0)
    page = _Page(report_on(project).path)
    assert not [id for id in page.blocks["figures"] if id.startswith("learning")]
    assert "validation loss 0.5000 before and 0.5100 after it" in page.text
    assert "macro-F1 at 0.5 0.7000 before and 0.6800 after" in page.text
    assert "1 epoch, epoch 0 selected" in page.text


def test_report_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    for out in (Path("/proc/report.html"), tmp_path):  # nobody can write there; a folder
        with pytest.raises(OSError) as failed:
            report_on(tmp_path / "project", out)
        assert failed.value.filename == str(out)
        assert "tmp" not in str(failed.value).replace(str(out), "")


def test_report_draws_a_recording_without_annotation(project: Path) -> None:
    write_prediction(project, "new.mp4", {"ventilation": [[0, 10, 0.7]]}, None, duration_us=50)
    assert report_on(project).recordings == 4
    page = _Page(project / "runs" / "report.html")
    (drawn,) = [one for one in page.blocks["timelines-data"] if one["name"] == "new.mp4"]
    assert drawn["labels"] == [
        {"name": "ventilation", "annotated": None, "predicted": [0, 10], "confidence": [0.7], "differ": []}
    ]


# --- its parts --------------------------------------------------------------------------------------

_SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


def _covered(spans: Any) -> set[int]:
    return {time for start, end in spans for time in range(start, end)}


@given(annotated=_SPANS, predicted=_SPANS, compared=_SPANS)
def test_differences_are_the_compared_time_of_exactly_one_side(annotated: Any, predicted: Any, compared: Any) -> None:
    from featurecache.clips.clip import union_of

    scope = [(start, min(end, 40)) for start, end in union_of(compared) if start < 40]
    timeline = Timeline("r", "", "", 40, {"a": predicted}, {"a": []}, scope, {"a": annotated})
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


def test_threshold_figure_peaks_at_the_f1_of_the_metrics(written: Path) -> None:
    from heads.report.documents import read_documents

    documents = read_documents(
        runs=written / "runs", clips=written / "none", cache=written / "none", failures=written / "none"
    )
    (run,) = (run for run in documents.runs if run.name == "tune")
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


def test_the_report_shows_how_well_annotators_agree_and_survives_a_broken_file(project: Path) -> None:
    assert "Agreement of annotators" not in report_on(project).path.read_text(encoding="utf-8")
    write_json(project / "runs" / "agreement.json", timeline_scores(["ventilation"]))
    text = report_on(project).path.read_text(encoding="utf-8")
    shown = text[text.index("<h3>Agreement of annotators") :]
    assert "on 2 recordings that both annotated" in shown
    assert "ventilation" in shown[: shown.index("</table>")]
    (project / "runs" / "agreement.json").write_text("[1")
    broken = report_on(project)
    assert any("agreement.json" in problem for problem in broken.problems)
    assert "Agreement of annotators" not in broken.path.read_text(encoding="utf-8")


# --- activities -------------------------------------------------------------------------------------


def test_report_begins_with_what_each_activity_took_annotated_beside_predicted(project: Path) -> None:
    shutil.rmtree(project / "predictions")
    for at in range(4):
        recording = f"T{at}/a.mp4"
        predicted = {"ventilation": [[5_000_000, (15 + at) * 1_000_000, 0.9]], "suction": []}
        annotated = {"ventilation": [[4_000_000, 10_000_000], [20_000_000, 24_000_000]], "suction": []}
        write_prediction(project, recording, predicted, annotated, duration_us=60_000_000)
    table = project / "clips.csv"
    rows = make_table(("ventilation", "suction"), [f"T{at}/a.mp4" for at in range(4)], 20, ("test",))
    table.write_bytes(format_table(rows))
    report = report_on(project)
    page = _Page(report.path)
    ids = [attributes.get("id") for tag, attributes in page.elements if tag == "section"]
    assert ids[:3] == ["summary", "activities", "methods"]
    shown = page.text[page.text.index("Seconds and bouts") : page.text.index("Each recording")]
    assert "ventilation 40 s 46 s +1.5 s -0.6 to +3.6 -1 to +4 s each ±4 8 4" in shown
    assert "ventilation 4.0 s 5.0 s +1.0 s +1.0 to +1.0 +1.0 to +1.0 s 4 0 0" in shown
    assert "a study of ten sessions" in page.text
    assert "4 sessions, 4 recordings, 4 minutes of video; 80 of 80 clips are annotated" in page.text
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


def test_report_shows_the_annotators_agreement_as_the_ceiling(project: Path) -> None:
    assert "kappa of annotators" not in _Page(report_on(project).path).text
    write_json(project / "runs" / "agreement.json", timeline_scores(LABELS))
    assert "kappa of annotators" in _Page(report_on(project).path).text


# --- what was wrong or unreadable -------------------------------------------------------------------


def test_best_trials_of_the_parallel_coordinates_are_those_of_the_highest_scores(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    write_study(journal, 40, numeric_choice=True)
    lines = search_figures(journal)["parallel"]["data"]
    study = optuna.load_study(study_name="tune", storage=JournalStorage(JournalFileBackend(str(journal))))
    of_best = sorted((trial.value for trial in study.trials), reverse=True)[:4]
    coloured = [float(line["customdata"][0][1]) for line in lines if line["line"]["color"] == "@c1"]
    assert sorted(coloured, reverse=True) == pytest.approx(of_best, rel=0.01)  # shown to three digits
    assert lines[-1]["y"][0] == 1.0  # the best is drawn last, on top


def test_no_method_below_the_all_positive_baseline_is_set_in_bold(project: Path) -> None:
    for run in ("tune", "train"):
        metrics = json.loads((project / "runs" / run / "test_metrics.json").read_text())
        for scores in metrics["per_class"].values():
            scores["f1"] = 0.0
        _edit(project / "runs" / run / "test_metrics.json", per_class=metrics["per_class"], macro_f1=0.0)
    page = report_on(project).path.read_text(encoding="utf-8")
    assert 'class="best"' not in page
    assert "the score is not above it. Nothing shows that the head learned." in _Page(report_on(project).path).text


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


def test_epochs_are_counted_in_whole_numbers(project: Path) -> None:
    for epochs, step in ((2, 1), (30, 4)):
        write_learning(project / "runs" / "lora", epochs=epochs, kept=1)
        axis = _Page(report_on(project).path).blocks["figures"]["learning-lora-loss"]["layout"]["xaxis"]
        assert (axis["tick0"], axis["dtick"]) == (0, step)


def test_report_says_that_a_training_which_kept_its_start_changed_nothing(project: Path) -> None:
    write_learning(project / "runs" / "lora", epochs=3, kept=0)
    assert "Training changed nothing" in _Page(report_on(project).path).text
    write_learning(project / "runs" / "lora", epochs=3, kept=2)
    assert "Training changed nothing" not in _Page(report_on(project).path).text


def test_no_recording_has_more_annotated_time_than_it_is_long(project: Path) -> None:
    spans = {"ventilation": [[0, 9_000_000]], "suction": [[0, 12_000_000]]}
    predicted = {label: [[0, 9_000_000, 0.5]] for label in spans}
    write_prediction(project, "short.mp4", predicted, spans, duration_us=9_000_000)
    page = report_on(project).path.read_text(encoding="utf-8")
    row = page[page.index("short.mp4</bdi></button>") :].split("</tr>")[0]
    assert re.findall(r'data-value="([\d.]+)"', row)[:3] == ["9.0", "9.0", "9.0"]


def test_report_shows_every_comparison_with_its_adjusted_p_value(project: Path) -> None:
    one = {
        "against": "/x/train/bundle",
        "difference": 0.1,
        "difference_ci95": [0.02, 0.2],
        "p_value": 0.03,
        "p_holm": 0.06,
    }
    both = [one, {**one, "against": "/x/lora/bundle", "difference": -0.2}]
    write_json(project / "runs" / "tune" / "test_comparison.json", {**one, "comparisons": both})
    text = _Page(report_on(project).path).text
    assert "against train on the same clips: difference of macro-F1 +0.100" in text
    assert "against lora on the same clips: difference of macro-F1 -0.200" in text
    assert text.count("0.06 adjusted for all comparisons (Holm)") == 2


def test_report_shows_how_far_the_score_depends_on_rule_prevalence_and_cost(project: Path) -> None:
    text = _Page(project / "runs" / "report.html").text
    assert "any time of it 0.50 0.40 to 0.60 27" in text
    assert "are predicted together in 3 of 168 clips" in text
    kept = [{"labels": ["ventilation", "suction"], "clips": 0, "of": 168, "kept": True}]
    _edit(project / "runs" / "tune" / "test_metrics.json", exclusive_violations=kept)
    assert "ventilation, suction are never predicted together: each clip keeps" in _Page(report_on(project).path).text
    for title in ("If another share of a clip", "Where a label is rarer", "Is it worth acting on?"):
        shown = text[text.index(title) :]
        assert "How to read this." in shown[:3000], title
    for name in ("overlap_sensitivity", "prevalence_shift", "decision_curves", "exclusive_violations"):
        for damage in (3, [3], {"a": 3}, [{}]):
            _edit(project / "runs" / "tune" / "test_metrics.json", **{name: damage})
            report_on(project)
