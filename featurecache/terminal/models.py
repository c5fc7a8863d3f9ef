"""Model folders as the `model` commands show them."""

from collections.abc import Iterator
from pathlib import Path

from featurecache.backbones.conversion import RECORD_NAME, Conversion
from featurecache.terminal.text import Piece


def conversion(done: Conversion, folder: Path) -> Iterator[Piece]:
    """Which pickled weights became which safetensors, with their digests."""
    for (source, read), (target, written) in zip(done.read.items(), done.written.items(), strict=True):
        yield f"{source} (sha256 {read[:16]}) -> {target} (sha256 {written[:16]})"
    yield f"both digests are in {folder / RECORD_NAME}; the pickle is no longer needed"
