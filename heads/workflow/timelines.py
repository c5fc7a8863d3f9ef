"""Timelines of annotated recordings, from features that the cache has: to tune settings, and to score them.

Clips are the labelled ones of the clip table, at its stride; nothing is extracted. `predict` scores finer clips, so
its borders are finer than what is scored here.

`evaluate_timelines` gives

    {"scores": the document of `scores.scores_document`,
     "recordings": [{"session", "disagreements": [{"start_us", "end_us", "label", "kind"}, ..] the longest first,
                     .. the document of `files.timeline_document`}, ..]}
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.annotations import Interval
from featurecache.clips.clip import Clip, ClipTable, union_of
from featurecache.clips.matching import annotated_spans, find_annotations
from featurecache.errors import TrainingDataError
from featurecache.project.settings import Project
from heads.bundle import Bundle
from heads.clip_rule import ClipRule
from heads.data import row_blocks
from heads.loading import read_features
from heads.runs import HeldOut
from heads.timelines.files import Timeline, timeline_document
from heads.timelines.scores import compare_timelines, disagreements, intersection, scores_document
from heads.timelines.timeline import Spans, default_settings, predict_intervals
from heads.timelines.tuning import ScoredRecording, TunedTimeline, tune_timeline
from heads.workflow.data import ScoringData


@dataclass(frozen=True)
class _Recording:
    name: str
    content: str
    session: str
    clips: ScoredRecording


def tune_on_held_out(project: Project, bundle: Bundle, table: ClipTable, held_out: HeldOut) -> TunedTimeline:
    """Timeline settings chosen by held-out scores; `save_timeline` puts them into the bundle's folder.

    Args:
        project: The project, whose annotations are read.
        bundle: The bundle.
        table: The clip table.
        held_out: Scores of clips of the table. Labels without scores have no say.

    Raises:
        TrainingDataError: If no recording of these clips has an annotated event.
    """
    rule = bundle.clips or ClipRule.of(project)
    scored = held_out.is_scored
    scores = dict(zip(held_out.clip_ids or (), held_out.scores[:, scored].astype(np.float32), strict=True))
    clips = [clip for clip in table.clips if clip.clip_id in scores]
    found = _recordings(project, clips, lambda ids: np.stack([scores[clip_id] for clip_id in ids]), held_out.name)
    return tune_timeline(
        [one.clips for one in found],
        labels=list(itertools.compress(bundle.labels, scored)),
        thresholds=bundle.thresholds[scored],
        length_us=rule.length_us,
        stride_us=rule.stride_us,
    )


def evaluate_timelines(
    project: Project,
    bundle: Bundle,
    source: ScoringData,
    *,
    tuned: TunedTimeline | None,
    exclusive: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Scores the timelines of the test split's annotated recordings. The caller logs the test-set evaluation.

    Args:
        project: The project, whose annotations are read.
        bundle: The bundle.
        source: What it is scored with; missing clips with a known reason are left out.
        tuned: The bundle's timeline settings; None for the defaults.
        exclusive: Groups of labels of which one at most is on at a time.

    Returns:
        The document of the module's docstring.

    Raises:
        TrainingDataError: If the split has no annotated recording.
        MissingFeaturesError: If a clip is missing from the cache for no known reason.
    """
    clips = bundle.clips or ClipRule.of(project)
    comparisons, sessions, documents = [], [], []
    labelled = [clip for clip in source.table.clips if clip.split == "test" and clip.labelled]
    missing = source.known.missing(source.cache, [clip.clip_id for clip in labelled], bundle.spaces)
    had = [clip for clip in labelled if clip.clip_id not in missing]
    for one in _recordings(project, had, lambda ids: clip_scores(bundle, source.cache, ids), "test"):
        spans, scores, annotated, within = one.clips.spans_us, one.clips.scores, one.clips.annotated, one.clips.within
        timeline = predicted_timeline(
            bundle,
            tuned,
            exclusive,
            recording=(one.name, one.content, int(spans.max())),
            clips=(spans, scores),
            windows=(clips.length_us, clips.stride_us),
            annotation=(annotated, within),
        )
        intervals = [each.interval for each in timeline.predicted]
        comparisons.append(compare_timelines(annotated, intervals, labels=bundle.labels, within=within))
        sessions.append(one.session)
        differing = disagreements(annotated, intervals, labels=bundle.labels, within=within)
        documents.append(
            {
                "session": one.session,
                "disagreements": [dataclasses.asdict(each) for each in differing],
                **timeline_document(timeline),
            }
        )
    return {"scores": scores_document(comparisons, sessions, labels=bundle.labels), "recordings": documents}


def predicted_timeline(
    bundle: Bundle,
    tuned: TunedTimeline | None,
    exclusive: Sequence[Sequence[str]],
    *,
    recording: tuple[str, str, int],
    clips: tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]],
    windows: tuple[int, int],
    annotation: tuple[Sequence[Interval] | None, Spans | None] = (None, None),
    failed: Sequence[tuple[int, int, str]] = (),
) -> Timeline:
    """What a bundle predicts of one recording whose clips are scored.

    Args:
        bundle: The bundle.
        tuned: Its timeline settings; None for the defaults.
        exclusive: Groups of labels of which one at most is on at a time.
        recording: Its name, the first 16 hex digits of its sha256, and its length in microseconds.
        clips: The scored clips, shape (N, 2), and their scores as trained, shape (N, C).
        windows: Length of a clip, and from one clip's start to the next one's, in microseconds.
        annotation: The annotator's intervals and what was annotated; None where nobody annotated.
        failed: Clips without a score, as (start_us, end_us, reason).
    """
    (name, content, duration_us), (spans, scores), (length_us, stride_us) = recording, clips, windows
    settings = tuned.settings if tuned is not None else default_settings(length_us)
    return Timeline(
        recording=name,
        content=content,
        duration_us=duration_us,
        labels=bundle.labels,
        thresholds=bundle.thresholds,
        length_us=length_us,
        stride_us=stride_us,
        spans_us=spans,
        scores=scores,
        predicted=predict_intervals(
            spans,
            scores,
            settings,
            labels=bundle.labels,
            thresholds=bundle.thresholds,
            exclusive=exclusive,
            calibrated=None if bundle.calibration is None else bundle.calibration.apply(scores),
        ),
        annotated=annotation[0],
        annotated_us=annotation[1],
        settings=settings,
        tuned=tuned is not None,
        exclusive=exclusive,
        calibrated=bundle.calibration is not None,
        bundle=bundle.digest,
        failed=failed,
    )


def clip_scores(bundle: Bundle, cache: FeatureCache, clip_ids: Sequence[str]) -> npt.NDArray[np.float32]:
    """The bundle's scores of clips that the cache has, in blocks of bounded size: (N, C).

    Raises:
        MissingFeaturesError: If a clip is missing from the cache.
    """
    scores = np.empty((len(clip_ids), len(bundle.labels)), np.float32)
    for rows in row_blocks(len(clip_ids)):
        parts = [read_features(cache, clip_ids[rows], space) for space in bundle.spaces]
        scores[rows] = bundle.scores(np.concatenate(parts, axis=-1), fingerprint=bundle.fingerprint)
    return scores


def _recordings(
    project: Project,
    clips: Sequence[Clip],
    score: Callable[[Sequence[str]], npt.NDArray[np.floating]],
    split: str,
) -> list[_Recording]:
    """The annotated recordings of clips with their scores (N, C), in order of the table."""
    names = list(dict.fromkeys(clip.recording for clip in clips))
    annotations = find_annotations(project, names).of
    found = []
    for name in names:
        own = [clip for clip in clips if clip.recording == name]
        if name not in annotations:
            continue
        spans = [(clip.start_us, clip.end_us) for clip in own]
        annotated = annotated_spans(annotations[name], project.settings.data, max(spans)[1])
        scored = ScoredRecording(
            np.array(spans, np.int64),
            score([clip.clip_id for clip in own]),
            annotations[name].intervals,
            intersection(union_of(annotated), union_of(spans)),
        )
        found.append(_Recording(name, own[0].content, own[0].session, scored))
    if not found:
        raise TrainingDataError(
            f"timelines of {split} clips need an annotated recording, but none of their {len(names)} recordings has "
            "an annotation. Set annotations under [data], or change the split in clips.csv."
        )
    return found
