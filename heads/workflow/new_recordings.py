"""Recordings that a bundle shall predict, wherever they lie: which can serve, and their missing features."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from featurecache import FeatureCache
from featurecache.clips.clip import clip_id
from featurecache.csv_fields import UNWRITABLE
from featurecache.errors import FeatureCacheError, UnreadableVideoError
from featurecache.extraction.boxes import RecordingBoxes, why_whole
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.extraction.plan import plan_recordings
from featurecache.project.settings import Project
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import Recording, UnusableRecording, Wait, examine
from heads.bundle import Bundle

Extract = Callable[[Bundle, Sequence[Recording], Mapping[str, list[tuple[int, int]]]], Extraction]
"""`extract_missing` of a project: a bundle, recordings, and by their content the windows of their clips."""


def examined_recordings(
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
            earlier = contents.get(recording.sha256) or stems.get(stem_of(name))
            if earlier is not None:
                reason = f"{earlier} has the same content, or would have files of the same name; choose another --out"
                failed.append(UnusableRecording(name, reason))
                continue
            if recording.info.duration_us < length_us:
                lasts = f"{recording.info.duration_us / 1e6:g} s of {length_us / 1e6:g} s"
                failed.append(UnusableRecording(name, f"shorter than one clip ({lasts})"))
                continue
            contents[recording.sha256] = stems[stem_of(name)] = name
            usable.append(recording)
        except (FeatureCacheError, OSError) as error:
            failed.append(UnusableRecording(name, reason_of(error)))
    memo.save()
    return usable, failed


def with_their_boxes(
    project: Project, recordings: Sequence[Recording]
) -> tuple[list[Recording], list[UnusableRecording]]:
    """The recordings whose frames are cut as those that a bundle has seen, and the others with their reasons.

    Args:
        project: The bundle's (`Bundle.project_of`).
        recordings: The recordings.
    """
    boxes = RecordingBoxes(project)
    why = {one.name: why_whole(boxes.crop, one) or boxes.why_other(one) for one in recordings}
    return (
        [one for one in recordings if not why[one.name]],
        [UnusableRecording(name, reason) for name, reason in why.items() if reason],
    )


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


def reason_of(error: Exception) -> str:
    """What an error says, without the path that a system's error begins with."""
    return (error.strerror or str(error)) if isinstance(error, OSError) and error.strerror else str(error)


def stem_of(name: str) -> str:
    """A recording's name without its suffix, from which its files have theirs."""
    return PurePosixPath(name).with_suffix("").as_posix()


def extract_missing(
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
        select=list(head.selected),
        adapter=head.opened_adapter,
        asked=head.asked,
        allow_download=allow_download,
    )
    head.check_spaces(plan.spaces)
    return run_asked(own, plan, on_progress=on_progress)


def missing_clips(
    cache: FeatureCache | None, bundle: Bundle, clips: Sequence[tuple[str, int, int]], extraction: Extraction
) -> dict[str, str]:
    """Clips (sha256, start_us, end_us) of which the cache lacks what a bundle reads: ids, in their order, and why."""
    reasons = {failure.clip_id: failure.reason for failure in extraction.failures}
    missing = set(clips)
    if cache is not None:
        missing = {clip for space in bundle.spaces for clip in cache.missing(clips, space.fingerprint)}
    ids = [clip_id(*clip) for clip in clips if clip in missing]
    return {name: reasons.get(name, "another process is extracting it; run predict again") for name in ids}
