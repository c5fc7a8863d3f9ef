"""Damage by chance: what comes out of a damaged recording is right, or its clip fails."""

from collections import Counter

import pytest

from tests.damaged_videos import KINDS, RECIPES, outcomes

CONTAINERS = ["h264.mkv", "h264.avi", "hevc.mkv", "mjpeg.avi", "mjpeg.mkv", "mpeg4.avi"]
"""Where what is damaged in the container used to shift or stretch the times of frames."""


def test_damage_gives_no_clip_frames_of_another_time(tmp_path):
    found: Counter[str] = Counter()
    for name, kind, number, counts in outcomes(tmp_path, CONTAINERS, ("bit", "zeros", "noise"), 3):
        assert not counts["other times"], (name, kind, number)
        found.update(counts)
    assert found["right"] > found["failed"]
    # What a decoder does not notice: a few flipped bits that mean something else.
    assert found["other pixels"] < 0.06 * found.total()


@pytest.mark.slow
def test_much_damage_gives_hardly_a_clip_frames_of_another_time(tmp_path):
    found: Counter[str] = Counter()
    for _, _, _, counts in outcomes(tmp_path, list(RECIPES), KINDS, 20):
        found.update(counts)
    assert found["other times"] < 0.002 * found.total()
    assert found["other pixels"] < 0.08 * found.total()
