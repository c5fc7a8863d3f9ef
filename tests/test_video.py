import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import UnreadableVideoError
from featurecache.video import sampling as video
from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import copy_stream, loop_packets, number_in, packet_places, write_video
from tests.video_samples import KINDS, REAL, SECOND, SHARED, needs_shared, read_all


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


@pytest.mark.parametrize("name", KINDS)
def test_read_clips_picks_the_numbered_picture_for_every_kind_of_file(drawn_videos, name):
    recipe = KINDS[name]
    times = recipe.get("times_ms") or [40 * i for i in range(recipe.get("count", 100))]
    times = [t - times[0] for t in times]
    length_us = (times[-1] + 40) * 1000
    spans = [(0, length_us), (0, 300_001), (length_us // 3, length_us // 3 + 217_391), (length_us - 170_000, length_us)]
    info = probe(drawn_videos / name)
    assert abs(info.duration_us - length_us) <= 40_000
    reference = None if name.endswith(".avi") else Reference(drawn_videos / name)
    for span, clip in zip(spans, read_all(drawn_videos / name, spans, 7), strict=True):
        assert isinstance(clip, ClipFrames), clip
        centres = [span[0] + (2 * k + 1) * (span[1] - span[0]) / 14 for k in range(7)]
        expected = [max(i for i, t in enumerate(times) if t * 1000 <= centre) for centre in centres]
        assert [number_in(frame) for frame in clip.frames] == expected
        assert np.abs(clip.timestamps_us - [times[i] * 1000 for i in expected]).max() <= 1
        assert clip.stacked.shape == (7, info.height_px, info.width_px, 3)
        assert clip.stacked.dtype == np.uint8
        if reference is not None:
            assert (clip.stacked == reference.clip(*span, 7)[0]).all()


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
            assert (clip.stacked == frames).all()

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
    assert read_all(SHARED / "tc_nasa_13013.mp4", [(0, SECOND)])[0].stacked.shape == (16, 270, 480, 3)


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
    expected = np.rot90(read_all(plain, [(0, 200_000)], 2)[0].stacked, counterclockwise // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if mirror[0] else expected
    expected = expected[:, ::-1] if mirror[1] else expected
    clip = read_all(turned, [(0, 200_000)], 2)[0]
    assert (clip.stacked == expected).all()
    info = probe(turned)
    assert clip.stacked.shape[1:3] == (info.height_px, info.width_px)
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


def test_read_clips_fails_clips_past_the_end_and_never_repeats_a_frame(drawn_videos):
    inside, past, far = read_all(
        drawn_videos / "b_frames.mp4", [(3 * SECOND, 4 * SECOND), (3_500_000, 4_500_000), (9**9, 9**9 + 1)], 4
    )
    assert isinstance(inside, ClipFrames)
    assert [type(past), type(far)] == [ClipFailure, ClipFailure]
    assert "ends at 4.0" in past.reason


def test_read_clips_returns_one_item_per_span_when_spans_are_wrong_or_repeated(drawn_videos):
    spans = [(0, SECOND), (0, SECOND), (5, 5), (-4, 9), (SECOND, 0)]
    kinds = [type(item) for item in read_all(drawn_videos / "b_frames.mp4", spans)]
    assert kinds == [ClipFrames, ClipFrames, ClipFailure, ClipFailure, ClipFailure]


def test_read_clips_converts_each_picture_once_when_spans_overlap(drawn_videos, monkeypatch):
    converted = []
    convert = video.to_rgb
    monkeypatch.setattr(video, "to_rgb", lambda frame, r: (converted.append(frame.pts), convert(frame, r))[1])
    clips = read_all(drawn_videos / "b_frames.mp4", [(s, s + SECOND) for s in range(0, 3 * SECOND, 100_000)])
    assert len(converted) == len(set(converted)) == len({t for clip in clips for t in clip.timestamps_us.tolist()})
    arrays = {id(frame) for clip in clips for frame in clip.frames}
    assert len(arrays) == len(converted)


def test_read_clips_makes_each_picture_fit_once_when_it_is_decoded(drawn_videos):
    spans = [(s, s + SECOND) for s in range(0, 3 * SECOND, 250_000)]
    whole = read_all(drawn_videos / "b_frames.mp4", spans)
    fitted = []

    def corner(picture: np.ndarray) -> np.ndarray:
        fitted.append(picture.shape)
        return picture[:8, :8].copy()

    clips = read_all(drawn_videos / "b_frames.mp4", spans, fit=corner)
    assert len(fitted) == len({t for clip in clips for t in clip.timestamps_us.tolist()})
    for clip, other in zip(clips, whole, strict=True):
        assert np.array_equal(clip.timestamps_us, other.timestamps_us)
        assert np.array_equal(clip.stacked, other.stacked[:, :8, :8])


def test_read_clips_yields_early_and_decodes_nothing_after_the_last_clip(drawn_videos):
    data = bytearray((drawn_videos / "b_frames.mp4").read_bytes())
    for offset, size in packet_places(drawn_videos / "b_frames.mp4")[60:]:
        data[offset : offset + size] = bytes(size)
    path = drawn_videos.parent / "later_is_lost.mp4"
    path.write_bytes(data)
    reader = read_clips(path, [(0, SECOND), (SECOND, 3_500_000)])
    assert isinstance(next(reader), ClipFrames)
    assert isinstance(next(reader), ClipFailure)
    assert list(reader) == []


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
def test_memory_stays_flat_when_the_recording_lasts_two_hours(grouped_videos, tmp_path):
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
        path = loop_packets(grouped_videos / "flat.mp4", tmp_path / "long.mp4", minutes * 60 * 25 // 120)
        assert abs(probe(path).duration_us - minutes * 60 * SECOND) < 5 * SECOND
        command = [sys.executable, "-c", code, str(path), str(minutes * 60 * SECOND)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40  # the index of 180,000 packets and 77,000 samples


def test_read_clips_gives_the_same_in_parallel_threads(drawn_videos):
    spans = [(s, s + 400_000) for s in range(0, 3 * SECOND, 300_000)]
    names = ["b_frames.mp4", "hevc_10_bit.mp4", "transport.ts", "h264.avi"]
    alone = [[clip.stacked.tobytes() for clip in read_all(drawn_videos / name, spans)] for name in names]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda name: [c.stacked.tobytes() for c in read_all(drawn_videos / name, spans)], names * 2)
        )
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
def test_probe_measures_the_video_when_the_audio_continues(tmp_path, name):
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
