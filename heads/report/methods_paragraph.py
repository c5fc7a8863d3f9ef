"""A paragraph for the methods section of a paper, written from what the run recorded of itself.

A sentence stands in it only where the documents hold its numbers, so that nothing is claimed that was not done; what
only the authors know (who was recorded, who annotated, who approved) is theirs to add.
"""

from collections.abc import Mapping
from typing import Any

from featurecache.clips.clip import ClipTable
from featurecache.clips.label_counts import LabelSources
from featurecache.clips.leakage import split_level
from heads.methods import FT_LC_TEXT, ZERO_SHOT
from heads.report.documents import Document, Documents, Run, number
from heads.report.figures import interval_of
from heads.report.summary import best_run, extent, floor_of

CITATIONS = (
    "E. Guerriero, K. Engan, Ø. Meinich-Bache. Can Local Vision-Language Models Improve Activity Recognition over "
    "Vision Transformers? Case Study on Newborn Resuscitation.",
    "featurecache, the software (CITATION.cff in its repository)",
)


def methods_paragraph(documents: Documents) -> str:
    """What was done for the run of the highest macro-F1 on the test split; empty where nothing was scored on it."""
    run = best_run(documents.runs)
    if run is None:
        return ""
    rule = run.bundle.get("clips")
    samples = rule.get("samples", "none") if isinstance(rule, Mapping) else "none"
    unit = "clips" if samples == "none" else "samples"
    sentences = (
        _of_recordings(documents.table, documents.sources),
        _of_clips(rule),
        _of_samples(samples),
        _of_splits(documents.table),
        _of_features(run),
        _of_training(run, unit),
        _of_scores(run.test, unit),
        _of_versions(run.best.get("versions")),
    )
    return " ".join(filter(None, sentences))


def _of_recordings(table: ClipTable | None, sources: LabelSources) -> str:
    found = extent(table, sources)
    return f"The data set holds {found}." if found else ""


def _of_clips(rule: object) -> str:
    if not isinstance(rule, Mapping):
        return ""
    length, stride, overlap = (number(rule.get(f"{name}_us")) for name in ("length", "stride", "min_overlap"))
    if length is None or stride is None or overlap is None:
        return ""
    every = "" if length == stride else f", one each {stride / 1e6:g} s"
    return (
        f"Recordings were cut into clips of {length / 1e6:g} s{every}; an activity counted as present in a clip when "
        f"its annotations covered at least {overlap / 1e6:g} s of it."
    )


def _of_samples(rule: object) -> str:
    return "" if rule == "none" else f'Several clips make one sample, which has targets of its own (rule "{rule}").'


def _of_splits(table: ClipTable | None) -> str:
    if table is None:
        return ""
    if split_level(table.clips) == "clip":
        return "Training and test data were split without regard to sessions, which biases scores upwards."
    return "Training and test data were split by session."


def _of_features(run: Run) -> str:
    """The frozen model and what was taken from it, by the first of a head's inputs."""
    inputs = run.bundle.get("inputs")
    if not isinstance(inputs, Mapping) or not inputs:
        return ""
    first = next(iter(inputs.values()))
    made = first.get("feature_inputs") if isinstance(first, Mapping) else None
    if not isinstance(made, Mapping):
        return ""
    backbone, sampling = made.get("backbone"), made.get("sampling")
    if not isinstance(backbone, Mapping) or not isinstance(sampling, Mapping):
        return ""
    model = f"a frozen model of the family {backbone.get('family')} in {backbone.get('compute_dtype')}"
    fingerprint = f"fingerprint {str(first.get('fingerprint'))[:16]}"
    if run.method in ZERO_SHOT:
        return f"{model[0].upper()}{model[1:]} saw {sampling.get('frames')} frames of each clip ({fingerprint})."
    return (
        f"Features were computed once by {model}, from {sampling.get('frames')} frames of each clip, and stored; the "
        f"head reads {', '.join(inputs)} (tap/pooling; the first has {fingerprint})."
    )


def _of_training(run: Run, unit: str) -> str:
    if run.method in ZERO_SHOT:
        return (
            f"{run.method} was asked about each clip without training; labelled sessions that are not test sessions "
            "chose its wording and thresholds."
        )
    if not isinstance(run.best.get("settings"), Mapping):
        return ""
    fitted = number(run.best.get("train_clips"))
    on = "" if fitted is None else f" on {fitted:.0f} {unit}"
    what = f"{run.method} was trained{on} with weighted binary cross-entropy, one output for each activity."
    if run.method == FT_LC_TEXT:
        what += (
            " Its weights were penalised by their distance to those that written descriptions of the activities give "
            "in the space that the model's frames and texts share."
        )
    if run.best.get("scored") != "out-of-fold":
        return f"{what} Its epoch and thresholds were chosen on the validation sessions."
    by = "out-of-fold predictions, grouped by session, over all sessions that are not test sessions"
    counts = run.best.get("trials")
    finished = [number(counts.get(name)) for name in ("completed", "pruned")] if isinstance(counts, Mapping) else []
    if None in finished or not finished:
        return f"{what} Its settings were set beforehand; thresholds and calibration come from {by}."
    return (
        f"{what} Its settings were chosen among {sum(filter(None, finished)):.0f} trials of a TPE search (Optuna) by "
        f"macro-F1 of {by}; thresholds and calibration come from the same predictions, and the head was then fitted on "
        "all of these sessions."
    )


def _of_scores(metrics: Document, unit: str) -> str:
    value, interval, floor = number(metrics.get("macro_f1")), interval_of(metrics), floor_of(metrics)
    if value is None:
        return ""
    text = f"On {metrics.get('n_clips')} {unit} of {metrics.get('n_sessions')} test sessions macro-F1 was {value:.2f}"
    if interval:
        text += f" (95% confidence interval over sessions {interval[0]:.2f} to {interval[1]:.2f})"
    if floor is not None:
        text += f"; predicting every activity in every {unit[:-1]} reaches {floor:.2f}"
    looks = number(metrics.get("looks"))
    if looks is not None:
        text += f". These sessions were evaluated {'once' if looks == 1 else f'{looks:.0f} times'}"
    return f"{text}."


def _of_versions(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return ""
    return f"Software: {', '.join(f'{name} {value}' for name, value in versions.items())}."
