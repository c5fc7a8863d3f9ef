"""What a worker of a shared extraction is told, and what it tells: plain values, as lines of JSON between processes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from featurecache import errors
from featurecache.errors import FeatureCacheError
from featurecache.extraction.pipeline import Extraction, Progress, WorkerCrash


@dataclass(frozen=True)
class Share:
    """What a worker is told, of plain values that travel as JSON.

    Attributes:
        config: The project, as for `open_project`.
        clip_ids: The clips to compute, of which others may have done some.
        fingerprints: Fingerprints of the feature spaces to fill.
        device: Torch device.
        decoders: Decoder threads.
        select: Names of the features; none for those of the settings.
        asked: What the model is asked, as JSON of its fields; empty for features of its states.
    """

    config: str
    clip_ids: tuple[str, ...]
    fingerprints: tuple[str, ...]
    device: str
    decoders: int
    select: tuple[str, ...] = ()
    asked: str = ""


Report = Progress | Extraction | FeatureCacheError | OSError | WorkerCrash
"""What a worker tells; all but progress is its last word."""


def encode_share(share: Share) -> bytes:
    """A share as one line."""
    return _line(asdict(share))


def decode_share(line: bytes) -> Share:
    """The share of a line."""
    return TypeAdapter(Share).validate_json(line)


def encode_report(report: Report) -> bytes:
    """A report as one line."""
    if isinstance(report, FeatureCacheError):
        return _line({type(report).__name__: [str(report)]})
    if isinstance(report, OSError):
        return _line({"OSError": [report.errno, report.strerror, report.filename]})
    return _line({type(report).__name__: asdict(report)})


def decode_report(line: bytes) -> Report:
    """The report of a line; an error is of the class it was."""
    ((kind, content),) = json.loads(line).items()
    for known in (Progress, Extraction, WorkerCrash):
        if kind == known.__name__:
            return TypeAdapter[Progress | Extraction | WorkerCrash](known).validate_python(content)
    error: FeatureCacheError | OSError = getattr(errors, kind, OSError)(*content)
    return error


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, default=str).encode() + b"\n"
