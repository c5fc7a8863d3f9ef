"""The command line: parse, make one library call, print.

Every command takes `--json`, and those that work in a project `--config`. With `--json` one document goes to stdout
(none after wrong usage or an interruption) and every other word to stderr. Exit codes: 0 done, 1 a named error, or what
a command that checks found wrong, 2 wrong usage, 3 finished but some items failed, 130 interrupted (safe to run again).
Heavy imports stand inside the commands, so `--help` is instant.
"""

import dataclasses
import errno
import functools
import json
import os
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, Protocol

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurecache.errors import FeatureCacheError

if TYPE_CHECKING:
    from featurecache.clips.audit import LabelAudit
    from featurecache.clips.clip import ClipTable
    from featurecache.extraction.forecast import Forecast
    from featurecache.extraction.pipeline import FailedClip, Progress
    from featurecache.extraction.plan import Plan
    from featurecache.project.settings import Project
    from featurecache.video.recordings import UnusableRecording
    from featurecache.workers.pool import CrewExtraction
    from heads.bundle import Bundle
    from heads.data import LearningData
    from heads.finetuning.loop import Training
    from heads.finetuning.lora import LoraPlan, LoraRun
    from heads.finetuning.ranks import Ranks
    from heads.finetuning.timesformer import TimesformerPlan, TimesformerRun
    from heads.timelines.predict import TimelineRules
    from heads.timelines.tuning import TunedTimeline

DONE, FAILED, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
_SHOWN = 10
_PLAIN_LINE_EVERY_S = 5.0
_PLAIN_WIDTH = 120
_ROOMY_WIDTH = 90
_NARROW = 80
_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Idle threads of the model sleep and leave their cores to the decoders: 5 times faster on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}

app = typer.Typer(
    name="featurecache",
    help="Run a video vision-language model once over private recordings, then train activity heads in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="Look after the feature cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Config = Annotated[Path, typer.Option("--config", help="The project's folder or its featurecache.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Fetch the model from the hub if it is not on this machine.")
]
Features = Annotated[str | None, typer.Option("--features", help="Features imported under this name.")]
P = ParamSpec("P")


class Crew(Protocol):
    """Several workers that do what a plan found missing."""

    def __call__(
        self, project: "Project", plan: "Plan", *, on_progress: "Callable[[Progress], None]"
    ) -> "CrewExtraction":
        """Does it, and returns what came of it."""


class Screen:
    """Where a command's words go: to stdout for people, or to stderr beside a JSON document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH

    def say(self, text: str = "") -> None:
        """A line for people."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that people must not miss; always on stderr."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {text}", markup=False, style="yellow")

    def table(self, table: Table) -> None:
        """A table for people."""
        self.console.print(table, soft_wrap=False)

    def document(self, document: Mapping[str, Any]) -> None:
        """The command's result; printed with `--json` alone."""
        if self.as_json:
            print(json.dumps(document, indent=1, default=str))


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """A command that returns an exit code, with named errors as one line on stderr."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        def fail(error: Exception, message: str) -> NoReturn:
            if kwargs.get("as_json") and os.environ.get("RANK", "0") == "0":
                print(json.dumps({"error": {"kind": type(error).__name__, "message": message}}))
            print(f"error: {message}", file=sys.stderr)
            raise typer.Exit(FAILED)

        os.environ |= _ENVIRONMENT
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = function(*args, **kwargs)
        except FeatureCacheError as error:
            fail(error, str(error))
        except OSError as error:
            where, why = error.filename or "a file of the project", error.strerror or error
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "Free space and run again." if full else "Check its path and its rights."
            fail(error, f"{where} must be usable, but the system says: {why}. {advice}")
        except KeyboardInterrupt:
            print("interrupted: what was saved is kept, and running again goes on from there.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(code or DONE)

    return run


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


# --- the project ------------------------------------------------------------------------------------


@app.command()
@command
def init(
    directory: Annotated[Path, typer.Argument(help="The new project's folder.")] = Path(),
    videos: Annotated[Path, typer.Option(help="The folder of recordings.")] = Path("videos"),
    annotations: Annotated[Path | None, typer.Option(help="A folder of .eaf files, or a CSV.")] = None,
    model: Annotated[str, typer.Option(help="The backbone: a folder, a hub name, or demo.")] = (
        "llava-hf/LLaVA-NeXT-Video-7B-hf"
    ),
    as_json: AsJson = False,
) -> int:
    """Look at recordings and annotations, and write a commented featurecache.toml."""
    from featurecache.project.proposal import propose

    screen = Screen(as_json)
    proposal = propose(directory, videos=videos, annotations=annotations, model=model)
    screen.say(f"wrote {proposal.path}")
    for note in proposal.notes:
        screen.say(f"  {note}")
    screen.say("Look it over, then: featurecache clips")
    screen.document(dataclasses.asdict(proposal))
    return DONE


@app.command()
@command
def clips(
    force: Annotated[bool, typer.Option("--force", help="Replace a clips.csv that was edited.")] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Cut the recordings into clips, set their targets and splits, and audit the labels."""
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    document = _clips(screen, open_project(config), force=force)
    screen.document(document)
    return SOME_FAILED if document["unusable"] else DONE


def _clips(screen: Screen, project: "Project", *, force: bool = False) -> dict[str, Any]:
    from featurecache.clips.audit import audit
    from featurecache.clips.csv_file import moved_sessions, write_table
    from featurecache.clips.inventory import make_table, survey

    found = survey(project)
    _show_unusable(screen, found.unusable)
    table, short = make_table(project, found)
    _show_unusable(screen, short)
    moved = moved_sessions(project.clips, table)
    write_table(table, project.clips, state_path=project.state / "clips.json", force=force)
    findings = audit(table, found.recordings, found.intervals, annotated_span=project.settings.data.annotated_span)
    findings.warnings[:0] = found.notes
    if moved:
        named = ", ".join(moved[:5]) + (", ..." if len(moved) > 5 else "")
        findings.warnings.append(
            f"{_counted(len(moved), 'session')} changed split ({named}), since what is annotated or set has changed: "
            "tune again before you evaluate. To keep splits, name them under sessions in [splits]."
        )
    _show_audit(screen, findings)
    screen.say(f"wrote {project.clips}")
    listed = [dataclasses.asdict(item) for item in (*found.unusable, *short)]
    return {"clips_csv": project.clips, **dataclasses.asdict(findings), "unusable": listed}


def _show_audit(screen: Screen, findings: "LabelAudit") -> None:
    table = Table(title="Positive clips", title_justify="left")
    for column in ("label", "minutes", "intervals"):
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for split in findings.splits:
        heading = (split.name, _counted(split.sessions, "session"), _counted(split.labelled, "clip"))
        table.add_column("\n".join(heading), justify="right")
    for label in findings.labels:
        cells = [
            f"{split.positives[label.label]} ({share:.0%})"
            if (share := split.prevalence[label.label]) is not None
            else "-"
            for split in findings.splits
        ]
        table.add_row(label.label, f"{label.minutes:.1f}", str(label.intervals), *cells)
    screen.table(table)
    labelled = f"{findings.labelled_clips} labelled, {findings.unlabelled_clips} unlabelled"
    screen.say(f"{_counted(findings.clips, 'clip')}, {labelled}")
    for warning in findings.warnings:
        screen.warn(warning)


def _show_unusable(screen: Screen, unusable: "Sequence[UnusableRecording]") -> None:
    for item in unusable[:_SHOWN]:
        screen.warn(f"left out: {item.name}: {item.reason}")
    if len(unusable) > _SHOWN:
        screen.warn(f"left out: {len(unusable) - _SHOWN} more (all of them with --json)")


# --- extraction -------------------------------------------------------------------------------------


@app.command()
@command
def extract(
    worker: Annotated[str, typer.Option(help="Do only share I of N recordings, e.g. 2/4.")] = "1/1",
    limit: Annotated[int | None, typer.Option(min=1, help="Do at most this many clips.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is to be done, and do nothing.")] = False,
    devices: Annotated[
        str | None, typer.Option(help="One process for each device: all visible GPUs, some as 0,1, or cpu,cpu.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="One Ray actor for each GPU: local, auto, or a cluster's HOST:PORT.")
    ] = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Run the frozen backbone over every clip that the cache lacks."""
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    share = _worker(worker)
    crew: Crew | None = None
    if devices is not None and ray is not None:
        raise typer.BadParameter("one of --devices and --ray must be given, but both are. Leave one out.")
    if devices is not None:
        from featurecache.workers.devices import extract_on_devices, find_devices

        crew = functools.partial(extract_on_devices, config, devices=find_devices(devices), worker=share)
    if ray is not None:
        from featurecache.workers.ray_workers import extract_on_ray

        crew = functools.partial(extract_on_ray, config, address=ray, worker=share)
    document = _extract(
        screen,
        open_project(config),
        worker=share,
        limit=limit,
        dry_run=dry_run,
        allow_download=allow_download,
        crew=crew,
    )
    screen.document(document)
    return SOME_FAILED if document["failed"] else DONE


def _extract(
    screen: Screen,
    project: "Project",
    *,
    worker: tuple[int, int] = (1, 1),
    limit: int | None = None,
    dry_run: bool = False,
    allow_download: bool = False,
    crew: "Crew | None" = None,
) -> dict[str, Any]:
    from featurecache.extraction.plan import plan_extraction, run_plan

    if not project.clips.exists():
        _clips(screen, project)
    plan = plan_extraction(project, worker=worker, limit=limit, allow_download=allow_download)
    screen.say(f"{_counted(plan.planned, 'clip')}: {plan.present} in the cache, {plan.todo} to do")
    if plan.inputs.text_after_video:
        screen.warn(
            f"the words behind the video ({plan.inputs.text_after_video!r}) cannot change a feature: attention is "
            "causal. Move what matters in front of <video>."
        )
    document: dict[str, Any] = {
        "fingerprint": plan.space.fingerprint,
        "fingerprints": {name: space.fingerprint for name, space in plan.spaces.items()},
        "planned": plan.planned,
        "present": plan.present,
        "todo": plan.todo,
        "bytes_to_write": plan.bytes_to_write,
        "shared_frames": plan.shared_frames,
    }
    failures = plan.failures
    if dry_run:
        document["forecast"] = _forecast(screen, project, plan) if plan.todo else None
    else:
        with _extraction_progress(screen) as show:
            if crew is not None and plan.todo:
                together = crew(project, plan, on_progress=show)
                outcome, deaths = together.extraction, together.deaths
            else:
                outcome, deaths = run_plan(project, plan, on_progress=show), ()
        failures, done = outcome.failures, outcome.progress
        if done.extracted:
            screen.say(
                f"extracted {_counted(done.extracted, 'clip')} in {done.elapsed_s:.1f} s "
                f"({done.extracted / done.elapsed_s:.1f} clips/s in batches of {done.batch_size}): "
                f"the model ran {done.model_s / done.elapsed_s:.0%} of it, "
                f"waited for video {done.waited_s / done.elapsed_s:.0%}, bringing pictures to it took "
                f"{done.preprocess_s / done.elapsed_s:.0%}; writing beside it {done.write_s / done.elapsed_s:.0%}"
            )
        elif plan.todo:
            screen.say(f"extracted nothing in {done.elapsed_s:.1f} s")
        if outcome.checked:
            screen.say(f"computed {_counted(outcome.checked, 'stored clip')} again first: the same as stored")
        for death in deaths:
            screen.warn(f"{death.worker} {death.reason}; what it had not saved was computed again")
        if done.elsewhere:
            screen.say(f"left to another process, which is at it: {_counted(done.elsewhere, 'clip')}")
        document |= {
            "extracted": done.extracted,
            "elsewhere": done.elsewhere,
            "checked": outcome.checked,
            "batch_size": done.batch_size,
            "elapsed_s": done.elapsed_s,
            "waited_s": done.waited_s,
            "preprocess_s": done.preprocess_s,
            "model_s": done.model_s,
            "write_s": done.write_s,
            "idle_share": done.idle_share,
            "frames_shared": done.shared_frames,
            "deaths": [dataclasses.asdict(death) for death in deaths],
        }
    _show_failures(screen, failures)
    return {**document, "failed": [dataclasses.asdict(failure) for failure in failures]}


def _forecast(screen: Screen, project: "Project", plan: "Plan") -> dict[str, Any]:
    """What the plan will take: measured and shown."""
    from featurecache.extraction.forecast import forecast
    from featurecache.extraction.plan import device_of

    settings = project.settings
    found = forecast(
        plan,
        dtype=settings.features.dtype,
        device=device_of(settings.extract.device),
        batch_size=settings.extract.batch_size,
        decoders=settings.extract.decoders,
        root=project.root,
    )
    _show_forecast(screen, found, plan, dtype=settings.features.dtype, decoders=settings.extract.decoders)
    return dataclasses.asdict(found)


def _show_forecast(screen: Screen, found: "Forecast", plan: "Plan", *, dtype: str, decoders: int) -> None:
    title = f"One clip, {_counted(plan.inputs.frames, 'frame')} of {plan.inputs.image_px} px"
    table = Table(title=title, title_justify="left", show_footer=True)
    unit, scale = ("TFLOP", 1.0) if found.tflop_per_clip >= 0.1 else ("GFLOP", 1e3)
    seconds = sum(part.seconds for part in found.parts)
    table.add_column("part", footer="in all")
    table.add_column(unit, justify="right", footer=f"{found.tflop_per_clip * scale:.2f}")
    table.add_column("share of time", justify="right", footer=_time(seconds))
    for part in found.parts:
        table.add_row(part.name, f"{part.tflop * scale:.2f}", f"{part.seconds / seconds:.0%}")
    screen.table(table)
    memory, on = found.memory, f"{found.device_name} in {dtype}"
    lines = {
        "time": f"{_time(found.shortest_s, found.longest_s)} on {on}, measured at "
        f"{found.tflop_per_s * scale:.3g} {unit}/s; "
        + ("decoding limits: add decoders" if found.limit == "decoding" else "the model limits, not decoding"),
        "": f"the model {_time(found.model_s)} at that speed, resizing {_time(found.preprocess_s)}, decoding "
        + (
            f"{_time(found.decode_s)} with {_counted(decoders, 'decoder')}, each "
            f"{found.video_per_decoder:.0f} times real time"
            if found.decode_s is not None
            else f"unknown: {found.decode_problem}"
        ),
        "memory": f"{_size(memory.weights_bytes)} of weights and about {_size(memory.batch_bytes)} for batches of "
        f"{memory.batch_size}" + (f"; {_size(memory.free_bytes)} are free" if memory.free_bytes is not None else ""),
        "disk": f"{_size(plan.bytes_to_write)} of {_size(found.disk_free_bytes)} that are free: "
        + ", ".join(f"{name} {_size(size)}" for name, size in found.bytes_of.items()),
    }
    if found.shared_frames:
        lines["frames"] = f"overlapping clips share about {found.shared_frames:.0%} of theirs, computed once"
    width = min(screen.console.width, _ROOMY_WIDTH)
    for name, line in lines.items():
        screen.say(textwrap.fill(line, width, initial_indent=f"{name:7} ", subsequent_indent=" " * 8))
    if not memory.fits:
        screen.warn("the model and a batch are larger than the free memory of the device")
    if plan.bytes_to_write > found.disk_free_bytes:
        screen.warn("the features are larger than the free space of the disk")


def _time(seconds: float, longest_s: float | None = None) -> str:
    """A rough time for people, or a range of it in one unit."""
    units = (("days", 86400.0), ("hours", 3600.0), ("min", 60.0))
    unit, size = next(((unit, size) for unit, size in units if seconds >= 2 * size), ("s", 1.0))
    if seconds < 0.1:
        unit, size = "ms", 1e-3
    return f"{seconds / size:.3g}" + (f" to {longest_s / size:.3g}" if longest_s else "") + f" {unit}"


def _counted(number: int, noun: str) -> str:
    """A number and its noun: 1 clip, 2 clips."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: float) -> str:
    """A rough size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _worker(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise typer.BadParameter(f"--worker must be I/N with 1 <= I <= N, but it is {text!r}. Write e.g. 2/4.")
    return int(index), int(count)


def _show_failures(screen: Screen, failures: "Sequence[FailedClip]") -> None:
    by_recording: dict[str, list[str]] = {}
    for failure in failures:
        by_recording.setdefault(failure.recording, []).append(failure.reason)
    for recording, reasons in list(by_recording.items())[:_SHOWN]:
        screen.warn(f"{recording}: {_counted(len(reasons), 'clip')} failed, the first because {reasons[0]}")
    if failures:
        of = _counted(len(by_recording), "recording")
        screen.warn(f"{_counted(len(failures), 'clip')} of {of} failed; see failed_clips.csv for all")


@contextmanager
def _extraction_progress(screen: Screen) -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal, a plain line now and then elsewhere."""
    if screen.console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("extracting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} clips/s, model idle {task.fields[wait]:.0%}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=screen.console) as bar:
            task = bar.add_task("", total=None, rate=0.0, wait=0.0)

            def update(now: "Progress") -> None:
                bar.update(
                    task,
                    total=now.total,
                    completed=now.extracted + now.failed + now.elsewhere,
                    rate=now.extracted / max(now.elapsed_s, 1e-9),
                    wait=now.idle_share,
                )

            yield update
        return
    last = time.monotonic()

    def line(now: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last < _PLAIN_LINE_EVERY_S:
            return
        last = time.monotonic()
        rate = now.extracted / max(now.elapsed_s, 1e-9)
        done = now.extracted + now.failed + now.elsewhere
        left = f"{(now.total - done) / rate:.0f} s left" if rate else "time left unknown"
        screen.say(
            f"{done}/{now.total} clips, {rate:.1f} clips/s, {left}, the model is idle {now.idle_share:.0%} of the time"
        )

    yield line


# --- learning ---------------------------------------------------------------------------------------


@app.command()
@command
def train(
    seed: Annotated[int, typer.Option(min=0, help="Of data order, initial weights and dropout.")] = 0,
    features: Features = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Fit one head with the settings of [train]."""
    from featurecache.project.settings import open_project, parse_section
    from heads.runs import train_bundle
    from heads.settings import HeadSettings

    screen = Screen(as_json)
    project = open_project(config)
    section = project.settings.train
    inputs = project.settings.features.keep[0] if features is None else f"imported/{features}"
    if features is not None or "inputs" not in section:
        section = {**section, "inputs": inputs}
    settings = parse_section(section, HeadSettings, "train")
    data = _learning_data(screen, project, [settings.inputs], imported=features, allow_download=allow_download)
    folder = _run_folder(project, "train", features)
    best = train_bundle(data, settings=settings, seed=seed, folder=folder, device=_trainer_device(project))
    _tune_timeline(screen, project, folder / "bundle")
    screen.document(_show_run(screen, folder, best))
    return DONE


@app.command()
@command
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Finished trials that the study shall have in all.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of sampler, data order, initial weights and dropout.")] = 0,
    permutations: Annotated[
        int, typer.Option(min=0, help="Also fit the best settings to labels shuffled by session, so often.")
    ] = 0,
    refit_seeds: Annotated[
        int, typer.Option(min=0, help="Also fit them across session folds with so many seeds, to see scores' spread.")
    ] = 0,
    storage: Annotated[
        str | None, typer.Option(help="postgresql://..., a study that several processes work on at once.")
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in --storage.")] = "tune",
    features: Features = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Search head settings with Optuna's TPE on the validation split; resumes an earlier search."""
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    found = _tune(
        screen,
        open_project(config),
        trials=trials,
        seed=seed,
        permutations=permutations,
        refit_seeds=refit_seeds,
        storage=storage,
        study=study,
        imported=features,
        allow_download=allow_download,
    )
    screen.document(found)
    return DONE


def _tune(
    screen: Screen,
    project: "Project",
    *,
    trials: int,
    seed: int = 0,
    permutations: int = 0,
    refit_seeds: int = 0,
    storage: str | None = None,
    study: str = "tune",
    imported: str | None = None,
    allow_download: bool = False,
) -> dict[str, Any]:
    from featurecache.project.settings import parse_section
    from heads.inputs import default_inputs
    from heads.search.search import search_heads
    from heads.search.summary import in_words
    from heads.settings import SearchSpace

    section = project.settings.search
    search_space = parse_section(section, SearchSpace, "search")
    if imported is not None:
        search_space = dataclasses.replace(search_space, inputs=(f"imported/{imported}",))
    elif "inputs" not in section:
        inputs = default_inputs(project.settings.features.keep, search_space.kind)
        search_space = dataclasses.replace(search_space, inputs=inputs)
    data = _learning_data(screen, project, search_space.inputs, imported=imported, allow_download=allow_download)
    folder = _run_folder(project, "tune", imported)
    with _search_progress(screen) as show:
        best = search_heads(
            data,
            search_space=search_space,
            trials=trials,
            seed=seed,
            folder=folder,
            permutations=permutations,
            refit_seeds=refit_seeds,
            device=_trainer_device(project),
            storage=storage,
            study_name=study,
            on_progress=show,
        )
    for line in in_words(best):
        screen.say(line)
    _tune_timeline(screen, project, folder / "bundle")
    return _show_run(screen, folder, best)


@app.command("lora-finetune")
@command
def lora_finetune(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="The tuned head to begin with; runs/tune/bundle if left out.")
    ] = None,
    from_layer: Annotated[
        int | None, typer.Option("--from-layer", min=1, help="Put adapters above this layer alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initial adapters, data order and dropout.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forecast time, memory and disk, and do nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, whatever an earlier run left.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the model with the adapters added in.")] = False,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Train adapters in the language model together with the tuned head; goes on with an interrupted run."""
    from featurecache.project.settings import open_project, parse_section
    from heads.finetuning.lora import LoraRun, LoraSettings, plan_lora
    from heads.finetuning.ranks import joined_ranks

    project = open_project(config)
    settings = parse_section(project.settings.lora, LoraSettings, "lora")
    if from_layer is not None:
        settings = dataclasses.replace(settings, frozen=f"layer_{from_layer}")
    with joined_ranks(_trainer_device(project)) as (ranks, device):
        screen = Screen(as_json)
        screen.console.quiet = not ranks.is_first
        start = bundle if bundle is not None else project.runs / "tune" / "bundle"
        plan = plan_lora(project, settings, start, allow_download=allow_download)
        document = _show_lora_plan(screen, plan)
        if dry_run and plan.extraction.todo:
            screen.say(f"extraction of {plan.tokens}:")
            document["extraction_forecast"] = _forecast(screen, project, plan.extraction)
        elif dry_run:
            run = LoraRun(project, plan, seed=seed, device=device, folder=project.runs / "lora", ranks=ranks)
            document |= _show_training_forecast(screen, run)
        else:
            document |= _lora_finetune(
                screen, project, plan, start=start, ranks=ranks, device=device, seed=seed, fresh=fresh, merge=merge
            )
        if ranks.is_first:
            screen.document(document)
    return SOME_FAILED if document.get("failed_clips") else DONE


def _show_lora_plan(screen: Screen, plan: "LoraPlan") -> dict[str, Any]:
    extraction = plan.extraction
    screen.say(
        f"{_counted(plan.train_clips, 'clip')} for training and {plan.validation_clips} for validation; "
        f"{extraction.todo} of them lack {plan.tokens}, about {_size(extraction.bytes_to_write)} on disk"
    )
    if plan.share_of_layers < 1:
        screen.say(
            f"a step runs {_counted(plan.layers_run, 'layer')}, where adapters in all would need {plan.layers_below}: "
            f"by the arithmetic {plan.share_of_layers:.0%} of the work"
        )
    return {
        "tokens": plan.tokens,
        "train_clips": plan.train_clips,
        "validation_clips": plan.validation_clips,
        "todo": extraction.todo,
        "bytes_to_write": extraction.bytes_to_write,
        "layers_run": plan.layers_run,
        "share_of_layers": plan.share_of_layers,
    }


def _lora_finetune(
    screen: Screen,
    project: "Project",
    plan: "LoraPlan",
    *,
    start: Path,
    ranks: "Ranks",
    device: str,
    seed: int,
    fresh: bool,
    merge: bool,
) -> dict[str, Any]:
    from featurecache.extraction.plan import run_plan
    from heads.finetuning.lora import LoraRun

    folder = project.runs / "lora"
    failed = 0
    if ranks.is_first:
        with _extraction_progress(screen) as show:
            failures = run_plan(project, plan.extraction, on_progress=show).failures
        _show_failures(screen, failures)
        failed = len(failures)
    ranks.wait()
    run = LoraRun(project, plan, seed=seed, device=device, folder=folder, ranks=ranks)
    if fresh and ranks.is_first:
        run.checkpoint.unlink(missing_ok=True)
    ranks.wait()
    forecast = _show_training_forecast(screen, run)
    run.train(_training_progress(screen))
    if not ranks.is_first:
        return {}
    best = run.finish()
    before, after = run.loop.history[0], run.loop.history[run.loop.kept_epoch]
    screen.say(
        f"validation macro-F1 at 0.5: {before.validation_macro_f1:.3f} with the tuned head, "
        f"{after.validation_macro_f1:.3f} after epoch {after.epoch}"
    )
    if merge:
        run.merge(folder / "merged")
        screen.say(f"wrote {folder / 'merged'}, a model for features.model")
    _tune_timeline(screen, project, folder / "bundle")
    shown = _show_run(screen, folder, best)
    where = _say_how_to_compare(screen, project, folder / "bundle", start)
    tokens = plan.extraction.spaces[plan.tokens].fingerprint[:16]
    screen.say(f"{plan.tokens}, when no run needs them any more: featurecache cache gc --space {tokens} --apply{where}")
    return {**shown, **forecast, "failed_clips": failed}


@app.command()
@command
def finetune(
    trials: Annotated[
        int | None, typer.Option(min=1, help="Choose settings by TPE: finished trials that the study shall have.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of data order and dropout, and of the trials' sampler.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forecast time and memory, and do nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, whatever an earlier run left.")] = False,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Train the supervised baseline, a TimeSformer; goes on with an interrupted run."""
    from featurecache.project.settings import open_project, parse_section
    from heads.finetuning.ranks import joined_ranks
    from heads.finetuning.timesformer import FinetuneSettings, TimesformerRun, plan_timesformer

    project = open_project(config)
    settings = parse_section(project.settings.finetune, FinetuneSettings, "finetune")
    with joined_ranks(_trainer_device(project)) as (ranks, device):
        screen = Screen(as_json)
        screen.console.quiet = not ranks.is_first
        plan = plan_timesformer(project, settings, allow_download=allow_download)
        document = _show_finetune_plan(screen, plan)
        if dry_run:
            run = TimesformerRun(plan, seed=seed, device=device, folder=project.runs / "timesformer", ranks=ranks)
            document |= _show_training_forecast(screen, run)
            if plan.clips > plan.store.most:
                screen.say(f"and {_time(plan.clips * plan.store.clip_s)} of decoding in each epoch")
        else:
            document |= _finetune(
                screen, project, plan, ranks=ranks, device=device, seed=seed, fresh=fresh, trials=trials
            )
        if ranks.is_first:
            screen.document(document)
    return SOME_FAILED if document.get("failed_clips") else DONE


def _show_finetune_plan(screen: Screen, plan: "TimesformerPlan") -> dict[str, Any]:
    train, validation = (len(plan.splits[name].Y) for name in ("train", "validation"))
    store = plan.store
    held = min(plan.clips, store.most)
    screen.say(
        f"{_counted(train, 'clip')} for training and {validation} for validation; of "
        f"{_size(plan.clips * store.clip_bytes)} of pictures {_size(held * store.clip_bytes)} stay in memory"
    )
    if plan.clips > store.most:
        screen.warn("the others are decoded again in each epoch: raise finetune.memory_gb if there is room")
    return {
        "train_clips": train,
        "validation_clips": validation,
        "picture_bytes": plan.clips * store.clip_bytes,
        "clips_in_memory": held,
    }


def _finetune(
    screen: Screen,
    project: "Project",
    plan: "TimesformerPlan",
    *,
    ranks: "Ranks",
    device: str,
    seed: int,
    fresh: bool,
    trials: int | None,
) -> dict[str, Any]:
    from heads.finetuning.timesformer import TimesformerRun
    from heads.finetuning.trials import forget_trials, refuse_trials, search_timesformer

    folder = project.runs / "timesformer"
    if trials is not None and ranks.count > 1:
        raise typer.BadParameter("--trials takes one process. Start it without torchrun.")
    if fresh and ranks.is_first:
        forget_trials(folder)
    ranks.wait()
    if trials is None:
        refuse_trials(folder)
    plan = plan.examined(_decoding_progress(screen))
    if plan.left_out:
        first = next(iter(plan.left_out.values()))
        screen.warn(f"{_counted(len(plan.left_out), 'labelled clip')} cannot be had, the first because {first}")
    if trials is not None:
        best = search_timesformer(
            plan,
            trials=trials,
            seed=seed,
            device=device,
            folder=folder,
            on_trial=lambda number, settings: screen.say(f"trial {number}: {settings.in_words()}"),
            on_progress=_training_progress(screen),
        )
        states = ", ".join(f"{count} {state}" for state, count in best["trials"].items())
        screen.say(f"the run is of trial {best['trial']} ({states})")
        forecast: dict[str, Any] = {}
    else:
        run = TimesformerRun(plan, seed=seed, device=device, folder=folder, ranks=ranks)
        forecast = _show_training_forecast(screen, run)
        run.train(_training_progress(screen))
        if not ranks.is_first:
            return {}
        best = run.finish()
    _tune_timeline(screen, project, folder / "bundle")
    shown = _show_run(screen, folder, best)
    _say_how_to_compare(screen, project, folder / "bundle", project.runs / "tune" / "bundle")
    return {**shown, **forecast, "failed_clips": len(plan.left_out)}


def _say_how_to_compare(screen: Screen, project: "Project", bundle: Path, against: Path) -> str:
    """A line to paste; returns what names the project on it, nothing where the user stands in it."""
    where = "" if project.root.resolve() == Path.cwd() else f" --config {shlex.quote(str(project.root))}"
    paths = " --against ".join(shlex.quote(str(path)) for path in (bundle, against))
    screen.say(f"Compare it: featurecache evaluate {paths}{where}")
    return where


def _show_training_forecast(screen: Screen, run: "LoraRun | TimesformerRun") -> dict[str, Any]:
    """What training will take, from a few timed steps."""
    cost = run.loop.measure()
    hours = run.forecast_hours(cost)
    screen.say(
        f"forecast: {_time(cost.train_s)} a training clip, at most {_time(3600 * hours)} for "
        f"{_counted(run.loop.epochs, 'epoch')}; "
        f"peak memory {_size(cost.peak_bytes)} with {_counted(run.loop.micro_batch, 'clip')} at once"
    )
    return {"forecast": {"hours": hours, **dataclasses.asdict(cost)}}


def _decoding_progress(screen: Screen) -> Callable[[int, int], None]:
    """A line now and then."""
    last = time.monotonic()

    def show(done: int, clips: int) -> None:
        nonlocal last
        if time.monotonic() - last > _PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            screen.say(f"decoded {done} of {_counted(clips, 'clip')}")

    return show


def _training_progress(screen: Screen) -> "Callable[[Training], None]":
    """A line after each epoch, and now and then between."""
    last, told = time.monotonic(), 0

    def show(now: "Training") -> None:
        nonlocal last, told
        if len(now.epochs) > told:
            epoch, told = now.epochs[-1], len(now.epochs)
            loss = "" if epoch.train_loss is None else f"training loss {epoch.train_loss:.4f}, "
            screen.say(
                f"epoch {epoch.epoch}: {loss}validation loss {epoch.validation_loss:.4f}, "
                f"macro-F1 {epoch.validation_macro_f1:.3f}"
            )
        elif now.loss is not None and time.monotonic() - last > _PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            left = (now.steps - now.step) * now.elapsed_s / max(1, now.steps_here)
            screen.say(f"step {now.step} of {now.steps}, loss {now.loss:.4f}, at most {_time(left)} left")

    return show


@app.command()
@command
def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle's folder; runs/tune/bundle if left out.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another bundle, to compare with on the same clips.")] = None,
    leave_one_session_out: Annotated[
        bool,
        typer.Option("--leave-one-session-out", help="Refit the settings without each session and score that one."),
    ] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Score a bundle on the test split; every look is logged."""
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    project = open_project(config)
    path = bundle if bundle is not None else project.runs / "tune" / "bundle"
    if leave_one_session_out:
        if against is not None:
            raise typer.BadParameter("--against compares on the test split. Give it without --leave-one-session-out.")
        screen.document(_leave_one_session_out(screen, project, path))
    else:
        document = _evaluate(screen, project, path, against=against)
        screen.document(document)
        return SOME_FAILED if document["failed_clips"] else DONE
    return DONE


def _evaluate(screen: Screen, project: "Project", path: Path, *, against: Path | None = None) -> dict[str, Any]:
    from featurecache.errors import BundleError
    from heads.bundle import load_bundle
    from heads.loading import load_split
    from heads.runs import write_document
    from heads.scoring.evaluation import always_yes, compare_evaluations, evaluate_bundles
    from heads.timelines.tuning import load_timeline

    folders = [path] if against is None else [path, against]
    if against is not None and path.resolve().parent == against.resolve().parent:
        raise BundleError(
            "two bundles must lie in run folders of their own, where their results go, but "
            f"{path} and {against} share one. Name a bundle of another run with --against."
        )
    bundles = [load_bundle(folder) for folder in folders]
    tuned = [load_timeline(folder) for folder in folders]
    for folder, head in zip(folders, bundles, strict=True):
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.parent))
        head.check_unseen(_own_table(project, head))  # refused before any work, and before a look
        rules = _checked_rules(project, head.labels)
    failed = sum(_extract_adapted(screen, project, head, "test") for head in bundles)
    source, leakage = _scoring_data(project, bundles[0])
    loaded = [load_split(split="test", **{**source, "spaces": head.kept}) for head in bundles]
    candidates = [
        (head, own.data.of(head.settings.inputs), head.fingerprint) for head, own in zip(bundles, loaded, strict=True)
    ]
    _warn_left_out(screen, "test", loaded[0].left_out)
    outcomes = evaluate_bundles(candidates, split="test", log=project.runs / "test_looks.jsonl", leakage=leakage)
    methods: dict[str, Mapping[str, Any]] = {"always yes": always_yes(candidates[0][1], bundles[0].labels, "test")}
    for folder, head, outcome in zip(folders, bundles, outcomes, strict=True):
        write_document(folder.parent / "test_metrics.json", outcome.metrics)
        method = _method(head)
        methods[method if against is None else f"{method} ({folder.parent.name})"] = outcome.metrics
    first = outcomes[0]
    _show_metrics(screen, first.metrics)
    _show_methods(screen, methods)
    document = {**first.metrics, "always_yes": methods["always yes"], "failed_clips": failed}
    if against is not None:
        comparison = {"against": str(against), **compare_evaluations(*outcomes)}
        write_document(path.parent / "test_comparison.json", comparison)
        _show_comparison(screen, comparison)
    written = " and ".join(str(folder.parent / "test_metrics.json") for folder in folders)
    screen.say(f"look number {first.looks} at these test sessions; wrote {written}")
    _show_caveats(screen, first.metrics)
    timelines = [
        _evaluate_timelines(screen, project, folder, head, source, tuned=settings, exclusive=rules.exclusive)
        for folder, head, settings in zip(folders, bundles, tuned, strict=True)
    ]
    if against is not None:
        document |= {"comparison": comparison, "against": {**outcomes[1].metrics, "timelines": timelines[1]}}
    return {**document, "timelines": timelines[0]}


def _extract_adapted(screen: Screen, project: "Project", head: "Bundle", split: str) -> int:
    """Extracts what the cache lacks of a split with the bundle's adapter or model, if it has one; counts failures."""
    from featurecache.backbones.adapter_files import open_adapter
    from featurecache.extraction.plan import run_plan

    if not head.is_fine_tuned:
        return 0
    from heads.finetuning.extraction import plan_split

    project, adapter = head.project_of(project), None if head.adapter is None else open_adapter(head.adapter)
    plan = plan_split(project, list(head.kept), split, adapter=adapter)
    head.check_spaces(plan.spaces)
    if plan.todo:
        screen.say(f"extracting {_counted(plan.todo, 'clip')} with the fine-tuned model ...")
    with _extraction_progress(screen) as show:
        outcome = run_plan(project, plan, on_progress=show)
    _show_failures(screen, outcome.failures)
    return len(outcome.failures)


def _leave_one_session_out(screen: Screen, project: "Project", path: Path) -> dict[str, Any]:
    from featurecache.errors import BundleError
    from heads.bundle import load_bundle
    from heads.engines.fitting import refitting
    from heads.loading import load_all_splits
    from heads.runs import write_document
    from heads.scoring.evaluation import evaluate_without_each_session

    head = load_bundle(path)
    if head.is_fine_tuned:
        found = "an adapter" if head.backbone is None else "a model of its own"
        raise BundleError(
            f"leaving sessions out refits a head alone, but {path} has {found}, which saw them all. "
            "Evaluate it on the test split."
        )
    source, leakage = _scoring_data(project, head)
    loaded = load_all_splits(**source)
    _warn_left_out(screen, "all splits", loaded.left_out)
    data, widths = loaded.data.of(head.settings.inputs), loaded.data.part_widths(head.settings.inputs)
    metrics = evaluate_without_each_session(
        refitting(data, head.settings, device=_trainer_device(project), part_widths=widths),
        data,
        head,
        test_sessions=[clip.session for clip in source["table"].clips if clip.split == "test" and clip.labelled],
        log=project.runs / "test_looks.jsonl",
        clip_ids=loaded.data.clip_ids,
        leakage=leakage,
    )
    out = path.parent / "leave_one_session_out_metrics.json"
    write_document(out, metrics)
    _show_metrics(screen, metrics)
    _show_methods(screen, {_method(head): metrics})
    if metrics["not_learnable"]:
        screen.warn(f"undefined, since one session alone decides them: {', '.join(metrics['not_learnable'])}.")
    screen.say(f"look number {metrics['looks']} at the test sessions; wrote {out}")
    _show_caveats(screen, metrics)
    return metrics


def _scoring_data(project: "Project", head: "Bundle") -> tuple[dict[str, Any], dict[str, Any]]:
    """What `heads.loading` takes to load a bundle's features, and what the results say of the splits."""
    from featurecache import FeatureCache
    from featurecache.clips.leakage import leakage_record
    from featurecache.extraction.plan import failed_clip_ids

    table = _own_table(project, head)
    source = {
        "table": table,
        "cache": FeatureCache.open(project.cache),
        "spaces": head.kept,
        "failed": failed_clip_ids(project),
    }
    return source, leakage_record(table.clips)


def _own_table(project: "Project", head: "Bundle") -> "ClipTable":
    """The clip table, refused where its labels are not the bundle's."""
    from featurecache.clips.csv_file import read_table
    from featurecache.errors import BundleError

    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    if table.labels != head.labels:
        raise BundleError(
            f"a bundle must be scored on its own labels, but it has {', '.join(head.labels)} and clips.csv has "
            f"{', '.join(table.labels)}. Train again: featurecache tune."
        )
    return table


def _show_comparison(screen: Screen, comparison: Mapping[str, Any]) -> None:
    difference = comparison["difference"]
    text = f"difference of macro-F1: {'undefined' if difference is None else f'{difference:+.3f}'}"
    if comparison["p_value"] is None:
        screen.say(f"{text}; no interval: {comparison['reason']}")
        return
    low, high = comparison["difference_ci95"]
    screen.say(
        f"{text} (95% CI {low:+.3f} to {high:+.3f}), p = {comparison['p_value']:.3g} by exchanging the two within "
        f"{_counted(comparison['n_sessions'], 'session')} (smallest possible {comparison['smallest_p_value']:.2g})"
    )


def _show_caveats(screen: Screen, metrics: Mapping[str, Any]) -> None:
    for name in ("looks_warning", "split_warning", "caveat"):
        if name in metrics:
            screen.warn(f"{metrics[name]}.")


def _learning_data(
    screen: Screen,
    project: "Project",
    inputs: Sequence[str],
    *,
    imported: str | None = None,
    allow_download: bool = False,
) -> "LearningData":
    """Training and validation clips with all kept features that some inputs read."""
    from featurecache import FeatureCache
    from featurecache.clips.csv_file import read_table
    from featurecache.clips.leakage import leakage_record
    from featurecache.errors import SettingsError
    from featurecache.extraction.plan import failed_clip_ids, project_spaces
    from featurecache.spec import FeatureSpace
    from heads.data import KeptSplit, LearningData
    from heads.loading import load_split

    names = list(dict.fromkeys(name for one in inputs for name in one.split("+")))
    kept = project.settings.features.keep
    unknown = [name for name in names if name not in kept] if imported is None else []
    if unknown:
        raise SettingsError(
            f"inputs must be kept features, which are {', '.join(kept)}, but {unknown[0]!r} is not one. "
            "Choose others, or add it to features.keep and run: featurecache extract."
        )
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    _checked_rules(project, table.labels)
    cache = FeatureCache.open(project.cache)
    if imported is None:
        _, spaces = project_spaces(project, keep=names, allow_download=allow_download)
    else:
        spaces = {names[0]: FeatureSpace(cache.describe("imported", imported).inputs)}
    failed = failed_clip_ids(project) if imported is None else frozenset()
    splits: dict[str, KeptSplit] = {}
    for split in ("train", "validation"):
        loaded = load_split(table, split, cache, spaces, failed=failed)
        _warn_left_out(screen, split, loaded.left_out)
        if loaded.purged:
            purged = _counted(loaded.purged, "clip")
            screen.warn(f"{split}: {purged} left out for touching clips that score them")
        splits[split] = loaded.data
    screen.say(
        ", ".join(
            f"{name}: {_counted(len(data.Y), 'clip')} of {_counted(len(set(data.sessions)), 'session')}"
            for name, data in splits.items()
        )
    )
    data = LearningData(
        splits["train"], splits["validation"], table.labels, spaces, leakage=leakage_record(table.clips)
    )
    if "split_warning" in data.leakage:
        screen.warn(f"{data.leakage['split_warning']}.")
    return data


def _run_folder(project: "Project", command: str, imported: str | None) -> Path:
    return project.runs / (command if imported is None else f"{command}-{imported}")


def _warn_left_out(screen: Screen, split: str, count: int) -> None:
    if count:
        screen.warn(f"{split}: {_counted(count, 'labelled clip')} left out: extraction failed (failed_clips.csv)")


def _trainer_device(project: "Project") -> str:
    from featurecache.extraction.plan import device_of

    return device_of(project.settings.extract.device)


def _show_run(screen: Screen, folder: Path, best: Mapping[str, Any]) -> dict[str, Any]:
    metrics = json.loads((folder / "validation_metrics.json").read_text())
    _show_metrics(screen, metrics)
    screen.say(f"validation macro-F1 {best['value']:.3f} at threshold 0.5; wrote {folder / 'bundle'}")
    return {**best, "bundle": folder / "bundle", "validation_metrics": metrics}


@contextmanager
def _search_progress(screen: Screen) -> Iterator[Callable[[int, int, float | None], None]]:
    if not screen.console.is_terminal:
        yield lambda _done, _asked, _best: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("searching"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
    with Progress(*columns, TimeRemainingColumn(), console=screen.console) as bar:
        task = bar.add_task("", total=None, best="")

        def update(done: int, asked: int, best: float | None) -> None:
            bar.update(task, total=asked, completed=done, best="" if best is None else f"best macro-F1 {best:.3f}")

        yield update


def _method(head: "Bundle") -> str:
    from heads.methods import FT_C_LORA, TIMESFORMER, method_of_head

    if head.is_fine_tuned:
        return FT_C_LORA if head.backbone is None else TIMESFORMER
    return method_of_head(head.settings.kind)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _show_metrics(screen: Screen, metrics: Mapping[str, Any]) -> None:
    title = (
        f"{metrics['split']}: {_counted(metrics['n_clips'], 'clip')} of {_counted(metrics['n_sessions'], 'session')}"
    )
    table = Table(title=title, title_justify="left")
    headings = ("label", "F1", "precision", "recall", "AP", "threshold", "positives")
    if screen.console.width < _NARROW:
        headings = ("label", "F1", "prec", "rec", "AP", "thr", "pos")
    for column in headings:
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for label, scores in metrics["per_class"].items():
        numbers = [_number(scores[name]) for name in ("f1", "precision", "recall", "average_precision", "threshold")]
        table.add_row(Text(label), *numbers, str(scores["support"]))
    screen.table(table)


def _show_methods(screen: Screen, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """F1 per label and macro-F1, a row per method: the shape of the paper's Table 1, with intervals.

    Turned round, a column per method, where the screen is too narrow for it.
    """
    first = next(iter(methods.values()))
    columns: dict[str, list[str]] = {}
    for name, metrics in methods.items():
        interval = metrics.get("macro_f1_ci95")
        cells = [_number(metrics["per_class"].get(label, {}).get("f1")) for label in first["per_class"]]
        span = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        columns[name] = [*cells, _number(metrics.get("macro_f1")), span]
    headings = [*first["per_class"], "macro-F1", "95% CI"]
    title = f"F1 on the {first.get('split', 'test')} split"
    table = _table(title, ["method", *headings], [[name, *cells] for name, cells in columns.items()])
    unbounded = screen.console.options.update(max_width=10_000)
    if screen.console.measure(table, options=unbounded).maximum > screen.console.width:
        rows = [[heading, *cells] for heading, *cells in zip(headings, *columns.values(), strict=True)]
        table = _table(title, ["label", *columns], rows)
    screen.table(table)
    reason = first.get("macro_f1_ci95_reason")
    if reason:
        screen.say(f"no confidence interval: {reason}")


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


@app.command()
@command
def report(
    with_frames: Annotated[
        bool, typer.Option("--with-frames", help="Put frames of the largest differences into the page.")
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="The folder of predicted timelines; predictions if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file; runs/report.html if left out.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Write every run, the search, the timelines and the cache into one HTML file."""
    from featurecache.project.settings import open_project
    from heads.report import write_report

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"--out must name an .html file, but it is {str(out)!r}. Write e.g. report.html.")
    screen = Screen(as_json)
    project = open_project(config)
    if predictions is not None:
        os.scandir(predictions).close()  # a folder that is named must be there
    written = write_report(
        out if out is not None else project.runs / "report.html",
        runs=project.runs,
        clips=project.clips,
        cache=project.cache,
        failures=project.failures,
        predictions=predictions if predictions is not None else project.predictions,
        videos=project.videos,
        features=dataclasses.asdict(project.settings.features),
        with_frames=with_frames,
    )
    if written.methods:
        _show_methods(screen, written.methods)
    for problem in written.problems:
        screen.warn(f"left out: {problem}")
    if written.frames:
        screen.warn(
            f"the page holds {_counted(written.frames, 'frame')} of the recordings. Keep it where they may be kept."
        )
    screen.say(f"wrote {written.path} ({written.size_bytes / 1e6:.1f} MB); open it in a browser")
    screen.document(dataclasses.asdict(written))
    return SOME_FAILED if written.problems else DONE


# --- timelines --------------------------------------------------------------------------------------


@app.command()
@command
def predict(
    recordings: Annotated[list[Path], typer.Argument(help="The recordings' files, from anywhere on this machine.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder for the timelines; predictions if left out.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="The bundle's folder; runs/tune/bundle if left out.")
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option("--stride", min=0.01, max=3600, help="Seconds between clips; half a clip if left out."),
    ] = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Write the timelines of recordings for review in ELAN; replaces nothing that a person wrote or changed."""
    from featurecache.project.settings import open_project
    from heads.timelines.predict import predict_recordings

    screen = Screen(as_json)
    project = open_project(config)
    rules = _timeline_rules(project)
    stride_s = stride if stride is not None else rules.stride_s
    with _extraction_progress(screen) as show:
        found = predict_recordings(
            project,
            recordings,
            bundle=bundle if bundle is not None else project.runs / "tune" / "bundle",
            out=out if out is not None else project.predictions,
            stride_us=round(stride_s * 1_000_000) if stride_s is not None else project.settings.clips.length_us // 2,
            exclusive=rules.exclusive,
            allow_download=allow_download,
            on_progress=show,
        )
    _show_unusable(screen, found.left_out)
    if found.written and found.tuned is None:
        screen.warn("the bundle has no tuned timeline settings, so the defaults serve. Tune them: featurecache tune.")
    table = Table(title="Predicted timelines", title_justify="left")
    for column in ("recording", "annotated", "for ELAN", "intervals", "clips not had"):
        is_number = column in ("intervals", "clips not had")
        table.add_column(column, overflow="fold", justify="right" if is_number else "left")
    for timeline, files in found.written:
        annotated = "no" if timeline.annotated is None else "yes"
        counts = str(len(timeline.predicted)), str(len(timeline.failed))
        table.add_row(timeline.recording, annotated, str(files.eaf), *counts)
        if files.before_zero_us:
            screen.warn(
                f"{timeline.recording}: {files.before_zero_us / 1e6:g} s of predictions lie before the annotation's "
                "time zero, where ELAN shows nothing; they stand in the .csv and .json"
            )
    if found.written:
        screen.table(table)
    for item in found.failed:
        screen.warn(f"no timeline: {item.name}: {item.reason}")
    screen.document(
        {
            "out": out if out is not None else project.predictions,
            "extracted": found.extraction.progress.extracted,
            "tuned": found.tuned is not None,
            "written": [
                {
                    "recording": timeline.recording,
                    "intervals": len(timeline.predicted),
                    "annotated": timeline.annotated is not None,
                    "failed_clips": len(timeline.failed),
                    **dataclasses.asdict(files),
                }
                for timeline, files in found.written
            ],
            "failed": [dataclasses.asdict(item) for item in found.failed],
            "left_out": [dataclasses.asdict(item) for item in found.left_out],
        }
    )
    is_partial = found.failed or found.left_out or any(timeline.failed for timeline, _ in found.written)
    return SOME_FAILED if is_partial else DONE


@app.command()
@command
def agreement(
    first: Annotated[Path, typer.Argument(help="The reference: an .eaf of one recording.")],
    second: Annotated[Path, typer.Argument(help="Another annotator's .eaf of it, or a .predicted.eaf.")],
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Compare two annotation files of one recording: kappa, segment F1, durations, borders."""
    from featurecache.project.settings import open_project
    from heads.timelines.agreement import agreement as compare

    screen = Screen(as_json)
    data = open_project(config).settings.data
    found = compare(
        first,
        second,
        labels=data.labels,
        labels_from=data.labels_from,
        tiers=data.tiers,
        annotated_span=data.annotated_span,
    )
    _show_timeline_scores(screen, found, f"{first.name} (reference) and {second.name}")
    for one in found["disagreements"][:_SHOWN]:
        span = f"{one['start_us'] / 1e6:.1f} to {one['end_us'] / 1e6:.1f} s"
        only = first.name if one["kind"] == "missed" else second.name
        screen.say(f"  {span}: {one['label']} in {only} alone")
    screen.document(found)
    return DONE


def _tune_timeline(screen: Screen, project: "Project", path: Path) -> None:
    """Chooses a new bundle's timeline settings on validation, where there are annotations to choose by."""
    from featurecache.errors import AnnotationError, TrainingDataError
    from heads.bundle import load_bundle
    from heads.timelines.split import tune_on_validation
    from heads.timelines.tuning import save_timeline

    head = load_bundle(path)
    source, _ = _scoring_data(project, head)
    try:
        tuned = tune_on_validation(project, head, source["table"], failed=source["failed"])
    except (AnnotationError, TrainingDataError) as error:
        screen.say(f"timeline settings stay at their defaults: {error}")
        return
    save_timeline(tuned, path)
    screen.say(
        f"timelines: segment F1 {tuned.validation_segment_f1:.2f} on validation with the settings chosen there, "
        f"{tuned.untuned_segment_f1:.2f} with the defaults"
    )


def _evaluate_timelines(
    screen: Screen,
    project: "Project",
    path: Path,
    head: "Bundle",
    source: Mapping[str, Any],
    *,
    tuned: "TunedTimeline | None",
    exclusive: Sequence[Sequence[str]],
) -> dict[str, Any] | None:
    """Scores of the test recordings' timelines; a part of the look that the caller logs."""
    from featurecache.errors import AnnotationError, TrainingDataError
    from heads.runs import write_document
    from heads.timelines.split import evaluate_timelines

    try:
        found = evaluate_timelines(
            project, head, source["table"], "test", tuned=tuned, exclusive=exclusive, failed=source["failed"]
        )
    except (AnnotationError, TrainingDataError) as error:
        screen.say(f"no timeline scores: {error}")
        return None
    out = path.parent / "test_timelines.json"
    write_document(out, found)
    _show_timeline_scores(screen, found["scores"], f"Timelines of the test split ({path.parent.name})")
    screen.say(f"wrote {out}")
    return dict(found["scores"])


def _timeline_rules(project: "Project") -> "TimelineRules":
    from featurecache.project.settings import parse_section
    from heads.timelines.predict import TimelineRules

    return parse_section(project.settings.timeline, TimelineRules, "timeline")


def _checked_rules(project: "Project", labels: Sequence[str]) -> "TimelineRules":
    """The section [timeline], refused where it names labels that there are not."""
    from heads.timelines.timeline import exclusive_groups

    rules = _timeline_rules(project)
    exclusive_groups(rules.exclusive, labels)
    return rules


def _show_timeline_scores(screen: Screen, scores: Mapping[str, Any], title: str) -> None:
    table = Table(title=f"{title}: {scores['compared_s']:.0f} s compared", title_justify="left")
    table.add_column("label", overflow="fold")
    ious = list(scores["segment_f1"])
    shown = ious if screen.console.width >= _ROOMY_WIDTH else ious[:1] + ious[-1:]
    for column in (*(f"F1@{float(iou):g}" for iou in shown), "kappa", "events", "seconds", "onset", "end"):
        table.add_column(column, justify="right")
    for label, own in scores["per_class"].items():
        f1 = [_number(own["segment_f1"][iou]) for iou in shown]
        errors = [_number(own[border]["mean_absolute"]) for border in ("onset_error_s", "offset_error_s")]
        events = f"{own['events_predicted']}/{own['events_annotated']}"
        seconds = f"{own['duration_predicted_s']:.0f}/{own['duration_annotated_s']:.0f}"
        table.add_row(Text(label), *f1, _number(own["kappa"]), events, seconds, *errors)
    screen.table(table)
    spans = {iou: f" ({low:.2f} to {high:.2f})" for iou, (low, high) in (scores["segment_f1_ci95"] or {}).items()}
    macro = [f"{_number(scores['segment_f1'][iou])} at {float(iou):g}{spans.get(iou, '')}" for iou in ious]
    screen.say("events and seconds: predicted/annotated; onset and end: mean error in seconds of matched intervals")
    screen.say(f"macro segment F1 by overlap{', with 95% intervals' if spans else ''}: {', '.join(macro)}")


# --- looking after it -------------------------------------------------------------------------------


@cache_app.command("info")
@command
def cache_info(config: Config = Path(), as_json: AsJson = False) -> int:
    """Show the feature spaces of the cache and what is damaged."""
    from featurecache import FeatureCache
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    cache = FeatureCache.open(open_project(config).cache)
    table = Table()
    for column in ("feature space", "tap", "pooling", "shape", "dtype", "clips", "segments", "MB"):
        table.add_column(column, justify="left" if column in ("feature space", "tap", "pooling") else "right")
    for space in cache.spaces:
        shape = " x ".join(map(str, space.row_shape))
        counts = (shape, space.stored_dtype, str(space.rows), str(space.segments), f"{space.bytes / 1e6:.1f}")
        table.add_row(space.fingerprint[:16], space.tap, space.pooling, *counts)
    screen.table(table)
    for damage in cache.damage:
        screen.warn(damage.reason)
    screen.document(
        {
            "spaces": [dataclasses.asdict(space) for space in cache.spaces],
            "damage": [dataclasses.asdict(damage) for damage in cache.damage],
        }
    )
    return FAILED if cache.damage else DONE


@cache_app.command("why")
@command
def cache_why(
    clip: Annotated[str, typer.Argument(help="A clip_id of clips.csv.")],
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Say why a clip's feature is found or not: which input differs."""
    from featurecache.extraction.why import explain
    from featurecache.project.settings import open_project

    screen = Screen(as_json)
    explanation = explain(open_project(config), clip)
    screen.say(f"{clip}: {'found' if explanation.found else 'not found'}")
    for reason in explanation.reasons:
        screen.say(f"  {reason}")
    screen.document(dataclasses.asdict(explanation))
    return DONE


@cache_app.command("verify")
@command
def cache_verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, not only records and sizes.")] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Check the cache; ends with 1 if anything is damaged."""
    from featurecache.project.settings import open_project
    from featurecache.store import verify

    screen = Screen(as_json)
    report = verify(open_project(config).cache, deep=deep)
    for damage in report.damage:
        screen.warn(damage.reason)
    screen.say(
        f"{'deep' if deep else 'quick'} check of {_counted(report.segments, 'segment')} in "
        f"{_counted(report.spaces, 'feature space')}: {_counted(report.rows, 'clip')} served, "
        f"{len(report.damage)} damaged"
    )
    if report.damage:
        screen.say("Set the damage aside: featurecache cache repair")
    screen.document(dataclasses.asdict(report))
    return FAILED if report.damage else DONE


@cache_app.command("repair")
@command
def cache_repair(config: Config = Path(), as_json: AsJson = False) -> int:
    """Set damaged segments aside; the next extract computes their clips again."""
    from featurecache.project.settings import open_project
    from featurecache.store import repair

    screen = Screen(as_json)
    report = repair(open_project(config).cache)
    screen.say(f"set aside {len(report.set_aside)} damaged, wrote {_counted(len(report.rewritten), 'record')} again")
    for _, clip in report.lost[:_SHOWN]:
        screen.say(f"  to extract again: {clip}")
    if len(report.lost) > _SHOWN:
        screen.say(f"  and {len(report.lost) - _SHOWN} more (all of them with --json)")
    if report.set_aside:
        screen.say("Compute what is missing: featurecache extract")
    screen.document(dataclasses.asdict(report))
    return DONE


@cache_app.command("gc")
@command
def cache_gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; otherwise only list it.")] = False,
    space: Annotated[list[str] | None, typer.Option(help="Also this feature space (8 digits or more).")] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Also what repair has set aside.")] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """List what nobody needs: leftovers of dead writers, replaced segments; remove it with --apply."""
    from featurecache.project.settings import open_project
    from featurecache.store import gc

    screen = Screen(as_json)
    garbage = gc(open_project(config).cache, apply=apply, spaces=space or (), quarantine=quarantine)
    for item in garbage:
        screen.say(f"  {item.path}: {item.reason} ({item.size_bytes / 1e6:.1f} MB)")
    size_mb = sum(item.size_bytes for item in garbage) / 1e6
    screen.say(f"{'removed' if apply else 'can go'}: {_counted(len(garbage), 'item')}, {size_mb:.1f} MB")
    if garbage and not apply:
        screen.say("Remove them: the same command with --apply")
    screen.document({"applied": apply, "garbage": [dataclasses.asdict(item) for item in garbage]})
    return DONE


@cache_app.command("compact")
@command
def cache_compact(config: Config = Path(), as_json: AsJson = False) -> int:
    """Merge small segments, so that the cache opens and reads faster."""
    from featurecache.project.settings import open_project
    from featurecache.store import compact

    screen = Screen(as_json)
    report = compact(open_project(config).cache)
    screen.say(f"merged {_counted(report.merged, 'segment')} into {report.written} ({_counted(report.rows, 'clip')})")
    if report.merged:
        screen.say("The old ones go after an hour: featurecache cache gc --apply")
    screen.document(dataclasses.asdict(report))
    return DONE


@cache_app.command("forget")
@command
def cache_forget(
    recording: Annotated[str, typer.Argument(help="Its name in clips.csv, or 16 to 64 digits of its sha256.")],
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Remove every feature of a recording, e.g. when consent is withdrawn."""
    from featurecache.extraction.plan import content_of
    from featurecache.project.settings import open_project
    from featurecache.store import forget

    screen = Screen(as_json)
    project = open_project(config)
    report = forget(project.cache, content_of(project, recording))
    features, segments = _counted(report.rows, "feature"), _counted(report.rewritten, "segment")
    screen.say(f"removed {features} of {recording}; wrote {segments} anew")
    screen.say(
        "Not touched: the video, its annotations, clips.csv, failed_clips.csv, predictions, the report, exports, heads "
        "that were trained with it, and the names in .featurecache. Remove the first two and its predictions, then: "
        "featurecache clips --force; train again; featurecache report."
    )
    screen.document(dataclasses.asdict(report))
    return DONE


@cache_app.command("export")
@command
def cache_export(
    file: Annotated[Path, typer.Argument(help="A new .h5, .hdf5 or .npz file.")],
    tap: Annotated[str | None, typer.Option(help="Where in the backbone; final if neither this nor --space.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="How tokens became one array; mean if neither this nor --space.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Fingerprint, or its first digits: says alone which features.")
    ] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Write one feature space to one HDF5 or npz file."""
    from featurecache.project.settings import open_project
    from featurecache.store.exchange import export_features

    screen = Screen(as_json)
    report = export_features(open_project(config).cache, file, tap=tap, pooling=pooling, space=space)
    screen.say(f"wrote {_counted(report.rows, 'feature')} of {report.fingerprint[:16]} to {report.path}")
    screen.document(dataclasses.asdict(report))
    return DONE


@cache_app.command("import")
@command
def cache_import(
    file: Annotated[Path, typer.Argument(help="An export, or a file with `features` and `clip_id`.")],
    name: Annotated[str | None, typer.Option(help="What to call features made by others.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Read an export, or features made by others, into the cache."""
    from featurecache.extraction.plan import contents
    from featurecache.project.settings import open_project
    from featurecache.store.exchange import import_features

    screen = Screen(as_json)
    project = open_project(config)
    report = import_features(project.cache, file, name=name, recordings=contents(project) if name else None)
    screen.say(
        f"took in {_counted(report.rows, 'feature')}, had {report.present} already; "
        f"tap {report.tap}, pooling {report.pooling}"
    )
    for fingerprint in report.replaced:
        screen.say(f"removed {fingerprint[:16]}, imported under this name before")
    if name:
        screen.say(f"Train on them: featurecache tune --features {name}")
    screen.document(dataclasses.asdict(report))
    return DONE


@app.command()
@command
def doctor(config: Config = Path(), as_json: AsJson = False) -> int:
    """Check the machine, the model and the recordings; each failure comes with its fix."""
    from featurecache.project.settings import open_project
    from featurecache.setup.doctor import examine

    screen = Screen(as_json)
    checks = []
    for check in examine(open_project(config)):
        checks.append(check)
        screen.say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}")
        if check.fix:
            screen.say(f"       {check.fix}")
    screen.document({"checks": [dataclasses.asdict(check) for check in checks]})
    return DONE if all(check.ok for check in checks) else FAILED


@app.command()
@command
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the demo is made.")] = Path("demo"),
    trials: Annotated[int, typer.Option(min=1, help="Trials of the search.")] = 64,
    as_json: AsJson = False,
) -> int:
    """The whole way on embedded data with the embedded backbone: no download, no GPU."""
    from featurecache.backbones import DEMO_MODEL
    from featurecache.demo.dataset import make_dataset
    from featurecache.demo.script import LABELS
    from featurecache.files import private_folder
    from featurecache.project.settings import SETTINGS_NAME, open_project, write_settings

    screen = Screen(as_json)
    if (directory / SETTINGS_NAME).exists():
        screen.say(f"{directory} holds a demo already; going on with it")
    else:
        screen.say("drawing recordings and their annotations ...")
        make_dataset(private_folder(directory))
        write_settings(
            directory,
            videos="videos",
            annotations="annotations",
            labels_from="tiers",
            tiers=LABELS,
            labels=LABELS,
            session_from="folder",
            fractions=(0.5, 0.2, 0.3),
            model=DEMO_MODEL,
            dtype="float32",
            keep=("final/mean", "final/motion", "layer_2/mean"),
            lora={
                "rank": 16,
                "alpha": 32,
                "learning_rate": 2e-3,
                "head_learning_rate": 2e-3,
                "epochs": 8,
                "patience": 0,
                "batch_size": 16,
                "micro_batch": 16,
                "gradient_checkpointing": False,
            },
            reason="each activity has a tier of its own",
        )
    project = open_project(directory)
    steps: dict[str, Any] = {}
    chain: dict[str, Callable[[], dict[str, Any]]] = {
        "clips": lambda: _clips(screen, project),
        "extract": lambda: _extract(screen, project),
        "tune": lambda: _tune(screen, project, trials=trials),
        "evaluate": lambda: _evaluate(screen, project, project.runs / "tune" / "bundle"),
    }
    for name, step in chain.items():
        screen.say()
        screen.say(f"featurecache {name}")
        steps[name] = step()
    screen.document(steps)
    return SOME_FAILED if steps["clips"]["unusable"] or steps["extract"]["failed"] else DONE


def main() -> None:
    """The entry point of the `featurecache` command."""
    app()


if __name__ == "__main__":
    main()
