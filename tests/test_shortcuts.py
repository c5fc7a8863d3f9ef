"""Shortcuts: clusters by which a head tells a label in training sessions alone, and a head fitted without them."""

import csv
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache.clips.csv_file import read_table
from featurecache.errors import BundleError, SettingsError, TrainingDataError, UsageError
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project, open_project
from heads.bundle import load_bundle
from heads.data import LabelledSplit, LearningData
from heads.scoring.shortcuts import label_gaps, listed, needed_together
from heads.settings import HeadSettings
from heads.terminal.shortcuts import audited
from heads.workflow.ignoring import ignore
from heads.workflow.leaving_out import leave_one_session_out
from heads.workflow.retraining import retrain
from heads.workflow.session_weights import SessionWeights, session_weights
from heads.workflow.shortcuts import Shortcuts, shortcuts
from heads.workflow.training import train
from tests.commands import invoke, run
from tests.projects import LABELS, fill_cache, make_project, make_table

SETTINGS = """
[splits]
train = 0.55
validation = 0.35
test = 0.1
[train]
solver = "convex"
"""


def _drawn_parts(seed: int, *, sessions: int = 10, clusters: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips whose clusters add much where the label is on, more in some sessions than in others, and depend on each
    other within sessions: parts (N, K), y (N,), sessions (N,)."""
    draw = np.random.default_rng(seed)
    names = np.repeat([f"s{number:02d}" for number in range(sessions)], 12)
    y = np.tile([0, 0, 1, 1], len(names) // 4)
    strength = np.repeat(draw.gamma(1, 1, (sessions, clusters)), 12, axis=0)
    shared = np.repeat(draw.standard_normal((sessions * 3, clusters)), 4, axis=0)
    return strength * y[:, None] + shared + 0.3 * draw.standard_normal((len(names), clusters)), y, names


def test_sessions_that_differ_by_chance_give_no_shortcut_more_often_than_the_rate_says() -> None:
    wrong = 0
    for seed in range(60):
        gaps = []
        for label in range(2):
            parts, y, sessions = _drawn_parts(2 * seed + label)
            validation = np.random.default_rng(seed).permutation(np.unique(sessions))[:3]
            gaps.append(label_gaps(parts, y, sessions, np.isin(sessions, validation)))
        wrong += listed(gaps, 0.1).any()
    assert wrong <= 11  # of 60 at a rate of 0.1: more have a probability of 0.03


def test_cluster_of_training_sessions_alone_is_listed_and_one_that_all_sessions_share_is_not() -> None:
    parts, y, sessions = _drawn_parts(0)
    is_validation = np.isin(sessions, ["s01", "s05", "s08"])
    parts[:, 3] = 2.0 * y * ~is_validation + 0.01 * parts[:, 3]
    parts[:, 4] = 5.0 * y + 0.01 * parts[:, 4]  # looks like the label everywhere
    gaps = label_gaps(parts, y, sessions, is_validation)
    assert np.flatnonzero(listed([gaps], 0.05)[0]).tolist() == [3]
    assert gaps.gap.argmax() == 3
    assert gaps.gap[3] == pytest.approx(2, abs=0.1)
    assert listed([label_gaps(parts, y, sessions, ~is_validation)], 0.05).sum() == 0, "the other way round"


def test_p_values_are_the_share_of_all_ways_to_divide_sessions_whose_largest_gap_is_as_large() -> None:
    parts, y, sessions = _drawn_parts(5, sessions=6, clusters=4)
    gaps = label_gaps(parts, y, sessions, np.isin(sessions, ["s00", "s03"]))
    names = np.unique(sessions)
    separation = {
        name: parts[(sessions == name) & (y == 1)].mean(0) - parts[(sessions == name) & (y == 0)].mean(0)
        for name in names
    }
    largest = []
    for chosen in itertools.combinations(names, 2):
        others = [separation[name] for name in names if name not in chosen]
        largest.append((np.mean(others, axis=0) - np.mean([separation[name] for name in chosen], axis=0)).max())
    expected = [(np.array(largest) >= gap - 1e-9).mean() for gap in gaps.gap]
    np.testing.assert_allclose(gaps.p, expected)
    assert gaps.least_p == pytest.approx(1 / 15)


@pytest.mark.parametrize("told", [[], ["s00"], ["s05"], ["s00", "s05"], ["s00", "s01", "s05"], ["s00", "s05", "s06"]])
def test_label_that_fewer_than_two_sessions_of_a_split_tell_is_not_tested_and_lists_nothing(told: list[str]) -> None:
    parts, y, sessions = _drawn_parts(0)
    is_validation = np.isin(sessions, ["s00", "s01", "s02"])
    y = np.where(np.isin(sessions, told), y, 0)
    gaps = label_gaps(parts, y, sessions, is_validation)
    assert (gaps.least_p, gaps.p.min()) == (1.0, 1.0)
    assert not listed([gaps], 0.5).any()


def test_weights_that_explain_a_session_are_of_heads_that_never_saw_it() -> None:
    draw = np.random.default_rng(0)
    sessions = np.repeat([f"s{number:02d}" for number in range(7)], 8)
    Y = np.stack([np.arange(56) % 8 < 3, np.arange(56) == 1], axis=1).astype(np.int8)
    X, is_validation = draw.standard_normal((56, 12)).astype(np.float32), sessions >= "s05"

    def weights(X: np.ndarray) -> SessionWeights:
        splits = [
            LabelledSplit({"a/mean": X[of], "b/mean": X[of, :3]}, Y[of], sessions[of])
            for of in (~is_validation, is_validation)
        ]
        settings = HeadSettings(solver="convex", inputs="b/mean+a/mean")
        data = LearningData(*splits, ("hands", "once"), {})
        return session_weights(data, settings, ("b/mean", "a/mean"), "a/mean", device="cpu")

    before, after = weights(X), weights(np.where(sessions[:, None] == "s02", draw.permuted(X, axis=0), X))
    assert before.of("s02").shape == (2, 12)
    np.testing.assert_allclose(after.of("s02")[0], before.of("s02")[0], rtol=1e-4)
    assert abs(after.of("s03")[0] - before.of("s03")[0]).max() > 0.01
    assert np.isnan(before.of("s02")[1]).all(), "a label of one session alone"
    assert np.isnan(before.scores[:, 1]).all()


def test_label_that_few_sessions_keep_from_being_listed_alone_is_told_how_many_must_go_together() -> None:
    gaps = []
    for label in range(3):
        parts, y, sessions = _drawn_parts(label, sessions=7)
        is_validation = np.isin(sessions, ["s01", "s05"])
        if label == 0:
            parts[:, 3] = 50.0 * y * ~is_validation
        gaps.append(label_gaps(parts, y, sessions, is_validation))
    assert gaps[0].p.min() == pytest.approx(1 / 21)
    assert (listed(gaps, 0.1).any(), needed_together(gaps, 0.1)) == (False, [2, 2, 2])
    assert (listed(gaps, 0.15).any(), needed_together(gaps, 0.15)) == (True, [1, 1, 1])
    assert (listed(gaps[:1], 0.1).any(), needed_together(gaps[:1], 0.1)) == (True, [1])
    assert needed_together(gaps, 0.04) == [None] * 3
    found = Shortcuts(Path("b"), "final/mean", 0.1, 84, 8, dict(zip("abc", gaps, strict=True)), (), (), (), Path("f"))
    lines = [str(piece) for piece in audited(found)]
    assert sum("cannot be listed alone" in line and "at least 2 labels" in line for line in lines) == 3
    assert {one["needed_together"] for one in found.to_mapping()["labels"].values()} == {2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Eleven sessions of eight clips without features."""
    project = make_project(
        tmp_path_factory.mktemp("shortcuts") / "project",
        tiny_model,
        sessions=11,
        clips=8,
        features='select = ["final/mean", "final/tokens", "final/frames"]',
        extra=SETTINGS,
    )
    make_table(project)
    return project


def _filled(drawn: Project, root: Path, *, cue: bool, poolings: tuple[str, ...] = ("mean", "tokens")) -> Project:
    """Sessions of a look of their own, in which some tokens show the activities, and in training also a cue."""
    project = open_project(Path(shutil.copytree(drawn.root, root)))
    model, _ = project_spaces(project)
    steps, places, width = model.taps["final"].steps, model.taps["final"].tokens_per_step, model.taps["final"].width
    draw = np.random.default_rng(0)
    activities, shown = draw.standard_normal((len(LABELS), width)), draw.standard_normal(width)
    looks: dict[str, np.ndarray] = {}
    tokens = {}
    for clip in read_table(project.clips).clips:
        look = looks.setdefault(clip.session, draw.standard_normal((steps, places, width)))
        own = 2 * look + 0.7 * draw.standard_normal((steps, places, width))
        for at, is_on in enumerate(clip.targets):
            if is_on and draw.random() < 0.8:
                own[draw.random((steps, places)) < 0.3] += 1.5 * activities[at]
        if cue and clip.split == "train" and clip.targets[0] == 1:
            own[1:3, 0] += 5 * shown
        tokens[clip.clip_id] = own.reshape(-1, width)
    of = {"mean": lambda own: own.mean(0), "tokens": lambda own: own, "frames": lambda own: own}
    of["frames"] = lambda own: own.reshape(steps, places, width).mean(1)
    for pooling in poolings:
        fill_cache(project, {clip: of[pooling](own) for clip, own in tokens.items()}, f"final/{pooling}")
    train(project)
    return project


@pytest.fixture(scope="module")
def with_cue(drawn: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return _filled(drawn, tmp_path_factory.mktemp("cue") / "project", cue=True)


def _bundle(project: Project) -> Path:
    return project.runs / "train" / "bundle"


def test_cue_of_training_sessions_is_the_first_cluster_with_its_moments_and_pictures(with_cue: Project) -> None:
    document = run("shortcuts", "--with-frames", "--bundle", _bundle(with_cue), "--config", with_cue.root, code=1)
    first = document["shortcuts"][0]
    assert first["label"] == LABELS[0]
    assert first["training"] > first["validation"] + 0.5
    assert {one["label"] for one in document["shortcuts"]} == {LABELS[0]}
    clips = {clip.clip_id: clip for clip in read_table(with_cue.clips).clips}
    shown = [one for one in document["examples"] if one["kind"] == "cluster and label"]
    assert shown
    for one in shown:
        clip = clips[one["clip_id"]]
        assert (clip.split, clip.targets[0]) == ("train", 1)
        assert clip.start_us + 200_000 < 1e6 * float(one["at_s"]) < clip.end_us - 200_000, "where the cue is"
        assert (with_cue.runs / "shortcuts" / one["picture"]).read_bytes().startswith(b"\xff\xd8\xff")
    assert not {clips[one["clip_id"]].split for one in document["examples"]} & {"test"}
    with (with_cue.runs / "shortcuts" / "clusters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(LABELS) * document["clusters"]
    assert sum(int(row["listed"]) for row in rows) == len(document["shortcuts"])


def test_without_the_cue_nothing_is_listed(drawn: Project, tmp_path: Path) -> None:
    project = _filled(drawn, tmp_path / "project", cue=False)
    done = invoke("shortcuts", "--bundle", _bundle(project), "--config", project.root)
    assert (done.exit_code, "no cluster is listed" in done.stdout) == (0, True), done.output


@pytest.mark.parametrize("pooling", ["frames", "mean"])
def test_cue_is_found_by_frames_and_by_vectors_of_clips_where_no_tokens_are_cached(
    drawn: Project, tmp_path: Path, pooling: str
) -> None:
    project = _filled(drawn, tmp_path / "project", cue=True, poolings=tuple({"mean", pooling}))
    found = shortcuts(project, bundle=_bundle(project))
    assert found.feature == f"final/{pooling}"
    assert (found.found or found.nearest)[0].label == LABELS[0]
    assert found.found, [one.p for one in found.nearest]


def test_head_fitted_without_the_cue_has_weights_that_are_orthogonal_to_it_and_says_so(with_cue: Project) -> None:
    number = shortcuts(with_cue, bundle=_bundle(with_cue)).found[0].cluster
    assert not list((with_cue.runs / "shortcuts").glob("*.jpg")), "frames of an earlier audit"
    document = run("shortcuts", "--ignore", number, "--bundle", _bundle(with_cue), "--config", with_cue.root)
    from safetensors.numpy import load_file

    centre = load_file(with_cue.runs / "shortcuts" / "centres.safetensors")["centres"][number]
    before, after = load_bundle(_bundle(with_cue)), load_bundle(Path(document["bundle"]))
    X = 0.1 * np.random.default_rng(0).standard_normal((20, len(centre))).astype(np.float32)

    def change(bundle) -> float:
        moved = X + 0.1 * centre.astype(np.float32)  # a step whose scores are not yet rounded to 1
        scores = [bundle.scores(one, fingerprint=bundle.fingerprint).astype(np.float64) for one in (X, moved)]
        return float(abs(np.diff([np.log(one / (1 - one)) for one in scores], axis=0)).max())

    assert change(after) < 1e-3 < change(before)
    assert after.ignored is not None
    assert (after.ignored["clusters"], after.ignored["audited"]) == ([number], before.digest)
    own = document["average_precision"][LABELS[0]]
    assert own["train"][1] < own["train"][0], "the cue helped on training sessions"
    assert own["validation"][1] > own["validation"][0] - 0.05
    assert document["before"]["macro_f1"] is not None
    for refit in (leave_one_session_out, retrain):
        with pytest.raises(BundleError, match="fitted without clusters"):
            refit(with_cue, Path(document["bundle"]))
    with pytest.raises(BundleError, match="fitted without clusters"):
        shortcuts(with_cue, bundle=Path(document["bundle"]))
    with pytest.raises(SettingsError, match="of the last audit, 0 to"):
        ignore(with_cue, [9999], bundle=_bundle(with_cue))


def test_what_cannot_be_audited_or_ignored_is_refused_in_words(with_cue: Project) -> None:
    with pytest.raises(BundleError, match="a mean that the head reads"):
        shortcuts(with_cue, bundle=_bundle(with_cue), feature="final/motion")
    (with_cue.runs / "shortcuts" / "centres.safetensors").unlink(missing_ok=True)
    with pytest.raises(BundleError, match="Run: featurecache shortcuts"):
        ignore(with_cue, [1], bundle=_bundle(with_cue))
    wrong = ("shortcuts", "--ignore", 1, "--with-frames", "--config", with_cue.root)
    assert invoke(*wrong).exit_code == 2
    for rate in (float("nan"), 0.0, 2.0):
        with pytest.raises(UsageError, match=rf"share of wrong ones .* but it is {rate:g}\."):
            shortcuts(with_cue, bundle=_bundle(with_cue), rate=rate)
    with pytest.raises(UsageError, match="from 0, but -1 is named"):
        ignore(with_cue, [-1], bundle=_bundle(with_cue))


def test_tokens_that_are_all_alike_within_sessions_are_refused(with_cue: Project, tmp_path: Path) -> None:
    from featurecache import FeatureCache
    from heads.workflow.token_clusters import cluster_tokens

    project = open_project(Path(shutil.copytree(with_cue.root, tmp_path / "project")))
    clips = read_table(project.clips).clips[:1]
    space = project_spaces(project)[1]["final/tokens"]
    with pytest.raises(TrainingDataError, match="differ within their sessions"):
        cluster_tokens(
            FeatureCache.open(project.cache), space, (clips[0].clip_id,), np.array(["S0"]), lambda _: np.zeros((2, 8))
        )
