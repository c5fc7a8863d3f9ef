"""The one record of a clip on its way through an extraction: planned, sampled, computed, then stored or failed.

A record is never changed: each stage passes on a copy with what it found, so that nothing holds the features of a clip
longer than the stage that works on it. Not here: its row in the clip table (`featurecache.clips.clip`), and frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import clip_id
from featurecache.video.recordings import Recording

Frame = tuple[str, int]
"""A frame: sha256 of the recording, timestamp in microseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipRecord:
    """A clip to compute.

    Attributes:
        recording: The recording that it is a window of.
        start_us: Start of the clip on the recording's clock.
        end_us: End of the clip, exclusive.
        wanted: Names of the selected features (`tap/pooling`) to compute.
        timestamps_us: Presentation time of each frame, shape (T,), int64; None until it is decoded.
        features: Its features by name; None until they are computed.
        reason: Why it could not be extracted; empty where nothing failed.
    """

    recording: Recording
    start_us: int
    end_us: int
    wanted: tuple[str, ...] = ()
    timestamps_us: npt.NDArray[np.int64] | None = None
    features: Mapping[str, npt.NDArray[Any]] | None = None
    reason: str = ""

    @property
    def clip_id(self) -> str:
        """The id of the clip, as the clip table has it."""
        return clip_id(self.recording.sha256, self.start_us, self.end_us)

    @property
    def span(self) -> tuple[int, int]:
        """`[start_us, end_us)`."""
        return self.start_us, self.end_us

    @property
    def times_us(self) -> npt.NDArray[np.int64]:
        """The timestamps of a clip that is decoded, shape (T,)."""
        if self.timestamps_us is None:
            raise ValueError(f"clip {self.clip_id} must be decoded first.")
        return self.timestamps_us

    @property
    def frames(self) -> list[Frame]:
        """The T frames of a decoded clip; one that is sampled more than once is listed more than once."""
        return [(self.recording.sha256, time_us) for time_us in self.times_us.tolist()]
