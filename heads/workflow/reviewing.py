"""Review of predictions in the browser: what `featurecache review` calls.

A bundle scores every recording of the clip table whose features the cache has; nothing is extracted. Recordings from
elsewhere come with the timelines that `predict` wrote. The server runs until it is interrupted.
"""

import getpass
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from featurecache import FeatureCache
from featurecache.annotations import read_eaf
from featurecache.annotations.reviews import FOLDER, find_reviews
from featurecache.clips.clip import Clip, clip_id
from featurecache.clips.drift import check_table
from featurecache.clips.matching import find_annotations
from featurecache.errors import AnnotationError, FeatureCacheError, TrainingDataError, UnreadableVideoError, UsageError
from featurecache.files import longest_name, private_folder
from featurecache.project.settings import Project
from featurecache.spelling import counted, plain_name
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import Recording, UnusableRecording, Wait, examine, find_recordings
from heads.bundle import Bundle, load_bundle
from heads.clip_rule import ClipRule
from heads.report.documents import Document, read_json
from heads.review.recordings import Reviewable
from heads.timelines.files import timeline_document
from heads.timelines.tuning import load_timeline
from heads.workflow.data import exclusive_labels, own_table, refuse_samples, tuned_bundle
from heads.workflow.predicting import annotation_of, scored_windows
from heads.workflow.suggesting import TABLE, newest_suggestions
from heads.workflow.timelines import clip_scores, predicted_timeline

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reviewing:
    """A review that came to its end.

    Attributes:
        folder: Where reviews are.
        recordings: Number of recordings that could be reviewed.
        reviewed: Number of those that have a review now.
        left_out: Recordings that could not be reviewed, and why.
    """

    folder: Path
    recordings: int
    reviewed: int
    left_out: tuple[UnusableRecording, ...]

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache review --json`."""
        return asdict(self)


@dataclass(frozen=True)
class OpenReview:
    """A page that waits for a browser.

    Attributes:
        address: Of the page, on this machine alone, with the token of this run.
        recordings: Number of recordings on it.
        left_out: Recordings that are not, and why.
    """

    address: str
    recordings: int
    left_out: tuple[UnusableRecording, ...]


def review(
    project: Project,
    bundle: Path | None = None,
    *,
    reviewer: str | None = None,
    port: int = 0,
    on_open: Callable[[OpenReview], None] = lambda _: None,
) -> Reviewing:
    """Serves the page on which predictions are corrected, until the process is interrupted.

    Args:
        project: The project; decisions go into its folder `reviewed/`.
        bundle: The bundle's folder; None: the one of `tune`.
        reviewer: Who decides, as the files say it; None: the name of this user.
        port: Of the loopback interface; 0 for a free one.
        on_open: Called once the page can be opened.

    Raises:
        UsageError: If Bottle is not installed, the reviewer's name cannot be shown, or a review of the project is open
            already.
        BundleError: If the bundle is damaged, or of other labels than the clip table.
        TrainingDataError: If there is no recording whose features the cache has.
        OSError: If the port is taken.
    """
    try:
        from heads.review.server import ReviewServer
    except ImportError as error:
        raise UsageError(
            "the page is served by Bottle, but it is not installed. Run: pip install 'featurecache[review]'."
        ) from error
    name = _checked_name(reviewer or getpass.getuser())
    folder = bundle if bundle is not None else tuned_bundle(project)
    check_table(project, use="windows")
    head = load_bundle(folder)
    refuse_samples(head, folder)
    found, left_out = _reviewable(project, folder, head)
    if not found:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in left_out[:3])
        raise TrainingDataError(
            f"a review needs a recording with features in the cache, but none has them ({reasons or 'none is there'}). "
            "Run: featurecache extract."
        )
    lock = FileLock(private_folder(project.state) / "review.lock", timeout=0, mode=0o600)
    try:
        with lock:
            server = ReviewServer(
                found,
                report=project.runs / "report.html",
                retrain=lambda: _retrained(project, folder),
                folder=project.root / FOLDER,
                copies=project.state / "review",
                reviewer=name,
                port=port,
            )
            try:
                on_open(OpenReview(server.address, len(found), tuple(left_out)))
                server.serve()
            except KeyboardInterrupt:
                pass  # the way to end it
            finally:
                server.close()
    except Timeout as error:
        raise UsageError(
            "a project must be reviewed on one page at a time, but another `featurecache review` is running. "
            "Open its address, or end it."
        ) from error
    reviewed = {
        content
        for blind in (False, True)
        for content, path in _places(project, found, blind=blind).items()
        if path.exists()
    }
    return Reviewing(project.root / FOLDER, len(found), len(reviewed), tuple(left_out))


def _checked_name(reviewer: str) -> str:
    name = plain_name(reviewer)
    if not name or not name.isprintable():
        raise UsageError(
            f"a reviewer's name must be of characters that can be seen, but it is {name[:40]!a}. "
            "Name yourself with --reviewer."
        )
    return name


def _places(project: Project, recordings: Sequence[Reviewable], *, blind: bool) -> dict[str, Path]:
    """Where the reviews of recordings are, or belong."""
    return find_reviews(project.root / FOLDER, {one.content: one.name for one in recordings}, blind=blind)


def _retrained(project: Project, folder: Path) -> tuple[list[Reviewable], Mapping[str, Any]]:
    """The recordings as a head sees them that was fitted again, and what it reached."""
    from heads.workflow.retraining import retrain

    made = retrain(project, folder)
    held_out = dict(zip(made.held_out.clip_ids or (), made.held_out.scores.astype(np.float32), strict=False))
    found, _ = _reviewable(project, made.bundle, load_bundle(made.bundle), held_out)
    return found, made.result


def _reviewable(
    project: Project, folder: Path, bundle: Bundle, held_out: Mapping[str, Scores] | None = None
) -> tuple[list[Reviewable], list[UnusableRecording]]:
    """The recordings of the clip table, then those that `predict` found elsewhere; and what is left out.

    Clips with out-of-fold scores (`held_out`: id -> scores, shape (C,)) are shown by these: by heads that never saw
    their session.
    """
    table, tuned = own_table(project, bundle), load_timeline(folder)
    rule, exclusive = bundle.clips or ClipRule.of(project), exclusive_labels(project, bundle)
    recordings, unusable = find_recordings(project.videos, project.digest_memo)
    annotations = find_annotations(project, [one.name for one in recordings])
    cache = FeatureCache.open(project.cache)
    clips: dict[str, list[Clip]] = {}
    for clip in table.clips:
        clips.setdefault(clip.content, []).append(clip)
    found, left_out = [], list(unusable)
    for one in recordings:
        content, own = one.sha256[:16], clips.get(one.sha256[:16])
        if own is None:
            left_out.append(UnusableRecording(one.name, "it is not in clips.csv; run: featurecache clips"))
            continue
        scored, scores = _scored(bundle, cache, one, own, rule.length_us, held_out or {})
        if not scored:
            left_out.append(UnusableRecording(one.name, "the cache has none of its features"))
            continue
        timeline = predicted_timeline(
            bundle,
            tuned,
            exclusive,
            recording=(one.name, content, one.info.duration_us),
            clips=(np.array(scored, np.int64), scores),
            windows=(rule.length_us, rule.stride_us),
            annotation=annotation_of(project, one, annotations),
        )
        document = timeline_document(timeline)
        split = own[0].split
        found.append(Reviewable(content, one.name, one.path, own[0].session, split, one.info.average_fps, document))
    try:
        suggested = newest_suggestions(project)
    except AnnotationError as error:
        left_out.append(UnusableRecording(TABLE, str(error)))
    else:
        found = [replace(one, suggested=suggested.get(one.name, ())) for one in found]
    elsewhere = _predicted_elsewhere(project, {one.sha256[:16] for one in recordings}, bundle, left_out)
    return _with_room(project, [*found, *elsewhere], left_out), left_out


def _with_room(
    project: Project, recordings: Sequence[Reviewable], left_out: list[UnusableRecording]
) -> list[Reviewable]:
    """Those whose names leave room for the name of a review."""
    most, places = longest_name(project.root), _places(project, recordings, blind=False)
    found = []
    for one in recordings:
        excess = len(os.fsencode(places[one.content].name)) - most
        if excess > 0:
            reason = f"its name is {counted(excess, 'byte')} too long for the file of a review; rename it"
            left_out.append(UnusableRecording(one.name, reason))
        else:
            found.append(one)
    return found


def _scored(
    bundle: Bundle,
    cache: FeatureCache,
    recording: Recording,
    clips: Sequence[Clip],
    length_us: int,
    held_out: Mapping[str, Scores],
) -> tuple[list[tuple[int, int]], Scores]:
    """Clips of a recording and their scores (N, C): out of fold where there are such, else all that the cache has."""
    known = [clip for clip in clips if clip.clip_id in held_out and not np.isnan(held_out[clip.clip_id]).any()]
    if known:
        return [(clip.start_us, clip.end_us) for clip in known], np.stack([held_out[clip.clip_id] for clip in known])
    windows = scored_windows(recording.info.duration_us, length_us, max(1, length_us // 2))
    spans = sorted({*windows, *((clip.start_us, clip.end_us) for clip in clips)})
    asked = [(recording.sha256, *span) for span in spans]
    missing = {clip for space in bundle.spaces for clip in cache.missing(asked, space.fingerprint)}
    had = [span for span in spans if (recording.sha256, *span) not in missing]
    return had, clip_scores(bundle, cache, [clip_id(recording.sha256, *span) for span in had])


def _predicted_elsewhere(
    project: Project, known: set[str], bundle: Bundle, left_out: list[UnusableRecording]
) -> list[Reviewable]:
    """Recordings that only `predict` knows: their timelines as it wrote them, their videos as the `.eaf` names them."""
    problems: list[str] = []
    found, memo, wait = [], DigestMemo(project.digest_memo), Wait()
    for path in sorted(project.predictions.rglob("*.predicted.json")):
        document = read_json(path, problems)
        try:
            if not document or document["recording"]["content"] in known:
                continue
            one = _elsewhere(path, document, bundle, memo, wait)
        except (FeatureCacheError, OSError) as error:
            left_out.append(UnusableRecording(path.name, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            left_out.append(UnusableRecording(path.name, f"it is no timeline ({type(error).__name__}: {error})"))
        else:
            known.add(one.content)
            found.append(one)
    memo.save()
    left_out += [UnusableRecording(*problem.split(": ", 1)) for problem in problems]
    return found


def _elsewhere(path: Path, document: Document, bundle: Bundle, memo: DigestMemo, wait: Wait) -> Reviewable:
    """The recording of a timeline that `predict` wrote.

    Raises:
        UnreadableVideoError: If its video is gone, or it is of another one or of another head's labels.
    """
    name, content = str(document["recording"]["name"]), str(document["recording"]["content"])
    media = read_eaf(path.with_suffix(".eaf")).media
    urls = [one.media_url.removeprefix("file://") for one in media] + [one.relative_media_url or "" for one in media]
    video = next((path.parent / url for url in urls if url and (path.parent / url).is_file()), None)
    if video is None:
        raise UnreadableVideoError("its video is not where it was when it was predicted")
    sha256, info = examine(video, memo, wait)
    if sha256[:16] != content or document["labels"] != list(bundle.labels):
        raise UnreadableVideoError("video or labels have changed since it was predicted; predict it again")
    one = Reviewable(content, name, video, "", "", info.average_fps, document)
    _ = one.disagreement, one.doubt, one.timeline["predicted"], one.timeline["clips"]["length_us"]  # it is whole
    return one
