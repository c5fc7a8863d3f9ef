"""Sizes that only real runs have: a recording of hours, a model of billions. By hand: pytest -m slow."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import full_size
from featurecache.backbones import DEMO_MODEL, find_model, open_backbone, open_inputs
from featurecache.clips.clip import clip_id
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.pipeline import Progress, extract
from featurecache.spec import feature_space, parse_feature
from featurecache.store import CacheWriter, FeatureCache
from featurecache.video.digests import DigestMemo
from featurecache.video.recordings import find_recordings
from tests.make_videos import loop_packets, write_video

KEPT = "final/mean"
MINUTE_US = 60_000_000
MOST_GROWTH_BYTES = 40e6


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
def test_extract_needs_no_more_memory_when_a_recording_lasts_two_hours(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    minute = write_video(tmp_path / "minute.mp4", count=1500, size=(320, 240), options={"preset": "ultrafast"})
    loop_packets(minute, tmp_path / "videos/long.mp4", 120)
    (recording,), _ = find_recordings(tmp_path / "videos")
    assert recording.info.duration_us == 120 * MINUTE_US
    spans = [(start, start + 3_000_000) for start in range(0, 120 * MINUTE_US, 10_000_000)]
    inputs = open_inputs(find_model(DEMO_MODEL), prompt="<video>", frames=16, resize="crop")
    backbone = open_backbone(inputs, dtype="float32", device="cpu")
    space = feature_space(
        inputs,
        parse_feature(KEPT, inputs.taps),
        dtype="float32",
        stored_dtype="float32",
        sha256_of=DigestMemo(None).sha256,
    )
    seen: list[tuple[int, int]] = []

    def watch(now: Progress) -> None:
        seen.append((now.extracted, resident_bytes()))

    with CacheWriter(tmp_path / "cache", space, {}) as writer:
        done = extract(
            [[ClipRecord(recording, *span, (KEPT,)) for span in spans]],
            backbone,
            {KEPT: writer},
            batch_size=4,
            decoders=2,
            device="cpu",
            on_progress=watch,
        )
    assert done.progress.extracted == len(spans) == 720
    ten_minutes = max(held for clips, held in seen if clips <= 60)
    later = max(held for clips, held in seen if clips > 60)
    assert later - ten_minutes < MOST_GROWTH_BYTES, f"{ten_minutes / 1e6:.0f} MB in 10 minutes, then {later / 1e6:.0f}"
    rows = FeatureCache.open(tmp_path / "cache").load([clip_id(recording.sha256, *span) for span in spans])
    np.testing.assert_allclose(rows[6:12], rows[-6:], rtol=0, atol=1e-5)  # the same minute, over and over


@pytest.mark.slow
def test_full_width_model_runs_when_its_weights_are_random(tmp_path: Path) -> None:
    figures = full_size.extract_one(full_size.write_model_files(tmp_path, layers=2), frames=2, upcast=True)
    assert figures["feature_width"] == 4096
    assert figures["feature_is_finite"]
    assert figures["feature_std"] > 0.1
    assert figures["peak_bytes"] < 8e9
