"""Decoded pictures in bounded memory: the same as decoding each time, whatever fits."""

import pytest
import torch

from featurecache.backbones.resize import FrameResize
from featurecache.clips.clip import clip_id
from featurecache.errors import UnreadableVideoError
from featurecache.extraction.pipeline import Span
from featurecache.extraction.pixels import PixelStore
from featurecache.video.recordings import Recording, find_recordings
from featurecache.video.sampling import ClipFrames, read_clips
from tests.make_videos import write_video

RESIZE = FrameResize(image_px=32, resize="crop", mean=[0.5] * 3, std=[0.25] * 3)
SPANS: list[Span] = [(second * 1_000_000, (second + 1) * 1_000_000) for second in range(5)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recording, Span]]:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_video(folder / f"{number}.mp4", count=25, fps=5, metadata={"comment": f"take {number}"})
    recordings, _ = find_recordings(folder)
    return {clip_id(one.sha256, *span): (one, span) for one in recordings for span in SPANS}


def store(clips: dict[str, tuple[Recording, Span]], most: int = 100) -> PixelStore:
    return PixelStore(clips, frames=4, resize=RESIZE, decoders=2, most_bytes=most * 4 * 32 * 32 * 3)


def expected(clips: dict[str, tuple[Recording, Span]], name: str) -> torch.Tensor:
    recording, span = clips[name]
    (read,) = read_clips(recording.path, [span], 4)
    assert isinstance(read, ClipFrames)
    return RESIZE(torch.from_numpy(read.frames))


@pytest.mark.parametrize("most", [100, 4, 1])
def test_pictures_become_the_backbones_pixels_when_few_or_all_fit(
    clips: dict[str, tuple[Recording, Span]], most: int
) -> None:
    held = store(clips, most)
    assert held.examine() == {}
    assert held.held == min(most, len(clips))
    names = list(clips)[::-1]
    for start in range(0, len(names), 3):
        part = names[start : start + 3]
        pictures = held.read(part, coming=names[start + 3 :])
        assert (pictures.dtype, pictures.shape) == (torch.uint8, (len(part), 4, 32, 32, 3))
        assert held.held <= max(most, 3)
        for name, one in zip(part, pictures, strict=True):
            assert torch.equal(RESIZE.normalized(one), expected(clips, name))


def test_what_comes_next_is_decoded_together(
    clips: dict[str, tuple[Recording, Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = store(clips, most=6)
    names = list(clips)
    passes = []
    decode = held._decode
    monkeypatch.setattr(held, "_decode", lambda ids, take: (passes.append(list(ids)), decode(ids, take)))
    for number, name in enumerate(names):
        held.read([name], coming=names[number + 1 :])
    assert passes == [names[0:6], names[6:12], names[12:]]


def test_nothing_is_decoded_again_when_all_fit(
    clips: dict[str, tuple[Recording, Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = store(clips)
    held.examine()
    monkeypatch.setattr(held, "_decode", lambda *_: pytest.fail("decoded again"))
    assert len(held.read(list(clips))) == len(clips)


def test_clips_that_cannot_be_had_are_named_with_their_reasons(clips: dict[str, tuple[Recording, Span]]) -> None:
    recording, _ = next(iter(clips.values()))
    late = (60_000_000, 61_000_000)
    name = clip_id(recording.sha256, *late)
    held = store({**clips, name: (recording, late)})
    reasons = held.examine()
    assert list(reasons) == [name]
    assert "ends at" in reasons[name]
    assert held.held == len(clips)
    with pytest.raises(UnreadableVideoError, match=rf"{name} of {recording.name} is not"):
        held.read([name])
