"""Heads as modules: what the front does, and scores in blocks."""

import numpy as np
import pytest
import torch

from heads.models import AttentionHead, Front, TemporalHead, build_head, head_scores


def random_front(width: int = 6, **arguments: object) -> Front:
    front = Front(width, **arguments)  # type: ignore[arg-type]
    front.mean.normal_()
    front.scale.uniform_(0.5, 2)
    return front


def test_front_is_the_identity_when_it_is_not_filled() -> None:
    x = torch.randn(3, 6)
    assert (Front(6)(x) == x).all()


def test_front_scales_each_part_by_itself_when_features_lie_side_by_side() -> None:
    front = Front(6, unit_length=True, part_widths=[2, 4])
    x = torch.randn(3, 6)
    x[1, :2] = 0
    z = front(x)
    np.testing.assert_allclose(z[:, :2].norm(dim=1), [2**0.5, 0, 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(z[:, 2:].norm(dim=1), [2.0, 2.0, 2.0], rtol=1e-6)
    assert (front(x * torch.tensor([7.0, 7, 9, 9, 9, 9])) - z).abs().max() < 1e-6


def test_front_centres_scales_then_rotates() -> None:
    front = random_front(components=2)
    assert front.axes is not None
    front.axes.normal_()
    x = torch.randn(3, 4, 6)
    np.testing.assert_allclose(front(x), ((x - front.mean) / front.scale) @ front.axes)
    assert (front.feature_width, front.output_width) == (6, 2)


@pytest.mark.parametrize("kind", ["linear", "mlp", "attention", "temporal"])
def test_head_scores_are_the_same_when_rows_come_alone(kind: str) -> None:
    front = random_front()
    head = build_head(kind, front, 3, hidden_widths=[5, 4], dropout=0.5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    X = np.random.default_rng(0).standard_normal((1100, 4, 6) if kind in ("attention", "temporal") else (2100, 6))
    scores = head_scores(head, X.astype(np.float16))
    assert scores.dtype == np.float32
    for row in (0, 300, 1099):
        np.testing.assert_allclose(head_scores(head, X[row : row + 1].astype(np.float16))[0], scores[row], atol=1e-6)


def test_attention_head_is_the_mean_of_frames_when_queries_are_zero_and_finds_a_frame_when_they_are_not() -> None:
    head = AttentionHead(Front(4), 2)
    torch.nn.init.normal_(head.output.weight)
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        np.testing.assert_allclose(head(x), head.output(x.mean(dim=1)), atol=1e-6)
        x[:, :, 0] = 0
        x[:, 1, 0] = 100
        head.query[0, 0] = 10
        logits = head(x)
    np.testing.assert_allclose(logits[:, 0], head.output(x[:, 1]).detach()[:, 0], atol=1e-5)
    np.testing.assert_allclose(logits[:, 1], head.output(x.mean(dim=1)).detach()[:, 1], rtol=1e-5, atol=1e-5)


def test_temporal_head_tells_the_order_of_frames() -> None:
    """A channel that fires where the first feature rises from one frame to the next."""
    head = TemporalHead(Front(1), 1, hidden_width=1)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[[-1.0, 1.0, 0.0]]]))
        head.hidden.bias.fill_(-1.0)
        head.output.weight.fill_(1.0)
        up, down = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([3.0, 0.0, 0.0])
        rising, falling = head(torch.stack([up, down])[:, :, None])[:, 0]
    assert rising.item() == pytest.approx(2 / 3)
    assert falling.item() == pytest.approx(2 / 3)  # a first frame rises from the zeros before it
    with torch.no_grad():
        assert head(torch.tensor([[[3.0], [0.0], [3.0]]])).item() == pytest.approx(4 / 3)


def test_build_head_refuses_a_kind_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="'svm'"):
        build_head("svm", Front(2), 1, hidden_widths=[1])
