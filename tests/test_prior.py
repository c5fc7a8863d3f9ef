"""Heads that start at the weights of words: what the search makes of them, and what commands say of such a head."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

from featurecache.annotations.reviews import Mark, review_path, save_review
from featurecache.backbones.text_tower import TextTower
from featurecache.clips.csv_file import read_table
from featurecache.errors import SettingsError, StudyError
from featurecache.spec import FeatureSpace
from heads import load_bundle
from heads.data import LabelledSplit, LearningData
from heads.models import head_scores
from heads.prior import Prior
from heads.scoring.metrics import average_precision
from heads.search.summary import in_words
from heads.workflow.retraining import retrain
from tests.commands import invoke, run
from tests.learning_samples import LABELS, make_clips
from tests.projects import LABELS as PROJECT_LABELS
from tests.projects import make_project, make_table
from tests.studies import CONVEX, SPACE, search, table
from tests.tiny_families import make_clip

TEXTS = ["a photo of ventilation", "Hands on a chest", "something else"]


def test_a_search_takes_the_weights_of_words_where_they_know_what_few_clips_do_not_tell(tmp_path: Path) -> None:
    told = make_clips(sessions=20, clips_each=100, seed=7)
    words = LogisticRegression(C=0.1).fit
    weights = np.array([words(told.X, told.Y[:, c]).coef_[0] for c in range(3)], np.float32)
    space = {"joint/mean": FeatureSpace({**SPACE.inputs, "tap": "joint"})}
    few = [make_clips(sessions=6, clips_each=6, seed=seed) for seed in (0, 1)]
    splits = [LabelledSplit({"joint/mean": one.X}, one.Y, one.sessions) for one in few]
    data = LearningData(*splits, LABELS, space, prior=Prior(weights, {"prompts": ["a hand"]}))
    search_space = dataclasses.replace(CONVEX, inputs=("joint/mean",))

    def searched(name: str, data: LearningData) -> dict[str, Any]:
        return search(tmp_path / name, trials=20, data=data, search_space=search_space)

    with_words, without = searched("words", data), searched("none", dataclasses.replace(data, prior=None))
    assert with_words["settings"]["prior"] == "words"
    assert {row["prior"] for row in table(tmp_path / "words")} == {"words", "none"}
    assert {row["prior"] for row in table(tmp_path / "none")} == {"none"}
    assert with_words["by_prior"] == {"words": with_words["value"], "none": without["value"]}
    assert "with words' weights" in " ".join(in_words(with_words))
    unseen = make_clips(sessions=10, clips_each=50, seed=9)
    bundles = [load_bundle(tmp_path / name / "bundle") for name in ("words", "none")]
    assert [bundle.method for bundle in bundles] == ["FT-LC-Text", "FT-LC"]
    scores = [head_scores(bundle.head, unseen.X) for bundle in bundles]
    with_it, without_it = (np.mean([average_precision(unseen.Y[:, c], one[:, c]) for c in range(3)]) for one in scores)
    assert with_it > without_it + 0.05
    prior = bundles[0].prior
    assert prior is not None
    assert np.array_equal(prior.weights, weights)
    assert prior.made_of == {"prompts": ["a hand"]}
    other = dataclasses.replace(data, prior=Prior(2 * weights, {}))
    with pytest.raises(StudyError, match=r"prior.weights"):
        searched("words", other)
    only = dataclasses.replace(search_space, prior=("words",))
    with pytest.raises(SettingsError, match="must have words of some label and inputs with joint/mean"):
        search(tmp_path / "no", trials=2, data=dataclasses.replace(data, prior=None), search_space=only)


def test_tune_starts_at_the_words_of_the_prompts_and_every_command_says_so(tmp_path: Path) -> None:
    model = make_clip(tmp_path / "clip")
    features = 'select = ["final/mean", "joint/mean"]'
    extra = '[search]\nsolver = ["convex"]\ninputs = ["final/mean+joint/mean"]\nprior = ["words"]\n'
    extra += '[train]\nsolver = "convex"\ninputs = "joint/mean"\nprior = "words"'
    project = make_project(tmp_path / "project", model, sessions=6, features=features, extra=extra)
    make_table(project)
    at = ("--config", project.root)
    run("extract", *at)
    assert "must have words of some label" in " ".join(invoke("tune", *at).output.split())
    path = project.prompts / "text" / f"{PROJECT_LABELS[0]}.txt"
    path.parent.mkdir(parents=True)
    path.write_text(f"{TEXTS[0]}\n--- not\n{TEXTS[2]}\n")  # the other label has no words
    run("tune", *at)
    bundle = load_bundle(project.runs / "tune" / "bundle")
    assert bundle.prior is not None
    tower = TextTower(model)
    vectors = tower.embed(TEXTS).numpy()
    expected = tower.scale_and_bias[0] * (vectors[0] - vectors[2])
    np.testing.assert_allclose(bundle.prior.weights, [expected, 0 * expected], atol=1e-4)
    assert [one["prompt"] for one in bundle.prior.made_of["prompts"]] == [TEXTS[0], TEXTS[2]]

    run("train", *at)
    trained = load_bundle(project.runs / "train" / "bundle").prior
    assert trained is not None
    assert np.array_equal(trained.weights, bundle.prior.weights)

    path.write_text("other words\n--- not\nwords\n")  # the bundle has its own
    kept = run("evaluate", "--leave-one-session-out", *at)
    assert kept["split"] == "leave-one-session-out"
    run("evaluate", *at)
    assert {row["method"] for row in run("compare", *at)["rows"]} == {"FT-LC-Text"}
    run("report", *at)
    assert "penalised by their distance to those that written" in (project.runs / "report.html").read_text()


def test_auditing_ignoring_and_training_again_keep_words_that_the_prompts_no_longer_hold(tmp_path: Path) -> None:
    extra = '[splits]\ntrain = 0.5\nvalidation = 0.4\ntest = 0.1\n[train]\nsolver = "convex"\nprior = "words"\n'
    extra += 'normalization = "none"\nl2 = 1000.0'  # a head that stays at its prior
    project = make_project(
        tmp_path / "project",
        make_clip(tmp_path / "clip"),
        sessions=8,
        clips=8,
        features='select = ["joint/mean"]',
        extra=extra,
    )
    make_table(project)
    at = ("--config", project.root)
    run("extract", *at)
    (project.prompts / "text").mkdir(parents=True)
    for label, text in zip(PROJECT_LABELS, TEXTS, strict=False):
        (project.prompts / "text" / f"{label}.txt").write_text(f"{text}\n--- not\n{TEXTS[2]}\n")
    run("train", *at)
    folder = project.runs / "train" / "bundle"
    prior = load_bundle(folder).prior
    assert prior is not None
    shutil.rmtree(project.prompts)

    def weights(folder: Path) -> np.ndarray:
        bundle = load_bundle(folder)
        assert bundle.prior is not None
        assert np.array_equal(bundle.prior.weights, prior.weights)
        assert bundle.prior.made_of == prior.made_of
        return bundle.head.state_dict()["output.weight"].numpy()

    near = 0.02 * abs(prior.weights).max()
    assert abs(weights(folder) - prior.weights).max() < near
    audit = invoke("shortcuts", "--bundle", folder, *at)
    assert (project.runs / "shortcuts" / "shortcuts.json").is_file(), audit.output
    ignoring = run("shortcuts", "--ignore", 0, "--bundle", folder, *at)["bundle"]
    with safe_open(project.runs / "shortcuts" / "centres.safetensors", "np") as file:
        direction = file.get_tensor("centres")[0]
    direction /= np.linalg.norm(direction)
    expected = prior.weights - np.outer(prior.weights @ direction, direction)
    assert abs(expected - prior.weights).max() > near
    assert abs(weights(Path(ignoring)) - expected).max() < near

    clip = next(clip for clip in read_table(project.clips).clips if clip.split == "train")
    marks = [Mark(0, 1_000_000, PROJECT_LABELS[0], "accepted"), Mark(0, 4_000_000, "", "reviewed")]
    save_review(
        review_path(project.root / "reviewed", clip.recording, blind=False),
        marks,
        labels=PROJECT_LABELS,
        recording=project.videos / clip.recording,
        content=clip.content,
        author="anna",
        version="",
    )
    assert abs(weights(retrain(project, folder).bundle) - prior.weights).max() < near
