"""Training again while the page answers: one at a time, in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from featurecache.errors import FeatureCacheError
from heads.review.recordings import Reviewable

_log = logging.getLogger(__name__)

Retrain = Callable[[], tuple[Sequence[Reviewable], Mapping[str, Any]]]
"""Trains again on what was reviewed; gives the recordings as the new head sees them, and what it reached."""


class Background:
    """Retraining in the background.

    Args:
        retrain: What trains.
        on_done: Called with the recordings as the new head sees them.
    """

    def __init__(self, retrain: Retrain, on_done: Callable[[Sequence[Reviewable]], None]) -> None:
        self._retrain, self._on_done = retrain, on_done
        self._guard = threading.Lock()
        self._state: dict[str, Any] = {"state": "idle"}

    @property
    def state(self) -> dict[str, Any]:
        """`{"state": "idle", "running", "done" or "failed"}`, with `result` or `error`."""
        return self._state

    def start(self) -> dict[str, Any]:
        """Starts, unless it is running."""
        with self._guard:
            if self._state["state"] != "running":
                self._state = {"state": "running"}
                threading.Thread(target=self._run, daemon=True).start()
        return self._state

    def _run(self) -> None:
        try:
            recordings, result = self._retrain()
            self._on_done(recordings)
            self._state = {"state": "done", "result": dict(result)}
        except (FeatureCacheError, OSError) as error:
            self._state = {"state": "failed", "error": str(error)}
        except Exception:
            _log.exception("training again failed")
            self._state = {"state": "failed", "error": "it failed; the terminal says why"}
