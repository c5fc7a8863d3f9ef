"""4-bit weights (NF4) for the layers that adapters are trained on: a quarter of the memory of bfloat16.

Every linear layer of the language model from the first one with an adapter on is rounded to 16 levels in blocks of 64
and computes in the model's own dtype. Layers below stay as they are, so taps there are those of the base model. The
rounded model is another model: what is extracted with its adapters is rounded in the same way.

bitsandbytes does it and is an extra. On some CPUs it fetches native code from the hub while it is imported, if the
package `kernels` is there. It is imported here, first and without that; so this module comes before PEFT, which
imports it too.

Not here: adapters, other ways to quantise.

Source: Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs. https://arxiv.org/abs/2305.14314
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

from featurecache.errors import SettingsError

_TYPE, _BLOCK = "nf4", 64


def _imported() -> ModuleType | None:
    logger, kernels = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # what makes an import of it fail
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError:
        return None
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


_bitsandbytes: Any = _imported()


def require_four_bit() -> None:
    """Refuses where bitsandbytes is not installed.

    Raises:
        SettingsError: Then.
    """
    if _bitsandbytes is None:
        raise SettingsError(
            "weights of 4 bits need bitsandbytes, but it is not installed here. "
            "pip install 'featurecache[4bit]', or train with lora.base_weights = \"full\"."
        )


def quantise(decoder: Any, first_layer: int) -> None:
    """Replaces the linear layers from `first_layer` on by 4-bit ones, in place and on the device they are on.

    Args:
        decoder: The inner language model.
        first_layer: From 0.

    Raises:
        SettingsError: If bitsandbytes is not installed.
    """
    require_four_bit()
    dtype = decoder.dtype
    for layer in decoder.layers[first_layer:]:
        for name, linear in list(_linears(layer)):
            small = _bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, dtype, quant_type=_TYPE, device="meta"
            )
            weight = _bitsandbytes.nn.Params4bit(
                linear.weight.data, blocksize=_BLOCK, quant_type=_TYPE, compress_statistics=True, module=small
            )
            small.weight, small.bias = weight.to(linear.weight.device), linear.bias
            small.support_avx512bf16_for_cpu = False  # it repacks the weights in scoring, and gives no gradients then
            layer.set_submodule(name, small.train(linear.training))
    decoder.is_loaded_in_4bit = True  # what PEFT looks at


def is_quantised(decoder: Any) -> bool:
    """Whether `quantise` was here."""
    return bool(getattr(decoder, "is_loaded_in_4bit", False))


@torch.no_grad()
def round_weights(decoder: Any, first_layer: int) -> None:
    """Gives the linear layers from `first_layer` on the values that 4 bits would hold, in their own dtype.

    Raises:
        SettingsError: If bitsandbytes is not installed.
    """
    require_four_bit()
    functional = _bitsandbytes.functional
    for layer in decoder.layers[first_layer:]:
        for _, linear in _linears(layer):
            small, state = functional.quantize_4bit(
                linear.weight.data, blocksize=_BLOCK, quant_type=_TYPE, compress_statistics=True
            )
            linear.weight.copy_(functional.dequantize_4bit(small, state))


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module
