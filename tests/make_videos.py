"""Small odd video files whose pictures carry their own number, so that truth needs no decoder."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
BLOCK = 16


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """RGB noise that moves with the number, and the number itself as a row of black and white blocks."""
    noise = np.random.default_rng(7).integers(60, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = np.roll(noise.repeat(8, 0).repeat(8, 1)[:height, :width], 3 * number, axis=1)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    blocks = [picture[4:12, bit * BLOCK + 4 : (bit + 1) * BLOCK - 4].mean() > 128 for bit in range(BITS)]
    return sum(1 << bit for bit, on in enumerate(blocks) if on)


def write_video(
    path: Path,
    *,
    count: int = 100,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (176, 96),
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    audio_ms: tuple[int, int] | None = None,
    fps: int = 25,
    metadata: dict[str, str] | None = None,
    ticks_per_s: int | None = None,
) -> Path:
    """Write pictures 0..count-1 at the given times; `audio_ms` adds silence from one time to another.

    With `ticks_per_s=fps` an AVI has no empty chunk between its pictures, as cameras write it.
    """
    if times_ms is None:
        times_ms = [number * 1000 // fps for number in range(count)]
    with av.open(str(path), "w", format=container_format, container_options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        # x264's macroblock tree reads memory it never wrote, so that a file would differ from one run to the next.
        steady = {"mbtree": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options={**steady, **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1  # rate control on several threads depends on their timing
        stream.codec_context.time_base = Fraction(1, ticks_per_s or (1000 if codec != "mpeg2video" else fps))
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        if audio_ms is not None:
            sound = container.add_stream("aac", rate=16000, layout="mono")
            for start in range(audio_ms[0] * 16, audio_ms[1] * 16, 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts, silence.time_base = 16000, start, Fraction(1, 16000)
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = int(Fraction(time_ms, 1000) / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy_stream(source: Path, index: int, target: Path, **container_options: str) -> Path:
    """One stream of a file, alone, packets untouched."""
    with av.open(str(source)) as read, av.open(str(target), "w", container_options=container_options) as write:
        original = read.streams[index]
        copy = write.add_stream_from_template(original)
        for packet in read.demux(original):
            if packet.dts is not None:
                packet.stream = copy
                write.mux(packet)
    return target


def packet_places(path: Path) -> list[tuple[int, int]]:
    """(offset, size) of each video packet in the file, in decoding order."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]


def loop_packets(source: Path, target: Path, count: int) -> Path:
    """A file's video packets `count` times over, untouched; the first picture must need none before it."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        original = read.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in read.demux(original) if p.size]
        length = sum(duration for _, _, _, duration, _ in packets)
        copy = write.add_stream_from_template(original)
        for turn in range(count):
            for data, pts, dts, duration, is_keyframe in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base = copy, original.time_base
                packet.pts, packet.dts, packet.duration = pts + turn * length, dts + turn * length, duration
                packet.is_keyframe = is_keyframe
                write.mux(packet)
    return target
