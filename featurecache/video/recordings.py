"""Recordings: the video files below a folder, each with its content's digest and what `probe` says.

Digests and what was probed are remembered in a `DigestMemo`, so a second run opens nothing.

Hidden files are skipped (macOS leaves `._name.mp4` beside every video on foreign disks). Links out of
the folder, links to folders, second copies of the same content, and files that cannot be read or probed
are listed with the reason, and the rest goes on.
"""

import dataclasses
import logging
import os
import stat
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from featurecache.csv_fields import UNWRITABLE
from featurecache.errors import FeatureCacheError, NoRecordingsError, UnreadableVideoError, UnsafeFileError
from featurecache.spelling import counted, visible
from featurecache.video.digests import DigestMemo
from featurecache.video.probing import PROBE_VERSION, VideoInfo, probe

_FIRST_WORD_S, _WORD_EVERY_S = 2.0, 5.0
_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".dv", ".flv", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
_TWIN_ADVICE = "delete one of them (they are one recording, of one session), or copy the right file here"


@dataclass(frozen=True)
class Recording:
    """One usable video file.

    Attributes:
        name: Path relative to the folder of videos, with "/".
        path: Where it lies.
        sha256: Digest of its content, 64 hex digits.
        info: What its streams say.
    """

    name: str
    path: Path
    sha256: str
    info: VideoInfo


@dataclass(frozen=True)
class UnusableRecording:
    """One file that gives no clips, and why."""

    name: str
    reason: str

    @classmethod
    def because(cls, name: str, error: FeatureCacheError) -> "UnusableRecording":
        """Of an error that may begin with the file's name, which the reason does not repeat."""
        return cls(name, str(error).removeprefix(name).removeprefix(":").removeprefix(",").lstrip())


def find_recordings(
    folder: Path, memo_path: Path | None = None
) -> tuple[tuple[Recording, ...], tuple[UnusableRecording, ...]]:
    """Finds, digests and probes the video files below a folder.

    Args:
        folder: The folder of videos. Files are chosen by suffix, upper or lower case.
        memo_path: Where digests are remembered (JSON, 0600); None to remember nothing.

    Returns:
        The usable recordings and the unusable ones, both sorted by name. Of several files with the same content
        the first by name is used.

    Raises:
        NoRecordingsError: If the folder is missing, unreadable, or holds no video file.
    """
    root = _checked(folder)
    memo = DigestMemo(memo_path)
    paths, unusable = _walk(root)
    videos = sorted(
        (path.relative_to(root).as_posix(), path) for path in paths if path.suffix.lower() in VIDEO_SUFFIXES
    )
    if not videos and not unusable:
        raise NoRecordingsError(
            f"the folder of videos must hold recordings, but {folder} has none among {counted(len(paths), 'file')} "
            f"(known: {', '.join(sorted(VIDEO_SUFFIXES))}). Set videos under [data] to the right folder."
        )
    recordings: list[Recording] = []
    first_with: dict[str, str] = {}
    wait = Wait()
    if not all(memo.knows(path) for _, path in videos):
        _log.debug("reading %s ...", counted(len(videos), "recording"), extra={"is_wait": True})
    try:
        for number, (name, path) in enumerate(videos, 1):
            wait.recording = f"recording {number} of {len(videos)}"
            try:
                _refuse(name, path, root)
                sha256, info = examine(path, memo, wait)
            except FeatureCacheError as error:
                unusable.append(UnusableRecording.because(visible(name), error))
            except OSError as error:
                unusable.append(UnusableRecording(visible(name), error.strerror or str(error)))
            else:
                twin = first_with.setdefault(sha256, name)
                if twin == name:
                    recordings.append(Recording(name, path, sha256, info))
                else:
                    unusable.append(UnusableRecording(name, f"same content as {twin}; {_TWIN_ADVICE}"))
        for recording in recordings.copy():  # one that is still being written may have rested while it was read
            try:
                memo.refuse_change(recording.path)
            except OSError as error:
                recordings.remove(recording)
                unusable.append(UnusableRecording(recording.name, error.strerror or str(error)))
    finally:
        memo.save()
    return tuple(recordings), tuple(sorted(unusable, key=lambda item: item.name))


def video_paths(folder: Path) -> dict[str, Path]:
    """Name of every video file below a folder -> its path, usable or not; nothing is opened. Empty without a folder."""
    files, _ = _walk(folder)
    return {
        path.relative_to(folder).as_posix(): path for path in sorted(files) if path.suffix.lower() in VIDEO_SUFFIXES
    }


def _checked(folder: Path) -> Path:
    try:
        root = Path(os.path.realpath(folder, strict=True))
        os.scandir(root).close()
    except OSError as error:
        raise NoRecordingsError(
            f"the folder of videos must be readable, but {folder} is not ({error.strerror}). "
            "Set videos under [data] to the right folder, or check its rights."
        ) from error
    return root


def _walk(root: Path) -> tuple[list[Path], list[UnusableRecording]]:
    """All files that are not hidden, and the folders that could not be entered."""
    refused: list[UnusableRecording] = []

    def refuse(path: str | Path, reason: str) -> None:
        refused.append(UnusableRecording(visible(Path(path).relative_to(root).as_posix()), reason))

    files: list[Path] = []
    for folder, inner, names in os.walk(
        root, onerror=lambda error: refuse(error.filename, error.strerror or str(error))
    ):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in inner:
            if Path(folder, name).is_symlink():
                refuse(Path(folder, name), "a link to a folder, which is not followed")
        files.extend(Path(folder, name) for name in names if not name.startswith("."))
    return files, refused


class Wait:
    """Says in the log how far the reading of recordings has come, from two seconds on.

    Attributes:
        recording: Which one is read, in words.
    """

    def __init__(self) -> None:
        self.recording = "recording"
        self._due = time.monotonic() + _FIRST_WORD_S

    def tell(self, what: str, done_bytes: int, size_bytes: int) -> None:
        """Log what is done and how far, if it is time for a line."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _WORD_EVERY_S
            _log.info("%s: %s, %.1f of %.1f GB", self.recording, what, done_bytes / 1e9, size_bytes / 1e9)


def examine(path: Path, memo: DigestMemo, wait: Wait) -> tuple[str, VideoInfo]:
    """Digest and streams of one file, from the memo where it is trusted.

    Args:
        path: The file.
        memo: What is remembered of it.
        wait: Told how far this has come.

    Raises:
        FeatureCacheError: If the file is unusable; the message is the reason.
        OSError: If it cannot be read, or changes meanwhile.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError("not a plain file")
    size = status.st_size
    if size == 0:
        raise UnreadableVideoError("the file is empty")
    sha256 = memo.sha256(path, lambda done: wait.tell("reading its content", done, size))
    known = memo.recall(path, _probed_by())
    if known is not None:
        return sha256, VideoInfo(**{**known, "warnings": tuple(known["warnings"])})
    info = probe(path, on_progress=lambda done: wait.tell("reading its packets", done, size))
    memo.remember(path, _probed_by(), dataclasses.asdict(info))
    return sha256, info


def _refuse(name: str, path: Path, root: Path) -> None:
    """Raise where a file is none of the folder's, or has a name that no table can hold."""
    if UNWRITABLE.search(name):
        raise UnreadableVideoError("the name holds a control character or is not UTF-8; rename it")
    if not Path(os.path.realpath(path, strict=True)).is_relative_to(root):
        raise UnsafeFileError("a link that leaves the folder of videos; copy the file, or set videos to its folder")


@lru_cache(maxsize=1)
def _probed_by() -> str:
    """What probes here; looking up a version takes longer than all else that a remembered recording needs."""
    return f"probe {PROBE_VERSION} of featurecache {version('featurecache')}, av {version('av')}"
