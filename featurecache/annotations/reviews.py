"""Reviews: what a person decided about a recording's stretches, saved as an ELAN file of the project's own.

A tier for each label holds what is on; an annotation's value says how it came to be, by whom and when, such as
`corrected by anna at 2026-11-30T17:05:12+00:00`. Tiers `ventilation (rejected)` hold rejected predictions, and the tier
`reviewed stretches` the time in which everything that is on was marked: only there does a review say anything.

A recording has up to two reviews. `S1.mp4.reviewed.eaf` was made with the predictions in sight, so it is no independent
truth: who sees a proposal tends to accept it. `S1.mp4.blind.eaf` was made without them, and is.

A review is replaced as a whole, and only by who read the version that is there, so that two writers cannot overwrite
each other. What ELAN wrote is read too: there a value that says nothing of the above counts as added by hand. Tiers
that are of no label stay in the file as they are.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args
from xml.etree.ElementTree import SubElement

from filelock import BaseFileLock, FileLock

from featurecache.annotations.document import EafDocument
from featurecache.annotations.eaf import eaf_bytes, read_eaf
from featurecache.annotations.eaf_writer import add_tier, new_document
from featurecache.annotations.interval import Interval
from featurecache.annotations.linking import link_media
from featurecache.annotations.timing import Annotation, resolve_times
from featurecache.errors import AnnotationError, ReviewConflictError
from featurecache.files import private_folder, write_private

How = Literal["annotated", "accepted", "corrected", "added", "rejected", "reviewed"]
"""What a mark says: on as the annotators had it, as predicted, with a border moved, added by hand; or that a prediction
was rejected; or that a stretch was reviewed, whose label is empty."""

FOLDER = "reviewed"
"""The folder of reviews, in the project's."""
STRETCHES = "reviewed stretches"
_REJECTED = " (rejected)"
_HOW: dict[str, How] = {how: how for how in get_args(How)}
_VALUE = re.compile(rf"({'|'.join(_HOW)})(?: by (.*) at (\S+))?", re.DOTALL)
_CONTENT = "featurecache recording"
_TEMPORARY = re.compile(r"\..+\.(?:reviewed|blind)\.eaf\.[0-9a-f]{12}\.tmp", re.DOTALL)


@dataclass(frozen=True, order=True)
class Mark:
    """`[start_us, end_us)` of a recording, whole milliseconds, with what a person said of it.

    Attributes:
        start_us: Start on the recording's clock.
        end_us: End, exclusive.
        label: The label; empty for a reviewed stretch.
        how: What the mark says.
        by: Who made it.
        at: When, as ISO 8601.
    """

    start_us: int
    end_us: int
    label: str
    how: How
    by: str = ""
    at: str = ""


@dataclass(frozen=True)
class Review:
    """What was decided about a recording.

    Attributes:
        marks: In order of time.
        version: Of the file that holds them; empty where there is none.
    """

    marks: tuple[Mark, ...] = ()
    version: str = ""

    @property
    def intervals(self) -> list[Interval]:
        """What is on."""
        return [
            Interval(one.start_us, one.end_us, one.label)
            for one in self.marks
            if one.how not in ("rejected", "reviewed")
        ]

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """The reviewed stretches, `[start_us, end_us)`."""
        return [(one.start_us, one.end_us) for one in self.marks if one.how == "reviewed"]

    def of(self, labels: Collection[str]) -> "Review":
        """The review without what is of other tiers; all that lies on a tier of rejected predictions is rejected."""
        plain = {f"{label}{_REJECTED}": label for label in labels}
        marks = [
            replace(one, label=plain[one.label], how="rejected") if one.label in plain else one for one in self.marks
        ]
        return Review(tuple(one for one in marks if one.how == "reviewed" or one.label in labels), self.version)


def review_path(folder: Path, recording: str, *, blind: bool) -> Path:
    """Where the review of a recording of that name belongs; `find_reviews` knows where it is.

    Args:
        folder: The project's folder of reviews.
        recording: Its name, relative to the folder of videos.
        blind: Whether it was made without sight of predictions.
    """
    return folder / f"{recording}.{'blind' if blind else 'reviewed'}.eaf"


def review_files(folder: Path, *, blind: bool) -> dict[Path, str]:
    """The files of reviews below a folder, each with the name that its recording had when it was reviewed.

    Args:
        folder: The project's folder of reviews; it need not exist.
        blind: Whether those made without sight of predictions are meant.
    """
    suffix = review_path(folder, "", blind=blind).name
    paths = [path for path in folder.rglob(f"*{suffix}") if path.name != suffix]
    return {path: path.relative_to(folder).as_posix().removesuffix(suffix) for path in sorted(paths)}


def find_reviews(folder: Path, recordings: Mapping[str, str], *, blind: bool) -> dict[str, Path]:
    """Where the reviews of recordings are, whatever these were called when they were reviewed.

    A review is known by its recording's content; one that does not say it, or is damaged, by its name. Where there is
    none, this is the file that a new one belongs into: never one of another recording that had the name before.

    Args:
        folder: The project's folder of reviews; it need not exist.
        recordings: First 16 hex digits of a recording's sha256 -> its name, relative to the folder of videos.
        blind: As `review_path`.

    Returns:
        Such digits -> the file.
    """
    content_of: dict[Path, str] = {}
    for path in review_files(folder, blind=blind):
        try:
            content_of[path] = reviewed_content(path)
        except AnnotationError:
            content_of[path] = ""
    by_content = {content: path for path, content in reversed(content_of.items())}
    found = {}
    for content, name in recordings.items():
        own = review_path(folder, name, blind=blind)
        if content_of.get(own, "") not in ("", content):  # another recording had this name
            own = by_content.get(content) or review_path(folder, f"{name}.{content}", blind=blind)
        found[content] = own if own in content_of else by_content.get(content, own)
    return found


def reviewed_content(path: Path) -> str:
    """First 16 hex digits of the sha256 of the recording that a review was made of; empty where it does not say.

    Raises:
        AnnotationError: If the file is no sound ELAN file.
    """
    state = path.stat() if path.exists() else path.lstat()  # of a link that leads nowhere, which the reader refuses
    return _content_of_version(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)  # a page asks for many reviews again and again
def _content_of_version(path: Path, mtime_ns: int, size_bytes: int) -> str:  # noqa: ARG001 - they tell versions apart
    named = read_eaf(path).root.find(f"HEADER/PROPERTY[@NAME='{_CONTENT}']")
    return "" if named is None else (named.text or "").strip()


def is_review(document: EafDocument) -> bool:
    """Whether a document is a review, whatever it is called and wherever it lies."""
    return document.root.find(f"HEADER/PROPERTY[@NAME='{_CONTENT}']") is not None


def read_review(path: Path, *, content: str) -> Review:
    """A recording's review; an empty one where there is no file.

    Args:
        path: The file.
        content: First 16 hex digits of the recording's sha256.

    Raises:
        AnnotationError: If the file is no sound ELAN file, or of another recording's content.
    """
    if not os.path.lexists(path):
        return Review()
    document = read_eaf(path)
    named = document.root.find(f"HEADER/PROPERTY[@NAME='{_CONTENT}']")
    if named is not None and (named.text or "").strip() != content:
        raise document.error(
            "a review must be of the recording that is there, but this one was made of another video of the same name. "
            "Move it away, or put that video back."
        )
    return Review(tuple(sorted(map(_mark, resolve_times(document)))), _version(path))


def save_review(
    path: Path,
    marks: Iterable[Mark],
    *,
    labels: Sequence[str],
    recording: Path,
    content: str,
    author: str,
    version: str,
) -> Review:
    """Replaces a review, whole or not at all, if it still is the version that the marks were made from.

    Args:
        path: The file; missing folders are made.
        marks: All marks, whole milliseconds; those of one label must not overlap, nor reviewed stretches.
        labels: The labels; each has a tier. Tiers of anything else that the file has are kept.
        recording: The video.
        content: First 16 hex digits of its sha256.
        author: Who saves.
        version: The version that the marks were made from.

    Raises:
        ReviewConflictError: If another writer has replaced it since.
        AnnotationError: If marks overlap, or the old review is no sound ELAN file.
        OSError: If it cannot be written; the old review is then still there.
    """
    _check_version(path, version)  # before the folder is made
    document = read_eaf(path) if version else new_document(path.name, media_name=recording.name)
    tiers = {
        tier: [Interval(one.start_us, one.end_us, _value(one)) for one in own]
        for tier, own in _by_tier(marks, labels).items()
    }
    tiers |= _cleared(document, {STRETCHES, *tiers, *(f"{label}{_REJECTED}" for label in labels)})
    document.root.set("AUTHOR", author)
    document.root.set("DATE", datetime.now(UTC).isoformat(timespec="seconds"))
    link_media(document, recording, path.parent, time_origin_ms=0, source=path)
    header = document.root.find("HEADER")
    if header is not None and not is_review(document):
        SubElement(header, "PROPERTY", NAME=_CONTENT).text = content
    for tier, intervals in tiers.items():
        add_tier(document, tier, intervals, time_origin_ms=0)
    data = eaf_bytes(document)
    private_folder(path.parent)
    with _writing(path.parent):
        _check_version(path, version)
        write_private(path, data)
    return read_review(path, content=content)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers left that were killed during a save; one that is writing now is waited for.

    Args:
        folder: The project's folder of reviews, which may be missing.

    Raises:
        OSError: If a file cannot be removed.
    """
    for place in {path.parent for path in folder.rglob(".*.tmp") if _TEMPORARY.fullmatch(path.name)}:
        with _writing(place):  # so whatever is there now has no writer
            for path in place.iterdir():
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _writing(folder: Path) -> BaseFileLock:
    """What a writer of reviews in a folder holds."""
    return FileLock(folder / ".lock", mode=0o600)


def _cleared(document: EafDocument, own: set[str]) -> dict[str, list[Interval]]:
    """Removes a review's own tiers from a document, and tiers that depend on them, whose times and values are returned.

    These cannot stay as they are: their annotations refer to ones that are replaced.
    """
    tiers, gone = document.tiers, set(own)
    for _ in tiers:  # a child may stand before its parent
        gone |= {name for name, tier in tiers.items() if tier.parent in gone}
    dependent: dict[str, list[Interval]] = {name: [] for name in tiers if name in gone - own}
    for one in resolve_times(document):
        if one.tier in dependent:
            end_us = max(one.end_us, one.start_us + 1000)
            dependent[one.tier].append(Interval(one.start_us, end_us, one.value))
    for name in gone & tiers.keys():
        document.root.remove(tiers[name].element)
    order = document.root.find("TIME_ORDER")
    if order is not None:
        slots = ("TIME_SLOT_REF1", "TIME_SLOT_REF2")
        used = {one.get(slot) for one in document.root.iter("ALIGNABLE_ANNOTATION") for slot in slots}
        order[:] = [slot for slot in order if slot.get("TIME_SLOT_ID") in used]
    return dependent


def _by_tier(marks: Iterable[Mark], labels: Sequence[str]) -> dict[str, list[Mark]]:
    tiers: dict[str, list[Mark]] = {label: [] for label in labels}
    for one in sorted(marks):
        suffix = _REJECTED if one.how == "rejected" else ""
        tiers.setdefault(STRETCHES if one.how == "reviewed" else f"{one.label}{suffix}", []).append(one)
    return tiers


def _value(one: Mark) -> str:
    return f"{one.how} by {one.by} at {one.at}"


def _mark(annotation: Annotation) -> Mark:
    found = _VALUE.fullmatch(annotation.value)
    said, by, at = found.groups(default="") if found else ("", "", "")
    label, how = annotation.tier, _HOW.get(said, "added")
    if label == STRETCHES:
        label, how = "", "reviewed"
    elif label.endswith(_REJECTED) and (how == "rejected" or not said):
        label, how = label.removesuffix(_REJECTED), "rejected"
    elif how in ("rejected", "reviewed"):
        how = "added"
    return Mark(annotation.start_us, annotation.end_us, label, how, by, at)


def _check_version(path: Path, version: str) -> None:
    if _version(path) != version:
        raise ReviewConflictError(
            f"a review must be saved over the version that it was made from, but {path.name} was changed since, "
            "in another window or in ELAN. Load it again."
        )


def _version(path: Path) -> str:
    """Of the file's content; empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return ""
