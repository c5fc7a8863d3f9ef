"""Fine-tuning as commands show it: what is planned, what it will take, how far it is, and what came out."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from featurecache.spelling import counted
from featurecache.terminal.extraction import failures, forecast_pieces
from featurecache.terminal.progress import Pace, Say, Show, extraction_progress
from featurecache.terminal.text import Piece, Warn, rough_size, rough_time
from heads.terminal.training import trained_run
from heads.workflow.finetuning_lora import LoraCallbacks
from heads.workflow.finetuning_timesformer import TimesformerCallbacks

if TYPE_CHECKING:
    from featurecache.project.settings import Project
    from heads.finetuning.lora import LoraPlan
    from heads.finetuning.run import TrainingForecast
    from heads.finetuning.timesformer import TimesformerPlan
    from heads.finetuning.training_state import Training
    from heads.workflow.finetuning_lora import LoraRunReport
    from heads.workflow.finetuning_timesformer import TimesformerReport


@contextmanager
def watching_lora(console: Console, say: Say, show: Show) -> Iterator[LoraCallbacks]:
    """Callbacks that show a training of adapters as it goes on.

    Args:
        console: Where a bar of the extraction is drawn, if it is a terminal.
        say: Shows a line.
        show: Shows lines, tables and warnings.
    """
    with extraction_progress(console, say) as on_extraction:
        yield LoraCallbacks(
            on_plan=lambda plan: show(lora_plan(plan)),
            on_extraction=on_extraction,
            on_extracted=lambda failed: show(failures(failed)),
            on_forecast=lambda found: say(forecast_line(found)),
            on_training=training_progress(say),
        )


def watching_timesformer(say: Say, show: Show) -> TimesformerCallbacks:
    """Callbacks that show a training of the baseline as it goes on; arguments as `watching_lora`."""
    return TimesformerCallbacks(
        on_plan=lambda plan: show(timesformer_plan(plan)),
        on_decoding=decoding_progress(say),
        on_left_out=lambda plan: show(undecodable_clips(plan)),
        on_forecast=lambda found: say(forecast_line(found)),
        on_trial=lambda place, settings: say(f"trial {place}: {settings.in_words()}"),
        on_training=training_progress(say),
    )


def training_progress(say: Say) -> "Callable[[Training], None]":
    """A callback for the loop: a line after each epoch, and now and then between."""
    pace, told = Pace(), 0
    first: Training | None = None

    def show(now: "Training") -> None:
        nonlocal told, first
        if first is None or now.elapsed_s < first.elapsed_s:  # what came before was loading, scoring and warming up
            first = None if now.loss is None else now
        if len(now.epochs) > told:
            epoch, told = now.epochs[-1], len(now.epochs)
            loss = "" if epoch.train_loss is None else f"training loss {epoch.train_loss:.4f}, "
            say(
                f"epoch {epoch.epoch}: {loss}validation loss {epoch.validation_loss:.4f}, "
                f"macro-F1 {epoch.validation_macro_f1:.3f}"
            )
        elif now.loss is not None and pace.is_due():
            said = f"step {now.step} of {now.steps}, loss {now.loss:.4f}"
            if first is not None and now.step > first.step:
                step_s = (now.elapsed_s - first.elapsed_s) / (now.step - first.step)
                said += f", at most {rough_time((now.steps - now.step) * step_s)} left"
            say(said)

    return show


def decoding_progress(say: Say) -> Callable[[int, int], None]:
    """A callback for the decoding of every clip: a line now and then."""
    pace = Pace()

    def show(done: int, clips: int) -> None:
        if pace.is_due():
            say(f"decoded {done} of {counted(clips, 'clip')}")

    return show


def forecast_line(found: "TrainingForecast") -> str:
    """What a training will take."""
    return (
        f"forecast: {rough_time(found.cost.train_s)} a training clip, at most {rough_time(3600 * found.hours)} for "
        f"{counted(found.epochs, 'epoch')}; "
        f"peak memory {rough_size(found.cost.peak_bytes)} with {counted(found.micro_batch, 'clip')} at once"
    )


def lora_plan(plan: "LoraPlan") -> Iterator[Piece]:
    """What a training of adapters needs, and what a step runs."""
    extraction = plan.extraction
    yield (
        f"{counted(plan.train_clips, 'clip')} for training and {plan.validation_clips} for validation; "
        f"{extraction.todo} of them miss {plan.tokens}, about {rough_size(extraction.bytes_to_write)} on disk"
    )
    if plan.share_of_layers < 1:
        yield (
            f"a step runs {counted(plan.layers_run, 'layer')}, where adapters in all would need {plan.layers_below}: "
            f"by the arithmetic {plan.share_of_layers:.0%} of the work"
        )


def lora_report(report: "LoraRunReport", project: "Project", width: int) -> Iterator[Piece]:
    """What a training of adapters did; its plan and forecast were shown before."""
    if report.extraction_forecast is not None:
        yield f"extraction of {report.plan.tokens}:"
        yield from forecast_pieces(report.extraction_forecast, report.plan.extraction, width)
    if report.run is None or report.macro_f1 is None:
        return
    before, after = report.macro_f1
    yield (
        f"validation macro-F1 at 0.5: {before:.3f} before, with the tuned settings fitted on the training split, "
        f"{after:.3f} after epoch {report.kept_epoch}, which is kept"
    )
    yield from unchanged(report.kept_epoch)
    if report.merged is not None:
        yield f"wrote {report.merged}, a model for features.model"
    yield from trained_run(report.run, width)
    yield _how_to_compare(project, report.run.bundle, report.start)
    plan = report.plan
    tokens = plan.extraction.spaces[plan.tokens].fingerprint[:16]
    yield (
        f"{plan.tokens}, when no run needs them any more: featurecache cache gc --space {tokens} "
        f"--apply{_named(project)}"
    )


def unchanged(kept_epoch: int | None) -> Iterator[Piece]:
    """Says where a training of adapters kept the weights that it started from."""
    if kept_epoch == 0:
        yield Warn(
            "the adapters changed nothing: no epoch scored above epoch 0, the head on the model as it was, so the "
            "bundle's adapters add zero. A lower lora.learning_rate may help."
        )


def timesformer_plan(plan: "TimesformerPlan") -> Iterator[Piece]:
    """What the baseline is trained on, and what fits in memory."""
    found: dict[str, Any] = plan.to_mapping()
    store = plan.store
    yield (
        f"{counted(found['train_clips'], 'clip')} for training and {found['validation_clips']} for validation; of "
        f"{rough_size(found['picture_bytes'])} of frames "
        f"{rough_size(plan.clips_in_memory * store.clip_bytes)} stay in memory"
    )
    if plan.clips > store.most:
        yield Warn("the others are decoded again in each epoch: raise finetune.memory_gb if memory allows")


def undecodable_clips(plan: "TimesformerPlan") -> Iterator[Piece]:
    """How many clips cannot be decoded, and the first reason."""
    first = next(iter(plan.left_out.values()))
    yield Warn(f"{counted(len(plan.left_out), 'labelled clip')} could not be extracted, the first because {first}")


def timesformer_report(report: "TimesformerReport", project: "Project", width: int) -> Iterator[Piece]:
    """What a training of the baseline did; its plan and forecast were shown before."""
    if report.run is None:
        if report.plan.clips > report.plan.store.most:
            yield f"and {rough_time(report.plan.clips * report.plan.store.clip_s)} of decoding in each epoch"
        return
    if "trials" in report.run.best:
        states = ", ".join(f"{count} {state}" for state, count in report.run.best["trials"].items())
        yield f"the run is of trial {report.run.best['trial']} ({states})"
    yield from trained_run(report.run, width)
    yield _how_to_compare(project, report.run.bundle, project.runs / "tune" / "bundle")


def _how_to_compare(project: "Project", bundle: Path, against: Path) -> str:
    """A line to paste."""
    paths = " --against ".join(shlex.quote(str(path)) for path in (bundle, against))
    return f"Compare it: featurecache evaluate {paths}{_named(project)}"


def _named(project: "Project") -> str:
    """What names the project on a command line; nothing where the user stands in it."""
    return "" if project.root.resolve() == Path.cwd() else f" --config {shlex.quote(str(project.root))}"
