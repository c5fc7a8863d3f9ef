"""Which clips of a recording this process computes: those whose lease it holds and that are still missing.

Leases are acquired in one order everywhere, and a recording whose first lease another process holds is deferred whole:
processes that select the same features never divide a recording's features among them. Nothing waits for a lease, so
there is no deadlock; what others hold is left to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from featurecache.extraction.clip import ClipRecord
from featurecache.store import CacheWriter
from featurecache.store.clip_columns import Wanted


def acquire(
    clips: Sequence[ClipRecord], writers: Mapping[str, CacheWriter], *, is_last_try: bool
) -> list[ClipRecord] | None:
    """The clips of a recording that this process has to compute, each with the features it is still missing.

    Args:
        clips: Clips of one recording, as they were planned.
        writers: An open writer of each feature space, by the name of the selected feature.
        is_last_try: Whether the recording was deferred before: every free lease is acquired then.

    Returns:
        The clips; None while another process is computing the recording.

    Raises:
        CacheWriteError: If the cache cannot be written.
    """
    sha256 = clips[0].recording.sha256
    held: list[str] = []
    for name in sorted(
        {name for clip in clips for name in clip.wanted}, key=lambda name: writers[name].space.fingerprint
    ):
        if writers[name].claim(sha256):
            held.append(name)
        elif not held and not is_last_try:
            return None
    if not held:
        return None
    wanted = Wanted.of([sha256], 0, [clip.span for clip in clips])
    is_missing = {name: writers[name].lacks(wanted) for name in held}  # (N,) each
    found = []
    for number, clip in enumerate(clips):
        missing = tuple(name for name in clip.wanted if name in is_missing and is_missing[name][number])
        if missing:
            found.append(replace(clip, wanted=missing))
    return found
