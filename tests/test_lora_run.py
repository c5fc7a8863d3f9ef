"""Runs of FT-C-LoRA on real tiny models: they start as the tuned head, resume to the bit, and end with a bundle."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache import FeatureCache
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.adapter import attach_adapter
from featurecache.backbones.adapter_files import open_adapter
from featurecache.clips.csv_file import read_table
from featurecache.errors import (
    BundleError,
    CheckpointError,
    FingerprintMismatchError,
    ModelNotFoundError,
    SettingsError,
    UnsafeFileError,
)
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project
from heads.bundle import load_bundle, save_bundle
from heads.engines import solving
from heads.finetuning.lora import LoraRun, plan_lora
from heads.finetuning.run import CHECKPOINT_NAME
from heads.finetuning.training_state import positive_weight
from heads.workflow.evaluating import evaluate
from heads.workflow.leaving_out import leave_one_session_out
from heads.workflow.predicting import predict
from tests.lora_samples import PROMPT, SMALL, begin, starting_scores, tuned
from tests.projects import edited, make_project, make_table
from tests.tiny_models import change_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT, called directly


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


@pytest.fixture(scope="module")
def finished(project: Project) -> LoraRun:
    run = begin(project, tuned(project), project.runs / "lora", dataclasses.replace(SMALL, select="loss", patience=0))
    run.train()
    run.finish()
    return run


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


@pytest.mark.parametrize(("variance_exponent", "components"), [(0.0, 0), (1.0, 0), (1.0, 3), (0.5, 0)])
def test_a_solved_head_begins_at_the_optimum_of_what_fine_tuning_minimises(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variance_exponent: float, components: int
) -> None:
    """The gradients of loss and penalty cancel; else training would first undo the search.

    Both are over 1e-3 at this penalty. The solver stops where the objective, about 1, can fall by a share of 1e-10, so
    with a curvature of up to 10 what is left of their sum is at most sqrt(2 * 10 * 1e-10) = 5e-5.
    """
    monkeypatch.setattr(solving, "TOLERANCE", 1e-10)
    chosen = {"variance_exponent": variance_exponent, "components": components, "l2": 1.0}
    run = begin(project, tuned(project, name="solved", **chosen), tmp_path)
    loop, network = run.loop, run._network.eval()
    rows = loop.train.read(range(len(loop.train.Y)))
    weight = network.head.output.weight
    weighs = positive_weight(loop.train.Y, exponent=0.5)
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
    project = edited(project, 'stored_dtype = "float32"', 'stored_dtype = "float16"')
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
    project = edited(project, '\ndtype = "float32"', '\ndtype = "bfloat16"')
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
    assert [name for name, one in bundle.selected.items() if "adapter" in one.inputs] == ["final/mean", "final/motion"]
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


def test_a_run_resumes_bit_for_bit_when_it_was_interrupted(project: Project, tmp_path: Path, finished: LoraRun) -> None:
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
    bundle = finished.folder / "bundle"
    both = evaluate(project, bundle, against=project.runs / "tune" / "bundle")
    assert both.comparison is not None
    assert set(both.comparison) >= {"difference", "difference_ci95", "p_value"}
    assert predict(project, [project.videos / "S0.mp4"], out=tmp_path / "out", bundle=bundle).written
    with pytest.raises(BundleError, match="has an adapter"):
        leave_one_session_out(project, bundle)


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
