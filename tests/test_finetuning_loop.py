"""The fine-tuning loop on a small network: it learns, resumes to the bit, halves what does not fit, and refuses."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurecache.errors import (
    CheckpointError,
    DivergedError,
    SettingsError,
)
from heads.finetuning.interrupts import Interrupts
from heads.finetuning.loop import FineTuning
from heads.finetuning.training_state import Group, positive_weight
from tests.small_finetuning import GROUPS, SmallClips, SmallNetwork, loop, parameters

ROOT = Path(__file__).parents[1]


def test_training_learns() -> None:
    run = loop(epochs=40)
    run.run()
    assert run.history[0].train_loss is None
    assert run.history[-1].train_loss < 0.92 * run.history[1].train_loss


def test_training_keeps_the_best_epoch_and_stops_when_none_is_better() -> None:
    network = SmallNetwork()
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    run = FineTuning(
        network,
        [Group("language_model.", 0.3, 0.0), Group("head.", 0.3, 0.0)],  # wild
        SmallClips(37, 1),
        SmallClips(20, 2),
        positive_weight=torch.ones(2),
        epochs=30,
        patience=2,
        select="loss",
        batch_size=8,
        micro_batch=8,
        warmup=0.0,
        clip_norm=1e3,
        seed=0,
    )
    run.run()
    losses = [epoch.validation_loss for epoch in run.history]
    assert run.kept_epoch == int(np.argmin(losses))
    assert len(run.history) == run.kept_epoch + 3
    if run.kept_epoch == 0:
        assert all(torch.equal(one, before[name]) for name, one in parameters(run).items())


def test_a_step_is_that_of_adamw_on_the_weighted_loss_of_the_whole_batch() -> None:
    run = loop(SmallNetwork(dropout=0.0), epochs=1, batch_size=37, micro_batch=5, warmup=0.0, clip_norm=1e9)
    reference = SmallNetwork(dropout=0.0)
    clips = SmallClips(37, 1)
    weight = positive_weight(clips.Y, exponent=0.5)
    assert weight.tolist() == pytest.approx(np.sqrt((1 - clips.Y.mean(0)) / clips.Y.mean(0)).tolist())
    optimizer = torch.optim.AdamW(
        [
            {"params": reference.language_model.parameters(), "lr": 1e-3, "weight_decay": 0.0},
            {"params": [reference.head.weight], "lr": 1e-2, "weight_decay": 0.1},
            {"params": [reference.head.bias], "lr": 1e-2, "weight_decay": 0.0},
        ]
    )
    nn.functional.binary_cross_entropy_with_logits(
        reference({"x": clips.x}), torch.from_numpy(clips.Y).float(), pos_weight=weight
    ).backward()
    optimizer.step()
    after: dict[str, Tensor] = {}

    def at_step(_: object) -> None:
        if run.step == 1 and not after:
            after.update(parameters(run))

    run.run(on_progress=at_step)
    for name, parameter in reference.named_parameters():
        assert torch.allclose(after[name], parameter, atol=1e-6), name


def test_learning_rate_rises_and_falls_along_a_cosine() -> None:
    run = loop(epochs=10, warmup=0.1)
    rates = [run._rate(step) for step in range(run.steps)]
    assert run.steps == 50
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1
    assert rates[5 + 45 // 3] == pytest.approx(0.75)
    assert 0 < rates[-1] < 0.01
    assert sorted(rates[4:], reverse=True) == rates[4:]


@pytest.mark.parametrize("training", [True, False])
def test_micro_batches_are_halved_with_the_same_steps_when_memory_is_not_enough(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """In training or in scoring; each time that a device's cache is emptied, the failed attempt's tensors are gone."""
    whole, short = (loop(SmallNetwork(dropout=0.0)) for _ in range(2))
    failed: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []

    def ask(module: nn.Module, rows: tuple[Mapping[str, Tensor]]) -> None:
        if module.training == training and len(rows[0]["x"]) > 1:
            of_this_attempt = torch.zeros(1)
            failed.append(weakref.ref(of_this_attempt))
            torch.empty(10**15)

    short.network.register_forward_pre_hook(ask)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone.append(all(one() is None for one in failed)))
    whole.run()
    short.run()
    assert (whole.micro_batch, short.micro_batch) == (4, 1)
    assert gone == [True, True]
    assert all(torch.allclose(one, parameters(whole)[name], atol=1e-6) for name, one in parameters(short).items())
    with pytest.raises(SettingsError, match="one clip must fit in memory"):
        loop(SmallNetwork(most=0)).run()


def test_measuring_changes_nothing() -> None:
    plain, measured = loop(), loop()
    assert measured.measure().train_s > 0
    plain.run()
    measured.run()
    assert all(torch.equal(one, parameters(plain)[name]) for name, one in parameters(measured).items())


def test_dropout_is_drawn_anew_in_each_step_and_is_the_same_again_whatever_else_draws() -> None:
    run = loop()
    run.network.train()

    def loss(step: int, noise: int) -> float:
        torch.manual_seed(noise)
        run.step = step
        return run._loss(run.train, [4, 5], run.train.read([4, 5]), whole=2).item()

    assert loss(0, noise=1) == loss(0, noise=2)
    assert loss(0, noise=1) != loss(1, noise=1)


def test_training_says_so_when_it_diverges() -> None:
    run = loop(SmallNetwork())
    with torch.no_grad():
        run.network.head.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"after epoch 0 the validation loss is nan.*Lower"):
        run.run()


def test_training_says_so_when_a_step_diverges() -> None:
    run = loop(SmallNetwork())
    run.train.x[:] = float("inf")
    with pytest.raises(DivergedError, match=r"in step 1 the loss is nan.*Lower"):
        run.run()


def test_training_refuses_a_parameter_that_gets_no_gradient() -> None:
    network = SmallNetwork()
    network.head.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    with pytest.raises(RuntimeError, match=r"every trainable parameter must get a gradient.*head\.idle"):
        loop(network).run()


KILLED_RUN = """
import os, signal, sys, torch
from collections.abc import Sequence
from pathlib import Path
torch.set_num_threads(1)
from tests.small_finetuning import loop
folder, stop = Path(sys.argv[1]), int(sys.argv[2])
run = loop()
def at_step(now):
    if now.step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
run.run(checkpoint=folder / "checkpoint", every_s=0.0, signature={"seed": 3}, on_progress=at_step)
"""


def test_training_resumes_bit_for_bit_when_it_was_killed(tmp_path: Path) -> None:
    script = KILLED_RUN
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), "7"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    unbroken, resumed = loop(), loop()
    unbroken.run()
    steps: list[int] = []
    resumed.run(
        checkpoint=tmp_path / "checkpoint", signature={"seed": 3}, on_progress=lambda now: steps.append(now.step)
    )
    assert steps[0] == 8
    assert resumed.history == unbroken.history
    assert all(torch.equal(one, parameters(unbroken)[key]) for key, one in parameters(resumed).items())


def test_a_stopped_run_saves_first_when_no_checkpoint_is_due(tmp_path: Path) -> None:
    run = loop()

    def at_step(now: Any) -> None:
        if now.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run.run(checkpoint=tmp_path / "checkpoint", every_s=1e9, on_progress=at_step)
    resumed, unbroken = loop(), loop()
    steps: list[int] = []
    resumed.run(checkpoint=tmp_path / "checkpoint", on_progress=lambda now: steps.append(now.step))
    unbroken.run()
    assert steps[0] == 8
    assert resumed.history == unbroken.history
    assert all(torch.equal(one, parameters(unbroken)[key]) for key, one in parameters(resumed).items())


def test_a_checkpoint_is_refused_when_it_is_of_another_run_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    loop().run(checkpoint=path, signature={"seed": 3, "rank": 4})
    with pytest.raises(CheckpointError, match=r"but rank was 4 and is 8\. .*--fresh"):
        loop().run(checkpoint=path, signature={"seed": 3, "rank": 8})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"must be whole.*--fresh"):
        loop().run(checkpoint=path, signature={"seed": 3, "rank": 4})


def test_loop_penalises_weights_along_the_directions_that_a_group_names() -> None:
    held = torch.arange(8) < 3
    groups = (GROUPS[0], Group("head.", 1e-2, 0.0, l2=30.0, penalise=lambda rows: rows * held))
    before, after = SmallNetwork().head, SmallNetwork()
    run = loop(after, groups, epochs=30)
    while run.step < run.steps:
        run._train_step(Interrupts())
    assert after.head.weight[:, held].abs().max() < 0.05 * before.weight[:, held].abs().max()
    assert after.head.weight[:, ~held].abs().max() > 0.5 * before.weight[:, ~held].abs().max()
