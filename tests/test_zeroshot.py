"""`featurecache zeroshot` on a small project: answers are cached, runs are bundles, guards hold."""

import csv
import json
import shutil
import stat
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheNotFoundError
from featurecache.project.settings import open_project
from tests.asked_models import make_llava_next_video
from tests.commands import invoke, run
from tests.processes import start, wait_for
from tests.projects import LABELS, make_project
from tests.zeroshot_projects import rows_of

QUESTION = "user: <video> is there {label} ? assistant:"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was asked by both methods; tests work on copies."""
    root = tmp_path_factory.mktemp("asked")
    project = make_project(root / "project", make_llava_next_video(root / "model"), sessions=7).root
    for label in LABELS:
        path = project / "prompts/zs-b" / f"{label}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"{QUESTION}\n---\nuser: <video> {{label}} ? assistant:\n--- not\nuser: <video> no {{label}} ?\n"
        )
    (project / "prompts/zsc-co").mkdir()
    (project / "prompts/zsc-co/prompt.txt").write_text("user: <video> what happens : {labels} ? {rules} assistant:")
    run("clips", "--config", project)
    for method in ("zs-b", "zsc-co"):
        document = run("zeroshot", method, "--config", project, *(["--samples", 2] if method == "zsc-co" else []))
        assert document["asked"] == 28
    return project


@pytest.fixture
def project(asked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(asked, tmp_path / "project"))


def test_answers_are_a_table_for_people_without_a_recordings_name_and_for_this_user_alone(project: Path) -> None:
    clips = [clip.clip_id for clip in read_table(project / "clips.csv").clips]
    rows = rows_of(project, "zs-b")
    assert [row["clip_id"] for row in rows[::6]] == clips
    assert {(row["label"], row["wording"], row["asks_for"]) for row in rows} == {
        (label, *which) for label in LABELS for which in (("1", "presence"), ("2", "presence"), ("1", "absence"))
    }
    assert all(0 <= float(row["p_yes"]) <= 1 and row["read_as"] in ("yes", "no", "unparsable") for row in rows)
    lists = rows_of(project, "zsc-co")
    assert [row["clip_id"] for row in lists] == clips
    assert {row["greedy_list"] for row in lists} <= {"none", *LABELS, ", ".join(LABELS)}
    for path in (project / "runs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert path.is_dir() or not any(f"S{k}.mp4".encode() in path.read_bytes() for k in range(7)), path
    copied = project / "runs/zeroshot-zs-b/prompts/ventilation.txt"
    assert copied.read_bytes() == (project / "prompts/zs-b/ventilation.txt").read_bytes()


def test_a_second_run_asks_nothing_and_a_changed_question_is_asked_anew(project: Path) -> None:
    again = run("zeroshot", "zs-b", "--config", project)
    assert (again["todo"], again["present"]) == (0, 28)
    path = project / "prompts/zs-b/ventilation.txt"
    path.write_text(path.read_text().replace("is there", "there is"))
    part = run("zeroshot", "zs-b", "--config", project, "--limit", 5)
    assert (part["todo"], part["asked"]) == (5, 5)
    assert "run" not in part, "no score comes of some of the clips"
    assert len({row["clip_id"] for row in rows_of(project, "zs-b")}) == 5
    assert run("zeroshot", "zs-b", "--config", project)["asked"] == 23


def test_a_dry_run_forecasts_and_asks_nothing(project: Path) -> None:
    shutil.rmtree(project / "features.zarr")
    (project / "prompts/zsc-co/other.txt").write_text("<video> ?")
    found = run("zeroshot", "zsc-co", "--config", project, "--dry-run")
    assert found["prompts_unread"] == ["prompts/zsc-co/other.txt is not read: zsc-co reads prompt.txt alone"]
    assert found["forecast"]["clips"] == found["todo"] == 28
    assert found["forecast"]["tflop_per_clip"] > 0
    assert not (project / "features.zarr").exists()


def test_a_killed_run_resumes_and_asks_about_no_saved_clip_again(project: Path) -> None:
    shutil.rmtree(project / "features.zarr")
    settings = project / "featurecache.toml"
    settings.write_text(settings.read_text() + "[extract]\nbatch_size = 1\n")
    running = start("zeroshot", "zs-b", "--config", project, out=project / "zeroshot.out", save_each_s=0.1)
    while saved_clips(project) < 3 and running.is_alive():
        time.sleep(0.05)
    running.kill()
    wait_for(running)
    saved = saved_clips(project)
    assert 3 <= saved < 28
    assert run("zeroshot", "zs-b", "--config", project)["asked"] == 28 - saved
    assert saved_clips(project) == 28


def saved_clips(project: Path) -> int:
    """Clips of which every answer is in the cache."""
    try:
        spaces = FeatureCache.open(open_project(project).cache).spaces
    except CacheNotFoundError:
        return 0
    return min((space.rows for space in spaces), default=0) if len(spaces) == 2 else 0


@pytest.mark.parametrize("method", ["zs-b", "zsc-co"])
def test_a_run_is_evaluated_compared_and_predicted_with_as_any_other(project: Path, method: str) -> None:
    bundle = project / f"runs/zeroshot-{method}/bundle"
    found = run("evaluate", bundle, "--config", project)
    assert found["looks"] == 1
    best = json.loads((bundle.parent / "best.json").read_bytes())
    assert len(best["controls"]["drawn_lists"]) == (2 if method == "zsc-co" else 0)
    assert best["method"] == {"zs-b": "ZS-B", "zsc-co": "ZSC-CO"}[method]
    if method == "zs-b":
        scores = {}
        for row in rows_of(project, method):
            chosen = best["controls"]["chosen"][row["label"]] == f"wording {row['wording']}"
            if chosen and row["asks_for"] == "presence" and row["split"] == "test":
                scores[row["clip_id"], row["label"]] = float(row["p_yes"])
        table = read_table(project / "clips.csv")
        tests = [clip for clip in table.clips if clip.split == "test"]
        for at, label in enumerate(LABELS):
            threshold = found["per_class"][label]["threshold"]
            hits = sum(clip.targets[at] == 1 and scores[clip.clip_id, label] >= threshold for clip in tests)
            assert found["per_class"][label]["recall"] == hits / sum(clip.targets[at] == 1 for clip in tests)
    new = project / "new.mp4"
    shutil.copyfile(project / "videos/S0.mp4", new)
    predicted = run("predict", new, "--bundle", bundle, "--config", project, "--out", project / "out")
    assert predicted["extracted"] > 0, "clips between those of the table are asked about"
    for refused in (["evaluate", bundle, "--leave-one-session-out"], ["lora-finetune", "--bundle", bundle]):
        assert best["method"] in run(*refused, "--config", project, code=1)["error"]["message"]
    assert run("report", "--config", project)["problems"] == []


def test_labels_can_be_left_out_and_the_run_scores_those_that_were_asked_about(project: Path) -> None:
    settings = project / "featurecache.toml"
    settings.write_text(settings.read_text() + f"[timeline]\nexclusive = [{list(LABELS)}]\n")
    found = run("zeroshot", "zsc-co", "--labels", "stimulation", "--config", project)
    assert found["asked"] == 28
    assert found["run"]["labels"] == ["stimulation"]
    scored = run("evaluate", project / "runs/zeroshot-zsc-co/bundle", "--config", project)
    assert list(scored["per_class"]) == ["stimulation"]
    bundle = project / "runs/zeroshot-zsc-co/bundle"
    assert run("predict", project / "videos/S1.mp4", "--bundle", bundle, "--config", project)["written"]


def test_without_annotations_a_timeline_comes_and_says_that_nobody_knows_how_good_it_is(project: Path) -> None:
    settings = project / "featurecache.toml"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith(("annotations =", "labels ="))]
    settings.write_text("\n".join(kept))
    run("clips", "--force", "--config", project)
    assert read_table(project / "clips.csv").labels == ()
    arguments = ["zeroshot", "zs-b", "--labels", ",".join(LABELS), "--config", str(project)]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "how good the answers are is unknown" in result.stderr
    bundle = project / "runs/zeroshot-zs-b/bundle"
    assert run("predict", project / "videos/S0.mp4", "--bundle", bundle, "--config", project)["written"]
    nothing = CliRunner().invoke(cli.app, ["zeroshot", "zs-b", "--config", str(project)], env={"COLUMNS": "500"})
    assert nothing.exit_code == 2
    assert "without annotations, name any" in " ".join(nothing.output.split())


def test_what_was_said_of_a_withdrawn_recording_goes_with_it(project: Path) -> None:
    content = read_table(project / "clips.csv").clips[0].content
    found = run("cache", "forget", "S0.mp4", "--everything", "--config", project)
    assert found["rows"] == 4 * 4, "two taps of each method"
    assert {"runs/zeroshot-zs-b/answers.csv", "runs/zeroshot-zsc-co/answers.csv"} <= set(found["files_removed"])
    run("zeroshot", "zs-b", "--config", project)
    assert not any(row["clip_id"].startswith(content) for row in rows_of(project, "zs-b"))


WRONG = {
    "no such method": (["zs-c"], 2, "must be one of zs-b, zsc-co"),
    "no such label": (["zs-b", "--labels", "ventilatoin"], 2, "'ventilatoin' is none"),
    "samples of yes and no": (["zs-b", "--samples", "2"], 2, "--samples draws lists"),
}


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG.values(), ids=WRONG)
def test_wrong_requests_are_named_before_a_model_is_loaded(
    project: Path, arguments: list[str], code: int, said: str
) -> None:
    result = CliRunner().invoke(cli.app, ["zeroshot", *arguments, "--config", str(project)], env={"COLUMNS": "500"})
    assert result.exit_code == code
    assert said in " ".join(result.output.split())


def test_a_model_that_knows_no_words_is_refused(project: Path, tmp_path: Path) -> None:
    from tests.tiny_families import make_timesformer

    settings = project / "featurecache.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("model =")]
    model = make_timesformer(tmp_path / "timesformer")
    settings.write_text("\n".join(lines).replace("[features]", f'[features]\nmodel = "{model}"'))
    result = CliRunner().invoke(cli.app, ["zeroshot", "zs-b", "--config", str(project)])
    assert result.exit_code == 1
    assert "needs a video language model" in result.stderr


def test_compare_scores_all_runs_in_one_evaluation_and_says_what_makes_the_missing_rows(project: Path) -> None:
    run("extract", "--config", project)
    run("tune", "--trials", 2, "--config", project)
    run("zeroshot", "zsc-co", "--labels", "stimulation", "--config", project)
    shutil.copytree(project / "runs/tune", project / "runs/copy")
    (project / "runs/broken/bundle").mkdir(parents=True)
    (project / "runs/broken/bundle/bundle.json").write_text("{")
    found = run("compare", "--config", project, code=3)
    assert [(row["run"], row["method"]) for row in found["rows"]] == [
        ("zeroshot-zsc-co", "ZSC-CO"),
        ("zeroshot-zs-b", "ZS-B"),
        ("copy", "FT-LC"),
    ]
    assert set(found["left_out"]) == {"broken", "tune"}
    assert "same bundle as copy" in found["left_out"]["tune"]
    assert found["missing"] == {
        "TimeSformer": "featurecache finetune",
        "ZSC-J": "featurecache zeroshot zsc-j",
        "FT-C-LoRA": "featurecache lora-finetune",
    }
    assert found["looks"] == 1
    looks = (project / "runs/test_looks.jsonl").read_text().splitlines()
    assert len({json.loads(line)["look"] for line in looks}) == 1
    whole = [row for row in found["rows"] if len(row["metrics"]["per_class"]) == 2]
    best = max(whole, key=lambda row: row["metrics"]["macro_f1"])
    assert best["difference"] is None
    for row in found["rows"]:
        assert row["seconds_per_clip"] > 0
        written = json.loads((project / "runs" / row["run"] / "test_metrics.json").read_bytes())
        assert written["macro_f1"] == row["metrics"]["macro_f1"]
    part = found["rows"][0]
    assert part["difference"]["labels"] == ["stimulation"]
    f1 = [row["metrics"]["per_class"]["stimulation"]["f1"] for row in (part, best)]
    assert part["difference"]["difference"] == pytest.approx(f1[0] - f1[1])
    with (project / "runs/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    baselines = ["all-positive baseline", "nearest neighbours", "ridge regression"]
    missing = ["TimeSformer", "ZSC-J", "FT-C-LoRA"]
    assert [row["method"] for row in rows] == ["ZSC-CO", "ZS-B", "FT-LC", *baselines, *missing]
    assert rows[6]["run"] == "missing"
    assert rows[6]["made_by"] == "featurecache finetune"
    assert "FT-C-LoRA & -- & -- & -- & --" in (project / "runs/compare.tex").read_text()
    result = CliRunner().invoke(cli.app, ["compare", "--config", str(project)])
    assert "FT-C-LoRA: missing; make it: featurecache lora-finetune" in result.stdout


def test_compare_without_a_run_says_how_to_make_one(project: Path) -> None:
    shutil.rmtree(project / "runs")
    result = CliRunner().invoke(cli.app, ["compare", "--config", str(project)])
    assert result.exit_code == 1
    assert "there is no run. Make one: featurecache tune" in result.stderr
