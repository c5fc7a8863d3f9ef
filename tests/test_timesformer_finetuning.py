"""The supervised baseline on tiny real TimeSformers: learns, resumes to the bit, and predicts as it trained."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

import cli
from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import (
    BundleError,
    CheckpointError,
    FingerprintMismatchError,
    ModelNotFoundError,
    SettingsError,
    StudyError,
    UnsupportedModelError,
)
from featurecache.project.settings import Project, open_project
from heads.bundle import load_bundle
from heads.finetuning import trials as trials_module
from heads.finetuning.run import CHECKPOINT_NAME
from heads.finetuning.settings import FinetuneSettings, TrialRanges
from heads.finetuning.timesformer import TimesformerRun, plan_timesformer
from heads.finetuning.trials import search_timesformer
from heads.report import documents
from heads.search.study import JOURNAL_NAME, STUDY_NAME
from tests.projects import make_project, make_table
from tests.tiny_families import FRAMES, IMAGE_PX, make_clip, make_timesformer
from tests.tiny_models import change_weights

RANGES = TrialRanges(learning_rate=(1e-4, 1e-3), batch_size=(4, 8))
SMALL = FinetuneSettings(
    model="",
    learning_rate=1e-3,
    head_learning_rate=1e-2,
    epochs=2,
    patience=0,
    select="loss",
    batch_size=5,
    micro_batch=2,
    search=RANGES,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_timesformer(tmp_path_factory.mktemp("timesformer"))


# --- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Project:
    """Of another backbone, and never extracted."""
    folder = tmp_path_factory.mktemp("project")
    project = make_project(folder / "project", make_clip(folder / "clip"), sessions=6, clips=4)
    text = (project.root / "featurecache.toml").read_text()
    (project.root / "featurecache.toml").write_text(
        f'{text}\n[finetune]\nmodel = "{model}"\nlearning_rate = 1e-3\nhead_learning_rate = 1e-2\nepochs = 1\n'
        "[finetune.search]\nlearning_rate = [1e-4, 1e-3]\nbatch_size = [4, 8]\n"
    )
    make_table(project)
    return open_project(project.root)


def begin(project: Project, model: Path, folder: Path, **changes: Any) -> TimesformerRun:
    plan = plan_timesformer(project, dataclasses.replace(SMALL, model=str(model), **changes)).examined()
    return TimesformerRun(plan, seed=1, device="cpu", folder=folder)


@pytest.fixture(scope="module")
def finished(project: Project, model: Path) -> TimesformerRun:
    run = begin(project, model, project.runs / "timesformer")
    run.train()
    run.finish()
    return run


def test_training_begins_at_the_prior_of_each_label(project: Project, model: Path, tmp_path: Path) -> None:
    plan = plan_timesformer(project, dataclasses.replace(SMALL, model=str(model)))
    plan.splits["train"].Y[:5] = 0  # half of the clips have each label otherwise
    run = TimesformerRun(plan, seed=1, device="cpu", folder=tmp_path)
    share = run.loop.train.Y.mean(axis=0)
    assert (share < 0.5).all()
    assert np.allclose(run.loop.scores(run.loop.validation), share, atol=1e-6)
    seen = frozenset(plan.splits["validation"].clip_ids[:3])  # labelled in sight of predictions: these end nothing
    without = plan_timesformer(project, dataclasses.replace(SMALL, model=str(model)), seen=seen)
    assert without.splits["validation"].clip_ids == plan.splits["validation"].clip_ids[3:]


def test_timesformer_is_refused_when_the_model_changes_between_plan_and_run(
    project: Project, model: Path, tmp_path: Path
) -> None:
    changing = Path(shutil.copytree(model, tmp_path / "model"))
    plan = plan_timesformer(project, dataclasses.replace(SMALL, model=str(changing)))
    change_weights(changing)
    with pytest.raises(FingerprintMismatchError, match=r"weights\.model\.safetensors changed in between"):
        TimesformerRun(plan, seed=1, device="cpu", folder=tmp_path)


def test_bundle_scores_as_training_did(project: Project, finished: TimesformerRun) -> None:
    folder = finished.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.json",
        "bundle",
        "learning.json",
        "validation_metrics.json",
    ]
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o600"}
    bundle = load_bundle(folder / "bundle")
    assert finished.loop.kept_epoch > 0
    ids = finished.loop.validation.clip_ids
    (space,) = bundle.spaces
    X = FeatureCache.open(project.cache).load(ids, space=space.fingerprint)
    scores = bundle.scores(X, fingerprint=bundle.fingerprint)
    assert np.abs(scores - finished.loop.scores(finished.loop.validation)).max() < 1e-5  # float32 all the way
    best = json.loads((folder / "best.json").read_text())
    assert (best["method"], best["inputs"]) == ("TimeSformer", "final/cls")
    assert space.fingerprint != finished.plan.space.fingerprint


def test_a_run_resumes_bit_for_bit_when_it_was_interrupted(
    project: Project, model: Path, tmp_path: Path, finished: TimesformerRun
) -> None:
    first = begin(project, model, tmp_path, checkpoint_minutes=1e-9)

    def at_step(now: Any) -> None:
        if now.step == 2:
            raise KeyError("the power went off")

    with pytest.raises(KeyError):
        first.train(at_step)
    again = begin(project, model, tmp_path, memory_gb=1e-9)  # and every clip decoded again whenever it is read
    assert again.plan.store.most == 1
    steps: list[int] = []
    again.train(lambda now: steps.append(now.step))
    assert steps[0] == 3
    assert again.loop.history == finished.loop.history
    for name, parameter in again.loop.trainable.items():
        assert torch.equal(parameter, finished.loop.trainable[name]), name
    other = begin(project, model, tmp_path, learning_rate=2e-3)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.001 and is 0\.002"):
        other.train()
    with pytest.raises(CheckpointError, match=r"the model or the settings under \[features\] are others"):
        begin(project, make_timesformer(tmp_path / "other", seed=1), tmp_path).train()


def test_clips_that_cannot_be_decoded_are_left_out(project: Project, model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(project.root, tmp_path / "project")
    clip = next(clip for clip in read_table(project.clips).clips if clip.split == "train")
    video = copied / "videos" / clip.recording
    video.write_bytes(video.read_bytes() + b"more")  # other content than clips.csv says
    plan = plan_timesformer(open_project(copied), dataclasses.replace(SMALL, model=str(model)))
    assert len(plan.left_out) == 4
    assert set(plan.left_out) & set(plan.splits["train"].clip_ids or ()) == set()
    assert all("content is not the one" in reason for reason in plan.left_out.values())


def test_fine_tuning_is_refused_when_model_or_settings_are_wrong(project: Project, model: Path, tmp_path: Path) -> None:
    def plan(project: Project = project, **changes: Any) -> None:
        plan_timesformer(project, dataclasses.replace(SMALL, **{"model": str(model), **changes}))

    with pytest.raises(UnsupportedModelError, match=r"finetune\.model must be a TimeSformer.*'clip'"):
        plan(model=project.settings.features.model)
    with pytest.raises(ModelNotFoundError, match=r"finetune\.model must be a folder"):
        plan(model="/nowhere")
    with pytest.raises(SettingsError, match="must not be below"):
        plan(learning_rate=0.5)
    half = dataclasses.replace(project.settings.features, dtype="float16")
    with pytest.raises(SettingsError, match="float16"):
        plan(Project(project.root, dataclasses.replace(project.settings, features=half)))
    lacking = shutil.copytree(model, tmp_path / "lacking")
    (lacking / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is damaged or cut off"):
        begin(project, lacking, tmp_path)


def test_a_bundle_with_a_model_is_refused_when_damaged(finished: TimesformerRun, tmp_path: Path) -> None:
    copied = shutil.copytree(finished.folder / "bundle", tmp_path / "bundle")
    weights = copied / "backbone" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="do not have the sha256"):
        load_bundle(copied)
    shutil.rmtree(copied / "backbone")
    with pytest.raises(BundleError, match="do not have the sha256"):
        load_bundle(copied)


# --- trials ---------------------------------------------------------------------------------------


def search(project: Project, model: Path, folder: Path, trials: int, on_progress: Any = lambda _: None) -> Any:
    plan = plan_timesformer(project, dataclasses.replace(SMALL, model=str(model), epochs=1)).examined()
    told: list[tuple[int, FinetuneSettings]] = []
    best = search_timesformer(
        plan,
        trials=trials,
        seed=0,
        device="cpu",
        folder=folder,
        on_trial=lambda *one: told.append(one),
        on_progress=on_progress,
    )
    return best, told


def test_trials_keep_the_best_and_go_on_as_if_not_interrupted(project: Project, model: Path, tmp_path: Path) -> None:
    best, told = search(project, model, tmp_path / "unbroken", 3)
    assert [place for place, _ in told] == [0, 1, 2]
    assert told[0][1].learning_rate == SMALL.learning_rate
    assert len({settings.learning_rate for _, settings in told}) == 3
    assert all(1e-4 <= settings.learning_rate <= 1e-3 and settings.batch_size in (4, 8) for _, settings in told)
    assert best["trials"] == {"completed": 3, "pruned": 0, "interrupted": 0}
    journal = JournalFileBackend(str(tmp_path / "unbroken" / JOURNAL_NAME))
    study = optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(journal))
    values = [trial.value for trial in study.get_trials()]
    assert best["trial"] == np.argmax(values) < 2
    assert best["finetune"]["learning_rate"] == told[best["trial"]][1].learning_rate

    steps = 0

    def at_step(now: Any) -> None:
        nonlocal steps
        steps += now.step == 1
        if steps == 2:  # in the second trial
            raise KeyError("the power went off")

    folder = tmp_path / "broken"
    with pytest.raises(KeyError):
        search(project, model, folder, 3, at_step)
    assert (folder / CHECKPOINT_NAME).exists()
    resumed, again = search(project, model, folder, 3)
    assert again == told[1:]
    assert resumed["trials"] == {"completed": 3, "pruned": 0, "interrupted": 1}
    assert resumed["finetune"] == best["finetune"]
    assert load_bundle(folder / "bundle").digest == load_bundle(tmp_path / "unbroken" / "bundle").digest
    assert not (folder / CHECKPOINT_NAME).exists()
    changed = plan_timesformer(project, dataclasses.replace(SMALL, model=str(model), epochs=2)).examined()
    with pytest.raises(StudyError, match="settings"):
        search_timesformer(changed, trials=4, seed=0, device="cpu", folder=folder)


def test_a_trial_ends_early_when_its_scores_are_poor_or_it_diverges(
    project: Project, model: Path, tmp_path: Path
) -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    others = {0: 0.0, 1: 1.1, 2: 1.1}  # better than any score after epoch 1
    study.add_trial(optuna.trial.create_trial(value=1.1, intermediate_values=others))
    poor = begin(project, model, tmp_path / "poor", epochs=3)
    assert trials_module._train(poor, study.ask(), lambda _: None) is None
    assert len(poor.loop.history) == 2
    broken = begin(project, model, tmp_path / "diverged")
    with torch.no_grad():
        broken.network.head.output.bias.fill_(float("nan"))
    assert trials_module._train(broken, study.ask(), lambda _: None) is None


# --- the command line -----------------------------------------------------------------------------


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def run_cli(project: Project, *arguments: str, code: int = 0) -> tuple[Any, str]:
    done = CliRunner().invoke(cli.app, [*arguments, "--config", str(project.root), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout), done.stderr


def test_finetune_evaluate_predict_and_report_from_the_command_line(
    project: Project, model: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(project.root, tmp_path / "project", ignore=shutil.ignore_patterns("runs", "*.zarr"))
    project = open_project(copied)
    dry, words = run_cli(project, "finetune", "--dry-run")
    assert dry["forecast"]["hours"] > 0
    assert dry["picture_bytes"] == dry["clips_in_memory"] * FRAMES * IMAGE_PX**2 * 3
    assert "forecast:" in words
    assert not project.runs.exists()
    project.clips.write_text(project.clips.read_text().replace(",train,", ",test,", 4))  # two recordings to test on
    splits = {clip.split: project.videos / clip.recording for clip in read_table(project.clips).clips}
    best, _ = run_cli(project, "finetune")
    assert best["method"] == "TimeSformer"
    bundle = str(project.runs / "timesformer" / "bundle")
    with replaced(splits["test"], b"torn"):
        metrics, _ = run_cli(project, "evaluate", bundle, code=3)
        assert metrics["failed_clips"] == 4
    metrics, words = run_cli(project, "evaluate", bundle)
    assert metrics["failed_clips"] == 0
    assert "TimeSformer" in words
    assert metrics["split"] == "test"
    out = tmp_path / "out"
    run_cli(project, "predict", str(project.videos / "S0.mp4"), "--out", str(out), "--bundle", bundle)
    assert list(out.glob("*.csv"))
    _, words = run_cli(project, "evaluate", bundle, "--leave-one-session-out", code=1)
    assert "has a model of its own" in words
    searched, words = run_cli(project, "finetune", "--trials", "2", "--fresh")
    assert sum(searched["trials"].values()) == 2
    assert "trial 1: learning_rate" in words
    _, words = run_cli(project, "finetune", code=1)
    assert "is of a search" in words
    with replaced(splits["train"], b"torn"):
        assert run_cli(project, "finetune", "--fresh", code=3)[0]["failed_clips"] == 4
    found = documents.read_documents(project)
    assert [run.method for run in found.runs] == ["TimeSformer"]
    run_cli(project, "report")


def test_finetune_says_what_is_lacking_when_no_model_is_named(project: Project, tmp_path: Path) -> None:
    copied = shutil.copytree(project.root, tmp_path / "project")
    text = (copied / "featurecache.toml").read_text()
    (copied / "featurecache.toml").write_text(text[: text.index("[finetune]")])
    _, words = run_cli(open_project(copied), "finetune", code=1)
    assert "finetune.model must be set" in words
