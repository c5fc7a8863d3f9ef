"""`featurecache cache ...`: the commands that look after the cache, which need nothing of `heads`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from featurecache.terminal import options
from featurecache.terminal.command import DONE, FAILED, SOME_FAILED, added, finish, print_document, project_of
from featurecache.terminal.screen import Screen

P = ParamSpec("P")
app = typer.Typer(help="Look after the feature cache.", no_args_is_help=True, rich_markup_mode=None)


def command(name: str, *, example: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Adds a command to the group, as `featurecache.terminal.command.added`."""
    return added(app, name, example=example)


@command("info", example="featurecache cache info")
def info(config: options.Config = Path(), as_json: options.AsJson = False) -> int:
    """Show the feature spaces of the cache and what is damaged."""
    screen, project = Screen(as_json), project_of(config)
    from featurecache import FeatureCache
    from featurecache.terminal.cache import contents

    cache = FeatureCache.open(project.cache)
    screen.show(contents(cache))
    print_document(
        screen, {name: [dataclasses.asdict(one) for one in getattr(cache, name)] for name in ("spaces", "damage")}
    )
    return FAILED if cache.damage else DONE


@command("why", example="featurecache cache why 0123456789abcdef-0-3000000")
def why(
    clip: Annotated[str, typer.Argument(help="A clip_id of clips.csv.")],
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Say why a clip's feature is found or not: which input differs."""
    project = project_of(config)
    from featurecache.extraction.why import explain
    from featurecache.terminal.cache import explanation

    found = explain(project, clip)
    return finish(Screen(as_json), found, explanation(found))


@command("verify", example="featurecache cache verify --deep")
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, not only records and sizes.")] = False,
    part: Annotated[str, typer.Option(help="With --deep: read portion I of N only, e.g. 3/30.")] = "1/1",
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Check the cache against clips.csv; exits with 1 on any fault."""
    project = project_of(config)
    from featurecache.terminal.cache import check
    from featurecache.workflow.care import verify_project

    report = verify_project(project, deep=deep, part=part)
    return finish(Screen(as_json), report, check(report), code=DONE if report.is_sound else FAILED)


@command("repair", example="featurecache cache repair")
def repair(config: options.Config = Path(), as_json: options.AsJson = False) -> int:
    """Set damaged segments aside.

    The next extract computes their clips again.
    """
    project = project_of(config)
    from featurecache.store import repair
    from featurecache.terminal.cache import repaired

    report = repair(project.cache)
    return finish(Screen(as_json), report, repaired(report))


@command("gc", example="featurecache cache gc --apply")
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; otherwise only list it.")] = False,
    space: Annotated[list[str] | None, typer.Option(help="Also this feature space (8 digits or more).")] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Also what repair has quarantined.")] = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """List what nobody needs; remove it with --apply.

    Leftovers of dead writers, and replaced segments.
    """
    screen, project = Screen(as_json), project_of(config)
    from featurecache.store import gc
    from featurecache.terminal.cache import garbage

    found = gc(project.cache, apply=apply, spaces=space or (), quarantine=quarantine)
    screen.show(garbage(found, applied=apply))
    print_document(screen, {"applied": apply, "garbage": [dataclasses.asdict(item) for item in found]})
    return FAILED if any(item.stays for item in found) else DONE


@command("compact", example="featurecache cache compact")
def compact(config: options.Config = Path(), as_json: options.AsJson = False) -> int:
    """Merge small segments, so that the cache opens and reads faster."""
    project = project_of(config)
    from featurecache.store import compact
    from featurecache.terminal.cache import compaction

    report = compact(project.cache)
    return finish(Screen(as_json), report, compaction(report))


@command("forget", example="featurecache cache forget S01.mp4")
def forget(
    recording: Annotated[str, typer.Argument(help="Its name in clips.csv, or 16 to 64 digits of its sha256.")],
    everything: Annotated[
        bool, typer.Option("--everything", help="Also clean tables and memo, remove reports, timelines, predictions.")
    ] = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Remove every feature of a recording, and list what else holds it.

    For instance when consent is withdrawn. Ends with 1 if something could not be searched.
    """
    project = project_of(config)
    from featurecache.terminal.cache import forgotten
    from featurecache.workflow.withdrawal import withdraw

    report = withdraw(project, recording, everything=everything)
    return finish(Screen(as_json), report, forgotten(report), code=FAILED if report.unsearched else DONE)


@command("export", example="featurecache cache export features.h5")
def export(
    file: Annotated[Path, typer.Argument(help="A new .h5, .hdf5 or .npz file.")],
    tap: options.ExportedTap = None,
    pooling: options.ExportedPooling = None,
    space: options.ExportedSpace = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Write one feature space to one HDF5 or npz file."""
    project = project_of(config)
    from featurecache.store.exchange import export_features
    from featurecache.terminal.cache import exported

    report = export_features(project.cache, file, tap=tap, pooling=pooling, space=space)
    return finish(Screen(as_json), report, exported(report))


@command("import", example="featurecache cache import clip.npz --name clip")
def import_(
    file: Annotated[Path, typer.Argument(help="An export, or a file with `features` and `clip_id`.")],
    name: Annotated[str | None, typer.Option(help="What to call features made by others.")] = None,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Read an export, or features made by others, into the cache.

    Features of withdrawn recordings are left out, and listed; it ends with 3 then.
    """
    project = project_of(config)
    from featurecache.clips.contents import contents
    from featurecache.store.exchange import import_features
    from featurecache.terminal.cache import imported

    report = import_features(project.cache, file, name=name, recordings=contents(project) if name else None)
    code = SOME_FAILED if report.withdrawn else DONE
    return finish(Screen(as_json), report, imported(report, name=name), code=code)
