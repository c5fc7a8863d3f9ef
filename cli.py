"""The command line: parse, make one library call, print what came back.

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
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.terminal.text import MOST_LISTED, Piece, Warn, counted

if TYPE_CHECKING:
    from featurecache.project.settings import Project
    from featurecache.workflow.clips import MadeClips
    from featurecache.workflow.extraction import ExtractionReport
    from heads.workflow.evaluating import TestScores
    from heads.workflow.training import TrainedRun

DONE, FAILED, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
_PLAIN_WIDTH = 120
_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Idle threads of the model sleep and leave their cores to the decoders: 5 times faster on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}
P = ParamSpec("P")

app = typer.Typer(
    name="featurecache",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: featurecache demo",
)
cache_app = typer.Typer(help="Look after the feature cache.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache", epilog="Example: featurecache cache info")
model_app = typer.Typer(help="Look after model folders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model_app, name="model", epilog="Example: featurecache model convert timesformer-base-finetuned-ssv2")

Config = Annotated[Path, typer.Option("--config", help="The project's folder or its featurecache.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Fetch the model from the hub if it is not on this machine.")
]
Features = Annotated[str | None, typer.Option("--features", help="Features imported under this name.")]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="The bundle's folder; runs/tune/bundle if left out.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data order, initial weights, dropout and any sampler.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin again, whatever an earlier run left.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast time, memory and disk, and do nothing.")]


class Screen:
    """Where a command's words go: to stdout for people, or to stderr beside a JSON document.

    Of several processes that a launcher started for one training, the first one alone speaks.
    """

    def __init__(self, as_json: bool) -> None:
        quiet = os.environ.get("RANK", "0") != "0"
        self.as_json = as_json and not quiet
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True, quiet=quiet)
        self._warnings = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH

    @property
    def width(self) -> int:
        """Characters of a line."""
        return self.console.width

    def say(self, text: str = "") -> None:
        """A line for people."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that people must not miss; always on stderr."""
        self._warnings.print(f"warning: {text}", markup=False, style="yellow")

    def table(self, table: Table) -> None:
        """A table for people."""
        self.console.print(table, soft_wrap=False)

    def show(self, pieces: Iterable[Piece]) -> None:
        """Lines, tables and warnings, in order."""
        for piece in pieces:
            if isinstance(piece, Warn):
                self.warn(piece.text)
            elif isinstance(piece, Table):
                self.table(piece)
            else:
                self.say(piece)

    def document(self, document: Mapping[str, Any]) -> None:
        """The command's result; printed with `--json` alone."""
        if self.as_json:
            print(json.dumps(document, indent=1, default=str))


def command(name: str, *, example: str, group: typer.Typer = app) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Adds a command that returns an exit code; named errors become one line on stderr.

    Args:
        name: As typed.
        example: A use of it, shown below its help.
        group: Whose command it is.
    """

    def decorate(function: Callable[P, int]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            os.environ |= _ENVIRONMENT
            if not kwargs.get("allow_download"):
                os.environ["HF_HUB_OFFLINE"] = "1"
            signal.signal(signal.SIGTERM, _interrupt)
            try:
                code = function(*args, **kwargs)
            except UsageError as error:
                raise typer.BadParameter(str(error)) from error
            except FeatureCacheError as error:
                _fail(error, str(error), as_json=bool(kwargs.get("as_json")))
            except OSError as error:
                _fail(error, _system_says(error), as_json=bool(kwargs.get("as_json")))
            except KeyboardInterrupt:
                print("interrupted: what was saved is kept, and running again goes on from there.", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None
            raise typer.Exit(code)

        return group.command(name, epilog=f"Example: {example}")(run)

    return decorate


def _fail(error: Exception, message: str, *, as_json: bool) -> NoReturn:
    if as_json and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"error": {"kind": type(error).__name__, "message": message}}))
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(FAILED)


def _system_says(error: OSError) -> str:
    where, why = error.filename or "a file of the project", error.strerror or error
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Free space and run again." if full else "Check its path and its rights."
    return f"{where} must be usable, but the system says: {why}. {advice}"


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _version(wanted: bool) -> None:
    if wanted:
        from featurecache import __version__

        print(f"featurecache {__version__}")
        raise typer.Exit(DONE)


def _project(config: Path) -> "Project":
    from featurecache.project.settings import open_project

    return open_project(config)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Run a video vision-language model once over private recordings, then train activity heads in seconds."""


# --- the project ------------------------------------------------------------------------------------


@command("init", example="featurecache init myproject --videos /data/videos --annotations /data/elan --model demo")
def init(
    directory: Annotated[Path, typer.Argument(help="The new project's folder.")] = Path(),
    videos: Annotated[Path, typer.Option(help="The folder of recordings.")] = Path("videos"),
    annotations: Annotated[Path | None, typer.Option(help="A folder of .eaf files, or a CSV.")] = None,
    model: Annotated[str, typer.Option(help="The backbone: a folder, a hub name, or demo.")] = (
        "llava-hf/LLaVA-NeXT-Video-7B-hf"
    ),
    as_json: AsJson = False,
) -> int:
    """Look at the files and write a commented featurecache.toml."""
    from featurecache.project.proposal import propose

    screen = Screen(as_json)
    proposal = propose(directory, videos=videos, annotations=annotations, model=model)
    screen.say(f"wrote {proposal.path}")
    for note in proposal.notes:
        screen.say(f"  {note}")
    screen.say("Look it over, then: featurecache clips")
    screen.document(dataclasses.asdict(proposal))
    return DONE


@command("clips", example="featurecache clips --force")
def clips(
    force: Annotated[bool, typer.Option("--force", help="Replace a clips.csv that was edited.")] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Cut the recordings into clips and audit their labels.

    Sets each clip's targets and split, and writes clips.csv.
    """
    screen = Screen(as_json)
    made = _clips(screen, _project(config), force=force)
    screen.document(made.to_mapping())
    return SOME_FAILED if made.unusable else DONE


def _clips(screen: Screen, project: "Project", *, force: bool = False) -> "MadeClips":
    from featurecache.terminal.clips import left_out, made_clips
    from featurecache.workflow.clips import make_clips

    made = make_clips(project, force=force, on_left_out=lambda items: screen.show(left_out(items)))
    screen.show(made_clips(made))
    return made


@command("extract", example="featurecache extract --devices all")
def extract(
    limit: Annotated[int | None, typer.Option(min=1, help="Do at most this many clips.")] = None,
    dry_run: DryRun = False,
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
    """Run the backbone over every clip that the cache lacks."""
    screen = Screen(as_json)
    report = _extract(
        screen,
        _project(config),
        limit=limit,
        dry_run=dry_run,
        devices=devices,
        ray=ray,
        allow_download=allow_download,
    )
    screen.document(report.to_mapping())
    return SOME_FAILED if report.failed else DONE


def _extract(screen: Screen, project: "Project", **options: Any) -> "ExtractionReport":
    from featurecache.terminal.clips import left_out, made_clips
    from featurecache.terminal.extraction import extraction_report, plan_lines
    from featurecache.terminal.progress import extraction_progress
    from featurecache.workflow.extraction import extract

    with extraction_progress(screen.console, screen.say) as show:
        report = extract(
            project,
            on_left_out=lambda items: screen.show(left_out(items)),
            on_clips=lambda made: screen.show(made_clips(made)),
            on_plan=lambda plan: screen.show(plan_lines(plan)),
            on_progress=show,
            **options,
        )
    screen.show(extraction_report(report, screen.width))
    return report


# --- learning ---------------------------------------------------------------------------------------


@command("train", example="featurecache train --seed 1")
def train(
    seed: Seed = 0,
    features: Features = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Fit one head with the settings of [train]."""
    from heads.terminal.training import data_lines, trained_run
    from heads.workflow.training import train

    screen = Screen(as_json)
    run = train(
        _project(config),
        seed=seed,
        features=features,
        allow_download=allow_download,
        on_data=lambda data: screen.show(data_lines(data)),
    )
    screen.show(trained_run(run, screen.width))
    screen.document(run.to_mapping())
    return DONE


@command("tune", example="featurecache tune --trials 200")
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Finished trials that the study shall have in all.")] = 200,
    seed: Seed = 0,
    permutations: Annotated[
        int, typer.Option(min=0, help="Also fit the best settings to labels shuffled by session, so often.")
    ] = 0,
    refit_seeds: Annotated[
        int, typer.Option(min=0, help="Also fit them across session folds with so many seeds, to see scores' spread.")
    ] = 0,
    features: Features = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Search head settings with Optuna's TPE; resumes a search.

    Trials are scored on the validation split.
    """
    screen = Screen(as_json)
    run = _tune(
        screen,
        _project(config),
        trials=trials,
        seed=seed,
        permutations=permutations,
        refit_seeds=refit_seeds,
        features=features,
        allow_download=allow_download,
    )
    screen.document(run.to_mapping())
    return DONE


def _tune(screen: Screen, project: "Project", **options: Any) -> "TrainedRun":
    from heads.terminal.training import data_lines, search_progress, tuned_run
    from heads.workflow.training import tune

    with search_progress(screen.console) as show:
        run = tune(project, on_data=lambda data: screen.show(data_lines(data)), on_progress=show, **options)
    screen.show(tuned_run(run, screen.width))
    return run


@command("lora-finetune", example="featurecache lora-finetune --dry-run")
def lora_finetune(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="The tuned head to begin with; runs/tune/bundle if left out.")
    ] = None,
    from_layer: Annotated[
        int | None, typer.Option("--from-layer", min=1, help="Put adapters above this layer alone.")
    ] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the model with the adapters added in.")] = False,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Train adapters in the language model with the tuned head.

    Goes on with an interrupted run.
    """
    from heads.terminal.finetuning import lora_report, watching_lora
    from heads.workflow.finetuning_lora import finetune_lora

    screen, project = Screen(as_json), _project(config)
    with watching_lora(screen.console, screen.say, screen.show) as callbacks:
        report = finetune_lora(
            project,
            bundle,
            from_layer=from_layer,
            seed=seed,
            dry_run=dry_run,
            fresh=fresh,
            merge=merge,
            allow_download=allow_download,
            callbacks=callbacks,
        )
    screen.show(lora_report(report, project, screen.width))
    screen.document(report.to_mapping())
    return SOME_FAILED if report.failed else DONE


@command("finetune", example="featurecache finetune --trials 20")
def finetune(
    trials: Annotated[
        int | None, typer.Option(min=1, help="Choose settings by TPE: finished trials that the study shall have.")
    ] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Train the supervised baseline, a TimeSformer.

    Goes on with an interrupted run.
    """
    from heads.terminal.finetuning import timesformer_report, watching_timesformer
    from heads.workflow.finetuning_timesformer import finetune_timesformer

    screen, project = Screen(as_json), _project(config)
    report = finetune_timesformer(
        project,
        trials=trials,
        seed=seed,
        dry_run=dry_run,
        fresh=fresh,
        allow_download=allow_download,
        callbacks=watching_timesformer(screen.say, screen.show),
    )
    screen.show(timesformer_report(report, project, screen.width))
    screen.document(report.to_mapping())
    return SOME_FAILED if report.failed_clips else DONE


@command("evaluate", example="featurecache evaluate runs/tune/bundle --against runs/train/bundle")
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
    screen, project = Screen(as_json), _project(config)
    if not leave_one_session_out:
        found = _evaluate(screen, project, bundle, against=against)
        screen.document(found.to_mapping())
        return SOME_FAILED if found.failed else DONE
    if against is not None:
        raise UsageError("--against compares on the test split. Give it without --leave-one-session-out.")
    from heads.terminal.scores import left_out_scores
    from heads.workflow.leaving_out import leave_one_session_out as leave_out

    each = leave_out(project, bundle)
    screen.show(left_out_scores(each, screen.width))
    screen.document(each.to_mapping())
    return DONE


def _evaluate(
    screen: Screen, project: "Project", bundle: Path | None = None, *, against: Path | None = None
) -> "TestScores":
    from featurecache.terminal.progress import extraction_progress
    from heads.terminal.scores import adapted_plan, evaluation
    from heads.workflow.evaluating import evaluate

    with extraction_progress(screen.console, screen.say) as show:
        found = evaluate(
            project,
            bundle,
            against=against,
            on_plan=lambda plan: screen.show(adapted_plan(plan)),
            on_progress=show,
        )
    screen.show(evaluation(found, screen.width))
    return found


@command("report", example="featurecache report --out report.html")
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
    """Write runs, search, timelines and cache into one HTML file."""
    from heads.terminal.scores import report_pieces
    from heads.workflow.reporting import report

    screen = Screen(as_json)
    written = report(_project(config), with_frames=with_frames, predictions=predictions, out=out)
    screen.show(report_pieces(written, screen.width))
    screen.document(dataclasses.asdict(written))
    return SOME_FAILED if written.problems else DONE


# --- timelines --------------------------------------------------------------------------------------


@command("predict", example="featurecache predict case7.mp4 --out predictions")
def predict(
    recordings: Annotated[list[Path], typer.Argument(help="The recordings' files, from anywhere on this machine.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder for the timelines; predictions if left out.")
    ] = None,
    bundle: BundleOption = None,
    stride: Annotated[
        float | None,
        typer.Option("--stride", min=0.01, max=3600, help="Seconds between clips; half a clip if left out."),
    ] = None,
    allow_download: AllowDownload = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Write timelines of recordings for review in ELAN.

    Replaces nothing that a person wrote or changed.
    """
    from featurecache.terminal.progress import extraction_progress
    from heads.terminal.predictions import predictions
    from heads.workflow.predicting import predict

    screen = Screen(as_json)
    with extraction_progress(screen.console, screen.say) as show:
        found = predict(
            _project(config),
            recordings,
            bundle=bundle,
            out=out,
            stride_s=stride,
            allow_download=allow_download,
            on_progress=show,
        )
    screen.show(predictions(found))
    screen.document(found.to_mapping())
    return SOME_FAILED if found.is_partial else DONE


@command("agreement", example="featurecache agreement a.eaf b.eaf")
def agreement(
    first: Annotated[Path | None, typer.Argument(help="The reference: an .eaf or a CSV; none: the project's.")] = None,
    second: Annotated[Path | None, typer.Argument(help="Another annotator's, or a .predicted.eaf.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Compare two annotators of the same recordings.

    By kappa, segment F1, durations and borders: of two files, which need no project, or of all recordings that a
    project has from two annotators.
    """
    from heads.terminal.scores import agreement_pieces
    from heads.workflow.agreeing import annotators_agreement

    screen = Screen(as_json)
    if (first is None) != (second is None):
        raise typer.BadParameter("two files must be named, or none for the project's, but one is. Name the other.")
    found = annotators_agreement(config, None if first is None or second is None else (first, second))
    screen.show(agreement_pieces(found, screen.width))
    screen.document(found)
    return SOME_FAILED if found["left_out"] else DONE


# --- looking after it -------------------------------------------------------------------------------


@command("convert", example="featurecache model convert timesformer-base-finetuned-ssv2", group=model_app)
def model_convert(
    folder: Annotated[str, typer.Argument(help="A model folder, or organisation/name@revision on this machine.")],
    as_json: AsJson = False,
) -> int:
    """Write pickled weights as safetensors.

    Next to pytorch_model.bin or its shards, which stay. A pickle can run code: it
    is read by torch's unpickler for tensors alone, in a process of its own.
    """
    from featurecache.backbones import find_model
    from featurecache.backbones.conversion import RECORD_NAME, convert_weights

    screen = Screen(as_json)
    path = find_model(folder, setting="FOLDER")
    done = convert_weights(path)
    for (source, read), (target, written) in zip(done.read.items(), done.written.items(), strict=True):
        screen.say(f"{source} (sha256 {read[:16]}) -> {target} (sha256 {written[:16]})")
    screen.say(f"both digests are in {path / RECORD_NAME}; the pickle is no longer needed")
    screen.document(dataclasses.asdict(done))
    return DONE


@command("info", example="featurecache cache info", group=cache_app)
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


@command("why", example="featurecache cache why 0123456789abcdef-0-3000000", group=cache_app)
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


@command("verify", example="featurecache cache verify --deep", group=cache_app)
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
        f"{'deep' if deep else 'quick'} check of {counted(report.segments, 'segment')} in "
        f"{counted(report.spaces, 'feature space')}: {counted(report.rows, 'clip')} served, "
        f"{len(report.damage)} damaged"
    )
    if report.damage:
        screen.say("Set the damage aside: featurecache cache repair")
    screen.document(dataclasses.asdict(report))
    return FAILED if report.damage else DONE


@command("repair", example="featurecache cache repair", group=cache_app)
def cache_repair(config: Config = Path(), as_json: AsJson = False) -> int:
    """Set damaged segments aside.

    The next extract computes their clips again.
    """
    from featurecache.project.settings import open_project
    from featurecache.store import repair

    screen = Screen(as_json)
    report = repair(open_project(config).cache)
    screen.say(f"set aside {len(report.set_aside)} damaged, wrote {counted(len(report.rewritten), 'record')} again")
    for _, clip in report.lost[:MOST_LISTED]:
        screen.say(f"  to extract again: {clip}")
    if len(report.lost) > MOST_LISTED:
        screen.say(f"  and {len(report.lost) - MOST_LISTED} more (all of them with --json)")
    if report.set_aside:
        screen.say("Compute what is missing: featurecache extract")
    screen.document(dataclasses.asdict(report))
    return DONE


@command("gc", example="featurecache cache gc --apply", group=cache_app)
def cache_gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; otherwise only list it.")] = False,
    space: Annotated[list[str] | None, typer.Option(help="Also this feature space (8 digits or more).")] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Also what repair has set aside.")] = False,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """List what nobody needs; remove it with --apply.

    Leftovers of dead writers, and replaced segments.
    """
    from featurecache.project.settings import open_project
    from featurecache.store import gc

    screen = Screen(as_json)
    garbage = gc(open_project(config).cache, apply=apply, spaces=space or (), quarantine=quarantine)
    for item in garbage:
        screen.say(f"  {item.path}: {item.reason} ({item.size_bytes / 1e6:.1f} MB)")
    size_mb = sum(item.size_bytes for item in garbage) / 1e6
    screen.say(f"{'removed' if apply else 'can go'}: {counted(len(garbage), 'item')}, {size_mb:.1f} MB")
    if garbage and not apply:
        screen.say("Remove them: the same command with --apply")
    screen.document({"applied": apply, "garbage": [dataclasses.asdict(item) for item in garbage]})
    return DONE


@command("compact", example="featurecache cache compact", group=cache_app)
def cache_compact(config: Config = Path(), as_json: AsJson = False) -> int:
    """Merge small segments, so that the cache opens and reads faster."""
    from featurecache.project.settings import open_project
    from featurecache.store import compact

    screen = Screen(as_json)
    report = compact(open_project(config).cache)
    screen.say(f"merged {counted(report.merged, 'segment')} into {report.written} ({counted(report.rows, 'clip')})")
    if report.merged:
        screen.say("The old ones go after an hour: featurecache cache gc --apply")
    screen.document(dataclasses.asdict(report))
    return DONE


@command("forget", example="featurecache cache forget S01.mp4", group=cache_app)
def cache_forget(
    recording: Annotated[str, typer.Argument(help="Its name in clips.csv, or 16 to 64 digits of its sha256.")],
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Remove every feature of a recording.

    For instance when consent is withdrawn.
    """
    from featurecache.clips.contents import content_of
    from featurecache.project.settings import open_project
    from featurecache.store import forget

    screen = Screen(as_json)
    project = open_project(config)
    report = forget(project.cache, content_of(project, recording))
    features, segments = counted(report.rows, "feature"), counted(report.rewritten, "segment")
    screen.say(f"removed {features} of {recording}; wrote {segments} anew")
    screen.say(
        "Not touched: the video, its annotations, clips.csv, failed_clips.csv, predictions, the report, exports, heads "
        "that were trained with it, and the names in .featurecache. Remove the first two and its predictions, then: "
        "featurecache clips --force; train again; featurecache report."
    )
    screen.document(dataclasses.asdict(report))
    return DONE


@command("export", example="featurecache cache export all.h5", group=cache_app)
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
    screen.say(f"wrote {counted(report.rows, 'feature')} of {report.fingerprint[:16]} to {report.path}")
    screen.document(dataclasses.asdict(report))
    return DONE


@command("import", example="featurecache cache import clip.npz --name clip", group=cache_app)
def cache_import(
    file: Annotated[Path, typer.Argument(help="An export, or a file with `features` and `clip_id`.")],
    name: Annotated[str | None, typer.Option(help="What to call features made by others.")] = None,
    config: Config = Path(),
    as_json: AsJson = False,
) -> int:
    """Read an export, or features made by others, into the cache."""
    from featurecache.clips.contents import contents
    from featurecache.project.settings import open_project
    from featurecache.store.exchange import import_features

    screen = Screen(as_json)
    project = open_project(config)
    report = import_features(project.cache, file, name=name, recordings=contents(project) if name else None)
    screen.say(
        f"took in {counted(report.rows, 'feature')}, had {report.present} already; "
        f"tap {report.tap}, pooling {report.pooling}"
    )
    for fingerprint in report.replaced:
        screen.say(f"removed {fingerprint[:16]}, imported under this name before")
    if name:
        screen.say(f"Train on them: featurecache tune --features {name}")
    screen.document(dataclasses.asdict(report))
    return DONE


@command("doctor", example="featurecache doctor")
def doctor(config: Config = Path(), as_json: AsJson = False) -> int:
    """Check machine, model and files; each failure has its fix."""
    from featurecache.setup.doctor import examine

    screen = Screen(as_json)
    checks = []
    for check in examine(_project(config)):
        checks.append(check)
        screen.say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}")
        if check.fix:
            screen.say(f"       {check.fix}")
    screen.document({"checks": [dataclasses.asdict(check) for check in checks]})
    return DONE if all(check.ok for check in checks) else FAILED


@command("demo", example="featurecache demo demo --trials 64")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the demo is made.")] = Path("demo"),
    trials: Annotated[int, typer.Option(min=1, help="Trials of the search.")] = 64,
    as_json: AsJson = False,
) -> int:
    """The whole way on embedded data: no download, no GPU."""
    from featurecache.workflow.demo import make_demo

    screen = Screen(as_json)
    drawing, going_on = "drawing recordings and their annotations ...", "holds a demo already; going on with it"
    project = make_demo(
        directory, on_drawing=lambda is_new: screen.say(drawing if is_new else f"{directory} {going_on}")
    )
    steps: dict[str, Any] = {}
    chain: dict[str, Callable[[], MadeClips | ExtractionReport | TrainedRun | TestScores]] = {
        "clips": lambda: _clips(screen, project),
        "extract": lambda: _extract(screen, project),
        "tune": lambda: _tune(screen, project, trials=trials),
        "evaluate": lambda: _evaluate(screen, project),
    }
    for name, step in chain.items():
        screen.say()
        screen.say(f"featurecache {name}")
        steps[name] = step().to_mapping()
    screen.document(steps)
    return SOME_FAILED if steps["clips"]["unusable"] or steps["extract"]["failed"] else DONE


def main() -> None:
    """The entry point of the `featurecache` command."""
    app()


if __name__ == "__main__":
    main()
