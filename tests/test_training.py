"""Training: parity with plain torch and scikit-learn, stacked equals alone, and data that is refused."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from featurecache.errors import SettingsError, TrainingDataError
from featurecache.project import parse_section
from heads.data import LabelledFeatures, check_labelled, check_training
from heads.models import LinearHead, MLPHead, head_scores
from heads.settings import HeadSettings, SearchSpace
from heads.stack import HeadStack
from heads.training import FittedHead, TrainingClips, fit_heads

LABELS = ("ventilation", "suction", "stimulation")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_clips(
    *, sessions: int = 4, clips_each: int = 50, width: int = 24, seed: int = 0, noise: float = 1.0, prefix: str = "s"
) -> LabelledFeatures:
    """Features of which a fixed direction tells each label, with off-centre, differently scaled columns."""
    direction = np.random.default_rng(123).standard_normal((width, len(LABELS))) / width**0.5
    random = np.random.default_rng(seed)
    z = random.standard_normal((sessions * clips_each, width))
    logits = 3 * z @ direction + noise * random.standard_normal((len(z), len(LABELS))) - np.array([0.0, 1.0, 2.5])
    X = (z * np.linspace(0.5, 2, width) + np.linspace(-1, 1, width)).astype(np.float32)
    names = np.repeat([f"{prefix}{seed}-{number}" for number in range(sessions)], clips_each)
    return LabelledFeatures(X, (logits > 0).astype(np.int8), names)


def fit_one(data: LabelledFeatures, *, seed: int = 0, **settings: Any) -> FittedHead:
    (fitted,) = fit_heads(TrainingClips(data.X, data.Y, seed=seed), [HeadSettings(**settings)])
    return fitted


def flat(fitted: FittedHead) -> np.ndarray:
    assert fitted.head is not None
    return torch.cat([parameter.detach().flatten() for parameter in fitted.head.parameters()]).numpy()


def relative_difference(ours: FittedHead, theirs: FittedHead) -> float:
    a, b = flat(ours), flat(theirs)
    return float(np.abs(a - b).max() / np.abs(b).max())


# --- parity with references -----------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fit_heads_equals_torch_autograd_and_adamw_when_one_head_trains(kind: str, standardize: bool) -> None:
    data = make_clips()
    settings = HeadSettings(
        kind=kind,
        hidden_width=8,
        learning_rate=0.02,
        weight_decay=0.3,
        batch_size=48,
        epochs=4,
        standardize=standardize,
    )
    clips = TrainingClips(data.X, data.Y, seed=5)
    (ours,) = fit_heads(clips, [settings])

    pos_weight = clips.negatives_per_positive.float() ** settings.positive_weight_exponent
    untrained = HeadStack(
        [settings],
        feature_width=24,
        prior_log_odds=clips.prior_log_odds,
        positive_weights=pos_weight[None],
        seed=5,
        device=torch.device("cpu"),
    )
    module = untrained.export(0, torch.zeros(24), torch.ones(24)).train()
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    loss_function = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)
    for epoch in range(settings.epochs):
        losses = []
        for x, y in clips.slices(settings.batch_size, epoch, standardize=standardize):
            optimizer.zero_grad()
            loss = loss_function(module(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(x) / len(clips))
    theirs = dataclasses.replace(ours, head=module)
    assert relative_difference(ours, theirs) < 1e-5
    assert ours.train_loss == pytest.approx(sum(losses), rel=1e-5)


def test_fit_heads_reaches_the_optimum_of_scikit_learn_when_full_batches_converge() -> None:
    """Same objective: positive-weighted log loss per label, without an L2 term.

    Decoupled decay adds no L2 term: the fixed points of AdamW are those of the loss under the bound
    |w| <= 1 / weight_decay (Xie and Li, https://arxiv.org/abs/2404.04454). So where the optimum lies inside the bound,
    any decay must reach the unpenalised optimum of LogisticRegression.
    """
    data = make_clips(width=5, noise=3.0)
    clips = TrainingClips(data.X, data.Y, seed=0)
    common = {"learning_rate": 0.01, "batch_size": 1000, "epochs": 3000, "positive_weight_exponent": 1.0}
    for fitted in fit_heads(clips, [HeadSettings(**common, weight_decay=decay) for decay in (0.0, 0.02)]):
        assert isinstance(fitted.head, LinearHead)
        Z = ((torch.from_numpy(data.X) - fitted.head.standardize.mean) / fitted.head.standardize.scale).numpy()
        for label in range(3):
            y = data.Y[:, label]
            weights = {0: 1.0, 1: (y == 0).sum() / (y == 1).sum()}
            reference = LogisticRegression(C=np.inf, class_weight=weights, tol=1e-10, max_iter=10_000)
            reference.fit(Z.astype(np.float64), y)
            ours = np.append(fitted.head.output.weight[label].numpy(force=True), fitted.head.output.bias[label].item())
            theirs = np.append(reference.coef_[0], reference.intercept_)
            np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=2e-3)


# --- stacked equals alone -------------------------------------------------------------------------

MIXED = [
    HeadSettings(learning_rate=1e-3, batch_size=16, epochs=5),
    HeadSettings(learning_rate=1e-2, batch_size=64, epochs=3, weight_decay=0.5, positive_weight_exponent=1.0),
    HeadSettings(learning_rate=3e-2, batch_size=32, epochs=6, dropout=0.4),
    HeadSettings(learning_rate=2e-3, batch_size=16, epochs=6, dropout=0.2, positive_weight_exponent=0.0),
    HeadSettings(learning_rate=1e-2, batch_size=24, epochs=4, standardize=False),
    HeadSettings(learning_rate=1e-2, batch_size=24, epochs=4),
    HeadSettings(learning_rate=1e-2, batch_size=10_000, epochs=4, dropout=0.1),
    HeadSettings(learning_rate=1e-2, batch_size=5_000, epochs=4, dropout=0.2),
    HeadSettings(learning_rate=1e-2, batch_size=10_000, epochs=4, dropout=0.3),
    HeadSettings(kind="mlp", hidden_width=7, batch_size=32, epochs=4, dropout=0.3),
    HeadSettings(kind="mlp", hidden_width=16, batch_size=64, epochs=5, learning_rate=1e-2),
]


def test_fit_heads_gives_each_head_the_same_when_stacked_and_alone() -> None:
    data = make_clips()
    clips = TrainingClips(data.X, data.Y, seed=3)
    together = fit_heads(clips, MIXED)
    for settings, ours in zip(MIXED, together, strict=True):
        (alone,) = fit_heads(clips, [settings])
        assert ours.outcome == "finished"
        assert ours.epochs == settings.epochs
        assert relative_difference(ours, alone) < 2e-5, settings


def test_fit_heads_is_bit_equal_when_repeated_and_differs_with_the_seed() -> None:
    data = make_clips()
    first, second, other = (fit_heads(TrainingClips(data.X, data.Y, seed=seed), MIXED) for seed in (1, 1, 2))
    assert all((flat(a) == flat(b)).all() for a, b in zip(first, second, strict=True))
    assert all((flat(a) != flat(b)).any() for a, b in zip(first, other, strict=True))


def test_fit_heads_is_close_when_features_are_stored_in_half_precision() -> None:
    data = make_clips()
    half = dataclasses.replace(data, X=data.X.astype(np.float16))
    assert relative_difference(fit_one(half), fit_one(data)) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_heads_gives_the_same_on_cpu_and_cuda() -> None:
    data = make_clips()
    settings = [settings for settings in MIXED if not settings.dropout]  # noise differs between devices
    on_cpu = fit_heads(TrainingClips(data.X, data.Y, seed=0), settings)
    on_cuda = fit_heads(TrainingClips(data.X, data.Y, seed=0, device="cuda"), settings)
    assert all(relative_difference(a, b) < 1e-3 for a, b in zip(on_cpu, on_cuda, strict=True))


def test_fit_heads_accepts_features_that_cannot_be_written() -> None:
    data = make_clips()
    data.X.flags.writeable = False
    data.Y.flags.writeable = False
    assert fit_one(data, epochs=1).head is not None


# --- what a head starts from, and what it can learn -----------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fit_heads_predicts_the_prevalence_when_nothing_is_learned(kind: str) -> None:
    data = make_clips()
    fitted = fit_one(data, kind=kind, learning_rate=1e-12, epochs=1)
    assert fitted.head is not None
    np.testing.assert_allclose(head_scores(fitted.head, data.X), np.tile(data.Y.mean(0), (200, 1)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fit_heads_learns_when_labels_are_true_and_not_when_they_are_shuffled(kind: str) -> None:
    train, unseen = make_clips(clips_each=200), make_clips(clips_each=200, seed=1)
    orders = [np.random.default_rng(seed).permutation(len(train.Y)) for seed in range(8)]
    shuffled = [dataclasses.replace(train, Y=train.Y[order]) for order in orders]

    def lift(data: LabelledFeatures) -> np.ndarray:
        fitted = fit_one(data, kind=kind, hidden_width=16, learning_rate=0.01, dropout=0.2)
        assert fitted.head is not None
        scores = head_scores(fitted.head, unseen.X)
        precision = [average_precision_score(unseen.Y[:, c], scores[:, c]) for c in range(3)]
        return np.array(precision) / unseen.Y.mean(0)

    assert (lift(train) > 1.7).all()
    assert abs(np.mean([lift(data) for data in shuffled]) - 1) < 0.15


def test_head_scores_are_the_same_when_rows_come_in_other_blocks() -> None:
    fitted = fit_one(make_clips(), epochs=2)
    assert fitted.head is not None
    X = make_clips(sessions=3, clips_each=700).X
    np.testing.assert_allclose(head_scores(fitted.head, X)[1500:], head_scores(fitted.head, X[1500:]), rtol=1e-6)


def test_training_clips_scale_by_one_when_a_feature_is_constant() -> None:
    data = make_clips()
    data.X[:, 3] = 1234.567
    mean, scale = TrainingClips(data.X, data.Y, seed=0).mean_and_scale(standardize=True)
    assert scale[3] == 1
    others = np.arange(24) != 3
    np.testing.assert_allclose(mean.numpy(), data.X.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(scale.numpy()[others], data.X.std(0, dtype=np.float64)[others], rtol=1e-5)


def test_training_clips_slices_give_each_clip_once_an_epoch_when_they_wrap_around() -> None:
    data = make_clips(sessions=1, clips_each=50, width=1)
    data.X[:, 0] = np.arange(50)
    clips = TrainingClips(data.X, data.Y, seed=0)
    starts = set()
    for epoch in range(5):
        slices = [(x[:, 0].clone().numpy(), y.numpy()) for x, y in clips.slices(16, epoch, standardize=False)]
        seen = np.concatenate([x for x, _ in slices]).astype(int)
        assert sorted(seen) == list(range(50))
        assert (np.concatenate([y for _, y in slices]) == data.Y[seen]).all()
        starts.add(seen[0])
    assert len(starts) > 1


def test_linear_dropout_keeps_the_expected_input_when_drawn_many_times() -> None:
    stack = HeadStack(
        [HeadSettings(dropout=0.3)],
        feature_width=20_000,
        prior_log_odds=torch.zeros(1),
        positive_weights=torch.ones(1, 1),
        seed=0,
        device=torch.device("cpu"),
    )
    assert stack.kept is not None
    assert stack.kept.mean().item() == pytest.approx(1, abs=0.02)
    assert (stack.kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


# --- rungs and divergence -------------------------------------------------------------------------


def test_at_rung_sees_live_heads_and_stops_those_it_names() -> None:
    data, unseen = make_clips(), make_clips(seed=1)
    settings = [HeadSettings(epochs=epochs, learning_rate=0.01) for epochs in (3, 6, 6, 8)]
    calls: list[tuple[int, list[int]]] = []
    last: dict[int, np.ndarray] = {}

    def at_rung(epoch: int, scores: Any) -> list[int]:
        calls.append((epoch, list(scores)))
        last.update(scores)
        return {2: [2], 3: [0]}.get(epoch, [])  # head 0 has finished by then: naming it changes nothing

    clips = TrainingClips(data.X, data.Y, seed=0)
    fitted = fit_heads(clips, settings, X_validation=unseen.X, rungs=(2, 4), at_rung=at_rung)
    assert calls == [(2, [0, 1, 2, 3]), (3, [0]), (4, [1, 3]), (6, [1]), (8, [3])]
    assert [head.outcome for head in fitted] == ["finished", "finished", "stopped", "finished"]
    assert fitted[2].head is None
    assert fitted[2].epochs == 2
    (alone,) = fit_heads(clips, settings[3:])
    assert relative_difference(fitted[3], alone) < 1e-5
    for index in (0, 1, 3):
        head = fitted[index].head
        assert head is not None
        np.testing.assert_allclose(last[index], head_scores(head, unseen.X), atol=1e-6)


def test_fit_heads_refuses_a_callback_without_features_to_score() -> None:
    data = make_clips()
    with pytest.raises(ValueError, match="Give both or none"):
        fit_heads(TrainingClips(data.X, data.Y, seed=0), MIXED, at_rung=lambda epoch, scores: [])


def test_fit_heads_reports_divergence_when_numbers_overflow() -> None:
    data = make_clips()
    huge = dataclasses.replace(data, X=np.sign(data.X) * np.float32(1e37))
    settings = [
        HeadSettings(positive_weight_exponent=exponent, standardize=False, epochs=3, batch_size=16)
        for exponent in (2.0, 0.0)
    ]
    shown: list[list[int]] = []
    diverged, quiet = fit_heads(
        TrainingClips(huge.X, huge.Y, seed=0),
        settings,
        X_validation=huge.X,
        rungs=(1, 2),
        at_rung=lambda epoch, scores: shown.append(list(scores)) or [],
    )
    assert diverged.outcome == "diverged"
    assert diverged.head is None
    assert quiet.outcome == "finished"
    assert np.isfinite(flat(quiet)).all()
    assert shown == [[1], [1], [1]]


# --- data that is refused -------------------------------------------------------------------------


def with_changes(data: LabelledFeatures, **arrays: Callable[[np.ndarray], np.ndarray]) -> LabelledFeatures:
    return dataclasses.replace(data, **{name: change(getattr(data, name).copy()) for name, change in arrays.items()})


def put(value: float, at: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return change


BAD_SPLITS = {
    "no rows": ({"X": lambda x: x[:0], "Y": lambda y: y[:0], "sessions": lambda s: s[:0]}, "must have labelled clips"),
    "row missing": ({"Y": lambda y: y[1:]}, "their shapes are"),
    "label missing": ({"Y": lambda y: y[:, 1:]}, "Y has 2 columns"),
    "float64": ({"X": lambda x: x.astype(np.float64)}, "are float64"),
    "unlabelled": ({"Y": put(-1, (7, 1))}, "1 of 200 clips have another .first: row 7."),
    "NaN target": ({"Y": lambda y: put(np.nan, (7, 1))(y.astype(np.float32))}, "first: row 7"),
    "NaN feature": ({"X": put(np.nan, (11, 0))}, "row 11 of the train split"),
    "infinite feature": ({"X": put(np.inf, (11, 0))}, "row 11 of the train split"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_check_labelled_refuses_a_split_when_its_arrays_are_unusable(case: str) -> None:
    changes, message = BAD_SPLITS[case]
    check_labelled(make_clips(), LABELS, "train")
    with pytest.raises(TrainingDataError, match=message):
        check_labelled(with_changes(make_clips(), **changes), LABELS, "train")


BAD_PAIRS = {
    "never on": ({"Y": put(0, (slice(None), 1))}, {}, "never are: suction"),
    "always on": ({"Y": put(1, (slice(None), 2))}, {}, "off in at least one .* never are: stimulation"),
    "one session": (
        {"sessions": lambda s: np.full_like(s, "one")},
        {"sessions": lambda s: np.full_like(s, "one")},
        "one",
    ),
    "other width": ({}, {"X": lambda x: x[:, :-1]}, "have 24 and 23"),
    "none in validation": ({}, {"Y": put(0, slice(None))}, "none of ventilation, suction, stimulation"),
    "unlabelled in validation": ({}, {"Y": put(2, (0, 0))}, "validation split must be 0 or 1"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_check_training_refuses_splits_when_nothing_honest_can_be_learned(case: str) -> None:
    of_train, of_validation, message = BAD_PAIRS[case]
    train, validation = make_clips(), make_clips(seed=1)
    check_training(train, validation, LABELS)
    with pytest.raises(TrainingDataError, match=message):
        check_training(with_changes(train, **of_train), with_changes(validation, **of_validation), LABELS)


def test_training_clips_refuse_a_label_that_is_never_on() -> None:
    data = with_changes(make_clips(), Y=put(0, (slice(None), 1)))
    with pytest.raises(TrainingDataError, match="some training clips"):
        TrainingClips(data.X, data.Y, seed=0)


# --- settings, and a light import -----------------------------------------------------------------


def test_head_settings_are_the_same_when_read_back_from_json() -> None:
    for settings in MIXED:
        assert HeadSettings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings
    assert json.loads(json.dumps(SearchSpace().to_mapping())) == SearchSpace().to_mapping()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "svm"),
        ("hidden_width", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("positive_weight_exponent", 2.5),
        ("dropout", 1.0),
        ("batch_size", 2.5),
        ("epochs", 0),
        ("standardize", 1),
    ],
)
def test_head_settings_are_refused_when_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be .*, but it is "):
        HeadSettings(**{name: value})


def test_head_settings_are_refused_when_a_name_is_unknown_or_missing() -> None:
    mapping = HeadSettings().to_mapping()
    with pytest.raises(SettingsError, match="momentum"):
        HeadSettings.from_mapping({**mapping, "momentum": 0.9})
    del mapping["dropout"]
    with pytest.raises(SettingsError, match="dropout"):
        HeadSettings.from_mapping(mapping)


def test_search_space_reads_from_a_settings_section() -> None:
    table = {"learning_rate": [1e-4, 1], "kind": ["linear", "mlp"], "epochs": [5, 5]}
    space = parse_section(table, SearchSpace, "search")
    assert space == SearchSpace(learning_rate=(1e-4, 1.0), kind=("linear", "mlp"), epochs=(5, 5))
    with pytest.raises(SettingsError, match=r"search\.epochs must be two numbers, the lower one first"):
        parse_section({"epochs": [9, 5]}, SearchSpace, "search")
    with pytest.raises(SettingsError, match=r"train\.learning_rate must be greater than 0, but it is -1"):
        parse_section({"learning_rate": -1}, HeadSettings, "train")


def test_import_of_heads_and_its_settings_loads_no_torch() -> None:
    code = "import sys, heads\nheads.HeadSettings(), heads.SearchSpace()\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_mlp_head_has_the_hidden_width_asked_for() -> None:
    fitted = fit_one(make_clips(), kind="mlp", hidden_width=9, epochs=1)
    assert isinstance(fitted.head, MLPHead)
    assert fitted.head.hidden.out_features == 9
