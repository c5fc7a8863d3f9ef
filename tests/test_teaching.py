"""Findings as a teacher of the weights of parts: relevance of texts, its gradient, and what training makes of it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from featurecache import FeatureCache, extract, make_clips, open_project
from featurecache.clips.csv_file import read_table
from featurecache.clips.samples_file import SAMPLES_NAME
from featurecache.errors import SettingsError
from featurecache.extraction.words import ProjectWords
from featurecache.project.settings import Project
from heads import leave_one_session_out, load_bundle, train
from heads.engines.fitting import fit_head
from heads.engines.teaching import teacher_gradient
from heads.models import head_scores, part_weights
from heads.samples.joining import present
from heads.samples.teacher import text_relevance
from heads.settings import HeadKind, HeadSettings
from heads.workflow.data import learning_data
from heads.workflow.teaching import with_teacher
from tests.projects import make_project
from tests.tiny_families import make_clip

Groups = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
TAUGHT = HeadSettings(kind="weighted", epochs=60, learning_rate=0.01, batch_size=32, teacher_weight=1.0)


def groups(rows: int = 48, places: int = 5, width: int = 16) -> Groups:
    """Parts (N, P, D), targets, what tells which part carries the label (P,), and a teacher that half knows it."""
    random = np.random.default_rng(0)
    X = random.standard_normal((rows, places, width)).astype(np.float32)
    Y, at = random.integers(2, size=(rows, 1)).astype(np.int8), random.integers(places, size=rows)
    X[np.arange(rows), at, 0] += 2 * Y[:, 0]
    carries = np.arange(places) == at[:, None]
    X[random.random(X.shape[:2]) < 0.2 * ~carries] = np.nan
    relevance = np.where(present(X), np.exp(carries + random.standard_normal(carries.shape) / 2), 0)
    teacher = Y * relevance / relevance.sum(axis=1, keepdims=True)  # findings are written where something was found
    return X, Y, carries, teacher.astype(np.float32)


def test_relevance_is_a_softmax_over_the_parts_that_are_there_and_nothing_without_a_text() -> None:
    random = np.random.default_rng(1)
    X, vectors = random.standard_normal((4, 3, 8)), random.standard_normal((4, 8))
    X[0, 1], vectors[2] = np.nan, np.nan
    found = text_relevance(X, vectors, 3.0)
    np.testing.assert_allclose(found.sum(axis=1), [1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found[3], torch.softmax(torch.from_numpy(3 * X[3] @ vectors[3]), 0), atol=1e-6)
    assert found[0, 1] == 0
    np.testing.assert_allclose(text_relevance(X[:, ::-1], vectors, 3.0)[:, ::-1], found, atol=1e-6)


def test_the_gradient_is_that_of_the_cross_entropy_between_the_teacher_and_each_query() -> None:
    random = torch.Generator().manual_seed(0)
    heads, labels, queries, clips, parts, root = 2, 3, 3, 4, 5, 0.25
    first = torch.randn(clips * parts, heads * (labels + queries), dtype=torch.float64, generator=random)
    absent = torch.zeros(clips * parts, dtype=torch.bool)
    absent[1] = True
    teacher = torch.rand(clips, parts, dtype=torch.float64, generator=random).masked_fill(absent.view(clips, -1), 0)
    teacher /= teacher.sum(dim=1, keepdim=True)
    teacher[2], shares = 0, torch.tensor([0.5, 2.0], dtype=torch.float64)
    first.requires_grad_()
    scores = first.view(clips, parts, heads, -1)[..., labels:] * root
    logs = scores.masked_fill(absent.view(clips, parts, 1, 1), -torch.inf).log_softmax(dim=1)
    entropy = -(teacher[..., None, None] * logs.masked_fill(logs.isinf(), 0)).sum(dim=(0, 1))  # (K, Q)
    (expected,) = torch.autograd.grad((entropy.mean(dim=1) * shares).sum(), first)
    found = teacher_gradient(first.detach(), teacher, absent, shares=shares, queries=queries, root=root)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["attention", "weighted"])
def test_a_teacher_without_weight_changes_nothing_and_order_of_parts_never_does(kind: HeadKind) -> None:
    X, Y, _, teacher = groups()
    untaught = dataclasses.replace(TAUGHT, kind=kind, teacher_weight=0.0)
    plain = head_scores(fit_head(X, Y, untaught), X)
    np.testing.assert_array_equal(head_scores(fit_head(X, Y, untaught, teacher=teacher), X), plain)
    taught = dataclasses.replace(untaught, teacher_weight=1.0)
    scores = head_scores(fit_head(X, Y, taught, teacher=teacher), X)
    assert np.abs(scores - plain).max() > 0.01
    order = np.random.default_rng(2).permuted(np.tile(np.arange(5), (len(X), 1)), axis=1)
    shuffled = np.take_along_axis(X, order[..., None], axis=1)
    again = fit_head(shuffled, Y, taught, teacher=np.take_along_axis(teacher, order, axis=1))
    np.testing.assert_allclose(head_scores(again, X), scores, atol=2e-3)
    np.testing.assert_array_equal(head_scores(fit_head(X, Y, taught, teacher=0 * teacher), X), plain)


def test_a_teacher_that_half_knows_which_part_carries_the_label_makes_weights_find_it() -> None:
    X, Y, carries, teacher = groups(rows=448)
    train, unseen = slice(48), slice(48, None)
    there = present(X[unseen]) & (Y[unseen] == 1)
    area = {}
    for weight in (0.0, 1.0):
        head = fit_head(X[train], Y[train], dataclasses.replace(TAUGHT, teacher_weight=weight), teacher=teacher[train])
        area[weight] = roc_auc_score(carries[unseen][there], part_weights(head, X[unseen])[..., 0][there])
    assert area[1.0] > area[0.0] + 0.05


@pytest.mark.parametrize("changed", [{"kind": "linear"}, {"kind": "temporal"}])
def test_only_heads_that_weigh_parts_are_taught(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="must be of the kind attention or weighted, but it is"):
        dataclasses.replace(TAUGHT, **changed)
    with pytest.raises(SettingsError, match="teacher_weight must be 0 where there is no teacher"):
        fit_head(*groups()[:2], TAUGHT)
    older = {name: value for name, value in TAUGHT.to_mapping().items() if name != "teacher_weight"}
    assert HeadSettings.from_mapping(older).teacher_weight == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Pairs of clips, half of them with findings, of a model with a text tower."""
    root = tmp_path_factory.mktemp("taught")
    rules = '[samples]\nrule = "file"\n[train]\ninputs = "final/mean"\nkind = "weighted"\nteacher_weight = 1'
    select = 'select = ["final/mean", "joint/mean"]'
    made = make_project(root / "project", make_clip(root / "model"), features=select, extra=rules)
    make_clips(made)
    extract(made)
    clips, lines = read_table(made.clips).clips, ["sample,part,role,order,x,findings"]
    for at, pair in enumerate(zip(clips[::2], clips[1::2], strict=True)):
        text = "a photo of ventilation" if at % 2 else ""
        lines += [f"{at},{one.clip_id},,{place},{at % 2},{text}" for place, one in enumerate(pair)]
    (made.root / SAMPLES_NAME).write_text("\n".join(lines))
    return made


def test_findings_of_a_project_teach_by_its_own_text_tower_and_leave_no_vector_behind(project: Project) -> None:
    data, _ = learning_data(project, ["final/mean"], taught=True)
    assert data.labels == ("x",)
    teacher, samples = data.fitting.teacher, data.fitting.samples or ()
    assert teacher is not None
    tower, at = ProjectWords(project), next(at for at, one in enumerate(samples) if one.findings)
    joint = FeatureCache.open(project.cache).load(samples[at].clip_ids, tap="joint").astype(np.float64)
    logits = tower.scale * joint @ tower.vectors(["a photo of ventilation"], remember=False)[0]
    np.testing.assert_allclose(teacher[at], np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    assert {float(row.sum().round(5)) for row in teacher} == {0.0, 1.0}
    run = train(project)
    assert load_bundle(run.bundle).settings.teacher_weight == 1
    assert leave_one_session_out(project, run.bundle).metrics["n_clips"] == 12
    assert not (project.state / "words").exists(), "a withdrawal would not find what was written of a patient"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (SAMPLES_NAME, "a photo of ventilation", "", "needs findings of samples .* no sample has any"),
        ("featurecache.toml", ', "joint/mean"]', "]", "features.select has no joint/mean"),
    ],
)
def test_a_teacher_without_findings_or_embeddings_is_refused(
    project: Project, file: str, old: str, new: str, words: str
) -> None:
    path: Path = project.root / file
    before = path.read_text()
    path.write_text(before.replace(old, new))
    with pytest.raises(SettingsError, match=words):
        train(open_project(project.root))
    path.write_text(before)


def test_a_model_without_a_text_tower_is_named_before_anything_is_advised_that_it_cannot_do(
    project: Project, tiny_model: Path, tmp_path: Path
) -> None:
    other = make_project(tmp_path / "without", tiny_model, sessions=1)
    with pytest.raises(SettingsError, match=r"needs a model with a text tower .*; or set teacher_weight = 0\.$"):
        with_teacher(other, [], FeatureCache.open(project.cache))
