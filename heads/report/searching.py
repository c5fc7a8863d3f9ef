"""The search as Optuna draws it: history, importances, parallel coordinates, as plain plotly figures.

Optuna's own figures are taken as they are but for titles (the page has better ones) and colours (the page's own, which
follow light, dark and print). A journal that is damaged costs its own figures alone. What this is not: a second
analysis of the study.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import StudyError
from featurecache.spelling import visible
from heads.report.documents import Run, number
from heads.report.figures import Figure
from heads.search.study import brief, quiet_optuna

SCORE = "macro-F1 of held-out sessions"
DRAWN_TRIALS = 200
"""Lines of the parallel coordinates: the best ones, where a study has more."""


@dataclass(frozen=True, eq=False)
class DrawnSearch:
    """A run's search as the page shows it.

    Attributes:
        run: The run.
        figures: The figures of `search_figures`.
        reason: Why there are no figures, where there are none.
    """

    run: Run
    figures: dict[str, Figure]
    reason: str


def draw_searches(runs: Sequence[Run]) -> tuple[list[DrawnSearch], list[str]]:
    """The searches of all runs that have one, and which of their journals could not be read, and why."""
    searches, problems = [], []
    for run in runs:
        if run.journal is None:
            continue
        try:
            searches.append(DrawnSearch(run, _figures_of(run, run.journal), "No trial has run to its end yet."))
        except StudyError as error:
            searches.append(DrawnSearch(run, {}, str(error)))
            problems.append(f"{run.name}/{run.journal.name}: {error}")
    return searches, problems


def _figures_of(run: Run, journal: Path) -> dict[str, Figure]:
    """A study's figures, and `importances`, of the shares that `tune` printed and wrote."""
    figures, told = search_figures(journal), run.best.get("importances")
    shares = {name: number(share) for name, share in told.items()} if isinstance(told, Mapping) else {}
    known = {str(name): share for name, share in shares.items() if share is not None}
    return figures | ({"importances": _importance_bars(known)} if figures and known else {})


def search_figures(journal: Path) -> dict[str, Figure]:
    """A study's figures, by name: `history` and `parallel`; those that it is too small for are left out.

    Args:
        journal: The study's journal file; only read.

    Raises:
        StudyError: If it cannot be read as a journal with one study.
    """
    with quiet_optuna(optuna.logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's word on trials that a figure leaves out
        try:
            if journal.is_file() and not journal.stat().st_size:  # a search that has only just started
                return {}
            study, completed = _replayed(journal)
        except Exception as error:  # Optuna replays what it reads unchecked: ValueError, KeyError, AssertionError, ...
            # An error of the system carries the path, which the page does not name.
            why = error.strerror if isinstance(error, OSError) and error.strerror else brief(error)
            raise StudyError(
                f"a study's journal must be readable, but reading {journal.name} gave: {why}. "
                "Restore it, or leave the search out of the report by moving it away."
            ) from error
        if not completed:
            return {}
        figures = {"history": _history(study)}
        if len(completed) > 1 and len({trial.value for trial in completed}) > 1:
            figures["parallel"] = _parallel(study)
        return figures


def _replayed(journal: Path) -> tuple[optuna.Study, list[FrozenTrial]]:
    """A journal's only study, and its completed trials, each seen to be whole."""
    if not journal.is_file():  # the backend would make it
        raise ValueError("it is no file" if journal.exists() else "it is not there")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} studies instead of one")
    study = optuna.load_study(study_name=names[0], storage=storage)
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    # A replay lets a trial through that lacks what a lost line said, and drawing would fail; adding a trial checks it.
    optuna.create_study(directions=study.directions).add_trials(completed)
    return study, completed


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


def _importance_bars(shares: Mapping[str, float]) -> Figure:
    """Shares of settings, the largest at the top."""
    ascending = sorted(shares.items(), key=lambda one: one[1])
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ascending],
        "y": [visible(name) for name, _ in ascending],
        "text": [f"{share:.0%}" for _, share in ascending],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{text}<extra></extra>",
        "marker": {"color": "@c0"},
        "width": 0.5,
    }
    layout = {
        "height": 70 + 28 * len(ascending),
        "margin": {"l": 10, "r": 40, "t": 10, "b": 40},
        "xaxis": {"title": {"text": "importance, sum 1"}, "rangemode": "tozero"},
        "yaxis": {"showgrid": False, "automargin": True},
    }
    return {"data": [bars], "layout": layout}


def _parallel(study: optuna.Study) -> Figure:
    """The best trials as lines over the settings that vary; the best tenth have a colour of their own."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = sorted(completed, key=lambda trial: (sign * (trial.value or 0), trial.number))[:DRAWN_TRIALS]
    drawn = optuna.create_study(direction=study.direction)
    drawn.add_trials(best)
    names = dict.fromkeys(name for trial in best for name in trial.params)
    varied = [name for name in names if len({str(trial.params.get(name)) for trial in best}) > 1]
    figure = _plain(optuna.visualization.plot_parallel_coordinate(drawn, params=varied, target_name=SCORE))
    # Optuna sorts its lines by categorical settings. Each passes through its own score on the first axis.
    lines = sorted(
        (trace for trace in figure["data"] if trace.get("mode") == "lines"), key=lambda one: -sign * one["y"][0]
    )
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
    document: Figure = _shown(json.loads(figure.to_json()))
    document["layout"].pop("title", None)
    return document


def _shown(value: Any) -> Any:
    """A JSON value whose texts, names of settings among them, can be seen."""
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return visible(value) if isinstance(value, str) else value
