"""Adapters in the language model, trained with a head of the tuned settings: what `featurecache lora-finetune` calls.

Where a launcher such as torchrun started several processes, all of them call this; the first one extracts, writes and
returns a run, the others return what was planned.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.extraction.failures import FailedClip
from featurecache.extraction.pipeline import Progress
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project, parse_section
from heads.bundle_files import read_files
from heads.finetuning.settings import LoraSettings
from heads.workflow.data import clips_seen, run_folder, training_device, tuned_bundle
from heads.workflow.training import TimelineChoice, TrainedRun, finished_run

if TYPE_CHECKING:
    from featurecache.extraction.forecast import Forecast
    from heads.finetuning.lora import LoraPlan, LoraRun
    from heads.finetuning.ranks import Ranks
    from heads.finetuning.run import TrainingForecast
    from heads.finetuning.training_state import Training


@dataclass(frozen=True, eq=False)
class LoraRunReport:
    """What a training of adapters planned and did.

    Attributes:
        plan: The clips, tokens and layers to train.
        start: The bundle that training started from.
        forecast: Time and memory of the training; None for a dry run whose tokens are still to be extracted.
        extraction_forecast: Time, memory and disk of that extraction; None otherwise.
        run: The trained run; None for a dry run, and in all processes but the first.
        macro_f1: Validation macro-F1 at 0.5 before, with the tuned settings fitted on the training split, and after the
            selected epoch; None where `run` is.
        kept_epoch: The epoch whose weights were selected; None where `run` is.
        merged: The model with the adapters added in; None where it was not asked for.
        failed: Clips whose tokens could not be extracted.
    """

    plan: "LoraPlan"
    start: Path
    forecast: "TrainingForecast | None" = None
    extraction_forecast: "Forecast | None" = None
    run: TrainedRun | None = None
    macro_f1: tuple[float, float] | None = None
    kept_epoch: int | None = None
    merged: Path | None = None
    failed: tuple[FailedClip, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache lora-finetune --json`."""
        plan = self.plan
        document: dict[str, Any] = {
            "tokens": plan.tokens,
            "train_clips": plan.train_clips,
            "validation_clips": plan.validation_clips,
            "todo": plan.extraction.todo,
            "bytes_to_write": plan.extraction.bytes_to_write,
            "layers_run": plan.layers_run,
            "share_of_layers": plan.share_of_layers,
        }
        if self.extraction_forecast is not None:
            document["extraction_forecast"] = asdict(self.extraction_forecast)
        if self.run is not None:
            document |= {**self.run.to_mapping(), "failed_clips": len(self.failed)}
        if self.forecast is not None:
            document["forecast"] = self.forecast.to_mapping()
        return document


@dataclass(frozen=True, eq=False)
class LoraCallbacks:
    """Callbacks during a training of adapters.

    Attributes:
        on_plan: Called with the plan, before anything is done.
        on_extraction: Called with the progress of the extraction of tokens.
        on_extracted: Called with the clips that could not be extracted.
        on_forecast: Called with the forecast of time and memory, before training starts.
        on_training: Called after each step.
    """

    on_plan: Callable[["LoraPlan"], None] = lambda _: None
    on_extraction: Callable[[Progress], None] = lambda _: None
    on_extracted: Callable[[tuple[FailedClip, ...]], None] = lambda _: None
    on_forecast: Callable[["TrainingForecast"], None] = lambda _: None
    on_training: Callable[["Training"], None] = lambda _: None


def finetune_lora(
    project: Project,
    bundle: Path | None = None,
    *,
    from_layer: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    fresh: bool = False,
    merge: bool = False,
    allow_download: bool = False,
    callbacks: LoraCallbacks | None = None,
) -> LoraRunReport:
    """Trains adapters together with a head of the tuned settings and writes the run; resumes an interrupted one.

    Args:
        project: The project.
        bundle: The tuned head to start from; None: the one of `tune`.
        from_layer: Put adapters above this layer alone; None: as [lora] says.
        seed: Seed of initial adapters, data order and dropout.
        dry_run: Forecast time, memory and disk, and train nothing.
        fresh: Start over, whatever an earlier run left.
        merge: Also write the model with the adapters added to its weights.
        allow_download: Whether the model may be fetched from the hub.
        callbacks: Callbacks during the training.

    Raises:
        CheckpointError: If an earlier run's checkpoint is of other data or settings.
        FeatureCacheError: As `heads.finetuning.lora.plan_lora` and `LoraRun`.
    """
    tell = callbacks or LoraCallbacks()
    settings = parse_section(project.settings.lora, LoraSettings, "lora")
    if from_layer is not None:
        settings = replace(settings, frozen=f"layer_{from_layer}")
    check_table(project, use="targets")
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    seen = clips_seen(project, table)
    start = bundle if bundle is not None else tuned_bundle(project)
    read_files(start)
    # Not before it is known that there are clips and a head: these imports take seconds.
    from featurecache.extraction.forecast import forecast_plan
    from heads.finetuning.lora import LoraRun, plan_lora
    from heads.finetuning.ranks import joined_ranks

    with joined_ranks(training_device(project)) as (ranks, device):
        plan = plan_lora(project, settings, start, seen=seen, allow_download=allow_download)
        tell.on_plan(plan)
        report = LoraRunReport(plan, start)
        if dry_run and plan.extraction.todo:
            return replace(report, extraction_forecast=forecast_plan(project, plan.extraction))
        if not dry_run:
            report = _extracted(project, report, ranks, tell)
        run = LoraRun(project, plan, seed=seed, device=device, folder=run_folder(project, "lora"), ranks=ranks)
        if fresh and not dry_run and ranks.is_first:
            run.checkpoint.unlink(missing_ok=True)
        ranks.wait()
        forecast = run.forecast()
        report = replace(report, forecast=forecast)
        tell.on_forecast(forecast)
        if dry_run:
            return report
        run.train(tell.on_training)
        return _finished(project, run, report, merge=merge) if ranks.is_first else report


def _extracted(project: Project, report: LoraRunReport, ranks: "Ranks", tell: LoraCallbacks) -> LoraRunReport:
    """The first process extracts the missing features; the others wait for it."""
    if ranks.is_first:
        failed = run_plan(project, report.plan.extraction, on_progress=tell.on_extraction).failures
        tell.on_extracted(failed)
        report = replace(report, failed=failed)
    ranks.wait()
    return report


def _finished(project: Project, run: "LoraRun", report: LoraRunReport, *, merge: bool) -> LoraRunReport:
    timeline = TimelineChoice(project)
    best = run.finish(choose_timeline=timeline)
    history, kept = run.loop.history, run.loop.kept_epoch
    merged = None
    if merge:
        merged = run.folder / "merged"
        run.merge(merged)
    return replace(
        report,
        run=finished_run(run.folder, best, timeline),
        macro_f1=(history[0].validation_macro_f1, history[kept].validation_macro_f1),
        kept_epoch=history[kept].epoch,
        merged=merged,
    )
