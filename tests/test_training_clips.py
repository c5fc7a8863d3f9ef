"""Training clips: order, views, and streams that equal memory."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from featurecache.errors import TrainingDataError
from heads.engines import axes as axes_module
from heads.engines import training_clips as training_clips_module
from heads.engines.training import fit_heads
from heads.engines.training_clips import StreamedClips, TrainingClips, View, on_device
from heads.models import head_scores
from heads.settings import HeadSettings
from tests.test_training import MIXED, make_clips, make_frames, relative_difference

RAW = View("none", 0)


def features_of(clips: TrainingClips, view: View) -> np.ndarray:
    ((features, _),) = clips.blocks([view])
    return features[view].numpy()


class Shards:
    """Blocks of a length each, cut anew from the arrays in each pass."""

    def __init__(self, X: np.ndarray, Y: np.ndarray, rows: int) -> None:
        self.X, self.Y, self.rows, self.passes = X, Y, rows, 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.passes += 1
        for start in range(0, len(self.X), self.rows):
            yield self.X[start : start + self.rows].copy(), self.Y[start : start + self.rows]


def in_memory(streamed: StreamedClips, seed: int) -> TrainingClips:
    """The same clips in the same order."""
    blocks = [(features[RAW], targets) for features, targets in streamed.blocks([RAW])]
    X, Y = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return TrainingClips(X.numpy(), Y.numpy().astype(np.int8), seed=seed, shuffle=False)


# --- order and views ------------------------------------------------------------------------------


def test_training_clips_keep_features_and_targets_together_in_an_order_of_the_seed() -> None:
    data = make_clips(width=1)
    data.X[:, 0] = np.arange(200)
    orders = []
    for seed in (0, 0, 1):
        ((features, targets),) = TrainingClips(data.X, data.Y, seed=seed).blocks([RAW])
        order = features[RAW][:, 0].numpy().astype(int)
        assert sorted(order) == list(range(200))
        assert (targets.numpy() == data.Y[order]).all()
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != list(range(200))


def test_standardized_view_equals_scikit_learns_and_leaves_a_constant_feature_zero() -> None:
    data = make_clips(sessions=3, clips_each=700)
    data.X[:, 3] = 1234.567
    data.X[::2, 3] = np.nextafter(data.X[0, 3], np.float32(9999))  # rounding is no variation
    data.X[:, 5] += 3000
    clips = TrainingClips(data.X, data.Y, seed=0, shuffle=False)
    front = clips.front(View("standardize", 0))
    assert front.scale[3] == 1
    others = np.arange(24) != 3
    reference = StandardScaler().fit(data.X[:, others].astype(np.float64))
    np.testing.assert_allclose(front.mean[others], reference.mean_, rtol=1e-6)
    np.testing.assert_allclose(front.scale[others], reference.scale_, rtol=1e-6)
    assert abs(features_of(clips, View("standardize", 0))[:, 3]).max() < 1e-3


def test_unit_length_view_equals_scikit_learns_when_features_lie_side_by_side() -> None:
    data = make_clips()
    clips = TrainingClips(data.X, data.Y, seed=0, shuffle=False, part_widths=[8, 16])
    expected = np.hstack([normalize(data.X[:, :8]) * 8**0.5, normalize(data.X[:, 8:]) * 16**0.5])
    np.testing.assert_allclose(features_of(clips, View("l2", 0)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalization", ["none", "standardize", "l2"])
def test_components_equal_scikit_learns_principal_components(normalization: str) -> None:
    data = make_clips()
    clips = TrainingClips(data.X, data.Y, seed=0, shuffle=False)
    normalised = features_of(clips, View(normalization, 0)).astype(np.float64)
    expected = PCA(5).fit_transform(normalised)
    ours = features_of(clips, View(normalization, 5))
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), rtol=1e-3, atol=2e-3)
    assert features_of(clips, View(normalization, 1000)).shape == (200, 24)


def test_components_are_the_same_whatever_else_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by an iteration, whose first few of many axes are not those of few."""
    monkeypatch.setattr(axes_module, "EXACT_UP_TO", 0)
    monkeypatch.setattr(axes_module, "_OVERSAMPLING", 2)
    monkeypatch.setattr(training_clips_module, "AXES_AT_ONCE", 8)
    data = make_clips()
    together = TrainingClips(data.X, data.Y, seed=0)
    for components in (3, 12, 8, 5):
        axes = together.front(View("standardize", components)).axes
        alone = TrainingClips(data.X, data.Y, seed=0).front(View("standardize", components)).axes
        assert axes.shape == (24, components)
        torch.testing.assert_close(axes, alone, atol=0, rtol=0)


def test_components_beyond_float16_are_kept_whole() -> None:
    X = np.outer(np.linspace(-1, 1, 200), np.full(24, 60_000)).astype(np.float16)
    clips = TrainingClips(X, make_clips().Y, seed=0, shuffle=False)
    ours = features_of(clips, View("none", 1))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        np.abs(ours[:, 0]), np.abs(np.linspace(-1, 1, 200)) * 60_000 * 24**0.5, rtol=2e-3, atol=50
    )


def test_components_are_those_of_a_stream_when_found_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_clips()
    exact = TrainingClips(data.X, data.Y, seed=0).front(View("standardize", 2)).axes
    monkeypatch.setattr(axes_module, "EXACT_UP_TO", 0)
    monkeypatch.setattr(axes_module, "_OVERSAMPLING", 8)
    in_memory = TrainingClips(data.X, data.Y, seed=0).front(View("standardize", 2)).axes
    streamed = StreamedClips(Shards(data.X, data.Y, 63), seed=0).front(View("standardize", 2)).axes
    assert exact is not None
    assert streamed is not None
    torch.testing.assert_close(streamed, in_memory, atol=1e-4, rtol=0)
    X = torch.from_numpy(data.X).float()
    X = (X - X.mean(dim=0)) / X.std(dim=0)
    found, most = (float((X @ axes).square().sum()) for axes in (streamed, exact))
    assert 0.97 * most < found < 1.001 * most


def test_components_of_features_that_do_not_vary_leave_them_as_they_are() -> None:
    data = make_clips()
    clips = TrainingClips(np.ones_like(data.X), data.Y, seed=0)
    np.testing.assert_array_equal(features_of(clips, View("standardize", 3)), np.zeros((200, 24)))


@pytest.mark.parametrize("view", [View("standardize", 0), View("l2", 4)])
def test_frames_are_seen_one_by_one_and_kept_as_stored_or_as_components_in_float32(view: View) -> None:
    data = make_frames()
    clips = TrainingClips(torch.from_numpy(data.X).bfloat16(), data.Y, seed=0, shuffle=False)
    ((features, _),) = clips.blocks([view])
    assert features[view].dtype == (torch.float32 if view.components else torch.bfloat16)
    assert features[view].shape == (200, 5, view.components or 24)
    flat = TrainingClips(data.X.reshape(1000, 24), np.repeat(data.Y, 5, axis=0), seed=0, shuffle=False)
    difference = features_of(flat, view).reshape(200, 5, -1) - features[view].float().numpy()
    assert np.abs(difference).max() < 0.06


def test_on_device_copies_nothing_when_the_block_is_there() -> None:
    block = torch.rand(3, 4)
    assert on_device(block, torch.device("cpu")).data_ptr() == block.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("view", [View("none", 0), View("standardize", 4)])
def test_views_are_the_same_on_cuda_when_blocks_follow_each_other_fast(view: View) -> None:
    """More blocks than page-locked ones in use at a time: none may be written over before it is copied."""
    data = make_clips(sessions=40, clips_each=1000)
    ours, theirs = (TrainingClips(data.X, data.Y, seed=0, device=name) for name in ("cuda", "cpu"))
    ((on_cuda, _),), ((on_cpu, _),) = ours.blocks([view]), theirs.blocks([view])
    assert torch.equal(on_cuda[view].cpu(), on_cpu[view])
    streamed = StreamedClips(Shards(data.X, data.Y, 64), seed=0, device="cuda")
    at_home = StreamedClips(Shards(data.X, data.Y, 64), seed=0)
    for (a, _), (b, _) in zip(streamed.blocks([RAW]), at_home.blocks([RAW]), strict=True):
        assert torch.equal(a[RAW].cpu(), b[RAW])


def test_training_clips_refuse_a_label_that_is_never_on() -> None:
    data = make_clips()
    data.Y[:, 1] = 0
    with pytest.raises(TrainingDataError, match="some training clips"):
        TrainingClips(data.X, data.Y, seed=0)
    with pytest.raises(TrainingDataError, match="some training clips"):
        StreamedClips([(data.X, data.Y)], seed=0)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [7, 64])
def test_streamed_heads_equal_those_in_memory_when_the_order_is_the_same(rows: int) -> None:
    data = make_clips()
    streamed = StreamedClips(Shards(data.X, data.Y, rows), seed=3)
    ours = fit_heads(streamed, MIXED)
    theirs = fit_heads(in_memory(streamed, seed=3), MIXED)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_difference(a, b) < 1e-4, a.settings
        assert a.head is not None
        assert b.head is not None
        np.testing.assert_allclose(head_scores(a.head, data.X), head_scores(b.head, data.X), atol=1e-5)


def test_streamed_heads_of_frames_equal_those_in_memory() -> None:
    data = make_frames()
    streamed = StreamedClips(Shards(data.X, data.Y, 48), seed=0)
    settings = [HeadSettings(kind="temporal", hidden_width=4, epochs=3), HeadSettings(kind="attention", epochs=3)]
    for a, b in zip(fit_heads(streamed, settings), fit_heads(in_memory(streamed, 0), settings), strict=True):
        assert relative_difference(a, b) < 1e-4


def test_stream_is_read_once_for_counts_once_for_statistics_and_once_an_epoch_for_all_stacks() -> None:
    data = make_clips()
    shards = Shards(data.X, data.Y, 64)
    clips = StreamedClips(shards, seed=0)
    settings = HeadSettings(epochs=3)
    fit_heads(clips, [settings, dataclasses.replace(settings, kind="mlp", hidden_width=3)])
    assert shards.passes == 1 + 1 + 3


def test_stream_shuffles_inside_blocks_only() -> None:
    data = make_clips(width=1)
    data.X[:, 0] = np.arange(200)
    blocks = [x[RAW][:, 0].int().tolist() for x, _ in StreamedClips(Shards(data.X, data.Y, 50), seed=0).blocks([RAW])]
    assert [sorted(block) for block in blocks] == [list(range(start, start + 50)) for start in range(0, 200, 50)]
    assert all(block != sorted(block) for block in blocks)


def test_streamed_clips_refuse_a_source_that_ends_for_good_is_empty_or_changes() -> None:
    data = make_clips()
    with pytest.raises(TrainingDataError, match="a list_iterator can be iterated only once"):
        StreamedClips(iter([(data.X, data.Y)]), seed=0)
    with pytest.raises(TrainingDataError, match="must not be empty"):
        StreamedClips([], seed=0)
    shards = Shards(data.X, data.Y, 64)
    clips = StreamedClips(shards, seed=0)
    shards.X, shards.Y = data.X[:150], data.Y[:150]
    with pytest.raises(TrainingDataError, match="150 came after 200"):
        fit_heads(clips, [HeadSettings()])


MEASURE = """
import sys
import numpy as np, torch
from heads.settings import HeadSettings
from heads.engines.training import fit_heads
from heads.engines.training_clips import StreamedClips

torch.set_num_threads(1)
base = np.random.default_rng(0).standard_normal((1000, 1000), np.float32)
targets = (base[:, :2] > 0).astype(np.int8)

class Blocks:
    def __init__(self, count): self.count = count
    def __iter__(self): return ((base + np.float32(i), targets) for i in range(self.count))

def peak_bytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

settings = [HeadSettings(epochs=1), HeadSettings(epochs=1, learning_rate=0.01)]
fit_heads(StreamedClips(Blocks(8), seed=0), settings)
before = peak_bytes()
fit_heads(StreamedClips(Blocks(60), seed=0), settings)
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_streamed_training_takes_no_more_memory_when_there_are_more_blocks() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 80e6  # 60 blocks are 240 MB
