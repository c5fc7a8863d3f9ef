"""Recordings without files, for tests of the clip table."""

from pathlib import Path

from featurecache.video.probing import VideoInfo
from featurecache.video.recordings import Recording

S = 1_000_000


def recording(name: str, duration_s: float = 12) -> Recording:
    info = VideoInfo(
        duration_us=round(duration_s * S),
        width_px=64,
        height_px=48,
        rotation_deg=0,
        codec="h264",
        pixel_format="yuv420p",
        average_fps=25.0,
    )
    return Recording(name, Path("/videos") / name, name.encode().hex().ljust(64, "0"), info)
