"""Choosing among trials: the convex optimum against heads trained by AdamW, selection bias, noise among features."""

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest

from featurecache.spec import FeatureSpace
from heads.bundle import load_bundle
from heads.data import LabelledFeatures, LabelledSplit, LearningData
from heads.engines.convex import grid_points
from heads.inputs import default_inputs
from heads.scoring.metrics import macro_f1
from heads.search.choosing import Finalist, choose_among
from heads.search.summary import in_words
from heads.settings import HeadSettings, SearchSpace
from tests.learning_samples import LABELS, make_clips
from tests.multilabel_sets import read_set
from tests.studies import (
    CONVEX,
    QUICK,
    SPACE,
    learning,
    search,
    sessions_of,
    stored,
    table,
)


def test_search_heads_reports_the_selection_bias_of_the_best_trial(tmp_path: Path) -> None:
    data = learning(sessions_of(5, 0), sessions_of(10, 1))
    for name, space, candidates in (("mixed", SearchSpace(epochs=(2, 8)), 2 * 48), ("steps", QUICK, 3)):
        best = search(tmp_path / name, trials=24, data=data, search_space=space)
        optimism = best["optimism"]
        assert (optimism["n_sessions"], optimism["n_candidates"]) == (15, candidates)
        assert optimism["best"] == best["value"]
        assert optimism["corrected"] == pytest.approx(optimism["best"] - optimism["optimism"])
        assert -0.05 < optimism["optimism"] < 0.2
    few = search(tmp_path / "few", trials=4, data=learning(sessions_of(2, 0), sessions_of(2, 1)), search_space=CONVEX)
    assert few["optimism"]["optimism"] is None
    assert "could not be estimated" in " ".join(in_words(few))


def solved(found: np.ndarray) -> optuna.trial.FrozenTrial:
    """A convex trial of points that find so many of ten positives (G, M, C), of which each label takes its best."""
    counts = np.stack([found, np.zeros_like(found), 10 - found], axis=2)
    choice = found.sum(axis=1).argmax(axis=0)
    taken = np.take_along_axis(found, choice[None, None], axis=0)[0]
    notes = {
        "solver": "convex",
        "session_counts": counts.tolist(),
        "own_counts": np.stack([taken, np.zeros_like(taken), 10 - taken], axis=1).tolist(),
        "chosen": HeadSettings(solver="convex").to_mapping(),
    }
    f1 = 2 * taken.sum(axis=0) / (taken.sum(axis=0) + 10 * len(taken))
    return optuna.trial.create_trial(value=float(f1.mean()), user_attrs=notes)


def finalist(found: np.ndarray) -> Finalist:
    """A trial trained by AdamW that finds so many of ten positives in each session, (M, C)."""
    counts = np.stack([found, np.zeros_like(found), 10 - found], axis=1)
    return Finalist(optuna.trial.create_trial(value=0.5), HeadSettings(kind="mlp"), counts)


ONE_POINT = grid_points(l2=[1.0], positive_weight_exponent=[0.0])


def test_steps_are_taken_only_if_better_than_the_convex_solver_beyond_doubt() -> None:
    draw = np.random.default_rng(0)
    lucky = [finalist(draw.integers(0, 11, (6, 1))) for _ in range(200)]
    steady = solved(np.full((1, 6, 1), 7))
    assert max(one.value for one in lucky) > steady.value
    chosen = choose_among([steady], lucky, ONE_POINT, np.array([60]), seed=0)
    assert chosen.trial is steady
    assert chosen.optimism["optimism"] == pytest.approx(0, abs=1e-9)
    better = finalist(np.full((6, 1), 10))
    assert choose_among([steady], [*lucky, better], ONE_POINT, np.array([60]), seed=0).trial is better.trial
    few = [Finalist(one.trial, one.settings, one.counts[:4]) for one in [*lucky, better]]
    assert choose_among([solved(np.full((1, 4, 1), 7))], few, ONE_POINT, np.array([40]), seed=0).settings.solver == (
        "convex"
    ), "of four sessions no difference is significant"
    assert choose_among([], lucky, ONE_POINT, np.array([60]), seed=0).settings.kind == "mlp"
    assert choose_among([], [], ONE_POINT, np.array([60]), seed=0) is None


def test_steps_are_compared_with_the_heads_that_were_chosen_inside_trials() -> None:
    """A lucky choice by label among many heads, the first a poor one, against a steady trial trained by AdamW."""
    found = np.random.default_rng(0).integers(0, 11, (200, 6, 2))
    found[0] = 1
    points = grid_points(l2=[1.0], positive_weight_exponent=np.arange(0, 200, 1).tolist())
    chosen = choose_among([solved(found)], [finalist(np.full((6, 2), 7))], points, np.array([60, 60]), seed=0)
    assert chosen.optimism["corrected"] < 14 / 17
    assert chosen.settings.solver == "convex", (
        "the steady one is not significantly better than the two that were chosen"
    )


def test_linear_heads_by_steps_do_not_compete_where_the_convex_solver_has_trials(tmp_path: Path) -> None:
    space = dataclasses.replace(
        QUICK, solver=("convex", "adamw"), kind=("linear", "mlp"), hidden_width=(4, 8), learning_rate=(1e-3, 3e-2)
    )
    best = search(tmp_path / "tune", trials=24, search_space=space)
    rows = {int(row["number"]): row for row in table(tmp_path / "tune")}
    assert [rows[one["trial"]]["kind"] for one in best["finalists"]] == ["mlp"] * 3
    assert {(row["solver"], row["scored"]) for row in rows.values()} == {
        ("convex", "out-of-fold"),
        ("adamw", "validation"),
    }
    assert (
        search(tmp_path / "linear", trials=12, search_space=dataclasses.replace(space, kind=("linear",)))["finalists"]
        == []
    )


def test_linear_heads_by_steps_end_early_where_the_convex_solver_has_the_optimum(tmp_path: Path) -> None:
    space = dataclasses.replace(
        QUICK,
        solver=("convex", "adamw"),
        kind=("linear", "mlp"),
        hidden_width=(4, 8),
        epochs=(8, 12),
        learning_rate=(3e-3, 3e-2),
    )
    best = search(tmp_path / "tune", trials=50, search_space=space)
    trials = [trial for trial in stored(tmp_path / "tune") if "solver" not in trial.user_attrs]
    linear, others = ([one for one in trials if (one.params["kind"] == "linear") == is_linear] for is_linear in (1, 0))
    first = [one.intermediate_values[1] for one in linear]
    beyond = [one.intermediate_values[1] for one in linear if one.last_step > 1]
    assert 0 < len(beyond) < len(first) / 2
    assert np.mean(beyond) > np.mean(first)
    assert any(one.state.name == "COMPLETE" for one in linear), "the adapters take their steps from it"
    assert all(1 not in one.intermediate_values for one in others), "kinds that may be chosen are given more time"
    assert best["trials"]["convex"] == 2
    assert "2 trials by the convex solver, 48 by AdamW" in " ".join(in_words(best))


@pytest.mark.parametrize(("name", "scikit_learn"), [("emotions", 0.673), ("scene", 0.693)])
def test_search_heads_is_at_scikit_learns_level_on_real_sets(tmp_path: Path, name: str, scikit_learn: float) -> None:
    """Against one-vs-rest LogisticRegression(C=0.1, class_weight="balanced"), though a third only validates here."""
    X, Y, labels = read_set(name, "train")
    groups = np.random.default_rng(0).integers(0, 21, len(X))
    sessions = groups.astype(str)
    train, validation = (LabelledFeatures(X[m], Y[m], sessions[m]) for m in (groups < 14, groups >= 14))
    search(tmp_path / "tune", trials=48, data=learning(train, validation, labels), search_space=SearchSpace())
    bundle = load_bundle(tmp_path / "tune/bundle")
    X_test, Y_test, _ = read_set(name, "test")
    scores = bundle.scores(X_test, fingerprint=SPACE.fingerprint)
    assert macro_f1(Y_test, scores, bundle.thresholds) > scikit_learn - 0.02


def test_a_grid_searched_coarse_to_fine_ends_near_the_whole_grids_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [make_clips(width=160, noise=2.0, clips_each=60, seed=seed) for seed in range(2)]
    found = {}
    for name, width in (("whole", 1024), ("coarse to fine", 100)):
        monkeypatch.setattr("heads.search.convex_trials.SEARCHED_WHOLE", width)
        monkeypatch.setattr("heads.engines.prepared.AXES_AT_ONCE", 40)
        monkeypatch.setattr("heads.engines.solving.AXES_AT_ONCE", 40)
        best = search(tmp_path / name, trials=2, data=learning(*wide), search_space=CONVEX)
        found[name] = best["value"]
        assert load_bundle(tmp_path / name / "bundle").head.front.output_width == 160, "the head reads all features"
        (first, second) = sorted(float(row["value"]) for row in table(tmp_path / name))
        assert best["value"] == pytest.approx(second, abs=0.01), "its score is that of all features too"
        assert first <= second
    assert found["coarse to fine"] == pytest.approx(found["whole"], abs=0.03)


@pytest.mark.parametrize(("first_trials", "is_alone"), [(3, True), (7, False), (11, False), (20, True)])
def test_useless_vectors_are_left_out_and_one_that_only_helps_the_best_is_found(
    tmp_path: Path, first_trials: int, is_alone: bool
) -> None:
    """Two tell half each, others are noise; or one hides the labels in the other, whose noisy copies are useless."""
    random = np.random.default_rng(0)
    splits = []
    for clips in (make_clips(sessions=6), make_clips(sessions=6, seed=1)):
        hidden_by = 4 * random.standard_normal(clips.X.shape).astype(np.float32)
        a, b = np.array_split(clips.X, 2, axis=1) if is_alone else (clips.X + hidden_by, hidden_by)
        noise = {f"{name}/mean": random.standard_normal(a.shape).astype(np.float32) for name in "nmo"}
        useless = noise if is_alone else {name: a + 2 * of for name, of in noise.items()}
        splits.append(LabelledSplit({"a/mean": a, "b/mean": b, **useless}, clips.Y, clips.sessions))
    data = LearningData(*splits, LABELS, dict.fromkeys(splits[0].features, SPACE))
    space = dataclasses.replace(
        CONVEX,
        inputs=default_inputs(list(data.spaces)),
        variance_exponent=(0.0,),
        l2=(0.001, 0.001),
        positive_weight_exponent=(0.5, 0.5),
    )
    search(tmp_path / "tune", trials=first_trials, data=data, search_space=space)
    best = search(tmp_path / "tune", trials=20, data=data, search_space=space)
    assert best["inputs"] == "a/mean+b/mean"
    tried = [row["inputs"] for row in table(tmp_path / "tune")]
    assert sorted(len(one.split("+")) for one in tried) == [1] * 5 + [2] * 4 + [3, 4, 5]
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(("parts", "useless"), [(1, 1), pytest.param(2, 5, marks=pytest.mark.slow)])
def test_noise_among_the_inputs_costs_nothing_on_unseen_sessions(tmp_path: Path, parts: int, useless: int) -> None:
    """Vectors of noise as wide as the features are offered beside these, which are one vector or two."""
    losses = []
    for draw in range(3):
        splits = [make_clips(noise=2.0, sessions=6, clips_each=100, seed=10 * draw + at) for at in range(2)]
        splits.append(make_clips(noise=2.0, clips_each=1000, seed=10 * draw + 9))
        random = np.random.default_rng(draw)
        useful = [f"part{at}/mean" for at in range(parts)]
        features = [
            dict(zip(useful, np.array_split(one.X, parts, axis=1), strict=True))
            | {f"noise{at}/mean": random.standard_normal(one.X.shape).astype(np.float32) for at in range(useless)}
            for one in splits
        ]
        train, validation, unseen = (
            LabelledSplit(of, one.Y, one.sessions) for of, one in zip(features, splits, strict=True)
        )
        spaces = {name: FeatureSpace({**SPACE.inputs, "tap": name.split("/")[0]}) for name in features[0]}
        data, scores = LearningData(train, validation, LABELS, spaces), []
        for names in (useful, list(features[0])):
            folder, space = tmp_path / f"{draw} {len(names)}", dataclasses.replace(CONVEX, inputs=default_inputs(names))
            best = search(folder, trials=40, data=data, search_space=space)
            bundle, X = load_bundle(folder / "bundle"), unseen.of(best["inputs"]).X
            scores.append(macro_f1(unseen.Y, bundle.scores(X, fingerprint=bundle.fingerprint), bundle.thresholds))
        losses.append(scores[0] - scores[1])
    assert np.mean(losses) < 0.003
