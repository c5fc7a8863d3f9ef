"""Recordings and a bundle that scores samples of several clips to a table of scores, one line per sample.

Samples are made as the bundle was fitted on them: all clips of a recording or so many in a row, at the bundle's own
stride, or the clips of a session's cameras that start together. What needs an annotation, as before and after an
event, or somebody's choice, as two visits, comes in a table. A part that is absent or could not be extracted is what it
is in an evaluation; a sample without any part is listed with the reason.

    predictions.csv     sample, its clips joined by "+", absent parts, parts that could not be extracted, whether the
                        bundle was fitted on it, and for each label its score and whether it is on, by the threshold
    part_weights.csv    what a head that weighs parts makes of each
    predictions.json    the same for programs; names the sha256 of the others, so that nothing a person changed is lost
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.clips.clip import Clip, clip_id, clip_windows
from featurecache.clips.leakage import sessions_in
from featurecache.clips.samples import Sample, camera_of, groups_of_recordings, moments
from featurecache.clips.samples_file import read_unannotated
from featurecache.clips.sessions import name_sessions
from featurecache.csv_fields import csv_bytes, guard_cell
from featurecache.errors import BundleError, ClipTableError
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.project.settings import Project
from featurecache.video.recordings import Recording, UnusableRecording
from heads.bundle import Bundle, load_bundle
from heads.clip_rule import ClipRule
from heads.data import LabelledSplit
from heads.loading import part_features
from heads.samples.joining import join_of
from heads.settings import WEIGHING
from heads.timelines.files import write_own
from heads.workflow.new_recordings import (
    Extract,
    examined_recordings,
    missing_clips,
    with_their_boxes,
)
from heads.workflow.sample_scores import WEIGHTS_NAME, weights_table

KIND, FORMAT = "featurecache samples", 1

_CLIP_ID = re.compile("([0-9a-f]{16})-([0-9]{1,15})-([0-9]{1,15})")


@dataclass(frozen=True)
class UnscoredSample:
    """A sample without a score, and why."""

    sample: str
    reason: str


@dataclass(frozen=True, eq=False)
class PredictedSamples:
    """What a bundle predicts of samples.

    Attributes:
        bundle: The bundle's digest.
        thresholds: Label -> the score at which it is on, for the C labels.
        samples: The N samples that are scored.
        scores: Their scores as trained, shape (N, C).
        on: What is predicted of them, shape (N, C).
        lost: Of each, how many parts could not be extracted.
        seen: Names of those that hold a stretch which the bundle was fitted on.
        unscored: Samples without a score.
        table: The file of scores.
        weights: The file of the parts' weights; None where the head weighs none.
    """

    bundle: str
    thresholds: Mapping[str, float]
    samples: tuple[Sample, ...]
    scores: npt.NDArray[np.float32]
    on: npt.NDArray[np.bool_]
    lost: tuple[int, ...]
    seen: frozenset[str]
    unscored: tuple[UnscoredSample, ...]
    table: Path
    weights: Path | None = None

    @property
    def is_partial(self) -> bool:
        """Whether a sample has no score, or one without a part that could not be extracted."""
        return bool(self.unscored or any(self.lost))

    def to_mapping(self) -> dict[str, Any]:
        """What `predictions.json` says."""
        labels = list(self.thresholds)
        rows = zip(self.samples, self.scores.tolist(), self.on.tolist(), self.lost, strict=True)
        return {
            "kind": KIND,
            "format": FORMAT,
            "bundle": self.bundle,
            "labels": labels,
            "thresholds": dict(self.thresholds),
            "samples": [
                {
                    "sample": sample.name,
                    "parts": list(sample.parts),
                    "absent": sample.parts.count(""),
                    "could_not_be_extracted": lost,
                    "fitted_on": sample.name in self.seen,
                    "scores": {label: round(score, 6) for label, score in zip(labels, scores, strict=True)},
                    "on": [label for label, is_on in zip(labels, on, strict=True) if is_on],
                }
                for sample, scores, on, lost in rows
            ],
            "unscored": [dataclasses.asdict(one) for one in self.unscored],
        }


def predict_samples(
    project: Project,
    folder: Path,
    rule: ClipRule,
    paths: Sequence[Path],
    extract: Extract,
    *,
    out: Path,
    table: Path | None,
) -> tuple[PredictedSamples | None, list[UnusableRecording], Extraction]:
    """Scores samples of recordings and writes `predictions.csv`; replaces nothing that a person wrote.

    Args:
        project: Its settings say how features are made, and which recordings are of one session.
        folder: The bundle's folder.
        rule: What clips and samples were when it was fitted.
        paths: The recordings' files.
        extract: Extracts missing features.
        out: The folder for the files.
        table: The samples, as in `samples.csv` but without targets; None: those of the bundle's rule.

    Returns:
        What is predicted, None where no recording can be; recordings that gave no sample, and why; the extraction.

    Raises:
        BundleError: If the bundle does not know what its samples are, or its rule needs a table.
        ClipTableError: If the table is unsound, or recordings have no session.
        SettingsError: If the settings of sessions do not fit.
        OutputExistsError: If a file of an earlier prediction was changed since.
    """
    _check_rule(rule, folder, table)
    usable, failed = examined_recordings(project, paths, rule.length_us)
    head = load_bundle(folder) if usable else None
    if head is not None:
        usable, boxless = with_their_boxes(head.project_of(project), usable)
        failed += boxless
    if head is None or not usable:
        return None, failed, Extraction(Progress(), ())
    if table is not None:
        by_content = {recording.sha256[:16]: recording for recording in usable}
        samples = read_unannotated(
            table,
            lambda name: _clip_named(name, by_content, rule.length_us, any_content=bool(failed)),
            rule.roles or (),
        )
        named = {part.partition("-")[0] for sample in samples for part in sample.clip_ids}
        failed += [
            UnusableRecording(recording.name, f"no sample of {table.name} has a clip of it")
            for content, recording in by_content.items()
            if content not in named
        ]
    elif rule.samples == "moment":
        clips, strangers = _clips_of_cameras(project, usable, rule)
        samples, failed = tuple(moments(clips, rule.roles or ())), [*failed, *strangers]
    else:
        clips = [clip for recording in usable for clip in _clips(recording, recording.name, rule)]
        samples = tuple(groups_of_recordings(clips, rule.most_clips or 0))
    if not samples:
        return None, failed, Extraction(Progress(), ())
    wanted = {part for sample in samples for part in sample.clip_ids}
    windows = {recording.sha256: _windows_of(recording, wanted) for recording in usable}
    chosen = [recording for recording in usable if windows[recording.sha256]]
    extraction = extract(head, chosen, windows)
    cache = FeatureCache.open_if_made(project.cache)
    spans = [(sha256, *span) for sha256, of in windows.items() for span in of]
    contents = {sha256[:16] for sha256 in windows}
    unread = (part for part in wanted if part.partition("-")[0] not in contents)
    missing = missing_clips(cache, head, spans, extraction) | dict.fromkeys(unread, "its recording cannot be read")
    places = _places(head)
    unscored = [UnscoredSample(one.name, why) for one in samples if (why := _why_unscored(one, missing, places))]
    without = {one.sample for one in unscored}
    scored = tuple(sample for sample in samples if sample.name not in without)
    P = places or max((len(sample.parts) for sample in scored), default=0)
    features = {} if cache is None or not scored else part_features(scored, P, cache, head.selected, missing)
    found, files = _predicted(head, scored, features, out)
    lost = tuple(sum(part in missing for part in sample.clip_ids) for sample in scored)
    found = replace(found, lost=lost, unscored=tuple(unscored))
    write_own(
        found.to_mapping(),
        out / "predictions.json",
        {found.table: csv_bytes(_csv_rows(found), line_end="\r\n"), **files},
    )
    return found, failed, extraction


def _check_rule(rule: ClipRule, folder: Path, table: Path | None) -> None:
    """Refuses a bundle whose samples nobody can make of recordings alone."""
    if rule.roles is None or (rule.samples == "recording" and rule.most_clips is None):
        raise BundleError(
            f"a bundle must know how its samples are made, but {folder} does not: an earlier version trained it. "
            "Train it again: featurecache tune, or train."
        )
    if table is None and rule.samples in ("event", "file"):
        why = (
            "are the clips before and after an event, which nobody has annotated here"
            if rule.samples == "event"
            else "were put together by hand"
        )
        raise BundleError(
            f"samples must be made of recordings alone, but those of {folder} {why}. Write them into a table (sample, "
            "part, role, order; parts are clip ids, as in clips.csv), and name it: featurecache predict --samples FILE."
        )


def _clips(recording: Recording, session: str, rule: ClipRule) -> list[Clip]:
    spans = clip_windows(recording.info.duration_us, rule.length_us, rule.stride_us)
    return [Clip(clip_id(recording.sha256, *span), recording.name, session, "", *span, ()) for span in spans]


def _clips_of_cameras(
    project: Project, recordings: Sequence[Recording], rule: ClipRule
) -> tuple[list[Clip], list[UnusableRecording]]:
    """The clips of recordings whose camera the bundle knows, and the others, with their reasons."""
    data = project.settings.data
    if data.session_from == "column":
        raise ClipTableError(
            'a new recording must have a session that its name tells, but session_from is "column". Write the samples '
            "into a table (sample, part, role, order), and name it: featurecache predict --samples FILE."
        )
    clips: list[Clip] = []
    strangers: list[UnusableRecording] = []
    named: list[str] = []
    for recording in recordings:
        try:
            name_sessions([recording.name], replace(data, same_session=()), {})
            named.append(recording.name)
        except ClipTableError as error:
            strangers.append(UnusableRecording(recording.name, str(error)))
    known = tuple(group for all_of in data.same_session if (group := tuple(one for one in all_of if one in named)))
    sessions, _ = name_sessions(named, replace(data, same_session=known), {})
    first: dict[tuple[str, str], str] = {}
    for recording in (one for one in recordings if one.name in sessions):
        session = sessions[recording.name]
        camera = camera_of(recording.name, session)
        if camera not in (rule.roles or ()):
            reason = f"its camera {camera!r} is none of the bundle's: {', '.join(rule.roles or ())}; rename it"
        elif (other := first.setdefault((session, camera), recording.name)) != recording.name:
            reason = f"it is of the same session and camera as {other}; rename it, or predict it alone"
        else:
            clips += _clips(recording, session, rule)
            continue
        strangers.append(UnusableRecording(recording.name, reason))
    return clips, strangers


def _clip_named(name: str, recordings: Mapping[str, Recording], length_us: int, *, any_content: bool) -> Clip | None:
    """The clip of an id, if it lies in one of the recordings (by the first digits of their sha256) and is as long.

    Where a recording could not be read, a clip of unknown content may be its: `any_content` takes it.
    """
    found = _CLIP_ID.fullmatch(name)
    recording = recordings.get(found[1]) if found else None
    if found is None or (recording is None and not any_content):
        return None
    span = int(found[2]), int(found[3])
    fits = span[1] - span[0] == length_us and (recording is None or span[1] <= recording.info.duration_us)
    own = recording.name if recording else ""
    return Clip(name, own, "", "", *span, ()) if fits and clip_id(found[1], *span) == name else None


def _windows_of(recording: Recording, wanted: set[str]) -> list[tuple[int, int]]:
    """The spans of those clips that are of a recording, in order."""
    own = (_CLIP_ID.fullmatch(name) for name in wanted if name.startswith(recording.sha256[:16]))
    return sorted((int(found[2]), int(found[3])) for found in own if found)


def _places(head: Bundle) -> int:
    """P of a head that reads parts side by side; 0 where it takes any number of them."""
    if join_of(head.settings.inputs) == "pair":
        return 2
    joined = join_of(head.settings.inputs) == "concat"
    return len(head.head.front.part_widths) // (len(head.spaces) + 1) if joined else 0  # and whether each is there


def _why_unscored(sample: Sample, missing: Mapping[str, str], places: int) -> str:
    """Why a sample cannot have a score; empty where it can."""
    if places and len(sample.parts) > places:
        return f"it has {len(sample.parts)} parts, and the bundle reads {places} side by side"
    if missing.keys() >= {*sample.clip_ids}:
        return f"none of its parts could be extracted, the first because {missing[sample.clip_ids[0]]}"
    return ""


def _predicted(
    head: Bundle, samples: tuple[Sample, ...], features: Mapping[str, npt.NDArray[np.floating]], out: Path
) -> tuple[PredictedSamples, dict[Path, bytes]]:
    """Scores of samples with features (N, P, D) of their parts, and the file of weights, if any."""
    scores, files = np.zeros((0, len(head.labels)), np.float32), {}
    names, ids = [sample.name for sample in samples], tuple(sample.clip_id for sample in samples)
    weighs = head.settings.kind in WEIGHING
    if samples:
        split = LabelledSplit(
            features, np.zeros((len(samples), len(head.labels)), np.int8), np.array(names), ids, samples
        )
        X = split.of(head.settings.inputs).X
        scores = head.scores(X, fingerprint=head.fingerprint)
        if weighs:
            from heads.models import part_weights

            files[out / WEIGHTS_NAME] = weights_table(samples, part_weights(head.head, X), head.labels)
    found = PredictedSamples(
        head.digest,
        dict(zip(head.labels, head.thresholds.tolist(), strict=True)),
        samples,
        scores,
        head.predicted(scores),
        (0,) * len(samples),
        frozenset(sessions_in(ids, names, head.fitted_on)),
        (),
        out / "predictions.csv",
        out / WEIGHTS_NAME if files else None,
    )
    return found, files


def _csv_rows(found: PredictedSamples) -> Iterator[list[object]]:
    columns = [f"{what} {label}" for label in found.thresholds for what in ("score", "on")]
    yield ["sample", "clips", "absent", "could_not_be_extracted", "fitted_on", *columns]
    for sample, scores, on, lost in zip(found.samples, found.scores, found.on, found.lost, strict=True):
        cells = [cell for score, is_on in zip(scores, on, strict=True) for cell in (f"{score:.4f}", int(is_on))]
        known = int(sample.name in found.seen)
        yield [guard_cell(sample.name), sample.clip_id, sample.parts.count(""), lost, known, *cells]
