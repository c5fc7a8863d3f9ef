"""The search as Optuna draws it: history, importances, parallel coordinates, as plain plotly figures.

Optuna's own figures are taken as they are but for titles (the page has better ones) and colours (the page's own, which
follow light, dark and print). What this is not: a second analysis of the study.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from featurecache.errors import StudyError

Figure = dict[str, Any]

SCORE = "validation macro-F1"
DRAWN_TRIALS = 200
"""Lines of the parallel coordinates: the best ones, where a study has more."""


def search_figures(journal: Path) -> dict[str, Figure]:
    """A study's figures, by name: `history`, `importances`, `parallel`; those that it is too small for are left out.

    Args:
        journal: The study's journal file; only read.

    Raises:
        StudyError: If it cannot be read as a journal with one study.
    """
    with _quiet():
        try:
            study = _only_study(journal)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StudyError(
                f"a study's journal must be readable, but reading {journal.name} gave: {error}. "
                "Restore it, or leave the search out of the report by moving it away."
            ) from error
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not completed:
            return {}
        figures = {"history": _history(study)}
        if len(completed) > 1 and len({trial.value for trial in completed}) > 1:
            figures |= {"importances": _importances(study), "parallel": _parallel(study)}
        return figures


def _only_study(journal: Path) -> optuna.Study:
    if not journal.is_file():  # the backend would make it
        raise FileNotFoundError(f"there is no {journal.name}")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    (summary,) = optuna.get_all_study_summaries(storage, include_best_trial=False)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def _history(study: optuna.Study) -> Figure:
    figure = _plain(optuna.visualization.plot_optimization_history(study))
    data = [trace for trace in figure["data"] if len(trace["x"])]
    for trace, name, color in zip(data, ("a trial", "best so far"), ("@c0", "@c1"), strict=False):
        trace |= {"name": name, "marker": {"color": color, "size": 6, "opacity": 0.7}, "line": {"color": color}}
    layout = {
        "height": 280,
        "margin": {"l": 56, "r": 12, "t": 28, "b": 40},
        "xaxis": {"title": {"text": "trial"}},
        "yaxis": {"title": {"text": SCORE}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    return {"data": data, "layout": layout}


def _importances(study: optuna.Study) -> Figure:
    figure = _plain(optuna.visualization.plot_param_importances(study))
    (bars,) = figure["data"]
    bars |= {"marker": {"color": "@c0"}, "width": 0.5}
    layout = {
        "height": 70 + 28 * len(bars["y"]),
        "margin": {"l": 10, "r": 40, "t": 10, "b": 40},
        "xaxis": {"title": {"text": "importance, sum 1"}, "rangemode": "tozero"},
        "yaxis": {"showgrid": False},
    }
    return {"data": [bars], "layout": layout}


def _parallel(study: optuna.Study) -> Figure:
    """The best trials as lines over the settings that vary; the best tenth have a colour of their own."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = sorted(completed, key=lambda trial: (sign * (trial.value or 0), trial.number))[:DRAWN_TRIALS]
    drawn = optuna.create_study(direction=study.direction)
    drawn.add_trials(best[::-1])  # the best on top
    names = dict.fromkeys(name for trial in best for name in trial.params)
    varied = [name for name in names if len({str(trial.params.get(name)) for trial in best}) > 1]
    figure = _plain(optuna.visualization.plot_parallel_coordinate(drawn, params=varied, target_name=SCORE))
    lines = [trace for trace in figure["data"] if trace.get("mode") == "lines"]
    first = len(lines) - max(1, len(lines) // 10)
    for at, trace in enumerate(lines):
        is_best = at >= first
        trace |= {
            "line": {"color": "@c1" if is_best else "@c0", "width": 1.8 if is_best else 1},
            "opacity": 0.9 if is_best else 0.3,
        }
    layout = figure["layout"]
    for note in layout.get("annotations", ()):
        note["font"] = {"color": "@muted", "size": 10}
    for axis in layout.get("shapes", ()):
        axis["line"] = {"color": "@rule", "width": 1}
    layout |= {"height": 330, "margin": {"l": 48, "r": 16, "t": 12, "b": 34}, "plot_bgcolor": "rgba(0,0,0,0)"}
    return {"data": lines, "layout": layout}


def _plain(figure: Any) -> Figure:
    """A figure as JSON-ready mapping without template and title."""
    figure.layout.template = None
    document: Figure = json.loads(figure.to_json())
    document["layout"].pop("title", None)
    return document


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's notes, and its word on trials that a figure leaves out, off stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
