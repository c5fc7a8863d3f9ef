"""Decoded pictures in bounded memory: the same as decoding each time, whatever fits."""

import pytest
import torch

from featurecache.backbones.resize import FrameResize
from featurecache.errors import UnreadableVideoError
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.pixels import PixelStore
from featurecache.video.recordings import find_recordings
from featurecache.video.sampling import ClipFrames, read_clips
from tests.make_videos import write_video

RESIZE = FrameResize(image_px=32, resize="crop", mean=[0.5] * 3, std=[0.25] * 3)
SPANS: list[tuple[int, int]] = [(second * 1_000_000, (second + 1) * 1_000_000) for second in range(5)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipRecord]:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_video(folder / f"{number}.mp4", count=25, fps=5, metadata={"comment": f"take {number}"})
    recordings, _ = find_recordings(folder)
    return [ClipRecord(one, *span) for one in recordings for span in SPANS]


def store(clips: list[ClipRecord], most: int = 100) -> PixelStore:
    return PixelStore(clips, frames=4, resize=RESIZE, decoders=2, most_bytes=most * 4 * 32 * 32 * 3)


def expected(clip: ClipRecord) -> torch.Tensor:
    (read,) = read_clips(clip.recording.path, [clip.span], 4)
    assert isinstance(read, ClipFrames)
    return RESIZE(torch.from_numpy(read.stacked))


@pytest.mark.parametrize("most", [100, 4, 1])
def test_frames_become_the_backbones_pixels_when_few_or_all_fit(clips: list[ClipRecord], most: int) -> None:
    held = store(clips, most)
    assert held.examine() == {}
    assert held.held == min(most, len(clips))
    by_name = {clip.clip_id: clip for clip in clips[::-1]}
    names = list(by_name)
    for start in range(0, len(names), 3):
        part = names[start : start + 3]
        pictures = held.read(part, coming=names[start + 3 :])
        assert (pictures.dtype, pictures.shape) == (torch.uint8, (len(part), 4, 32, 32, 3))
        assert held.held <= max(most, 3)
        for name, one in zip(part, pictures, strict=True):
            assert torch.equal(RESIZE.normalized(one), expected(by_name[name]))


def test_what_comes_next_is_decoded_together(clips: list[ClipRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    held = store(clips, most=6)
    names = [clip.clip_id for clip in clips]
    passes = []
    decode = held._decode
    monkeypatch.setattr(held, "_decode", lambda ids, take: (passes.append(list(ids)), decode(ids, take)))
    for number, name in enumerate(names):
        held.read([name], coming=names[number + 1 :])
    assert passes == [names[0:6], names[6:12], names[12:]]


def test_nothing_is_decoded_again_when_all_fit(clips: list[ClipRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    held = store(clips)
    held.examine()
    monkeypatch.setattr(held, "_decode", lambda *_: pytest.fail("decoded again"))
    assert len(held.read([clip.clip_id for clip in clips])) == len(clips)


def test_clips_that_could_not_be_decoded_are_named_with_their_reasons(
    clips: list[ClipRecord],
) -> None:
    late = ClipRecord(clips[0].recording, 60_000_000, 61_000_000)
    held = store([*clips, late])
    reasons = held.examine()
    assert list(reasons) == [late.clip_id]
    assert "ends at" in reasons[late.clip_id]
    assert held.held == len(clips)
    with pytest.raises(UnreadableVideoError, match=rf"{late.clip_id} of {late.recording.name} is not"):
        held.read([late.clip_id])
