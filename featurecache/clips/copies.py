"""Copies of one recording in several splits: converted, so that their bytes differ, and the model has seen the test.

Recordings of equal length are compared by their looks (`video/looks.py`). What was compared is remembered by content;
no frame is kept.
"""

import logging
import time
from collections.abc import Collection, Sequence

from featurecache.video.looks import Look, are_copies, look_of
from featurecache.video.recordings import Recording

_LENGTH_US, _LENGTH_SHARE = 500_000, 0.002  # that conversion may add or take away
_LIMIT_S, _WORD_EVERY_S = 60.0, 5.0
_log = logging.getLogger(__name__)


def equal_lengths(recordings: Sequence[Recording]) -> list[tuple[Recording, Recording]]:
    """Pairs of recordings of about the same length."""
    ordered = sorted(recordings, key=lambda one: (one.info.duration_us, one.name))
    pairs = []
    for position, one in enumerate(ordered):
        most = one.info.duration_us + max(_LENGTH_US, int(_LENGTH_SHARE * one.info.duration_us))
        for other in ordered[position + 1 :]:
            if other.info.duration_us > most:
                break
            pairs.append((one, other))
    return pairs


def find_copies(
    recordings: Sequence[Recording], compared: Collection[str], copies: Sequence[tuple[str, str]]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Pairs of recordings with the same pictures; looking ends after a minute and goes on when called again.

    Args:
        recordings: The usable recordings.
        compared: First 16 digits of the sha256 of recordings that were compared with each other before.
        copies: Pairs of them that were copies.

    Returns:
        What has been compared now, and all pairs that are copies.
    """
    known, found = set(compared), list(copies)
    looks: dict[str, Look | None] = {}
    until, due = time.monotonic() + _LIMIT_S, time.monotonic() + 2

    def look(recording: Recording) -> Look | None:
        if recording.sha256 not in looks:
            looks[recording.sha256] = look_of(recording.path, recording.info.duration_us)
        return looks[recording.sha256]

    done = {one.sha256[:16] for one in recordings} | known
    pairs = equal_lengths(recordings)
    for number, (one, other) in enumerate(pairs):
        if time.monotonic() >= due:
            due = time.monotonic() + _WORD_EVERY_S
            _log.info("comparing recordings of equal length: %d of %d pairs", number, len(pairs))
        pair = (one.sha256[:16], other.sha256[:16])
        if known.issuperset(pair):
            continue
        if time.monotonic() > until:
            done -= {content for content in pair if content not in known}
            continue
        looked = look(one), look(other)
        if looked[0] is not None and looked[1] is not None and are_copies(looked[0], looked[1]):
            found.append(pair)
    return sorted(done), found
