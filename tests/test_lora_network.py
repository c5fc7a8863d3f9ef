"""Adapted networks on real tiny models: losses and gradients of the plain way, from pixels and from stored tokens."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache.backbones.adapter_files import Adapter
from tests.lora_samples import PROMPT, frames, network, randomize, relative, stored
from tests.tiny_models import plain_processor

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly


def test_network_has_loss_and_gradients_of_the_plain_model_from_pixels(deep_model: Path) -> None:
    ours = network(deep_model, inputs="final/mean")
    randomize(ours)
    pixels = frames()
    rows = stored(ours, pixels, "layer_0/tokens")
    Y = torch.tensor([[0.0, 1], [1, 0], [1, 1]])

    # The plain way: pixels into the whole model with all its states, adapters by PEFT, text and logits included.
    plain = LlavaNextVideoForConditionalGeneration.from_pretrained(deep_model, dtype=torch.float32).eval()
    ours.write_adapter(deep_model.parent / "written")
    adapted = PeftModel.from_pretrained(
        plain.model.language_model, deep_model.parent / "written", is_trainable=True, local_files_only=True
    )
    processor = plain_processor(deep_model)
    videos = list(torch.from_numpy(pixels).permute(0, 3, 1, 2).split(4))
    batch = processor(text=[PROMPT + " what happens ?"] * 3, videos=videos, do_sample_frames=False, return_tensors="pt")
    states = plain(**batch, output_hidden_states=True).hidden_states[-1]
    is_video = batch["input_ids"] == processor.video_token_id
    features = torch.stack([one[where].mean(0) for one, where in zip(states, is_video, strict=True)])
    loss = nn.functional.binary_cross_entropy_with_logits(ours(rows), Y)
    expected = nn.functional.binary_cross_entropy_with_logits(ours.head(features), Y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    ours.head.zero_grad()
    expected.backward()

    theirs = dict(adapted.named_parameters())
    compared = 0
    for name, parameter in ours.language_model.named_parameters():
        if parameter.requires_grad:
            assert relative(parameter.grad, theirs[name].grad) < 1e-4, name
            assert parameter.grad.abs().max() > 1e-5
            compared += 1
    assert compared == 4 * 4 * 2


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


def test_network_from_tower_tokens_gives_the_logits_of_projected_ones(deep_model: Path) -> None:
    logits = []
    for tokens in ("vision/tokens", "layer_0/tokens"):
        each = network(deep_model, tokens=tokens)
        randomize(each)
        logits.append(each(stored(each, frames(), tokens)))
    assert torch.equal(*logits)


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


def test_adapters_are_in_the_language_model_alone(deep_model: Path) -> None:
    each = network(deep_model)
    (backbone,) = each._backbone
    assert not [name for name, _ in backbone.model.vision_tower.named_parameters() if "lora" in name]
    assert {name.split(".")[0] for name, one in each.named_parameters() if one.requires_grad} == {
        "language_model",
        "head",
    }


def test_adapter_changes_the_taps_above_its_first_layer_alone() -> None:
    adapter = Adapter(Path(), first_layer=2, sha256={}, settings={})
    taps = ["vision", "layer_0", "layer_2", "layer_3", "layer_10", "final"]
    assert [tap for tap in taps if adapter.changes(tap)] == ["layer_3", "layer_10", "final"]
