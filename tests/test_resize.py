import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaNextVideoVideoProcessor

from featurecache.backbones import resize
from featurecache.backbones.resize import FrameResize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ONE_LEVEL = 1 / 255 / min(STD)
SIZES = [(768, 1024), (97, 177), (177, 97), (48, 64), (1, 5), (5, 1), (1, 1), (336, 336), (337, 335), (64, 1100)]


def frames_of(height: int, width: int, count: int = 2) -> Tensor:
    """Noise on gradients: sharp enough to make bicubic filters overshoot at both ends."""
    random = np.random.default_rng(height * 10_000 + width)
    slope = np.linspace(0, 255, width)[None, None, :, None] * np.ones((count, height, 1, 3))
    noise = random.integers(0, 256, (count, height, width, 3))
    return torch.from_numpy(np.where(random.random((count, height, width, 1)) < 0.5, slope, noise).astype(np.uint8))


def processor_result(frames: Tensor, **settings) -> Tensor:
    processor = LlavaNextVideoVideoProcessor(image_mean=MEAN, image_std=STD, **settings)
    videos = [frames.permute(0, 3, 1, 2)]
    found = processor(videos, do_sample_frames=False, return_tensors="pt", input_data_format="channels_first")
    return found["pixel_values_videos"][0]


def by_definition(monkeypatch, resizing: FrameResize, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """As on a device that is no CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(resize, "_torch_agrees", lambda *_: False)
        return resizing(frames, dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["by torch", "by definition"])
@pytest.mark.parametrize("kind", ["crop", "squash", "crop after a larger edge", "squash to a larger square"])
def test_frame_resize_equals_the_processor_bit_for_bit(size, way, kind, monkeypatch):
    frames = frames_of(*size)
    expected = {
        "crop": {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}},
        "squash": {"size": {"height": 112, "width": 112}, "do_center_crop": False},
        "crop after a larger edge": {"size": {"shortest_edge": 133}, "crop_size": {"height": 112, "width": 112}},
        "squash to a larger square": {
            "size": {"height": 133, "width": 133},
            "crop_size": {"height": 112, "width": 112},
        },
    }[kind]
    resizing = FrameResize(
        image_px=112,
        resize="squash" if kind.startswith("squash") else "crop",
        mean=MEAN,
        std=STD,
        short_edge_px=133 if "larger" in kind else None,
    )
    found = resizing(frames) if way == "by torch" else by_definition(monkeypatch, resizing, frames)
    assert found.shape == (2, 3, 112, 112)
    assert torch.equal(found, processor_result(frames, **expected))


@pytest.mark.parametrize("size", [(96, 176), (500, 300)])
def test_frame_resize_equals_a_bilinear_processor(size, monkeypatch):
    frames = frames_of(*size)
    resizing = FrameResize(image_px=224, resize="crop", mean=MEAN, std=STD, interpolation="bilinear", short_edge_px=256)
    settings = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 2}
    assert torch.equal(resizing(frames), processor_result(frames, **settings))
    assert torch.equal(resizing(frames), by_definition(monkeypatch, resizing, frames))


def test_frame_resize_pads_with_the_mean_colour_before_it_resizes():
    frames = frames_of(60, 100)
    mean = torch.tensor([round(255 * value) for value in MEAN], dtype=torch.uint8)
    square = mean.expand(2, 100, 100, 3).clone()
    square[:, 20:80] = frames
    padded = FrameResize(image_px=56, resize="pad", mean=MEAN, std=STD)(frames)
    assert torch.equal(padded, FrameResize(image_px=56, resize="squash", mean=MEAN, std=STD)(square))
    assert padded[:, :, 0].abs().max() < ONE_LEVEL


def test_frame_resize_is_within_two_levels_of_floating_point_when_the_picture_is_smooth():
    rough = frames_of(12, 16).permute(0, 3, 1, 2).double()
    frames = torch.nn.functional.interpolate(rough, size=(180, 240), mode="bicubic").clamp(0, 255).round()
    exact = torch.nn.functional.interpolate(frames, size=(112, 149), mode="bicubic", antialias=True)
    exact = exact.clamp(0, 255)[..., 18:130]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    resizing = FrameResize(image_px=112, resize="crop", mean=MEAN, std=STD)
    found = (resizing(frames.permute(0, 2, 3, 1).to(torch.uint8)) * std + mean) * 255
    assert (found - exact).abs().max() < 1.1
    assert (found - exact).abs().mean() < 0.4


@pytest.mark.parametrize("way", ["by torch", "by definition"])
def test_frame_resize_gives_a_frame_the_same_alone_and_in_a_batch(way, monkeypatch):
    resizing = FrameResize(image_px=64, resize="crop", mean=MEAN, std=STD)
    frames = frames_of(90, 121, 19)

    def resized(some: Tensor) -> Tensor:
        return resizing(some) if way == "by torch" else by_definition(monkeypatch, resizing, some)

    together = resized(frames)
    assert torch.equal(together, torch.cat([resized(frames[i : i + 1]) for i in range(19)]))
    backwards_in_memory = frames.flip(2).contiguous().flip(2)
    strided = torch.empty(19, 90, 130, 3, dtype=torch.uint8)[:, :, :121]
    strided[:] = frames
    assert torch.equal(together, resized(backwards_in_memory))
    assert torch.equal(together, resized(strided))
    assert resized(frames[:0]).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("size", [(90, 121), (121, 90), (64, 64)])
def test_frame_resize_gives_a_picture_in_memory_of_its_own_with_the_same_numbers(size):
    resizing = FrameResize(image_px=64, resize="crop", mean=MEAN, std=STD)
    frames = frames_of(*size)
    pictures = [resizing.smaller(frame) for frame in frames.numpy()]
    assert all(picture.flags.c_contiguous and picture.shape == (64, 64, 3) for picture in pictures)
    assert all(torch.from_numpy(picture).untyped_storage().nbytes() == 64 * 64 * 3 for picture in pictures)
    assert not any(np.shares_memory(picture, frames.numpy()) for picture in pictures)
    assert torch.equal(resizing.normalized(torch.from_numpy(np.stack(pictures))), resizing(frames))


def test_frame_resize_uses_the_definition_where_torch_gives_other_numbers(monkeypatch):
    frames = frames_of(90, 121)
    resizing = FrameResize(image_px=64, resize="crop", mean=MEAN, std=STD)
    expected = resizing(frames)
    by_torch = resize._resize_by_torch
    resize._torch_agrees.cache_clear()
    monkeypatch.setattr(resize, "_resize_by_torch", lambda *a: by_torch(*a) ^ 1)
    found = resizing(frames)
    resize._torch_agrees.cache_clear()
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", SIZES)
def test_frame_resize_gives_the_same_on_a_gpu(size):
    resizing = FrameResize(image_px=112, resize="crop", mean=MEAN, std=STD)
    frames = frames_of(*size)
    assert (resizing(frames.cuda()).cpu() - resizing(frames)).abs().max() <= 1e-6


def test_frame_resize_gives_the_dtype_that_is_asked_for():
    frames = frames_of(50, 60)
    resizing = FrameResize(image_px=32, resize="squash", mean=MEAN, std=STD)
    half = resizing(frames, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous()
    assert torch.equal(half, resizing(frames).to(torch.bfloat16))


def test_frame_resize_equals_an_image_processor_too():
    frames = frames_of(120, 90)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    expected = processor(list(frames.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
    found = FrameResize(image_px=64, resize="crop", mean=processor.image_mean, std=processor.image_std)(frames)
    assert torch.equal(found, expected)


def test_frame_resize_refuses_frames_that_would_come_out_wrong():
    resizing = FrameResize(image_px=32, resize="squash", mean=MEAN, std=STD)
    with pytest.raises(TypeError, match=r"uint8 in 0 to 255, but they are torch\.float32"):
        resizing(frames_of(8, 8) / 255)
    for shape in [(8, 8, 3), (1, 3, 8, 8), (1, 0, 8, 3)]:
        with pytest.raises(ValueError, match="shape"):
            resizing(torch.zeros(shape, dtype=torch.uint8))
    for settings in [{"resize": "crop", "short_edge_px": 31}, {"resize": "pad", "short_edge_px": 40}]:
        with pytest.raises(ValueError, match="short_edge_px must be"):
            FrameResize(image_px=32, mean=MEAN, std=STD, **settings)


@pytest.mark.parametrize(
    ("size", "box", "rows", "columns"),
    [
        ((96, 176), (0.25, 0.1, 0.5, 0.8), (10, 86), (44, 132)),
        ((97, 177), (1 / 3, 0, 2 / 3, 1), (0, 97), (59, 177)),
        ((5, 4), (0.98, 0.98, 0.02, 0.02), (4, 5), (3, 4)),
    ],
)
@pytest.mark.parametrize("way", ["crop", "pad", "squash"])
def test_a_box_gives_what_frames_that_were_cut_by_hand_give(size, box, rows, columns, way):
    resizing = FrameResize(image_px=32, resize=way, mean=MEAN, std=STD)
    frames = frames_of(*size)
    by_hand = frames[:, slice(*rows), slice(*columns)].contiguous()
    assert torch.equal(resizing.within(box).resized(frames), resizing.resized(by_hand))
    assert resizing.within(box).identity() == {**resizing.identity(), "crop": list(box)}
    height, width = size
    by_size = {f"{width}x{height}": box, "1x1": (0.0, 0.0, 0.5, 0.5)}
    assert torch.equal(resizing.within(by_size).resized(frames), resizing.resized(by_hand))
    other = {"1x1": (0.0, 0.0, 0.5, 0.5)}
    assert torch.equal(resizing.within(other).resized(frames), resizing.resized(frames)), (
        "no box for frames of this size"
    )
    assert resizing.within(None).identity() == resizing.identity() != resizing.within(other).identity()


def test_identity_differs_with_every_setting_that_changes_a_pixel():
    base = {"image_px": 32, "resize": "crop", "mean": MEAN, "std": STD}
    changes = [
        {},
        {"image_px": 33},
        {"resize": "pad"},
        {"resize": "squash"},
        {"mean": STD},
        {"std": MEAN},
        {"interpolation": "bilinear"},
        {"short_edge_px": 40},
        {"resize": "squash", "short_edge_px": 40},
    ]
    identities = [str(FrameResize(**{**base, **change}).identity()) for change in changes]
    assert len(set(identities)) == len(changes)
    assert str(FrameResize(**base, short_edge_px=32).identity()) == identities[0]
