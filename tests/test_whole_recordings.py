"""A recording's file as a whole: joined parts, cut ends, zeros behind, and what people are told of them."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from featurecache.clips.inventory import take_inventory
from featurecache.errors import UnreadableVideoError
from featurecache.project.settings import open_project
from featurecache.setup.doctor import examine
from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import number_in, write_video
from tests.projects import make_project

SECOND = 1_000_000
MPEG2 = {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "b": "800k"}}
PARTS = {
    "part.ts": {"options": {"g": "25", "bf": "2"}},
    "part.m2ts": {"options": {"g": "25"}, "container_options": {"mpegts_m2ts_mode": "1"}},
    "sound.mts": {"audio_ms": (0, 4000), "container_format": "mpegts"},
    "part.mpg": MPEG2,
    "part.vob": {**MPEG2, "container_format": "vob"},
    "part.mp4": {},
    "fragments.mp4": {"options": {"g": "25"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "part.mkv": {},
    "live.mkv": {"container_options": {"live": "1"}},
    "part.avi": {"codec": "mpeg4", "ticks_per_s": 25},
    "part.flv": {},
    "part.wmv": {"codec": "wmv2"},
    "part.ivf": {"codec": "libvpx", "options": {"g": "25"}, "ticks_per_s": 25},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_joined_end_to_end_are_refused_and_each_part_is_not(tmp_path, name):
    part = write_video(tmp_path / name, **PARTS[name])
    info = probe(part)
    assert info.duration_us == pytest.approx(4 * SECOND, abs=100_000)
    assert info.warnings == ()
    joined = tmp_path / f"joined{part.suffix}"
    joined.write_bytes(part.read_bytes() * 2)
    with pytest.raises(UnreadableVideoError, match=r"joined of several end to end.*ffmpeg"):
        probe(joined)


def moved(source: Path, target: Path, seconds: int, stream_id: int | None = None) -> Path:
    """A file's packets with a clock that begins elsewhere, and perhaps in a stream of another number."""
    with av.open(str(source)) as read, av.open(str(target), "w", container_options={"mpegts_copyts": "1"}) as write:
        original = read.streams.video[0]
        copy = write.add_stream_from_template(original)
        if stream_id is not None:
            copy.id = stream_id
        for packet in read.demux(original):
            if packet.dts is not None:
                shift = int(seconds / packet.time_base)
                packet.stream, packet.pts, packet.dts = copy, packet.pts + shift, packet.dts + shift
                write.mux(packet)
    return target


@pytest.mark.parametrize(
    ("seconds", "stream_id", "is_first"),
    [(2, None, False), (7200, None, False), (7200, None, True), (0, 300, False)],
    ids=["overlapping clocks", "leap ahead by hours", "back by hours", "another stream number"],
)
def test_parts_of_a_transport_stream_are_refused_however_their_clocks_differ(tmp_path, seconds, stream_id, is_first):
    part = write_video(tmp_path / "part.ts", options={"g": "25"})
    other = moved(part, tmp_path / "other.ts", seconds, stream_id)
    files = [other, part] if is_first else [part, other]
    (tmp_path / "joined.ts").write_bytes(b"".join(path.read_bytes() for path in files))
    with pytest.raises(UnreadableVideoError, match="joined of several"):
        probe(tmp_path / "joined.ts")


def test_a_clock_that_overflows_inside_a_recording_is_no_joint(tmp_path):
    overflow_s = 2**33 // 90_000  # 26.5 hours
    path = moved(write_video(tmp_path / "part.ts"), tmp_path / "late.ts", overflow_s - 2)
    with av.open(str(path)) as container:
        assert container.start_time < 0 < container.start_time + 4 * SECOND, "the clock does not overflow inside"
    assert probe(path).duration_us == pytest.approx(4 * SECOND, abs=100_000)
    (clip,) = read_clips(path, [(3 * SECOND, 4 * SECOND)], 2)
    assert [number_in(frame) for frame in clip.frames] == [81, 93]


def test_clips_behind_a_restarted_clock_fail_by_name(tmp_path):
    part = write_video(tmp_path / "part.ts", options={"g": "25"})
    longer = write_video(tmp_path / "longer.ts", count=200, options={"g": "25"})
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() + longer.read_bytes())
    spans = [(s * SECOND, (s + 1) * SECOND) for s in (1, 5, 6)]
    first, *behind = sorted(read_clips(tmp_path / "joined.ts", spans, 2), key=lambda item: item.start_us)
    assert isinstance(first, ClipFrames)
    assert all("its own restarts after 3.8" in item.reason for item in behind)


def test_a_leap_of_the_clock_is_told_and_its_clips_fail(tmp_path):
    times = [40 * i for i in range(50)] + [600_000 + 40 * i for i in range(50)]
    path = write_video(tmp_path / "leap.mkv", times_ms=times, container_options={"live": "1"})
    (warning,) = probe(path).warnings
    assert "no frame from 2.0 s to 600.0 s" in warning
    inside, after = read_clips(path, [(300 * SECOND, 301 * SECOND), (600 * SECOND, 601 * SECOND)], 2)
    assert isinstance(inside, ClipFailure)
    assert "no frame for" in inside.reason
    assert isinstance(after, ClipFrames)


CUT = {
    "cut.avi": {"codec": "mpeg4", "ticks_per_s": 25},
    "cut.mkv": {},
    "cut.mp4": {"container_options": {"movflags": "faststart"}},
    "cut.flv": {},
    "cut.wmv": {"codec": "wmv2"},
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_of_what_its_header_promises_is_told(tmp_path, name):
    path = write_video(tmp_path / name, count=500, **CUT[name])
    assert probe(path).warnings == ()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.77)])
    info = probe(path)
    if name not in ("cut.avi", "cut.wmv"):  # there FFmpeg sees that the header is wrong
        assert info.duration_us == pytest.approx(20 * SECOND, abs=100_000)
    assert "ends at 15." in " ".join(info.warnings) or "bytes shorter" in " ".join(info.warnings)


def test_all_frames_of_a_cut_avi_are_used_though_ffmpeg_guesses_less_by_its_size(tmp_path):
    path, draw = tmp_path / "cut.avi", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(100):  # flat ones first: few bytes, so that a share of the bytes is no share of the time
            picture = (
                np.full((48, 64, 3), 90, np.uint8) if number < 50 else draw.integers(0, 256, (48, 64, 3), np.uint8)
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    info = probe(path)
    assert info.duration_us > 13 * SECOND, "FFmpeg says 12"
    (clip,) = read_clips(path, [(info.duration_us - 2 * SECOND, info.duration_us - SECOND)], 4)
    assert isinstance(clip, ClipFrames)


def test_clips_and_doctor_tell_what_is_wrong_with_a_recording(tmp_path, tiny_model):
    project = make_project(tmp_path / "project", tiny_model, sessions=3, clips=2)
    cut = write_video(project.videos / "S3.mp4", count=100, container_options={"movflags": "faststart"})
    cut.write_bytes(cut.read_bytes()[:-2000])
    joined = project.videos / "S4.ts"
    joined.write_bytes(write_video(tmp_path / "part.ts").read_bytes() * 2)
    found = take_inventory(open_project(project.root))
    assert any("S3.mp4: the file is 2000 bytes shorter" in note for note in found.notes)
    assert ["joined" in item.reason for item in found.unusable if item.name == "S4.ts"] == [True]
    wrong = [check.found for check in examine(project) if check.name == "recording" and not check.ok]
    assert any("2000 bytes shorter" in text for text in wrong)
    assert any("joined" in text for text in wrong)


ZEROS = """
import sys
from pathlib import Path
from featurecache.video.probing import probe
from featurecache.video.sampling import read_clips
path = Path(sys.argv[1])
info = probe(path)
items = list(read_clips(path, [(2_500_000, 3_500_000)], 4))
print(info.duration_us, type(items[0]).__name__, *info.warnings)
"""


@pytest.mark.parametrize("name", ["part.mpg", "part.ts", "live.webm", "part.webm", "part.mp4"])
def test_gigabytes_of_zeros_behind_a_recording_are_not_searched(tmp_path, name):
    recipe = MPEG2 if name.endswith("mpg") else {"codec": "libvpx", "options": {"g": "25"}} if "webm" in name else {}
    options = {"live": "1"} if name.startswith("live") else None
    path = write_video(tmp_path / name, container_options=options, **recipe)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 40 * 2**30)
    command = [sys.executable, "-c", ZEROS, str(path)]
    # Searching them takes minutes; here it takes none, so that the bound only tells one from the other.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    duration_us, kind, *warnings = done.stdout.split()
    assert int(duration_us) == pytest.approx(4 * SECOND, abs=100_000)
    assert kind == "ClipFrames"
    assert "zeros." in warnings


@pytest.mark.parametrize("name", ["part.mpg", "live.webm"])
def test_a_recording_with_a_hole_is_given_up_when_its_time_is_over(tmp_path, monkeypatch, name):
    """Zeros with something behind, so that the end of its data does not tell that no frame follows: a hole on disk."""
    recipe = MPEG2 if name.endswith("mpg") else {"codec": "libvpx", "options": {"g": "25"}}
    options = {"live": "1"} if name.startswith("live") else None
    path = write_video(tmp_path / name, container_options=options, **recipe)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 300 * 10**6)
        file.seek(0, 2)
        file.write(b"the end")
    monkeypatch.setattr("featurecache.video.probing._LIMIT_S", 0.0)
    monkeypatch.setattr("featurecache.video.probing._SLOWEST_BYTES_PER_S", 1e12)
    monkeypatch.setattr("featurecache.video.probing._LONGEST_READ_S", 0.05)
    with pytest.raises(UnreadableVideoError, match=r"readable within 0 s, .* Play it to see where it is damaged"):
        probe(path)


def test_a_long_look_at_recordings_says_how_far_it_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr("featurecache.video.recordings._FIRST_WORD_S", 0.0)
    monkeypatch.setattr("featurecache.video.recordings._WORD_EVERY_S", 0.0)
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in (1, 2):
        write_video(videos / f"{number}.ts", count=10 * number)
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path / "new"), "--videos", str(videos), "--model", "demo"])
    assert done.exit_code == 0, done.output
    for number in (1, 2):
        assert f"recording {number} of 2: reading its content, 0.0 of 0.0 GB\n" in done.stderr


MEMORY = """
import sys
from pathlib import Path
from featurecache.video.sampling import ClipFrames, read_clips
(clip,) = read_clips(Path(sys.argv[1]), [(0, 2_000_000)], int(sys.argv[2]), fit=lambda it: it[::16, ::16].copy())
assert isinstance(clip, ClipFrames)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def test_memory_of_a_decoder_does_not_grow_with_the_frames_it_converts(tmp_path):
    size = (2048, 1152)
    path = write_video(tmp_path / "large.mp4", count=30, fps=15, size=size, options={"preset": "ultrafast"})
    peaks = []
    for count in (1, 30):
        command = [sys.executable, "-c", MEMORY, str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    frame_mb = size[0] * size[1] * 1.5 / 2**20
    assert peaks[1] < peaks[0] + 12 * frame_mb  # 29 more were converted
