"""The guide followed word by word: its commands, in their order, from drawn recordings to a reviewed timeline."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bottle", reason="the page needs the extra `review`")
pytest.importorskip("selenium.webdriver")

from featurecache import make_demo
from featurecache.annotations import read_eaf

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
ELSEWHERE = ("source", "featurecache doctor", "featurecache demo")  # before there is a project


def typed_lines() -> list[str]:
    """The lines of the guide's blocks of commands, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def follow(command: Sequence[str], data: Path, browser: Any, environment: Mapping[str, str]) -> list[tuple[str, float]]:
    """Types the guide's lines with these recordings, and tells the seconds of each; fails at the first that fails."""
    ours = {
        "/data/videos": str(data / "videos"),
        "/data/elan": str(data / "elan"),
        "/data/new/case7.mp4": str(data / "new" / "case7.mp4"),
        "/models/LLaVA-NeXT-Video-7B-hf": "demo",
    }
    folder, took = data, list[tuple[str, float]]()
    for line in typed_lines():
        words = [ours.get(word, word) for word in shlex.split(line)]
        began = time.monotonic()
        if words[0] == "cd":
            folder = folder / words[1]
            continue
        call = [*command, *words[1:]] if words[0] == "featurecache" else words
        if words[:2] == ["featurecache", "review"]:
            with subprocess.Popen(call, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                address = next(line.strip() for line in process.stdout if line.strip().startswith("http://"))
                correct(browser, address)
                process.send_signal(signal.SIGINT)
                process.communicate()
            assert process.returncode == 0
        else:
            done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        took.append((line, time.monotonic() - began))
    return took


def correct(browser: Any, address: str) -> None:
    """What a person does on the page: accepts, rejects, marks all of it as reviewed, and trains again."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    from tests.browsing import press, text, wait

    browser.get(address)
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready"))
    (new,) = (one for one in browser.find_elements(By.CSS_SELECTOR, "#recordings button") if "S11" in one.text)
    new.click()
    wait(browser, lambda: "S11" in text(browser, "title"))
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').readyState") >= 2)
    press(browser, "n", "a", "n", "x", Keys.ESCAPE, *[Keys.ARROW_RIGHT] * 5, Keys.ENTER)
    wait(browser, lambda: text(browser, "saved") == "All changes saved")
    wait(browser, lambda: "merely accepted" in text(browser, "sources"))
    browser.find_element(By.ID, "retrain").click()
    wait(browser, lambda: "macro-F1" in text(browser, "retrained"))


def draw(data: Path) -> None:
    """Eleven sessions of which the last is not annotated, and a recording from elsewhere."""
    drawn = make_demo(data / "drawn", sessions=12, recordings_per_session=1)
    for name in ("videos", "elan", "new"):
        (data / name).mkdir()
    videos, annotations = sorted(drawn.videos.rglob("*.mp4")), sorted((drawn.root / "annotations").rglob("*.eaf"))
    for path in videos[:11]:
        shutil.copy(path, data / "videos")
    for path in annotations[:10]:
        shutil.copy(path, data / "elan")
    shutil.copy(videos[11], data / "new" / "case7.mp4")


@pytest.mark.slow
def test_guide_leads_from_recordings_to_a_reviewed_timeline(browser: Any, tmp_path: Path) -> None:
    draw(tmp_path)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # or a pipe would hold the address back
    follow([sys.executable, "-m", "featurecache"], tmp_path, browser, environment)
    study = tmp_path / "mystudy"
    (review,) = (study / "reviewed").rglob("*.reviewed.eaf")
    assert {"ventilation", "reviewed stretches"} <= read_eaf(review).tiers.keys()
    assert (study / "predictions" / "case7.predicted.eaf").is_file()
    assert (study / "runs" / "report.html").is_file()
    assert (study / "runs" / "tune" / "bundle").is_dir()
