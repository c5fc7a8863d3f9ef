"""Pooling: properties that hold for any states, and sums that neither overflow nor round."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.backbones.family import TapStates
from featurecache.backbones.pooling import pool
from featurecache.errors import NoVideoTokensError

SHAPES = st.tuples(*(st.integers(1, high) for high in (3, 5, 6, 4)))


def _states(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> TapStates:
    generator = torch.Generator().manual_seed(seed)
    b, t, _, d = shape
    return TapStates(
        torch.randn(shape, generator=generator).to(dtype), torch.randn((b, t, d), generator=generator).to(dtype)
    )


@given(SHAPES, st.integers(0, 99))
def test_poolings_agree_with_each_other_and_with_their_definitions(shape: tuple[int, ...], seed: int) -> None:
    b, t, p, d = shape
    states = _states(shape, seed)
    frames, tokens = pool(states, "frames"), pool(states, "tokens")
    assert (frames.shape, tokens.shape) == ((b, t, d), (b, t * p, d))
    torch.testing.assert_close(pool(states, "mean"), frames.mean(dim=1))
    torch.testing.assert_close(pool(states, "mean"), tokens.mean(dim=1))
    torch.testing.assert_close(pool(states, "cls"), states.cls.mean(dim=1))
    assert torch.equal(pool(states, "last"), tokens[:, -1])
    assert torch.equal(tokens[:, p * (t - 1) : p * (t - 1) + 1], states.tokens[:, t - 1, :1])
    if t > 1:
        steps = [(frames[:, k + 1] - frames[:, k]).abs() for k in range(t - 1)]
        torch.testing.assert_close(pool(states, "motion"), torch.stack(steps).mean(dim=0))


@given(SHAPES.filter(lambda shape: shape[1] > 1), st.integers(0, 99))
def test_motion_is_zero_when_the_clip_stands_still_and_the_same_when_it_runs_backwards(
    shape: tuple[int, ...], seed: int
) -> None:
    states = _states(shape, seed)
    still = TapStates(states.tokens[:, :1].expand(shape))
    assert pool(still, "motion").abs().max() <= 1e-6
    backwards = TapStates(states.tokens.flip(1))
    torch.testing.assert_close(pool(backwards, "motion"), pool(states, "motion"))
    assert (pool(states, "motion") >= 0).all()


@pytest.mark.parametrize("pooling", ["mean", "frames", "motion", "cls"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_accumulates_in_float32_when_states_are_half_precision(pooling: str, dtype: torch.dtype) -> None:
    states = _states((2, 16, 144, 3), dtype=dtype)
    exact = TapStates(states.tokens.double(), states.cls.double())
    found = pool(states, pooling)
    assert found.dtype == torch.float32
    frames = exact.tokens.mean(2)
    expected = {"mean": frames.mean(1), "frames": frames, "motion": frames.diff(dim=1).abs().mean(1)}
    torch.testing.assert_close(found.double(), expected.get(pooling, exact.cls.mean(1)), rtol=1e-5, atol=1e-6)


def test_mean_neither_overflows_nor_rounds_when_states_are_float16() -> None:
    tokens = torch.full((1, 16, 144, 2), 60.0, dtype=torch.float16)
    tokens.view(1, -1, 2)[:, ::3] = 61.0  # the mean, 60 and a third, is no float16, and the sum exceeds its range
    assert (pool(TapStates(tokens), "mean") - (60 + 1 / 3)).abs().max() < 1e-5


def test_tokens_keep_the_dtype_and_the_bits_of_the_model() -> None:
    states = _states((2, 3, 4, 5), dtype=torch.bfloat16)
    tokens = pool(states, "tokens")
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(tokens, states.tokens.reshape(2, 12, 5))


def test_pooling_is_refused_when_there_is_nothing_to_pool() -> None:
    with pytest.raises(NoVideoTokensError, match="at least one video token"):
        pool(TapStates(torch.ones(2, 3, 0, 4)), "mean")
    with pytest.raises(NoVideoTokensError, match="needs a class token"):
        pool(TapStates(torch.ones(2, 3, 1, 4)), "cls")
    with pytest.raises(ValueError, match="'median'"):
        pool(TapStates(torch.ones(2, 3, 1, 4)), "median")
