"""Heads over several clips: what order and absent parts change, and the one-part group, which is FT-LC."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurecache import FeatureCache, extract, make_clips, open_project
from featurecache.clips.csv_file import read_table
from featurecache.clips.samples import Sample
from featurecache.clips.samples_file import SAMPLES_NAME
from featurecache.errors import BundleError, EditedTableError, SettingsError, TrainingDataError
from featurecache.project.settings import Project
from heads import compare, evaluate, leave_one_session_out, predict, train, tune
from heads.bundle import load_bundle
from heads.data import LabelledFeatures, LabelledSplit, check_labelled, check_training
from heads.engines.fitting import fit_head
from heads.engines.fusion import fit_fused
from heads.models import AttentionHead, head_scores
from heads.samples.joining import join_of, joined
from heads.settings import HeadKind, HeadSettings
from heads.terminal.scores import evaluation
from heads.workflow import report
from heads.workflow.data import NO_TIMELINES, own_table, scoring_data
from heads.workflow.mapping import map_clip
from heads.workflow.retraining import retrain
from heads.workflow.reviewing import review
from heads.workflow.sample_scores import WEIGHTS_NAME
from tests.learning_samples import LABELS
from tests.learning_samples import make_clips as drawn_clips
from tests.projects import make_project


def groups(parts: int = 4, seed: int = 0, absent: float = 0.3) -> LabelledFeatures:
    """Samples (N, P, D) of which one part tells the labels; others are noise, and some of them absent."""
    data, random = drawn_clips(seed=seed, clips_each=30), np.random.default_rng(seed + 100)
    X = random.standard_normal((len(data.X), parts, data.X.shape[1])).astype(np.float32) * data.X.std(0)
    telling = random.integers(parts, size=len(X))
    X[random.random(X.shape[:2]) < absent] = np.nan
    X[np.arange(len(X)), telling] = data.X
    names = tuple(Sample(str(at), ("",) * parts, one, "train", (1,)) for at, one in enumerate(data.sessions))
    return dataclasses.replace(data, X=X, samples=names)


WEIGHS = HeadSettings(kind="attention", epochs=6, learning_rate=0.02, batch_size=32, dropout=0.2, components=12)


@pytest.mark.parametrize("kind", ["attention", "weighted"])
@pytest.mark.parametrize("normalization", ["none", "standardize", "l2"])
def test_neither_order_nor_padding_of_parts_changes_a_head_that_weighs_them(kind: HeadKind, normalization: str) -> None:
    data = groups()
    settings = dataclasses.replace(WEIGHS, kind=kind, normalization=normalization)
    head = fit_head(data.X, data.Y, settings)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(4), (len(data.X), 1)), axis=1)
    shuffled = np.take_along_axis(data.X, order[..., None], axis=1)
    padded = np.concatenate([shuffled, np.full_like(data.X[:, :2], np.nan)], axis=1)
    again = fit_head(padded, data.Y, settings)
    scores = head_scores(head, data.X)
    assert np.isfinite(scores).all()
    assert scores.std(axis=0).min() > 0.05
    np.testing.assert_allclose(head_scores(head, padded), scores, atol=1e-5)
    np.testing.assert_allclose(head_scores(again, data.X), scores, atol=2e-3)


@pytest.mark.parametrize("kind", ["attention", "weighted"])
def test_a_group_of_one_clip_is_ft_lc(kind: HeadKind) -> None:
    data = drawn_clips()
    settings = dataclasses.replace(WEIGHS, components=0, kind="linear")
    plain = head_scores(fit_head(data.X, data.Y, settings), data.X)
    one_part = fit_head(data.X[:, None], data.Y, dataclasses.replace(settings, kind=kind))
    np.testing.assert_allclose(head_scores(one_part, data.X[:, None]), plain, atol=1e-6)
    convex = HeadSettings(solver="convex")
    mean = joined(data.X[:, None], "mean")
    np.testing.assert_array_equal(mean, data.X)
    np.testing.assert_array_equal(
        head_scores(fit_head(mean, data.Y, convex), mean), head_scores(fit_head(data.X, data.Y, convex), data.X)
    )


def test_weights_find_the_part_that_tells_and_give_absent_ones_nothing() -> None:
    data = groups(parts=3)
    head = fit_head(data.X, data.Y, dataclasses.replace(WEIGHS, kind="weighted", epochs=60, components=0))
    assert isinstance(head, AttentionHead)
    with torch.no_grad():
        weights = head.weights(torch.from_numpy(data.X)).numpy()[..., 0]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (weights[np.isnan(data.X[..., 0])] == 0).all()


def test_joined_parts_are_side_by_side_with_what_is_there_and_a_pair_has_the_difference() -> None:
    X = np.array([[[1, 2], [3, 5]], [[7, 8], [np.nan, np.nan]]], np.float32)
    np.testing.assert_array_equal(joined(X, "mean"), [[2, 3.5], [7, 8]])
    np.testing.assert_array_equal(joined(X, "concat"), [[1, 2, 3, 5, 1, 1], [7, 8, *[np.nan] * 2, 1, 0]])
    np.testing.assert_array_equal(joined(X, "pair")[0], [1, 2, 3, 5, 2, 3, 1, 1])
    with pytest.raises(SettingsError, match=r"a pair must have two parts, but the samples have 3.*concat"):
        joined(np.zeros((1, 3, 2), np.float32), "pair")


@pytest.mark.parametrize("settings", [HeadSettings(solver="convex"), HeadSettings(kind="mlp", normalization="l2")])
def test_a_head_on_joined_parts_reads_the_average_where_a_part_is_absent(settings: HeadSettings) -> None:
    data = groups(parts=2)
    X = joined(data.X, "concat")
    widths = [24, 24, 1, 1]
    head = fit_head(X, data.Y, settings, part_widths=widths)
    scores = head_scores(head, X)
    assert np.isfinite(scores).all()
    filled = X.copy()
    mean = np.nanmean(X.astype(np.float64), axis=0).astype(np.float32)
    rows, columns = np.nonzero(np.isnan(X))
    filled[rows, columns] = mean[columns]
    if settings.normalization == "standardize":
        np.testing.assert_allclose(head_scores(head, filled), scores, atol=1e-4)


def test_joining_is_refused_where_samples_are_clips_and_a_feature_that_is_no_number_everywhere() -> None:
    data = drawn_clips()
    with pytest.raises(SettingsError, match=r"pair\(final/mean\) and each sample is one clip"):
        LabelledSplit({"final/mean": data.X}, data.Y, data.sessions).of("pair(final/mean)")
    with pytest.raises(SettingsError, match='kind "temporal" must have all time steps'):
        fit_head(groups().X, data.Y[:120], HeadSettings(kind="temporal"))
    check_labelled(groups(), LABELS, "train")
    always = dataclasses.replace(groups(), Y=np.ones_like(groups().Y))
    with pytest.raises(
        TrainingDataError, match=r"off in at least one training sample, but .* make samples of fewer clips"
    ):
        check_training(always, dataclasses.replace(always, sessions=np.full(len(always.Y), "other")), LABELS)
    for broken, samples in ((np.nan, None), (np.inf, groups().samples)):
        bad = groups(absent=0)
        bad.X[3, 0, 0] = broken
        with pytest.raises(Exception, match="row 3 of the train split"):
            check_labelled(dataclasses.replace(bad, samples=samples), LABELS, "train")


def two_inputs(alpha: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two inputs (N, 2 D) on scales of their own, whose projections to the labels weigh alpha and 1 - alpha."""
    random = np.random.default_rng(seed)
    z, P = random.standard_normal((2, 600, 16)), random.standard_normal((2, 16, 3))
    P /= np.linalg.norm(P, axis=(1, 2), keepdims=True)
    logits = 8 * (alpha * z[0] @ P[0] + (1 - alpha) * z[1] @ P[1])
    Y = (logits + random.logistic(size=logits.shape) > 0).astype(np.int8)
    return np.concatenate([3 * z[0] + 1, z[1] / 10], axis=1).astype(np.float32), Y


FUSES = HeadSettings(solver="convex", inputs="a/mean+b/mean", input_weights="learned", l2=3e-3)


@pytest.mark.parametrize(("alpha", "l2"), [(0.7, 3e-3), (0.5, 3e-3), (1.0, 0.1)])
def test_the_weight_that_inputs_were_drawn_with_is_found_and_noise_gets_none(alpha: float, l2: float) -> None:
    for seed in (0, 1):
        X, Y = two_inputs(alpha, seed)
        fused = fit_fused(X, Y, dataclasses.replace(FUSES, l2=l2), widths=[16, 16])
        assert fused.weights == pytest.approx([alpha, 1 - alpha], abs=0.06)
        assert head_scores(fused.head, X).shape == Y.shape
        swapped = fit_fused(np.roll(X, 16, axis=1), Y, dataclasses.replace(FUSES, l2=l2), widths=[16, 16])
        assert swapped.weights[::-1] == pytest.approx(fused.weights, abs=5e-3)


@pytest.mark.parametrize(
    "changed", [{"inputs": "a/mean"}, {"solver": "adamw"}, {"inputs": "pair(a/mean+b/mean)"}, {"components": 8}]
)
def test_learned_weights_are_refused_where_they_would_say_nothing(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match='input_weights = "learned" must have several inputs'):
        dataclasses.replace(FUSES, **changed)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Six sessions of one recording each, in groups of two clips."""
    root = tmp_path_factory.mktemp("samples") / "project"
    rules = '[timeline]\nexclusive = [["ventilation", "stimulation"]]\n[samples]\nrule = "recording"\nmost_clips = 2\n'
    found = make_project(root, tiny_model, clips=8, extra=rules)
    assert make_clips(found).samples == 24
    extract(found)
    return found


def with_settings(project: Project, section: str) -> Project:
    """The project with another [train] or [samples]."""
    name = section.split("\n")[0]
    text = project.path.read_text().split(name)[0]
    project.path.write_text(f"{text.rstrip()}\n{section}\n")
    return open_project(project.root)


def test_samples_go_the_way_of_clips_from_training_to_compare(project: Project) -> None:
    for section in ("", '\nkind = "attention"\nepochs = 4', '\nkind = "linear"\ninputs = "concat(final/mean)"'):
        own = with_settings(project, f"[train]{section}")
        run = train(own)
        assert run.timeline is None
        assert "samples of several clips" in run.no_timeline_because
        scores = evaluate(own, run.bundle)
        assert (scores.metrics["n_clips"], scores.bundles[0].timelines) == (4, None)
        assert scores.metrics["exclusive_violations"] == [], "labels exclude each other in one clip, not in several"
        shown = " ".join(one for one in evaluation(scores, 100) if isinstance(one, str))
        for of_clips in (NO_TIMELINES, "failed_clips", "the clips' own labels"):
            shown = shown.replace(of_clips, "")
        assert "clip" not in shown, shown
        looks = WEIGHTS_NAME in {path.name for path in run.folder.iterdir()}
        assert looks == ("part_weights" in scores.metrics) == ("attention" in section)
        if looks:
            rows = (run.folder / WEIGHTS_NAME).read_text().splitlines()
            assert rows[0] == "sample,part,ventilation,stimulation"
            assert sum(float(row.split(",")[2]) for row in rows[1:]) == pytest.approx(4, abs=1e-3)
            assert scores.metrics["part_weights"]["ventilation"]["clips"] > 0
            assert re.search(r"stimulation undefined \(it is on in all \d+ of them\)", shown)
            assert "Which clips of a sample the head looks at" in report(own).path.read_text()
        (run.folder / WEIGHTS_NAME).unlink(missing_ok=True)
    assert tune(own, trials=2).best["inputs"] == "mean(final/mean)"
    evaluated = evaluate(own).looks
    left_out = leave_one_session_out(own).metrics
    assert (left_out["n_clips"], left_out["unit"]) == (24, "sample")
    assert left_out["looks"] == evaluated, "it is the evaluation of the same bundle on the same samples"
    table = compare(own)
    assert set(table.missing) <= {"FT-LC"}, "what scores clips cannot be made for samples"
    assert {row.run for row in table.rows} == {"train", "tune"}
    page = report(own).path.read_text()
    assert "4 samples of 1 sessions" in page
    for words in ("of 100 clips", "in every clip", "held-out clips", "clips with it", "share of clips"):
        assert words not in page, words
    for step in (
        lambda: review(own),
        lambda: retrain(own, run.bundle),
        lambda: map_clip(own, ""),
    ):
        with pytest.raises(BundleError, match=r"must be of a bundle that scores clips, but .* samples of several"):
            step()
    recordings = sorted({own.videos / one.recording for one in read_table(own.clips).clips if one.split == "test"})
    predicted = predict(own, recordings, bundle=run.bundle).samples
    assert predicted is not None
    bundle = load_bundle(run.bundle)
    source = scoring_data(own, bundle, own_table(own, bundle), FeatureCache.open(own.cache))
    test = source.load("test", bundle.selected).data
    scores_of = dict(zip((one.clip_id for one in predicted.samples), predicted.scores, strict=True))
    evaluated_scores = bundle.scores(test.of(bundle.settings.inputs).X, fingerprint=bundle.fingerprint)
    np.testing.assert_allclose([scores_of[name] for name in test.clip_ids or ()], evaluated_scores, rtol=1e-5)
    assert (predicted.seen, bundle.clips.most_clips, bundle.clips.roles) == (frozenset(), 2, ())
    groups_of_four = with_settings(own, '[samples]\nrule = "recording"\nmost_clips = 4\n[train]')
    with pytest.raises(BundleError, match=r"most_clips was 2 and is 4. Set most_clips = 2 under \[samples\]"):
        evaluate(groups_of_four, run.bundle)
    other = with_settings(own, '[samples]\nrule = "none"\n[train]')
    with pytest.raises(BundleError, match='samples as it was fitted on, but its are of rule = "recording"'):
        evaluate(other, run.bundle)
    train(other)
    own = with_settings(own, '[samples]\nrule = "recording"\nmost_clips = 2\n[train]')
    assert compare(own).left_out["train"].startswith("it scores clips, and here samples are several clips")


def test_samples_that_a_person_edited_are_read_by_the_rule_file_alone(project: Project) -> None:
    path = project.root / SAMPLES_NAME
    before = path.read_text()
    path.write_text(before.replace("from 0 s", "first"))
    own = with_settings(project, "[train]")
    for step in (train, make_clips):
        with pytest.raises(EditedTableError, match=r'samples.csv must be as .* Set rule = "file" under \[samples\]'):
            step(own)
    rows = [row.split(",") for row in path.read_text().splitlines()]
    path.write_text(
        "\n".join(",".join([*row, "ability" if at == 0 else "aabb"[(at - 1) % 4]]) for at, row in enumerate(rows))
    )
    own = with_settings(own, '[samples]\nrule = "file"\nslices = ["ability"]\n[train]')
    slices = evaluate(own, train(own).bundle).metrics["slices"]["ability"]
    assert {value: one["n_clips"] for value, one in slices.items()} == {"a": 2, "b": 2}
    assert all({"macro_f1", "macro_f1_ci95", "undefined"} <= one.keys() for one in slices.values())
    assert "Slices of the samples" in report(own).path.read_text()
    own = with_settings(own, '[samples]\nrule = "recording"\nmost_clips = 2\n[train]')
    make_clips(own, force=True)
    assert path.read_text() == before
    assert "first" in (project.root / "samples.edited.csv").read_text()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            '[train]\ninputs = "final/mean"',
            r"'linear' must read joined parts .* Write \"mean\(final/mean\)\", or concat",
        ),
        (
            '[train]\nkind = "weighted"\ninputs = "mean(final/mean)"',
            "'weighted' must read the parts of samples as they",
        ),
        ('[search]\ninputs = ["mean(final/mean)"]\nkind = ["linear", "attention"]', "'attention' must read the parts"),
        ('[search]\ninputs = ["mean(final/mean)", "final/mean"]', 'none of linear reads final/mean. .* "attention"'),
    ],
)
def test_what_a_kind_of_head_reads_of_samples_is_said_where_inputs_do_not_fit(
    project: Project, section: str, words: str
) -> None:
    own = with_settings(project, section.split("\n")[0])
    with pytest.raises(SettingsError, match=words):
        (train if "[train]" in section else tune)(with_settings(own, section))
    with_settings(own, section.split("\n")[0])


@pytest.mark.parametrize("inputs", ["concat(final/mean)", "pair(final/mean)", "mean(final/mean)", "final/mean"])
def test_a_camera_that_failed_in_training_or_at_test_time_costs_no_sample(project: Project, inputs: str) -> None:
    clips = read_table(project.clips).clips
    lines = ["sample,part,role,order,x"]
    for at, (one, other) in enumerate(zip(clips[::2], clips[1::2], strict=True)):
        parts = one.clip_id if at % 3 else "", other.clip_id if at % 3 != 1 else ""
        target = int(1 in (*one.targets[:1], *other.targets[:1]))
        lines += [
            f"{at},{part},{role},{place},{target}" for place, part, role in zip((1, 2), parts, ("a", "b"), strict=True)
        ]
    (project.root / SAMPLES_NAME).write_text("\n".join(lines))
    kind = "attention" if inputs == "final/mean" else "linear"
    own = with_settings(project, f'[samples]\nrule = "file"\n[train]\ninputs = "{inputs}"\nkind = "{kind}"\nepochs = 4')
    run = train(own)
    test = [clip for clip in clips if clip.split == "test"]
    assert evaluate(own, run.bundle).metrics["n_clips"] == len(test) // 2
    assert {row.run for row in compare(own).rows} == {"train"}
    bundle = load_bundle(run.bundle)
    X = np.full((1, 2, 32), np.nan, np.float32)
    X[0, 1] = 1.0
    scores = bundle.scores(joined(X, join_of(inputs)) if join_of(inputs) else X, fingerprint=bundle.fingerprint)
    assert np.isfinite(scores).all()
