"""A TimeSformer with a head as one network: its loss and gradients, what it learns, and the model it becomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TimesformerForVideoClassification, TimesformerModel

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.timesformer import unfreeze, write_model
from featurecache.errors import (
    SettingsError,
)
from heads.finetuning.data import PIXELS
from heads.finetuning.encoder_network import BACKBONE, HEAD, EncoderNetwork
from heads.finetuning.loop import FineTuning
from heads.finetuning.training_state import Group, positive_weight
from heads.models import Front, LinearHead
from tests.tiny_families import FRAMES, IMAGE_PX, WIDTH, make_timesformer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_timesformer(tmp_path_factory.mktemp("timesformer"))


def network(model: Path, *, last_layers: int = 0, gradient_checkpointing: bool = False) -> EncoderNetwork:
    inputs = open_inputs(model, prompt="", frames=FRAMES, resize="model")
    encoder: Any = open_backbone(inputs, dtype="float32", device="cpu")
    unfreeze(encoder, last_layers=last_layers, gradient_checkpointing=gradient_checkpointing)
    return EncoderNetwork(encoder, LinearHead(Front(WIDTH), 2))


class Squares:
    """Clips of noise in which a bright square moves to the right (first label) or does not; the second is chance."""

    def __init__(self, count: int, seed: int, *, shuffled: bool = False) -> None:
        draw = np.random.default_rng(seed)
        moves, chance = draw.random(count) < 0.5, draw.random(count) < 0.4
        pictures = draw.integers(0, 60, (count, FRAMES, IMAGE_PX, IMAGE_PX, 3), np.uint8)
        for clip, does in enumerate(moves):
            x, y = 0 if does else 8 * int(draw.integers(0, FRAMES)), int(draw.integers(0, IMAGE_PX - 8))
            for frame in range(FRAMES):
                at = x + 8 * frame * does
                pictures[clip, frame, y : y + 8, at : at + 8] = 250
        self.pictures = torch.from_numpy(pictures)
        self.Y = np.stack([draw.permutation(moves) if shuffled else moves, chance], axis=1).astype(np.int8)

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {PIXELS: self.pictures[list(numbers)]}

    def expect(self, numbers: Sequence[int]) -> None:
        pass


def trained(network: EncoderNetwork, train: Squares, validation: Squares, *, epochs: int) -> FineTuning:
    run = FineTuning(
        network,
        [Group(BACKBONE, 1e-3, 0.05), Group(HEAD, 1e-2, 0.05)],
        train,
        validation,
        positive_weight=positive_weight(train.Y, exponent=0.5),
        epochs=epochs,
        patience=0,
        select="loss",
        batch_size=16,
        micro_batch=16,
        warmup=0.1,
        clip_norm=1.0,
        seed=0,
    )
    run.run()
    return run


def accuracy(run: FineTuning, clips: Squares) -> float:
    return float(((run.scores(clips)[:, 0] > 0.5) == clips.Y[:, 0]).mean())


def test_network_has_loss_and_gradients_of_the_plain_classifier(model: Path) -> None:
    ours, rows = network(model), Squares(3, 0).read([0, 1, 2])
    plain = TimesformerForVideoClassification.from_pretrained(model, num_labels=2, ignore_mismatched_sizes=True).eval()
    with torch.no_grad():
        ours.head.output.weight.normal_(generator=torch.Generator().manual_seed(1))
        plain.classifier.weight.copy_(ours.head.output.weight)
        plain.classifier.bias.copy_(ours.head.output.bias)
    pixels = (rows[PIXELS].permute(0, 1, 4, 2, 3) / 255 - 0.45) / 0.225
    expected = plain(pixels).logits
    logits = ours.eval()(rows)
    assert torch.allclose(logits, expected, atol=1e-4)
    logits.square().mean().backward()
    expected.square().mean().backward()
    theirs = dict(plain.timesformer.named_parameters())
    for name, parameter in ours.backbone.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3), name


def test_network_has_the_same_gradients_when_layers_are_computed_twice(model: Path) -> None:
    gradients = []
    for twice in (False, True):
        each = network(model, gradient_checkpointing=twice).train()
        torch.nn.init.ones_(each.head.output.weight)
        each(Squares(2, 0).read([0, 1])).square().mean().backward()
        gradients.append({name: one.grad for name, one in each.named_parameters()})
    assert all(torch.equal(one, gradients[1][name]) for name, one in gradients[0].items())


def test_training_learns_motion_and_nothing_from_shuffled_labels(model: Path) -> None:
    held_out = Squares(80, 9)
    run = trained(network(model), Squares(128, 1), Squares(40, 2), epochs=8)
    assert accuracy(run, held_out) > 0.9
    shuffled = trained(network(model), Squares(128, 1, shuffled=True), Squares(40, 2, shuffled=True), epochs=3)
    assert accuracy(shuffled, held_out) < 0.7


def test_frozen_layers_stay_as_they_were_when_the_last_ones_are_trained(model: Path) -> None:
    plain = dict(TimesformerModel.from_pretrained(model).named_parameters())
    run = trained(network(model, last_layers=1), Squares(40, 1), Squares(20, 2), epochs=2)
    assert run.kept_epoch > 0
    changed = {name for name, one in run.network.backbone.named_parameters() if not torch.equal(one, plain[name])}
    assert {name.split(".weight")[0].split(".bias")[0].split(".")[0] for name in changed} == {"encoder", "layernorm"}
    assert {name.split(".")[2] for name in changed if name.startswith("encoder")} == {"2"}
    assert any("temporal_attention" in name for name in changed)
    with pytest.raises(SettingsError, match="must be at most 3"):
        network(model, last_layers=4)


def test_a_written_model_is_one_for_transformers_and_for_the_backbones(model: Path, tmp_path: Path) -> None:
    run = trained(network(model), Squares(40, 1), Squares(20, 2), epochs=1)
    write_model(run.network.encoder[0], tmp_path / "written")
    assert {path.name for path in (tmp_path / "written").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert str(model) not in (tmp_path / "written" / "config.json").read_text()
    theirs = TimesformerModel.from_pretrained(tmp_path / "written")
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, run.network.backbone.get_parameter(name)), name
    again = network(tmp_path / "written")
    pictures = Squares(2, 3).pictures
    with torch.no_grad():
        assert torch.equal(again.eval().features(pictures), run.network.eval().features(pictures))
