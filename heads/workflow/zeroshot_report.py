"""What a zero-shot method found and did, as commands and notebooks get it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.extraction.pipeline import Extraction, WorkerCrash
from featurecache.extraction.plan import Plan
from heads.workflow.training import TrainedRun

if TYPE_CHECKING:
    from featurecache.extraction.forecast import Forecast


@dataclass(frozen=True, eq=False)
class ZeroShotReport:
    """What asking found and did.

    Attributes:
        method: One of `heads.zeroshot.prompts.METHODS`.
        labels: The labels that were asked about.
        prompts_written: Files of prompts that were made, to be edited.
        prompts_unread: What is wrong with each file beside them that is not read.
        plan: What there was to ask.
        outcome: What was asked; None for a dry run.
        forecast: What it will take; None unless this was a dry run with something to do.
        judging_s: What the judge will take besides; None unless forecast, and of a served one.
        answers: `answers.csv`; None where nothing was answered yet.
        audit: What the free answers are like.
        controls: What the scores on training and validation sessions are to be held against; None without labels.
        bundle: The written bundle; None where clips are still to be asked about.
        run: The run with its out-of-fold scores; None without a labelled clip.
        crashes: Processes that ended without a result.
    """

    method: str
    labels: tuple[str, ...]
    prompts_written: tuple[Path, ...]
    prompts_unread: tuple[str, ...]
    plan: Plan
    outcome: Extraction | None
    forecast: "Forecast | None"
    answers: Path | None = None
    audit: Mapping[str, Any] | None = None
    controls: Mapping[str, Any] | None = None
    bundle: Path | None = None
    run: TrainedRun | None = None
    judging_s: float | None = None
    crashes: tuple[WorkerCrash, ...] = ()

    @property
    def failed(self) -> int:
        """Clips that could not be asked about."""
        return len(self.plan.failures if self.outcome is None else self.outcome.failures)

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache zeroshot --json`."""
        document: dict[str, Any] = {
            "method": self.method,
            "labels": list(self.labels),
            "prompts_written": [str(path) for path in self.prompts_written],
            "prompts_unread": list(self.prompts_unread),
            "planned": self.plan.planned,
            "present": self.plan.present,
            "todo": self.plan.todo,
            "failed": [asdict(one) for one in (self.outcome or self.plan).failures],
            "forecast": None if self.forecast is None else asdict(self.forecast),
            "judging_s": self.judging_s,
            "answers": self.answers,
            "audit": self.audit,
            "controls": self.controls,
            "bundle": self.bundle,
        }
        if self.outcome is not None:
            document |= {"asked": self.outcome.progress.extracted, "elapsed_s": self.outcome.progress.elapsed_s}
            document["worker_crashes"] = [asdict(crash) for crash in self.crashes]
        return document | ({} if self.run is None else {"run": self.run.to_mapping()})
