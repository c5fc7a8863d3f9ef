"""The files of one predicted timeline: `.predicted.json`, `.predicted.eaf` and `.predicted.csv`, for review.

The `.json` is the whole of it, for programs and for drawing aligned timelines; times are integer microseconds of the
recording's clock, spans half-open:

    {"kind": "featurecache timeline", "format": 1,
     "recording": {"name", "content" (first 16 hex digits of its sha256), "duration_us"},
     "labels": [..], "thresholds": {label: ..},
     "clips": {"length_us", "stride_us", "spans_us": [[start, end], ..],
               "scores": {label: [a score per clip]}},        as trained: what the thresholds are of
     "scored_us": [[start, end], ..]            what the clips cover; elsewhere nothing is known
     "predicted": {label: [[start, end, confidence], ..]},
     "calibrated": bool                          whether confidences are of calibrated probabilities, not of scores
     "annotated": {label: [[start, end], ..]} or null where the recording has no annotation,
     "annotated_us": [[start, end], ..] or null  what was annotated
     "settings": {.. of TimelineSettings}, "tuned": bool, "exclusive": [[label, ..], ..],
     "bundle": sha256, "failed": [[start, end, reason], ..],
     "files": {name: {"sha256", "replaces"}}}    only beside the files themselves

The `.eaf` is the annotator's document with a tier per label added, or a new one; an annotation's value is its
confidence, which ELAN shows on the bar. The `.csv` is a table that `read_csv` reads, with the confidence as a further
column; its cells are guarded against formulas.

Nothing is replaced but what this module wrote and nobody has changed since. The `.json` is written first and names the
sha256 of the two others and of what they replace, so that a run that is killed between the files can be run again, and
a tier that somebody corrected in ELAN is never lost. Each file is whole or absent.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.annotations import EafDocument, Interval, add_predictions, eaf_bytes, linked_document
from featurecache.clips.clip import union_of
from featurecache.csv_fields import csv_bytes, format_seconds, guard_cell
from featurecache.errors import OutputExistsError
from featurecache.files import private_folder, write_private
from heads.timelines.timeline import PredictedInterval, Spans, TimelineSettings

KIND, FORMAT = "featurecache timeline", 1


@dataclass(frozen=True, eq=False)
class Timeline:
    """A predicted timeline and what it was made from.

    Attributes:
        recording: The recording's name.
        content: First 16 hex digits of its sha256.
        duration_us: Length of the recording.
        labels: The C labels.
        thresholds: Shape (C,).
        length_us: Length of a clip.
        stride_us: From one clip's start to the next one's; the last may follow sooner.
        spans_us: The scored clips, shape (N, 2).
        scores: Their scores as trained, shape (N, C).
        predicted: The timeline.
        annotated: The annotator's intervals; None where there is no annotation.
        annotated_us: What was annotated; None where there is no annotation.
        settings: How scores became intervals.
        tuned: Whether those settings were tuned on validation; else they are the defaults.
        exclusive: Groups of labels of which one at most is on at a time.
        calibrated: Whether confidences are of calibrated probabilities; else they are of scores as trained.
        bundle: The bundle's digest.
        failed: Clips without a score, as (start_us, end_us, reason).
    """

    recording: str
    content: str
    duration_us: int
    labels: tuple[str, ...]
    thresholds: npt.NDArray[np.floating]
    length_us: int
    stride_us: int
    spans_us: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating]
    predicted: Sequence[PredictedInterval]
    annotated: Sequence[Interval] | None
    annotated_us: Spans | None
    settings: TimelineSettings
    tuned: bool
    exclusive: Sequence[Sequence[str]]
    calibrated: bool
    bundle: str
    failed: Sequence[tuple[int, int, str]] = ()

    @property
    def scored_us(self) -> Spans:
        """What the scored clips cover."""
        return union_of([(start, end) for start, end in self.spans_us.tolist()])


@dataclass(frozen=True)
class WrittenTimeline:
    """The files of a timeline.

    Attributes:
        eaf: For ELAN.
        csv: For a spreadsheet.
        json: For programs.
        before_zero_us: Predicted time that the `.eaf` cannot show, since it lies before its annotation time zero.
    """

    eaf: Path
    csv: Path
    json: Path
    before_zero_us: int


def timeline_document(timeline: Timeline) -> dict[str, Any]:
    """The JSON document of a timeline, without `files`; its shape stands in the module's docstring."""
    by_label: dict[str, list[list[Any]]] = {label: [] for label in timeline.labels}
    for one in timeline.predicted:
        by_label[one.label].append([one.start_us, one.end_us, round(one.confidence, 6)])
    annotated: dict[str, list[list[int]]] | None = None
    if timeline.annotated is not None:
        annotated = {label: [] for label in timeline.labels}
        for interval in timeline.annotated:
            if interval.label in annotated:
                annotated[interval.label].append([interval.start_us, interval.end_us])
    return {
        "kind": KIND,
        "format": FORMAT,
        "recording": {
            "name": timeline.recording,
            "content": timeline.content,
            "duration_us": timeline.duration_us,
        },
        "labels": list(timeline.labels),
        "thresholds": dict(zip(timeline.labels, timeline.thresholds.tolist(), strict=True)),
        "clips": {
            "length_us": timeline.length_us,
            "stride_us": timeline.stride_us,
            "spans_us": timeline.spans_us.tolist(),
            "scores": {
                label: [round(score, 6) for score in timeline.scores[:, at].tolist()]
                for at, label in enumerate(timeline.labels)
            },
        },
        "scored_us": [list(span) for span in timeline.scored_us],
        "predicted": by_label,
        "calibrated": timeline.calibrated,
        "annotated": annotated,
        "annotated_us": None if timeline.annotated_us is None else [list(span) for span in timeline.annotated_us],
        "settings": dataclasses.asdict(timeline.settings),
        "tuned": timeline.tuned,
        "exclusive": [list(group) for group in timeline.exclusive],
        "bundle": timeline.bundle,
        "failed": [list(clip) for clip in timeline.failed],
    }


def write_timeline(
    timeline: Timeline,
    stem: Path,
    *,
    media: Path,
    document: EafDocument | None = None,
    source: Path | None = None,
    time_origin_ms: int = 0,
) -> WrittenTimeline:
    """Writes a timeline's three files.

    Args:
        timeline: What to write.
        stem: The files' path without `.predicted.*`; missing folders are made.
        media: The recording that was read.
        document: The annotator's document, which gets the predicted tiers; None for a new one.
        source: The file that `document` was read from; its link to the recording then leads to `media`.
        time_origin_ms: Time origin of the recording's media descriptor in `document`.

    Raises:
        OutputExistsError: If one of the files is there and is not as this function wrote it, or is of a recording with
            another content; nothing is written then.
        AnnotationError: If the document cannot take the tiers.
        OSError: If a file cannot be written.
    """
    paths = {suffix: stem.with_name(f"{stem.name}.predicted.{suffix}") for suffix in ("eaf", "csv", "json")}
    document = linked_document(paths["eaf"], media, document=document, source=source, time_origin_ms=time_origin_ms)
    shown: dict[str, list[Interval]] = {label: [] for label in timeline.labels}
    for one in timeline.predicted:
        shown[one.label].append(Interval(one.start_us, one.end_us, f"{one.confidence:.2f}"))
    before_zero_us = add_predictions(document, shown, time_origin_ms=time_origin_ms)
    contents = {paths["eaf"]: eaf_bytes(document), paths["csv"]: _table(timeline)}
    write_own(timeline_document(timeline), paths["json"], contents)
    return WrittenTimeline(paths["eaf"], paths["csv"], paths["json"], before_zero_us)


def write_own(document: Mapping[str, Any], record: Path, contents: Mapping[Path, bytes]) -> None:
    """Writes a document and files beside it, which it names; replaces nothing but what this function wrote.

    Args:
        document: What `record` shall hold; has a `kind`, and of one recording `recording` with its `content`.
        record: The document's path.
        contents: The files.

    Raises:
        OutputExistsError: If one of the files is there and is not as this function wrote it, or is of a recording with
            another content; nothing is written then.
        OSError: If a file cannot be written.
    """
    found = {path: _own_digest(path, record, document) for path in (*contents, record)}
    listed = {
        path.name: {"sha256": hashlib.sha256(data).hexdigest(), "replaces": found[path]}
        for path, data in contents.items()
    }
    private_folder(record.parent)
    write_private(record, (json.dumps({**document, "files": listed}, allow_nan=False) + "\n").encode())
    for path, data in contents.items():
        write_private(path, data)


def _own_digest(path: Path, record: Path, document: Mapping[str, Any]) -> str | None:
    """sha256 of a file that this module wrote of the same recording's content; None where there is no file.

    Raises:
        OutputExistsError: If it is somebody's own, or was changed, or is of another recording of the same name.
    """
    if not os.path.lexists(path):
        return None
    try:
        known = json.loads(record.read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        listed = known["files"].get(path.name, {}) if path != record else {}
        is_own = path == record or digest in (listed.get("sha256"), listed.get("replaces"))
        is_ours = known["kind"] == document["kind"] and is_own
        of = [one["recording"]["content"] if "recording" in document else None for one in (known, document)]
        is_same = of[0] == of[1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        is_ours, is_same, digest = False, False, ""
    if is_ours and not is_same:
        raise OutputExistsError(
            f"predictions must not replace those of another recording, but {path} is of another video of the same "
            "name. Move it away, or choose another folder with --out."
        )
    if not is_ours:
        raise OutputExistsError(
            f"only predictions that nobody has changed are replaced, but {path} is not as predict wrote it. "
            "Move it away, or choose another folder with --out."
        )
    return digest


def _table(timeline: Timeline) -> bytes:
    recording = guard_cell(timeline.recording)
    rows = [
        [
            recording,
            format_seconds(one.start_us),
            format_seconds(one.end_us),
            guard_cell(one.label),
            f"{one.confidence:.4f}",
        ]
        for one in timeline.predicted
    ]
    header = ["recording", "start_s", "end_s", "label", "confidence"]
    return csv_bytes([header, *(rows or [[recording, "", "", "", ""]])], line_end="\r\n")
