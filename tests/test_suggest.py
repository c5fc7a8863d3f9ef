"""What to annotate next: the order, and the files for the annotators."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache import make_clips
from featurecache.annotations import Interval, LabelRule, marks, read_eaf, write_eaf
from featurecache.clips.csv_file import read_table
from featurecache.errors import AnnotationError, TrainingDataError
from featurecache.project.settings import Project, open_project
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.models import Front, LinearHead
from heads.scoring.acquisition import label_doubt, suggested_order
from heads.settings import HeadSettings
from heads.workflow.suggesting import newest_suggestions, suggest
from tests.commands import invoke, run
from tests.projects import LABELS, fill_cache, make_project, make_table

S, WIDTH, REQUESTS = 1_000_000, 16, "please annotate"
UNLABELLED = ("S1.mp4", "S4.mp4", "S6.mp4")


def test_doubt_is_highest_between_yes_and_no_and_counts_more_of_rare_labels() -> None:
    doubt = label_doubt(np.array([[0.5, 0.5], [0.0, 1.0], [0.5, 0.0], [0.0, 0.5]]), [3, 99])
    np.testing.assert_allclose(doubt, [1, 0, 1 / (1 + 2 / 10), 0.2 / 1.2], atol=1e-6)


@pytest.mark.parametrize(
    ("doubt", "places", "sessions", "expected"),
    [
        ([0.9, 0.1, 0.5], [[0, 1, 0], [0, 0, 1], [0, 0, -1]], "abc", [0, 2, 1]),  # doubt
        ([0.5, 0.5, 0.5], [[1, 0.1, 0], [0, 1, 0], [1, 0, 0]], "abc", [1, 0, 2]),  # far from what is annotated
        ([0.5, 0.49, 0.4], [[0, 1, 0], [0, 1, 0], [0, 0, 1]], "aaa", [0, 2, 1]),  # far from what is chosen
        ([0.5, 0.45, 0.3], [[0, 1, 0], [0.1, -1, 0], [-0.1, 1, 0]], "aab", [0, 2, 1]),  # spread over sessions
    ],
)
def test_stretches_come_by_doubt_and_by_distance_from_what_is_annotated_or_chosen(
    doubt: list[float], places: list[list[float]], sessions: str, expected: list[int]
) -> None:
    vectors = np.array(places, np.float32) / np.linalg.norm(places, axis=1, keepdims=True).astype(np.float32)
    annotated = np.array([[1, 0, 0]], np.float32)
    order = suggested_order(np.array(doubt), vectors, annotated, np.array(list(sessions)), np.ones(3), budget_s=3)
    assert order == expected


def test_a_budget_is_spread_over_sessions_and_ends_when_it_is_used_up() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sessions = np.repeat(["much doubt", "little", "less", "least"], 10)
    doubt = np.repeat([0.9, 0.5, 0.4, 0.3], 10)
    order = suggested_order(doubt, vectors, vectors[:0], sessions, np.full(40, 30.0), budget_s=225)
    assert len(order) == len(set(order)) == 8
    assert set(sessions[order]) == set(sessions)


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Eight sessions of six clips, three without annotation; one of these tests."""
    project = make_project(tmp_path_factory.mktemp("suggest") / "project", tiny_model, sessions=8, clips=6)
    table = project.root / "labels.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith(UNLABELLED)))
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text() + '\n[splits.sessions]\nS6 = "test"\n')
    project = open_project(project.root)
    make_table(project)
    clips = read_table(project.clips).clips
    draw = np.random.default_rng(0)
    space = fill_cache(project, {clip.clip_id: draw.standard_normal(WIDTH) for clip in clips})
    torch.manual_seed(0)
    head = LinearHead(Front(WIDTH), len(LABELS))
    torch.nn.init.normal_(head.output.weight)
    bundle = Bundle(head, LABELS, np.array([0.5, 0.4]), HeadSettings(), (space,), tool_versions())
    save_bundle(bundle, project.runs / "tune" / "bundle")
    return project


@pytest.fixture
def project(partly: Project, tmp_path: Path) -> Project:
    return open_project(Path(shutil.copytree(partly.root, tmp_path / "project")))


@pytest.mark.parametrize("order", ["random", "doubt", "suggested"])
def test_recordings_without_annotation_are_suggested_but_none_that_tests(project: Project, order: str) -> None:
    document = run("suggest", "--config", project.root, "--order", order)
    assert {one["recording"] for one in document["stretches"]} == {"S1.mp4", "S4.mp4"}
    assert document["unlabelled_s"] == 12
    assert [one["doubt"] is None for one in document["stretches"]] == [order == "random"] * 2
    with Path(document["table"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["start_s"], row["end_s"]) for row in rows] == [("1", "0", "6"), ("2", "0", "6")]
    for path in map(Path, document["documents"]):
        requests = marks(read_eaf(path), LabelRule("tiers", (REQUESTS,)), time_origin_ms=0).intervals
        assert [(one.start_us, one.end_us) for one in requests] == [(0, 6 * S)]
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_random_order_needs_no_features_and_no_bundle_and_each_call_has_a_folder_of_its_own(project: Project) -> None:
    shutil.rmtree(project.cache)
    shutil.rmtree(project.runs)
    first, second = suggest(project, minutes=0.1), suggest(project, minutes=0.1, seed=1)
    assert (first.folder.name, second.folder.name) == ("round-1", "round-2")
    assert len(first.stretches) == 1
    (stretch,) = second.stretches
    assert newest_suggestions(project) == {stretch.recording: [(1, stretch.start_us, stretch.end_us)]}
    second.table.write_text(second.table.read_text().replace(",0,", ",now,"))
    with pytest.raises(AnnotationError, match="Run again: featurecache suggest"):
        newest_suggestions(project)
    assert invoke("suggest", "--config", project.root, "--order", "doubt").exit_code == 1
    assert invoke("suggest", "--config", project.root, "--order", "best").exit_code == 2
    assert invoke("suggest", "--config", project.root, "--bundle", "anywhere").exit_code == 2


def test_the_most_doubtful_recording_comes_first(project: Project) -> None:
    found = suggest(project, order="doubt")
    doubts = [one.doubt or 0 for one in found.stretches]
    assert doubts == sorted(doubts, reverse=True)
    assert all(0 < doubt <= 1 for doubt in doubts)


def test_where_all_is_annotated_nothing_is_suggested(project: Project) -> None:
    project.clips.write_text(re.sub(r",,$", ",0,1", project.clips.read_text(), flags=re.M))
    with pytest.raises(TrainingDataError, match="unlabelled"):
        suggest(project)


def test_stretches_of_a_recording_that_is_annotated_in_part_go_into_a_copy_of_its_document(project: Project) -> None:
    elan = project.root / "elan"
    elan.mkdir()
    own = [Interval(500_000, 2 * S, "ventilation"), Interval(0, 2 * S, "annotated"), Interval(S, 2 * S, "stimulation")]
    for name in ("S0", "S1", "S2"):
        write_eaf(elan / f"{name}.eaf", own, media_name=f"{name}.mp4", time_origin_ms=0)
    settings = project.root / "featurecache.toml"
    text = settings.read_text().replace('"labels.csv"', '"elan"\nannotated_span = "annotated"')
    settings.write_text(text)
    project = open_project(project.root)
    make_clips(project, force=True, redeal=True)
    before = {path: path.read_bytes() for path in elan.iterdir()}
    found = suggest(project, stretch_s=2, minutes=100)
    assert {one.end_us - one.start_us for one in found.stretches} == {2 * S}
    assert not [one for one in found.stretches if one.recording in ("S0.mp4", "S1.mp4") and one.start_us < 2 * S]
    copy = next(path for path in found.documents if path.name == "S1.suggested.eaf")
    assert {"ventilation", "annotated", "stimulation", REQUESTS} == set(read_eaf(copy).tiers)
    assert {path: path.read_bytes() for path in elan.iterdir()} == before
    table = project.clips.read_bytes()
    shutil.copy(copy, elan / "S1.suggested.eaf")  # a copy is no second annotator
    make_clips(project, force=True)
    assert project.clips.read_bytes() == table


def test_a_request_to_annotate_never_becomes_an_annotation(project: Project) -> None:
    found = suggest(project)
    elan = project.root / "elan"
    elan.mkdir()
    own = [Interval(0, 2 * S, "ventilation"), Interval(S, 3 * S, "stimulation")]
    for name in ("S0", "S2", "S3"):
        write_eaf(elan / f"{name}.eaf", own, media_name=f"{name}.mp4")
    for path in found.documents:  # one under its own name, and one saved under the annotators'
        shutil.copy(path, elan / path.name)
        shutil.copy(path, elan / path.name.replace(".suggested", ""))
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace('"labels.csv"', '"elan"'))
    project = open_project(project.root)
    make_clips(project, force=True, redeal=True)
    clips = read_table(project.clips).clips
    assert {clip.recording for clip in clips if clip.labelled} == {"S0.mp4", "S2.mp4", "S3.mp4"}
