"""What commands show: tables that fit the screen, numbers with their nouns."""

from io import StringIO

import pytest
from rich.console import Console

from featurecache.terminal.text import counted
from heads.terminal.scores import label_scores, method_scores


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


@pytest.mark.parametrize(("number", "text"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips")])
def test_counted_writes_one_without_an_s(number: int, text: str) -> None:
    assert counted(number, "clip") == text
