"""One pass of the frozen backbone over what is missing from the cache: what `featurecache extract` calls."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from featurecache.clips.drift import check_table
from featurecache.errors import UsageError
from featurecache.extraction.failures import FailedClip
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project
from featurecache.video.recordings import UnusableRecording
from featurecache.workers.devices import extract_on_devices, find_devices
from featurecache.workflow.clips import MadeClips, make_clips

if TYPE_CHECKING:
    from featurecache.extraction.forecast import Forecast, Outlook


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction found and did.

    Attributes:
        plan: What there was to do.
        outcome: What was done; None for a dry run.
        forecast: What it will take; None unless this was a dry run with something to do.
    """

    plan: Plan
    outcome: Extraction | None
    forecast: "Forecast | None" = None

    @property
    def failed(self) -> tuple[FailedClip, ...]:
        """Clips of the table that could not be extracted, with the reasons."""
        return self.plan.failures if self.outcome is None else self.outcome.failures

    @property
    def is_whole(self) -> bool:
        """Whether each clip of the table could be extracted, and its features are of the box it has today."""
        return not self.failed and not self.plan.mismatch.recordings

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache extract --json`."""
        plan = self.plan
        document: dict[str, Any] = {
            "fingerprint": plan.space.fingerprint,
            "fingerprints": {name: space.fingerprint for name, space in plan.spaces.items()},
            "planned": plan.planned,
            "present": plan.present,
            "todo": plan.todo,
            "bytes_to_write": plan.bytes_to_write,
            "shared_frames": plan.shared_frames,
        }
        if self.outcome is None:
            document["forecast"] = None if self.forecast is None else asdict(self.forecast)
        else:
            done = asdict(self.outcome.progress)
            del done["failed"], done["total"]
            document |= {
                "frames_shared": done.pop("shared_frames"),
                **done,
                "idle_share": self.outcome.progress.idle_share,
                "checked": self.outcome.checked,
                "worker_crashes": [asdict(crash) for crash in self.outcome.crashes],
            }
        document["without_their_box"] = list(plan.mismatch.recordings)
        return {**document, "failed": [asdict(failure) for failure in self.failed]}


def extract(
    project: Project,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    devices: str | None = None,
    ray: str | None = None,
    allow_download: bool = False,
    on_left_out: Callable[[Sequence[UnusableRecording]], None] = lambda _: None,
    on_clips: Callable[[MadeClips], None] = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_outlook: Callable[["Outlook"], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractionReport:
    """Computes the features that are missing from the cache; makes the clip table first where there is none.

    Args:
        project: The project.
        limit: At most this many clips.
        dry_run: Forecast time, memory and disk, and compute nothing.
        devices: One process for each device: `all` visible GPUs, some as `0,1`, or `cpu,cpu`. None: this process.
        ray: One Ray actor for each GPU: `local`, `auto`, or a cluster's `HOST:PORT`. None: no Ray.
        allow_download: Whether the model may be fetched from the hub.
        on_left_out: As `make_clips`, if the clip table is made.
        on_clips: Called with the clip table, if it was made.
        on_plan: Called before the work begins.
        on_outlook: Called before the work begins in this process, with what is known of its time and memory.
        on_progress: Called after each batch and each failure.

    Raises:
        OutdatedTableError: If clips are cut otherwise by the settings of today than in the table.
        UsageError: If both `devices` and `ray` are given.
        WorkerDiedError: If clips are left that no process survived to compute.
        FeatureCacheError: As `featurecache.extraction.plan.plan_extraction` and `run_plan`.
    """
    if devices is not None and ray is not None:
        raise UsageError("one of --devices and --ray must be given, but both are. Leave one out.")
    chosen = None if devices is None else find_devices(devices)
    if not project.clips.exists():
        on_clips(make_clips(project, on_left_out=on_left_out))
    check_table(project, use="windows")
    plan = plan_extraction(project, limit=limit, allow_download=allow_download)
    on_plan(plan)
    if dry_run:
        return ExtractionReport(plan, None, _forecast(project, plan) if plan.todo else None)
    if plan.todo and chosen is not None:
        outcome = extract_on_devices(project.path, project, plan, devices=chosen, on_progress=on_progress)
    elif plan.todo and ray is not None:
        from featurecache.workers.ray_workers import extract_on_ray

        outcome = extract_on_ray(project.path, project, plan, address=ray, on_progress=on_progress)
    else:
        if plan.todo:
            from featurecache.extraction.forecast import outlook

            on_outlook(outlook(project, plan))
        outcome = run_plan(project, plan, on_progress=on_progress)
    return ExtractionReport(plan, outcome)


def _forecast(project: Project, plan: Plan) -> "Forecast":
    from featurecache.extraction.forecast import forecast_plan  # it measures with torch, which takes a second to load

    return forecast_plan(project, plan)
