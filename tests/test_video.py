import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import UnreadableVideoError, UnsafeFileError
from featurecache.video import sampling as video
from featurecache.video.containers import open_video
from featurecache.video.decoding import NeededAfterAll, Step, decode
from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import copy_stream, loop_packets, number_in, numbered_picture, packet_places, write_video

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


class Reference:
    """Every picture decoded the plain way, chosen by the written rule."""

    def __init__(self, path: Path):
        self.pictures = []
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            zero = Fraction(container.start_time, SECOND)
            for frame in container.decode(stream):
                when = frame.pts * stream.time_base - zero
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                self.pictures.append((when, upright))
        self.pictures.sort(key=lambda picture: picture[0])

    def clip(self, start_us: int, end_us: int, frame_count: int):
        chosen = []
        for k in range(frame_count):
            t = Fraction(start_us, SECOND) + (k + Fraction(1, 2)) * Fraction(end_us - start_us, SECOND) / frame_count
            chosen.append(max((i for i, (when, _) in enumerate(self.pictures) if when <= t), default=0))
        times = [round(self.pictures[i][0] * SECOND) for i in chosen]
        return np.stack([self.pictures[i][1] for i in chosen]), times


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


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name, recipe in KINDS.items():
        write_video(folder / name, **recipe)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_read_clips_picks_the_numbered_picture_for_every_kind_of_file(made, name):
    recipe = KINDS[name]
    times = recipe.get("times_ms") or [40 * i for i in range(recipe.get("count", 100))]
    times = [t - times[0] for t in times]
    length_us = (times[-1] + 40) * 1000
    spans = [(0, length_us), (0, 300_001), (length_us // 3, length_us // 3 + 217_391), (length_us - 170_000, length_us)]
    info = probe(made / name)
    assert abs(info.duration_us - length_us) <= 40_000
    reference = None if name.endswith(".avi") else Reference(made / name)
    for span, clip in zip(spans, read_all(made / name, spans, 7), strict=True):
        assert isinstance(clip, ClipFrames), clip
        centres = [span[0] + (2 * k + 1) * (span[1] - span[0]) / 14 for k in range(7)]
        expected = [max(i for i, t in enumerate(times) if t * 1000 <= centre) for centre in centres]
        assert [number_in(frame) for frame in clip.frames] == expected
        assert np.abs(clip.timestamps_us - [times[i] * 1000 for i in expected]).max() <= 1
        assert clip.frames.shape == (7, info.height_px, info.width_px, 3)
        assert clip.frames.dtype == np.uint8
        if reference is not None:
            assert (clip.frames == reference.clip(*span, 7)[0]).all()


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_read_clips_equals_plain_decoding_for_any_spans(name):
    reference = Reference(SHARED / name)
    end_us = int(reference.pictures[-1][0] * SECOND)

    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        starts = data.draw(st.lists(st.integers(0, end_us - 1), min_size=1, max_size=5))
        spans = [(s, data.draw(st.integers(s + 1, min(s + 2 * SECOND, end_us) + 1))) for s in starts]
        frame_count = data.draw(st.integers(1, 17))
        for span, clip in zip(spans, read_all(SHARED / name, spans, frame_count), strict=True):
            frames, times = reference.clip(*span, frame_count)
            assert isinstance(clip, ClipFrames), clip
            assert clip.timestamps_us.tolist() == times
            assert (clip.frames == frames).all()

    check()


@needs_shared
@pytest.mark.parametrize("index", [0, 3])
def test_read_clips_chooses_listed_times_when_true_times_are_known(index, tmp_path):
    listed = json.loads((SHARED / f"tc_nasa_13013.mp4.stream{index}.all_frames_info.json").read_text())
    times = [round(Fraction(frame["pts_time"]) * SECOND) for frame in listed]
    path = (
        SHARED / "tc_nasa_13013.mp4" if index == 3 else copy_stream(SHARED / "tc_nasa_13013.mp4", 0, tmp_path / "0.mp4")
    )
    spans = [(s, s + 3 * SECOND) for s in range(0, 10 * SECOND, 700_000)]
    for span, clip in zip(spans, read_all(path, spans), strict=True):
        centres = [span[0] + (2 * k + 1) * 93_750 for k in range(16)]
        assert np.abs(clip.timestamps_us - [max(t for t in times if t <= centre) for centre in centres]).max() <= 1


@needs_shared
def test_probe_and_read_clips_pick_the_best_stream_when_there_are_two():
    assert (probe(SHARED / "tc_nasa_13013.mp4").width_px, probe(SHARED / "tc_nasa_13013.mp4").height_px) == (480, 270)
    assert read_all(SHARED / "tc_nasa_13013.mp4", [(0, SECOND)])[0].frames.shape == (16, 270, 480, 3)


@needs_shared
def test_orientation_turns_the_real_portrait_file_upright():
    info = probe(SHARED / "decord_video_90.mov")
    assert (info.rotation_deg, info.width_px, info.height_px) == (90, 320, 568)
    assert probe(SHARED / "decord_video_0.mov").rotation_deg == 0


@pytest.mark.parametrize("counterclockwise", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_orientation_is_applied_for_each_of_the_eight(tmp_path, counterclockwise, mirror):
    plain = write_video(tmp_path / "plain.mp4", count=5)
    turned = write_video(tmp_path / "turned.mp4", count=5, rotation=(counterclockwise, *mirror))
    expected = np.rot90(read_all(plain, [(0, 200_000)], 2)[0].frames, counterclockwise // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if mirror[0] else expected
    expected = expected[:, ::-1] if mirror[1] else expected
    clip = read_all(turned, [(0, 200_000)], 2)[0]
    assert (clip.frames == expected).all()
    info = probe(turned)
    assert clip.frames.shape[1:3] == (info.height_px, info.width_px)
    if mirror == (False, False):
        assert info.rotation_deg == -counterclockwise % 360


def test_clock_starts_with_the_audio_when_it_begins_before_the_video(tmp_path):
    path = write_video(tmp_path / "a.mkv", times_ms=[500 + 40 * i for i in range(50)], audio_ms=(0, 4000))
    assert abs(probe(path).duration_us - 2_500_000) <= 100_000
    clip, too_early, stands_in = read_all(path, [(SECOND, 2 * SECOND), (0, SECOND), (450_000, 500_000)], 5)
    with av.open(str(path)) as container:
        first_us = 500_000 - container.start_time
    expected = [(SECOND + (2 * k + 1) * 100_000 - first_us) // 40_000 for k in range(5)]
    assert [number_in(frame) for frame in clip.frames] == expected
    assert isinstance(too_early, ClipFailure)
    assert "starts at" in too_early.reason
    assert [number_in(frame) for frame in stands_in.frames] == [0] * 5
    assert stands_in.timestamps_us.tolist() == [first_us] * 5


def test_read_clips_is_exact_when_the_recording_is_ten_hours_long(tmp_path):
    ten_hours = 36_000_000
    path = write_video(tmp_path / "long.mkv", times_ms=[0, 40, *(ten_hours + 40 * i for i in range(50))])
    start = ten_hours * 1000 + 19_999
    on_the_tick, just_before = read_all(path, [(start + 1, start + 40_001), (start, start + 40_000)], 1)
    assert number_in(on_the_tick.frames[0]) == 3  # sampled at exactly 40 ms past the tenth hour
    assert number_in(just_before.frames[0]) == 2


def test_read_clips_fails_clips_past_the_end_and_never_repeats_a_frame(made):
    inside, past, far = read_all(
        made / "b_frames.mp4", [(3 * SECOND, 4 * SECOND), (3_500_000, 4_500_000), (9**9, 9**9 + 1)], 4
    )
    assert isinstance(inside, ClipFrames)
    assert [type(past), type(far)] == [ClipFailure, ClipFailure]
    assert "ends at 4.0" in past.reason


def test_read_clips_returns_one_item_per_span_when_spans_are_wrong_or_repeated(made):
    spans = [(0, SECOND), (0, SECOND), (5, 5), (-4, 9), (SECOND, 0)]
    kinds = [type(item) for item in read_all(made / "b_frames.mp4", spans)]
    assert kinds == [ClipFrames, ClipFrames, ClipFailure, ClipFailure, ClipFailure]
    with pytest.raises(ValueError, match="frame_count must be at least 1"):
        read_clips(made / "b_frames.mp4", spans, 0)


def test_read_clips_converts_each_picture_once_when_spans_overlap(made, monkeypatch):
    converted = []
    convert = video.to_rgb
    monkeypatch.setattr(video, "to_rgb", lambda frame, r: (converted.append(frame.pts), convert(frame, r))[1])
    clips = read_all(made / "b_frames.mp4", [(s, s + SECOND) for s in range(0, 3 * SECOND, 100_000)])
    assert len(converted) == len(set(converted)) == len({t for clip in clips for t in clip.timestamps_us.tolist()})
    arrays = {id(picture) for clip in clips for picture in clip.pictures}
    assert len(arrays) == len(converted)


def test_read_clips_makes_each_picture_fit_once_when_it_is_decoded(made):
    spans = [(s, s + SECOND) for s in range(0, 3 * SECOND, 250_000)]
    whole = read_all(made / "b_frames.mp4", spans)
    fitted = []

    def corner(picture: np.ndarray) -> np.ndarray:
        fitted.append(picture.shape)
        return picture[:8, :8].copy()

    clips = read_all(made / "b_frames.mp4", spans, fit=corner)
    assert len(fitted) == len({t for clip in clips for t in clip.timestamps_us.tolist()})
    for clip, other in zip(clips, whole, strict=True):
        assert np.array_equal(clip.timestamps_us, other.timestamps_us)
        assert np.array_equal(clip.frames, other.frames[:, :8, :8])


def test_read_clips_yields_early_and_decodes_nothing_after_the_last_clip(made):
    data = bytearray((made / "b_frames.mp4").read_bytes())
    for offset, size in packet_places(made / "b_frames.mp4")[60:]:
        data[offset : offset + size] = bytes(size)
    path = made.parent / "later_is_lost.mp4"
    path.write_bytes(data)
    reader = read_clips(path, [(0, SECOND), (SECOND, 3_500_000)])
    assert isinstance(next(reader), ClipFrames)
    assert isinstance(next(reader), ClipFailure)
    assert list(reader) == []


# --- pictures that are not decoded --------------------------------------------------------------------

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


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    irregular_ms = np.cumsum(np.random.default_rng(4).choice([1, 7, 33, 40, 100, 400], 120)).tolist()
    for name, recipe in {**GROUPED, **UNGROUPED}.items():
        times = irregular_ms if name.startswith("irregular") else None
        times = [7000 + 40 * i for i in range(120)] if name.startswith("late") else times
        write_video(folder / name, **{"count": 120, "times_ms": times, **recipe})
    return folder


def assert_same(item: ClipFrames | ClipFailure, other: ClipFrames | ClipFailure) -> None:
    assert type(item) is type(other), (item, other)
    if isinstance(item, ClipFailure):
        assert item == other
    else:
        assert item.timestamps_us.tolist() == other.timestamps_us.tolist()
        assert (item.frames == other.frames).all()


def some_spans(random: np.random.Generator, path: Path) -> tuple[list[tuple[int, int]], int]:
    """Clips of all lengths, some beyond the end, and a number of frames."""
    end_us = probe(path).duration_us
    starts = random.integers(0, end_us, random.integers(1, 5)).tolist()
    return [(s, s + int(random.integers(1, 2 * SECOND))) for s in starts], int(random.integers(1, 9))


def left_out_share(path: Path, spans: list[tuple[int, int]], frame_count: int) -> float:
    with open_video(path, max_pixels=video.MAX_PIXELS) as opened:
        sampler = video._Sampler(opened, [video._Clip(*span) for span in spans], frame_count, None, video.MAX_PIXELS)
        steps = [step for step in decode(opened, sampler.ticks) if step is not None]
        for step in steps:
            sampler.advance(step)  # raises where a sample falls on a picture that was left out
    return sum(step.left_out for step in steps) / (len(steps) - 1)


@pytest.mark.parametrize("name", [*GROUPED, *UNGROUPED])
def test_read_clips_gives_the_same_when_pictures_are_left_out(grouped, name):
    random = np.random.default_rng(len(name))
    for _ in range(3):
        spans, frame_count = some_spans(random, grouped / name)
        skipped = read_all(grouped / name, spans, frame_count)
        for item, other in zip(skipped, read_all(grouped / name, spans, frame_count, decode_all=True), strict=True):
            assert_same(item, other)


@needs_shared
@pytest.mark.parametrize("name", [*REAL, "bikes.mp4", "mp_chaplin.mp4", "decord_corrupted.mp4", "decord_video_0.mov"])
def test_read_clips_gives_the_same_for_real_files_when_pictures_are_left_out(name):
    spans, frame_count = some_spans(np.random.default_rng(len(name)), SHARED / name)
    skipped = read_all(SHARED / name, spans, frame_count)
    for item, other in zip(skipped, read_all(SHARED / name, spans, frame_count, decode_all=True), strict=True):
        assert_same(item, other)


def test_decode_leaves_out_what_no_sample_falls_on_and_nothing_refers_to(grouped):
    spans = [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    assert left_out_share(grouped / "flat.mp4", spans, 4) > 0.5
    assert left_out_share(grouped / "hevc.ts", spans, 4) > 0.5
    assert left_out_share(grouped / "deep.mp4", spans, 4) > 0.3
    assert left_out_share(grouped / "flat.mp4", spans, 20) == 0.0
    assert [left_out_share(grouped / name, spans, 4) for name in UNGROUPED] == [0.0] * 4


def test_decode_leaves_out_what_stands_between_the_last_sample_and_where_the_coding_begins_anew(grouped):
    sparse = [(100_000, 500_000), (2_600_000, 2_700_000)]  # in the first, the second and the seventh ten pictures
    assert left_out_share(grouped / "seconds.mp4", sparse, 2) > 0.5
    assert left_out_share(grouped / "seconds.ts", sparse, 2) > 0.5
    assert left_out_share(grouped / "seconds_hevc.mp4", sparse, 2) > 0.5
    assert left_out_share(grouped / "intra.mkv", [(0, 4_800_000)], 16) > 0.8
    assert (
        left_out_share(grouped / "open_groups.mkv", sparse, 2) < left_out_share(grouped / "flat.mp4", sparse, 2) + 0.2
    )


def test_decode_keeps_no_long_list_of_what_it_left_out(tmp_path):
    path = write_video(tmp_path / "long.mp4", count=3000, options={"bf": "0", "g": "10"})
    left_out = [step.left_out for step in steps_of(path, [(119_000_000, 119_500_000)], 2)]
    longest = max(len(run) for run in "".join("x" if one else " " for one in left_out).split())
    assert 1000 < longest < 1100


def steps_of(path: Path, spans: list[tuple[int, int]], frame_count: int) -> list[Step]:
    with open_video(path, max_pixels=video.MAX_PIXELS) as opened:
        sampler = video._Sampler(opened, [video._Clip(*span) for span in spans], frame_count, None, video.MAX_PIXELS)
        return [step for step in decode(opened, sampler.ticks) if step is not None]


def test_decode_asks_for_every_picture_when_damage_turns_up_beside_one_left_out(grouped, tmp_path):
    path, spans = grouped / "flat.mp4", [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(container.streams.video[0]) if packet.size]
    number = max(range(60, 80), key=lambda i: sizes[i])  # a reference
    data, (offset, size) = bytearray(path.read_bytes()), packet_places(path)[number]
    data[offset + 20 : offset + size] = np.random.default_rng(0).bytes(size - 20)
    (tmp_path / "hit.mp4").write_bytes(data)
    with pytest.raises(NeededAfterAll):
        steps_of(tmp_path / "hit.mp4", spans, 4)
    # The end of a cut file is seen coming: it is not read twice.
    source = copy_stream(path, 0, tmp_path / "index_first.mp4", movflags="faststart")
    offset, size = packet_places(source)[100]
    for end in (offset, offset + size // 2):
        (tmp_path / "cut.mp4").write_bytes(source.read_bytes()[:end])
        left_out = [step.left_out for step in steps_of(tmp_path / "cut.mp4", spans, 4)]
        assert sum(left_out[:60]) > 30


def test_decode_leaves_out_no_reference_whose_damaged_header_says_otherwise(grouped, tmp_path):
    path, spans = grouped / "flat.mp4", [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    whole = steps_of(path, spans, 4)
    number = next(step.order for step in whole if step.order > 60 and not step.left_out and step.frame.pict_type == 2)
    data, (offset, _) = bytearray(path.read_bytes()), packet_places(path)[number]
    data[offset + 4] &= 0x1F  # the unit's header: no picture refers to this one
    (tmp_path / "posing.mp4").write_bytes(data)
    assert number not in [step.order for step in steps_of(tmp_path / "posing.mp4", spans, 4) if step.left_out]


def test_sampler_asks_for_every_picture_when_a_sample_falls_on_one_left_out(grouped):
    with open_video(grouped / "flat.mp4", max_pixels=video.MAX_PIXELS) as opened:
        for first_left_out in (False, True):
            sampler = video._Sampler(opened, [video._Clip(0, SECOND)], 1, None, video.MAX_PIXELS)
            tick = sampler.ticks[0]
            if first_left_out:
                with pytest.raises(NeededAfterAll):
                    sampler.advance(Step(None, tick + 10**6, 0, True, None, None, 0, left_out=True))
                continue
            sampler.advance(Step(None, tick, 0, True, None, None, 0, left_out=True))
            with pytest.raises(NeededAfterAll):
                sampler.advance(Step(None, tick + 1, 1, True, None, None, 1, left_out=True))


@pytest.mark.parametrize("name", ["flat.mp4", "deep.mp4", "slices.ts", "hevc.mp4", "hevc.ts", "irregular.mkv"])
def test_read_clips_fails_the_same_clips_of_a_cut_file_when_pictures_are_left_out(grouped, tmp_path, name):
    whole, places = (grouped / name).read_bytes(), packet_places(grouped / name)
    source = grouped / name
    if name.endswith("mp4"):
        source = copy_stream(source, 0, tmp_path / "index_first.mp4", movflags="faststart")
        whole, places = source.read_bytes(), packet_places(source)
    random = np.random.default_rng(6)
    for number in (40, 77, 110):
        path = tmp_path / f"cut{source.suffix}"
        path.write_bytes(whole[: places[number][0] + int(random.integers(places[number][1]))])
        spans = [(s, s + 300_000) for s in range(0, 5 * SECOND, 300_000)]
        for item, other in zip(read_all(path, spans, 2), read_all(path, spans, 2, decode_all=True), strict=True):
            assert_same(item, other)


@pytest.mark.parametrize("name", ["flat.mp4", "deep.mp4", "slices.ts", "hevc.mp4", "late.flv"])
def test_read_clips_hands_out_no_damaged_frame_when_pictures_are_left_out(grouped, tmp_path, name):
    """As without leaving out, or better: what was damaged and never needed costs no clip.

    Where the decoder notices nothing, its pictures are undefined, and nothing is asked of them.
    """
    random = np.random.default_rng(len(name))
    places = packet_places(grouped / name)
    spans, refused = [(s, s + 300_000) for s in range(0, 4 * SECOND, 300_000)], 0
    intact = read_all(grouped / name, spans, 2)
    for _ in range(8):
        data = bytearray((grouped / name).read_bytes())
        offset, size = places[int(random.integers(5, 110))]
        begin = int(random.integers(size // 2))
        data[offset + begin : offset + size] = random.bytes(size - begin)
        path = tmp_path / name
        path.write_bytes(data)
        items, others = read_all(path, spans, 2), read_all(path, spans, 2, decode_all=True)
        for item, other, whole in zip(items, others, intact, strict=True):
            if isinstance(other, ClipFailure) and isinstance(item, ClipFrames):
                assert "damage" in other.reason
                assert_same(item, whole)
            elif isinstance(other, ClipFailure):
                assert isinstance(item, ClipFailure)
                refused += 1
            else:
                assert item.timestamps_us.tolist() == other.timestamps_us.tolist()
                assert (item.frames == whole.frames).all() or not (other.frames == whole.frames).all()
    assert refused, "damage is noticed"


# --- damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mkv", "transport.ts", "h264.avi", "fragmented.mp4"])
def test_truncated_file_keeps_the_clips_before_the_cut(made, tmp_path, name):
    spans = [(s, s + 500_000) for s in range(0, 4 * SECOND, 500_000)]
    intact = read_all(made / name, spans)
    source = made / name
    if name == "b_frames.mp4":  # its index stands at the end, where a cut would lose everything
        source = copy_stream(source, 0, tmp_path / "index_first.mp4", movflags="faststart")
        (tmp_path / "no_index.mp4").write_bytes((made / name).read_bytes()[:-200])
        assert {type(item) for item in read_all(tmp_path / "no_index.mp4", spans)} == {ClipFailure}
        with pytest.raises(UnreadableVideoError, match=r"no whole index \(moov\): it was cut off.* Copy it again\.$"):
            probe(tmp_path / "no_index.mp4")
    whole = source.read_bytes()
    places = packet_places(source)
    for number in (20, 50, 85):
        path = tmp_path / f"{number}{source.suffix}"
        path.write_bytes(whole[: places[number][0] + places[number][1] // 2])
        items = read_all(path, spans)
        had = [isinstance(item, ClipFrames) for item in items]
        assert had == sorted(had, reverse=True)
        assert (number - 15) // 12.5 <= sum(had) <= (number + 3) // 12.5
        if name == "b_frames.mp4":
            assert probe(path).duration_us == 4 * SECOND
        for item, whole_clip in zip(items, intact, strict=True):
            assert isinstance(item, ClipFailure) or (item.frames == whole_clip.frames).all()


@pytest.mark.parametrize(
    "recipe",
    [
        {"options": {"bf": "3", "g": "25"}},
        {"codec": "libx265", "options": {"x265-params": "keyint=25:log-level=none"}},
    ],
    ids=["h264", "hevc"],
)
def test_damaged_packet_fails_its_clips_and_only_those_when_the_decoder_notices(tmp_path, recipe):
    path = write_video(tmp_path / "whole.mp4", count=150, **recipe)
    spans = [(s, s + 200_000) for s in range(0, 6 * SECOND, 200_000)]
    intact = read_all(path, spans, 5)
    assert all(isinstance(clip, ClipFrames) for clip in intact)
    places = packet_places(path)
    random = np.random.default_rng(3)
    for number in (7, 33, 52, 75, 101, 131):
        data = bytearray(path.read_bytes())
        offset, size = places[number]
        data[offset + 4 : offset + size] = random.bytes(size - 4)
        (tmp_path / "hit.mp4").write_bytes(data)
        items = read_all(tmp_path / "hit.mp4", spans, 5)
        failed = [i for i, item in enumerate(items) if isinstance(item, ClipFailure)]
        assert failed
        assert all("damage" in items[i].reason for i in failed)
        centre = number * 40_000
        assert all(abs(spans[i][0] - centre) <= 1_500_000 for i in failed)
        for item, whole_clip in zip(items, intact, strict=True):
            assert isinstance(item, ClipFailure) or (item.frames == whole_clip.frames).all()


@pytest.mark.parametrize("decode_all", [False, True])
def test_clip_fails_when_its_frames_were_shown_before_their_damaged_reference(grouped, tmp_path, decode_all):
    path = grouped / "flat.mp4"
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        times = sorted(packet.pts for packet in packets)
        shown_as = [times.index(packet.pts) for packet in packets]
    number = next(i for i in range(40, 120) if shown_as[i] > i + 1)  # shown after three that are decoded after it
    offset, size = packet_places(path)[number]
    data = bytearray(path.read_bytes())
    data[offset + size // 2 : offset + size // 2 + 6] = np.random.default_rng(0).bytes(6)
    (tmp_path / "hit.mp4").write_bytes(data)
    spans = [(40_000 * i, 40_000 * (i + 1)) for i in range(shown_as[number] - 3, shown_as[number] + 1)]
    items = read_all(tmp_path / "hit.mp4", spans, 1, decode_all=decode_all)
    assert [type(item) for item in items] == [ClipFailure] * 4
    assert all("refers to a damaged part" in item.reason for item in items)
    for span, item in zip(spans, items, strict=True):  # alone, too: no clip is handed out too early
        assert_same(read_all(tmp_path / "hit.mp4", [span], 1, decode_all=decode_all)[0], item)


@needs_shared
def test_damaged_real_file_keeps_its_first_clips():
    path = SHARED / "decord_corrupted.mp4"
    assert probe(path).duration_us == 5 * SECOND
    items = read_all(path, [(s, s + SECOND) for s in range(0, 5 * SECOND, SECOND)])
    assert [isinstance(item, ClipFrames) for item in items] == [True, True, False, False, False]


def test_read_clips_fails_the_clip_across_when_the_picture_changes_size(tmp_path):
    path = tmp_path / "grows.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 96, "yuvj420p"
        for number in range(50):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height = (176, 96) if number < 25 else (320, 192)
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, encoder.width, encoder.height), format="rgb24")
            frame.pts = number
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    spans = [(0, 900_000), (500_000, 1_500_000), (1_100_000, 1_900_000)]
    first, across, second = read_all(path, spans)
    assert (first.frames.shape[1:3], second.frames.shape[1:3]) == ((96, 176), (192, 320))
    assert "one size" in across.reason
    _, again, _ = read_all(path, spans, fit=lambda picture: picture[:8, :8])
    assert again == across
    first, across, second = read_all(path, spans, max_pixels=20_000)
    assert isinstance(first, ClipFrames)
    assert "at most 20000 pixels" in across.reason
    assert "at most 20000 pixels" in second.reason


# --- hostile and hopeless files ---------------------------------------------------------------------


def hopeless_files(folder: Path, url: str) -> dict[str, type[Exception]]:
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / "head.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(500))
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}/a.ts\n#EXT-X-ENDLIST\n")
    shutil.copy(folder / "playlist.mp4", folder / "playlist.m3u8")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{url}/b.mp4'\n")
    (folder / "dash.mp4").write_text(
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f'<BaseURL>{url}/</BaseURL><AdaptationSet><Representation id="1" bandwidth="1">'
        "<BaseURL>c.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    (folder / "session.mp4").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    )
    (folder / "image.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    unreadable = dict.fromkeys(["empty", "playlist", "dash", "head", "folder", "pipe", "missing"], UnreadableVideoError)
    unsafe = dict.fromkeys(["concat", "session", "image"], UnsafeFileError)
    return {**unreadable, **unsafe, "garbage": (UnreadableVideoError, UnsafeFileError)}


def test_hopeless_file_costs_one_named_error_and_no_request(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name, error in hopeless_files(tmp_path, url).items():
            with pytest.raises(error) as caught:
                probe(tmp_path / f"{name}.mp4")
            assert "\n" not in str(caught.value)
            items = read_all(tmp_path / f"{name}.mp4", [(0, SECOND), (SECOND, 2 * SECOND)])
            assert [item.reason for item in items] == [str(caught.value)] * 2
        with pytest.raises(UnsafeFileError):
            probe(tmp_path / "playlist.m3u8")
        for address in (f"{url}/d.mp4", "concat:a.mp4|b.mp4", f"hls+{url}/e.m3u8"):
            with pytest.raises(UnreadableVideoError):
                probe(Path(address))
        server.shutdown()
        thread.join()
    assert asked == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_hopeless_file_opens_no_socket_and_prints_nothing(tmp_path, made):
    names = [f"{name}.mp4" for name in hopeless_files(tmp_path, "http://127.0.0.1:9") if name not in ("folder", "pipe")]
    data = bytearray((made / "b_frames.mp4").read_bytes())
    offset, size = packet_places(made / "b_frames.mp4")[5]
    data[offset + 4 : offset + size] = b"\xa7" * (size - 4)
    (tmp_path / "hit.mp4").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from featurecache.video.sampling import read_clips\n"
        f"for name in {[*names, 'hit.mp4']!r}: list(read_clips(Path({str(tmp_path)!r}) / name, [(0, 3000000)]))"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=%network", "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=300)
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "socket" not in trace.read_text()


def test_large_picture_is_refused_before_it_is_decoded(made):
    with pytest.raises(UnreadableVideoError, match=r"at most 16895 pixels, but .* has 176 x 96"):
        probe(made / "b_frames.mp4", max_pixels=176 * 96 - 1)
    items = read_all(made / "b_frames.mp4", [(0, SECOND)], max_pixels=176 * 96 - 1)
    assert "at most 16895 pixels" in items[0].reason
    assert isinstance(read_all(made / "b_frames.mp4", [(0, SECOND)], max_pixels=176 * 96)[0], ClipFrames)


def test_undecodable_text_in_the_file_is_no_obstacle(tmp_path):
    path = write_video(tmp_path / "a.mkv", count=10, metadata={"title": "QQQQQQ"})
    path.write_bytes(path.read_bytes().replace(b"QQQQQQ", b"\xe4\xff\xfe\xe4\xff\xfe"))
    assert probe(path).codec == "h264"


def test_time_limit_counts_own_work_only(made):
    spans = [(s, s + 500_000) for s in range(0, 4 * SECOND, 500_000)]
    items = []
    for item in read_clips(made / "b_frames.mp4", spans, time_limit_s=1.0):
        items.append(item)
        time.sleep(0.2)
    assert all(isinstance(item, ClipFrames) for item in items)
    items = read_all(made / "b_frames.mp4", spans, time_limit_s=0.0)
    assert all("within 0 s" in item.reason for item in items)


# --- resources --------------------------------------------------------------------------------------


def test_memory_stays_bounded_when_the_list_of_spans_is_long(tmp_path):
    path = write_video(tmp_path / "hd.mp4", count=100, fps=5, size=(1280, 720), options={"preset": "ultrafast"})
    code = (
        "import resource, sys; from pathlib import Path; "
        "from featurecache.video.sampling import ClipFrames, read_clips\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        f"spans = [(s, s + 3000000) for s in range(0, 17000000, 450000)]; before = rss()\n"
        f"assert sum(isinstance(c, ClipFrames) for c in read_clips(Path({str(path)!r}), spans)) == 38\n"
        "print(rss() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    one_clip_mb = 16 * 1280 * 720 * 3 / 2**20  # 42 MB; all of them would be 1,600 MB
    assert int(done.stdout) < 6 * one_clip_mb


@pytest.mark.slow
def test_memory_stays_flat_when_the_recording_lasts_two_hours(grouped, tmp_path):
    code = (
        "import sys; from pathlib import Path; "
        "from featurecache.video.sampling import ClipFrames, read_clips\n"
        "end = int(sys.argv[2]); spans = [(s, s + 3000000) for s in range(0, end, 1500000)]\n"
        "read = read_clips(Path(sys.argv[1]), spans)\n"
        "assert sum(isinstance(c, ClipFrames) for c in read) >= end // 1500000 - 4\n"
        "status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(int(status['VmHWM'].split()[0]) // 1024)"
    )
    peaks = []
    for minutes in (5, 120):
        path = loop_packets(grouped / "flat.mp4", tmp_path / "long.mp4", minutes * 60 * 25 // 120)
        assert abs(probe(path).duration_us - minutes * 60 * SECOND) < 5 * SECOND
        command = [sys.executable, "-c", code, str(path), str(minutes * 60 * SECOND)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40  # the index of 180,000 packets and 77,000 samples


def test_read_clips_gives_the_same_in_parallel_threads(made):
    spans = [(s, s + 400_000) for s in range(0, 3 * SECOND, 300_000)]
    names = ["b_frames.mp4", "hevc_10_bit.mp4", "transport.ts", "h264.avi"]
    alone = [[clip.frames.tobytes() for clip in read_all(made / name, spans)] for name in names]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: [c.frames.tobytes() for c in read_all(made / name, spans)], names * 2))
    assert together == alone * 2


@needs_shared
def test_probe_tells_the_real_files_apart():
    assert probe(SHARED / "tc_nasa_13013.mp4").duration_us == 13_013_000
    webm = probe(SHARED / "mp_no_duration.webm")
    assert 4_872_000 < webm.duration_us <= 5_000_000
    assert webm.codec == "vp9"
    assert probe(SHARED / "tc_h265_video.mp4").codec == "hevc"
    assert probe(SHARED / "-video-with-dash-.mp4").duration_us == 5 * SECOND
    with pytest.raises(UnreadableVideoError, match="is empty"):
        probe(SHARED / "mp_result.webm")


@pytest.mark.parametrize("name", ["longer.mkv", "longer.mp4"])
def test_probe_measures_the_video_when_the_audio_goes_on(tmp_path, name):
    path = write_video(tmp_path / name, count=50, audio_ms=(0, 9000))
    assert abs(probe(path).duration_us - 2 * SECOND) <= 100_000


def test_probe_passes_over_a_cover_picture(tmp_path):
    path = tmp_path / "cover.mp4"
    inner = write_video(tmp_path / "inner.mp4", count=25)
    with av.open(str(inner)) as read, av.open(str(path), "w") as write:
        cover = write.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 640, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        copy = write.add_stream_from_template(read.streams.video[0])
        write.mux(cover.encode(av.VideoFrame(640, 640, "yuvj420p")))
        write.mux(cover.encode())
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                write.mux(packet)
    assert (probe(path).codec, probe(path).width_px) == ("h264", 176)
