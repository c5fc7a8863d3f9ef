"""Heads that train together: as if each trained alone, rungs, patience, and one that diverges."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from featurecache.errors import SettingsError
from heads.engines.training import FittedHead, StackedTrainer, fit_heads
from heads.engines.training_clips import TrainingClips
from heads.models import head_scores
from heads.settings import HeadSettings
from tests.learning_samples import flat, make_clips, make_frames, relative_difference

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
def test_a_head_trained_in_a_stack_equals_the_same_head_trained_alone(slots: int, of_frames: bool) -> None:
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


# --- rungs, patience and divergence ---------------------------------------------------------------


def mean_score(scores: np.ndarray) -> float:
    return float(scores.mean())


def test_at_rung_sees_live_heads_and_stops_those_it_names() -> None:
    data, unseen = make_clips(), make_clips(seed=1)
    settings = [HeadSettings(epochs=epochs, learning_rate=0.01) for epochs in (3, 6, 6, 8, 4)]
    calls: list[list[tuple[int, int]]] = []

    def at_rung(reports: Any) -> list[int]:
        calls.append([(report.number, report.epoch) for report in reports])
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


def test_fit_heads_is_bit_equal_when_repeated_and_differs_with_the_seed() -> None:
    data = make_clips()
    first, second, other = (fit_heads(TrainingClips(data.X, data.Y, seed=seed), MIXED) for seed in (1, 1, 2))
    assert all((flat(a) == flat(b)).all() for a, b in zip(first, second, strict=True))
    assert all((flat(a) != flat(b)).any() for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_heads_gives_the_same_on_cpu_and_cuda() -> None:
    data = make_clips()
    settings = [settings for settings in MIXED if not settings.dropout]  # noise differs between devices
    on_cpu = fit_heads(TrainingClips(data.X, data.Y, seed=0), settings)
    on_cuda = fit_heads(TrainingClips(data.X, data.Y, seed=0, device="cuda"), settings)
    assert all(relative_difference(a, b) < 1e-3 for a, b in zip(on_cpu, on_cuda, strict=True))
