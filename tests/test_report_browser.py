"""The report in a real browser: headless Chromium opens it from the disk, and a reader's hands are tried on it.

Chromium and its driver are Debian's `chromium` and `chromium-driver`; the tests skip where they are not installed.
"""

import base64
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.report_samples import long_timeline, report_on, write_prediction, write_project

pytest.importorskip("selenium.webdriver")

from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
READY = "return document.documentElement.dataset.ready === 'true'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with hostile names, and a recording of 13 hours."""
    labels = ("ventilation", HOSTILE, "\u05d4\u05d7\u05d9\u05d9\u05d0\u05d4")
    recordings = ("S1/a.mp4", "S2/b.mp4", "S3/<b onclick=alert(1)>c.mp4")
    root = write_project(tmp_path_factory.mktemp("page") / "project", labels=labels, recordings=recordings)
    write_prediction(
        root,
        "long.mp4",
        long_timeline(1, hours=13, count=3000, labels=labels),
        {
            label: [span[:2] for span in spans]
            for label, spans in long_timeline(2, hours=13, count=3000, labels=labels).items()
        },
        duration_us=13 * 3600 * 10**6,
    )
    return report_on(root).path


@pytest.fixture(scope="module")
def first_visit(browser: Any, page: Path) -> Any:
    """The page, opened once, with what Chromium logged until all was drawn."""
    _prefer(browser, "light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # of pages that another test opened before
    _open(browser, page)
    browser.first_logs = {kind: browser.get_log(kind) for kind in ("browser", "performance")}
    return browser


@pytest.fixture
def opened(first_visit: Any, page: Path) -> Any:
    """The page in the light, its first recording shown whole, whatever page a test before it left open."""
    if first_visit.current_url.partition("#")[0] != page.as_uri():
        _open(first_visit, page)
    _prefer(first_visit, "light")
    choice = Select(first_visit.find_element(By.ID, "timeline-recording"))
    choice.select_by_index(1)
    choice.select_by_index(0)
    first_visit.execute_script("scrollTo(0, 0)")
    return first_visit


def _open(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(READY))


def _prefer(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _range(browser: Any) -> list[float]:
    """The seconds of the recording that the timeline shows."""
    return list(browser.execute_script("return document.querySelector('#timeline-viewer .plot').layout.xaxis.range"))


def test_page_loads_without_an_error_and_asks_nobody_for_anything(opened: Any, page: Path) -> None:
    assert opened.first_logs["browser"] == []
    events = [json.loads(entry["message"])["message"] for entry in opened.first_logs["performance"]]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_policy_stops_a_connection_that_somebody_tries(opened: Any) -> None:
    script = """
        const done = arguments[0];
        fetch('http://127.0.0.1:9/').then(() => done('connected'), () => {});
        document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
    """
    assert opened.execute_async_script(script) == "connect-src"
    opened.get_log("browser")  # Chromium's word on what was stopped


def test_every_figure_is_drawn(opened: Any) -> None:
    figures = opened.find_elements(By.CSS_SELECTOR, ".plot[data-figure]")
    assert len(figures) == 18
    script = (
        "return arguments[0].querySelectorAll('.scatterlayer .trace, .barlayer .trace, .heatmaplayer image').length"
    )
    empty = [one.get_attribute("data-figure") for one in figures if not opened.execute_script(script, one)]
    assert empty == []


def test_names_run_no_script_and_keep_their_text(opened: Any) -> None:
    assert opened.title == "Activity recognition report"
    assert not opened.find_elements(By.CSS_SELECTOR, "img")
    assert not opened.find_elements(By.CSS_SELECTOR, "[onclick], [onerror]")
    for figure in ("[data-figure=cooccurrence]", "#timeline-viewer .plot"):
        script = "return [...arguments[0].querySelectorAll('.main-svg text')].map((one) => one.textContent)"
        texts = opened.execute_script(script, opened.find_element(By.CSS_SELECTOR, figure))
        assert f"\u2068{HOSTILE}\u2069" in texts, figure


def test_table_sorts_both_ways_and_says_so(opened: Any) -> None:
    table = opened.find_element(By.ID, "methods-table")
    (button,) = [one for one in table.find_elements(By.CSS_SELECTOR, "th button") if one.text == "macro-F1"]
    column = button.find_element(By.XPATH, "./..")

    def shown() -> list[float]:
        at = opened.execute_script("return arguments[0].cellIndex", column) + 1
        return [float(one.text) for one in table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({at})")]

    button.click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert shown() == sorted(shown())
    button.send_keys(Keys.ENTER)
    assert column.get_attribute("aria-sort") == "descending"
    assert shown() == sorted(shown(), reverse=True)
    assert len(table.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_click_on_a_difference_moves_the_timeline_there(opened: Any) -> None:
    button = opened.find_elements(By.CSS_SELECTOR, "#differences [data-goto]")[5]
    index, start_us, end_us = map(int, button.get_attribute("data-goto").split())
    button.click()
    WebDriverWait(opened, 20).until(
        lambda driver: driver.execute_script("return document.activeElement.id") == "timeline-viewer"
    )
    low, high = _range(opened)
    assert low <= start_us / 1e6 < end_us / 1e6 <= high
    assert high - low < 10 * max(10, (end_us - start_us) / 1e6)
    assert Select(opened.find_element(By.ID, "timeline-recording")).first_selected_option.get_attribute("value") == str(
        index
    )
    row = button.find_element(By.XPATH, "./ancestor::tr")
    assert row.get_attribute("aria-current") == "true"
    box = opened.execute_script("return document.getElementById('timeline-viewer').getBoundingClientRect().toJSON()")
    assert 0 <= box["top"] < box["bottom"] <= opened.execute_script("return innerHeight")


def test_timeline_obeys_the_keyboard(opened: Any) -> None:
    viewer = opened.find_element(By.ID, "timeline-viewer")
    status = opened.find_element(By.ID, "timeline-status")
    whole = _range(opened)
    opened.execute_script("arguments[0].focus()", viewer)

    def press(key: str) -> list[float]:
        before = status.text
        viewer.send_keys(key)
        WebDriverWait(opened, 20).until(lambda _: status.text != before)
        return _range(opened)

    half = press("+")
    assert half[1] - half[0] == pytest.approx((whole[1] - whole[0]) / 2)
    right = press(Keys.ARROW_RIGHT)
    assert right[0] == pytest.approx(half[0] + (half[1] - half[0]) / 4)
    assert press(Keys.HOME)[0] == 0
    assert press(Keys.END)[1] == pytest.approx(whole[1])
    assert press("0") == pytest.approx(whole)
    press("n")
    first = opened.find_element(By.CSS_SELECTOR, "#differences tr[aria-current]")
    press("n")
    second = opened.find_element(By.CSS_SELECTOR, "#differences tr[aria-current]")
    assert first != second
    press("p")
    assert opened.find_element(By.CSS_SELECTOR, "#differences tr[aria-current]") == first


def test_timeline_zooms_by_dragging_and_back_by_a_double_click(opened: Any) -> None:
    whole = _range(opened)
    area = opened.find_element(By.CSS_SELECTOR, "#timeline-viewer .nsewdrag")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    width = area.rect["width"]
    ActionChains(opened).move_to_element_with_offset(area, round(-width / 4), 0).click_and_hold().move_by_offset(
        round(width / 4), 0
    ).release().perform()
    WebDriverWait(opened, 20).until(lambda driver: _range(driver) != whole)
    low, high = _range(opened)
    assert low == pytest.approx(whole[1] / 4, rel=0.05)
    assert high == pytest.approx(whole[1] / 2, rel=0.05)

    def shows_all_after_a_double_click(driver: Any) -> bool:
        """On a busy machine two clicks may lie too far apart to be one double click: then they are made again."""
        ActionChains(driver).double_click(area).perform()
        with contextlib.suppress(TimeoutException):
            WebDriverWait(driver, 2).until(lambda driver: _range(driver) == pytest.approx(whole))
        return _range(driver) == pytest.approx(whole)

    WebDriverWait(opened, 30).until(shows_all_after_a_double_click)


def test_timeline_of_13_hours_opens_and_answers(opened: Any) -> None:
    choice = Select(opened.find_element(By.ID, "timeline-recording"))
    (name,) = [one.text for one in choice.options if one.text.startswith("long.mp4")]
    choice.select_by_visible_text(name)
    WebDriverWait(opened, 20).until(lambda driver: _range(driver) == [0, 13 * 3600])
    assert "of 13:00:00" in opened.find_element(By.ID, "timeline-status").text
    script = """
        const plot = document.querySelector('#timeline-viewer .plot');
        const points = Math.max(...plot.data.map((trace) => trace.x.length));
        return [plot.querySelectorAll('.main-svg *').length, points, plot.clientWidth];
    """
    elements, points, width = opened.execute_script(script)
    assert elements < 400  # not an element for each of 18,000 intervals
    assert points <= 4 * width  # nor more than can be seen
    opened.find_element(By.CSS_SELECTOR, "[data-act=in]").click()
    WebDriverWait(opened, 20).until(lambda driver: _range(driver) == [13 * 900, 13 * 2700])


def test_pointer_reads_what_is_on_at_its_time(opened: Any) -> None:
    area = opened.find_element(By.CSS_SELECTOR, "#timeline-viewer .nsewdrag")
    timeline = json.loads(opened.find_element(By.ID, "timelines-data").get_attribute("textContent"))[0]
    start, end = timeline["labels"][0]["annotated"][:2]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    share = (start + end) / 2 / timeline["duration_us"]
    ActionChains(opened).move_to_element_with_offset(area, round((share - 0.5) * area.rect["width"]), 0).perform()
    text = opened.find_element(By.ID, "timeline-readout").text
    assert text.startswith("At 0:0")
    assert "annotated \u2068ventilation\u2069" in text


def test_everything_is_reached_by_the_tab_key_in_order(opened: Any) -> None:
    opened.refresh()  # the focus begins before the page again
    WebDriverWait(opened, 60).until(lambda driver: driver.execute_script(READY))
    reached = []
    for _ in range(110):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        reached.append(
            opened.execute_script("return document.activeElement.id || document.activeElement.textContent.trim()")
        )
    assert reached[0] == "Skip to the summary"
    assert reached[1:3] == ["Summary", "Activities"]
    order = [
        reached.index(one)
        for one in ("macro-F1", "timeline-recording", "Zoom in", "timeline-viewer", "timeline-position")
    ]
    assert order == sorted(order)


def test_dark_mode_turns_page_and_figures(opened: Any) -> None:
    script = """
        const style = getComputedStyle(document.body);
        return [style.backgroundColor, style.color, document.querySelector('.plot .xtick text').style.fill];
    """
    light = opened.execute_script(script)
    _prefer(opened, "dark")
    WebDriverWait(opened, 20).until(lambda driver: driver.execute_script(script)[2] != light[2])
    background, ink, in_figure = opened.execute_script(script)
    assert background == light[0].replace("255, 255, 255", "20, 24, 28")
    assert in_figure == ink.replace("rgba", "rgb")


@pytest.mark.parametrize("width", [1280, 400])
def test_page_is_no_wider_than_its_window(browser: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        _open(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.mark.parametrize("label_count", [3, 10])
def test_no_table_hides_its_score_column(browser: Any, tmp_path: Path, label_count: int) -> None:
    labels = [f"positive pressure ventilation {at}" for at in range(label_count)]
    recordings = [f"S{at}/a.mp4" for at in range(8)]
    root = write_project(tmp_path / "p", labels=labels, recordings=recordings, split_of=("train", "test"))
    for run in ("lora", "timesformer"):
        shutil.copytree(root / "runs" / "train", root / "runs" / run)
    _open(browser, report_on(root).path)
    script = """
        const scores = /^(macro-F1|F1|F1@|seconds|mean difference|limits of|kappa|predicted alone|AUROC)/;
        const heads = [...document.querySelectorAll('.wide thead th')].filter((head) =>
            head.offsetWidth && (head.classList.contains('score-column') || scores.test(head.textContent.trim())));
        const isHidden = (head) =>
            head.getBoundingClientRect().right > head.closest('.wide').getBoundingClientRect().right + 1;
        return [heads.length, heads.filter(isHidden).map((head) => head.textContent)];
    """
    seen, hidden = browser.execute_script(script)
    assert seen >= 10
    assert hidden == []
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        _open(browser, root / "runs" / "report.html")
        on_a_phone = """
            const box = (element) => element.getBoundingClientRect();
            const table = document.getElementById('methods-table');
            const [head, score] = [table.querySelector('.score-column'), table.querySelector('tbody td')];
            return [box(table.closest('.wide')).right, box(head).right, box(score).right, innerWidth];
        """
        ends = browser.execute_script(on_a_phone)
        assert ends[0] <= ends[3] == 390
        assert max(ends[1:3]) <= ends[0] + 1
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_has_the_figures_on_white_even_in_the_dark(opened: Any) -> None:
    _prefer(opened, "dark")
    script = """
        addEventListener('beforeprint', () => {
            const ink = document.querySelector('.plot .xtick text').style.fill;
            window.printed = [getComputedStyle(document.body).backgroundColor, ink];
        });
    """
    opened.execute_script(script)
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert opened.execute_script("return window.printed") == ["rgb(255, 255, 255)", "rgb(27, 32, 38)"]
    assert opened.execute_script("return document.documentElement.dataset.theme") is None  # put back afterwards
    narrow = """
        const drawn = [...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.offsetWidth);
        return drawn.some((plot) => plot.offsetWidth > 5 + Number(plot.querySelector('svg').getAttribute('width')));
    """
    WebDriverWait(opened, 20).until_not(lambda driver: driver.execute_script(narrow))  # on the screen's width again
