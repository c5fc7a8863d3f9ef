"""Processes that hold the lease of a recording, for tests that stop or kill one at work."""

import contextlib
import os
import signal
import time

from featurecache.project.settings import Project


def claimer(project: Project) -> int:
    """The first process that acquires the lease of a recording, which it then has not saved."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for claim in project.cache.glob("spaces/*/claims/[0-9a-f]*"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                return int(claim.read_text().split("-")[-2])
        time.sleep(0.001)
    raise AssertionError("no process acquired a lease")


def kill_a_claimer(project: Project) -> int:
    """Kills that process."""
    pid = claimer(project)
    os.kill(pid, signal.SIGKILL)
    return pid
