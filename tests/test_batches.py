"""Batches on a tiny real model: shared frames once with the same features, and memory that runs out loses no clip."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.video_language import VideoLanguageBackbone
from featurecache.extraction.batches import CPU_BATCH, Batches
from featurecache.extraction.clip import ClipRecord
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16
from featurecache.video.probing import VideoInfo
from featurecache.video.recordings import Recording

FRAMES = 4
SPACES = {
    "final/mean": FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float32"}),
    "layer_1/tokens": FeatureSpace({"tap": "layer_1", "pooling": "tokens", "stored_dtype": "bfloat16"}),
}
INFO = VideoInfo(60_000_000, 56, 56, 0, "h264", "yuv420p", 10.0)


class CountingBackbone(VideoLanguageBackbone):
    """Counts frames, and has memory for so many clips at once."""

    def __init__(self, folder: Path, *, room: int = 1_000, error: Callable[[], Exception] | None = None) -> None:
        inputs = open_inputs(folder, prompt="user: baby <video>", frames=FRAMES, resize="crop")
        self.__dict__.update(vars(open_backbone(inputs, dtype="float32", device="cpu")))
        self.room, self.error = room, error or torch.OutOfMemoryError
        self.normalized = self.encoded = 0
        self.sizes: list[int] = []

    def normalize(self, pictures: Tensor) -> Tensor:
        self.normalized += len(pictures)
        return super().normalize(pictures)

    def encode_frames(self, pixels: Tensor, taps: Sequence[str] = ()) -> Tensor:
        self.encoded += len(pixels)
        return super().encode_frames(pixels, taps)

    def states(self, encoded: Tensor, taps: Sequence[str]):
        self.sizes.append(len(encoded))
        if len(encoded) > self.room:
            raise self.error()
        return super().states(encoded, taps)


def _recording(name: str) -> Recording:
    return Recording(name, Path(name), name * 64, INFO)


def _picture(name: str, time_us: int) -> np.ndarray:
    noise = np.random.default_rng([ord(name), time_us]).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return noise.repeat(4, axis=0).repeat(4, axis=1)


def _clip(start_us: int, *, length_us: int = 400, name: str = "a", step_us: int = 100) -> ClipRecord:
    """Samples the middles of quarters of the clip, of pictures that stand every `step_us`."""
    times_us = [(start_us + length_us * (2 * k + 1) // 8) // step_us * step_us for k in range(FRAMES)]
    return ClipRecord(_recording(name), start_us, start_us + length_us, tuple(SPACES), np.array(times_us))


def _run(
    backbone: CountingBackbone, clips: list[ClipRecord], batch_size: int | str = 3, **options
) -> tuple[Batches, list[ClipRecord]]:
    batches = Batches(
        backbone,
        SPACES,
        taps=["final", "layer_1"],
        batch_size=batch_size,
        device="cpu",
        **options,
    )
    done = []
    for place, clip in enumerate(clips):
        later = [c.start_us for c in clips[place + 1 :] if c.recording == clip.recording]
        pictures = [_picture(clip.recording.name, time_us) for time_us in clip.timestamps_us]
        done += batches.add(clip, pictures, min(later, default=None))
    done += batches.finish()
    return batches, done


def _alone(folder: Path, clips: list[ClipRecord]) -> list[ClipRecord]:
    """Each clip by itself, nothing shared."""
    backbone = CountingBackbone(folder)
    return [done for clip in clips for done in _run(backbone, [clip])[1]]


def _assert_same(ours: list[ClipRecord], expected: list[ClipRecord], *, bound: float) -> None:
    assert [done.clip_id for done in ours] == [done.clip_id for done in expected]
    for one, other in zip(ours, expected, strict=True):
        assert one.reason == other.reason == ""
        assert np.abs(one.features["final/mean"] - other.features["final/mean"]).max() <= bound
        assert one.features["layer_1/tokens"].dtype == np.uint16
        tokens, others = (bfloat16.to_float32(done.features["layer_1/tokens"]) for done in (one, other))
        assert (np.abs(tokens - others) <= bound + 2.0**-7 * np.abs(others)).all()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_frames_that_clips_share_are_computed_once_with_the_same_features(tiny_model: Path, batch_size: int) -> None:
    clips = [_clip(start_us, name=name) for name in "ab" for start_us in range(0, 1000, 100)]
    backbone = CountingBackbone(tiny_model)
    batches, done = _run(backbone, clips, batch_size)
    distinct = len({frame for clip in clips for frame in clip.frames})
    assert backbone.normalized == backbone.encoded == batches.stages.frames_computed == distinct == 26
    assert batches.stages.frames == 80
    # The same pixels; matrix products of another number of frames or clips round otherwise.
    _assert_same(done, _alone(tiny_model, clips), bound=1e-5 if batch_size > 1 else 1e-6)


def test_a_frame_that_one_clip_samples_twice_is_computed_once(tiny_model: Path) -> None:
    clips = [_clip(0, step_us=200), _clip(400, step_us=200)]
    assert clips[0].timestamps_us.tolist() == [0, 0, 200, 200]
    backbone = CountingBackbone(tiny_model)
    _, done = _run(backbone, clips, 1)
    assert backbone.encoded == 4
    _assert_same(done, _alone(tiny_model, clips), bound=1e-6)


@pytest.mark.parametrize("stride_us", [100, 400])
def test_frames_held_for_later_clips_are_bounded_whatever_the_length_of_the_recording(
    tiny_model: Path, stride_us: int
) -> None:
    held = set()
    for count in (20, 60):
        backbone = CountingBackbone(tiny_model)
        batches = Batches(backbone, SPACES, taps=["final", "layer_1"], batch_size=2, device="cpu")
        most = 0
        for number in range(count):
            clip = _clip(stride_us * number)
            pictures = [_picture("a", time_us) for time_us in clip.timestamps_us]
            last = number == count - 1
            batches.add(clip, pictures, None if last else stride_us * (number + 1))
            most = max(most, len(batches._encoded))
        batches.finish()
        assert len(batches._encoded) == 0
        held.add(most)
    assert held == {3 if stride_us == 100 else 1}


@pytest.mark.parametrize("room", [1, 2, 3])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError,
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
    ids=["device", "cpu", "cpu elsewhere"],
)
def test_batches_are_halved_and_no_clip_is_lost_when_memory_is_not_enough(
    tiny_model: Path, room: int, error: Callable[[], Exception]
) -> None:
    clips = [_clip(start_us) for start_us in range(0, 2000, 200)]
    backbone = CountingBackbone(tiny_model, room=room, error=error)
    batches, done = _run(backbone, clips, 8)
    assert batches.batch_size == {1: 1, 2: 2, 3: 2}[room]
    assert sum(size > room for size in backbone.sizes) <= 3, "the smaller size is remembered"
    _assert_same(done, _alone(tiny_model, clips), bound=1e-5)


def test_a_clip_that_does_not_fit_alone_fails_with_its_reason(tiny_model: Path) -> None:
    clips = [_clip(0), _clip(400)]
    _, done = _run(CountingBackbone(tiny_model, room=0), clips)
    assert [(one.start_us, one.features) for one in done] == [(0, None), (400, None)]
    assert all("must fit in memory" in one.reason and "features.frames" in one.reason for one in done)


def test_errors_that_are_not_about_memory_are_raised(tiny_model: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        _run(CountingBackbone(tiny_model, room=0, error=lambda: RuntimeError("shapes do not fit")), [_clip(0)])


def test_frames_that_do_not_fit_in_memory_are_taken_again_when_the_batch_is_gone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [_clip(start_us) for start_us in range(0, 2000, 400)]
    backbone = CountingBackbone(tiny_model)
    taken = 0
    to_tensor = torch.from_numpy

    def with_room_for_two_clips(pictures: np.ndarray) -> Tensor:
        nonlocal taken
        if taken - backbone.encoded >= 2 * FRAMES:
            raise torch.OutOfMemoryError
        taken += len(pictures)
        return to_tensor(pictures)

    monkeypatch.setattr(torch, "from_numpy", with_room_for_two_clips)
    _, done = _run(backbone, clips, 100)
    monkeypatch.undo()
    assert backbone.sizes == [2, 2, 1]
    _assert_same(done, _alone(tiny_model, clips), bound=1e-5)


def test_auto_is_a_fixed_size_on_a_cpu(tiny_model: Path) -> None:
    backbone = CountingBackbone(tiny_model)
    batches, _ = _run(backbone, [_clip(start_us) for start_us in range(0, 4000, 400)], "auto")
    assert batches.batch_size == CPU_BATCH
    assert backbone.sizes == [4, 4, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_is_measured_on_a_gpu_and_the_features_stay_equal(tiny_model: Path) -> None:
    clips = [_clip(start_us) for start_us in range(0, 40_000, 200)]
    backbone = CountingBackbone(tiny_model)
    backbone.model.to("cuda")
    batches = Batches(backbone, SPACES, taps=["final", "layer_1"], batch_size="auto", device="cuda")
    done = []
    for number, clip in enumerate(clips):
        pictures = [_picture("a", time_us) for time_us in clip.timestamps_us]
        done += batches.add(clip, pictures, clips[number + 1].start_us if number + 1 < len(clips) else None)
    done += batches.finish()
    assert batches.batch_size > 1
    assert batches.stages.model_s > 0
    _assert_same(done, _alone(tiny_model, clips), bound=1e-3)
