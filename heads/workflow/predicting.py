"""Recordings and a bundle to timelines: extract missing features, score the clips, write files for review.

Recordings may lie anywhere; features go into the project's cache, found by content as always. Clips have the length
that the bundle was fitted on and overlap by default (half a clip from one to the next), so that a border is known to
about a quarter of a clip. The last clip ends where the recording ends, so that no tail goes unscored. Only the
features that the bundle reads are extracted.

One bad recording never stops the others: it is listed with its reason. A recording with missing clips is predicted
where the others are, and lists them. Scores are computed in blocks of clips, so that memory does not grow with a
recording's length but for its timeline itself.

Nothing here scores a timeline: predicting a test recording is no test-set evaluation, though prediction and annotation
are both in the `.json`, for programs that draw them.
"""

import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.annotations import Interval
from featurecache.clips.clip import clip_id, clip_windows
from featurecache.clips.matching import Annotations, annotated_spans, find_annotations
from featurecache.errors import FeatureCacheError, UnreadableVideoError, UsageError
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.files import private_folder
from featurecache.project.settings import Project
from featurecache.spelling import counted
from featurecache.video.recordings import Recording, UnusableRecording
from heads.bundle import Bundle, load_bundle
from heads.bundle_files import Stated, stated_in
from heads.clip_rule import ClipRule
from heads.timelines.files import Timeline, WrittenTimeline, write_timeline
from heads.timelines.rules import timeline_rules
from heads.timelines.timeline import Spans
from heads.timelines.tuning import TunedTimeline, load_timeline
from heads.workflow.data import exclusive_labels, tuned_bundle
from heads.workflow.new_recordings import (
    examined_recordings,
    extract_missing,
    missing_clips,
    reason_of,
    stem_of,
    with_their_boxes,
)
from heads.workflow.predicting_samples import PredictedSamples, predict_samples
from heads.workflow.timelines import clip_scores, predicted_timeline

_MOST_STRIDE_S = 3600.0


@dataclass(frozen=True)
class Predictions:
    """The timelines of a prediction, and what could not be predicted.

    Attributes:
        out: The folder of the files.
        written: The timelines and their files, in the order asked for.
        failed: Recordings without a timeline, and why.
        left_out: Annotation files that could not be read; the recordings they are of count as not annotated.
        extraction: The extraction of the missing features.
        tuned: The bundle's tuned timeline settings; None where the defaults served.
        note: That clips have another length than the settings say; empty where they have not.
        samples: What a bundle predicts that scores samples of several clips; None where it scores clips.
    """

    out: Path
    written: tuple[tuple[Timeline, WrittenTimeline], ...]
    failed: tuple[UnusableRecording, ...]
    left_out: tuple[UnusableRecording, ...]
    extraction: Extraction
    tuned: TunedTimeline | None
    note: str = ""
    samples: PredictedSamples | None = None

    @property
    def is_partial(self) -> bool:
        """Whether something could not be predicted, or not with all there is."""
        clips_failed = any(timeline.failed for timeline, _ in self.written)
        return bool(self.failed or self.left_out or clips_failed or (self.samples and self.samples.is_partial))

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache predict --json`."""
        return {
            "out": self.out,
            "extracted": self.extraction.progress.extracted,
            "tuned": self.tuned is not None,
            "note": self.note,
            "written": [
                {
                    "recording": timeline.recording,
                    "intervals": len(timeline.predicted),
                    "annotated": timeline.annotated is not None,
                    "failed_clips": len(timeline.failed),
                    **dataclasses.asdict(files),
                }
                for timeline, files in self.written
            ],
            **({} if self.samples is None else {"samples": self.samples.to_mapping()}),
            "failed": [dataclasses.asdict(item) for item in self.failed],
            "left_out": [dataclasses.asdict(item) for item in self.left_out],
        }


def predict(
    project: Project,
    recordings: Sequence[Path],
    *,
    bundle: Path | None = None,
    out: Path | None = None,
    stride_s: float | None = None,
    samples: Path | None = None,
    allow_download: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Predictions:
    """Predicts the timelines of recordings and writes them for review; replaces nothing that a person wrote.

    A bundle that scores samples of several clips makes no timelines: `predict_samples`.

    Args:
        project: Its settings say how features are made, where annotations are, by [timeline] which labels exclude each
            other, and how long a clip is where an old bundle does not.
        recordings: The recordings' files, anywhere on this machine; one that is named twice is predicted once.
        bundle: The bundle's folder; None: the one of `tune`.
        out: The folder for the files, made if missing; None: the project's. Recordings inside the project's folder of
            videos keep their folders below it.
        stride_s: From one scored clip's start to the next one's; the last one follows sooner where it has to. None: as
            [timeline] says, or half a clip.
        samples: A table of the samples to score, of a bundle that scores such; None: those that its own rule makes.
        allow_download: Whether the model may be fetched from the hub.
        on_progress: Called with the progress of the extraction.

    Raises:
        BundleError: If the bundle or its timeline settings are damaged, or nobody can tell what its samples are.
        UsageError: If the stride is out of range, or samples have one, or are given for a bundle that scores clips.
        ClipTableError: If the table of samples is unsound.
        FingerprintMismatchError: If the project's settings make other features than the bundle reads.
        TimelineError: If a rule names a label that the bundle has not.
        AnnotationError: If the settings' annotations are missing.
        OSError: If `out` cannot be made, or is no folder.
    """
    folder = bundle if bundle is not None else tuned_bundle(project)
    rules, stated = timeline_rules(project), stated_in(folder)
    length_us, note = _clip_length(project, stated)
    exclusive = exclusive_labels(project, stated)
    stride_us = _stride_us(stride_s if stride_s is not None else rules.stride_s, length_us)
    out = _made_folder(out if out is not None else project.predictions)
    extract = partial(extract_missing, project, allow_download=allow_download, on_progress=on_progress)
    if stated.clips is not None and stated.clips.unit == "sample":
        if stride_s is not None:
            raise UsageError("samples have the stride that their bundle was fitted with. Leave out --stride.")
        scored, failed, extraction = predict_samples(
            project, folder, stated.clips, recordings, extract, out=out, table=samples
        )
        return Predictions(out, (), tuple(failed), (), extraction, None, note, scored)
    if samples is not None:
        raise UsageError(f"samples must be for a bundle that scores them, but {folder} scores clips. Leave it out.")
    usable, failed = examined_recordings(project, recordings, length_us)  # before the seconds that loading a head takes
    if not usable:
        return Predictions(out, (), tuple(failed), (), Extraction(Progress(), ()), load_timeline(folder), note)
    head, tuned = load_bundle(folder), load_timeline(folder)
    usable, boxless = with_their_boxes(head.project_of(project), usable)
    failed += boxless
    windows = {one.sha256: scored_windows(one.info.duration_us, length_us, stride_us) for one in usable}
    extraction = extract(head, usable, windows)
    cache = FeatureCache.open_if_made(project.cache)
    annotations = find_annotations(project, [recording.name for recording in usable])
    written = []
    for recording in usable:
        try:
            spans, scores, unscored = _scores(cache, head, recording, windows[recording.sha256], extraction)
            timeline = predicted_timeline(
                head,
                tuned,
                exclusive,
                recording=(recording.name, recording.sha256[:16], recording.info.duration_us),
                clips=(spans, scores),
                windows=(length_us, stride_us),
                annotation=annotation_of(project, recording, annotations),
                failed=unscored,
            )
            written.append((timeline, _write(timeline, recording, annotations, out)))
        except (FeatureCacheError, OSError) as error:
            failed.append(UnusableRecording(recording.name, reason_of(error)))
    return Predictions(out, tuple(written), tuple(failed), annotations.left_out, extraction, tuned, note)


def _made_folder(out: Path) -> Path:
    private_folder(out)
    if not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    return out


def _clip_length(project: Project, stated: Stated) -> tuple[int, str]:
    """The length of the bundle's clips in microseconds, and a note where the settings say another."""
    length_us = (stated.clips or ClipRule.of(project)).length_us
    own_us = project.settings.clips.length_us
    if length_us == own_us:
        return length_us, ""
    own, stated_s = f"{own_us / 1e6:g} s", f"{length_us / 1e6:g} s"
    return length_us, f"clips of {stated_s} as the bundle was fitted with, not {own} of the settings"


def annotation_of(
    project: Project, recording: Recording, annotations: Annotations
) -> tuple[Sequence[Interval] | None, Spans | None]:
    """The annotators' intervals and what they annotated; None for both where nobody did."""
    found = annotations.of.get(recording.name)
    if found is None:
        return None, None
    return found.intervals, annotated_spans(found, project.settings.data, recording.info.duration_us)


def _stride_us(stride_s: float | Decimal | None, length_us: int) -> int:
    if stride_s is not None and not 0 < stride_s <= _MOST_STRIDE_S:
        raise UsageError(
            f"the stride must be above 0 and at most {_MOST_STRIDE_S} seconds, but it is {stride_s:g}. "
            "Leave it out for half a clip."
        )
    return round(float(stride_s) * 1_000_000) if stride_s is not None else length_us // 2


def scored_windows(duration_us: int, length_us: int, stride_us: int) -> list[tuple[int, int]]:
    """Clips of a recording that is no shorter than one: `clip_windows`, and one that ends with it if none does.

    With a stride of at most a clip's length they cover all of the recording.
    """
    windows, last = clip_windows(duration_us, length_us, stride_us), (duration_us - length_us, duration_us)
    return windows if windows[-1] == last else [*windows, last]


def _scores(
    cache: FeatureCache | None,
    bundle: Bundle,
    recording: Recording,
    spans: Sequence[tuple[int, int]],
    extraction: Extraction,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[tuple[int, int, str]]]:
    """Spans (N, 2) and scores (N, C) of the clips that the cache has, and the others with their reasons."""
    missing = missing_clips(cache, bundle, [(recording.sha256, *span) for span in spans], extraction)
    of_span = {span: clip_id(recording.sha256, *span) for span in spans}
    unscored = [(*span, missing[name]) for span, name in of_span.items() if name in missing]
    scored = {span: name for span, name in of_span.items() if name not in missing}
    if cache is None or not scored:
        raise UnreadableVideoError(
            f"none of its {counted(len(spans), 'clip')} could be extracted, the first because {unscored[0][2]}"
        )
    return np.array(list(scored), np.int64), clip_scores(bundle, cache, list(scored.values())), unscored


def _write(timeline: Timeline, recording: Recording, annotations: Annotations, out: Path) -> WrittenTimeline:
    if recording.name in annotations.refused:
        raise UnreadableVideoError(annotations.refused[recording.name])
    found = annotations.of.get(recording.name)
    return write_timeline(
        timeline,
        out / stem_of(recording.name),
        media=recording.path,
        document=None if found is None else found.own_document(),
        source=None if found is None else found.eaf,
        time_origin_ms=0 if found is None else found.time_origin_ms,
    )
