"""Training: parity with plain torch and scikit-learn, dropout, exponents of labels, and data that is refused."""

import dataclasses
import itertools

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
from heads.engines.training import fit_heads
from heads.engines.training_clips import TrainingClips, View
from heads.finetuning.training_state import positive_weight
from heads.models import Front, Head, LinearHead, MLPHead, head_scores
from heads.settings import HeadSettings
from tests.learning_samples import LABELS, fit_one, make_clips, make_frames, relative_difference


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


def test_fit_heads_is_close_when_features_are_stored_in_half_precision() -> None:
    data = make_clips()
    half = dataclasses.replace(data, X=data.X.astype(np.float16))
    assert relative_difference(fit_one(half), fit_one(data)) < 5e-3


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


@pytest.mark.parametrize("widths", [9, (9, 7)])
def test_mlp_head_has_the_hidden_widths_asked_for(widths: int | tuple[int, ...]) -> None:
    fitted = fit_one(make_clips(), kind="mlp", hidden_width=widths, epochs=1)
    assert isinstance(fitted.head, MLPHead)
    assert tuple(layer.out_features for layer in fitted.head.hidden_layers) == fitted.settings.hidden_widths
    with pytest.raises(SettingsError, match="a temporal head must have one hidden_width"):
        HeadSettings(kind="temporal", hidden_width=(9, 7))
