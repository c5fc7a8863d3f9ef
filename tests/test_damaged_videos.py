"""Damaged, hostile and hopeless recordings: their clips fail with a reason, and no other clip does."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from featurecache.errors import UnreadableVideoError, UnsafeFileError
from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFailure, ClipFrames, read_clips
from tests.make_videos import copy_stream, numbered_picture, packet_places, write_video
from tests.video_samples import (
    SECOND,
    SHARED,
    assert_same,
    needs_shared,
    read_all,
)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mkv", "transport.ts", "h264.avi", "fragmented.mp4"])
def test_truncated_file_keeps_the_clips_before_the_cut(drawn_videos, tmp_path, name):
    spans = [(s, s + 500_000) for s in range(0, 4 * SECOND, 500_000)]
    intact = read_all(drawn_videos / name, spans)
    source = drawn_videos / name
    if name == "b_frames.mp4":  # its index stands at the end, where a cut would lose everything
        source = copy_stream(source, 0, tmp_path / "index_first.mp4", movflags="faststart")
        (tmp_path / "no_index.mp4").write_bytes((drawn_videos / name).read_bytes()[:-200])
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
            assert isinstance(item, ClipFailure) or (item.stacked == whole_clip.stacked).all()


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
            assert isinstance(item, ClipFailure) or (item.stacked == whole_clip.stacked).all()


@pytest.mark.parametrize("decode_all", [False, True])
def test_clip_fails_when_its_frames_were_shown_before_their_damaged_reference(grouped_videos, tmp_path, decode_all):
    path = grouped_videos / "flat.mp4"
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
    assert (first.stacked.shape[1:3], second.stacked.shape[1:3]) == ((96, 176), (192, 320))
    assert "one size" in across.reason
    _, again, _ = read_all(path, spans, fit=lambda picture: picture[:8, :8])
    assert again == across
    first, across, second = read_all(path, spans, max_pixels=20_000)
    assert isinstance(first, ClipFrames)
    assert "at most 20000 pixels" in across.reason
    assert "at most 20000 pixels" in second.reason


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
def test_hopeless_file_opens_no_socket_and_prints_nothing(tmp_path, drawn_videos):
    names = [f"{name}.mp4" for name in hopeless_files(tmp_path, "http://127.0.0.1:9") if name not in ("folder", "pipe")]
    data = bytearray((drawn_videos / "b_frames.mp4").read_bytes())
    offset, size = packet_places(drawn_videos / "b_frames.mp4")[5]
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


def test_large_picture_is_refused_before_it_is_decoded(drawn_videos):
    with pytest.raises(UnreadableVideoError, match=r"at most 16895 pixels, but .* has 176 x 96"):
        probe(drawn_videos / "b_frames.mp4", max_pixels=176 * 96 - 1)
    items = read_all(drawn_videos / "b_frames.mp4", [(0, SECOND)], max_pixels=176 * 96 - 1)
    assert "at most 16895 pixels" in items[0].reason
    assert isinstance(read_all(drawn_videos / "b_frames.mp4", [(0, SECOND)], max_pixels=176 * 96)[0], ClipFrames)


def test_undecodable_text_in_the_file_is_no_obstacle(tmp_path):
    path = write_video(tmp_path / "a.mkv", count=10, metadata={"title": "QQQQQQ"})
    path.write_bytes(path.read_bytes().replace(b"QQQQQQ", b"\xe4\xff\xfe\xe4\xff\xfe"))
    assert probe(path).codec == "h264"


def test_time_limit_counts_own_work_only(drawn_videos):
    spans = [(s, s + 500_000) for s in range(0, 4 * SECOND, 500_000)]
    items = []
    for item in read_clips(drawn_videos / "b_frames.mp4", spans, time_limit_s=1.0):
        items.append(item)
        time.sleep(0.2)
    assert all(isinstance(item, ClipFrames) for item in items)
    items = read_all(drawn_videos / "b_frames.mp4", spans, time_limit_s=0.0)
    assert all("within 0 s" in item.reason for item in items)
