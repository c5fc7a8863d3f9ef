"""FT-C-LoRA on real tiny models: the numbers of the plain way, resumable to the bit, refused where it must be."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache import FeatureCache
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.adapter import attach_adapter
from featurecache.backbones.adapter_files import Adapter, open_adapter
from featurecache.clips.csv_file import read_table
from featurecache.errors import (
    BundleError,
    CheckpointError,
    DivergedError,
    FingerprintMismatchError,
    ModelNotFoundError,
    SettingsError,
    UnsafeFileError,
)
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project, open_project
from heads.bundle import load_bundle, save_bundle
from heads.engines import fitting
from heads.finetuning.adapters import AdaptedNetwork
from heads.finetuning.interrupts import Interrupts
from heads.finetuning.loop import FineTuning
from heads.finetuning.lora import LoraRun, plan_lora
from heads.finetuning.run import CHECKPOINT_NAME
from heads.finetuning.settings import LoraSettings
from heads.finetuning.training_state import Group, positive_weight
from heads.models import Front, LinearHead, head_scores
from heads.runs import train_bundle
from heads.settings import HeadSettings
from tests.projects import make_project, make_table
from tests.small_finetuning import GROUPS, SmallClips, SmallNetwork, loop, parameters, short_of_memory
from tests.tiny_models import IMAGE_PX, change_weights, make_llava_next_video, pixels_of, plain_processor

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly

ROOT = Path(__file__).parents[1]
PROMPT = "user: describe the hand . <video>"
SMALL = LoraSettings(
    rank=4, alpha=8, dropout=0.1, epochs=2, batch_size=5, micro_batch=2, learning_rate=5e-3, head_learning_rate=1e-2
)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava_next_video(tmp_path_factory.mktemp("deep"), layers=4)


def network(
    model: Path, inputs: str = "final/mean", tokens: str = "layer_0/tokens", prompt: str = PROMPT, **options: Any
) -> AdaptedNetwork:
    backbone = open_backbone(open_inputs(model, prompt=prompt, frames=4, resize="crop"), dtype="float32", device="cpu")
    names = inputs.split("+")
    widths = [backbone.inputs.taps[name.split("/")[0]].width for name in names]
    torch.manual_seed(5)
    head = LinearHead(Front(sum(widths), part_widths=widths), 2)
    nn.init.normal_(head.output.weight)
    chosen = {
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
        "targets": SMALL.targets,
        "gradient_checkpointing": False,
        "seed": 0,
        **options,
    }
    return AdaptedNetwork(backbone, head, inputs=names, tokens=tokens, **chosen)


def randomize(network: nn.Module) -> None:
    """Adapters that change something: B would start at zero."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def frames(clips: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (clips * 4, IMAGE_PX, IMAGE_PX, 3), np.uint8)


def stored(network: AdaptedNetwork, pixels: np.ndarray, *names: str) -> dict[str, Tensor]:
    """Rows as the cache would give them, computed from the frozen model."""
    (backbone,) = network._backbone
    from featurecache.backbones.pooling import pool

    rows = {}
    with network.language_model.disable_adapter(), torch.inference_mode():
        taps = [name.split("/")[0] for name in names]
        encoded = backbone.encode_frames(pixels_of(backbone, pixels), taps).unflatten(0, (-1, 4))
        for tap, states in backbone.states(encoded, taps):
            for name in names:
                if name.split("/")[0] == tap:
                    rows[name] = pool(states, name.split("/")[1])
    return {name: one.clone() for name, one in rows.items()}


# --- equality with the plain way ------------------------------------------------------------------


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


# --- the loop -------------------------------------------------------------------------------------


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
    weight = positive_weight(clips.Y, exponent=0.5, scale=1.0)
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


def test_micro_batches_are_halved_with_the_same_steps_when_memory_is_not_enough() -> None:
    whole, halved = loop(SmallNetwork(dropout=0.0), micro_batch=8), loop(SmallNetwork(0.0, most=2), micro_batch=8)
    whole.run()
    halved.run()
    assert (whole.micro_batch, halved.micro_batch) == (8, 2)
    assert all(torch.allclose(one, parameters(whole)[name], atol=1e-6) for name, one in parameters(halved).items())
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


def test_training_goes_on_bit_for_bit_when_it_was_killed(tmp_path: Path) -> None:
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


TWO_PROCESSES = """
import sys, torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from heads.finetuning.ranks import joined_ranks
from tests.small_finetuning import SmallNetwork, loop, parameters
with joined_ranks("cpu") as (ranks, device):
    run = loop(SmallNetwork(dropout=0.0), ranks=ranks)
    run.run()
    save_file(parameters(run), f"{sys.argv[1]}/{ranks.index}")
"""


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    for process in processes:
        process.wait(timeout=300)  # what they wrote counts: gloo's threads were once seen to abort an exit
    alone = loop(SmallNetwork(dropout=0.0))
    alone.run()
    both = [load_file(tmp_path / str(rank)) for rank in range(2)]
    for name, parameter in parameters(alone).items():
        assert torch.equal(both[0][name], both[1][name])
        assert torch.allclose(both[0][name], parameter, atol=1e-6), name


# --- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, deep_model: Path) -> Project:
    """Extracted and with a tuned head that reads three features, one of which no adapter changes."""
    keep = ["final/mean", "final/motion", "vision/mean"]
    project = make_project(
        tmp_path_factory.mktemp("lora") / "project", deep_model, sessions=6, clips=4, features=f"select = {keep}"
    )
    make_table(project)
    run_plan(project, plan_extraction(project))
    return project


def tuned(
    project: Project, inputs: str = "final/mean+final/motion+vision/mean", name: str = "tune", **of_head: Any
) -> Path:
    from heads.data import LearningData
    from heads.loading import load_split

    table = read_table(project.clips)
    names = inputs.split("+")
    _, spaces = project_spaces(project, select=names)
    cache = FeatureCache.open(project.cache)
    train, validation = (load_split(table, split, cache, spaces).data for split in ("train", "validation"))
    settings = HeadSettings(**{"inputs": inputs, "solver": "convex", "l2": 0.01, **of_head})
    data = LearningData(train, validation, table.labels, spaces)
    train_bundle(data, settings=settings, seed=0, folder=project.runs / name)
    return project.runs / name / "bundle"


def starting_scores(project: Project, bundle: Path, clip_ids: Sequence[str]) -> np.ndarray:
    """Scores of cached features by the bundle's settings, fitted on the training split alone."""
    tuned_head, cache, table = load_bundle(bundle), FeatureCache.open(project.cache), read_table(project.clips)

    def features(ids: Sequence[str]) -> np.ndarray:
        parts = [cache.load(ids, one.tap, one.pooling, one.fingerprint) for one in tuned_head.spaces]
        return np.concatenate(parts, axis=1)

    train = [clip for clip in table.clips if clip.split == "train"]
    Y = np.array([clip.targets for clip in train], np.int8)
    head = fitting.fit_head(features([clip.clip_id for clip in train]), Y, tuned_head.settings)
    return head_scores(head, features(clip_ids))


def begin(project: Project, bundle: Path, folder: Path, settings: LoraSettings = SMALL) -> LoraRun:
    plan = plan_lora(project, settings, bundle)
    run_plan(project, plan.extraction)
    return LoraRun(project, plan, seed=1, device="cpu", folder=folder)


@pytest.fixture(scope="module")
def finished(project: Project) -> LoraRun:
    run = begin(project, tuned(project), project.runs / "lora", dataclasses.replace(SMALL, select="loss", patience=0))
    run.train()
    run.finish()
    return run


@pytest.mark.parametrize("training", [True, False])
def test_lora_takes_the_same_steps_with_smaller_batches_when_memory_is_not_enough(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    settings = dataclasses.replace(SMALL, dropout=0.0, epochs=1, micro_batch=4)
    whole, short = (begin(project, tuned(project), tmp_path / name, settings).loop for name in ("whole", "short"))
    gone = short_of_memory(short.network, 1, training=training, monkeypatch=monkeypatch)
    whole.run()
    short.run()
    assert (whole.micro_batch, short.micro_batch) == (4, 1)
    assert gone == [True, True]
    assert all(torch.allclose(one, parameters(whole)[name], atol=1e-5) for name, one in parameters(short).items())


def test_lora_is_refused_when_the_model_changes_between_plan_and_run(
    project: Project, deep_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(deep_model, tmp_path / "model"))
    features = dataclasses.replace(project.settings.features, model=str(model))
    changing = Project(project.root, dataclasses.replace(project.settings, features=features))
    plan = plan_lora(changing, SMALL, tuned(project))
    run_plan(changing, plan.extraction)
    change_weights(model)
    with pytest.raises(FingerprintMismatchError, match=r"weights\.model\.safetensors changed in between"):
        LoraRun(changing, plan, seed=1, device="cpu", folder=tmp_path)


def test_bundle_knows_what_made_it_and_the_head_it_started_from(project: Project, tmp_path: Path) -> None:
    tuned_head = load_bundle(tuned(project))
    elsewhere = {"f" * 16: [(0, 3_000_000)]}
    save_bundle(dataclasses.replace(tuned_head, fitted_on=elsewhere), tmp_path / "start" / "bundle")
    run = begin(project, tmp_path / "start" / "bundle", tmp_path / "run", dataclasses.replace(SMALL, epochs=1))
    run.train()
    run.finish()
    made = load_bundle(tmp_path / "run" / "bundle")
    clips = [clip for clip in read_table(project.clips).clips if clip.split in ("train", "validation")]
    assert set(made.fitted_on) == {*elsewhere, *(clip.content for clip in clips)} == {*elsewhere, *tuned_head.fitted_on}
    with pytest.raises(BundleError, match="that it has not seen"):
        made.check_unseen([clip.clip_id for clip in clips], [clip.session for clip in clips], "test")


@pytest.mark.parametrize("solver", ["convex", "adamw"])
def test_step_zero_predicts_what_the_tuned_settings_do_without_the_validation_that_stops_training(
    project: Project, tmp_path: Path, solver: str
) -> None:
    bundle = tuned(project, name=f"tune-{solver}", solver=solver)
    run = begin(project, bundle, tmp_path)
    expected = starting_scores(project, bundle, run.loop.validation.clip_ids)
    assert np.abs(run.loop.scores(run.loop.validation) - expected).max() < 1e-5  # all is stored in float32 here


def test_loop_penalises_weights_along_the_directions_that_a_group_names() -> None:
    held = torch.arange(8) < 3
    groups = (GROUPS[0], Group("head.", 1e-2, 0.0, l2=30.0, penalise=lambda rows: rows * held))
    before, after = SmallNetwork().head, SmallNetwork()
    run = loop(after, groups, epochs=30)
    while run.step < run.steps:
        run._train_step(Interrupts())
    assert after.head.weight[:, held].abs().max() < 0.05 * before.weight[:, held].abs().max()
    assert after.head.weight[:, ~held].abs().max() > 0.5 * before.weight[:, ~held].abs().max()


@pytest.mark.parametrize(("variance_exponent", "components"), [(0.0, 0), (1.0, 0), (1.0, 3), (0.5, 0)])
def test_a_solved_head_begins_at_the_optimum_of_what_fine_tuning_minimises(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variance_exponent: float, components: int
) -> None:
    """The gradients of loss and penalty cancel; else training would first undo the search.

    Both are over 1e-3 at this penalty. The solver stops where the objective, about 1, can fall by a share of 1e-10, so
    with a curvature of up to 10 what is left of their sum is at most sqrt(2 * 10 * 1e-10) = 5e-5.
    """
    monkeypatch.setattr(fitting, "TOLERANCE", 1e-10)
    chosen = {"variance_exponent": variance_exponent, "components": components, "l2": 1.0}
    run = begin(project, tuned(project, name="solved", **chosen), tmp_path)
    loop, network = run.loop, run._network.eval()
    rows = loop.train.read(range(len(loop.train.Y)))
    weight = network.head.output.weight
    weighs = positive_weight(loop.train.Y, exponent=0.5, scale=1.0)
    logits, targets = network(rows), torch.from_numpy(loop.train.Y).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weighs)
    (of_loss,) = torch.autograd.grad(loss, weight)
    ((_, group),) = loop._penalised
    of_penalty = group.l2 * group.penalise(weight.detach())
    assert of_loss.norm() > 1e-3
    assert (of_loss + of_penalty).norm() < 0.05 * of_loss.norm()


def test_a_plan_asks_for_the_features_that_the_head_is_fitted_on_again(project: Project) -> None:
    bundle = tuned(project, "final/mean", name="asks")
    assert set(plan_lora(project, SMALL, bundle).extraction.spaces) == {"layer_0/tokens", "final/mean"}


def test_step_zero_predicts_within_the_rounding_of_tokens_stored_in_bfloat16(tmp_path: Path, deep_model: Path) -> None:
    project = make_project(tmp_path / "project", deep_model, sessions=6, clips=2)
    text = (project.root / "featurecache.toml").read_text()
    (project.root / "featurecache.toml").write_text(
        text.replace('stored_dtype = "float32"', 'stored_dtype = "float16"')
    )
    project = open_project(project.root)
    make_table(project)
    run_plan(project, plan_extraction(project))
    bundle = tuned(project, "final/mean")
    run = begin(project, bundle, tmp_path / "lora")
    rows = run.loop.validation.read([0, 1])
    assert rows["layer_0/tokens"].dtype == torch.bfloat16
    first = run.loop.validation.clip_ids[:2]
    X = FeatureCache.open(project.cache).load(first, "final", "mean")
    with torch.no_grad():
        ours = run._network.eval().features(rows).numpy()
    size = np.abs(X).max()
    assert 0 < np.abs(ours - X).max() < 2**-7 * size
    gap = np.abs(run.loop.scores(run.loop.validation)[:2] - starting_scores(project, bundle, first)).max()
    assert gap < 0.02


def test_bfloat16_run_predicts_as_the_tuned_head_and_trains_adapters_in_float32(
    tmp_path: Path, deep_model: Path
) -> None:
    project = make_project(tmp_path / "project", deep_model, sessions=6, clips=2)
    text = (project.root / "featurecache.toml").read_text()
    (project.root / "featurecache.toml").write_text(text.replace('dtype = "float32"', 'dtype = "bfloat16"', 1))
    project = open_project(project.root)
    make_table(project)
    run_plan(project, plan_extraction(project))
    bundle = tuned(project, "final/mean")
    run = begin(project, bundle, tmp_path / "lora")
    assert {one.dtype for one in run.loop.trainable.values()} == {torch.float32}
    expected = starting_scores(project, bundle, run.loop.validation.clip_ids)
    assert np.abs(run.loop.scores(run.loop.validation) - expected).max() < 0.02  # kernels round differently in batches
    run.train()
    assert run.loop.step == run.loop.steps


def test_run_writes_a_bundle_that_scores_as_training_did(project: Project, finished: LoraRun) -> None:
    folder = project.runs / "lora"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.json",
        "bundle",
        "learning.json",
        "validation_metrics.json",
    ]
    assert not (folder / CHECKPOINT_NAME).exists()
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o600"}
    bundle = load_bundle(folder / "bundle")
    cache = FeatureCache.open(project.cache)
    ids = finished.loop.validation.clip_ids
    X = np.concatenate([cache.load(ids, one.tap, one.pooling, one.fingerprint) for one in bundle.spaces], axis=1)
    scores = bundle.scores(X, fingerprint=bundle.fingerprint)
    assert np.abs(scores - finished.loop.scores(finished.loop.validation)).max() < 1e-5
    assert finished.loop.kept_epoch > 0
    assert [name for name, one in bundle.kept.items() if "adapter" in one.inputs] == ["final/mean", "final/motion"]
    learning = json.loads((folder / "learning.json").read_text())
    assert [epoch["epoch"] for epoch in learning["epochs"]] == [0, 1, 2]
    assert str(project.root) not in (folder / "bundle" / "adapter" / "adapter_config.json").read_text()


def test_adapter_loads_into_the_language_model_with_peft_alone(finished: LoraRun, deep_model: Path) -> None:
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(deep_model, dtype=torch.float32).model
    folder = finished.folder / "bundle" / "adapter"
    theirs = PeftModel.from_pretrained(model.language_model, folder, local_files_only=True)
    ours = finished._network.language_model
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, theirs.get_parameter(name))


def test_merged_weights_give_the_adapted_features(finished: LoraRun, deep_model: Path, tmp_path: Path) -> None:
    finished.merge(tmp_path / "merged")
    pooled = []
    for folder, adapter in ((deep_model, finished.folder / "bundle" / "adapter"), (tmp_path / "merged", None)):
        backbone = open_backbone(
            open_inputs(folder, prompt=PROMPT, frames=4, resize="crop"), dtype="float32", device="cpu"
        )
        if adapter is not None:
            attach_adapter(backbone, adapter)
        encoded = backbone.encode_frames(pixels_of(backbone, frames()), ["final"]).unflatten(0, (-1, 4))
        ((_, states),) = backbone.states(encoded, ["final"])
        pooled.append(states.tokens)
    assert relative(*pooled) < 1e-5


def test_a_run_goes_on_bit_for_bit_when_it_was_interrupted(project: Project, tmp_path: Path, finished: LoraRun) -> None:
    settings, bundle = finished.plan.settings, project.runs / "tune" / "bundle"
    settings = dataclasses.replace(settings, checkpoint_minutes=1e-9)
    first = begin(project, bundle, tmp_path, settings)

    def at_step(now: Any) -> None:
        if now.step == 2:
            raise KeyError("the power went off")

    with pytest.raises(KeyError):
        first.train(at_step)
    again = begin(project, bundle, tmp_path, dataclasses.replace(settings, checkpoint_minutes=10.0))
    steps: list[int] = []
    again.train(lambda now: steps.append(now.step))
    assert steps[0] > 2
    assert again.loop.history == finished.loop.history
    for name, parameter in again.loop.trainable.items():
        assert torch.equal(parameter.cpu(), finished.loop.trainable[name].cpu()), name
    other = begin(project, bundle, tmp_path, dataclasses.replace(settings, learning_rate=1e-3))
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.005 and is 0\.001"):
        other.train()


def test_fine_tuning_is_refused_when_it_could_change_nothing_or_begins_wrong(
    project: Project, finished: LoraRun, tmp_path: Path, tiny_model: Path
) -> None:
    vision = tuned(project, "vision/mean", name="vision")
    with pytest.raises(SettingsError, match=r"must read a tap above layer_0.*vision/mean"):
        plan_lora(project, SMALL, vision)
    with pytest.raises(SettingsError, match=r"lora\.frozen must be vision or layer_0 to layer_3"):
        plan_lora(project, dataclasses.replace(SMALL, frozen="layer_9"), project.runs / "tune" / "bundle")
    with pytest.raises(BundleError, match="has an adapter"):
        plan_lora(project, SMALL, finished.folder / "bundle")
    with pytest.raises(SettingsError, match="must not be below"):
        plan_lora(project, dataclasses.replace(SMALL, learning_rate=0.1), project.runs / "tune" / "bundle")
    features = dataclasses.replace(project.settings.features, model=str(tiny_model))
    other = Project(project.root, dataclasses.replace(project.settings, features=features))
    with pytest.raises(FingerprintMismatchError, match=r"backbone\..*differs"):
        plan_lora(other, SMALL, project.runs / "tune" / "bundle")
    with pytest.raises(SettingsError, match=r"lora\.targets.*'up'"):
        begin(project, project.runs / "tune" / "bundle", tmp_path, dataclasses.replace(SMALL, targets=("up",)))


def test_a_bundle_with_an_adapter_is_refused_when_damaged_or_on_another_base(
    project: Project, finished: LoraRun, tmp_path: Path, tiny_model: Path
) -> None:

    copied = shutil.copytree(finished.folder / "bundle", tmp_path / "bundle")
    weights = copied / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="do not have the sha256"):
        load_bundle(copied)
    weights.unlink()
    with pytest.raises(BundleError, match=r"has no adapter_model\.safetensors"):
        load_bundle(copied)
    backbone = open_backbone(
        open_inputs(tiny_model, prompt=PROMPT, frames=4, resize="crop"), dtype="float32", device="cpu"
    )
    with pytest.raises(ModelNotFoundError, match=r"must be of this language model|must hold whole adapter files"):
        attach_adapter(backbone, finished.folder / "bundle" / "adapter")


@pytest.mark.parametrize(
    ("change", "error", "wrong"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, UnsafeFileError, "sets megatron_config"),
        ({"auto_mapping": {"base_model_class": "A", "parent_library": "os"}}, UnsafeFileError, "sets auto_mapping"),
        ({"use_rslora": True}, UnsafeFileError, "sets use_rslora"),
        ({"peft_type": "ADALORA"}, UnsafeFileError, "another peft_type"),
        ({"r": 1_000_000_000}, ModelNotFoundError, "1000000000"),
        ({"target_modules": "(q|k)*_proj"}, ModelNotFoundError, "target_modules"),
        ({"layers_to_transform": None}, ModelNotFoundError, "layers_to_transform"),
    ],
)
def test_adapter_that_asks_for_more_than_plain_lora_is_refused_before_peft_reads_it(
    finished: LoraRun, tmp_path: Path, change: dict[str, Any], error: type[Exception], wrong: str
) -> None:

    folder = Path(shutil.copytree(finished.folder / "bundle" / "adapter", tmp_path / "adapter"))
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **change}))
    with pytest.raises(error, match=wrong):
        open_adapter(folder)


def test_evaluate_and_predict_take_a_bundle_with_an_adapter(
    project: Project, finished: LoraRun, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from cli import app

    config = ["--config", str(project.root), "--json"]
    paths = [str(finished.folder / "bundle"), "--against", str(project.runs / "tune" / "bundle")]
    done = CliRunner().invoke(app, ["evaluate", *paths, *config])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["comparison"]) >= {"difference", "difference_ci95", "p_value"}
    out = str(tmp_path / "out")
    video = str(project.videos / "S0.mp4")
    done = CliRunner().invoke(app, ["predict", video, "--out", out, "--bundle", paths[0], *config])
    assert done.exit_code == 0, done.stderr
    refit = CliRunner().invoke(app, ["evaluate", paths[0], "--leave-one-session-out", *config])
    assert refit.exit_code == 1
    assert "has an adapter" in refit.stderr


def test_lora_finetune_trains_from_the_command_line(project: Project, tmp_path: Path, finished: LoraRun) -> None:
    from typer.testing import CliRunner

    from cli import app

    copied = shutil.copytree(project.root, tmp_path / "project")  # the run of `finished` stays as it is
    with (copied / "featurecache.toml").open("a") as settings:
        settings.write("\n[lora]\nrank = 4\nalpha = 8\nepochs = 1\nlearning_rate = 1e-3\n")
    config = ["--config", str(copied), "--json"]
    dry = CliRunner().invoke(app, ["lora-finetune", "--dry-run", "--from-layer", "3", *config])
    assert dry.exit_code == 0, dry.stderr
    assert json.loads(dry.stdout)["share_of_layers"] == 0.25
    assert "by the arithmetic 25% of the work" in dry.stderr
    assert json.loads(dry.stdout)["extraction_forecast"]["bytes_of"]["layer_3/tokens"] > 0
    done = CliRunner().invoke(app, ["lora-finetune", "--from-layer", "3", "--merge", *config])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["lora"]["frozen"] == "layer_3"
    assert document["forecast"]["hours"] > 0
    assert (copied / "runs" / "lora" / "merged" / "model.safetensors").is_file()
    assert open_adapter(copied / "runs" / "lora" / "bundle" / "adapter").first_layer == 3
