"""Recordings without files, for tests of the clip table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.annotations import Interval
from featurecache.clips.clip import ClipTable
from featurecache.clips.inventory import Inventory
from featurecache.clips.table import make_table
from featurecache.project.settings import Settings, parse_section
from featurecache.video.probing import VideoInfo
from featurecache.video.recordings import Recording, UnusableRecording

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


def built(
    recordings: Sequence[Recording],
    intervals: Mapping[str, Sequence[Interval]],
    labels: Sequence[str],
    sessions: Mapping[str, str],
    **sections: Mapping[str, Any],
) -> tuple[ClipTable, tuple[UnusableRecording, ...]]:
    """The clip table of these recordings and intervals; `sections` are those of the settings."""
    data = {"videos": "videos", "labels": tuple(labels), **sections.pop("data", {})}
    settings = parse_section({"data": data, "features": {"model": "demo"}, **sections}, Settings, "")
    spans = {name: list(own) for name, own in intervals.items()}
    return make_table(settings, Inventory(tuple(recordings), (), spans, sessions))
