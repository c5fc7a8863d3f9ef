"""Training clips: order and views."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from featurecache.errors import TrainingDataError
from heads.engines import axes as axes_module
from heads.engines import training_clips as training_clips_module
from heads.engines.training_clips import TrainingClips, View, on_device
from tests.learning_samples import make_clips, make_frames

RAW = View("none", 0)


def features_of(clips: TrainingClips, view: View) -> np.ndarray:
    return clips.features(view).numpy()


# --- order and views ------------------------------------------------------------------------------


def test_training_clips_keep_features_and_targets_together_in_an_order_of_the_seed() -> None:
    data = make_clips(width=1)
    data.X[:, 0] = np.arange(200)
    orders = []
    for seed in (0, 0, 1):
        clips = TrainingClips(data.X, data.Y, seed=seed)
        order = features_of(clips, RAW)[:, 0].astype(int)
        assert sorted(order) == list(range(200))
        assert (clips.targets.numpy() == data.Y[order]).all()
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


def test_components_hold_as_much_variance_when_found_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_clips()
    exact = TrainingClips(data.X, data.Y, seed=0).front(View("standardize", 2)).axes
    monkeypatch.setattr(axes_module, "EXACT_UP_TO", 0)
    monkeypatch.setattr(axes_module, "_OVERSAMPLING", 8)
    by_iteration = TrainingClips(data.X, data.Y, seed=0).front(View("standardize", 2)).axes
    assert exact is not None
    assert by_iteration is not None
    X = torch.from_numpy(data.X).float()
    X = (X - X.mean(dim=0)) / X.std(dim=0)
    found, most = (float((X @ axes).square().sum()) for axes in (by_iteration, exact))
    assert 0.97 * most < found < 1.001 * most


def test_components_of_features_that_do_not_vary_leave_them_as_they_are() -> None:
    data = make_clips()
    clips = TrainingClips(np.ones_like(data.X), data.Y, seed=0)
    np.testing.assert_array_equal(features_of(clips, View("standardize", 3)), np.zeros((200, 24)))


@pytest.mark.parametrize("view", [View("standardize", 0), View("l2", 4)])
def test_frames_are_seen_one_by_one_and_kept_as_stored_or_as_components_in_float32(view: View) -> None:
    data = make_frames()
    clips = TrainingClips(torch.from_numpy(data.X).bfloat16(), data.Y, seed=0, shuffle=False)
    features = clips.features(view)
    assert features.dtype == (torch.float32 if view.components else torch.bfloat16)
    assert features.shape == (200, 5, view.components or 24)
    flat = TrainingClips(data.X.reshape(1000, 24), np.repeat(data.Y, 5, axis=0), seed=0, shuffle=False)
    difference = features_of(flat, view).reshape(200, 5, -1) - features.float().numpy()
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
    assert torch.equal(ours.features(view).cpu(), theirs.features(view))


def test_training_clips_refuse_a_label_that_is_never_on() -> None:
    data = make_clips()
    data.Y[:, 1] = 0
    with pytest.raises(TrainingDataError, match="some training clips"):
        TrainingClips(data.X, data.Y, seed=0)
