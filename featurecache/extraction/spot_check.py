"""A few stored clips computed again before a run adds to them.

A fingerprint names what should give the same numbers. Whether it does here and now (this device, these library
versions) is seen by doing it: clips that the cache holds are decoded, run and compared, and a difference beyond
rounding stops the run before it writes rows that do not belong beside the stored ones.

Not here: which clips (the plan chooses), and damage on disk, which checksums find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import clip_id
from featurecache.errors import ChangedFeaturesError
from featurecache.spec import FeatureSpace, Kept
from featurecache.store import FeatureCache, bfloat16
from featurecache.video.recordings import Recording
from featurecache.video.sampling import ClipFrames, read_clips

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone

COMPUTE_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""What other batches, devices and kernels may change in each dtype of the model, relative to the features' size."""

STORED_TOLERANCE = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""What storage may change besides: twice a dtype's rounding."""

_TIME_LIMIT_S = 60.0


@dataclass(frozen=True)
class Canary:
    """A stored clip, and the kept features that the cache holds of it."""

    recording: Recording
    span: tuple[int, int]
    names: tuple[str, ...]


def check_canaries(
    canaries: Sequence[Canary],
    backbone: "Backbone",
    root: Path,
    *,
    kept: Mapping[str, Kept],
    spaces: Mapping[str, FeatureSpace],
    compute_dtype: str,
) -> int:
    """Computes stored clips again and compares.

    Args:
        canaries: The clips.
        backbone: The loaded model.
        root: The cache.
        kept: Tap and pooling, by name.
        spaces: The feature spaces, by name.
        compute_dtype: The dtype the model computes in.

    Returns:
        How many clips were compared; one that cannot be decoded now is passed over, it may have been moved since.

    Raises:
        ChangedFeaturesError: If one comes out otherwise.
    """
    if not canaries:
        return 0
    cache = FeatureCache.open(root)
    checked = 0
    fit = backbone.inputs.frame_resize.picture
    for canary in canaries:
        (clip,) = read_clips(
            canary.recording.path, [canary.span], backbone.inputs.frames, fit=fit, time_limit_s=_TIME_LIMIT_S
        )
        if isinstance(clip, ClipFrames):
            _check(canary, clip, backbone, cache, kept, spaces, compute_dtype)
            checked += 1
    return checked


def _check(
    canary: Canary,
    clip: ClipFrames,
    backbone: "Backbone",
    cache: FeatureCache,
    kept: Mapping[str, Kept],
    spaces: Mapping[str, FeatureSpace],
    compute_dtype: str,
) -> None:
    import torch

    from featurecache.backbones.pooling import mean_of_frames, pool

    name_of_clip = clip_id(canary.recording.sha256, *canary.span)
    taps = sorted({kept[name].tap for name in canary.names})
    encoded = backbone.encode_frames(backbone.normalize(torch.from_numpy(clip.frames)), taps)
    for tap, states in backbone.states(encoded[None], taps):
        size = _rms(mean_of_frames(states.tokens).cpu().numpy())
        for name in (name for name in canary.names if kept[name].tap == tap):
            space = spaces[name]
            chosen = (space.tap, space.pooling, space.fingerprint)
            times_us = cache.timestamps_us([name_of_clip], *chosen)[0]
            if not np.array_equal(times_us, clip.timestamps_us):
                raise ChangedFeaturesError(
                    f"stored clips must be made of the frames that are decoded now, but clip {name_of_clip} was made "
                    f"of frames at {_times(times_us)} us and is now of {_times(clip.timestamps_us)} us. "
                    "Use the PyAV version of the earlier extraction (featurecache cache info --json), or a new cache."
                )
            stored = _floats(cache.load([name_of_clip], *chosen)[0])
            now = pool(states, kept[name].pooling)[0].float().cpu().numpy()
            difference = _rms(now - stored) / max(_rms(stored), size, 1e-30)
            allowed = COMPUTE_TOLERANCE[compute_dtype] + STORED_TOLERANCE[space.stored_dtype]
            if not difference <= allowed:
                raise ChangedFeaturesError(
                    f"stored features must come out again within {allowed:.2g} of their size, but {name} of clip "
                    f"{name_of_clip} differs by {difference:.2g}. Nothing was written. Go back to the device and the "
                    "versions of the earlier extraction (featurecache cache info --json), or extract into a new cache."
                )


def _floats(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return bfloat16.to_float32(stored) if stored.dtype == bfloat16.STORED else stored.astype(np.float32)


def _rms(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _times(times_us: npt.NDArray[np.int64]) -> str:
    return f"{times_us[0]}, ..., {times_us[-1]}"
