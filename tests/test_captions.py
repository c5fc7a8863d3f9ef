"""`featurecache zeroshot zsc-j` on a small project: captions and judge's answers are kept apart, and none is lost."""

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from featurecache import FeatureCache
from featurecache.project.settings import open_project
from heads.zeroshot.prompts import CAPTION_WORDING
from tests.commands import run
from tests.judges import Served, chat_answer, make_judge, served
from tests.processes import start, wait_for
from tests.projects import LABELS
from tests.zeroshot_projects import CLIPS, rows_of, set_up


def rule(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What the server says: 1 of a label in a caption with the word "hand", as a decision alone."""
    question = request["messages"][-1]["content"]
    return 200, chat_answer("1." if "hand" in question.split('"')[1] and "ventilation" in question else "0.")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(rule) as found:
        yield found


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, captioner: Path, server: Served) -> Path:
    project = set_up(tmp_path_factory.mktemp("judged") / "project", captioner, server.address)
    server.asked.clear()
    document = run("zeroshot", "zsc-j", "--config", project)
    assert document["asked"] == CLIPS
    return project


@pytest.fixture
def project(judged: Path, tmp_path: Path, server: Served) -> Iterator[Path]:
    server.asked.clear()
    server.behave = rule
    yield Path(shutil.copytree(judged, tmp_path / "project"))
    server.behave = rule


def spaces(project: Path) -> dict[str, int]:
    """Rows of each feature space by its tap and the first digits of its fingerprint."""
    found = FeatureCache.open(open_project(project).cache).spaces
    return {f"{one.tap} {one.fingerprint[:8]}": one.rows for one in found}


def test_each_caption_is_judged_once_and_what_is_said_stands_beside_the_score(project: Path) -> None:
    rows = rows_of(project)
    captions = {row["caption"] for row in rows}
    assert len(rows) == len(LABELS) * CLIPS
    assert len(captions) > 2
    for row in rows:
        expected = "hand" in row["caption"] and row["label"] == "ventilation"
        assert (row["read_as"], row["probabilities"]) == ("yes" if expected else "no", "not given")
    best = json.loads((project / "runs/zeroshot-zsc-j/best.json").read_bytes())
    audit = best["audit"]
    assert best["method"] == "ZSC-J"
    assert audit["hard"] == len(LABELS) * CLIPS, "the server drops logprobs, and the run says so"
    assert audit["captions"]["different"] == len(captions)
    assert audit["judge"]["constant"] == list(LABELS), "no perfect caption holds the word that this judge looks for"
    assert not any(f"S{k}.mp4".encode() in path.read_bytes() for path in project.glob("runs/**/*.*") for k in range(6))


def test_a_second_run_asks_nobody_and_another_question_asks_the_judge_alone(project: Path, server: Served) -> None:
    assert run("zeroshot", "zsc-j", "--config", project)["todo"] == 0
    assert server.asked == []
    before = spaces(project)
    (project / "prompts/zsc-j/ventilation.txt").write_text('"{caption}" ventilation')
    assert run("zeroshot", "zsc-j", "--config", project)["asked"] == CLIPS
    assert spaces(project).items() > before.items(), "one more space, of the judge's answers; no caption is made again"
    assert len(spaces(project)) == len(before) + 1
    captions = {row["caption"] for row in rows_of(project)}
    of_clips = [question for question in server.asked if "takes place" not in question]
    assert Counter(of_clips).most_common(1)[0][1] <= 2, "of each caption once, and of the black video's"
    assert len(set(of_clips)) <= len(LABELS) * (len(captions) + 1)


def test_clips_that_a_judge_does_not_answer_fail_alone_and_are_asked_again(project: Path, server: Served) -> None:
    caption = Counter(row["caption"] for row in rows_of(project)).most_common()[-1][0]
    lost = {row["clip_id"] for row in rows_of(project) if row["caption"] == caption}

    def stumbling(request: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
        return (400, b"no") if f'"{caption}"' in request["messages"][-1]["content"] else rule(request)

    server.behave = stumbling
    (project / "prompts/zsc-j/ventilation.txt").write_text('"{caption}" ventilation')
    found = run("zeroshot", "zsc-j", "--config", project, code=3)
    assert {one["clip_id"] for one in found["failed"]} == lost
    assert all("the judge gave no answer: status 400" in one["reason"] for one in found["failed"])
    server.behave = rule
    again = run("zeroshot", "zsc-j", "--config", project)
    assert again["asked"] == len(lost)


def test_a_run_is_evaluated_compared_and_predicted_with_and_another_judge_is_refused(
    project: Path, server: Served, tmp_path: Path
) -> None:
    bundle = project / "runs/zeroshot-zsc-j/bundle"
    assert run("evaluate", bundle, "--config", project)["looks"] == 1
    assert server.asked == [], "all answers are there"
    compared = run("compare", "--config", project)
    assert [(row["method"], row["audit"]["unparsable"]) for row in compared["rows"]] == [("ZSC-J", 0)]
    assert "ZSC-J" not in compared["missing"]
    shutil.copyfile(project / "videos/S0.mp4", tmp_path / "new.mp4")
    predict = ["predict", tmp_path / "new.mp4", "--bundle", bundle, "--config", project, "--out", tmp_path / "out"]
    assert run(*predict)["extracted"] > 0
    shutil.rmtree(project / "features.zarr")
    settings = project / "featurecache.toml"
    settings.write_text(settings.read_text() + 'judge_model = "another"\n')
    assert "another one" in run(*predict, code=1)["error"]["message"]


def test_the_papers_prompt_is_the_default_and_a_dry_run_asks_nobody(project: Path, server: Served) -> None:
    shutil.rmtree(project / "prompts")
    found = run("zeroshot", "zsc-j", "--config", project, "--dry-run")
    assert {Path(one).name for one in found["prompts_written"]} == {"caption.txt", *(f"{one}.txt" for one in LABELS)}
    assert CAPTION_WORDING in (project / "prompts/zsc-j/caption.txt").read_text()
    assert found["forecast"]["clips"] == CLIPS
    assert found["judging_s"] is None, "how fast a server is nobody knows"
    assert server.asked == []


WRONG = {
    "no judge": ('judge = "', 'new_tokens = 48 # "', "zeroshot.judge must name the language model"),
    "a judge elsewhere": ("127.0.0.1", "10.0.0.1", "must be an address of this machine"),
}


@pytest.mark.parametrize(("old", "new", "said"), WRONG.values(), ids=WRONG)
def test_a_judge_that_cannot_serve_is_named_before_a_caption_is_made(
    project: Path, old: str, new: str, said: str
) -> None:
    shutil.rmtree(project / "features.zarr")
    settings = project / "featurecache.toml"
    settings.write_text(settings.read_text().replace(old, new))
    assert said in run("zeroshot", "zsc-j", "--config", project, code=1)["error"]["message"]
    assert not (project / "features.zarr").exists()


QUESTIONS = {
    "without the caption": ("ventilation.txt", "is it {label}", "must hold {caption} once"),
    "with a video": ("ventilation.txt", "<video> {caption} {label}", "no <video>"),
    "with a placeholder nobody knows": ("ventilation.txt", "{caption} {activity}", "{activity}"),
    "a caption with a placeholder": ("caption.txt", "<video> {label}", "must be none, but it has {label}"),
}


@pytest.mark.parametrize(("name", "text", "said"), QUESTIONS.values(), ids=QUESTIONS)
def test_prompts_that_cannot_be_asked_are_named(project: Path, name: str, text: str, said: str) -> None:
    (project / "prompts/zsc-j" / name).write_text(text)
    assert said in run("zeroshot", "zsc-j", "--config", project, code=1)["error"]["message"]


def test_a_local_judge_answers_with_probabilities_and_withdrawal_takes_what_was_said(
    tmp_path: Path, captioner: Path
) -> None:
    project = set_up(tmp_path / "project", captioner, str(make_judge(tmp_path / "judge")))
    assert run("zeroshot", "zsc-j", "--config", project, "--dry-run")["judging_s"] > 0
    assert run("zeroshot", "zsc-j", "--config", project, "--limit", 5)["asked"] == 5
    found = run("zeroshot", "zsc-j", "--config", project)
    assert (found["asked"], found["audit"]["hard"]) == (CLIPS - 5, 0)
    rows = rows_of(project)
    assert {row["probabilities"] for row in rows} == {"given"}
    for row in rows:
        unparsable = float(row["mass_0_1"]) < 0.5
        assert (row["read_as"] == "unparsable") == unparsable
        assert unparsable or (row["read_as"] == "yes") == (float(row["p_1"]) > 0.5)
    content = rows[0]["clip_id"].split("-")[0]
    run("cache", "forget", "S0.mp4", "--everything", "--config", project)
    run("zeroshot", "zsc-j", "--config", project)
    assert not any(row["clip_id"].startswith(content) for row in rows_of(project))


def test_processes_that_share_the_work_lose_nothing_and_ask_nothing_twice_when_one_is_killed(
    tmp_path: Path, captioner: Path, server: Served
) -> None:
    project = set_up(tmp_path / "project", captioner, server.address)
    log = tmp_path / "log"
    log.touch()

    def asking(name: str) -> BaseProcess:
        return start("zeroshot", "zsc-j", "--config", project, out=tmp_path / name, save_each_s=0.05, log=log)

    processes = [asking("killed.out"), asking("other.out")]
    while len(log.read_text().splitlines()) < 8 and all(one.is_alive() for one in processes):
        time.sleep(0.05)
    processes[0].kill()
    assert [wait_for(one) for one in processes] == [-signal.SIGKILL, 0]
    assert wait_for(asking("again.out")) == 0
    saved = Counter(log.read_text().splitlines())
    assert len(saved) == 2 * CLIPS, "every clip in both feature spaces"
    # The killed one may have saved a row that it had no time to note: nothing that was noted is saved again.
    assert set(saved.values()) == {1}
    assert run("zeroshot", "zsc-j", "--config", project)["todo"] == 0


@pytest.mark.parametrize("method", ["zsc-co", "zsc-j"])
def test_processes_of_its_own_ask_for_a_run_on_several_devices(
    tmp_path: Path, captioner: Path, server: Served, project: Path, method: str
) -> None:
    together = set_up(tmp_path / "together", captioner, server.address)
    more = ["--samples", 1] if method == "zsc-co" else []
    if method == "zsc-co":
        run("zeroshot", method, *more, "--config", project)
    found = run("zeroshot", method, *more, "--devices", "cpu,cpu", "--config", together)
    assert (found["asked"], found["worker_crashes"]) == (CLIPS, [])
    answers = [(one / f"runs/zeroshot-{method}/answers.csv").read_text() for one in (project, together)]
    assert answers[0] == answers[1]
