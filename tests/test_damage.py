"""Damage by chance: what comes out of a damaged recording is right, or its clip fails."""

from collections import Counter

import av
import pytest

from featurecache.video.sampling import ClipFrames, read_clips
from tests.damaged_videos import FRAMES, KINDS, RECIPES, SPANS, outcomes
from tests.make_videos import write_video

SOME = ["h264.mp4", "h264.mkv", "h264.avi", "hevc.mkv", "hevc.ts", "mpeg2.mpg", "mjpeg.avi", "mjpeg.mkv", "mpeg4.avi"]


def test_damage_gives_no_clip_frames_of_another_time(tmp_path):
    found: Counter[str] = Counter()
    for name, kind, number, counts in outcomes(tmp_path, SOME, ("bit", "zeros", "noise"), 3):
        assert not counts["other times"], (name, kind, number)
        found.update(counts)
    assert found["right"] > found["failed"]
    # What a decoder does not notice: a few flipped bits that mean something else.
    assert found["other pixels"] < 0.06 * found.total()


def test_a_webcam_whose_every_frame_ends_early_loses_no_clip(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", codec="mjpeg", pixel_format="yuvj420p")
    path = tmp_path / "webcam.mkv"
    with av.open(str(whole)) as read, av.open(str(path), "w") as write:
        original = read.streams.video[0]
        copy = write.add_stream_from_template(original)
        for packet in read.demux(original):
            if packet.size:
                short = av.Packet(bytes(packet)[:-30] + b"\xff\xd9")
                short.stream, short.pts, short.dts, short.time_base = copy, packet.pts, packet.dts, packet.time_base
                write.mux(short)
    assert all(isinstance(clip, ClipFrames) for clip in read_clips(path, SPANS, FRAMES))


@pytest.mark.slow
def test_much_damage_gives_hardly_a_clip_frames_of_another_time(tmp_path):
    found: Counter[str] = Counter()
    for _, _, _, counts in outcomes(tmp_path, list(RECIPES), KINDS, 20):
        found.update(counts)
    assert found["other times"] < 0.002 * found.total()
    assert found["other pixels"] < 0.08 * found.total()
