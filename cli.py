"""The command line: parse, make one library call, print what came back.

Every command takes `--json`, and those that work in a project `--config`. With `--json` one document goes to stdout
(none after wrong usage or an interruption) and every other word to stderr. Exit codes: 0 done, 1 a named error, or what
a command that checks found wrong, 2 wrong usage, 3 finished but some items failed, 130 interrupted (safe to run again).
Heavy imports are inside the commands, so `--help` is instant.
"""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from featurecache.errors import UsageError
from featurecache.terminal import cache_commands, options
from featurecache.terminal.command import (
    DONE,
    FAILED,
    SOME_FAILED,
    added,
    document,
    finish,
    print_document,
    print_version,
    project_of,
)
from featurecache.terminal.screen import Screen
from heads.terminal import map_commands
from heads.terminal import options as learning

if TYPE_CHECKING:
    from featurecache.project.settings import Project
    from featurecache.workflow.clips import MadeClips
    from featurecache.workflow.extraction import ExtractionReport
    from heads.report import Report
    from heads.workflow.comparing import Comparison
    from heads.workflow.evaluating import TestScores
    from heads.workflow.predicting import Predictions
    from heads.workflow.training import TrainedRun
    from heads.workflow.zeroshot_report import ZeroShotReport

P = ParamSpec("P")
app = typer.Typer(
    name="featurecache",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: featurecache demo",
)
app.add_typer(map_commands.app)
app.add_typer(cache_commands.app, name="cache", epilog="Example: featurecache cache info")
model_app = typer.Typer(help="Look after model folders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model_app, name="model", epilog="Example: featurecache model convert timesformer-base-finetuned-ssv2")


def command(name: str, *, example: str, group: typer.Typer = app) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Adds a command to a group, as `featurecache.terminal.command.added`."""
    return added(group, name, example=example)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Run a video vision-language model once over private recordings, then train activity heads in seconds."""


# --- the project ------------------------------------------------------------------------------------


@command("init", example="featurecache init myproject --videos /data/videos --annotations /data/elan --model demo")
def init(
    directory: Annotated[Path, typer.Argument(help="The new project's folder.")] = Path(),
    videos: Annotated[Path, typer.Option(help="The folder of recordings.")] = Path("videos"),
    annotations: Annotated[Path | None, typer.Option(help="A folder of .eaf files, or a CSV.")] = None,
    model: options.Model = "",
    as_json: options.AsJson = False,
) -> int:
    """Look at the files and write a commented featurecache.toml."""
    from featurecache.setup.proposal import propose
    from featurecache.terminal.clips import proposal
    from heads.sections import SECTIONS

    found = propose(directory, videos=videos, annotations=annotations, model=model, sections=SECTIONS)
    return finish(Screen(as_json), found, proposal(found))


@command("clips", example="featurecache clips --force")
def clips(
    force: Annotated[bool, typer.Option("--force", help="Replace a clips.csv that was edited.")] = False,
    redeal: Annotated[bool, typer.Option("--redeal", help="Assign all sessions to splits anew.")] = False,
    with_reviewed: Annotated[bool, typer.Option("--with-reviewed", help="Also label what was reviewed.")] = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Cut the recordings into clips and audit their labels.

    Sets each clip's targets and split, and writes clips.csv; sessions keep their splits.
    """
    screen = Screen(as_json)
    made = _clips(screen, project_of(config), force=force, redeal=redeal, with_reviewed=with_reviewed)
    print_document(screen, made.to_mapping())
    return SOME_FAILED if made.unusable else DONE


def _clips(screen: Screen, project: "Project", **options: bool) -> "MadeClips":
    from featurecache.terminal.clips import left_out, made_clips
    from featurecache.workflow.clips import make_clips

    made = make_clips(project, on_left_out=lambda items: screen.show(left_out(items)), **options)
    screen.show(made_clips(made))
    return made


@command("extract", example="featurecache extract --devices all")
def extract(
    limit: Annotated[int | None, typer.Option(min=1, help="Do at most this many clips.")] = None,
    dry_run: options.DryRun = False,
    devices: options.Devices = None,
    ray: options.Ray = None,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Run the backbone over every clip missing from the cache."""
    screen = Screen(as_json)
    report = _extract(
        screen,
        project_of(config),
        limit=limit,
        dry_run=dry_run,
        devices=devices,
        ray=ray,
        allow_download=allow_download,
    )
    print_document(screen, report.to_mapping())
    return DONE if report.is_whole else SOME_FAILED


def _extract(screen: Screen, project: "Project", **options: Any) -> "ExtractionReport":
    from featurecache.terminal.extraction import extraction_report, watching_extraction
    from featurecache.workflow.extraction import extract

    with watching_extraction(screen.console, screen.say, screen.show) as callbacks:
        report = extract(project, **callbacks, **options)
    screen.show(extraction_report(report, screen.width))
    return report


# --- learning ---------------------------------------------------------------------------------------


@command("train", example="featurecache train --seed 1")
def train(
    seed: learning.Seed = 0,
    features: learning.Features = None,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Fit one head with the settings of [train]."""
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.training import data_lines, trained_run
    from heads.workflow.training import train

    run = train(
        project,
        seed=seed,
        features=features,
        allow_download=allow_download,
        on_data=lambda data: screen.show(data_lines(data)),
    )
    return finish(screen, run, trained_run(run, screen.width))


@command("tune", example="featurecache tune --trials 200")
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Completed trials that the study shall have in total.")] = 200,
    seed: learning.Seed = 0,
    permutations: learning.Permutations = 0,
    refit_seeds: learning.RefitSeeds = 0,
    features: learning.Features = None,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Search head settings with Optuna's TPE; resumes a search.

    The head is chosen by out-of-fold scores over all sessions that are not test, and refitted on them.
    """
    screen = Screen(as_json)
    run = _tune(
        screen,
        project_of(config),
        trials=trials,
        seed=seed,
        permutations=permutations,
        refit_seeds=refit_seeds,
        features=features,
        allow_download=allow_download,
    )
    print_document(screen, run.to_mapping())
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
    bundle: learning.StartBundle = None,
    from_layer: learning.FromLayer = None,
    seed: learning.Seed = 0,
    dry_run: options.DryRun = False,
    fresh: learning.Fresh = False,
    merge: learning.Merge = False,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Train adapters in the language model with the tuned head.

    Resumes an interrupted run.
    """
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.finetuning import lora_report, watching_lora
    from heads.workflow.finetuning_lora import finetune_lora

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
    pieces = lora_report(report, project, screen.width)
    return finish(screen, report, pieces, code=SOME_FAILED if report.failed else DONE)


@command("finetune", example="featurecache finetune --trials 20")
def finetune(
    trials: learning.FinetuneTrials = None,
    seed: learning.Seed = 0,
    dry_run: options.DryRun = False,
    fresh: learning.Fresh = False,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Train the supervised baseline, a TimeSformer.

    Resumes an interrupted run.
    """
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.finetuning import timesformer_report, watching_timesformer
    from heads.workflow.finetuning_timesformer import finetune_timesformer

    report = finetune_timesformer(
        project,
        trials=trials,
        seed=seed,
        dry_run=dry_run,
        fresh=fresh,
        allow_download=allow_download,
        callbacks=watching_timesformer(screen.say, screen.show),
    )
    pieces = timesformer_report(report, project, screen.width)
    return finish(screen, report, pieces, code=SOME_FAILED if report.failed_clips else DONE)


@command("evaluate", example="featurecache evaluate runs/tune/bundle --against runs/train/bundle")
def evaluate(
    bundle: learning.ScoredBundle = None,
    against: learning.Against = None,
    prevalence: learning.Prevalence = None,
    leave_one_session_out: learning.LeaveOneSessionOut = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Score a bundle on the test split, which is logged."""
    screen, project = Screen(as_json), project_of(config)
    if not leave_one_session_out:
        found = _evaluate(screen, project, bundle, against=against or (), prevalence=prevalence or ())
        print_document(screen, found.to_mapping())
        return SOME_FAILED if found.failed else DONE
    if against or prevalence:
        raise UsageError("--against and --prevalence are of the test split. Leave out --leave-one-session-out.")
    from heads.terminal.scores import left_out_scores
    from heads.workflow.leaving_out import leave_one_session_out as leave_out

    each = leave_out(project, bundle)
    return finish(screen, each, left_out_scores(each, screen.width))


def _evaluate(screen: Screen, project: "Project", bundle: Path | None = None, **options: Any) -> "TestScores":
    from featurecache.terminal.progress import watching_plan
    from heads.terminal.scores import adapted_plan, evaluation
    from heads.workflow.evaluating import evaluate

    with watching_plan(screen.console, screen.say, screen.show, adapted_plan) as callbacks:
        found = evaluate(project, bundle, **callbacks, **options)
    screen.show(evaluation(found, screen.width))
    return found


@command("zeroshot", example="featurecache zeroshot zs-b --dry-run")
def zeroshot(
    method: learning.ZeroShotMethod,
    labels: learning.AskedLabels = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about at most this many clips more.")] = None,
    samples: learning.Samples = 0,
    seed: learning.Seed = 0,
    dry_run: options.DryRun = False,
    devices: options.Devices = None,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Ask the model about every clip, without training.

    zs-b: a yes/no question for each label. zsc-co: one list of labels. zsc-j: a caption, which a language model judges.
    text: words for each label, with CLIP and the like. Resumes; answers are cached like features.
    """
    screen = Screen(as_json)
    report = _zeroshot(
        screen,
        project_of(config),
        method,
        labels=learning.names_in(labels),
        limit=limit,
        dry_run=dry_run,
        samples=samples,
        seed=seed,
        devices=devices,
        allow_download=allow_download,
    )
    print_document(screen, report.to_mapping())
    return SOME_FAILED if report.failed else DONE


def _zeroshot(screen: Screen, project: "Project", method: str, **options: Any) -> "ZeroShotReport":
    from featurecache.terminal.progress import watching_plan
    from heads.terminal.zeroshot import asking_lines, zeroshot_report
    from heads.workflow.zeroshot import zero_shot

    with watching_plan(screen.console, screen.say, screen.show, asking_lines) as callbacks:
        report = zero_shot(project, method, on_unread=screen.warn, **callbacks, **options)
    screen.show(zeroshot_report(report, screen.width))
    return report


@command("compare", example="featurecache compare")
def compare(config: options.Config = Path(), as_json: options.AsJson = False) -> int:
    """Score all runs on the test split, in one logged evaluation.

    The paper's six methods and other runs; a missing one is named with its command.
    """
    screen = Screen(as_json)
    found = _compare(screen, project_of(config))
    print_document(screen, found.to_mapping())
    return SOME_FAILED if found.failed or found.left_out else DONE


def _compare(screen: Screen, project: "Project") -> "Comparison":
    from featurecache.terminal.progress import watching_plan
    from heads.terminal.comparing import comparison
    from heads.terminal.scores import adapted_plan
    from heads.workflow.comparing import compare

    with watching_plan(screen.console, screen.say, screen.show, adapted_plan) as callbacks:
        found = compare(project, **callbacks)
    screen.show(comparison(found, screen.width))
    return found


@command("report", example="featurecache report --out report.html")
def report(
    with_frames: learning.WithFrames = False,
    predictions: learning.PredictionsFolder = None,
    out: learning.ReportFile = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Write runs, search, timelines and cache into one HTML file."""
    screen, project = Screen(as_json), project_of(config)
    written = _report(screen, project, with_frames=with_frames, predictions=predictions, out=out)
    print_document(screen, document(written))
    return SOME_FAILED if written.problems else DONE


def _report(screen: Screen, project: "Project", **options: Any) -> "Report":
    from heads.terminal.scores import report_pieces
    from heads.workflow.reporting import report

    written = report(project, **options)
    screen.show(report_pieces(written, screen.width))
    return written


# --- timelines --------------------------------------------------------------------------------------


@command("predict", example="featurecache predict case7.mp4 --out predictions")
def predict(
    recordings: Annotated[list[Path], typer.Argument(help="The recordings' files, from anywhere on this machine.")],
    out: learning.OutFolder = None,
    bundle: learning.BundleOption = None,
    stride: learning.Stride = None,
    samples: learning.SampleTable = None,
    allow_download: options.AllowDownload = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Write timelines of recordings for review in ELAN.

    Of samples of several clips, a table of scores. Replaces nothing that a person wrote or changed.
    """
    screen, project = Screen(as_json), project_of(config)
    options = {"bundle": bundle, "out": out, "stride_s": stride, "samples": samples, "allow_download": allow_download}
    found = _predict(screen, project, recordings, **options)
    print_document(screen, found.to_mapping())
    return SOME_FAILED if found.is_partial else DONE


def _predict(screen: Screen, project: "Project", recordings: list[Path], **options: Any) -> "Predictions":
    from featurecache.terminal.progress import extraction_progress
    from heads.terminal.predictions import predictions
    from heads.workflow.predicting import predict

    with extraction_progress(screen.console, screen.say) as show:
        found = predict(project, recordings, on_progress=show, **options)
    screen.show(predictions(found))
    return found


@command("review", example="featurecache review runs/tune/bundle")
def review(
    bundle: learning.ReviewedBundle = None,
    reviewer: learning.Reviewer = None,
    port: learning.Port = 0,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Correct predictions beside the video, in a local page.

    On this machine alone; every change is saved at once into reviewed/, never into an annotator's file.
    """
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.reviewing import open_review, reviewing
    from heads.workflow.reviewing import review

    on_open = lambda page: screen.show(open_review(page))  # noqa: E731
    found = review(project, bundle, reviewer=reviewer, port=port, on_open=on_open)
    return finish(screen, found, reviewing(found), code=SOME_FAILED if found.left_out else DONE)


@command("suggest", example="featurecache suggest --minutes 20 --order suggested")
def suggest(
    minutes: Annotated[float, typer.Option(min=0.1, max=100_000, help="Time that can be annotated.")] = 10,
    order: learning.SuggestedOrder = "random",
    stretch: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds of a stretch, where data.annotated_span is set.")
    ] = 30,
    bundle: learning.BundleOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random order.")] = 0,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Choose what to annotate next, and write it for ELAN.

    Unlabelled time of sessions that do not test, as a table and as .eaf files with a tier "please annotate".
    """
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.suggesting import suggested
    from heads.workflow.suggesting import checked_order
    from heads.workflow.suggesting import suggest as choose

    found = choose(project, minutes=minutes, order=checked_order(order), stretch_s=stretch, bundle=bundle, seed=seed)
    return finish(screen, found, suggested(found), code=SOME_FAILED if found.left_out else DONE)


@command("agreement", example="featurecache agreement a.eaf b.eaf")
def agreement(
    first: Annotated[Path | None, typer.Argument(help="The reference: an .eaf or a CSV; none: the project's.")] = None,
    second: Annotated[Path | None, typer.Argument(help="Another annotator's, or a .predicted.eaf.")] = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Compare two annotators of the same recordings.

    By kappa, segment F1, durations and borders: of two files, which need no project, or of all recordings that a
    project has from two annotators.
    """
    from heads.terminal.scores import agreement_pieces
    from heads.workflow.agreeing import annotators_agreement

    screen = Screen(as_json)
    if (first is None) != (second is None):
        raise UsageError("two files must be named, or none for the project's, but one is. Name the other.")
    found = annotators_agreement(config, None if first is None or second is None else (first, second))
    screen.show(agreement_pieces(found, screen.width))
    print_document(screen, found)
    return SOME_FAILED if found["left_out"] else DONE


@command("neighbours", example="featurecache neighbours --confusions")
def neighbours(
    clip: Annotated[str | None, typer.Argument(help="A clip_id of clips.csv, whose neighbours are listed.")] = None,
    confusions: options.Confusions = False,
    duplicates: options.Duplicates = False,
    top: Annotated[int | None, typer.Option(min=1, max=10_000, help="How many: 10 of a clip, 50 confusions.")] = None,
    index: options.ByIndex = False,
    feature: options.Feature = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """List clips that are near each other in feature space.

    By exact cosine; with --index some pairs may be missed. --duplicates ends with 1 where it finds any. Neighbours can
    tell that two recordings show the same person: keep what is listed as you keep the recordings.
    """
    if (clip is not None) + confusions + duplicates != 1:
        raise UsageError("one of CLIP, --confusions and --duplicates must be given. Name a clip_id, or give one flag.")
    if index and clip is not None:
        raise UsageError(
            "--index is for --confusions and --duplicates; one clip's neighbours are found exactly. Leave it out."
        )
    screen, project = Screen(as_json), project_of(config)
    from featurecache.terminal import neighbours as shown
    from featurecache.workflow import neighbours as near

    if clip is not None:
        found = near.neighbours(project, clip, top=top or 10, feature=feature)
        return finish(screen, found, shown.neighbouring(found))
    if confusions:
        found = near.confusions(project, top=top or 50, feature=feature, by_index=index)
        return finish(screen, found, shown.confused(found))
    found = near.duplicates(project, feature=feature, by_index=index)
    return finish(screen, found, shown.duplicated(found), code=FAILED if found.pairs else DONE)


@command("find", example='featurecache find "hands on the chest" --top 20 --out hits.csv')
def find(
    words: Annotated[str, typer.Argument(help="What to search for, as one would describe a picture of it.")],
    top: Annotated[int, typer.Option(min=1, help="Hits wanted; none overlaps a better one.")] = 20,
    out: options.HitsFile = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Search the recordings by words, with CLIP and the like.

    By the similarity of cached embeddings (joint/mean) to the words; nothing is extracted.
    """
    from featurecache.terminal.finding import hits
    from featurecache.workflow.finding import find

    found = find(project_of(config), words, top=top, out=out)
    return finish(Screen(as_json), found, hits(found))


# --- looking after it -------------------------------------------------------------------------------


@command("convert", example="featurecache model convert timesformer-base-finetuned-ssv2", group=model_app)
def model_convert(
    folder: Annotated[str, typer.Argument(help="A model folder, or organisation/name@revision on this machine.")],
    as_json: options.AsJson = False,
) -> int:
    """Write pickled weights as safetensors.

    Next to pytorch_model.bin or its shards, which stay. A pickle can run code: it
    is read by torch's unpickler for tensors alone, in a process of its own. Of an
    open_clip folder (BiomedCLIP) the vision tower is written.
    """
    from featurecache.backbones import find_model
    from featurecache.backbones.conversion import convert_weights
    from featurecache.terminal.models import conversion

    path = find_model(folder, setting="FOLDER")
    done = convert_weights(path)
    return finish(Screen(as_json), done, conversion(done, path))


@command("doctor", example="featurecache doctor")
def doctor(config: options.Config = Path(), as_json: options.AsJson = False) -> int:
    """Check machine, model and files; each failure has its fix."""
    from featurecache.project.settings import find_project

    screen, project, checks = Screen(as_json), find_project(config), []
    from featurecache.setup.doctor import examine, examine_machine
    from featurecache.terminal.models import checked

    for check in examine(project) if project else examine_machine(config):
        checks.append(check)
        screen.show(checked(check))
    print_document(screen, {"checks": [dataclasses.asdict(check) for check in checks]})
    return DONE if all(check.ok for check in checks) else FAILED


@command("demo", example="featurecache demo demo --trials 64")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the demo is made.")] = Path("demo"),
    trials: Annotated[int, typer.Option(min=1, help="Trials of the search.")] = 64,
    as_json: options.AsJson = False,
) -> int:
    """The whole way on embedded data: no download, no GPU."""
    from featurecache.workflow.demo import make_demo, unseen_recording
    from heads.sections import SECTIONS

    screen = Screen(as_json)
    drawing, there = "drawing recordings and their annotations ...", f"{directory} holds a demo already; resuming it"
    tell = lambda is_new: screen.say(drawing if is_new else there)  # noqa: E731
    project = make_demo(directory, sections=SECTIONS, on_drawing=tell)
    steps: dict[str, Any] = {}
    asked = [project.runs / f"zeroshot-{method}/bundle" for method in ("zs-b", "zsc-co")]
    chain: dict[str, Callable[[], Any]] = {
        "clips": lambda: _clips(screen, project),
        "extract": lambda: _extract(screen, project),
        "tune": lambda: _tune(screen, project, trials=trials),
        "zeroshot zs-b": lambda: _zeroshot(screen, project, "zs-b"),
        "zeroshot zsc-co": lambda: _zeroshot(screen, project, "zsc-co"),
        "evaluate": lambda: _evaluate(screen, project, against=asked),
        "compare": lambda: _compare(screen, project),
        "predict": lambda: _predict(screen, project, [unseen_recording(project)]),
        "report": lambda: _report(screen, project),
    }
    for name, step in chain.items():
        screen.say()
        screen.say(f"featurecache {name}")
        steps[name] = document(step())
    there = shlex.quote(str(directory))
    screen.say(f"\nTo use these and other commands on the demo: cd {there}, or give each --config {there}")
    screen.say(
        "Your own recordings, step by step: docs/guide.md. It begins with: featurecache init myproject --videos VIDEOS"
    )
    print_document(screen, steps)
    return SOME_FAILED if steps["clips"]["unusable"] or steps["extract"]["failed"] else DONE


def main() -> None:
    """The entry point of the `featurecache` command."""
    app()


if __name__ == "__main__":
    main()
