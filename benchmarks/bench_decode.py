"""What it costs to get a recording's sampled frames, beside decoding the file once and doing nothing else.

    python -m benchmarks.bench_decode [--quick] [--video FILE ...]

Recordings are made here: 1024 x 768 at 25 fps, texture with camera noise and things that move, 4 Mb/s in H.264:
without B-frames, the same with a key picture every second as cameras write it, with 3 B-frames that nothing refers to,
with x264's usual pyramid (where one B-frame in three is a reference), and in HEVC. Clips are 3 s with 16 frames, end
to end. `sampled` is `read_clips` (RGB conversion included, resize not); `floor` is PyAV decoding every picture of the
file, one thread, nothing kept. Both are CPU time, taken in turn on the same file; a figure is the ratio of the least
of each, as other work on the machine only adds. Beside it stand the ratio when every picture is decoded, and two more
floors: `references` is PyAV decoding the pictures that others refer to and no other; `needed` is PyAV decoding the
packets that `read_clips` decodes, and nothing else: what is beyond it is conversion and bookkeeping. `sparse` is
`read_clips` for a clip of 3 s every 12 s.

`preprocess` compares, per clip: the recipe people write (seek to the clip, decode it all to RGB, pick 16 frames, the
model's video processor) with `read_clips` and `FrameResize` over the same clips. `memory` is the peak of a process
that reads a recording of two hours (10 minutes with --quick), made by repeating packets, against one that reads
half a minute of it. `--video` adds your own files.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import PictureType

from benchmarks.targets import Target, print_document
from featurecache.backbones.resize import FrameResize
from featurecache.video.containers import MAX_PIXELS, open_video
from featurecache.video.decoding import decode
from featurecache.video.nal_units import PacketReader
from featurecache.video.probing import probe
from featurecache.video.sampling import ClipFrames, read_clips

WIDTH, HEIGHT, FPS, IMAGE_PX = 1024, 768, 25, 336
CLIP_US, FRAMES = 3_000_000, 16
RATE = "bitrate=4000:vbv-maxrate=6000:vbv-bufsize=6000"
HEVC_RATE = RATE + ":log-level=none"
FILES = {
    "h264, no B-frames": ("libx264", f"bframes=0:{RATE}"),
    "h264, key picture every second": ("libx264", f"keyint=25:scenecut=0:bframes=0:{RATE}"),
    "h264, 3 B-frames": ("libx264", f"bframes=3:b-adapt=0:b-pyramid=none:{RATE}"),
    "h264, 3 B-frames in a pyramid": ("libx264", f"bframes=3:b-adapt=0:b-pyramid=normal:{RATE}"),
    "hevc, no B-frames": ("libx265", f"bframes=0:{HEVC_RATE}"),
    "hevc, 3 B-frames": ("libx265", f"bframes=3:b-adapt=0:b-pyramid=0:{HEVC_RATE}"),
}
BOUNDS = {
    "h264, no B-frames": 1.15,
    "h264, key picture every second": 1.15,
    "h264, 3 B-frames": 0.6,
    "h264, 3 B-frames in a pyramid": 1.15,
    "hevc, no B-frames": 1.15,
    "hevc, 3 B-frames": 0.6,
}


def scene(number: int, texture: np.ndarray, noise: list[np.ndarray]) -> np.ndarray:
    """One picture, (HEIGHT, WIDTH, 3): a still background, a part of it that moves, noise."""
    picture = texture[60 : 60 + HEIGHT, 100 : 100 + WIDTH].copy()
    x, y = 4 * number % (WIDTH - 300), 220 + int(40 * np.sin(number / 9))
    picture[y : y + 300, x : x + 300] = texture[y : y + 300, 300:600]
    return np.clip(picture + noise[number % len(noise)], 0, 255).astype(np.uint8)


def make(paths: dict[str, Path], preset: str, seconds: int) -> None:
    """Encode one scene into recordings of every kind."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(40, 215, (1, 3, HEIGHT // 8 + 32, WIDTH // 8 + 128)).astype(np.float32))
    texture = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")[0].permute(1, 2, 0).numpy()
    noise = [random.normal(0, 8, (HEIGHT, WIDTH, 1)).astype(np.float32) for _ in range(8)]
    with ExitStack() as stack:
        outputs = []
        for kind, path in paths.items():
            codec, settings = FILES[kind]
            container = stack.enter_context(av.open(str(path), "w"))
            options = (
                {"preset": preset, "x264-params": settings}
                if codec == "libx264"
                else {"preset": "ultrafast", "x265-params": settings}
            )
            stream = container.add_stream(codec, rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            outputs.append((container, stream))
        for number in range(seconds * FPS):
            frame = av.VideoFrame.from_ndarray(scene(number, texture, noise), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            for container, stream in outputs:
                frame.pict_type = PictureType.NONE
                container.mux(stream.encode(frame))
        for container, stream in outputs:
            container.mux(stream.encode())


def repeat(source: Path, target: Path, count: int) -> None:
    """The packets of a file `count` times over, untouched."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        original = read.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in read.demux(original) if p.size]
        length = sum(packet[3] for packet in packets)
        copy = write.add_stream_from_template(original)
        for turn in range(count):
            for data, pts, dts, duration, is_keyframe in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.duration = copy, original.time_base, duration
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.is_keyframe = is_keyframe
                write.mux(packet)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def spans_of(path: Path) -> list[tuple[int, int]]:
    """Clips end to end, over the whole recording."""
    end_us = probe(path).duration_us
    return [(start, start + CLIP_US) for start in range(0, end_us - CLIP_US + 1, CLIP_US)]


def decode_once(path: Path) -> None:
    """The floor."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def read_sampled(path: Path, spans: list[tuple[int, int]], *, decode_all: bool) -> None:
    """All clips, each dropped when the next one comes."""
    had = sum(isinstance(c, ClipFrames) for c in read_clips(path, spans, FRAMES, decode_all=decode_all))
    if had < len(spans) - 1:
        raise SystemExit(f"only {had} of {len(spans)} clips of {path} could be had")


def decode_some(path: Path, numbers: set[int]) -> None:
    """Decode the packets of these numbers and no other."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for number, packet in enumerate(container.demux(stream)):
            if number in numbers or not packet.size:
                stream.codec_context.decode(packet)


def references(path: Path) -> set[int]:
    """Numbers of the packets whose pictures others may refer to."""
    with av.open(str(path)) as container:
        context = container.streams.best("video").codec_context
        reader = PacketReader(context.codec.canonical_name, context.extradata)
        packets = enumerate(container.demux(container.streams.best("video")))
        return {number for number, packet in packets if packet.size and not reader.is_disposable(bytes(packet))}


def needed(path: Path, spans: list[tuple[int, int]]) -> set[int]:
    """Numbers of the packets that `read_clips` decodes."""
    end_us = max(end_us for _, end_us in spans)
    middles = [start + (2 * k + 1) * (end - start) / (2 * FRAMES) for start, end in spans for k in range(FRAMES)]
    with open_video(path, max_pixels=MAX_PIXELS) as video:
        ticks = sorted(video.to_ticks(round(middle)) for middle in middles)
        frames = [decoded for decoded in decode(video, ticks) if decoded is not None and not decoded.is_end]
        return {decoded.order for decoded in frames if not decoded.left_out and video.to_us(decoded.pts) < end_us}


def measure_decoding(path: Path, turns: int) -> dict[str, float]:
    """Ratios of reading sampled frames to decoding the file once."""
    spans = spans_of(path)
    sparse, some, others_refer_to = spans[::4], needed(path, spans), references(path)
    works: dict[str, Callable[[], object]] = {
        "floor_s": lambda: decode_once(path),
        "sampled": lambda: read_sampled(path, spans, decode_all=False),
        "needed": lambda: decode_some(path, some),
        "references": lambda: decode_some(path, others_refer_to),
        "sparse": lambda: read_sampled(path, sparse, decode_all=False),
        "sampled_decode_all": lambda: read_sampled(path, spans, decode_all=True),
    }
    taken = [{name: cpu_s(work) for name, work in works.items()} for _ in range(turns)]
    least = {name: min(turn[name] for turn in taken) for name in works}
    return {name: value if name == "floor_s" else value / least["floor_s"] for name, value in least.items()}


def measure_preprocessing(path: Path, turns: int) -> dict[str, float]:
    """CPU milliseconds per clip, decoding included: the usual recipe, and this package."""
    from transformers import LlavaNextVideoVideoProcessor

    size = {"size": {"shortest_edge": IMAGE_PX}, "crop_size": {"height": IMAGE_PX, "width": IMAGE_PX}}
    processor = LlavaNextVideoVideoProcessor(**size)
    resize = FrameResize(image_px=IMAGE_PX, resize="crop", mean=processor.image_mean, std=processor.image_std)
    spans = spans_of(path)

    def usual() -> list[torch.Tensor]:
        results = []
        for start_us, end_us in spans:
            with av.open(str(path)) as container:
                container.seek(start_us)
                frames = []
                for frame in container.decode(video=0):
                    if frame.time * 1e6 >= end_us - 1:
                        break
                    if frame.time * 1e6 >= start_us - 1:
                        frames.append(frame.to_ndarray(format="rgb24"))
            length = len(frames)
            chosen = np.stack([frames[int((k + 0.5) * length / FRAMES)] for k in range(FRAMES)])
            results.append(processor(list(chosen[None]), do_sample_frames=False, return_tensors="pt"))
        return [result["pixel_values_videos"][0] for result in results]

    def ours() -> list[torch.Tensor]:
        clips = read_clips(path, spans, FRAMES)
        return [
            torch.cat([resize(torch.from_numpy(frame)[None]) for frame in clip.frames])
            for clip in clips
            if isinstance(clip, ClipFrames)
        ]

    same = [torch.equal(a, b) for a, b in zip(usual(), ours(), strict=True)]
    taken = [(cpu_s(usual) * 1e3 / len(spans), cpu_s(ours) * 1e3 / len(spans)) for _ in range(turns)]
    clip = next(c for c in read_clips(path, spans[:1], FRAMES) if isinstance(c, ClipFrames)).stacked
    frames = torch.from_numpy(clip).split(1)
    alone = [
        (
            cpu_s(lambda: processor(list(clip[None]), do_sample_frames=False, return_tensors="pt")) * 1e3,
            cpu_s(lambda: torch.cat([resize(frame) for frame in frames])) * 1e3,
        )
        for _ in range(turns + 1)
    ][1:]
    return {
        "usual_ms": min(a for a, _ in taken),
        "ours_ms": min(b for _, b in taken),
        "usual_over_ours": min(a for a, _ in taken) / min(b for _, b in taken),
        "processor_ms": min(a for a, _ in alone),
        "resize_ms": min(b for _, b in alone),
        "clips_with_equal_pixels": sum(same) / len(same),
    }


def measure_memory(source: Path, folder: Path, seconds: int, repeats: int) -> dict[str, float]:
    """Peak memory of reading a long recording, and what it exceeds that of a short one by."""
    code = (
        "import sys; from pathlib import Path; from featurecache.video.probing import probe\n"
        "from featurecache.video.sampling import read_clips\n"
        f"path = Path(sys.argv[1]); n = probe(path).duration_us // {CLIP_US}\n"
        f"spans = [(i * {CLIP_US}, (i + 1) * {CLIP_US}) for i in range(n)]\n"
        f"for clip in read_clips(path, spans, {FRAMES}): clip.timestamps_us\n"
        "status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(int(status['VmHWM'].split()[0]) / 1024)"
    )
    peaks = []
    for count in (max(1, 30 // seconds), repeats):
        path = folder / "long.mp4"
        repeat(source, path, count)
        command = [sys.executable, "-c", code, str(path)]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        path.unlink()
    return {"hours": repeats * seconds / 3600, "peak_mib": peaks[1], "more_than_30_s_mib": peaks[1] - peaks[0]}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="your own files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, turns = (6, 1) if options.quick else (24, 5)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {kind: folder / f"{i}.mp4" for i, kind in enumerate(FILES)}
        make(paths, "faster" if options.quick else "medium", seconds)
        for kind, path in [*paths.items(), *((str(path), path) for path in options.video)]:
            figures[kind] = measure_decoding(path, turns)
            print(kind, {key: round(value, 3) for key, value in figures[kind].items()}, file=sys.stderr, flush=True)
        figures["preprocess"] = measure_preprocessing(paths["h264, 3 B-frames"], turns)
        print(figures["preprocess"], file=sys.stderr, flush=True)
        hours = 1 / 30 if options.quick else 2
        small = folder / "small.mp4"
        shrink(paths["h264, 3 B-frames"], small)
        figures["memory"] = measure_memory(small, folder, seconds, int(hours * 3600 / seconds))
    targets: list[Target] = [
        (f"sampled frames, {kind}, over decoding once", figures[kind]["sampled"], bound, 1.5 * bound, "lower")
        for kind, bound in BOUNDS.items()
    ]
    more_mib, faster = figures["memory"]["more_than_30_s_mib"], figures["preprocess"]["usual_over_ours"]
    targets += [
        ("memory beyond 30 s, MiB", more_mib, 40, 40, "lower"),
        ("usual decode and preprocessing over ours", faster, 3.0, 2.0, "higher"),
    ]
    print_document("decode", figures, targets, quick=options.quick, pyav=av.__version__)


def shrink(source: Path, target: Path) -> None:
    """The same pictures, 160 x 120: for counting packets rather than pixels."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream("libx264", rate=FPS, options={"x264-params": "bframes=3:b-pyramid=none"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number, frame in enumerate(read.decode(video=0)):
            small = frame.reformat(160, 120)
            small.pts, small.time_base = number, Fraction(1, FPS)
            write.mux(stream.encode(small))
        write.mux(stream.encode())


if __name__ == "__main__":
    main()
