"""Options that several commands take, or that need many words: what each is called and what its help says."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", help="The project's folder or its featurecache.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Fetch the model from the hub if it is not on this machine.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast time, memory and disk, and do nothing.")]
Devices = Annotated[
    str | None, typer.Option(help="One process for each device: all visible GPUs, some as 0,1, or cpu,cpu.")
]
Ray = Annotated[str | None, typer.Option(help="One Ray actor for each GPU: local, auto, or a cluster's HOST:PORT.")]
ExportedTap = Annotated[str | None, typer.Option(help="Where in the backbone; final if neither this nor --space.")]
ExportedPooling = Annotated[
    str | None, typer.Option(help="How tokens became one array; mean if neither this nor --space.")
]
ExportedSpace = Annotated[str | None, typer.Option(help="Fingerprint, or its first digits: says alone which features.")]
HitsFile = Annotated[
    Path | None, typer.Option("--out", help="A new .csv, or an .eaf: one NAME.RECORDING.predicted.eaf a recording.")
]
Model = Annotated[
    str, typer.Option(help="The backbone: a folder, a hub name, or demo; without it, the best that is here and fits.")
]
Confusions = Annotated[
    bool, typer.Option("--confusions", help="The nearest pairs with different targets, for annotators to look at.")
]
Duplicates = Annotated[
    bool, typer.Option("--duplicates", help="Copies across splits, also in another encoding: a leak.")
]
ByIndex = Annotated[
    bool,
    typer.Option("--index", help="Search by an approximate index, for 100,000 clips and more; tells its recall."),
]
Feature = Annotated[
    str | None, typer.Option(help="tap/pooling, or imported/NAME; the first vector of features.select if left out.")
]
