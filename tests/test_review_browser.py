"""The review page in a real browser: headless Chromium plays, moves borders, decides, and two windows meet."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bottle", reason="the page needs the extra `review`")
pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from featurecache.annotations.reviews import Mark, read_review, review_path
from heads.review.server import ReviewServer
from tests.browsing import press, text, wait
from tests.report_samples import report_on, write_project
from tests.review_samples import HOSTILE_NAME, SECOND_US, served

ANNOTATED, TEST, OTHER_CODEC = (f"{at:016x}" for at in range(3))
NAMES = {ANNOTATED: "S1.mp4", TEST: "S2.mp4", OTHER_CODEC: HOSTILE_NAME}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


@pytest.fixture
def server(root: Path) -> Iterator[ReviewServer]:
    with served(root) as found:
        yield found


@pytest.fixture
def page(browser: Any, server: ReviewServer) -> Any:
    """The page with the unannotated recording, played from a copy."""
    show(browser, server, OTHER_CODEC)
    return browser


def show(browser: Any, server: ReviewServer, content: str, at_s: float = 0) -> None:
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what another test's page wrote
    browser.get(f"{server.address}#recording={content}&t={at_s}")
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == content)
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').readyState") >= 2)


def now_s(browser: Any) -> float:
    hours, minutes, seconds = browser.find_element(By.ID, "clock").text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def saved(browser: Any, root: Path, content: str, *, blind: bool = False) -> list[tuple[str, str, float, float]]:
    """What the file holds once the page says that all is saved."""
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.saved") == "saved")
    return marks_on_disk(root, content, blind=blind)


def marks_on_disk(root: Path, content: str, *, blind: bool = False) -> list[tuple[str, str, float, float]]:
    def told(one: Mark) -> tuple[str, str, float, float]:
        return one.label, one.how, one.start_us / SECOND_US, one.end_us / SECOND_US

    found = read_review(review_path(root / "reviewed", NAMES[content], blind=blind), content=content)
    return sorted(told(one) for one in found.marks)


def test_page_loads_without_an_error_and_asks_nobody_but_its_server(page: Any, server: ReviewServer) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith((server.address, "about:", "data:"))} == set()
    names = [one.text for one in page.find_elements(By.CSS_SELECTOR, "#recordings bdi")]
    assert names == ["S1.mp4", "S2.mp4", HOSTILE_NAME]  # the annotated ones differ, the last one cannot
    assert page.title == "Review"  # the name runs no script
    assert not page.find_elements(By.TAG_NAME, "img")
    page.find_element(By.CSS_SELECTOR, "[data-sort=name]").click()
    assert [one.text for one in page.find_elements(By.CSS_SELECTOR, "#recordings bdi")] == names
    assert "3 places to look at" in text(page, "selection")


def test_video_plays_steps_by_frames_and_loops_a_stretch(page: Any) -> None:
    press(page, " ")
    wait(page, lambda: now_s(page) > 0.3)
    press(page, " ")
    wait(page, lambda: text(page, "play") == "Play")
    before = now_s(page)
    press(page, Keys.ARROW_RIGHT)
    wait(page, lambda: 0.04 < now_s(page) - before < 0.16)  # a frame lasts 0.1 s
    press(page, Keys.ARROW_LEFT)
    wait(page, lambda: abs(now_s(page) - before) < 0.11)
    press(page, "n")
    wait(page, lambda: now_s(page) == 2.0)
    press(page, "l")
    seen = []
    wait(page, lambda: seen.append(now_s(page)) or (len(seen) > 3 and seen[-1] < max(seen) - 1))
    assert all(1.9 <= at <= 7.5 for at in seen)


def test_accept_reject_move_add_and_undo_are_saved_at_once(page: Any, root: Path) -> None:
    press(page, "n", "a")  # ventilation from 2 to 7 s
    assert saved(page, root, OTHER_CODEC) == [("ventilation", "accepted", 2.0, 7.0)]
    press(page, "n", "x")  # ventilation from 12 to 15 s
    assert ("ventilation", "rejected", 12.0, 15.0) in saved(page, root, OTHER_CODEC)
    press(page, "n", "]")  # suction from 16 s: its end cannot be moved to its start
    assert len(marks_on_disk(root, OTHER_CODEC)) == 2
    press(page, *[Keys.ARROW_RIGHT] * 5, "[")  # five frames on: its start
    wait(page, lambda: len(marks_on_disk(root, OTHER_CODEC)) == 3)
    (moved,) = (one for one in saved(page, root, OTHER_CODEC) if one[0] == "suction")
    assert moved[1] == "corrected"
    assert moved[2] == pytest.approx(16.5, abs=0.1)
    assert moved[3] == 18.0
    press(page, Keys.ESCAPE, Keys.HOME, "p", "p", Keys.ESCAPE, "2")
    wait(page, lambda: any(one[1] == "added" for one in marks_on_disk(root, OTHER_CODEC)))
    four = saved(page, root, OTHER_CODEC)
    press(page, "z", held=Keys.CONTROL)
    wait(page, lambda: len(marks_on_disk(root, OTHER_CODEC)) == 3)
    press(page, "y", held=Keys.CONTROL)
    wait(page, lambda: marks_on_disk(root, OTHER_CODEC) == four)
    assert page.get_log("browser") == []


def test_border_is_moved_by_the_pointer_and_held_back_by_a_neighbour(page: Any, root: Path) -> None:
    press(page, "n", "a", "n", "a")
    saved(page, root, OTHER_CODEC)
    canvas = page.find_element(By.ID, "canvas")
    data = {name: float(canvas.get_attribute(f"data-{name}")) for name in ("from", "to", "gutter", "ruler", "row")}
    width = canvas.rect["width"] - data["gutter"]

    def place(seconds: float) -> tuple[int, int]:
        x = data["gutter"] + (seconds * SECOND_US - data["from"]) / (data["to"] - data["from"]) * width
        return round(x - canvas.rect["width"] / 2), round(data["ruler"] + 40 - canvas.rect["height"] / 2)

    start, end = place(7), place(14)
    actions = ActionChains(page).move_to_element_with_offset(canvas, *start).click_and_hold()
    actions.move_to_element_with_offset(canvas, *place(9)).move_to_element_with_offset(canvas, *end).release().perform()
    wait(page, lambda: ("ventilation", "corrected", 2.0, 12.0) in marks_on_disk(root, OTHER_CODEC))
    assert ("ventilation", "accepted", 12.0, 15.0) in saved(page, root, OTHER_CODEC)


def test_what_is_left_in_a_reviewed_stretch_counts_as_accepted(page: Any, root: Path) -> None:
    press(page, "n", "n", "n", "x", Keys.ENTER)  # all up to 16 s, without the last one
    expected = [
        ("", "reviewed", 0.0, 16.0),
        ("suction", "rejected", 16.0, 18.0),
        ("ventilation", "accepted", 2.0, 7.0),
        ("ventilation", "accepted", 12.0, 15.0),
    ]
    wait(page, lambda: marks_on_disk(root, OTHER_CODEC) == expected)
    assert "Nothing is selected" in text(page, "selection")
    done = f"return document.querySelector(`[data-id='{OTHER_CODEC}'] progress`).value"
    wait(page, lambda: page.execute_script(done) == 16 * SECOND_US)


def test_review_of_an_annotated_recording_begins_with_the_annotation(
    browser: Any, server: ReviewServer, root: Path
) -> None:
    show(browser, server, ANNOTATED)
    assert not marks_on_disk(root, ANNOTATED)  # looking changes nothing
    press(browser, "n", "a")  # 6 to 7 s is predicted and not annotated: the predicted interval takes the place
    assert saved(browser, root, ANNOTATED) == [
        ("suction", "annotated", 9.0, 11.0),
        ("ventilation", "accepted", 2.0, 7.0),
    ]
    press(browser, "n", "x")  # 9 to 11 s is annotated and not predicted
    wait(browser, lambda: marks_on_disk(root, ANNOTATED) == [("ventilation", "accepted", 2.0, 7.0)])
    press(browser, "z", "z", held=Keys.CONTROL)
    press(browser, "0", "p", "x")  # the annotator was right about 6 to 7 s
    kept = [("suction", "annotated", 9.0, 11.0), ("ventilation", "annotated", 2.0, 6.0)]
    wait(browser, lambda: marks_on_disk(root, ANNOTATED) == [*kept, ("ventilation", "rejected", 2.0, 7.0)])


def test_blind_review_shows_nothing_of_the_model_and_has_a_file_of_its_own(
    browser: Any, server: ReviewServer, root: Path
) -> None:
    show(browser, server, TEST)
    assert "never used to score" in text(browser, "caution")
    browser.find_element(By.ID, "blind").click()
    wait(browser, lambda: "predictions hidden" in text(browser, "about"))
    assert text(browser, "caution") == ""
    press(browser, "n")
    assert now_s(browser) == 0  # there is nothing to go to
    press(browser, *[Keys.ARROW_RIGHT] * 3, held=Keys.SHIFT)
    press(browser, "1")
    wait(browser, lambda: marks_on_disk(root, TEST, blind=True) == [("ventilation", "added", 3.0, 4.0)])
    assert not marks_on_disk(root, TEST)


def test_a_key_goes_to_the_next_suggested_stretch_until_all_are_reviewed(
    browser: Any, server: ReviewServer, root: Path
) -> None:
    show(browser, server, TEST)
    browser.find_element(By.CSS_SELECTOR, "[data-sort=suggested]").click()
    names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#recordings bdi")]
    assert names == [HOSTILE_NAME, "S1.mp4", "S2.mp4"]  # by the rank of their first stretch
    browser.find_element(By.CSS_SELECTOR, "[data-act=suggested]").click()
    wait(browser, lambda: browser.find_element(By.ID, "title").text == HOSTILE_NAME and now_s(browser) == 8)
    wait(browser, lambda: "A stretch\n0:00:08.000" in text(browser, "selection"))
    press(browser, Keys.ENTER)
    wait(browser, lambda: ("", "reviewed", 8.0, 12.0) in marks_on_disk(root, OTHER_CODEC))
    press(browser, "s")
    wait(browser, lambda: browser.find_element(By.ID, "title").text == "S1.mp4" and now_s(browser) == 12)
    press(browser, "s")
    wait(browser, lambda: browser.find_element(By.ID, "title").text == HOSTILE_NAME and now_s(browser) == 0)
    press(browser, "s")  # the first one is reviewed: it does not come again
    wait(browser, lambda: browser.find_element(By.ID, "title").text == "S1.mp4" and now_s(browser) == 12)
    assert browser.get_log("browser") == []


def test_page_tells_labels_of_annotators_from_those_of_reviews_and_from_merely_accepted_ones(
    browser: Any, server: ReviewServer
) -> None:
    show(browser, server, ANNOTATED)
    assert text(browser, "sources") == "Bouts: 4 by annotators."
    press(browser, "n", "a", "2")
    wait(browser, lambda: "1 by annotators, 1 by review, 1 merely accepted" in text(browser, "about"))
    wait(browser, lambda: text(browser, "sources") == "Bouts: 3 by annotators, 1 by review, 1 merely accepted.")
    browser.refresh()
    wait(browser, lambda: text(browser, "sources") == "Bouts: 3 by annotators, 1 by review, 1 merely accepted.")


def test_blind_sample_opens_a_stretch_that_nobody_annotated(page: Any, root: Path) -> None:
    page.find_element(By.ID, "sample").click()
    wait(page, lambda: "predictions hidden" in text(page, "about") and "A stretch" in text(page, "selection"))
    press(page, Keys.ENTER)
    wait(page, lambda: len(marks_on_disk(root, OTHER_CODEC, blind=True)) == 1)
    ((_, how, start, end),) = marks_on_disk(root, OTHER_CODEC, blind=True)
    assert (how, end - start) == ("reviewed", 10.0)
    page.find_element(By.ID, "sample").click()  # the other stretch
    wait(page, lambda: str(20 - int(end)) in text(page, "clock"))


def test_retraining_shows_the_score_before_and_after_and_sorts_again(browser: Any, server: ReviewServer) -> None:
    show(browser, server, ANNOTATED)
    assert browser.find_element(By.CSS_SELECTOR, "#recordings bdi").text == "S1.mp4"
    browser.find_element(By.ID, "retrain").click()
    wait(browser, lambda: "0.50 (0.40 to 0.60) → 0.75, +0.25 (95% +0.10 to +0.40)" in text(browser, "retrained"))
    wait(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#recordings bdi").text == "S2.mp4")
    assert "120 clips of 6 sessions" in browser.find_element(By.ID, "retrained").get_attribute("title")
    assert browser.get_log("browser") == []


def test_report_leads_to_the_moment_in_the_video(browser: Any, server: ReviewServer, root: Path) -> None:
    project = write_project(root / "project", recordings=("deep/S1.mp4",), clips=6, split_of=("test",))
    report_on(project, root / "report.html")
    show(browser, server, TEST)
    browser.find_element(By.ID, "report").click()
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")
    link = browser.find_element(By.CSS_SELECTOR, "#differences [data-goto] + a")
    assert browser.find_elements(By.CSS_SELECTOR, "[data-open] + a")  # and so does each row of a timeline
    seconds = float(link.get_attribute("href").rpartition("t=")[2])
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", link)
    link.click()
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == ANNOTATED)
    wait(browser, lambda: now_s(browser) == pytest.approx(min(seconds, 20), abs=0.01))
    assert browser.get_log("browser") == []
    browser.get((root / "report.html").as_uri())
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-goto] + a")  # on the disk it leads nowhere


def test_second_window_is_told_and_loads_what_the_first_one_saved(page: Any, server: ReviewServer, root: Path) -> None:
    first = page.current_window_handle
    page.switch_to.new_window("window")
    try:
        show(page, server, OTHER_CODEC)
        press(page, "n", "a")
        kept = saved(page, root, OTHER_CODEC)
    finally:
        page.close()
        page.switch_to.window(first)
    press(page, "n", "n", "x")
    wait(page, lambda: "changed since" in text(page, "alert"))
    assert text(page, "saved") == "Not saved"
    assert marks_on_disk(root, OTHER_CODEC) == kept
    page.find_element(By.ID, "reload").click()
    wait(page, lambda: not page.find_element(By.ID, "alert").is_displayed())
    press(page, "0", "n")
    press(page, "x")
    wait(page, lambda: len(marks_on_disk(root, OTHER_CODEC)) == 2)
    assert {one[1] for one in saved(page, root, OTHER_CODEC)} == {"accepted", "rejected"}


def test_server_that_is_killed_loses_nothing_that_the_page_called_saved(browser: Any, root: Path) -> None:
    command = [sys.executable, "-m", "tests.review_samples", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        browser.get(f"{process.stdout.readline().strip()}#recording={ANNOTATED}")
        wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == ANNOTATED)
        press(browser, "n", "a")
        kept = saved(browser, root, ANNOTATED)
        process.kill()
    press(browser, "n", "x")
    wait(browser, lambda: "does not answer" in text(browser, "alert"))
    assert text(browser, "saved") == "Not saved"
    assert marks_on_disk(root, ANNOTATED) == kept
    browser.execute_script("window.addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true)")
    with served(root) as server:
        show(browser, server, ANNOTATED)
        assert "1 merely accepted" in text(browser, "about")
        press(browser, "n", "x")
        wait(browser, lambda: len(marks_on_disk(root, ANNOTATED)) == len(kept) - 1)


def test_page_of_another_origin_gets_and_changes_nothing(browser: Any, server: ReviewServer, root: Path) -> None:
    browser.get(
        server.address.replace("127.0.0.1", "localhost")
    )  # its own origin for a browser, though the same server
    tried = """
        const [address, done] = arguments;
        const body = JSON.stringify({ version: "", marks: [] });
        Promise.allSettled([
          fetch(`${address}api/recordings`),
          fetch(`${address}api/recordings/0000000000000000`, { method: "PUT", body }),
          fetch(`${address}api/retrain`, { method: "POST", mode: "no-cors" }),
        ]).then((all) => done(all.map((one) => one.status)));
    """
    assert browser.execute_async_script(tried, server.address) == ["rejected"] * 3
    assert server._background.state == {"state": "idle"}
    assert not (root / "reviewed").exists()
    browser.get_log("browser")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720)])
def test_all_is_in_the_window_of_a_small_laptop(browser: Any, server: ReviewServer, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        show(browser, server, ANNOTATED)
        box = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        assert browser.execute_script(box) == [width, height]
        for element in ("video", "lanes", "play", "clock"):
            place = browser.find_element(By.ID, element).rect
            assert place["y"] + place["height"] <= height
            assert place["height"] > 20
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
