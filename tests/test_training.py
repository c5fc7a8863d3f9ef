"""Training: parity with plain torch and scikit-learn, stacked equals alone, and data that is refused."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch.nn.functional import binary_cross_entropy_with_logits

from featurecache.errors import SettingsError
from heads.data import LabelledFeatures
from heads.engines.fitting import fit_head, refitting
from heads.engines.stack import HeadStack
from heads.engines.training import FittedHead, StackedTrainer, fit_heads
from heads.engines.training_clips import TrainingClips, View
from heads.finetuning.training_state import positive_weight
from heads.models import Front, Head, LinearHead, MLPHead, head_scores
from heads.settings import HeadSettings
from tests.learning_samples import LABELS, make_clips, make_frames


def untrained_head(clips: TrainingClips, settings: HeadSettings) -> Head:
    """The module that training starts from."""
    front = clips.front(View(settings.normalization, settings.components))
    stack = HeadStack(
        settings.kind,
        feature_width=front.output_width,
        prior_log_odds=clips.prior_log_odds,
        clip_count=len(clips),
        seed=clips.seed,
        device=torch.device("cpu"),
    )
    stack.add(settings, torch.ones(len(LABELS)))
    return stack.export(settings, stack.values(0), front).train()


def in_training_order(clips: TrainingClips) -> torch.Tensor:
    """Numbers of the rows in the order of an epoch."""
    rows = np.arange(len(clips), dtype=np.float32)[:, None]
    targets = (rows > 0).astype(np.int8)
    features = TrainingClips(rows, targets, seed=clips.seed).features(View("none", 0))
    return features[:, 0].long()


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

PARITY = {
    "linear": HeadSettings(batch_size=48),
    "linear, raw": HeadSettings(batch_size=48, normalization="none"),
    "linear, unit length": HeadSettings(batch_size=48, normalization="l2"),
    "linear, components": HeadSettings(batch_size=48, components=5),
    "linear, weighted": HeadSettings(positive_weight_exponent=1.7),
    "mlp": HeadSettings(kind="mlp", hidden_width=8, batch_size=48),
    "mlp, three layers": HeadSettings(kind="mlp", hidden_width=(8, 5, 6), batch_size=48),
    "mlp, components": HeadSettings(kind="mlp", hidden_width=8, normalization="l2", components=7),
    "attention": HeadSettings(kind="attention", batch_size=48),
    "temporal": HeadSettings(kind="temporal", hidden_width=6, batch_size=48),
}


@pytest.mark.parametrize("case", PARITY)
def test_fit_heads_equals_torch_autograd_and_adamw_when_one_head_trains(case: str) -> None:
    settings = dataclasses.replace(PARITY[case], learning_rate=0.02, weight_decay=0.3, epochs=4)
    data = make_frames() if settings.kind in ("attention", "temporal") else make_clips()
    clips = TrainingClips(data.X, data.Y, seed=5)
    (ours,) = fit_heads(clips, [settings])

    module = untrained_head(clips, settings)
    weights = [p for name, p in module.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    share = torch.from_numpy(data.Y).double().mean(dim=0)
    pos_weight = ((1 - share) / share) ** settings.positive_weight_exponent
    order = in_training_order(clips)
    X, Y = torch.from_numpy(data.X)[order], torch.from_numpy(data.Y).float()[order]
    for _ in range(settings.epochs):
        losses = []
        for x, y in zip(X.split(settings.batch_size), Y.split(settings.batch_size), strict=True):
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(module(x), y, pos_weight=pos_weight.float())
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(x) / len(clips))
    theirs = dataclasses.replace(ours, head=module)
    assert relative_difference(ours, theirs) < 2e-5
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
        Z = ((torch.from_numpy(data.X) - fitted.head.front.mean) / fitted.head.front.scale).numpy()
        for label in range(3):
            y = data.Y[:, label]
            weights = {0: 1.0, 1: (y == 0).sum() / (y == 1).sum()}
            reference = LogisticRegression(C=np.inf, class_weight=weights, tol=1e-10, max_iter=10_000)
            reference.fit(Z.astype(np.float64), y)
            ours = np.append(fitted.head.output.weight[label].numpy(force=True), fitted.head.output.bias[label].item())
            theirs = np.append(reference.coef_[0], reference.intercept_)
            # 3,000 steps of a rate of 0.01 leave the last of them, some thousandths
            np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


# --- stacked equals alone -------------------------------------------------------------------------

MIXED = [
    HeadSettings(learning_rate=1e-3, batch_size=16, epochs=5),
    HeadSettings(learning_rate=1e-2, batch_size=64, epochs=3, weight_decay=0.5, positive_weight_exponent=1.0),
    HeadSettings(learning_rate=3e-2, batch_size=32, epochs=6, dropout=0.4),
    HeadSettings(learning_rate=2e-3, batch_size=16, epochs=6, dropout=0.2, positive_weight_exponent=0.0),
    HeadSettings(learning_rate=1e-2, batch_size=24, epochs=4, normalization="none"),
    HeadSettings(learning_rate=1e-2, batch_size=24, epochs=4),
    HeadSettings(learning_rate=1e-2, batch_size=10_000, epochs=4, dropout=0.1),
    HeadSettings(learning_rate=1e-2, batch_size=5_000, epochs=4, dropout=0.2),
    HeadSettings(learning_rate=1e-2, batch_size=10_000, epochs=4, dropout=0.3),
    HeadSettings(kind="mlp", hidden_width=7, batch_size=32, epochs=4, dropout=0.3),
    HeadSettings(kind="mlp", hidden_width=16, batch_size=64, epochs=5, learning_rate=1e-2),
    HeadSettings(kind="mlp", hidden_width=(9, 6), batch_size=64, epochs=5, learning_rate=1e-2, dropout=0.2),
    HeadSettings(kind="mlp", hidden_width=(4, 5, 6), batch_size=32, epochs=3, learning_rate=1e-2),
    HeadSettings(learning_rate=1e-2, batch_size=48, epochs=4, components=6),
    HeadSettings(learning_rate=1e-2, batch_size=32, epochs=4, components=6, positive_weight_exponent=0.0, dropout=0.1),
]
MIXED_OF_FRAMES = [
    HeadSettings(kind="attention", learning_rate=1e-2, batch_size=32, epochs=4, dropout=0.3),
    HeadSettings(kind="attention", learning_rate=3e-2, batch_size=24, epochs=3),
    HeadSettings(kind="temporal", hidden_width=5, learning_rate=1e-2, batch_size=64, epochs=4, dropout=0.3),
    HeadSettings(kind="temporal", hidden_width=9, learning_rate=2e-3, batch_size=16, epochs=5),
]


def refilled(clips: TrainingClips, settings: list[HeadSettings], slots: int, **scoring: Any) -> list[FittedHead]:
    """As `fit_heads`, through fewer slots than heads."""
    waiting = iter(settings)
    trainer = StackedTrainer(clips, slots=slots, **scoring)
    return sorted(trainer.run(lambda: next(waiting, None)), key=lambda fitted: fitted.number)


@pytest.mark.parametrize("slots", [3, 100])
@pytest.mark.parametrize("of_frames", [False, True])
def test_heads_are_the_same_when_they_train_alone_or_in_company(slots: int, of_frames: bool) -> None:
    data, mixed = (make_frames(), MIXED_OF_FRAMES) if of_frames else (make_clips(), MIXED)
    clips = TrainingClips(data.X, data.Y, seed=3)
    for settings, ours in zip(mixed, refilled(clips, mixed, slots), strict=True):
        (alone,) = fit_heads(clips, [settings])
        assert ours.outcome == "finished"
        assert ours.epochs == settings.epochs
        assert relative_difference(ours, alone) < 2e-5, settings


def test_run_asks_for_the_next_settings_when_a_head_has_been_given_out() -> None:
    data = make_clips()
    log: list[str] = []
    waiting = iter([HeadSettings(epochs=epochs) for epochs in (2, 1, 3, 1)])

    def next_settings() -> HeadSettings | None:
        settings = next(waiting, None)
        log.append("none" if settings is None else f"ask {settings.epochs}")
        return settings

    for fitted in StackedTrainer(TrainingClips(data.X, data.Y, seed=0), slots=2).run(next_settings):
        log.append(f"end {fitted.number}")
    assert log == ["ask 2", "ask 1", "end 1", "ask 3", "end 0", "ask 1", "end 3", "none", "end 2", "none"]


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


@pytest.mark.parametrize("kind", ["linear", "mlp", "attention", "temporal"])
def test_fit_heads_predicts_the_prevalence_when_nothing_is_learned(kind: str) -> None:
    data = make_frames() if kind in ("attention", "temporal") else make_clips()
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


@pytest.mark.parametrize("kind", ["linear", "attention", "mlp", "temporal"])
def test_dropout_gives_the_gradients_of_autograd_with_the_same_noise(kind: str) -> None:
    data = make_frames() if kind in ("attention", "temporal") else make_clips()
    X, Y = torch.from_numpy(data.X), torch.from_numpy(data.Y).float()
    settings = HeadSettings(kind=kind, hidden_width=4, dropout=0.4, learning_rate=0.01, batch_size=40)
    stack = HeadStack(
        kind,
        feature_width=24,
        prior_log_odds=torch.zeros(3),
        clip_count=200,
        seed=1,
        device=torch.device("cpu"),
    )
    stack.add(settings, torch.ones(3))
    module = stack.export(settings, stack.values(0), Front(24)).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.0)
    stack.members[0].groups[0] = (0.0, stack.members[0].groups[0][1])  # without decay, to have one group
    for start in range(0, 200, 40):
        mask = stack.members[0].mask
        noise = None if mask is None else mask.clone()  # (D,), for the whole batch
        x, y = X[start : start + 40], Y[start : start + 40]
        stack.train(x, y, seen=start)
        if noise is None:
            noise = stack.members[0].noise  # (B, H)
        module.dropout.forward = lambda features, noise=noise: features * noise
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(module(x), y).backward()
        optimizer.step()
    ours = stack.export(settings, stack.values(0), Front(24))
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.detach(), module.get_parameter(name).detach(), rtol=1e-4, atol=1e-5)


def test_feature_dropout_keeps_the_expected_input_and_changes_with_each_step() -> None:
    stack = HeadStack(
        "linear",
        feature_width=20_000,
        prior_log_odds=torch.zeros(1),
        clip_count=3,
        seed=0,
        device=torch.device("cpu"),
    )
    stack.add(HeadSettings(dropout=0.3, batch_size=1), torch.ones(1))
    masks = []
    for seen in range(3):
        mask = stack.members[0].mask
        assert mask is not None
        assert mask.mean().item() == pytest.approx(1, abs=0.02)
        assert (mask == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        masks.append(mask.clone())
        stack.train(torch.ones(1, 20_000), torch.ones(1, 1), seen=seen)
    for one, other in itertools.combinations(masks, 2):
        assert ((one == 0) == (other == 0)).float().mean().item() == pytest.approx(0.7**2 + 0.3**2, abs=0.02)


# --- rungs, patience and divergence ---------------------------------------------------------------


def mean_score(scores: np.ndarray) -> float:
    return float(scores.mean())


def test_at_rung_sees_live_heads_and_stops_those_it_names() -> None:
    data, unseen = make_clips(), make_clips(seed=1)
    settings = [HeadSettings(epochs=epochs, learning_rate=0.01) for epochs in (3, 6, 6, 8, 4)]
    calls: list[list[tuple[int, int]]] = []

    def at_rung(reports: Any) -> list[int]:
        calls.append([(report.number, report.epoch) for report in reports])
        assert all(report.value == mean_score(report.scores) for report in reports)
        return [2] if calls[-1][0] == (0, 2) else []

    clips = TrainingClips(data.X, data.Y, seed=0)
    waiting = iter(settings)
    trainer = StackedTrainer(clips, slots=4, X_validation=unseen.X, score=mean_score, rungs=(2, 4))
    fitted = sorted(trainer.run(lambda: next(waiting, None), at_rung), key=lambda fitted: fitted.number)
    assert calls == [[(0, 2), (1, 2), (2, 2), (3, 2)], [(1, 4), (3, 4), (4, 2)]]
    assert [head.outcome for head in fitted] == ["finished", "finished", "stopped", "finished", "finished"]
    assert fitted[2].head is None
    assert [head.epochs for head in fitted] == [3, 6, 2, 8, 4]
    (alone,) = fit_heads(clips, settings[3:4])
    assert alone.value is None
    assert relative_difference(fitted[3], alone) < 1e-5
    for index in (0, 1, 3, 4):
        head = fitted[index].head
        assert head is not None
        assert fitted[index].value == pytest.approx(mean_score(head_scores(head, unseen.X)), abs=1e-6)


def test_patience_ends_with_the_best_epochs_head_when_scores_fall() -> None:
    data, unseen = make_clips(clips_each=15), make_clips(seed=1)
    values: list[float] = []

    def score(scores: np.ndarray) -> float:
        values.append(float(np.log(np.where(unseen.Y == 1, scores, 1 - scores) + 1e-7).mean()))
        return values[-1]

    clips = TrainingClips(data.X, data.Y, seed=0)
    settings = [
        HeadSettings(learning_rate=rate, epochs=60, batch_size=32, patience=patience, positive_weight_exponent=1.0)
        for rate, patience in ((0.05, 3), (0.01, 2), (1e-4, 3), (0.05, 0))
    ]
    scoring = {"X_validation": unseen.X, "score": score}
    together = refilled(clips, settings, 3, **scoring)
    assert [head.outcome for head in together] == ["finished"] * 4
    assert together[0].epochs < together[3].epochs == 60
    for ours in together[:3]:
        values.clear()
        (alone,) = fit_heads(clips, [ours.settings], **scoring)
        best = int(np.argmax(values))
        assert len(values) == min(best + 1 + ours.settings.patience, 60)
        assert (ours.epochs, ours.value) == (best + 1, pytest.approx(values[best], rel=1e-5))
        assert relative_difference(ours, alone) < 2e-5
        fixed = dataclasses.replace(ours.settings, epochs=best + 1, patience=0)
        assert relative_difference(ours, fit_heads(clips, [fixed])[0]) < 2e-5


def test_stacked_trainer_refuses_what_it_cannot_score_or_train() -> None:
    data = make_clips()
    clips = TrainingClips(data.X, data.Y, seed=0)
    with pytest.raises(ValueError, match="Give both or none"):
        StackedTrainer(clips, slots=1, score=mean_score)
    with pytest.raises(SettingsError, match="patience must be 0"):
        fit_heads(clips, [HeadSettings(patience=1)])
    with pytest.raises(SettingsError, match='solver "adamw"'):
        fit_heads(clips, [HeadSettings(solver="convex")])
    with pytest.raises(SettingsError, match="features of frames"):
        fit_heads(clips, [HeadSettings(kind="temporal")])
    frames = make_frames()
    with pytest.raises(SettingsError, match="one feature vector"):
        fit_heads(TrainingClips(frames.X, frames.Y, seed=0), [HeadSettings()])


def test_run_gives_out_a_diverged_head_and_the_others_train_on() -> None:
    data = make_clips()
    X = np.sign(data.X) * np.float32(2e38)
    settings = [
        HeadSettings(positive_weight_exponent=exponent, normalization="none", epochs=3, batch_size=16)
        for exponent in (0.0, 2.0, 0.0)
    ]
    settings[1] = dataclasses.replace(settings[1], learning_rate=10.0)
    clips = TrainingClips(X, data.Y, seed=0)
    shown: list[list[int]] = []
    waiting = iter(settings)
    trainer = StackedTrainer(clips, slots=3, X_validation=X, score=mean_score, rungs=(1, 2))
    first, diverged, last = sorted(
        trainer.run(lambda: next(waiting, None), lambda reports: shown.append([r.number for r in reports]) or []),
        key=lambda fitted: fitted.number,
    )
    assert diverged.outcome == "diverged"
    assert diverged.head is None
    assert diverged.value is None
    assert "learning_rate 10 " in str(diverged.diverged_error())
    assert [number for numbers in shown for number in numbers if number == 1] == []
    (alone,) = fit_heads(clips, settings[:1])
    for ours in (first, last):
        assert ours.outcome == "finished"
        assert relative_difference(ours, alone) < 2e-5


# --- data that is refused -------------------------------------------------------------------------


# --- exponents label by label ----------------------------------------------------------------------

EXPONENTS = (0.2, 0.9, 0.0)
ANY_SOLVER = [HeadSettings(solver="convex", l2=0.1), HeadSettings(learning_rate=0.01, epochs=3, batch_size=64)]


@pytest.mark.parametrize("settings", ANY_SOLVER, ids=["convex", "adamw"])
def test_a_label_with_an_exponent_of_its_own_learns_as_if_all_had_it(settings: HeadSettings) -> None:
    data = make_clips()
    of_labels = dataclasses.replace(settings, positive_weight_exponent=EXPONENTS)
    scores = head_scores(fit_head(data.X, data.Y, of_labels), data.X)
    for label, exponent in enumerate(EXPONENTS):
        of_all = dataclasses.replace(settings, positive_weight_exponent=exponent)
        alone = head_scores(fit_head(data.X, data.Y, of_all), data.X)
        np.testing.assert_allclose(scores[:, label], alone[:, label], atol=1e-3)
        assert np.abs(scores - alone).max() > 0.02
    weights = positive_weight(data.Y, exponent=EXPONENTS).tolist()
    assert weights == [float(positive_weight(data.Y, exponent=e)[at]) for at, e in enumerate(EXPONENTS)]


@pytest.mark.parametrize("settings", ANY_SOLVER, ids=["convex", "adamw"])
def test_exponents_stay_with_their_labels_where_a_label_is_left_out(settings: HeadSettings) -> None:
    data = make_clips()
    of_labels = dataclasses.replace(settings, positive_weight_exponent=EXPONENTS)
    every, two = np.arange(len(data.X)), np.array([True, False, True])
    whole = refitting(data, of_labels)(every, data.Y, np.ones(3, bool), every)
    np.testing.assert_allclose(refitting(data, of_labels)(every, data.Y, two, every), whole[:, two], atol=1e-3)


@pytest.mark.parametrize("settings", ANY_SOLVER, ids=["convex", "adamw"])
def test_exponents_of_another_number_of_labels_are_refused(settings: HeadSettings) -> None:
    data = make_clips()
    of_labels = dataclasses.replace(settings, positive_weight_exponent=(0.1, 0.2))
    with pytest.raises(SettingsError, match="one for each label, but there are 2 for 3 labels"):
        fit_head(data.X, data.Y, of_labels)


# --- settings, and a light import -----------------------------------------------------------------


@pytest.mark.parametrize("widths", [9, (9, 7)])
def test_mlp_head_has_the_hidden_widths_asked_for(widths: int | tuple[int, ...]) -> None:
    fitted = fit_one(make_clips(), kind="mlp", hidden_width=widths, epochs=1)
    assert isinstance(fitted.head, MLPHead)
    assert tuple(layer.out_features for layer in fitted.head.hidden_layers) == fitted.settings.hidden_widths
    with pytest.raises(SettingsError, match="a temporal head must have one hidden_width"):
        HeadSettings(kind="temporal", hidden_width=(9, 7))
