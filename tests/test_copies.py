"""Copies that were converted: found across splits by their pictures, and other recordings of the same room are none."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from featurecache.clips.copies import find_copies
from featurecache.project.settings import open_project
from featurecache.video.looks import Look, are_copies, look_of
from featurecache.video.recordings import find_recordings
from featurecache.workflow.clips import make_clips


def draw(path: Path, seed: int, *, codec: str = "libx264", size: tuple[int, int] = (96, 64), crf: str = "23") -> None:
    """A room that is always the same, in which a box goes its own way: 8 s of 10 frames."""
    room = np.random.default_rng(0).integers(60, 200, (8, 12, 3)).repeat(8, axis=0).repeat(8, axis=1)
    places = np.random.default_rng(seed).integers(0, [48, 80], (20, 2))
    options = {"crf": crf, "g": "7"} if codec == "libx264" else {"qscale": "6"}
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(80):
            picture = room.astype(np.uint8)
            y, x = places[number // 4]
            picture[y : y + 16, x : x + 16] = (250, 20, 20)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame.reformat(width=size[0], height=size[1])))
        out.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "videos"
    folder.mkdir()
    for seed in range(3):
        draw(folder / f"S{seed}.mp4", seed)
    draw(folder / "other name.avi", 1, codec="mpeg4", size=(64, 48), crf="40")
    return folder


@pytest.mark.parametrize("decoded_throughout", [True, False])
def test_a_converted_copy_looks_the_same_and_another_recording_of_the_room_does_not(
    videos: Path, decoded_throughout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not decoded_throughout:
        monkeypatch.setattr("featurecache.video.looks._SHORT_FRAMES", 14)
    looks = {path.name: look_of(path, 8_000_000) for path in videos.iterdir()}
    assert all(look is not None for look in looks.values())
    alike = {
        (one, other)
        for one, a in looks.items()
        for other, b in looks.items()
        if one < other and a is not None and b is not None and are_copies(a, b)
    }
    assert alike == {("S1.mp4", "other name.avi")}


def test_recordings_in_which_nothing_moves_are_no_copies_and_unreadable_ones_have_no_look(tmp_path: Path) -> None:
    still: Look = np.full((8, 16, 16, 3), 90, np.float32)
    assert not are_copies(still, still.copy())
    (tmp_path / "no.mp4").write_text("no video")
    assert look_of(tmp_path / "no.mp4", 1_000_000) is None


def test_what_was_compared_is_not_read_again(videos: Path) -> None:
    recordings, _ = find_recordings(videos)
    compared, copies = find_copies(recordings, (), ())
    assert len(copies) == 1
    gone = [type(one)(one.name, videos / "gone", one.sha256, one.info) for one in recordings]
    assert find_copies(gone, compared, copies) == (compared, copies)
    assert find_copies(gone, (), ())[1] == []  # there is nothing to look at


def test_clips_warns_of_a_converted_copy_in_another_split_and_keeps_no_frame(videos: Path, tmp_path: Path) -> None:
    rows = "".join(f"{path.name},0,4,a\n" for path in sorted(videos.iterdir()))
    (tmp_path / "labels.csv").write_text(f"recording,start_s,end_s,label\n{rows}")
    settings = (
        f"[data]\nvideos = '{videos}'\nannotations = 'labels.csv'\nlabels = ['a']\n{{}}\n[clips]\nlength_s = 1\n"
        "stride_s = 1\n[splits.sessions]\nS1 = 'train'\n'other name' = 'test'\n[features]\nmodel = 'demo'\n"
    )
    (tmp_path / "featurecache.toml").write_text(settings.format(""))
    for _ in range(2):  # the second time from what is remembered
        (line,) = [line for line in make_clips(open_project(tmp_path)).audit.warnings if "same pictures" in line]
        assert line.startswith("S1.mp4 (train), other name.avi (test) show the same pictures, as copies do,")
        assert 'same_session = [["S1.mp4", "other name.avi"]]' in line
    record = json.loads((tmp_path / ".featurecache/clips.json").read_bytes())
    assert len(record["compared"]) == 4
    assert [len(content) for content in record["copies"][0]] == [16, 16]
