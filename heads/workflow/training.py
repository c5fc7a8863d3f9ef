"""One head with given settings, or a search over them: what `featurecache train` and `featurecache tune` call."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import AnnotationError, SettingsError, TrainingDataError
from featurecache.project.settings import Project, parse_section
from heads.bundle import Bundle
from heads.inputs import default_inputs, sample_inputs
from heads.runs import METRICS_NAMES, HeldOut, train_bundle
from heads.samples.joining import join_of, selected
from heads.settings import OF_FRAMES, HeadSettings, SearchSpace
from heads.timelines.tuning import TunedTimeline, load_timeline
from heads.workflow.data import (
    NO_TIMELINES,
    DataSummary,
    learning_data,
    own_table,
    reads_samples,
    run_folder,
    training_device,
)
from heads.workflow.timelines import tune_on_held_out

if TYPE_CHECKING:
    from heads.search.search import OnProgress


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run with a bundle that predicts.

    Attributes:
        folder: The run's folder.
        best: The content of `best.json`.
        metrics: The content of `out_of_fold_metrics.json`; of a fine-tuned backbone, of `validation_metrics.json`.
        timeline: Timeline settings chosen by the same scores; None where there was nothing to choose by.
        no_timeline_because: Why no timeline settings were chosen; empty where they were.
    """

    folder: Path
    best: Mapping[str, Any]
    metrics: Mapping[str, Any]
    timeline: TunedTimeline | None
    no_timeline_because: str

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.folder / "bundle"

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache train --json` and `tune --json`."""
        name = METRICS_NAMES[self.best["scored"]].removesuffix(".json")
        return {**self.best, "bundle": self.bundle, name: self.metrics}


def train(
    project: Project,
    *,
    seed: int = 0,
    features: str | None = None,
    allow_download: bool = False,
    on_data: Callable[[DataSummary], None] = lambda _: None,
) -> TrainedRun:
    """Fits one head with the settings of [train] to training and validation clips, and writes its run.

    Args:
        project: The project.
        seed: Seed of data order, initial weights and dropout.
        features: Name of imported features; None: those that the project selects.
        allow_download: Whether the model may be fetched from the hub.
        on_data: Called with a summary of the training data, before training starts.

    Raises:
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
        FeatureCacheError: As `heads.workflow.data.learning_data`.
    """
    section = project.settings.train
    if features is not None or "inputs" not in section:
        first = project.settings.features.select[0] if features is None else f"imported/{features}"
        joins = project.settings.samples.rule != "none" and section.get("kind", "linear") not in OF_FRAMES
        section = {**section, "inputs": f"mean({first})" if joins else first}
    settings = parse_section(section, HeadSettings, "train")
    if project.settings.samples.rule != "none":
        _check_joins([settings.inputs], [settings.kind])
    data, summary = learning_data(
        project,
        [settings.inputs],
        imported=features,
        words=settings.prior == "words",
        allow_download=allow_download,
        taught=settings.teacher_weight > 0,
    )
    on_data(summary)
    folder, timeline = run_folder(project, "train", features), TimelineChoice(project)
    device = training_device(project)
    best = train_bundle(data, settings=settings, seed=seed, folder=folder, device=device, choose_timeline=timeline)
    return finished_run(folder, best, timeline)


def tune(
    project: Project,
    *,
    trials: int = 200,
    seed: int = 0,
    permutations: int = 0,
    refit_seeds: int = 0,
    features: str | None = None,
    allow_download: bool = False,
    on_data: Callable[[DataSummary], None] = lambda _: None,
    on_progress: "OnProgress | None" = None,
) -> TrainedRun:
    """Searches head settings with Optuna's TPE and writes the run of the best; resumes an earlier search.

    Args:
        project: The project.
        trials: Finished trials that the study shall have in total, earlier calls' included.
        seed: Seed of sampler, data order, initial weights and dropout.
        permutations: Fits of the best settings to labels permuted across sessions, to see what chance gives.
        refit_seeds: Seeds with which the best settings are fitted again across session folds.
        features: Name of imported features; None: those that the project selects.
        allow_download: Whether the model may be fetched from the hub.
        on_data: Called with a summary of the training data, before the search starts.
        on_progress: Called after each trial with the number of finished trials, of asked ones, and the best score.

    Raises:
        SettingsError: If a number is too small, or kinds, features and solvers do not fit each other.
        StudyError: If the study cannot be resumed, or no trial completed.
        FeatureCacheError: As `heads.workflow.data.learning_data`.
    """
    section = project.settings.search
    space, rule = parse_section(section, SearchSpace, "search"), project.settings.samples.rule
    if features is not None:
        space = replace(space, inputs=sample_inputs((f"imported/{features}",), rule, space.kind))
    elif "inputs" not in section:
        chosen = default_inputs(project.settings.features.select, space.kind if rule == "none" else ("linear",))
        space = replace(space, inputs=sample_inputs(chosen, rule, space.kind))
    if rule != "none":
        _check_joins(space.inputs, space.kind)
    data, summary = learning_data(
        project, space.inputs, imported=features, words="words" in space.prior, allow_download=allow_download
    )
    on_data(summary)
    folder, timeline = run_folder(project, "tune", features), TimelineChoice(project)
    from heads.search.search import search_heads  # not before there is data to search on: it takes seconds

    best = search_heads(
        data,
        search_space=space,
        trials=trials,
        seed=seed,
        folder=folder,
        permutations=permutations,
        refit_seeds=refit_seeds,
        device=training_device(project),
        choose_timeline=timeline,
        on_progress=on_progress,
    )
    return finished_run(folder, best, timeline)


def _check_joins(inputs: Sequence[str], kinds: Sequence[str]) -> None:
    """Refuses, of samples of several clips, kinds that read none of the inputs, and inputs that no kind reads.

    Raises:
        SettingsError: Naming what to write.
    """
    as_they_are = "+".join(selected(inputs[0]))
    for kind in kinds:
        if kind in OF_FRAMES and all(map(join_of, inputs)):
            raise SettingsError(
                f"a head of kind {kind!r} must read the parts of samples as they are, but inputs are "
                f'{", ".join(inputs)}. Write "{as_they_are}", or another kind, which reads joined parts: "linear".'
            )
        if kind not in OF_FRAMES and not any(map(join_of, inputs)):
            raise SettingsError(
                f"a head of kind {kind!r} must read joined parts of samples, but inputs are {', '.join(inputs)}. Write "
                f'"mean({as_they_are})", or concat or pair; or kind "attention" or "weighted", which reads parts.'
            )
    for one in inputs:
        if not any(bool(join_of(one)) != (kind in OF_FRAMES) for kind in kinds):
            reads = 'joined parts: "linear" or "mlp"' if join_of(one) else 'parts: "attention" or "weighted"'
            raise SettingsError(
                f"inputs must have a head that reads them, but none of {', '.join(kinds)} reads {one}. Leave it out, "
                f"or add a kind that reads {reads}."
            )


class TimelineChoice:
    """Chooses timeline settings of a bundle that is about to be saved, by its held-out scores.

    Args:
        project: The project, whose annotations are read.

    Attributes:
        reason: Why no settings were chosen for the last bundle.
        held_out: The scores that they were to be chosen by, once there is a bundle.
    """

    held_out: HeldOut

    def __init__(self, project: Project) -> None:
        self._project = project
        self.reason = "there was nothing to choose by when the bundle was made"

    def __call__(self, bundle: Bundle, held_out: HeldOut) -> TunedTimeline | None:
        """The settings; None where there is no annotated recording to choose them by, or clips are not scored."""
        self.held_out = held_out
        if reads_samples(bundle):
            self.reason = NO_TIMELINES
            return None
        try:
            return tune_on_held_out(self._project, bundle, own_table(self._project, bundle), held_out)
        except (AnnotationError, TrainingDataError) as error:
            self.reason = str(error)
            return None


def finished_run(folder: Path, best: Mapping[str, Any], choice: TimelineChoice) -> TrainedRun:
    """A written run as a document."""
    metrics = json.loads((folder / METRICS_NAMES[best["scored"]]).read_bytes())
    timeline = load_timeline(folder / "bundle")
    return TrainedRun(folder, best, metrics, timeline, choice.reason if timeline is None else "")
