"""Samples of several clips on the page: scores of slices, and the weights that a head gives to a sample's clips."""

from collections.abc import Mapping
from typing import Any

from heads.report.documents import Document, number
from heads.report.figures import HEAT, Figure, interval_of, keep, numbers


def sample_content(metrics: Document, figures: dict[str, Figure]) -> dict[str, Any]:
    """What the page shows of one run's samples; its figures go into `figures`."""
    slices, weights = (found if isinstance(found := metrics.get(name), Mapping) else {} for name in _NAMES)
    panels, aurocs = [], []
    for at, (label, found) in enumerate(weights.items()):
        figure = _weights_figure(found) if isinstance(found, Mapping) else None
        if figure is not None:
            panels.append((str(label), keep(figures, f"weights-{at}", figure)))
            aurocs.append((str(label), number(found.get("auroc"))))
    return {
        "slice_rows": [
            {
                "slice": f"{column}: {value}",
                "macro": number(one.get("macro_f1")),
                "interval": interval_of(one),
                "samples": number(one.get("n_clips")),
            }
            for column, values in slices.items()
            for value, one in (values.items() if isinstance(values, Mapping) else ())
            if isinstance(one, Mapping)
        ],
        "weight_figures": panels,
        "weight_aurocs": aurocs,
    }


_NAMES = ("slices", "part_weights")


def _weights_figure(found: Document) -> Figure | None:
    """A row for each sample in which the label is on, a cell for each of its clips; None without any."""
    listed = found.get("samples")
    samples = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    weights = [numbers(one.get("weights")) for one in samples]
    if not any(weights):
        return None
    is_on = [["on" if target == 1 else "" for target in numbers(one.get("on"))] for one in samples]
    trace = {
        "type": "heatmap",
        "x": [str(place + 1) for place in range(max(map(len, weights)))],
        "z": weights,
        "text": is_on,
        **HEAT,
        "texttemplate": "%{text}",
        "hovertemplate": "clip %{x}: weight %{z:.2f} %{text}<extra></extra>",
    }
    layout = {
        "height": 70 + 18 * len(weights),
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "xaxis": {"side": "top", "showgrid": False, "ticks": "", "dtick": 1},
        "yaxis": {"autorange": "reversed", "showgrid": False, "ticks": "", "showticklabels": False},
    }
    return {"data": [trace], "layout": layout}
