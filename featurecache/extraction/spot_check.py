"""A few stored clips computed again before a run adds to them.

A fingerprint names what should give the same numbers. Whether it does here and now (this device, these library
versions) is seen by doing it: clips that the cache holds are decoded, run and compared, and a difference beyond
rounding stops the run before it writes rows that do not belong with the stored ones.

Not here: which clips (the plan chooses), and damage on disk, which checksums find.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import ChangedFeaturesError
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.decoders import read_in_time
from featurecache.spec import FeatureSpace
from featurecache.store import FeatureCache, bfloat16
from featurecache.video.sampling import ClipFrames

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone

COMPUTE_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""What other batches, devices and kernels may change in each dtype of the model, relative to the features' size."""

STORED_TOLERANCE = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""What storage may change besides: twice a dtype's rounding."""


def check_stored(
    clips: Sequence[ClipRecord],
    backbone: "Backbone",
    cache: FeatureCache,
    *,
    spaces: Mapping[str, FeatureSpace],
    compute_dtype: str,
) -> int:
    """Computes stored clips again and compares.

    Args:
        clips: The clips, each with the features that the cache has of it.
        backbone: The loaded model.
        cache: The cache.
        spaces: The feature spaces, by the name of the selected feature.
        compute_dtype: The dtype the model computes in.

    Returns:
        How many clips were compared; one that cannot be decoded now is passed over, it may have been moved since.

    Raises:
        ChangedFeaturesError: If one comes out otherwise.
    """
    checked = 0
    frames = backbone.inputs.frames
    for clip in clips:
        fit = backbone.inputs.frame_resize.of(clip.recording.name).smaller
        (found,) = read_in_time(clip.recording, [clip.span], frames, fit)
        if isinstance(found, ClipFrames):
            _check(clip, found, backbone, cache, spaces, compute_dtype)
            checked += 1
    return checked


def _check(
    clip: ClipRecord,
    found: ClipFrames,
    backbone: "Backbone",
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    compute_dtype: str,
) -> None:
    import torch

    from featurecache.backbones.pooling import mean_of_frames, pool

    of_clip = {name: spaces[name] for name in clip.wanted}
    taps = sorted({space.tap for space in of_clip.values()})
    encoded = backbone.encode_frames(backbone.normalize(torch.from_numpy(found.stacked)), taps)
    for tap, states in backbone.states(encoded[None], taps):
        size = _rms(mean_of_frames(states.tokens).cpu().numpy())
        for name, space in ((name, space) for name, space in of_clip.items() if space.tap == tap):
            chosen = (space.tap, space.pooling, space.fingerprint)
            times_us = cache.timestamps_us([clip.clip_id], *chosen)[0]
            if not np.array_equal(times_us, found.timestamps_us):
                raise ChangedFeaturesError(
                    f"stored clips must be made of the frames that are decoded now, but clip {clip.clip_id} was made "
                    f"of frames at {_times(times_us)} us and is now of {_times(found.timestamps_us)} us. "
                    "Use the PyAV version of the earlier extraction (featurecache cache info --json), or a new cache."
                )
            stored = _floats(cache.load([clip.clip_id], *chosen)[0])
            now = pool(states, space.pooling)[0].float().cpu().numpy()
            difference = _rms(now - stored) / max(_rms(stored), size, 1e-30)
            allowed = COMPUTE_TOLERANCE[compute_dtype] + STORED_TOLERANCE[space.stored_dtype]
            if not difference <= allowed:
                raise ChangedFeaturesError(
                    f"stored features must come out again within {allowed:.2g} of their size, but {name} of clip "
                    f"{clip.clip_id} differs by {difference:.2g}. Nothing was written. Go back to the device and the "
                    "versions of the earlier extraction (featurecache cache info --json), or extract into a new cache."
                )


def _floats(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return bfloat16.to_float32(stored) if stored.dtype == bfloat16.STORED else stored.astype(np.float32)


def _rms(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _times(times_us: npt.NDArray[np.int64]) -> str:
    return f"{times_us[0]}, ..., {times_us[-1]}"
