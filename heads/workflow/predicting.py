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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.annotations import Interval
from featurecache.backbones.adapter_files import open_adapter
from featurecache.clips.clip import clip_id, clip_windows
from featurecache.clips.matching import Annotations, annotated_spans, find_annotations
from featurecache.csv_fields import UNWRITABLE
from featurecache.errors import (
    CacheNotFoundError,
    FeatureCacheError,
    UnreadableVideoError,
    UsageError,
)
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.extraction.plan import plan_recordings
from featurecache.files import private_folder
from featurecache.project.settings import Project
from featurecache.spelling import counted
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import Recording, UnusableRecording, Wait, examine
from heads.bundle import Bundle, load_bundle
from heads.bundle_files import Stated, stated_in
from heads.clip_rule import ClipRule
from heads.timelines.files import Timeline, WrittenTimeline, write_timeline
from heads.timelines.rules import timeline_rules
from heads.timelines.timeline import Spans
from heads.timelines.tuning import TunedTimeline, load_timeline
from heads.workflow.data import exclusive_labels, refuse_samples, tuned_bundle
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
    """

    out: Path
    written: tuple[tuple[Timeline, WrittenTimeline], ...]
    failed: tuple[UnusableRecording, ...]
    left_out: tuple[UnusableRecording, ...]
    extraction: Extraction
    tuned: TunedTimeline | None
    note: str = ""

    @property
    def is_partial(self) -> bool:
        """Whether something could not be predicted, or not with all there is."""
        return bool(self.failed or self.left_out or any(timeline.failed for timeline, _ in self.written))

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
    allow_download: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Predictions:
    """Predicts the timelines of recordings and writes them for review; replaces nothing that a person wrote.

    Args:
        project: Its settings say how features are made, where annotations are, by [timeline] which labels exclude each
            other, and how long a clip is where an old bundle does not.
        recordings: The recordings' files, anywhere on this machine; one that is named twice is predicted once.
        bundle: The bundle's folder; None: the one of `tune`.
        out: The folder for the files, made if missing; None: the project's. Recordings inside the project's folder of
            videos keep their folders below it.
        stride_s: From one scored clip's start to the next one's; the last one follows sooner where it has to. None: as
            [timeline] says, or half a clip.
        allow_download: Whether the model may be fetched from the hub.
        on_progress: Called with the progress of the extraction.

    Raises:
        BundleError: If the bundle or its timeline settings are damaged.
        FingerprintMismatchError: If the project's settings make other features than the bundle reads.
        TimelineError: If a rule names a label that the bundle has not.
        AnnotationError: If the settings' annotations are missing.
        OSError: If `out` cannot be made, or is no folder.
    """
    folder = bundle if bundle is not None else tuned_bundle(project)
    out = out if out is not None else project.predictions
    rules = timeline_rules(project)
    stated = stated_in(folder)
    refuse_samples(stated, folder)
    length_us, note = _clip_length(project, stated)
    exclusive = exclusive_labels(project, stated)
    stride_us = _stride_us(stride_s if stride_s is not None else rules.stride_s, length_us)
    private_folder(out)
    if not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    usable, failed = _recordings(project, recordings, length_us)  # before the seconds that loading a head takes
    if not usable:
        return Predictions(out, (), tuple(failed), (), Extraction(Progress(), ()), load_timeline(folder), note)
    head, tuned = load_bundle(folder), load_timeline(folder)
    windows = {
        recording.sha256: scored_windows(recording.info.duration_us, length_us, stride_us) for recording in usable
    }
    extraction = _extract(project, head, usable, windows, allow_download=allow_download, on_progress=on_progress)
    reasons = {failure.clip_id: failure.reason for failure in extraction.failures}
    cache = _opened(project)
    annotations = find_annotations(project, [recording.name for recording in usable])
    written = []
    for recording in usable:
        try:
            scored, scores, unscored = _scores(cache, head, recording, windows[recording.sha256], reasons)
            timeline = predicted_timeline(
                head,
                tuned,
                exclusive,
                recording=(recording.name, recording.sha256[:16], recording.info.duration_us),
                clips=(scored, scores),
                windows=(length_us, stride_us),
                annotation=_annotation(project, recording, annotations),
                failed=unscored,
            )
            written.append((timeline, _write(timeline, recording, annotations, out)))
        except (FeatureCacheError, OSError) as error:
            failed.append(UnusableRecording(recording.name, _reason(error)))
    return Predictions(out, tuple(written), tuple(failed), annotations.left_out, extraction, tuned, note)


def _clip_length(project: Project, stated: Stated) -> tuple[int, str]:
    """The length of the bundle's clips in microseconds, and a note where the settings say another."""
    length_us = (stated.clips or ClipRule.of(project)).length_us
    own_us = project.settings.clips.length_us
    if length_us == own_us:
        return length_us, ""
    own, stated_s = f"{own_us / 1e6:g} s", f"{length_us / 1e6:g} s"
    return length_us, f"clips of {stated_s} as the bundle was fitted with, not {own} of the settings"


def _extract(
    project: Project,
    head: Bundle,
    recordings: Sequence[Recording],
    windows: Mapping[str, list[tuple[int, int]]],
    *,
    allow_download: bool,
    on_progress: Callable[[Progress], None],
) -> Extraction:
    """Extracts what the cache lacks of the features that a bundle reads, by content of the recordings."""
    from heads.zeroshot.answering import run_asked

    own = head.project_of(project)
    plan = plan_recordings(
        own,
        [(recording, windows[recording.sha256]) for recording in recordings],
        select=list(head.kept),
        adapter=None if head.adapter is None else open_adapter(head.adapter),
        asked=head.asked,
        allow_download=allow_download,
    )
    head.check_spaces(plan.spaces)
    return run_asked(own, plan, on_progress=on_progress)


def _annotation(
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


def _opened(project: Project) -> FeatureCache | None:
    try:
        return FeatureCache.open(project.cache)
    except CacheNotFoundError:  # no clip of any recording could be extracted
        return None


def _scores(
    cache: FeatureCache | None,
    bundle: Bundle,
    recording: Recording,
    spans: Sequence[tuple[int, int]],
    reasons: dict[str, str],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[tuple[int, int, str]]]:
    """Spans (N, 2) and scores (N, C) of the clips that the cache has, and the others with their reasons."""
    clips = [(recording.sha256, *span) for span in spans]
    missing = set(clips) if cache is None else _missing(cache, bundle, clips)
    unscored = [
        (start, end, reasons.get(clip_id(sha256, start, end), "another process is extracting it; run predict again"))
        for sha256, start, end in clips
        if (sha256, start, end) in missing
    ]
    scored = [span for span in spans if (recording.sha256, *span) not in missing]
    if cache is None or not scored:
        raise UnreadableVideoError(
            f"none of its {counted(len(spans), 'clip')} could be extracted, the first because {unscored[0][2]}"
        )
    ids = [clip_id(recording.sha256, *span) for span in scored]
    return np.array(scored, np.int64), clip_scores(bundle, cache, ids), unscored


def _missing(cache: FeatureCache, bundle: Bundle, clips: Sequence[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    return {clip for space in bundle.spaces for clip in cache.missing(clips, space.fingerprint)}


def _write(timeline: Timeline, recording: Recording, annotations: Annotations, out: Path) -> WrittenTimeline:
    if recording.name in annotations.refused:
        raise UnreadableVideoError(annotations.refused[recording.name])
    found = annotations.of.get(recording.name)
    return write_timeline(
        timeline,
        out / _stem(recording.name),
        media=recording.path,
        document=None if found is None else found.own_document(),
        source=None if found is None else found.eaf,
        time_origin_ms=0 if found is None else found.time_origin_ms,
    )


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _recordings(
    project: Project, paths: Sequence[Path], length_us: int
) -> tuple[list[Recording], list[UnusableRecording]]:
    """The recordings that can be scored, and the others with their reasons."""
    memo, wait = DigestMemo(project.digest_memo), Wait()
    usable: list[Recording] = []
    failed: list[UnusableRecording] = []
    stems: dict[str, str] = {}
    contents: dict[str, str] = {}
    for path in {path.absolute(): path for path in paths}.values():
        name = _name(project, path)
        try:
            recording = _examined(name, path, memo, wait)
            earlier = contents.get(recording.sha256) or stems.get(_stem(name))
            if earlier is not None:
                reason = f"{earlier} has the same content, or would have files of the same name; choose another --out"
                failed.append(UnusableRecording(name, reason))
                continue
            if recording.info.duration_us < length_us:
                lasts = f"{recording.info.duration_us / 1e6:g} s of {length_us / 1e6:g} s"
                failed.append(UnusableRecording(name, f"shorter than one clip ({lasts})"))
                continue
            contents[recording.sha256] = stems[_stem(name)] = name
            usable.append(recording)
        except (FeatureCacheError, OSError) as error:
            failed.append(UnusableRecording(name, _reason(error)))
    memo.save()
    return usable, failed


def _name(project: Project, path: Path) -> str:
    """The recording's path in the folder of videos; its file name where it lies elsewhere."""
    # Not Path.resolve, which refuses links that lead in a circle.
    inside, place = Path(os.path.realpath(path)), Path(os.path.realpath(project.videos))
    if place in inside.parents:
        return inside.relative_to(place).as_posix()
    return path.name or str(inside)


def _examined(name: str, path: Path, memo: DigestMemo, wait: Wait) -> Recording:
    if UNWRITABLE.search(name):
        raise UnreadableVideoError("the name holds a control character or is not UTF-8; rename it")
    if path.is_dir():
        raise UnreadableVideoError("it is a folder; name the recordings in it")
    if not path.is_file():
        nothing = "it is a link that leads to no file" if path.is_symlink() else "there is no such file"
        raise UnreadableVideoError("it is not a plain file" if path.exists() else nothing)
    return Recording(name, path, *examine(path, memo, wait))


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) and error.strerror else str(error)
