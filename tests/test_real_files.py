"""The whole way on videos that nobody here wrote: odd ones run through, broken ones are listed."""

from pathlib import Path

import pytest

from featurecache.annotations import Interval
from featurecache.video.recordings import find_recordings
from tests.commands import run
from tests.projects import write_labels

VIDEOS = Path(__file__).parents[1].parent / "shared/data/video"

pytestmark = pytest.mark.skipif(not VIDEOS.exists(), reason="the shared real files are not on this machine")


def test_real_videos_go_the_whole_way(tmp_path: Path) -> None:
    recordings, unusable = find_recordings(VIDEOS)
    assert [item.name for item in unusable] == ["mp_result.webm"]
    intervals = {}
    for recording in recordings:
        third = recording.info.duration_us // 3
        intervals[recording.name] = [Interval(0, third, "first"), Interval(third, 2 * third, "second")]
    write_labels(tmp_path / "labels.csv", intervals)
    project = tmp_path / "project"
    run("init", project, "--videos", VIDEOS, "--annotations", tmp_path / "labels.csv", "--model", "demo")
    settings = project / "featurecache.toml"
    text = settings.read_text().replace("length_s = 3", "length_s = 1").replace("stride_s = 3", "stride_s = 0.5")
    settings.write_text(text)
    clips = run("clips", "--config", project, code=3)
    assert {item["name"] for item in clips["unusable"]} == {
        "mp_result.webm",
        "decord_video_0.mov",
        "decord_video_90.mov",
    }
    extracted = run("extract", "--config", project, code=3)
    assert {item["recording"] for item in extracted["failed"]} == {"decord_corrupted.mp4"}
    assert all(item["reason"] for item in extracted["failed"])
    assert extracted["extracted"] == extracted["planned"] - len(extracted["failed"]) > 80
    best = run("tune", "--trials", 20, "--config", project)
    assert best["trials"]["completed"] + best["trials"]["pruned"] == 20
    scores = run("evaluate", "--config", project)
    assert scores["n_sessions"] < 5
    assert scores["macro_f1_ci95"] is None
    assert "5 sessions" in scores["macro_f1_ci95_reason"]
