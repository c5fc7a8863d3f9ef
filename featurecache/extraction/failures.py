"""The owner of `failed_clips.csv`: why clips of the table are not in the cache, a row per clip and feature space.

The file explains and never decides: whether a clip is missing, the cache alone says. A row goes when the cache has the
clip in that space, whoever put it there, or when the table has the clip no more; clips of other recordings, as
`predict` is given them, are never written.
"""

import csv
import io
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurecache.clips.clip import ClipColumns
from featurecache.csv_fields import format_seconds, guard_cell, parse_seconds, unguard_cell
from featurecache.errors import ClipTableError
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from featurecache.store import FeatureCache
from featurecache.store.claims import Claims
from featurecache.store.live import live_cache

COLUMNS = ("clip_id", "recording", "start_s", "end_s", "feature_space", "reason")
_TURN_S = 0.05


@dataclass(frozen=True)
class FailedClip:
    """A clip without a feature, and why: as documents and the file name it."""

    clip_id: str
    recording: str
    start_us: int
    end_us: int
    reason: str


@dataclass(frozen=True)
class KnownFailures:
    """What the file says.

    Attributes:
        reasons: (clip id, fingerprint) -> reason.
    """

    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def reason(self, clip_id: str, fingerprint: str) -> str | None:
        """Why a clip is missing from a feature space; None where nobody knows."""
        return self.reasons.get((clip_id, fingerprint))

    def missing(self, cache: FeatureCache, clip_ids: Sequence[str], spaces: Iterable[FeatureSpace]) -> dict[str, str]:
        """Clips that are missing from one of the spaces for a reason that is known, and that reason.

        A clip that is missing without a known reason is not among them: reading it says what to do.
        """
        found: dict[str, str] = {}
        for space in spaces:
            explained = {name: why for name in clip_ids if (why := self.reason(name, space.fingerprint)) is not None}
            stored = stored_clips(cache, space.fingerprint) if explained else frozenset()
            found |= {name: why for name, why in explained.items() if name not in stored}
        return found


def stored_clips(cache: FeatureCache, fingerprint: str) -> frozenset[str]:
    """Ids of the clips that a feature space holds; none where the cache has never seen the space."""
    if fingerprint not in {space.fingerprint for space in cache.spaces}:
        return frozenset()
    return frozenset(cache.clip_ids(space=fingerprint))


def known_failures(project: Project) -> KnownFailures:
    """What is known of clips that could not be extracted; nothing where there was no extraction.

    Raises:
        ClipTableError: If the file is not as it was written.
    """
    return KnownFailures({key: clip.reason for key, clip in read_rows(project.failures).items()})


def record_failures(
    project: Project, spaces: Mapping[str, FeatureSpace], failures: Iterable[FailedClip], *, table: ClipColumns
) -> None:
    """Brings the file up to date after a run: what it could not extract, less what the cache has by now.

    Every process of a run does so when it ends; a claim, which expires, makes them take turns.

    Args:
        project: The project.
        spaces: The feature spaces that the run filled, by name.
        failures: Clips that it could not extract.
        table: All clips of the clip table.
    """
    private_folder(project.state)
    with Claims(project.state) as turn:
        while not turn.take(project.failures.name):
            time.sleep(_TURN_S)
        rows = read_rows(project.failures)
        of_run = [space.fingerprint for space in spaces.values()]
        rows |= {(failure.clip_id, one): failure for failure in failures for one in of_run}
        live, in_table = live_cache(project.cache), table.among({clip_id for clip_id, _ in rows})
        ids = list(in_table)
        stored = {one: frozenset(itertools.compress(ids, live.holds(ids, one))) for one in {one for _, one in rows}}
        kept = {
            (clip_id, one): row
            for (clip_id, one), row in rows.items()
            if clip_id in in_table and clip_id not in stored[one]
        }
        write_private(project.failures, _as_csv(kept))


def read_rows(path: Path) -> dict[tuple[str, str], FailedClip]:
    """The rows of a file, by clip id and fingerprint of the feature space; none where there is no file.

    Raises:
        ClipTableError: If it is not as it was written.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                (row["clip_id"], row["feature_space"]): FailedClip(
                    row["clip_id"],
                    unguard_cell(row["recording"]),
                    parse_seconds(row["start_s"]),
                    parse_seconds(row["end_s"]),
                    unguard_cell(row["reason"]),
                )
                for row in csv.DictReader(file)
            }
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise ClipTableError(
            f"{path.name} must be as featurecache wrote it, but it is not ({error}). "
            "Remove it and run featurecache extract again."
        ) from error


def _as_csv(rows: Mapping[tuple[str, str], FailedClip]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (clip_id, fingerprint), clip in rows.items():
        times = (format_seconds(clip.start_us), format_seconds(clip.end_us))
        writer.writerow([clip_id, guard_cell(clip.recording), *times, fingerprint, guard_cell(clip.reason)])
    return text.getvalue().encode()
