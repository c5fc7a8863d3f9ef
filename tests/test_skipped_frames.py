"""Frames that are not one: left out where no sample needs them, and the clips are the same."""

from pathlib import Path

import av
import numpy as np
import pytest

from featurecache.video import sampling as video
from featurecache.video.containers import open_video
from featurecache.video.decoding import DecodedFrame, SkippedFrameRequired, decode
from featurecache.video.sampling import ClipFailure, ClipFrames
from tests.make_videos import copy_stream, packet_places, write_video
from tests.video_samples import (
    GROUPED,
    REAL,
    SECOND,
    SHARED,
    UNGROUPED,
    assert_same,
    needs_shared,
    read_all,
    some_spans,
)


def left_out_share(path: Path, spans: list[tuple[int, int]], frame_count: int) -> float:
    with open_video(path, max_pixels=video.MAX_PIXELS) as opened:
        sampler = video._Sampler(opened, [video._Clip(*span) for span in spans], frame_count, None, video.MAX_PIXELS)
        frames = [one for one in decode(opened, sampler.ticks) if one is not None]
        for one in frames:
            sampler.advance(one)  # raises where a sample falls on a picture that was left out
    return sum(one.left_out for one in frames) / (len(frames) - 1)


@pytest.mark.parametrize("name", [*GROUPED, *UNGROUPED])
def test_read_clips_gives_the_same_when_frames_are_skipped(grouped_videos, name):
    random = np.random.default_rng(len(name))
    for _ in range(3):
        spans, frame_count = some_spans(random, grouped_videos / name)
        skipped = read_all(grouped_videos / name, spans, frame_count)
        for item, other in zip(
            skipped, read_all(grouped_videos / name, spans, frame_count, decode_all=True), strict=True
        ):
            assert_same(item, other)


@needs_shared
@pytest.mark.parametrize("name", [*REAL, "bikes.mp4", "mp_chaplin.mp4", "decord_corrupted.mp4", "decord_video_0.mov"])
def test_read_clips_gives_the_same_for_real_files_when_frames_are_skipped(name):
    spans, frame_count = some_spans(np.random.default_rng(len(name)), SHARED / name)
    skipped = read_all(SHARED / name, spans, frame_count)
    for item, other in zip(skipped, read_all(SHARED / name, spans, frame_count, decode_all=True), strict=True):
        assert_same(item, other)


def test_decode_leaves_out_what_no_sample_falls_on_and_nothing_refers_to(grouped_videos):
    spans = [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    assert left_out_share(grouped_videos / "flat.mp4", spans, 4) > 0.5
    assert left_out_share(grouped_videos / "hevc.ts", spans, 4) > 0.5
    assert left_out_share(grouped_videos / "deep.mp4", spans, 4) > 0.3
    assert left_out_share(grouped_videos / "flat.mp4", spans, 20) == 0.0
    assert [left_out_share(grouped_videos / name, spans, 4) for name in UNGROUPED] == [0.0] * 4


def test_decode_leaves_out_what_stands_between_the_last_sample_and_where_the_coding_begins_anew(grouped_videos):
    sparse = [(100_000, 500_000), (2_600_000, 2_700_000)]  # in the first, the second and the seventh ten pictures
    assert left_out_share(grouped_videos / "seconds.mp4", sparse, 2) > 0.5
    assert left_out_share(grouped_videos / "seconds.ts", sparse, 2) > 0.5
    assert left_out_share(grouped_videos / "seconds_hevc.mp4", sparse, 2) > 0.5
    assert left_out_share(grouped_videos / "intra.mkv", [(0, 4_800_000)], 16) > 0.8
    assert (
        left_out_share(grouped_videos / "open_groups.mkv", sparse, 2)
        < left_out_share(grouped_videos / "flat.mp4", sparse, 2) + 0.2
    )


def test_decode_keeps_no_long_list_of_what_it_left_out(tmp_path):
    path = write_video(tmp_path / "long.mp4", count=3000, options={"bf": "0", "g": "10"})
    left_out = [one.left_out for one in decoded_of(path, [(119_000_000, 119_500_000)], 2)]
    longest = max(len(run) for run in "".join("x" if one else " " for one in left_out).split())
    assert 1000 < longest < 1100


def decoded_of(path: Path, spans: list[tuple[int, int]], frame_count: int) -> list[DecodedFrame]:
    with open_video(path, max_pixels=video.MAX_PIXELS) as opened:
        sampler = video._Sampler(opened, [video._Clip(*span) for span in spans], frame_count, None, video.MAX_PIXELS)
        return [one for one in decode(opened, sampler.ticks) if one is not None]


def test_decode_asks_for_every_picture_when_damage_turns_up_beside_one_left_out(grouped_videos, tmp_path):
    path, spans = grouped_videos / "flat.mp4", [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(container.streams.video[0]) if packet.size]
    number = max(range(60, 80), key=lambda i: sizes[i])  # a reference
    data, (offset, size) = bytearray(path.read_bytes()), packet_places(path)[number]
    data[offset + 20 : offset + size] = np.random.default_rng(0).bytes(size - 20)
    (tmp_path / "hit.mp4").write_bytes(data)
    with pytest.raises(SkippedFrameRequired):
        decoded_of(tmp_path / "hit.mp4", spans, 4)
    # The end of a cut file is seen coming: it is not read twice.
    source = copy_stream(path, 0, tmp_path / "index_first.mp4", movflags="faststart")
    offset, size = packet_places(source)[100]
    for end in (offset, offset + size // 2):
        (tmp_path / "cut.mp4").write_bytes(source.read_bytes()[:end])
        left_out = [one.left_out for one in decoded_of(tmp_path / "cut.mp4", spans, 4)]
        assert sum(left_out[:60]) > 30


def test_decode_leaves_out_no_reference_whose_damaged_header_says_otherwise(grouped_videos, tmp_path):
    path, spans = grouped_videos / "flat.mp4", [(s, s + 800_000) for s in range(0, 4_800_000, 800_000)]
    whole = decoded_of(path, spans, 4)
    number = next(one.order for one in whole if one.order > 60 and not one.left_out and one.frame.pict_type == 2)
    data, (offset, _) = bytearray(path.read_bytes()), packet_places(path)[number]
    data[offset + 4] &= 0x1F  # the unit's header: no picture refers to this one
    (tmp_path / "posing.mp4").write_bytes(data)
    assert number not in [one.order for one in decoded_of(tmp_path / "posing.mp4", spans, 4) if one.left_out]


def test_sampler_asks_for_every_picture_when_a_sample_falls_on_one_left_out(grouped_videos):
    with open_video(grouped_videos / "flat.mp4", max_pixels=video.MAX_PIXELS) as opened:
        for first_left_out in (False, True):
            sampler = video._Sampler(opened, [video._Clip(0, SECOND)], 1, None, video.MAX_PIXELS)
            tick = sampler.ticks[0]
            if first_left_out:
                with pytest.raises(SkippedFrameRequired):
                    sampler.advance(DecodedFrame(None, tick + 10**6, 0, True, None, None, 0, left_out=True))
                continue
            sampler.advance(DecodedFrame(None, tick, 0, True, None, None, 0, left_out=True))
            with pytest.raises(SkippedFrameRequired):
                sampler.advance(DecodedFrame(None, tick + 1, 1, True, None, None, 1, left_out=True))


@pytest.mark.parametrize("name", ["flat.mp4", "deep.mp4", "slices.ts", "hevc.mp4", "hevc.ts", "irregular.mkv"])
def test_read_clips_fails_the_same_clips_of_a_cut_file_when_frames_are_skipped(grouped_videos, tmp_path, name):
    whole, places = (grouped_videos / name).read_bytes(), packet_places(grouped_videos / name)
    source = grouped_videos / name
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
def test_read_clips_hands_out_no_damaged_frame_when_frames_are_skipped(grouped_videos, tmp_path, name):
    """As without leaving out, or better: what was damaged and never needed costs no clip.

    Where the decoder notices nothing, its pictures are undefined, and nothing is asked of them.
    """
    random = np.random.default_rng(len(name))
    places = packet_places(grouped_videos / name)
    spans, refused = [(s, s + 300_000) for s in range(0, 4 * SECOND, 300_000)], 0
    intact = read_all(grouped_videos / name, spans, 2)
    for _ in range(8):
        data = bytearray((grouped_videos / name).read_bytes())
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
                assert (item.stacked == whole.stacked).all() or not (other.stacked == whole.stacked).all()
    assert refused, "damage is noticed"
