import av
import pytest

from featurecache.video.nal_units import PacketReader
from tests.make_videos import write_video

FLAT = "b-adapt=0:b-pyramid=none:bframes=3:keyint=40"
FILES = {
    "h264.mp4": {"options": {"x264-params": FLAT}},
    "h264.ts": {"options": {"x264-params": FLAT + ":slices=2"}},
    "high_422.mkv": {"options": {"x264-params": FLAT + ":cqm=jvt"}, "pixel_format": "yuv422p"},
    "baseline.mp4": {"options": {"profile": "baseline"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": FLAT.replace("none", "0") + ":log-level=none"}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": FLAT.replace("none", "0") + ":log-level=none"}},
}


def packets_of(path) -> tuple[str, bytes | None, list[bytes], list[av.Packet]]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        return context.codec.canonical_name, context.extradata, [bytes(packet) for packet in packets], packets


@pytest.mark.parametrize("name", FILES)
def test_is_disposable_tells_packets_that_the_decoder_can_do_without(tmp_path, name):
    path = write_video(tmp_path / name, count=80, **FILES[name])
    codec, extradata, contents, _ = packets_of(path)
    reader = PacketReader(codec, extradata)
    disposable = [reader.is_disposable(content) for content in contents]
    assert reader.is_consistent
    assert sum(disposable) >= 55 if name != "baseline.mp4" else not any(disposable)
    pictures = []
    for leave_out in (False, True):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.size]
            kept = [
                p for p, is_disposable in zip(packets, disposable, strict=True) if not (leave_out and is_disposable)
            ]
            frames = [frame for p in [*kept, None] for frame in stream.codec_context.decode(p)]
            pictures.append({frame.pts: frame.to_ndarray().tobytes() for frame in frames})
    every, without = pictures
    assert len(without) == 80 - sum(disposable)
    assert all(every[pts] == picture for pts, picture in without.items())


def test_is_disposable_is_never_so_where_it_cannot_be_known(tmp_path):
    recipes = {
        "fields.mp4": {"options": {"x264-params": FLAT + ":tff=1", "flags": "+ildct+ilme"}},
        "sub_layers.mp4": {"codec": "libx265", "options": {"x265-params": "temporal-layers=3:log-level=none"}},
        "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    }
    for name, recipe in recipes.items():
        codec, extradata, contents, _ = packets_of(write_video(tmp_path / name, count=40, **recipe))
        reader = PacketReader(codec, extradata)
        assert sum(map(reader.is_disposable, contents)) == 0
    codec, extradata, contents, _ = packets_of(write_video(tmp_path / "a.mp4", count=40, **FILES["h264.mp4"]))
    for header in (None, b"", extradata[:6], extradata[:9]):  # no parameter set, or half of one
        reader = PacketReader(codec, header)
        assert sum(map(reader.is_disposable, contents)) == 0
    reader = PacketReader(codec, extradata)
    assert sum(reader.is_disposable(content[: len(content) // 2]) for content in contents) == 0


def test_is_disposable_is_never_so_when_sub_layers_may_refer_to_the_lowest(tmp_path):
    codec, extradata, contents, _ = packets_of(write_video(tmp_path / "a.ts", count=40, **FILES["hevc.ts"]))
    for sub_layers, expected in ((1, True), (2, False)):
        begin = b"\0\0\1\x42\1"  # a sequence parameter set: 4 bits of identity, 3 of sub-layers less one, a flag
        changed = [
            part.replace(begin + b"\1", begin + bytes([(sub_layers - 1) << 1 | 1])) for part in [extradata, *contents]
        ]
        assert begin in changed[0]
        reader = PacketReader(codec, changed[0])
        assert any(map(reader.is_disposable, changed[1:])) == expected


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "closed.mp4", "closed.ts", "open.mp4"])
def test_is_idr_tells_where_a_decoder_may_begin(tmp_path, name):
    hevc = f"open-gop={int(name == 'open.mp4')}:bframes=3:keyint=10:log-level=none"
    recipe = FILES.get(name, {"codec": "libx265", "options": {"x265-params": hevc}})
    path = write_video(tmp_path / name, count=80, **recipe)
    codec, extradata, contents, packets = packets_of(path)
    reader = PacketReader(codec, extradata)
    idr, plain = [], []
    for number, content in enumerate(contents):
        reader.is_disposable(content)
        idr += [number] * reader.is_idr
        plain += [number] * reader.is_plain
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert idr == (keys if name != "open.mp4" else keys[:1])
    assert len(plain) >= 79, "parameter sets that repeat the last ones do not count"
    changed = content[:-1] if name.endswith("mp4") else b"\0\0\1\x0a" + content  # torn, or a unit of another kind
    reader.is_disposable(changed)
    assert not reader.is_plain


def test_is_plain_is_never_so_when_parameter_sets_are_other_ones(tmp_path):
    codec, extradata, contents, _ = packets_of(write_video(tmp_path / "a.ts", count=80, **FILES["h264.ts"]))
    reader = PacketReader(codec, extradata)
    at = next(number for number, content in enumerate(contents) if number and b"\0\0\1\x68" in content)
    for content in contents[:at]:
        reader.is_disposable(content)
    begin = contents[at].index(b"\0\0\1\x68") + 4
    other = contents[at][:begin] + bytes([contents[at][begin] ^ 1]) + contents[at][begin + 1 :]
    for content, expected in ((contents[at], True), (other, False), (contents[at], False), (contents[at], True)):
        reader.is_disposable(content)
        assert reader.is_plain == expected


def test_is_consistent_ends_when_a_reference_is_missing_or_poses_as_none(tmp_path):
    codec, extradata, contents, packets = packets_of(write_video(tmp_path / "a.mp4", count=60, **FILES["h264.mp4"]))
    clean = PacketReader(codec, extradata)
    disposable = [clean.is_disposable(content) for content in contents]
    assert clean.is_consistent
    reference = next(i for i in range(20, 60) if not disposable[i] and not packets[i].is_keyframe)
    missing = PacketReader(codec, extradata)
    for i, content in enumerate(contents):
        if i != reference:
            missing.is_disposable(content)
    assert not missing.is_consistent
    posing = PacketReader(codec, extradata)
    for i, content in enumerate(contents):
        posing.is_disposable(content if i != reference else content[:4] + bytes([content[4] & 31]) + content[5:])
    assert not posing.is_consistent
