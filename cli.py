"""The command line: parse, make one library call, print.

Every command takes `--config` and `--json`. With `--json` one document goes to stdout and every other
word to stderr. Exit codes: 0 done, 1 a named error, 2 wrong usage, 3 finished but some items failed,
130 interrupted (safe to run again). Heavy imports stand inside the commands, so `--help` is instant.
"""

import dataclasses
import errno
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from featurecache.errors import FeatureCacheError

if TYPE_CHECKING:
    from featurecache.audit import LabelAudit
    from featurecache.extract import FailedClip, Progress
    from featurecache.project import Project
    from featurecache.recordings import UnusableRecording

DONE, FAILED, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
_SHOWN = 10
_PLAIN_LINE_EVERY_S = 5.0
_PLAIN_WIDTH = 120
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
            if kwargs.get("as_json"):
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
    from featurecache.propose import propose

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
    from featurecache.project import open_project

    screen = Screen(as_json)
    document = _clips(screen, open_project(config), force=force)
    screen.document(document)
    return SOME_FAILED if document["unusable"] else DONE


def _clips(screen: Screen, project: "Project", *, force: bool = False) -> dict[str, Any]:
    from featurecache.audit import audit
    from featurecache.clips_csv import write_table
    from featurecache.survey import make_table, survey

    found = survey(project)
    _show_unusable(screen, found.unusable)
    table, short = make_table(project, found)
    _show_unusable(screen, short)
    write_table(table, project.clips, state_path=project.state / "clips.json", force=force)
    findings = audit(table, found.recordings, found.intervals, annotated_span=project.settings.data.annotated_span)
    _show_audit(screen, findings)
    screen.say(f"wrote {project.clips}")
    listed = [dataclasses.asdict(item) for item in (*found.unusable, *short)]
    return {"clips_csv": project.clips, **dataclasses.asdict(findings), "unusable": listed}


def _show_audit(screen: Screen, findings: "LabelAudit") -> None:
    table = Table(title="Positive clips", title_justify="left")
    for column in ("label", "minutes", "intervals"):
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for split in findings.splits:
        table.add_column(f"{split.name}\n{split.sessions} sessions\n{split.labelled} clips", justify="right")
    for label in findings.labels:
        cells = [
            f"{split.positives[label.label]} ({share:.0%})"
            if (share := split.prevalence[label.label]) is not None
            else "-"
            for split in findings.splits
        ]
        table.add_row(label.label, f"{label.minutes:.1f}", str(label.intervals), *cells)
    screen.table(table)
    screen.say(f"{findings.clips} clips, {findings.labelled_clips} labelled, {findings.unlabelled_clips} unlabelled")
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
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Run the frozen backbone over every clip that the cache lacks."""
    from featurecache.project import open_project

    screen = Screen(as_json)
    document = _extract(
        screen,
        open_project(config),
        worker=_worker(worker),
        limit=limit,
        dry_run=dry_run,
        allow_download=allow_download,
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
) -> dict[str, Any]:
    from featurecache.plan import plan_extraction, run_plan

    if not project.clips.exists():
        _clips(screen, project)
    plan = plan_extraction(project, worker=worker, limit=limit, allow_download=allow_download)
    screen.say(f"{plan.planned} clips: {plan.present} in the cache, {plan.todo} to do")
    if plan.inputs.text_after_video:
        screen.warn(
            f"the words behind the video ({plan.inputs.text_after_video!r}) cannot change a feature: attention is "
            "causal. Move what matters in front of <video>."
        )
    document: dict[str, Any] = {
        "fingerprint": plan.space.fingerprint,
        "planned": plan.planned,
        "present": plan.present,
        "todo": plan.todo,
        "bytes_to_write": plan.bytes_to_write,
    }
    failures = plan.failures
    if dry_run:
        screen.say(f"they need about {plan.bytes_to_write / 1e6:.1f} MB in {project.cache.name}")
    else:
        with _extraction_progress(screen) as show:
            outcome = run_plan(project, plan, on_progress=show)
        failures, done = outcome.failures, outcome.progress
        if plan.todo:
            screen.say(
                f"extracted {done.extracted} clips in {done.elapsed_s:.1f} s ({done.extracted / done.elapsed_s:.1f} "
                f"clips/s; the model waited {done.waited_s / done.elapsed_s:.0%} of it for video)"
            )
        if done.elsewhere:
            screen.say(f"{done.elsewhere} clips were left to another process that is extracting them")
        document |= {
            "extracted": done.extracted,
            "elsewhere": done.elsewhere,
            "elapsed_s": done.elapsed_s,
            "waited_s": done.waited_s,
        }
    _show_failures(screen, failures)
    return {**document, "failed": [dataclasses.asdict(failure) for failure in failures]}


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
        screen.warn(f"{recording}: {len(reasons)} clips failed, the first because {reasons[0]}")
    if failures:
        screen.warn(f"{len(failures)} clips of {len(by_recording)} recordings failed; all are in failed_clips.csv")


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
            TextColumn("{task.fields[rate]:.1f} clips/s, model waits {task.fields[wait]:.0%}"),
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
                    wait=now.waited_s / max(now.elapsed_s, 1e-9),
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
        left = (now.total - done) / rate if rate else float("nan")
        wait = now.waited_s / max(now.elapsed_s, 1e-9)
        screen.say(
            f"{done}/{now.total} clips, {rate:.1f} clips/s, {left:.0f} s left, "
            f"the model waits {wait:.0%} of the time for video"
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
    from featurecache.project import open_project, parse_section
    from heads.runs import train_bundle
    from heads.settings import HeadSettings

    screen = Screen(as_json)
    project = open_project(config)
    settings = parse_section(project.settings.train, HeadSettings, "train")
    learning = _learning_data(screen, project, imported=features, allow_download=allow_download)
    folder = _run_folder(project, "train", features)
    best = train_bundle(**learning, settings=settings, seed=seed, folder=folder, device=_trainer_device(project))
    screen.document(_show_run(screen, folder, best))
    return DONE


@app.command()
@command
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Finished trials that the study shall have in all.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of sampler, data order, initial weights and dropout.")] = 0,
    features: Features = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Search head settings with Optuna's TPE on the validation split; resumes an earlier search."""
    from featurecache.project import open_project

    screen = Screen(as_json)
    project = open_project(config)
    found = _tune(screen, project, trials=trials, seed=seed, imported=features, allow_download=allow_download)
    screen.document(found)
    return DONE


def _tune(
    screen: Screen,
    project: "Project",
    *,
    trials: int,
    seed: int = 0,
    imported: str | None = None,
    allow_download: bool = False,
) -> dict[str, Any]:
    from featurecache.project import parse_section
    from heads.search import search_heads
    from heads.settings import SearchSpace

    search_space = parse_section(project.settings.search, SearchSpace, "search")
    learning = _learning_data(screen, project, imported=imported, allow_download=allow_download)
    folder = _run_folder(project, "tune", imported)
    with _search_progress(screen) as show:
        best = search_heads(
            **learning,
            search_space=search_space,
            trials=trials,
            seed=seed,
            folder=folder,
            device=_trainer_device(project),
            on_progress=show,
        )
    counts = best["trials"]
    screen.say(f"{counts['completed']} trials completed, {counts['pruned']} pruned; best is trial {best['trial']}:")
    of_mlp = {"hidden_width"} if best["settings"]["kind"] == "linear" else set()
    shown = {name: value for name, value in best["settings"].items() if name not in of_mlp}
    screen.say("  " + ", ".join(f"{name} {_short(value)}" for name, value in shown.items()))
    return _show_run(screen, folder, best)


@app.command()
@command
def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle's folder; runs/tune/bundle if left out.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Score a bundle on the test split; every look is logged."""
    from featurecache.project import open_project

    screen = Screen(as_json)
    project = open_project(config)
    screen.document(_evaluate(screen, project, bundle if bundle is not None else project.runs / "tune" / "bundle"))
    return DONE


def _evaluate(screen: Screen, project: "Project", path: Path) -> dict[str, Any]:
    from featurecache import FeatureCache
    from featurecache.clips_csv import read_table
    from featurecache.errors import BundleError
    from featurecache.plan import failed_clip_ids
    from heads.bundle import load_bundle
    from heads.evaluation import always_yes, evaluate_bundle
    from heads.loading import load_split
    from heads.runs import write_document

    head = load_bundle(path)
    table = read_table(project.clips)
    if table.labels != head.labels:
        raise BundleError(
            f"a bundle must be scored on its own labels, but it has {', '.join(head.labels)} and clips.csv has "
            f"{', '.join(table.labels)}. Train again: featurecache tune."
        )
    loaded = load_split(table, "test", FeatureCache.open(project.cache), head.space, failed=failed_clip_ids(project))
    _warn_left_out(screen, "test", loaded.left_out)
    outcome = evaluate_bundle(
        head,
        loaded.data,
        split="test",
        fingerprint=head.space.fingerprint,
        log=project.runs / "test_looks.jsonl",
    )
    out = path.parent / "test_metrics.json"
    write_document(out, outcome.metrics)
    methods = {"always yes": always_yes(loaded.data, head.labels, "test"), _method(head.settings.kind): outcome.metrics}
    _show_metrics(screen, outcome.metrics)
    _show_methods(screen, methods)
    screen.say(f"look number {outcome.looks} at these test sessions; wrote {out}")
    if outcome.looks > 1:
        screen.warn("settings chosen after a look at the test split make its score too kind.")
    return {**outcome.metrics, "looks": outcome.looks, "always_yes": methods["always yes"]}


def _learning_data(
    screen: Screen, project: "Project", *, imported: str | None = None, allow_download: bool = False
) -> dict[str, Any]:
    """Training and validation arrays with their labels and feature space, as the heads' functions take them."""
    from featurecache import FeatureCache
    from featurecache.clips_csv import read_table
    from featurecache.plan import failed_clip_ids, project_space
    from featurecache.spec import FeatureSpace
    from heads.loading import load_split

    table = read_table(project.clips)
    cache = FeatureCache.open(project.cache)
    if imported is None:
        _, space = project_space(project, allow_download=allow_download)
    else:
        space = FeatureSpace(cache.describe("imported", imported).inputs)
    failed = failed_clip_ids(project) if imported is None else frozenset()
    splits = {}
    for split in ("train", "validation"):
        loaded = load_split(table, split, cache, space, failed=failed)
        _warn_left_out(screen, split, loaded.left_out)
        splits[split] = loaded.data
    screen.say(
        ", ".join(f"{name}: {len(data.X)} clips of {len(set(data.sessions))} sessions" for name, data in splits.items())
    )
    return {**splits, "labels": table.labels, "space": space}


def _run_folder(project: "Project", command: str, imported: str | None) -> Path:
    return project.runs / (command if imported is None else f"{command}-{imported}")


def _warn_left_out(screen: Screen, split: str, count: int) -> None:
    if count:
        screen.warn(f"{split}: {count} labelled clips are left out, since their extraction failed (failed_clips.csv)")


def _trainer_device(project: "Project") -> str:
    from featurecache.plan import device_of

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


def _method(kind: str) -> str:
    return "FT-LC" if kind == "linear" else "FT-MLP"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _show_metrics(screen: Screen, metrics: Mapping[str, Any]) -> None:
    title = f"{metrics['split']}: {metrics['n_clips']} clips of {metrics['n_sessions']} sessions"
    table = Table(title=title, title_justify="left")
    for column in ("label", "F1", "precision", "recall", "AP", "threshold", "positives"):
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for label, scores in metrics["per_class"].items():
        numbers = [_number(scores[name]) for name in ("f1", "precision", "recall", "average_precision", "threshold")]
        table.add_row(label, *numbers, str(scores["support"]))
    screen.table(table)


def _show_methods(screen: Screen, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """F1 per label and macro-F1, a row per method: the shape of the paper's Table 1, with intervals."""
    first = next(iter(methods.values()))
    table = Table(title=f"F1 on the {first['split']} split", title_justify="left")
    table.add_column("method")
    for label in first["per_class"]:
        table.add_column(label, justify="right", overflow="fold")
    table.add_column("macro-F1 (95% CI)", justify="right")
    for name, metrics in methods.items():
        interval = metrics["macro_f1_ci95"]
        span = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        cells = [_number(scores["f1"]) for scores in metrics["per_class"].values()]
        table.add_row(name, *cells, _number(metrics["macro_f1"]) + span)
    screen.table(table)
    reason = first.get("macro_f1_ci95_reason")
    if reason:
        screen.say(f"no confidence interval: {reason}")


# --- looking after it -------------------------------------------------------------------------------


@cache_app.command("info")
@command
def cache_info(config: Config = Path(), as_json: AsJson = False) -> int:
    """Show the feature spaces of the cache and what is damaged."""
    from featurecache import FeatureCache
    from featurecache.project import open_project

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
    from featurecache.project import open_project
    from featurecache.why import explain

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
    from featurecache.project import open_project
    from featurecache.store import verify

    screen = Screen(as_json)
    report = verify(open_project(config).cache, deep=deep)
    for damage in report.damage:
        screen.warn(damage.reason)
    screen.say(
        f"{'deep' if deep else 'quick'} check of {report.segments} segments in {report.spaces} feature spaces: "
        f"{report.rows} clips served, {len(report.damage)} damaged"
    )
    if report.damage:
        screen.say("Set the damage aside: featurecache cache repair")
    screen.document(dataclasses.asdict(report))
    return FAILED if report.damage else DONE


@cache_app.command("repair")
@command
def cache_repair(config: Config = Path(), as_json: AsJson = False) -> int:
    """Set damaged segments aside; the next extract computes their clips again."""
    from featurecache.project import open_project
    from featurecache.store import repair

    screen = Screen(as_json)
    report = repair(open_project(config).cache)
    screen.say(f"set aside {len(report.set_aside)} damaged, wrote {len(report.rewritten)} records again")
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
    from featurecache.project import open_project
    from featurecache.store import gc

    screen = Screen(as_json)
    garbage = gc(open_project(config).cache, apply=apply, spaces=space or (), quarantine=quarantine)
    for item in garbage:
        screen.say(f"  {item.path}: {item.reason} ({item.size_bytes / 1e6:.1f} MB)")
    size_mb = sum(item.size_bytes for item in garbage) / 1e6
    screen.say(f"{'removed' if apply else 'can go'}: {len(garbage)} items, {size_mb:.1f} MB")
    if garbage and not apply:
        screen.say("Remove them: the same command with --apply")
    screen.document({"applied": apply, "garbage": [dataclasses.asdict(item) for item in garbage]})
    return DONE


@cache_app.command("compact")
@command
def cache_compact(config: Config = Path(), as_json: AsJson = False) -> int:
    """Merge small segments, so that the cache opens and reads faster."""
    from featurecache.project import open_project
    from featurecache.store import compact

    screen = Screen(as_json)
    report = compact(open_project(config).cache)
    screen.say(f"merged {report.merged} segments into {report.written} ({report.rows} clips)")
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
    from featurecache.plan import content_of
    from featurecache.project import open_project
    from featurecache.store import forget

    screen = Screen(as_json)
    project = open_project(config)
    report = forget(project.cache, content_of(project, recording))
    screen.say(f"removed {report.rows} features of {recording}; {report.rewritten} segments were written anew")
    screen.say(
        "Not touched: the video, its annotations, clips.csv, failed_clips.csv, exports, and heads that were trained "
        "with it. Remove the first two, then: featurecache clips --force; train again."
    )
    screen.document(dataclasses.asdict(report))
    return DONE


@cache_app.command("export")
@command
def cache_export(
    file: Annotated[Path, typer.Argument(help="A new .h5, .hdf5 or .npz file.")],
    tap: Annotated[str, typer.Option(help="Where in the backbone.")] = "final",
    pooling: Annotated[str, typer.Option(help="How tokens became one array.")] = "mean",
    space: Annotated[str | None, typer.Option(help="Fingerprint, where several spaces match.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Write one feature space to one HDF5 or npz file."""
    from featurecache.exchange import export_features
    from featurecache.project import open_project

    screen = Screen(as_json)
    report = export_features(open_project(config).cache, file, tap=tap, pooling=pooling, space=space)
    screen.say(f"wrote {report.rows} features of {report.fingerprint[:16]} to {report.path}")
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
    from featurecache.exchange import import_features
    from featurecache.plan import contents
    from featurecache.project import open_project

    screen = Screen(as_json)
    project = open_project(config)
    report = import_features(project.cache, file, name=name, recordings=contents(project) if name else None)
    screen.say(
        f"took in {report.rows} features, {report.present} were there; tap {report.tap}, pooling {report.pooling}"
    )
    if name:
        screen.say(f"Train on them: featurecache tune --features {name}")
    screen.document(dataclasses.asdict(report))
    return DONE


@app.command()
@command
def doctor(config: Config = Path(), as_json: AsJson = False) -> int:
    """Check the machine, the model and the recordings; each failure comes with its fix."""
    from featurecache.doctor import examine
    from featurecache.project import open_project

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
    from featurecache.project import SETTINGS_NAME, open_project, write_settings

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
