"""The machine and model folders as `doctor` and the `model` commands show them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.conversion import RECORD_NAME, Conversion
from featurecache.terminal.text import Piece

if TYPE_CHECKING:
    from featurecache.setup.checks import Check


def checked(check: "Check") -> Iterator[Piece]:
    """What a check of `doctor` found, and its fix."""
    yield f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}"
    if check.fix:
        yield f"       {check.fix}"


def conversion(done: Conversion, folder: Path) -> Iterator[Piece]:
    """Which pickled weights became which safetensors, with their digests."""
    for (source, read), (target, written) in zip(done.read.items(), done.written.items(), strict=True):
        yield f"{source} (sha256 {read[:16]}) -> {target} (sha256 {written[:16]})"
    yield f"both digests are in {folder / RECORD_NAME}; the pickle is no longer needed"
