"""What commands show: tables that fit the screen, numbers with their nouns."""

import logging
import unicodedata
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

import cli
from featurecache.spelling import counted, visible
from featurecache.terminal.screen import Screen, waits_on_stderr
from featurecache.terminal.text import Warn, plain_table
from heads.finetuning.training_state import Training
from heads.terminal.finetuning import training_progress, unchanged
from heads.terminal.scores import against_baseline, label_scores, method_scores


@pytest.mark.parametrize("width", [60, 100])
def test_tables_stay_readable_on_a_narrow_terminal_without_colour(width: int) -> None:
    labels = ("baby_visible", "ventilation", "stimulation", "suction")
    scores = {"f1": 0.5, "precision": 0.25, "recall": 1.0, "average_precision": None, "threshold": 0.5, "support": 120}
    metrics = {"split": "test", "n_clips": 9, "n_sessions": 5, "per_class": dict.fromkeys(labels, scores)}
    metrics |= {"macro_f1": 0.5, "macro_f1_ci95": [0.4, 0.6]}
    pieces = [
        *label_scores(metrics, width),
        *method_scores({"all-positive baseline": metrics, "FT-LC": metrics}, width),
    ]
    console = Console(file=StringIO(), width=width, no_color=True, force_terminal=False)
    for piece in pieces:
        console.print(piece)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for word in (*labels, "all-positive baseline", "FT-LC", "macro-F1", "0.40 to 0.60"):
        assert word in shown, word  # whole, on one line


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (-0.02, [-0.1, 0.06], "is not above the all-positive baseline"),
        (0.0, None, "is not above the all-positive baseline"),
        (0.05, [-0.01, 0.11], "may be no better"),
        (0.05, [0.01, 0.09], ""),
        (0.05, None, ""),
        (None, None, ""),
    ],
)
def test_evaluate_says_in_words_that_a_score_is_not_above_the_baseline(
    difference: float | None, interval: list[float] | None, said: str
) -> None:
    paired = {"difference": difference, "difference_ci95": interval}
    lines = [str(line) for line in against_baseline("FT-LC", {"against_all_positive": paired})]
    assert bool(lines) == bool(said)
    assert said in "".join(lines)


def test_lora_finetune_says_that_adapters_which_kept_their_start_changed_nothing() -> None:
    (line,) = unchanged(0)
    assert "the adapters changed nothing" in str(line)
    assert not [*unchanged(1), *unchanged(None)]


def test_time_left_of_a_training_leaves_out_what_came_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.terminal.progress.PLAIN_LINE_EVERY_S", 0.0)
    said: list[str] = []
    show = training_progress(said.append)
    for step, elapsed_s in ((1, 600.0), (2, 601.0), (6, 605.0)):
        show(Training(step, 100, 0.5, (), 4, elapsed_s))
    assert [line.partition("loss 0.5000")[2] for line in said] == ["", ", at most 98 s left", ", at most 94 s left"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips")])
def test_counted_writes_one_without_an_s(number: int, text: str) -> None:
    assert counted(number, "clip") == text
    assert counted(number, "clip", ("is", "are")) == f"{text} {'is' if number == 1 else 'are'}"


ACTING = "\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\u2029\x85\x07\u3164"
SHOWN = r"\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\u2029\x85\x07\u3164"


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_in_a_name_acts_on_the_terminal(as_json: bool, capfd: pytest.CaptureFixture[str]) -> None:
    name = f"[red]{ACTING} :baby:"
    screen = Screen(as_json)
    screen.console.width = 200
    made = Table(title=f"title {name}")
    made.add_column(f"column {name}")
    made.add_row(f"cell {name}")
    screen.show([f"line {name}\nnext", Warn(name), made, plain_table(name, [name], [[f"row {name}"]])])
    out, err = capfd.readouterr()
    said = out + err
    for what in ("line ", "warning: ", "title ", "column ", "cell ", "row "):
        assert f"{what}[red]{SHOWN} :baby:" in said, what
    assert "\nnext\n" in said
    assert not set(said) & set("\x1b\x9b\u202e\u2066\u200b\u2028\u2029\x85\x07\u3164")


def test_an_error_about_a_hostile_name_is_one_harmless_line(tmp_path: Path) -> None:
    folder = tmp_path / f"p\n{ACTING}"
    result = CliRunner().invoke(cli.app, ["clips", "--config", str(folder)])
    assert result.exit_code == 1
    assert rf"p\n{SHOWN}" in result.stderr
    assert result.stderr.count("\n") == 1


@given(st.text())
def test_shown_text_can_be_seen_and_is_shown_once(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    categories = {unicodedata.category(one) for one in visible(text)}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("name", ["toux forc\u00e9e", "\u05d4\u05d7\u05d9", "\u6c34 \u3000 \U0001f476", "a\u00a0b"])
def test_names_of_any_script_are_shown_as_they_are(name: str) -> None:
    assert visible(name) == name


def test_of_what_is_logged_a_terminal_shows_waits_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with waits_on_stderr():
        log = logging.getLogger("featurecache.extraction.run")
        logging.getLogger("featurecache").setLevel(logging.DEBUG)  # as on a terminal
        log.debug("counts for programmers")
        log.debug("loading ...", extra={"is_wait": True})
        log.info("half of it is read")
    assert capsys.readouterr().err == "loading ...\nhalf of it is read\n"
