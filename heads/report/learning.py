"""Learning curves of the runs that trained a backbone's parameters: losses and macro-F1 after each epoch.

Epoch 0 is the network before training, so it has no training loss. A curve of one epoch would be a line between two
points and says less than its numbers: such a run gets a sentence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from heads.report.documents import Document, Documents, Run, number
from heads.report.figures import Figure, curve, keep, upright

_SCORES = ("train_loss", "validation_loss", "validation_macro_f1")


def learning_problem(learning: Document) -> str:
    """Why `learning.json` cannot be drawn; empty where it can."""
    epochs = learning.get("epochs")
    if not isinstance(epochs, list) or not epochs or not all(isinstance(one, Mapping) for one in epochs):
        return "it has no list of epochs"
    counted = [number(one.get("epoch")) for one in epochs]
    if None in counted or len(set(counted)) < len(counted):
        return "its epochs are not counted"
    if any(one.get(name) is not None and number(one[name]) is None for one in epochs for name in _SCORES):
        return "its losses and scores are not all numbers"
    if number(learning.get("kept_epoch")) not in counted:
        return "the selected epoch is none of its epochs"
    return ""


def learning_content(documents: Documents, figures: dict[str, Figure]) -> dict[str, Any]:
    """What the training section shows; its figures go into `figures`."""
    rows = []
    for run in documents.runs:
        if not run.learning or learning_problem(run.learning):
            continue
        epochs = sorted(run.learning["epochs"], key=lambda one: float(one["epoch"]))
        rows.append(
            {
                "name": run.name,
                "method": run.method,
                "kept": int(run.learning["kept_epoch"]),
                "trained": sum(one["epoch"] > 0 for one in epochs),
                "scores": [[one.get(name) for name in _SCORES] for one in (epochs[0], epochs[-1])],
                **_figures(run, epochs, figures),
            }
        )
    return {"learning": rows}


def _figures(run: Run, epochs: Sequence[Document], figures: dict[str, Figure]) -> dict[str, str]:
    """The ids of a run's two figures; "" where it has one epoch or none."""
    if len(epochs) < 3:
        return {"loss_id": "", "macro_id": ""}
    kept = float(run.learning["kept_epoch"])
    x = [float(one["epoch"]) for one in epochs]
    train_loss, validation_loss, macro_f1 = ([one.get(name) for one in epochs] for name in _SCORES)
    losses = [
        curve(x, train_loss, "training", "@c1", "dash", "epoch %{x}: training loss %{y:.4f}"),
        curve(x, validation_loss, "validation", "@c0", "solid", "epoch %{x}: validation loss %{y:.4f}"),
    ]
    scores = [curve(x, macro_f1, "validation", "@c0", "solid", "epoch %{x}: macro-F1 %{y:.3f}")]
    return {
        "loss_id": keep(figures, f"learning-{run.name}-loss", _over_epochs(losses, "loss", kept)),
        "macro_id": keep(figures, f"learning-{run.name}-macro", _over_epochs(scores, "macro-F1 at 0.5", kept)),
    }


def _over_epochs(data: list[dict[str, Any]], title: str, kept: float) -> Figure:
    """Lines with a dot for each epoch, the selected epoch marked by a vertical line."""
    last = max(data[0]["x"])
    layout: Figure = {
        "height": 260,
        "margin": {"l": 56, "r": 12, "t": 22, "b": 40},
        "xaxis": {
            "title": {"text": "epoch"},
            "tick0": 0,
            "dtick": max(1, -(-last // 8)),
            "range": [-0.02 * last, 1.02 * last],
        },
        "yaxis": {"title": {"text": title}},
        **upright(kept, "kept", dash="solid"),
        "showlegend": False,
    }
    dots = {"size": 6}
    return {
        "data": [one | {"mode": "lines+markers", "marker": dots | {"color": one["line"]["color"]}} for one in data],
        "layout": layout,
    }
