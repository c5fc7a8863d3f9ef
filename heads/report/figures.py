"""The report's figures as plotly documents (data and layout), but for the search's, which are Optuna's.

Notable choices: plain mappings, not plotly's objects, so that drawing one is a pure function of JSON documents. A
colour is a name (`@c0`, `@muted`) that the page replaces by light, dark or print's own; `@c0` to `@c5` are Okabe and
Ito's, and lines differ in their dashes too. Text from outside goes through `plain`, because plotly reads markup.
"""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from featurecache.clips.clip import Clip
from featurecache.spelling import visible
from heads.report.documents import Document, Run, number, unit_of
from heads.report.names import isolated

Figure = dict[str, Any]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_PANEL_PX = 230
HEAT = {
    "zmin": 0,
    "zmax": 1,
    "xgap": 2,
    "ygap": 2,
    "colorscale": [[0, "@panel"], [1, "@heat"]],
    "showscale": False,
}
"""What maps of shares from 0 to 1 look like."""
LEAST_CLIPS = 20
"""Shares of fewer clips are drawn as points without a line, which would show their noise as a course."""


def plain(text: str) -> str:
    """Text that plotly shows as it is: no markup, and its direction its own."""
    return isolated(html.escape(text, quote=False))


def numbers(values: object) -> list[float | None]:
    """A list of finite numbers or None."""
    return [number(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, str) else []


def ends_of(value: object) -> tuple[float, float] | None:
    """The two ends of an interval, or None for whatever else a document holds there."""
    match numbers(value):
        case [float() as low, float() as high]:
            return low, high
    return None


def interval_of(metrics: Document) -> tuple[float, float] | None:
    """The 95% confidence interval of macro-F1, where the document has one."""
    return ends_of(metrics.get("macro_f1_ci95"))


def per_class(metrics: Document, label: str) -> Document:
    """A label's scores; empty where the document has none."""
    scores = metrics.get("per_class")
    own = scores.get(label) if isinstance(scores, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def keep(figures: dict[str, Figure], id: str, figure: Figure | None) -> str:
    """Puts a figure among the page's and gives its id; "" where there is none."""
    if figure is None:
        return ""
    id = visible(id)  # as the page writes it
    figures[id] = figure
    return id


def macro_figure(runs: Sequence[Run], floor: float | None) -> Figure | None:
    """Macro-F1 on the test split with its confidence interval, a line per method; None where nothing was scored."""
    scored = [run for run in runs if number(run.test.get("macro_f1")) is not None]
    if not scored:
        return None
    values = [number(run.test["macro_f1"]) or 0.0 for run in scored]
    spans = [interval_of(run.test) or (value, value) for run, value in zip(scored, values, strict=True)]
    names = [plain(name) for name in row_names(scored)]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": values,
            "y": names,
            "error_x": _error_bars(values, spans, "@c0", thickness=2),
            "marker": {"color": "@c0", "size": 10},
            "customdata": [[f"{low:.2f} to {high:.2f}"] for low, high in spans],
            "hovertemplate": "%{y}: %{x:.2f} (%{customdata[0]})<extra></extra>",
        }
    ]
    layout: Figure = {
        "height": 70 + 34 * len(scored),
        "margin": {"l": 10, "r": 16, "t": 22, "b": 40},
        "xaxis": {"range": [0, 1], "title": {"text": "macro-F1 on the test split"}, "tickformat": ".1f"},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "showlegend": False,
    }
    return {"data": data, "layout": layout | ({} if floor is None else upright(floor, "all-positive baseline"))}


def row_names(runs: Sequence[Run]) -> list[str]:
    """The method of each run; with the run's name where two runs are of one method."""
    methods = [run.method for run in runs]
    return [run.method if methods.count(run.method) == 1 else f"{run.method} ({run.name})" for run in runs]


def precision_recall_figure(runs: Sequence[Run], label: str, split: str) -> Figure | None:
    """A label's precision over recall, a line per method, its operating point marked; None without points."""
    data: list[dict[str, Any]] = []
    prevalence = None
    for run, name, color, dash in styled(runs):
        metrics = run.test if split == "test" else run.validation
        points, scores = _curves(metrics, label, "precision_recall"), per_class(metrics, label)
        recall, precision = numbers(points.get("recall")), numbers(points.get("precision"))
        if not recall or len(recall) != len(precision):
            continue
        prevalence = prevalence_of(metrics, label)
        data.append(curve(recall, precision, name, color, dash, "recall %{x:.2f}, precision %{y:.2f}"))
        at = number(scores.get("recall")), number(scores.get("precision"))
        if None not in at:
            data.append(_marker(at[0], at[1], name, color, "at its threshold: recall %{x:.2f}, precision %{y:.2f}"))
    if not data:
        return None
    layout = _panel("recall", "precision")
    if prevalence is not None:
        layout["shapes"] = [rule(0, 1, prevalence, prevalence, dash="dot")]
    return {"data": data, "layout": layout}


def reliability_figure(runs: Sequence[Run], label: str, split: str) -> Figure | None:
    """A label's share of positive clips over its score, a line per method; None without points."""
    data: list[dict[str, Any]] = []
    for run, name, color, dash in styled(runs):
        metrics = run.test if split == "test" else run.validation
        points = _curves(metrics, label, "reliability")
        score, share, clips = (numbers(points.get(key)) for key in ("score", "observed", "clips"))
        if not score or not len(score) == len(share) == len(clips):
            continue
        largest = max((count or 0 for count in clips), default=0) or 1
        trace = curve(
            score, share, name, color, dash, "score %{x:.2f}: on in %{y:.0%} of %{customdata} " + unit_of(metrics) + "s"
        )
        sizes = [4 + 6 * math.sqrt((count or 0) / largest) for count in clips]
        is_curve = min((count or 0 for count in clips), default=0) >= LEAST_CLIPS
        bars = [_share_interval(one, count) for one, count in zip(share, clips, strict=True)]
        error = _error_bars([one or 0.0 for one in share], bars, color, thickness=1)
        trace |= {"mode": "lines+markers" if is_curve else "markers", "customdata": clips, "error_y": error}
        data.append(trace | {"marker": {"color": color, "size": sizes}})
    if not data:
        return None
    return {"data": data, "layout": _panel("score", "share that is on") | {"shapes": [rule(0, 1, 0, 1, dash="dot")]}}


def _share_interval(share: float | None, count: float | None) -> tuple[float, float]:
    """Wilson's 95% interval of a share of so many clips."""
    if share is None or not count:
        return share or 0.0, share or 0.0
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * share * (1 - share) / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return min(share, centre - half), max(share, centre + half)


def session_figure(points: Sequence[tuple[str, float]], macro: float | None) -> Figure:
    """Macro-F1 of each session, and the one of all together as a line."""
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [value for _, value in points],
        "y": [plain(name) for name, _ in points],
        "marker": {"color": "@c0", "size": 9},
        "hovertemplate": "%{y}: macro-F1 %{x:.2f}<extra></extra>",
    }
    layout: Figure = {
        "height": 70 + 20 * len(points),
        "margin": {"l": 10, "r": 16, "t": 22, "b": 40},
        "xaxis": {"range": [-0.02, 1.02], "title": {"text": "macro-F1 of a session"}, "tickformat": ".1f"},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout | ({} if macro is None else upright(macro, "all sessions together"))}


def threshold_figure(run: Run, label: str) -> Figure | None:
    """A label's F1, precision and recall over the threshold, on validation; None without points."""
    points = _curves(run.validation, label, "precision_recall")
    thresholds, precision, recall = (numbers(points.get(key)) for key in ("threshold", "precision", "recall"))
    if not thresholds or not len(thresholds) == len(precision) == len(recall):
        return None
    f1 = [
        2 * p * r / (p + r) if p and r else 0.0 if r is not None else None
        for p, r in zip(precision, recall, strict=True)
    ]
    rows = (("F1", f1, "@c0", "solid"), ("precision", precision, "@c1", "dash"), ("recall", recall, "@c2", "dot"))
    data = [
        curve(thresholds, values, name, color, dash, "threshold %{x:.2f}: %{y:.2f}")
        for name, values, color, dash in rows
    ]
    layout = _panel("threshold", "")
    chosen = number(per_class(run.validation, label).get("threshold"))
    if chosen is not None:
        layout["shapes"] = [rule(chosen, chosen, 0, 1, dash="solid")]
        note = {"x": chosen, "y": 1.02, "yanchor": "bottom", "showarrow": False, "text": f"{chosen:.2f}"}
        layout["annotations"] = [note | {"font": {"color": "@ink", "size": 11}}]
    return {"data": data, "layout": layout}


def cooccurrence_figure(labels: Sequence[str], clips: Sequence[Clip]) -> Figure | None:
    """How often the column's label is on where the row's is: shares of labelled clips; None without any."""
    labelled = [clip.targets for clip in clips if clip.labelled]
    if not labelled or not labels:
        return None
    C = range(len(labels))
    together = [[sum(row[a] == 1 and row[b] == 1 for row in labelled) for b in C] for a in C]
    shares = [[together[a][b] / together[a][a] if together[a][a] else None for b in C] for a in C]
    names = [plain(label) for label in labels]
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares,
        "customdata": together,
        **HEAT,
        "texttemplate": "%{z:.0%}",
        "hovertemplate": "of the clips with %{y}, %{z:.0%} (%{customdata}) have %{x}<extra></extra>",
    }
    layout = {
        "height": 110 + 36 * len(labels),
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "xaxis": {"side": "top", "automargin": True, "showgrid": False, "ticks": ""},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False, "ticks": ""},
    }
    return {"data": [trace], "layout": layout}


def prevalence_of(metrics: Document, label: str) -> float | None:
    """The share of a split's clips that have the label."""
    support, clips = number(per_class(metrics, label).get("support")), number(metrics.get("n_clips"))
    return support / clips if support is not None and clips else None


def _curves(metrics: Document, label: str, kind: str) -> Document:
    curves = metrics.get("curves")
    own = curves.get(label) if isinstance(curves, Mapping) else None
    points = own.get(kind) if isinstance(own, Mapping) else None
    return points if isinstance(points, Mapping) else {}


def styled(runs: Sequence[Run]) -> list[tuple[Run, str, str, str]]:
    """Each run with its name, colour and dash."""
    colors = cycle(f"@c{index}" for index in range(6))
    return list(zip(runs, row_names(runs), colors, cycle(DASHES)))


def curve(x: Sequence[Any], y: Sequence[Any], name: str, color: str, dash: str, hover: str) -> dict[str, Any]:
    """A line through points; a gap where one is None."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "name": plain(name),
        "line": {"color": color, "dash": dash, "width": 2},
        "hovertemplate": f"{hover}<extra>{plain(name)}</extra>",
    }


def _marker(x: object, y: object, name: str, color: str, hover: str) -> dict[str, Any]:
    marker = {"color": color, "size": 9, "line": {"color": "@paper", "width": 1.5}}
    trace = {"type": "scatter", "mode": "markers", "x": [x], "y": [y], "marker": marker}
    return trace | {"hovertemplate": f"{hover}<extra>{plain(name)}</extra>"}


def _panel(x: str, y: str) -> Figure:
    """Layout of a small square panel from 0 to 1; the page has its title and its legend."""
    axis = {"range": [-0.02, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0", "", ".5", "", "1"]}
    return {
        "height": _PANEL_PX,
        "margin": {"l": 44, "r": 10, "t": 18, "b": 38},
        "xaxis": axis | {"title": {"text": x, "standoff": 4}},
        "yaxis": axis | {"title": {"text": y, "standoff": 4}},
        "showlegend": False,
    }


def _error_bars(
    values: Sequence[float], spans: Sequence[tuple[float, float]], color: str, *, thickness: int
) -> dict[str, Any]:
    """Lines from the lower to the upper end of each value's interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for (_, high), value in zip(spans, values, strict=True)],
        "arrayminus": [value - low for (low, _), value in zip(spans, values, strict=True)],
        "color": color,
        "thickness": thickness,
        "width": 0,
    }


def upright(x: float, text: str, *, dash: str = "dot") -> Figure:
    """What a layout has for an upright line with words above it."""
    note = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": text}
    return {
        "shapes": [rule(x, x, 0, 1, yref="paper", dash=dash)],
        "annotations": [note | {"font": {"color": "@muted", "size": 11}}],
    }


def rule(x0: float, x1: float, y0: float, y1: float, *, dash: str, yref: str = "y") -> dict[str, Any]:
    """A quiet straight line below the data."""
    line = {"color": "@muted", "width": 1, "dash": dash}
    return {"type": "line", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "yref": yref, "line": line, "layer": "below"}
