"""How far a result depends on the rule for targets, on how common a label is, and on what a false alarm costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from heads.report.documents import Document, number
from heads.report.figures import Figure, curve, interval_of, keep, numbers


def sensitivity_content(metrics: Document, figures: dict[str, Figure]) -> dict[str, Any]:
    """What the page shows of them, of one run; its figures go into `figures`."""
    shift, decisions = (metrics.get(name) for name in ("prevalence_shift", "decision_curves"))
    panels = [
        (str(label), keep(figures, f"decision-{at}", figure))
        for at, (label, points) in enumerate(decisions.items() if isinstance(decisions, Mapping) else ())
        if (figure := _decision_figure(points)) is not None
    ]
    return {
        "overlap_rows": [_overlap_row(one) for one in _listed(metrics.get("overlap_sensitivity"))],
        "violations": [
            {
                "labels": ", ".join(map(str, one["labels"])),
                "clips": number(one.get("clips")),
                "of": number(one.get("of")),
                "kept": one.get("kept") is True,
            }
            for one in _listed(metrics.get("exclusive_violations"))
            if isinstance(one.get("labels"), list)
        ],
        "shift_rows": [
            {
                "label": str(label),
                "stated": one.get("stated") is True,
                **{key: number(one.get(key)) for key in _SHIFT},
            }
            for label, rows in (shift.items() if isinstance(shift, Mapping) else ())
            for one in _listed(rows)
        ],
        "decision_figures": panels,
    }


_SHIFT = ("prevalence", "precision", "npv", "f1", "probability_at_threshold")


def _listed(value: object) -> Sequence[Document]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _overlap_row(one: Document) -> dict[str, Any]:
    share, support = number(one.get("share")), one.get("support")
    counts = [number(count) or 0 for count in support.values()] if isinstance(support, Mapping) else []
    return {
        "share": ("any time of it" if not share else f"{share:.0%} of it") + (", as here" if one.get("own") else ""),
        "macro": number(one.get("macro_f1")),
        "interval": interval_of(one),
        "positives": sum(counts),
    }


def _decision_figure(points: object) -> Figure | None:
    """Net benefit of acting by the model, always and never, over the probability from which somebody acts."""
    if not isinstance(points, Mapping):
        return None
    x, model, always = (numbers(points.get(key)) for key in ("probability", "model", "all_positive"))
    if not x or not len(x) == len(model) == len(always):
        return None
    highest = max(one or 0 for one in [*model, *always])
    hover = "acting from %{x:.2f}: net benefit %{y:.3f}"
    axis = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0", "", ".5", "", "1"], "range": [0, 1]}
    return {
        "data": [
            curve(x, model, "by the model", "@c0", "solid", hover),
            curve(x, always, "always", "@c1", "dash", hover),
            curve([0, 1], [0, 0], "never", "@muted", "dot", hover),
        ],
        "layout": {
            "height": 230,
            "margin": {"l": 48, "r": 10, "t": 14, "b": 38},
            "xaxis": axis | {"title": {"text": "acting from this probability", "standoff": 4}},
            "yaxis": {"range": [-0.3 * highest - 0.01, 1.1 * highest + 0.01], "title": {"text": "net benefit"}},
            "showlegend": False,
        },
    }
