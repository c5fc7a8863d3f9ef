"""The demo, whole: it learns above chance, shuffled labels score at chance, a second run computes nothing."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import format_table, read_table
from featurecache.workflow.demo import make_demo
from heads.sections import SECTIONS
from tests.commands import run

TRIALS = 8
LABELS = ("baby_visible", "ventilation", "stimulation", "suction")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo of half the recordings and a few trials, and what each of its steps found."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    make_demo(folder, recordings_per_session=1, sections=SECTIONS)
    return folder, run("demo", folder, "--trials", TRIALS)


def test_demo_learns_above_chance_on_unseen_sessions(demo: tuple[Path, dict[str, Any]]) -> None:
    _, steps = demo
    scores, floor = steps["evaluate"], steps["evaluate"]["always_yes"]
    assert scores["macro_f1"] > floor["macro_f1"] + 0.1
    assert scores["macro_f1_ci95"][0] > floor["macro_f1"]
    for label in LABELS:
        prevalence = floor["per_class"][label]["precision"]
        assert scores["per_class"][label]["average_precision"] > 1.25 * prevalence, label


def test_demo_ends_with_a_timeline_of_an_unseen_recording_and_the_report(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, steps = demo
    (timeline,) = steps["predict"]["written"]
    assert (folder / "predictions" / timeline["recording"]).with_suffix(".predicted.eaf").exists()
    table = read_table(folder / "clips.csv")
    assert {clip.split for clip in table.clips if clip.recording == timeline["recording"]} == {"test"}
    assert (folder / "runs/report.html").exists()


def test_demo_reads_annotations_at_their_time_origin(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, steps = demo
    origins = [path.read_text().partition('TIME_ORIGIN="')[2].partition('"')[0] for path in folder.rglob("*.eaf")]
    assert all(int(origin) > 0 for origin in origins)
    assert not steps["clips"]["out_of_range"]
    assert not steps["clips"]["unusable"]


def test_demo_computes_nothing_again_when_it_is_run_twice(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, steps = demo
    again = run("demo", folder, "--trials", TRIALS)
    assert again["extract"]["todo"] == 0
    assert again["tune"]["value"] == steps["tune"]["value"]
    assert again["evaluate"]["macro_f1"] == steps["evaluate"]["macro_f1"]
    assert [one[name]["looks"] for one in (steps, again) for name in ("evaluate", "compare")] == [1] * 4
    assert not any("looks_warning" in row["metrics"] for row in again["compare"]["rows"])


def test_shuffled_labels_score_at_chance(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = shutil.copytree(demo[0], tmp_path / "shuffled")
    shutil.rmtree(folder / "runs")
    table = read_table(folder / "clips.csv")
    targets = [clip.targets for clip in table.clips]
    random.Random(0).shuffle(targets)
    clips = tuple(
        type(clip)(clip.clip_id, clip.recording, clip.session, clip.split, clip.start_us, clip.end_us, target)
        for clip, target in zip(table.clips, targets, strict=True)
    )
    (folder / "clips.csv").write_bytes(format_table(ClipTable(table.labels, clips)))
    run("tune", "--trials", TRIALS, "--config", folder)
    scores = run("evaluate", "--config", folder)
    floor = scores["always_yes"]
    assert scores["macro_f1"] < floor["macro_f1"] + 0.05
    for label in LABELS:
        prevalence = floor["per_class"][label]["precision"]
        assert scores["per_class"][label]["average_precision"] < prevalence + 0.12, label
