"""Drawn recordings, damaged by chance of a seed, and which of their clips come out wrong without a word.

`python -m tests.damaged_videos 8` counts them for 8 variants of each kind of damage to each file.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import write_video

_GROUPS = {"g": "30", "bf": "2"}
_HEVC = {
    "codec": "libx265",
    "options": {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=30:bframes=3"},
}
_MPEG2 = {"codec": "mpeg2video", "options": {"g": "15", "bf": "2", "b": "1M"}}
_MPEG4 = {"codec": "mpeg4", "options": {"g": "20", "b": "600k"}}
_MJPEG = {"codec": "mjpeg", "pixel_format": "yuvj420p"}
RECIPES = {
    "h264.mp4": {"options": _GROUPS},
    "h264.mkv": {"options": {**_GROUPS, "bf": "3"}},
    "baseline.avi": {"options": {"g": "30", "bf": "0", "profile": "baseline"}, "ticks_per_s": 25},
    "h264.avi": {"options": _GROUPS, "ticks_per_s": 25},
    "h264.ts": {"options": _GROUPS},
    "slices.ts": {"options": {**_GROUPS, "slices": "4"}},
    "h264.flv": {"options": _GROUPS},
    "hevc.mp4": _HEVC,
    "hevc.mkv": _HEVC,
    "hevc.ts": _HEVC,
    "mpeg2.ts": _MPEG2,
    "mpeg2.mpg": _MPEG2,
    "mpeg2.mkv": _MPEG2,
    "mpeg4.avi": {**_MPEG4, "ticks_per_s": 25},
    "mpeg4.mp4": {**_MPEG4, "options": {**_MPEG4["options"], "bf": "2"}},
    "mpeg4.mkv": _MPEG4,
    "mjpeg.avi": {**_MJPEG, "ticks_per_s": 25},
    "mjpeg.mp4": _MJPEG,
    "mjpeg.mkv": _MJPEG,
}
KINDS = ("bit", "bits", "zeros", "noise", "gone", "cut")
SPANS = [(start, start + 300_000) for start in range(0, 3_900_000, 300_000)]
FRAMES = 4


def damaged(whole: bytes, kind: str, seed: Sequence[int]) -> bytes:
    """A file with one bit or eight flipped, up to 2 kB made zero or noise, up to 4 kB taken out, or its end cut off."""
    random, data = np.random.default_rng(seed), bytearray(whole)
    at = int(random.integers(len(data) // 20, len(data)))
    length = min(int(random.integers(16, 4096 if kind == "gone" else 2048)), len(data) - at)
    if kind in ("bit", "bits"):
        for place in [at] if kind == "bit" else random.integers(len(data) // 20, len(data), 8).tolist():
            data[place] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        del data[at:]
    else:
        data[at : at + length] = {"zeros": bytes(length), "noise": random.bytes(length), "gone": b""}[kind]
    return bytes(data)


def outcome(path: Path, sound: Mapping[int, ClipFrames]) -> Counter[str]:
    """How many clips of a damaged file are right, failed, or have other times or pixels than those of the sound one."""
    counts: Counter[str] = Counter()
    for clip in read_clips(path, SPANS, FRAMES):
        if isinstance(clip, ClipFailure):
            counts["failed"] += 1
        elif clip.timestamps_us.tolist() != sound[clip.start_us].timestamps_us.tolist():
            counts["other times"] += 1
        else:
            counts["right" if np.array_equal(clip.stacked, sound[clip.start_us].stacked) else "other pixels"] += 1
    return counts


def outcomes(
    folder: Path, names: Sequence[str], kinds: Sequence[str], variants: int
) -> Iterator[tuple[str, str, int, Counter[str]]]:
    """(file, kind of damage, number, outcome) of every variant."""
    for name in names:
        path = write_video(folder / name, count=100, **RECIPES[name])
        sound = {clip.start_us: clip for clip in read_clips(path, SPANS, FRAMES) if isinstance(clip, ClipFrames)}
        assert len(sound) == len(SPANS), f"{name} is not sound"
        whole = path.read_bytes()
        for kind in kinds:
            for number in range(variants):
                path.write_bytes(damaged(whole, kind, (number, KINDS.index(kind), list(RECIPES).index(name))))
                yield name, kind, number, outcome(path, sound)


def main() -> None:
    """Count, and print what each file came to."""
    total: Counter[str] = Counter()
    names = sys.argv[2:] or list(RECIPES)
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, number, found in outcomes(Path(folder), names, KINDS, int(sys.argv[1])):
            total.update(found)
            total["variants"] += 1
            for wrong in ("other times", "other pixels"):
                total[f"variants with {wrong}"] += found[wrong] > 0
            if found["other times"]:
                sys.stdout.write(f"{name} {kind} {number}: {dict(found)}\n")
    sys.stdout.write(f"{dict(total)}\n")


if __name__ == "__main__":
    main()
