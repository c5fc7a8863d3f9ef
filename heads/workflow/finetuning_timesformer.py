"""The supervised baseline, a TimeSformer trained on decoded frames: what `featurecache finetune` calls.

Where a launcher such as torchrun started several processes, all of them call this; the first one writes and returns a
run, the others return what was planned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.errors import UsageError
from featurecache.project.settings import Project, parse_section
from heads.finetuning.settings import FinetuneSettings
from heads.workflow.data import clips_seen, run_folder, training_device
from heads.workflow.training import TimelineChoice, TrainedRun, finished_run

if TYPE_CHECKING:
    from heads.finetuning.ranks import Ranks
    from heads.finetuning.run import TrainingForecast
    from heads.finetuning.timesformer import TimesformerPlan
    from heads.finetuning.training_state import Training


@dataclass(frozen=True, eq=False)
class TimesformerReport:
    """What a training of the baseline planned and did.

    Attributes:
        plan: The clips and settings to train with, without the clips that cannot be decoded unless this was a dry run.
        forecast: Time and memory of the training; None for a search.
        run: The trained run; None for a dry run, and in all processes but the first.
    """

    plan: "TimesformerPlan"
    forecast: "TrainingForecast | None" = None
    run: TrainedRun | None = None

    @property
    def failed_clips(self) -> int:
        """Labelled clips that could not be decoded, once all were tried."""
        return 0 if self.run is None else len(self.plan.left_out)

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache finetune --json`."""
        document: dict[str, Any] = self.plan.to_mapping()
        if self.run is not None:
            document |= {**self.run.to_mapping(), "failed_clips": self.failed_clips}
        if self.forecast is not None:
            document["forecast"] = self.forecast.to_mapping()
        return document


@dataclass(frozen=True, eq=False)
class TimesformerCallbacks:
    """Callbacks during a training of the baseline.

    Attributes:
        on_plan: Called with the plan, before anything is done.
        on_decoding: Called while every clip is decoded once, with the clips done and the number of all.
        on_left_out: Called with the plan once the clips that cannot be decoded are known.
        on_forecast: Called with the forecast of time and memory, before training starts.
        on_trial: Called when a trial starts, with its place in the study and its settings.
        on_training: Called after each step.
    """

    on_plan: Callable[["TimesformerPlan"], None] = lambda _: None
    on_decoding: Callable[[int, int], None] = lambda _done, _all: None
    on_left_out: Callable[["TimesformerPlan"], None] = lambda _: None
    on_forecast: Callable[["TrainingForecast"], None] = lambda _: None
    on_trial: Callable[[int, "FinetuneSettings"], None] = lambda _place, _settings: None
    on_training: Callable[["Training"], None] = lambda _: None


def finetune_timesformer(
    project: Project,
    *,
    trials: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    fresh: bool = False,
    allow_download: bool = False,
    callbacks: TimesformerCallbacks | None = None,
) -> TimesformerReport:
    """Trains the baseline and writes the run; resumes an interrupted one.

    Args:
        project: The project.
        trials: Choose settings by TPE: finished trials that the study shall have in total. None: train once, as
            [finetune] says.
        seed: Seed of data order and dropout, and of the trials' sampler.
        dry_run: Forecast time and memory, and train nothing.
        fresh: Start over, whatever an earlier run left.
        allow_download: Whether the model may be fetched from the hub.
        callbacks: Callbacks during the training.

    Raises:
        UsageError: If a search is asked of several processes.
        StudyError: If the folder is of a search and no trials are asked for, or a search cannot be resumed.
        CheckpointError: If an earlier run's checkpoint is of other data or settings.
        FeatureCacheError: As `heads.finetuning.timesformer.plan_timesformer` and `TimesformerRun`.
    """
    tell = callbacks or TimesformerCallbacks()
    settings = parse_section(project.settings.finetune, FinetuneSettings, "finetune")
    check_table(project, use="targets")
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    seen = clips_seen(project, table)
    # Not before it is known that there are clips: these imports take seconds.
    from heads.finetuning.ranks import joined_ranks
    from heads.finetuning.timesformer import TimesformerRun, plan_timesformer
    from heads.finetuning.trials import search_timesformer

    folder, timeline = run_folder(project, "timesformer"), TimelineChoice(project)
    with joined_ranks(training_device(project)) as (ranks, device):
        if trials is not None and ranks.count > 1:
            raise UsageError("--trials takes one process. Start it without torchrun.")
        plan = plan_timesformer(project, settings, seen=seen, allow_download=allow_download)
        tell.on_plan(plan)
        if not dry_run:
            plan = _examined(plan, folder, ranks, tell, fresh=fresh, is_search=trials is not None)
        if trials is not None and not dry_run:
            best = search_timesformer(
                plan,
                trials=trials,
                seed=seed,
                device=device,
                folder=folder,
                choose_timeline=timeline,
                on_trial=tell.on_trial,
                on_progress=tell.on_training,
            )
            return TimesformerReport(plan, None, finished_run(folder, best, timeline))
        run = TimesformerRun(plan, seed=seed, device=device, folder=folder, ranks=ranks)
        forecast = run.forecast()
        tell.on_forecast(forecast)
        if dry_run:
            return TimesformerReport(plan, forecast)
        run.train(tell.on_training)
        if not ranks.is_first:
            return TimesformerReport(plan, forecast)
        best = run.finish(choose_timeline=timeline)
        return TimesformerReport(plan, forecast, finished_run(folder, best, timeline))


def _examined(
    plan: "TimesformerPlan", folder: Path, ranks: "Ranks", tell: TimesformerCallbacks, *, fresh: bool, is_search: bool
) -> "TimesformerPlan":
    """The plan without the clips that cannot be decoded, once it is known that the folder can take the run."""
    from heads.finetuning.trials import forget_trials, refuse_trials

    if fresh and ranks.is_first:
        forget_trials(folder)
    ranks.wait()
    if not is_search:
        refuse_trials(folder)
    examined = plan.examined(tell.on_decoding)
    if examined.left_out:
        tell.on_left_out(examined)
    return examined
