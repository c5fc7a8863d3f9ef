"""What every training of a backbone shares as a run: its schedule, where it stands, and what it writes in the end.

The kinds of run (`lora.py`, `timesformer.py`) say what is trained and what it starts from; this is the way from there
to a bundle. What the loop kept makes features of its own, so validation is extracted with it, as `predict` will, and
thresholds are set on that.

Not here: the loop (`loop.py`), what a run needs before it begins.
"""

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurecache import FeatureCache
from featurecache.backbones.adapter_files import open_adapter
from featurecache.clips.csv_file import read_table
from featurecache.clips.leakage import Spans, leakage_record, spans_of
from featurecache.extraction.failures import known_failures
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project
from heads.bundle import Bundle, tool_versions
from heads.clip_rule import ClipRule
from heads.finetuning.extraction import plan_split
from heads.finetuning.loop import FineTuning
from heads.finetuning.settings import Schedule
from heads.finetuning.training_state import Cost, Training
from heads.loading import load_split
from heads.models import Head, head_scores
from heads.runs import ChooseTimeline, HeldOut, default_thresholds, write_document, write_fitted
from heads.settings import HeadSettings
from heads.timelines.rules import checked_rules

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainingForecast:
    """What a training will take, from a few timed steps.

    Attributes:
        cost: Measured for one clip.
        hours: Hours of the whole training with every epoch, without decoding.
        epochs: At most.
        micro_batch: Clips in the device's memory at once.
    """

    cost: Cost
    hours: float
    epochs: int
    micro_batch: int

    def to_mapping(self) -> dict[str, Any]:
        """Hours and costs by name, ready for JSON."""
        return {"hours": self.hours, **asdict(self.cost)}


class Run:
    """A training that can be measured, run, and written; made by the kinds of run.

    Args:
        loop: The training.
        schedule: As the user set it.
        signature: Run signature: what a checkpoint must have started with to be resumed, JSON-ready.
        seed: Seed of the run.
        folder: The run's folder.
    """

    def __init__(
        self, loop: FineTuning, schedule: Schedule, *, signature: Mapping[str, Any], seed: int, folder: Path
    ) -> None:
        self.loop, self.seed, self.folder = loop, seed, folder
        self._schedule, self._signature = schedule, signature

    @property
    def checkpoint(self) -> Path:
        """Where training stands."""
        return self.folder / CHECKPOINT_NAME

    @property
    def value(self) -> float:
        """Macro-F1 at 0.5 on validation after the epoch that is kept, as training scores it."""
        return self.loop.history[self.loop.kept_epoch].validation_macro_f1

    def forecast(self) -> TrainingForecast:
        """Measures a few steps and reckons what the whole training will take."""
        cost = self.loop.measure()
        return TrainingForecast(cost, self.forecast_hours(cost), self.loop.epochs, self.loop.micro_batch)

    def forecast_hours(self, cost: Cost) -> float:
        """Hours of the whole training at this cost a clip, every epoch run, decoding aside."""
        loop = self.loop
        trained = loop.epochs * len(loop.train.Y) * cost.train_s
        scored = (loop.epochs + 1) * len(loop.validation.Y) * cost.score_s
        return (trained + scored) / 3600 / loop.ranks.count

    def train(self, on_progress: Callable[[Training], None] = lambda _: None) -> None:
        """Trains, or resumes from the checkpoint; errors as `FineTuning.run`."""
        self.loop.run(
            checkpoint=self.checkpoint,
            every_s=60 * self._schedule.checkpoint_minutes,
            signature=self._signature,
            on_progress=on_progress,
        )

    def _write(
        self,
        project: Project,
        head: Head,
        settings: HeadSettings,
        *,
        labels: tuple[str, ...],
        select: Sequence[str],
        method: str,
        of_run: Mapping[str, Any],
        started_from: Spans | None = None,
        adapter: Path | None = None,
        backbone: Path | None = None,
        choose_timeline: ChooseTimeline,
    ) -> dict[str, Any]:
        """Extracts validation with what was trained, and writes the run.

        Args:
            project: With the trained model, where it is one of its own.
            head: As trained.
            settings: The head's.
            labels: Their names.
            select: The features that the head reads.
            method: What was trained, by name.
            of_run: What else goes into `best.json`.
            started_from: What had made the head before.
            adapter: Folder of a trained adapter; the bundle gets it, and it is gone.
            backbone: Folder of a trained model, likewise.
            choose_timeline: Gives the bundle's timeline settings before it is saved.

        Returns:
            The content of `best.json`.

        Raises:
            OSError: If it cannot be written.
            MissingFeaturesError: If clips of validation could not be extracted.
        """
        plan = plan_split(project, select, "validation", adapter=None if adapter is None else open_adapter(adapter))
        run_plan(project, plan)
        table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
        cache = FeatureCache.open(project.cache)
        validation = load_split(table, "validation", cache, plan.spaces, known=known_failures(project)).data
        not_ending = frozenset(validation.clip_ids or ()) - frozenset(self.loop.validation.clip_ids)
        validation = validation.without(not_ending)
        history, kept = self.loop.history, self.loop.history[self.loop.kept_epoch]
        learning = {"method": method, "kept_epoch": kept.epoch, "epochs": [vars(epoch) for epoch in history]}
        write_document(self.folder / "learning.json", learning)
        fitted, clips = copy.deepcopy(head).cpu().eval().requires_grad_(False), validation.of(settings.inputs)
        bundle = Bundle(
            fitted,
            labels,
            default_thresholds(labels),
            settings,
            tuple(plan.spaces.values()),
            tool_versions(),
            adapter=adapter,
            backbone=backbone,
            fitted_on=spans_of([*self.loop.train.clip_ids, *self.loop.validation.clip_ids], joined_to=started_from),
            clips=ClipRule.of(project),
            exclusive=checked_rules(project, labels).exclusive,
        )
        best = write_fitted(
            bundle,
            HeldOut("validation", head_scores(fitted, clips.X), clips.Y, clips.sessions, clips.clip_ids),
            seed=self.seed,
            folder=self.folder,
            leakage=leakage_record(table.clips),
            of_run={
                "method": method,
                "epochs_kept": kept.epoch,
                "train_clips": len(self.loop.train.Y),
                "train_loss": kept.train_loss,
                **of_run,
            },
            choose_timeline=choose_timeline,
        )
        for staged in (adapter, backbone):
            if staged is not None:
                shutil.rmtree(staged)
        self.checkpoint.unlink(missing_ok=True)
        return best
