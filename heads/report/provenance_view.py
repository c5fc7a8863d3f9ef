"""The rows of the page's tables of searches, feature spaces, runs and failures."""

from collections.abc import Mapping, Sequence
from typing import Any

from featurecache.spec import flatten
from featurecache.store.view import Space
from heads.report.documents import Documents, Run
from heads.report.figures import Figure, keep
from heads.report.methods_paragraph import CITATIONS, methods_paragraph
from heads.report.names import ShownNames, last_part
from heads.report.searching import DrawnSearch


def search_content(searches: Sequence[DrawnSearch], figures: dict[str, Figure]) -> dict[str, Any]:
    """What the search section shows; its figures go into `figures`."""
    shown = []
    for search in searches:
        run, drawn = search.run, search.figures
        settings, trials = run.best.get("settings"), run.best.get("trials")
        shown.append(
            {
                "name": run.name,
                "about": ", ".join(f"{count} {state}" for state, count in trials.items() if count)
                if isinstance(trials, Mapping)
                else "",
                "figures": {
                    kind: keep(figures, f"search-{run.name}-{kind}", drawn.get(kind))
                    for kind in ("history", "importances", "parallel")
                }
                if drawn
                else {},
                "reason": search.reason,
                "settings": [
                    (_setting_name(key, settings), _by_label(value, run.best.get("labels")))
                    for key, value in settings.items()
                ]
                if isinstance(settings, Mapping)
                else [],
            }
        )
    return {"searches": shown}


def _setting_name(key: str, settings: Mapping[str, object]) -> str:
    """A setting's name, with what it is for where this head did not read it: later training takes it from here."""
    is_unread = settings.get("solver") == "convex" and key in ("learning_rate", "weight_decay", "batch_size", "epochs")
    return f"{key} (for training by AdamW, such as LoRA; not read here)" if is_unread else key


def _by_label(value: object, labels: object) -> str:
    """A setting; where it is one value for each label, with their names."""
    if isinstance(value, list) and isinstance(labels, list) and len(value) == len(labels):
        return ", ".join(f"{label} {_shown(one)}" for label, one in zip(labels, value, strict=True))
    return _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def provenance_content(documents: Documents, names: ShownNames, features: Mapping[str, Any]) -> dict[str, Any]:
    """What the provenance section shows; a model's folder is named without the way to it."""
    return {
        "paragraph": methods_paragraph(documents),
        "citations": CITATIONS,
        "asked": [(key, last_part(str(value)) if key == "model" else _shown(value)) for key, value in features.items()],
        "spaces": [_space_row(space, documents.runs) for space in documents.spaces],
        "runs": [
            {
                "name": run.name,
                "method": run.method,
                "feature": str(run.best.get("fingerprint", ""))[:16],
                "seed": run.best.get("seed", ""),
                "versions": _listed(run.best.get("versions")),
            }
            for run in documents.runs
        ],
        "failures": [
            {"recording": names[recording], "clips": count, "reason": reason}
            for (recording, reason), count in sorted(documents.failures.items(), key=lambda item: -item[1])
        ],
        "damage": [damage.reason for damage in documents.damage],
        "problems": documents.problems,
    }


def _space_row(space: Space, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "fingerprint": space.fingerprint,
        "tap": space.tap,
        "pooling": space.pooling,
        "shape": " x ".join(map(str, space.row_shape)),
        "dtype": space.stored_dtype,
        "rows": space.rows,
        "megabytes": space.bytes / 1e6,
        "used_by": ", ".join(run.name for run in runs if run.best.get("fingerprint") == space.fingerprint),
        "inputs": list(flatten(space.inputs).items()),
        "provenance": [_listed(variant) for variant in space.provenance],
    }


def _listed(versions: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, Mapping) else ""
