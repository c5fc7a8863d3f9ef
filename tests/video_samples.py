"""Drawn recordings of every kind, and what reading clips of them gives."""

from pathlib import Path

import numpy as np
import pytest

from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import write_video

SHARED = Path(__file__).parents[1].parent / "shared/data/video"


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real files are not on this machine")


REAL = [
    "mp_example.mp4",
    "carphone_pristine.mp4",
    "mp_no_duration.webm",
    "tc_h265_video.mp4",
    "tc_nasa_13013.mp4",
    "-video-with-dash-.mp4",
    "decord_video_90.mov",
]


SECOND = 1_000_000


VARIABLE = [0, 40, 80, 400, 440, 900, 1900, 1940, 1980, 2700, 2740, 3000, 3600, 3640, 3680, 3720]


def read_all(path: Path, spans: list[tuple[int, int]], frame_count: int = 16, **options):
    """Results in the order of the spans."""
    by_span: dict[tuple[int, int], list] = {}
    for item in read_clips(path, spans, frame_count, **options):
        by_span.setdefault((item.start_us, item.end_us), []).append(item)
    assert sum(map(len, by_span.values())) == len(spans)
    return [by_span[span].pop() for span in spans]


KINDS = {
    "b_frames.mp4": {"options": {"bf": "3", "g": "30"}},
    "open_gop.mkv": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:bframes=3"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "20"}},
    "no_times.avi": {"options": {"bf": "2"}, "codec": "mpeg4", "times_ms": None},
    "h264.avi": {"options": {"bf": "3"}},
    "transport.ts": {},
    "flash.flv": {},
    "windows.wmv": {"codec": "msmpeg4"},
    "program.mpg": {"codec": "mpeg2video", "container_format": "vob"},
    "hevc_10_bit.mp4": {
        "codec": "libx265",
        "pixel_format": "yuv420p10le",
        "options": {"x265-params": "log-level=none"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}, "count": 40},
    "variable.mp4": {"times_ms": VARIABLE, "count": 16},
    "variable.mkv": {"times_ms": VARIABLE, "count": 16},
    "starts_late.mp4": {"times_ms": [7000 + 40 * i for i in range(50)]},
    "starts_late.mkv": {"times_ms": [7000 + 40 * i for i in range(50)]},
    "4:2:2.mkv": {"codec": "ffv1", "pixel_format": "yuv422p", "count": 20},
    "4:4:4.mp4": {"pixel_format": "yuv444p", "count": 20},
    "gray.mkv": {"codec": "ffv1", "pixel_format": "gray", "count": 20},
    "rgb.avi": {"codec": "rawvideo", "pixel_format": "bgr24", "count": 20},
    "odd size.mkv": {"codec": "ffv1", "size": (177, 99), "count": 20},
    "full_range.mkv": {"codec": "mjpeg", "pixel_format": "yuvj420p", "count": 20},
    "-Kinderärztin №1 %03d.mp4": {"count": 30},
}


FLAT = "b-adapt=0:b-pyramid=none:bframes=3"


DEEP = "b-adapt=0:b-pyramid=normal:bframes=5"


QUIET = ":log-level=none"


GROUPED = {
    "flat.mp4": {"options": {"x264-params": FLAT, "g": "30"}},
    "deep.mp4": {"options": {"x264-params": DEEP, "g": "60"}},
    "open_groups.mkv": {"options": {"x264-params": FLAT + ":open-gop=1:keyint=12"}},
    "slices.ts": {"options": {"x264-params": FLAT + ":slices=3", "g": "30"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": DEEP.replace("=normal", "=1") + ":keyint=30" + QUIET}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": FLAT.replace("=none", "=0") + ":keyint=30" + QUIET}},
    "irregular.mp4": {"options": {"x264-params": FLAT, "g": "30"}},
    "irregular.mkv": {"options": {"x264-params": DEEP, "g": "30"}},
    "late.flv": {"options": {"x264-params": FLAT}},
    "turned.mp4": {"options": {"x264-params": FLAT}, "rotation": (90, False, True)},
    "seconds.mp4": {"options": {"bf": "0", "g": "10"}},
    "seconds.ts": {"options": {"x264-params": DEEP, "g": "10"}},
    "seconds_hevc.mp4": {"codec": "libx265", "options": {"x265-params": "open-gop=0:keyint=10" + QUIET}},
    "intra.mkv": {"options": {"g": "1"}},
}
"""Pictures that no other refers to, or that stand before an IDR picture: left out where no sample needs them."""


UNGROUPED = {
    "fields.mp4": {"options": {"x264-params": FLAT + ":tff=1", "flags": "+ildct+ilme"}},
    "sub_layers.mp4": {"codec": "libx265", "options": {"x265-params": "bframes=4:temporal-layers=3" + QUIET}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}, "count": 40},
    "forward_only.mp4": {"options": {"bf": "0"}},
}
"""Files of which every picture is decoded."""


def assert_same(item: ClipFrames | ClipFailure, other: ClipFrames | ClipFailure) -> None:
    assert type(item) is type(other), (item, other)
    if isinstance(item, ClipFailure):
        assert item == other
    else:
        assert item.timestamps_us.tolist() == other.timestamps_us.tolist()
        assert (item.stacked == other.stacked).all()


def some_spans(random: np.random.Generator, path: Path) -> tuple[list[tuple[int, int]], int]:
    """Clips of all lengths, some beyond the end, and a number of frames."""
    end_us = probe(path).duration_us
    starts = random.integers(0, end_us, random.integers(1, 5)).tolist()
    return [(s, s + int(random.integers(1, 2 * SECOND))) for s in starts], int(random.integers(1, 9))


def write_kinds(folder: Path) -> Path:
    """Writes a recording of each kind."""
    for name, recipe in KINDS.items():
        write_video(folder / name, **recipe)
    return folder


def write_groups(folder: Path) -> Path:
    """Writes recordings whose frames refer to each other in groups, and some that are all decoded."""
    irregular_ms = np.cumsum(np.random.default_rng(4).choice([1, 7, 33, 40, 100, 400], 120)).tolist()
    for name, recipe in {**GROUPED, **UNGROUPED}.items():
        times = irregular_ms if name.startswith("irregular") else None
        times = [7000 + 40 * i for i in range(120)] if name.startswith("late") else times
        write_video(folder / name, **{"count": 120, "times_ms": times, **recipe})
    return folder
