"""`featurecache maps` and `featurecache shortcuts`: the commands that show what a head uses."""

from pathlib import Path
from typing import Annotated

import typer

from featurecache.errors import UsageError
from featurecache.terminal import options
from featurecache.terminal.command import DONE, FAILED, added, finish, project_of
from featurecache.terminal.screen import Screen
from heads.terminal import options as learning

app = typer.Typer(rich_markup_mode=None)

_Feature = Annotated[
    str | None,
    typer.Option("--feature", help="The mean, of those that the head reads; the first with tokens if left out."),
]
_WithFrames = Annotated[bool, typer.Option("--with-frames", help="Also draw pictures, which hold frames.")]


def maps(
    clip: Annotated[str, typer.Argument(help="A clip_id of clips.csv.")],
    bundle: learning.BundleOption = None,
    feature: _Feature = None,
    with_frames: _WithFrames = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """Map which moments and patches of a clip raise its scores.

    Exact, for linear heads on a mean whose tokens or frames are in the cache. The report shows the pictures.
    """
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal.mapping import mapped
    from heads.workflow.mapping import map_clip

    found = map_clip(project, clip, bundle=bundle, feature=feature, with_frames=with_frames)
    return finish(screen, found, mapped(found))


def shortcuts(
    ignore: Annotated[
        list[int] | None,
        typer.Option(help="Fit the head again without this cluster of the last audit; may be given again."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="False-discovery rate, .1 unless given: share of wrong ones among listed.")
    ] = None,
    bundle: learning.BundleOption = None,
    feature: _Feature = None,
    with_frames: _WithFrames = False,
    config: options.Config = Path(),
    as_json: options.AsJson = False,
) -> int:
    """List patches that tell labels in training alone.

    Clusters of tokens, tested by permuting sessions between training and validation; ends with 1 where it lists any.
    """
    if ignore and (feature is not None or rate is not None or with_frames):
        raise UsageError(
            "--ignore fits a head again and audits nothing, so --feature, --rate and --with-frames do not go with it."
        )
    screen, project = Screen(as_json), project_of(config)
    from heads.terminal import shortcuts as shown

    if ignore:
        from heads.workflow.ignoring import ignore as fit_without

        refitted = fit_without(project, ignore, bundle=bundle)
        return finish(screen, refitted, shown.ignoring(refitted))
    from heads.workflow.shortcuts import RATE
    from heads.workflow.shortcuts import shortcuts as audit

    found = audit(project, bundle=bundle, feature=feature, rate=RATE if rate is None else rate, with_frames=with_frames)
    return finish(screen, found, shown.audited(found), code=FAILED if found.found else DONE)


added(app, "maps", example="featurecache maps 0123456789abcdef-0-3000000 --with-frames")(maps)
added(app, "shortcuts", example="featurecache shortcuts --with-frames")(shortcuts)
