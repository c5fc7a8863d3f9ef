"""Adapted networks on a real small model: the same losses and gradients from stored tokens of any layer."""

from pathlib import Path

import pytest
import torch

from featurecache.backbones.adapter_files import Adapter
from tests.lora_samples import frames, network, randomize, relative, stored

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("inputs", ["final/mean", "final/motion+layer_1/mean+vision/mean", "final/frames"])
def test_network_from_a_deeper_layer_has_loss_and_gradients_of_the_full_forward(
    deep_model: Path, inputs: str, layer: int
) -> None:
    from_start = network(deep_model, inputs)
    from_layer = network(deep_model, inputs, tokens=f"layer_{layer}/tokens")
    for each in (from_start, from_layer):
        randomize(each)
    shared = dict(from_layer.named_parameters())
    with torch.no_grad():  # the same adapters above the layer, none below
        for name, parameter in from_start.language_model.named_parameters():
            if "lora" in name:
                own = shared.get(f"language_model.{name}")
                parameter.copy_(own) if own is not None else parameter.zero_()
    kept = ["layer_1/mean", "vision/mean"]
    pixels = frames()
    losses = []
    for each in (from_start, from_layer):
        rows = stored(each, pixels, each._tokens, *kept)
        loss = each(rows).square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    theirs = dict(from_start.named_parameters())
    compared = [name for name, one in from_layer.named_parameters() if one.requires_grad]
    for name in compared:
        assert relative(shared[name].grad, theirs[name].grad) < 1e-5, name
    assert len(compared) == 2 + (4 - layer) * 4 * 2


def test_network_has_the_same_gradients_when_layers_are_computed_twice(deep_model: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        each = network(deep_model, gradient_checkpointing=checkpointing, dropout=0.3).train()
        randomize(each)
        rows = stored(each, frames(), "layer_0/tokens")
        torch.manual_seed(3)
        each.train()(rows).square().mean().backward()
        gradients.append({name: one.grad for name, one in each.named_parameters() if one.requires_grad})
    assert all(torch.equal(one, gradients[1][name]) for name, one in gradients[0].items())


def test_network_runs_no_layer_above_the_deepest_tap(deep_model: Path) -> None:
    each = network(deep_model, inputs="layer_2/mean")
    ran = []
    for number, layer in enumerate(each._backbone[0].model.language_model.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    rows = stored(each, frames(), "layer_0/tokens")
    ran.clear()
    each(rows)
    assert ran == [0, 1]
    adapted = {name.split("layers.")[1][0] for name, one in each.named_parameters() if "lora" in name}
    assert adapted == {"0", "1"}


def test_adapter_changes_the_taps_above_its_first_layer_alone() -> None:
    adapter = Adapter(Path(), first_layer=2, sha256={}, settings={})
    taps = ["vision", "layer_0", "layer_2", "layer_3", "layer_10", "final"]
    assert [tap for tap in taps if adapter.changes(tap)] == ["layer_3", "layer_10", "final"]
