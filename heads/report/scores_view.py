"""The rows of the page's tables of methods and labels, and their figures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from featurecache.clips.clip import ClipTable
from featurecache.clips.splits import SPLITS
from featurecache.spelling import counted
from heads.report import figures as draw
from heads.report.documents import Document, Documents, Run, number, unit_of
from heads.report.figures import Figure, keep, per_class
from heads.report.names import last_part
from heads.report.sample_view import sample_content
from heads.report.sensitivity_view import sensitivity_content
from heads.report.summary import all_positive_f1, floor_of


def _all_labels(documents: Documents) -> list[str]:
    labels = list(documents.table.labels) if documents.table is not None else []
    for run in documents.runs:
        for metrics in (run.test, run.validation):
            scores = metrics.get("per_class")
            labels += scores if isinstance(scores, dict) else []
    return list(dict.fromkeys(labels))


def methods_content(documents: Documents, figures: dict[str, Figure]) -> dict[str, Any]:
    """What the methods section shows; its figure goes into `figures`."""
    labels = _all_labels(documents)
    tested = [run for run in documents.runs if run.test]
    floor = all_positive_f1(tested[0].test) if tested else {}
    rows: list[dict[str, Any]] = []
    if floor:
        rows.append(
            _method_row("all-positive baseline", [floor.get(label) for label in labels], floor_of(tested[0].test))
        )
        rows += [
            _method_row(
                str(name), [number(per_class(one, label).get("f1")) for label in labels], number(one["macro_f1"])
            )
            | {"run": "compare", "interval": draw.interval_of(one)}
            for name, one in _low_cost(documents.compared).items()
        ]
        for row in rows:
            row["floor"] = True
    for run in documents.runs:
        rows.append(_run_row(run, run.test, labels))
        rows[-1] |= {"validation": number(run.validation.get("macro_f1")), "looks": run.looks}
        if run.each_session:
            rows.append(_run_row(run, run.each_session, labels) | {"run": f"{run.name}, each session left out once"})
    scored = [row for row in rows if not row["floor"]]
    for at, label in enumerate(labels):
        _mark_best([row["f1"][at] for row in scored], floor.get(label))
    _mark_best([row["macro"] for row in scored], floor_of(tested[0].test) if tested else None)
    comparisons = [found for run in documents.runs for found in _comparisons(run)]
    figure = draw.macro_figure(documents.runs, floor_of(tested[0].test) if tested else None)
    return {
        "labels": labels,
        "methods": rows,
        "comparisons": comparisons,
        **_compared(documents.compared),
        "macro_id": keep(figures, "macro", figure),
    }


def _low_cost(document: Document) -> Mapping[str, Document]:
    """Metrics of the low-cost baselines that `featurecache compare` fitted, by name."""
    found = document.get("baselines")
    known = found.items() if isinstance(found, Mapping) else ()
    return {name: one for name, one in known if isinstance(one, Mapping) and "macro_f1" in one}


def _compared(document: Document) -> dict[str, Any]:
    """What `featurecache compare` found beside the scores, and methods that it missed with what makes them."""
    rows, missing = document.get("rows"), document.get("missing")
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping):
            continue
        difference, audit = (one if isinstance(one := row.get(key), Mapping) else {} for key in ("difference", "audit"))
        found.append(
            {
                "name": str(row.get("method", "")),
                "run": str(row.get("run", "")),
                "difference": number(difference.get("difference")),
                "interval": draw.ends_of(difference.get("difference_ci95")),
                "p_holm": number(difference.get("p_holm")),
                **{key: number(row.get(key)) for key in ("another_session", "seconds_per_clip")},
                **{key: number(audit.get(key)) for key in ("unparsable", "hallucinated", "violations")},
            }
        )
    commands = missing.items() if isinstance(missing, Mapping) else ()
    return {"compared": found, "missing": [{"name": name, "command": str(command)} for name, command in commands]}


def _run_row(run: Run, metrics: Document, labels: Sequence[str]) -> dict[str, Any]:
    f1 = [number(per_class(metrics, label).get("f1")) for label in labels]
    return _method_row(run.method, f1, number(metrics.get("macro_f1"))) | {
        "run": run.name,
        "forced": "clip" in (metrics.get("split_level"), run.best.get("split_level")),
        "interval": draw.interval_of(metrics),
    }


def _comparisons(run: Run) -> list[dict[str, Any]]:
    """A run's paired comparisons in numbers; the other bundle is named by its run."""
    several = run.comparison.get("comparisons")
    found = []
    for one in several if isinstance(several, list) else [run.comparison]:
        if not isinstance(one, Mapping) or (difference := number(one.get("difference"))) is None:
            continue
        found.append(
            {
                "run": run.name,
                "against": PurePosixPath(str(one.get("against", ""))).parent.name,
                "difference": difference,
                "interval": draw.ends_of(one.get("difference_ci95")),
                "p_value": number(one.get("p_value")),
                "p_holm": number(one.get("p_holm")),
            }
        )
    return found


def _method_row(name: str, f1: Sequence[float | None], macro: float | None) -> dict[str, Any]:
    cells = [{"value": value, "best": False} for value in f1]
    row = {
        "name": name,
        "run": "",
        "floor": False,
        "forced": False,
        "f1": cells,
        "macro": {"value": macro, "best": False},
    }
    return row | {"interval": None, "validation": None, "looks": None}


def _mark_best(cells: Sequence[dict[str, Any]], floor: float | None) -> None:
    """Marks the highest of several scores, where it is above the all-positive baseline."""
    known = [cell["value"] for cell in cells if cell["value"] is not None]
    for cell in cells:
        cell["best"] = len(known) > 1 and cell["value"] == max(known) and max(known) > (floor or 0)


def labels_content(documents: Documents, figures: dict[str, Figure]) -> dict[str, Any]:
    """What the labels section shows; its figures go into `figures`."""
    labels, runs = _all_labels(documents), documents.runs
    tested = [run for run in runs if number(run.test.get("macro_f1")) is not None]
    split = "test" if tested else "validation"
    shown = max(tested or runs, key=lambda run: number(_of_split(run, split).get("macro_f1")) or -1, default=None)
    of_shown = _of_split(shown, split) if shown is not None else {}
    tuned = shown if shown is not None and shown.validation else next((run for run in runs if run.validation), None)
    table = documents.table
    table_labels, clips = (table.labels, table.clips) if table is not None else ((), ())

    def panels(kind: str, of_label: Any) -> list[tuple[str, str]]:
        kept = [(label, keep(figures, f"{kind}-{at}", of_label(label))) for at, label in enumerate(labels)]
        return [(label, id) for label, id in kept if id]

    return {
        "label_scores": {"name": dict(zip(runs, draw.row_names(runs), strict=True))[shown], "split": split}
        if shown is not None
        else None,
        "label_rows": [_label_row(_of_split(shown, split), label) for label in labels] if shown is not None else [],
        **_sessions(of_shown, labels, figures),
        **sample_content(of_shown, figures),
        **sensitivity_content(of_shown, figures),
        "unit": unit_of(of_shown),
        "least_clips": draw.LEAST_CLIPS,
        "curve_split": split,
        "legend": [
            {"name": name, "color": color.removeprefix("@"), "dash": dash}
            for run, name, color, dash in draw.styled(runs)
            if _of_split(run, split).get("curves")
        ],
        "pr_figures": panels("pr", lambda label: draw.precision_recall_figure(runs, label, split)),
        "reliability_figures": panels("reliability", lambda label: draw.reliability_figure(runs, label, split)),
        "threshold_run": tuned.method if tuned is not None else "",
        "threshold_figures": panels("threshold", lambda label: draw.threshold_figure(tuned, label) if tuned else None),
        "cooccurrence_id": keep(figures, "cooccurrence", draw.cooccurrence_figure(table_labels, clips)),
        "splits": _splits(table),
        "split_rows": _split_rows(table),
    }


def _of_split(run: Run, split: str) -> Document:
    return run.test if split == "test" else run.validation


def _label_row(metrics: Document, label: str) -> dict[str, Any]:
    scores = per_class(metrics, label)
    calibration = metrics.get("calibration")
    before = calibration.get("before") if isinstance(calibration, Mapping) else None
    fields = ("f1", "precision", "recall", "specificity", "npv", "auroc", "average_precision", "threshold")
    ece = number(per_class(before, label).get("ece")) if isinstance(before, Mapping) else None
    return {
        "label": label,
        "ece": ece,
        "interval": draw.ends_of(scores.get("f1_ci95")),
        **{name: number(scores.get(name)) for name in (*fields, "support", "sessions")},
    }


def _sessions(metrics: Document, labels: Sequence[str], figures: dict[str, Figure]) -> dict[str, Any]:
    """The scores of each session, the lowest first, and their picture."""
    listed = metrics.get("per_session")
    rows = [
        {
            "session": last_part(str(one.get("session", ""))),
            "macro": number(one.get("macro_f1")),
            "clips": number(one.get("n_clips")),
            "f1": [number(own.get(label)) for label in labels],
        }
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, Mapping) and isinstance(own := one.get("f1"), Mapping)
    ]
    rows.sort(key=lambda row: (row["macro"] is None, row["macro"]))
    points = [(str(row["session"]), value) for row in rows if (value := number(row["macro"])) is not None]
    figure = draw.session_figure(points, number(metrics.get("macro_f1"))) if len(points) > 1 else None
    return {"session_rows": rows, "session_id": keep(figures, "sessions", figure)}


def _splits(table: ClipTable | None) -> list[dict[str, Any]]:
    clips = [clip for clip in table.clips if clip.labelled] if table is not None else []
    return [
        {
            "name": split,
            "about": f"{counted(len({clip.session for clip in clips if clip.split == split}), 'session')}, "
            f"{counted(sum(clip.split == split for clip in clips), 'clip')}",
        }
        for split in SPLITS
    ]


def _split_rows(table: ClipTable | None) -> list[dict[str, Any]]:
    if table is None or not any(clip.labelled for clip in table.clips):
        return []
    rows = []
    for at, label in enumerate(table.labels):
        counts = []
        for split in SPLITS:
            own = [clip.targets[at] for clip in table.clips if clip.labelled and clip.split == split]
            counts.append({"count": own.count(1), "share": own.count(1) / len(own) if own else None})
        rows.append({"label": label, "counts": counts})
    return rows
