"""Splits that stay: a session once assigned keeps its split, whatever is annotated, edited, added or renamed since.

A recording is known by its content, so a renamed one keeps its session's split; a session whose recordings are all new
(they were encoded again, or replaced) is known by its name. The record of the tables that were written counts, also for
recordings that are away; the table on disk where there is no record. Splits that a person wrote into the table count
for as long as the table stays; the settings can fix them. Where sessions of several splits were joined, the split that
learns most wins: what was trained on is never tested.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.clips.record import TableRecord, session_key
from featurecache.clips.splits import SPLITS
from featurecache.errors import ClipTableError
from featurecache.video.recordings import Recording


@dataclass(frozen=True)
class KeptSplits:
    """Where sessions were.

    Attributes:
        by_content: First 16 digits of a recording's sha256 -> its split.
        by_session: Key of a session's name (`record.session_key`) -> its split.
        on_disk: As `by_content`, in the table that is there, edited or not.
    """

    by_content: Mapping[str, str] = field(default_factory=dict)
    by_session: Mapping[str, str] = field(default_factory=dict)
    on_disk: Mapping[str, str] = field(default_factory=dict)

    def of_sessions(self, recordings: Sequence[Recording], sessions: Mapping[str, str]) -> dict[str, str]:
        """The splits that sessions keep.

        Args:
            recordings: The usable recordings.
            sessions: Recording -> session.
        """
        places: dict[str, set[str]] = defaultdict(set)
        for recording in recordings:
            places[sessions[recording.name]].add(self.by_content.get(recording.sha256[:16], ""))
        kept = {}
        for session, found in sorted(places.items()):
            known = (found - {""}) or ({self.by_session.get(session_key(session), "")} - {""})
            if known:
                kept[session] = min(known, key=SPLITS.index)
        return kept

    def moved(self, table: ClipTable) -> list[str]:
        """Sessions of a table of which a recording is in another split in the table that it replaces."""
        return sorted(
            {clip.session for clip in table.clips if self.on_disk.get(clip.content, clip.split) != clip.split}
        )


NO_SPLITS = KeptSplits()
"""Nothing was assigned yet, or everything is to be assigned anew."""


def kept_splits(table_path: Path, record: TableRecord) -> KeptSplits:
    """The splits of the tables that were written, and of the one that is there, if it can be read."""
    try:
        clips = read_table(table_path, allow_clip_level=True).clips
    except (OSError, ClipTableError):
        clips = ()
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for clip in clips:
        if clip.split:
            places[clip.content, session_key(clip.session)].add(clip.split)
    # A recording that clips of several splits share has none to keep.
    table = {key: next(iter(found)) for key, found in places.items() if len(found) == 1}
    on_disk = {content: split for (content, _), split in table.items()}
    by_session = {session: split for (_, session), split in table.items()}
    written = {content: place for content, place in record.splits.items() if place[0] in SPLITS}
    return KeptSplits(
        {**on_disk, **{content: split for content, (split, _) in written.items()}},
        {**by_session, **{session: split for split, session in written.values()}},
        on_disk,
    )
