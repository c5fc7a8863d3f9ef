"""Options of the commands that learn, score and predict: what each is called and what its help says."""

from pathlib import Path
from typing import Annotated

import typer

Features = Annotated[str | None, typer.Option("--features", help="Features imported under this name.")]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="The bundle's folder; runs/tune/bundle if left out.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data order, initial weights, dropout and any sampler.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, whatever an earlier run left.")]
Permutations = Annotated[
    int, typer.Option(min=0, help="Also fit the best settings to labels shuffled by session, so often.")
]
RefitSeeds = Annotated[
    int, typer.Option(min=0, help="Also fit them across session folds with so many seeds, to see scores' spread.")
]
StartBundle = Annotated[
    Path | None, typer.Option("--bundle", help="The tuned head to start from; runs/tune/bundle if left out.")
]
FromLayer = Annotated[int | None, typer.Option("--from-layer", min=1, help="Put adapters above this layer alone.")]
Merge = Annotated[bool, typer.Option("--merge", help="Also write the model with the adapters added in.")]
FinetuneTrials = Annotated[
    int | None, typer.Option(min=1, help="Choose settings by TPE: finished trials that the study shall have.")
]
ScoredBundle = Annotated[Path | None, typer.Argument(help="The bundle's folder; runs/tune/bundle if left out.")]
Against = Annotated[
    list[Path] | None, typer.Option(help="Another bundle, to compare with on the same clips; may be given again.")
]
Prevalence = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LABEL=SHARE", help="Precision and NPV where a label is on in this share of clips; may be given again."
    ),
]
LeaveOneSessionOut = Annotated[
    bool,
    typer.Option("--leave-one-session-out", help="Refit the settings without each session and score that one."),
]
WithFrames = Annotated[bool, typer.Option("--with-frames", help="Put frames of the largest differences into the page.")]
PredictionsFolder = Annotated[
    Path | None, typer.Option(help="The folder of predicted timelines; predictions if left out.")
]
ReportFile = Annotated[Path | None, typer.Option(help="The HTML file; runs/report.html if left out.")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="The folder for the timelines; predictions if left out.")]
Stride = Annotated[
    float | None,
    typer.Option("--stride", min=0.01, max=3600, help="Seconds between clips; half a clip if left out."),
]
SampleTable = Annotated[
    Path | None,
    typer.Option(
        "--samples", help="Samples of several clips to score, as in samples.csv; the bundle's rule if left out."
    ),
]
ReviewedBundle = Annotated[
    Path | None, typer.Argument(help="The bundle whose predictions are shown; runs/tune/bundle if left out.")
]
Reviewer = Annotated[str | None, typer.Option(help="Who decides, as the files say it; your user name if left out.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of this machine; a free one if left out.")]
SuggestedOrder = Annotated[
    str, typer.Option("--order", help="random; doubt; suggested: doubt and novelty, rare labels first, over sessions.")
]
ZeroShotMethod = Annotated[
    str, typer.Argument(help="zs-b: yes or no for each label; zsc-co: a list; zsc-j: captions; text: words.")
]
AskedLabels = Annotated[str | None, typer.Option("--labels", help="Ask about these labels alone: a,b,c.")]
Samples = Annotated[
    int, typer.Option(min=0, max=64, help="Of zsc-co: also draw so many answers of each clip, to see their spread.")
]


def names_in(text: str | None) -> list[str] | None:
    """Names with commas between them; None for none given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
