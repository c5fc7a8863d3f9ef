"""The search: same seed same numbers, nothing lost or repeated after a kill, refusals, and real multi-label sets."""

import dataclasses
import itertools
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from featurecache.errors import LowMemoryWarning, SettingsError, StudyError, TrainingDataError
from featurecache.spec import FeatureSpace
from heads.bundle import load_bundle
from heads.data import KeptSplit, LabelledFeatures, LearningData
from heads.engines.convex import grid_points
from heads.engines.fitting import fit_head
from heads.engines.stack import HeadStack
from heads.inputs import default_inputs
from heads.models import head_scores
from heads.runs import train_bundle
from heads.scoring.metrics import average_precision, macro_f1
from heads.search.choosing import Finalist, choose_among
from heads.search.study import open_study
from heads.search.summary import importances, in_words
from heads.search.trial_settings import Choices
from heads.settings import HeadSettings, SearchSpace
from tests.learning_samples import LABELS, make_clips
from tests.multilabel_sets import read_set
from tests.studies import (
    COMBINATIONS,
    CONVEX,
    INPUTS,
    QUICK,
    SPACE,
    by_place,
    ended,
    kept,
    learning,
    noisy,
    search,
    side_by_side,
    stored,
    table,
)


def test_search_heads_goes_on_with_fewer_heads_at_once_when_memory_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = HeadStack.add

    def add_two_at_most(stack: HeadStack, *args: Any) -> None:
        if len(stack) >= 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        add(stack, *args)

    monkeypatch.setattr(HeadStack, "add", add_two_at_most)
    with pytest.warns(LowMemoryWarning, match=r"8 heads at once, .*ALLOC_FAILED.* Continuing with cpu with 2 heads"):
        best = search(tmp_path, trials=10)
    assert len(ended(tmp_path)) == 10
    assert best["value"] > 0.5


# --- what a search leaves -------------------------------------------------------------------------


def test_search_heads_writes_a_run_that_predicts(tmp_path: Path) -> None:
    progress: list[tuple[int, int, float | None]] = []
    best = search(tmp_path / "tune", trials=20, on_progress=lambda *now: progress.append(now))
    assert [now[:2] for now in progress] == [(finished, 20) for finished in range(1, 21)]
    assert json.loads((tmp_path / "tune/best.json").read_text()) == best
    assert (best["tap"], best["pooling"], best["fingerprint"]) == ("final", "mean", SPACE.fingerprint)
    assert (best["inputs"], best["fingerprints"]) == ("final/mean", {"final/mean": SPACE.fingerprint})
    assert best["seed"] == 0
    assert best["trials"]["completed"] + best["trials"]["pruned"] == 20

    rows = table(tmp_path / "tune")
    assert [int(row["number"]) for row in rows] == list(range(20))
    complete = [row for row in rows if row["state"] == "complete"]
    highest = sorted(complete, key=lambda row: -float(row["value"]))[:3]
    assert progress[-1][2] == float(highest[0]["value"])
    assert [one["trial"] for one in best["finalists"]] == [int(row["number"]) for row in highest]
    assert best["value"] == pytest.approx(max(one["out_of_fold"] for one in best["finalists"]), abs=0.02)
    assert all(row["epochs_seen"] == row["epochs"] for row in complete)
    assert rows[best["trial"]]["learning_rate"] == repr(best["settings"]["learning_rate"])

    bundle = load_bundle(tmp_path / "tune/bundle")
    unseen = make_clips(noise=2.0, seed=2)
    assert bundle.settings == HeadSettings.from_mapping(best["settings"])
    predicted = bundle.scores(unseen.X, fingerprint=SPACE.fingerprint)
    everywhere = macro_f1(unseen.Y, np.ones(unseen.Y.shape))
    assert macro_f1(unseen.Y, predicted, bundle.thresholds) > everywhere + 0.1
    metrics = json.loads((tmp_path / "tune/out_of_fold_metrics.json").read_text())
    assert (metrics["split"], metrics["n_clips"]) == (best["scored"], 2 * len(unseen.Y))
    assert metrics["macro_f1"] > everywhere + 0.1


def test_search_heads_prunes_at_rungs_what_is_below_the_median(tmp_path: Path) -> None:
    space = dataclasses.replace(QUICK, epochs=(12, 12), learning_rate=(1e-3, 3e-2), normalization=("standardize",))
    search(tmp_path / "tune", trials=60, search_space=space)
    trials = stored(tmp_path / "tune")
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(pruned) >= 3
    for trial in pruned:
        before = [t for t in trials if t.state.name == "COMPLETE" and t.datetime_complete < trial.datetime_complete]
        assert len(before) >= 10
        median = np.median([t.intermediate_values[trial.last_step] for t in before])
        assert max(trial.intermediate_values.values()) < median
    assert {step for trial in trials for step in trial.intermediate_values} == {2, 4, 8, 12}


def test_search_heads_finds_nothing_when_labels_are_shuffled(tmp_path: Path) -> None:
    train, unseen = make_clips(clips_each=100), make_clips(clips_each=300, seed=9)
    splits = train, make_clips(clips_each=100, seed=1)
    shuffled = [dataclasses.replace(one, Y=np.random.default_rng(0).permutation(one.Y)) for one in splits]
    lifts = {}
    for name, data in (("true", splits), ("shuffled", shuffled)):
        search(tmp_path / name, trials=16, data=learning(*data), search_space=SearchSpace())
        scores = load_bundle(tmp_path / name / "bundle").scores(unseen.X, fingerprint=SPACE.fingerprint)
        precision = [average_precision(unseen.Y[:, c], scores[:, c]) for c in range(3)]
        lifts[name] = float(np.mean(precision / unseen.Y.mean(0)))
    assert lifts["true"] > 2
    assert lifts["shuffled"] == pytest.approx(1, abs=0.35)


def test_search_heads_draws_mlp_heads_when_asked(tmp_path: Path) -> None:
    space = dataclasses.replace(
        QUICK, kind=("linear", "mlp"), hidden_width=(4, 8), hidden_layers=(1, 2), normalization=("standardize",)
    )
    search(tmp_path / "tune", trials=16, search_space=space)
    rows = table(tmp_path / "tune")
    assert {len(row["hidden_width"].split()) for row in rows if row["kind"] == "mlp"} == {1, 2}
    assert {row["kind"] for row in rows} == {"linear", "mlp"}
    assert all((row["hidden_width"] != "") == (row["kind"] == "mlp") for row in rows)


# --- the convex solver, and what heads read -------------------------------------------------------


def test_search_heads_solves_each_combination_once_with_the_convex_solver(tmp_path: Path) -> None:
    space = dataclasses.replace(CONVEX, normalization=("standardize", "l2"), components=(0, 8))
    best = search(tmp_path / "tune", trials=40, search_space=space)
    rows = table(tmp_path / "tune")
    combinations = {(row["normalization"], row["components"], row["variance_exponent"]) for row in rows}
    assert combinations == set(itertools.product(("standardize", "l2"), ("0", "8"), ("0.0", "1.0")))
    assert len(rows) == best["trials"]["completed"] == 8
    assert best["settings"]["solver"] == "convex"
    assert best["settings"]["l2"] in {point.l2 for point in Choices.of(space, noisy()).grid()}
    assert max(float(row["value"]) for row in rows) == pytest.approx(best["value"], abs=0.02)
    assert all(trial.user_attrs["converged"] == 1 for trial in stored(tmp_path / "tune"))


def test_search_heads_takes_some_combinations_each_once_when_there_are_more_than_trials(tmp_path: Path) -> None:
    space = dataclasses.replace(CONVEX, components=tuple(range(1, 24)), variance_exponent=(0.0,))
    best = search(tmp_path / "tune", trials=6, search_space=space)
    assert best["trials"]["completed"] == 6
    assert len({row["components"] for row in table(tmp_path / "tune")}) == 6


@pytest.mark.parametrize(("components", "left"), [((0, 5, 24, 512), {"0", "5"}), ((512, 100), {"0"})])
def test_search_heads_leaves_out_components_that_reduce_nothing(
    tmp_path: Path, components: tuple[int, ...], left: set[str]
) -> None:
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), components=components)
    search(tmp_path / "tune", trials=20, search_space=space)
    for solver in space.solver:
        assert {row["components"] for row in table(tmp_path / "tune") if row["solver"] == solver} == left


def test_search_heads_says_no_more_components_than_inputs_have(tmp_path: Path) -> None:
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), inputs=INPUTS, components=(5, 10))
    search(tmp_path / "tune", trials=40, data=side_by_side(), search_space=space)
    found = {(row["inputs"], row["solver"], row["components"]) for row in table(tmp_path / "tune")}
    narrow, wide = {("convex", "5"), ("adamw", "5"), ("adamw", "0")}, {"5", "10"}
    assert {(solver, count) for inputs, solver, count in found if inputs == "layer_2/mean"} == narrow, "it has 7"
    assert {count for inputs, _, count in found if inputs != "layer_2/mean"} == wide


def test_search_heads_gives_labels_exponents_of_their_own(tmp_path: Path) -> None:
    data = learning(make_clips(noise=3.0, clips_each=400), make_clips(noise=3.0, clips_each=400, seed=3))
    best = search(tmp_path / "tune", trials=1, data=data, search_space=CONVEX)
    exponents = best["settings"]["positive_weight_exponent"]
    assert len(set(exponents)) > 1
    bundle = load_bundle(tmp_path / "tune/bundle")
    assert list(bundle.settings.positive_weight_exponent) == exponents
    (row,) = table(tmp_path / "tune")
    assert row["positive_weight_exponent"] == " ".join(map(str, exponents))
    words = " ".join(in_words(best))
    for exponent in exponents:
        assert f"{exponent:.2g} for {LABELS[exponents.index(exponent)]}" in words


def test_search_heads_keeps_what_lora_needs_when_the_convex_solver_wins(tmp_path: Path) -> None:
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), learning_rate=(1e-5, 1e-4))
    best = search(tmp_path / "tune", trials=12, search_space=space)
    assert best["settings"]["solver"] == "convex"
    by_steps = [row for row in table(tmp_path / "tune") if row["solver"] == "adamw" and row["value"]]
    first = max(by_steps, key=lambda row: (float(row["value"]), -int(row["number"])))
    assert int(first["number"]) == best["steps_of_trial"]
    for name in ("learning_rate", "weight_decay", "batch_size", "epochs"):
        assert str(best["settings"][name]) == first[name]


def test_no_small_validation_split_decides_anything(tmp_path: Path) -> None:
    """The same sessions, whichever of them are called validation, give the same choice, thresholds and head."""
    every = KeptSplit(
        {"final/mean": np.concatenate([make_clips(seed=seed).X for seed in range(3)])},
        np.concatenate([make_clips(seed=seed).Y for seed in range(3)]),
        np.concatenate([make_clips(seed=seed).sessions for seed in range(3)]),
    )

    def part(rows: slice) -> KeptSplit:
        return KeptSplit({"final/mean": every.features["final/mean"][rows]}, every.Y[rows], every.sessions[rows])

    bundles = []
    for cut in (400, 550):  # of 600 clips in 12 sessions of 50
        data = LearningData(part(slice(cut)), part(slice(cut, None)), LABELS, {"final/mean": SPACE})
        search(tmp_path / str(cut), trials=2, data=data, search_space=CONVEX)
        bundles.append(tmp_path / str(cut) / "bundle")
    for name in ("bundle.json", "head.safetensors"):
        assert (bundles[0] / name).read_bytes() == (bundles[1] / name).read_bytes()


def test_the_head_is_fitted_on_every_session_that_is_not_test(tmp_path: Path) -> None:
    for name, run in (("convex", CONVEX), ("steps", QUICK)):
        best = search(tmp_path / name, trials=4, search_space=run)
        data, settings = noisy(), HeadSettings.from_mapping(best["settings"])
        both = data.fitting.of("final/mean")
        expected = fit_head(both.X, both.Y, settings)
        head = load_bundle(tmp_path / name / "bundle").head
        np.testing.assert_allclose(head_scores(head, both.X), head_scores(expected, both.X), atol=1e-5)
        assert best["train_clips"] == len(both.Y)


def test_a_label_that_one_session_alone_has_keeps_its_default_threshold(tmp_path: Path) -> None:
    data = noisy()
    first = data.train.sessions == data.train.sessions[0]
    for split in (data.train, data.validation):
        split.Y[(split.sessions != data.train.sessions[0]), 2] = 0
    assert data.train.Y[first, 2].any()
    best = search(tmp_path / "tune", trials=4, data=data, search_space=CONVEX)
    bundle = load_bundle(tmp_path / "tune/bundle")
    metrics = json.loads((tmp_path / "tune/out_of_fold_metrics.json").read_text())
    assert bundle.thresholds[2] == 0.5
    assert (bundle.calibration.temperatures[2], bundle.calibration.offsets[2]) == (1, 0)
    assert metrics["undefined"] == [LABELS[2]]
    assert (metrics["calibration"]["before"]["per_class"][LABELS[2]]["ece"], metrics["curves"][LABELS[2]]) == (
        None,
        None,
    )
    assert best["value"] > 0.5


def test_search_heads_chooses_inputs_with_both_solvers(tmp_path: Path) -> None:
    data = side_by_side()
    for solver in ("convex", "adamw"):
        space = dataclasses.replace(QUICK, solver=(solver,), inputs=INPUTS, learning_rate=(1e-3, 3e-2))
        best = search(tmp_path / solver, trials=40, data=data, search_space=space)
        rows = table(tmp_path / solver)
        assert {row["inputs"] for row in rows} == set(INPUTS)
        assert best["inputs"] != "layer_2/mean"
        value = {inputs: max(float(row["value"] or 0) for row in rows if row["inputs"] == inputs) for inputs in INPUTS}
        assert value["final/mean"] > value["layer_2/mean"] + 0.05
        bundle = load_bundle(tmp_path / solver / "bundle")
        assert "+".join(bundle.kept) == best["inputs"]
        assert bundle.head.front.feature_width == sum(data.train.part_widths(best["inputs"]))
    assert len(rows) == 40


def test_search_heads_searches_heads_on_frames_beside_others(tmp_path: Path) -> None:
    space = dataclasses.replace(
        QUICK,
        kind=("linear", "attention", "temporal"),
        inputs=("final/mean", "final/frames"),
        hidden_width=(4, 8),
        learning_rate=(1e-3, 3e-2),
    )
    search(tmp_path / "tune", trials=24, data=side_by_side(), search_space=space)
    rows = table(tmp_path / "tune")
    assert {(row["kind"], row["inputs"]) for row in rows} == {
        ("linear", "final/mean"),
        ("attention", "final/frames"),
        ("temporal", "final/frames"),
    }
    only = dataclasses.replace(space, kind=("attention",), inputs=("final/frames",))
    best = search(tmp_path / "only", trials=4, data=side_by_side(), search_space=only)
    assert load_bundle(tmp_path / "only/bundle").settings.kind == best["settings"]["kind"] == "attention"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": ("linear", "attention")},
            r'of kind .attention. must have inputs of features of frames, but search.inputs are \["final/mean"\] and',
        ),
        (
            {"inputs": ("final/frames",)},
            r'a head that reads frames, attention or temporal, but search.inputs are \["final/frames"\] and '
            r'search.kind is \["linear"\]. Write kind = \["attention", "temporal"\] in',
        ),
        ({"inputs": ("final/mean", "final/frames")}, r'Write kind = \["linear", "attention", "temporal"\] in'),
        ({"kind": ("attention",)}, r'reads them, linear or mlp, .* Write kind = \["linear"\] in'),
        ({"kind": ("mlp",), "inputs": ("final/frames",)}, r'Write kind = \["attention", "temporal"\] in'),
        (
            {"kind": ("mlp", "temporal"), "inputs": ("final/frames",)},
            "of kind 'mlp' must have inputs of one vector a clip, .* or leave mlp out of kind",
        ),
        ({"inputs": ("vision/mean",)}, "selects: layer_2/mean, final/mean, final/frames; but 'vision/mean' is not"),
        ({"inputs": ("final/mean+final/frames",)}, "all of clips or all of the same number of frames"),
        ({"solver": ("convex",), "kind": ("mlp",)}, "convex solver fits linear heads only"),
    ],
)
def test_search_heads_refuses_kinds_inputs_and_solvers_that_do_not_fit(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        search(tmp_path / "tune", trials=4, data=side_by_side(), search_space=dataclasses.replace(QUICK, **changes))
    assert not (tmp_path / "tune").exists()


def test_a_trial_in_a_stack_scores_as_it_would_alone(tmp_path: Path) -> None:
    data = side_by_side()
    space = dataclasses.replace(QUICK, inputs=INPUTS, components=(0, 5))
    search(tmp_path / "tune", trials=24, data=data, search_space=space)
    completed = [row for row in table(tmp_path / "tune") if row["state"] == "complete"]
    assert len(completed) > 10
    for row in completed[::3]:
        settings = HeadSettings(
            inputs=row["inputs"],
            components=int(row["components"]),
            epochs=int(row["epochs"]),
            batch_size=64,
            **{
                name: float(row[name])
                for name in ("learning_rate", "weight_decay", "positive_weight_exponent", "dropout")
            },
        )
        train, validation = data.train.of(settings.inputs), data.validation.of(settings.inputs)
        alone = fit_head(train.X, train.Y, settings, part_widths=data.train.part_widths(settings.inputs))
        value = macro_f1(validation.Y, head_scores(alone, validation.X))
        assert value == pytest.approx(float(row["value"]), abs=0.01)


# --- honesty --------------------------------------------------------------------------------------


def sessions_of(count: int, seed: int) -> LabelledFeatures:
    return make_clips(noise=2.0, sessions=count, clips_each=200 // count, seed=seed)


def test_search_heads_reports_the_selection_bias_of_the_best_trial(tmp_path: Path) -> None:
    data = learning(sessions_of(5, 0), sessions_of(10, 1))
    for name, space, candidates in (("mixed", SearchSpace(epochs=(2, 8)), 2 * 48), ("steps", QUICK, 3)):
        best = search(tmp_path / name, trials=24, data=data, search_space=space)
        optimism = best["optimism"]
        assert (optimism["n_sessions"], optimism["n_candidates"]) == (15, candidates)
        assert optimism["best"] == pytest.approx(best["value"], abs=0.02)
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
    """A trial by steps that finds so many of ten positives in each session, (M, C)."""
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
    """A lucky choice by label among many heads, the first a poor one, against a steady trial by steps."""
    found = np.random.default_rng(0).integers(0, 11, (200, 6, 2))
    found[0] = 1
    points = grid_points(l2=[1.0], positive_weight_exponent=np.arange(0, 200, 1).tolist())
    chosen = choose_among([solved(found)], [finalist(np.full((6, 2), 7))], points, np.array([60, 60]), seed=0)
    assert chosen.optimism["corrected"] < 14 / 17
    assert chosen.settings.solver == "convex", "the steady one is not better beyond doubt than the two that were chosen"


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


def test_search_heads_tells_what_mattered_in_plain_words(tmp_path: Path) -> None:
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), learning_rate=(1e-6, 1e-1))
    best = search(tmp_path / "tune", trials=48, search_space=space)
    assert sum(best["importances"].values()) == pytest.approx(1)
    assert search(tmp_path / "few", trials=16, search_space=space)["importances"] is None
    assert next(iter(best["importances"])) == "learning_rate"
    words = " ".join(in_words(best))
    for said in (
        "best is trial",
        "linear head on final/mean, standardised",
        "Importance of the settings",
        "learning_rate",
    ):
        assert said in words


def test_importances_are_none_where_nearly_all_scored_alike() -> None:
    for better, least in ((10, 0.9), (1, None), (0, None)):
        trials = [
            optuna.trial.create_trial(
                state=TrialState.PRUNED,
                intermediate_values={1: 0.2, 2: 0.5 if at < better else 0.1},
                params={"dropout": at / 40, "epochs": at * 7 % 11},
                distributions={
                    "dropout": optuna.distributions.FloatDistribution(0, 1),
                    "epochs": optuna.distributions.IntDistribution(0, 10),
                },
            )
            for at in range(40)
        ]
        shares = importances(trials)
        assert (shares is None) == (least is None)
        assert shares is None or shares["dropout"] > least


def test_search_heads_checks_against_labels_of_wrong_sessions_when_asked(tmp_path: Path) -> None:
    data = learning(sessions_of(8, 0), sessions_of(4, 1))
    best = search(tmp_path / "tune", trials=1, data=data, search_space=CONVEX, permutations=4)
    check = best["permutation_check"]
    assert len(check["permuted"]) == 4
    assert check["p_value"] == pytest.approx(0.2)
    assert check["observed"] > check["permuted_mean"] + 0.1
    assert "labels permuted across sessions" in " ".join(in_words(best))


@pytest.mark.parametrize("solver", ["convex", "adamw"])
def test_search_heads_tells_how_far_scores_spread_over_seeds_and_folds_when_asked(tmp_path: Path, solver: str) -> None:
    data = learning(sessions_of(8, 0), sessions_of(4, 1))
    space = dataclasses.replace(QUICK, solver=(solver,), kind=("linear" if solver == "convex" else "mlp",))
    best = search(tmp_path / "tune", trials=2, data=data, search_space=space, refit_seeds=3)
    spread, words = best["spread"], " ".join(in_words(best))
    assert (spread["n_folds"], spread["n_seeds"]) == (5, 1 if solver == "convex" else 3)
    assert spread["lowest"] < spread["mean"] < spread["highest"]
    assert 0 < spread["sd_over_folds"] < 0.2
    assert f"standard deviation {spread['sd_over_folds']:.3f} over folds" in words
    assert (spread["sd_over_seeds"] is None) == (solver == "convex")  # its optimum is one
    assert ("over 3 seeds" in words) == (solver == "adamw")
    assert (spread["sd_over_seeds"] or 0) > 0 or solver == "convex"
    assert search(tmp_path / "other", trials=1, data=data, search_space=CONVEX)["spread"] is None


def test_a_run_says_what_its_splits_are(tmp_path: Path) -> None:
    leakage = {"split_level": "clip", "purged_clips": {"train": 3}, "split_warning": "optimistically biased"}
    train(tmp_path / "run", noisy(1.0, leakage=leakage))
    for name in ("best.json", "out_of_fold_metrics.json"):
        assert json.loads((tmp_path / "run" / name).read_text()).items() >= leakage.items()


def test_a_run_has_calibration_and_curves_of_out_of_fold_scores(tmp_path: Path) -> None:
    train(tmp_path / "run")
    metrics = json.loads((tmp_path / "run/out_of_fold_metrics.json").read_text())
    assert metrics["calibration"]["after"]["brier"] < metrics["calibration"]["before"]["brier"] + 0.01
    assert list(metrics["curves"]) == list(LABELS)
    assert load_bundle(tmp_path / "run/bundle").calibration is not None


# --- same numbers, nothing lost -------------------------------------------------------------------


def test_search_heads_gives_the_same_numbers_when_repeated_and_others_with_another_seed(tmp_path: Path) -> None:
    first, second = search(tmp_path / "a", trials=20), search(tmp_path / "b", trials=20)
    assert first == second
    for name in (
        "trials.csv",
        "best.json",
        "out_of_fold_metrics.json",
        "bundle/bundle.json",
        "bundle/head.safetensors",
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    search(tmp_path / "c", trials=20, seed=1)
    assert (tmp_path / "a/trials.csv").read_bytes() != (tmp_path / "c/trials.csv").read_bytes()


def test_search_heads_goes_on_when_more_trials_are_asked_for(tmp_path: Path) -> None:
    search(tmp_path / "tune", trials=8)
    before = ended(tmp_path / "tune")
    assert search(tmp_path / "tune", trials=24)["trials"]["interrupted"] == 0
    after = ended(tmp_path / "tune")
    assert len(after) == 24
    assert {number: after[number] for number in before} == before
    assert len({line.split(" ", 2)[2] for line in after.values()}) == 24, "no trial is drawn twice"


def test_search_heads_finds_itself_done_when_called_again(tmp_path: Path) -> None:
    best = search(tmp_path / "tune", trials=10)
    (tmp_path / "tune/best.json").unlink()
    told: list[object] = []
    assert search(tmp_path / "tune", trials=10, on_progress=lambda *now: told.append(now)) == best
    assert told == []
    assert len(table(tmp_path / "tune")) == 10
    assert (tmp_path / "tune/best.json").is_file()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.studies import search
def die(finished, asked, best):
    if finished == 11:
        os.kill(os.getpid(), signal.SIGKILL)
search(Path(sys.argv[1]), trials=24, on_progress=die)
"""


def test_search_heads_loses_and_repeats_no_finished_trial_when_killed(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ended(folder)
    assert len(before) == 11
    with (folder / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 6, "worker_')  # what a kill within a write leaves
    best = search(folder, trials=24)
    after = ended(folder)
    assert len(after) == 24
    assert {number: after[number] for number in before} == before
    assert len({line.split(" ", 2)[2] for line in after.values()}) == 24
    assert 1 <= best["trials"]["interrupted"] <= 8, "what was in training"
    assert {row["state"] for row in table(folder)} >= {"complete", "interrupted"}


def test_search_heads_goes_on_with_the_same_trials_wherever_a_kill_cuts_the_journal(tmp_path: Path) -> None:
    """What a kill leaves is a journal's beginning, so beginnings of an unbroken study's stand for kills at any time."""
    space = dataclasses.replace(QUICK, solver=("convex", "adamw"), components=(0, 8))
    search(tmp_path / "unbroken", trials=20, search_space=space)
    journal, whole = (tmp_path / "unbroken/study.journal").read_bytes(), by_place(tmp_path / "unbroken")
    assert all(len(tries) == 1 for tries in whole.values())
    cuts = np.random.default_rng(0).integers(len(journal) // 20, len(journal), 6)
    again = 0
    for cut in cuts.tolist():
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "study.journal").write_bytes(journal[:cut].rpartition(b"\n")[0] + b"\n")
        begun, before = len(stored(folder)), ended(folder)
        search(folder, trials=20, search_space=space)
        after, resumed = ended(folder), by_place(folder)
        assert len(after) == 20
        assert {number: after[number] for number in before} == before, "no finished trial is lost"
        assert all(
            [trial.number in after for trial in tries] == [False] * (len(tries) - 1) + [True]
            for tries in resumed.values()
        )
        for place in range(max(begun, 10)):  # begun before, or drawn before the sampler learns from others
            ours, theirs = resumed[place][-1], whole[place][0]
            assert ours.params == theirs.params, (cut, place)
            if ours.state == theirs.state == optuna.trial.TrialState.COMPLETE:
                assert ours.value == pytest.approx(theirs.value, abs=0.01)
        again += sum(len(tries) - 1 for tries in resumed.values())
    assert again > 10


def test_search_heads_gives_a_trial_up_when_each_try_is_interrupted(tmp_path: Path) -> None:
    def stop(finished: int, asked: int, best: float | None) -> None:
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "tune", trials=12, stacked_trials=6, on_progress=stop)
    tries = [[trial.state.name for trial in tries] for tries in by_place(tmp_path / "tune").values()]
    assert ["FAIL"] * 3 in tries
    assert max(map(len, tries)) == 3
    search(tmp_path / "tune", trials=12)
    assert len(ended(tmp_path / "tune")) == 12


KILLED_WHILE_SOLVING = """
import os, signal, sys
from pathlib import Path
from tests.studies import COMBINATIONS, search
begun = 0
def die(frame, event, argument):
    global begun
    if event == "call" and frame.f_code.co_name == "solve_grid":
        begun += 1
        if begun == 2:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(die)
search(Path(sys.argv[1]), trials=8, search_space=COMBINATIONS)
"""


def test_search_heads_solves_a_combination_again_when_a_kill_interrupted_it(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED_WHILE_SOLVING, str(folder)]
    killed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ended(folder)
    assert list(before) == [0]
    best = search(folder, trials=8, search_space=COMBINATIONS)
    after = ended(folder)
    assert len(after) == 8
    assert after[0] == before[0]
    convex = [trial for trial in stored(folder) if trial.user_attrs.get("solver") == "convex"]
    solved = {trial.user_attrs["combination"] for trial in convex if trial.number in after}
    assert solved == {
        f"final/mean {normalization} {components} 1" for normalization in ("standardize", "l2") for components in (0, 8)
    }
    assert [trial.number in after for trial in convex] == [True, False, True, True, True], "each is solved once"
    assert convex[2].user_attrs["combination"] == convex[1].user_attrs["combination"], "the interrupted one comes next"
    assert best["trials"]["interrupted"] == 1


def test_search_heads_can_be_resumed_when_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    def stop(finished: int, asked: int, best: float | None) -> None:
        if finished == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "tune", trials=16, on_progress=stop)
    before = ended(tmp_path / "tune")
    assert len(before) == 5
    assert not [trial for trial in stored(tmp_path / "tune") if trial.state.name == "RUNNING"]
    search(tmp_path / "tune", trials=16)
    after = ended(tmp_path / "tune")
    assert len(after) == 16
    assert {number: after[number] for number in before} == before


# --- refusals -------------------------------------------------------------------------------------


def test_search_heads_is_refused_when_the_study_began_with_something_else(tmp_path: Path) -> None:
    search(tmp_path / "tune", trials=8)
    relabelled = make_clips(noise=2.0)
    relabelled.Y[0, 0] ^= 1
    other = FeatureSpace({**SPACE.inputs, "model": "other"})
    clips = "the clips, their labels, targets or features"
    (tmp_path / "tune-1").mkdir()
    new = f"tart a new search, after: mv {tmp_path}/tune {tmp_path}/tune-2$"
    for found, changes in {
        f"{clips}. S": {"data": noisy(train=kept(relabelled))},
        f"{clips}. S ": {"data": noisy(labels=("a", "b", "c"))},
        "seed .then 0, now 3.. Put them back, or s": {"seed": 3},
        "search_space.*. Put them back, or s": {"search_space": dataclasses.replace(QUICK, dropout=(0.0, 0.1))},
        "how the features are computed. S": {"data": noisy(spaces={"final/mean": other})},
    }.items():
        with pytest.raises(StudyError, match=f"tune began: {found.strip()}{new}"):
            search(tmp_path / "tune", trials=16, **changes)
    assert len(ended(tmp_path / "tune")) == 8


def test_search_heads_is_refused_while_another_holds_the_study(tmp_path: Path) -> None:
    with open_study(tmp_path / "tune", {}, optuna.pruners.NopPruner()), pytest.raises(StudyError, match="one process"):
        search(tmp_path / "tune", trials=8)


def test_search_heads_is_refused_when_the_journal_is_damaged(tmp_path: Path) -> None:
    search(tmp_path / "tune", trials=8)
    journal = tmp_path / "tune/study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"not a record\n", *lines[6:]]))
    with pytest.raises(StudyError, match="journal must be readable"):
        search(tmp_path / "tune", trials=8)


@pytest.mark.parametrize(
    "record", [{"op_code": 77}, {"op_code": 2, "study_id": 0, "user_attr": {}}, [], {"op_code": 4, "study_id": 0}]
)
def test_open_study_is_refused_whatever_optuna_makes_of_a_damaged_record(tmp_path: Path, record: Any) -> None:
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()):
        pass
    with (tmp_path / "study.journal").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with (
        pytest.raises(StudyError, match=r"journal must be readable, but .* is damaged \(\w+Error.*Restore it"),
        open_study(tmp_path, {}, optuna.pruners.NopPruner()),
    ):
        pass


def test_search_heads_says_so_when_every_trial_diverges(tmp_path: Path) -> None:
    data = make_clips()
    huge = dataclasses.replace(data, X=np.sign(data.X) * np.float32(3e38))
    space = dataclasses.replace(QUICK, normalization=("none",), positive_weight_exponent=(2.0, 2.0), epochs=(2, 3))
    with pytest.raises(StudyError, match="all 8 diverged"):
        search(tmp_path / "tune", trials=8, data=noisy(train=kept(huge)), search_space=space)
    assert len(ended(tmp_path / "tune")) == 8


@pytest.mark.parametrize(
    ("name", "number"), [("trials", 0), ("stacked_trials", 0), ("seed", -1), ("permutations", -1), ("refit_seeds", -1)]
)
def test_search_heads_refuses_numbers_that_are_too_small(tmp_path: Path, name: str, number: int) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at least {number + 1}, but it is {number}"):
        search(tmp_path / "tune", **{"trials": 8, name: number})
    assert not (tmp_path / "tune").exists()


def test_search_heads_refuses_data_before_it_makes_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="4 are"):
        search(tmp_path / "tune", trials=8, data=learning(make_clips(), make_clips()))
    assert not (tmp_path / "tune").exists()


def test_study_goes_on_when_the_disk_was_full_for_a_while(tmp_path: Path) -> None:
    """A full disk cuts a line short; here the limit on file sizes does, as the kernel reports it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()) as opened:
        study = opened.study
        size = (tmp_path / "study.journal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                study.set_user_attr("first", "x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "study.journal").stat().st_size == size
        study.set_user_attr("second", 2)
    with open_study(tmp_path, {}, optuna.pruners.NopPruner()) as opened:
        assert opened.study.user_attrs == {"began_with": {}, "second": 2}


# --- one head with given settings -----------------------------------------------------------------


def train(folder: Path, data: LearningData | None = None, **settings: Any) -> dict[str, Any]:
    chosen = HeadSettings(**{"learning_rate": 0.01, **settings})
    return train_bundle(data or noisy(1.0), settings=chosen, seed=0, folder=folder)


def test_train_bundle_writes_a_run_with_the_settings_given(tmp_path: Path) -> None:
    best = train(tmp_path / "runs/train")
    assert json.loads((tmp_path / "runs/train/best.json").read_text()) == best
    assert HeadSettings.from_mapping(best["settings"]) == HeadSettings(learning_rate=0.01)
    assert best["value"] > 0.6
    assert load_bundle(tmp_path / "runs/train/bundle").labels == LABELS
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("runs/train/*.json")} == {0o600}


def test_train_bundle_fits_with_the_convex_solver_and_with_patience(tmp_path: Path) -> None:
    convex = train(tmp_path / "convex", solver="convex", l2=0.01, components=9)
    assert convex["value"] > 0.6
    assert load_bundle(tmp_path / "convex/bundle").head.front.output_width == 9
    patient = train(tmp_path / "patient", patience=2, epochs=200)
    assert patient["epochs_kept"] < 200
    with pytest.raises(SettingsError, match="one feature vector"):
        train(tmp_path / "frames", side_by_side(), inputs="final/frames", solver="convex")


def test_train_bundle_writes_a_head_that_loads_when_features_do_not_vary(tmp_path: Path) -> None:
    still = [dataclasses.replace(clips, X=np.ones_like(clips.X)) for clips in (make_clips(), make_clips(seed=1))]
    for solver in ("convex", "adamw"):
        train(tmp_path / solver, learning(*still), solver=solver, components=3)
        assert load_bundle(tmp_path / solver / "bundle").head.front.axes is None


def test_train_bundle_writes_nothing_when_training_diverges(tmp_path: Path) -> None:
    data = make_clips()
    huge = dataclasses.replace(data, X=np.sign(data.X) * np.float32(3e38))
    with pytest.raises(SettingsError, match=r"diverged in epoch 1 with learning_rate 0\.01"):
        train(
            tmp_path / "run", noisy(train=kept(huge)), normalization="none", positive_weight_exponent=2.0, batch_size=16
        )
    assert not (tmp_path / "run").exists()


# --- real multi-label sets ------------------------------------------------------------------------


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
        monkeypatch.setattr("heads.engines.fitting.AXES_AT_ONCE", 40)
        best = search(tmp_path / name, trials=2, data=learning(*wide), search_space=CONVEX)
        found[name] = best["value"]
        assert load_bundle(tmp_path / name / "bundle").head.front.output_width == 160, "the head reads all features"
        (first, second) = sorted(float(row["value"]) for row in table(tmp_path / name))
        assert best["value"] == pytest.approx(second, abs=0.01), "its score is that of all features too"
        assert first <= second
    assert found["coarse to fine"] == pytest.approx(found["whole"], abs=0.03)


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_noise_among_the_inputs_costs_nothing_on_unseen_sessions(tmp_path: Path, parts: int) -> None:
    """Noise as wide as the features, which are one vector or two, is offered alone and side by side with them."""
    losses = []
    for draw in range(3):
        splits = [make_clips(noise=2.0, sessions=6, clips_each=100, seed=10 * draw + at) for at in range(2)]
        splits.append(make_clips(noise=2.0, clips_each=1000, seed=10 * draw + 9))
        random = np.random.default_rng(draw)
        useful = [f"part{at}/mean" for at in range(parts)]
        features = [
            dict(zip(useful, np.array_split(one.X, parts, axis=1), strict=True))
            | {"noise/mean": random.standard_normal(one.X.shape).astype(np.float32)}
            for one in splits
        ]
        train, validation, unseen = (
            KeptSplit(of, one.Y, one.sessions) for of, one in zip(features, splits, strict=True)
        )
        spaces = {name: FeatureSpace({**SPACE.inputs, "tap": name.split("/")[0]}) for name in features[0]}
        data, scores = LearningData(train, validation, LABELS, spaces), []
        for names in (useful, [*useful, "noise/mean"]):
            folder, space = tmp_path / f"{draw} {len(names)}", dataclasses.replace(CONVEX, inputs=default_inputs(names))
            best = search(folder, trials=20, data=data, search_space=space)
            bundle, X = load_bundle(folder / "bundle"), unseen.of(best["inputs"]).X
            scores.append(macro_f1(unseen.Y, bundle.scores(X, fingerprint=bundle.fingerprint), bundle.thresholds))
        losses.append(scores[0] - scores[1])
    assert np.mean(losses) < 0.003
