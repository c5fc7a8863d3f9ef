"""The search: what it draws, solves, prunes and leaves in a folder, and what it refuses."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from featurecache.errors import LowMemoryWarning, SettingsError, StudyError, TrainingDataError
from heads.bundle import load_bundle
from heads.engines.fitting import fit_head
from heads.engines.stack import HeadStack
from heads.models import head_scores
from heads.scoring.metrics import average_precision, macro_f1
from heads.search.summary import importances, in_words
from heads.search.trial_settings import Choices
from heads.settings import HeadSettings, SearchSpace
from tests.learning_samples import LABELS, make_clips
from tests.studies import (
    CONVEX,
    INPUTS,
    QUICK,
    SPACE,
    ended,
    kept,
    learning,
    noisy,
    search,
    sessions_of,
    side_by_side,
    stored,
    table,
)


def test_search_heads_continues_with_fewer_heads_at_once_when_memory_is_not_enough(
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
    assert best["value"] == pytest.approx(max(one["out_of_fold"] for one in best["finalists"]))
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


def test_search_heads_solves_each_combination_once_with_the_convex_solver(tmp_path: Path) -> None:
    space = dataclasses.replace(CONVEX, normalization=("standardize", "l2"), components=(0, 8))
    best = search(tmp_path / "tune", trials=40, search_space=space)
    rows = table(tmp_path / "tune")
    combinations = {(row["normalization"], row["components"], row["variance_exponent"]) for row in rows}
    assert combinations == set(itertools.product(("standardize", "l2"), ("0", "8"), ("0.0", "1.0")))
    assert len(rows) == best["trials"]["completed"] == 8
    assert best["settings"]["solver"] == "convex"
    assert best["settings"]["l2"] in {point.l2 for point in Choices.of(space, noisy()).grid()}
    assert max(float(row["value"]) for row in rows) == best["value"]
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
    by_adamw = [row for row in table(tmp_path / "tune") if row["solver"] == "adamw" and row["value"]]
    first = max(by_adamw, key=lambda row: (float(row["value"]), -int(row["number"])))
    assert int(first["number"]) == best["steps_of_trial"]
    for name in ("learning_rate", "weight_decay", "batch_size", "epochs"):
        assert str(best["settings"][name]) == first[name]


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
        assert "+".join(bundle.selected) == best["inputs"]
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
            r'a head that reads frames, attention, weighted or temporal, but search.inputs are \["final/frames"\] and '
            r'search.kind is \["linear"\]. Write kind = \["attention", "weighted", "temporal"\] in',
        ),
        (
            {"inputs": ("final/mean", "final/frames")},
            r'Write kind = \["linear", "attention", "weighted", "temporal"\] in',
        ),
        ({"kind": ("attention",)}, r'reads them, linear or mlp, .* Write kind = \["linear"\] in'),
        ({"kind": ("mlp",), "inputs": ("final/frames",)}, r'Write kind = \["attention", "weighted", "temporal"\] in'),
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
