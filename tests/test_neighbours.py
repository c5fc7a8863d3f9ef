"""Exact nearest clips, pairs that annotators should look at, and copies across splits."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import ClipTableError, SettingsError
from featurecache.project.settings import Project, open_project
from featurecache.store import Row, bfloat16
from featurecache.store.approximate import likely_nearest
from featurecache.store.nearest import BLOCK_ROWS, Directions, nearest
from featurecache.workflow.copied_recordings import Clips, copied_recordings
from featurecache.workflow.neighbours import confusions, duplicates, neighbours
from tests.cache_samples import digest, make_rows, names, space, write
from tests.commands import invoke, run
from tests.projects import fill_cache, make_project, make_table

WIDTH = 32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_nearest_clips_are_those_of_all_cosines_at_once_however_blocks_cut_them(tmp_path: Path, dtype: str) -> None:
    rows, of = make_rows(2 * BLOCK_ROWS + 100), space(stored_dtype=dtype)
    values = np.stack([row.feature for row in rows]).astype(np.float32) + 5
    stored = bfloat16.from_float32(values) if dtype == "bfloat16" else values.astype(np.float16)
    kept = bfloat16.to_float32(stored) if dtype == "bfloat16" else stored.astype(np.float32)
    rows = [
        Row(r.video_sha256, r.start_us, r.end_us, one, r.timestamps_us) for r, one in zip(rows, stored, strict=True)
    ]
    write(tmp_path, rows, of=of)
    directions = Directions(FeatureCache.open(tmp_path), names(rows), of.fingerprint)
    queries, candidates = np.arange(0, len(rows), 2), np.arange(1, len(rows), 2)
    found, cosines = nearest(
        directions, queries, candidates, top=3, allowed=lambda one, other: abs(one[:, None] - other) > 1
    )
    spread = np.unique(np.linspace(0, len(rows) - 1, 4096).astype(int))
    vectors = kept.astype(np.float64) - kept[spread].astype(np.float64).mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = vectors[queries] @ vectors[candidates].T
    whole[abs(queries[:, None] - candidates) <= 1] = -2
    best = np.sort(whole, axis=1)[:, :-4:-1]
    np.testing.assert_allclose(cosines, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(whole, found // 2, axis=1), best, atol=1e-5)


def test_fewer_neighbours_than_asked_are_told_as_none(tmp_path: Path) -> None:
    rows = make_rows(3)
    write(tmp_path, rows)
    directions = Directions(FeatureCache.open(tmp_path), names(rows), space().fingerprint)
    found, _ = nearest(directions, np.array([0]), np.arange(3), top=5, allowed=lambda one, other: one[:, None] != other)
    assert sorted(found[0].tolist()) == [-1, -1, -1, 1, 2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Ten sessions of eight clips with features of no clip like another's, but for what `_planted` adds."""
    project = make_project(tmp_path_factory.mktemp("near") / "project", tiny_model, sessions=10, clips=8)
    make_table(project)
    return project


def _planted(project: Project, pairs: int = 0, *, recompressed: bool = False, seed: int = 0) -> list[tuple[str, str]]:
    """Fills the cache with drawn features, of which so many scoring clips are nearly a training clip's.

    Where `recompressed`, one test recording is also one training recording with noise, and off it by what an encoding
    does to all of its clips.
    """
    draw = np.random.default_rng(seed)
    clips = read_table(project.clips).clips
    common = draw.standard_normal(WIDTH) * 5  # the large shared direction of hidden states
    features = {clip.clip_id: common + draw.standard_normal(WIDTH) for clip in clips}
    scoring = [clip.clip_id for clip in clips if clip.split in ("validation", "test")]
    training = [clip.clip_id for clip in clips if clip.split == "train"]
    chosen = list(
        zip(draw.permutation(training)[:pairs].tolist(), draw.permutation(scoring)[:pairs].tolist(), strict=True)
    )
    for learns, scores in chosen:
        features[scores] = features[learns] + 0.02 * draw.standard_normal(WIDTH)
    if recompressed:
        first = {split: next(clip.recording for clip in clips if clip.split == split) for split in ("train", "test")}
        of = {(clip.recording, clip.start_us): clip.clip_id for clip in clips}
        off = 3 * draw.standard_normal(WIDTH)
        for (recording, start_us), clip_id in of.items():
            if recording == first["test"]:
                features[clip_id] = features[of[first["train"], start_us]] + off + 0.5 * draw.standard_normal(WIDTH)
    fill_cache(project, features)
    return chosen


@pytest.fixture
def project(drawn: Project, tmp_path: Path) -> Project:
    return open_project(Path(shutil.copytree(drawn.root, tmp_path / "project")))


def test_twenty_planted_copies_across_splits_are_all_found_and_nothing_else(project: Project) -> None:
    planted = _planted(project, 20)
    found = duplicates(project)
    assert {(pair.clip.clip_id, pair.other.clip_id) for pair in found.pairs} == set(planted)
    assert len(planted) == 20
    document = run("neighbours", "--duplicates", "--config", project.root, code=1)
    assert len(document["pairs"]) == 20
    with (project.runs / "duplicates.csv").open(newline="") as file:
        assert {row["other_split"] for row in csv.DictReader(file)} <= {"validation", "test"}


def test_clips_that_only_share_what_all_clips_share_are_no_copies(project: Project) -> None:
    _planted(project)
    assert duplicates(project).pairs == ()
    done = invoke("neighbours", "--duplicates", "--config", project.root)
    assert (done.exit_code, "none that scores is a copy" in done.stdout) == (0, True)


def test_a_recording_in_another_encoding_is_found_though_no_clip_of_it_is_nearly_identical(project: Project) -> None:
    _planted(project, recompressed=True)
    found = duplicates(project)
    assert max(pair.cosine for pair in found.pairs) < 0.99
    assert len(found.pairs) == 8
    assert {pair.other.start_us - pair.clip.start_us for pair in found.pairs} == {0}
    assert len({(pair.clip.recording, pair.other.recording) for pair in found.pairs}) == 1


@pytest.mark.parametrize("recompressed", [False, True])
def test_index_finds_the_copies_and_confusions_that_exact_search_finds_and_tells_its_recall(
    project: Project, recompressed: bool
) -> None:
    pytest.importorskip("faiss", reason="needs the extra `index`")
    _planted(project, 0 if recompressed else 20, recompressed=recompressed)
    for find in (duplicates, confusions):
        exact, near = find(project), find(project, by_index=True)
        assert [(one.clip, one.other) for one in near.pairs] == [(one.clip, one.other) for one in exact.pairs]
        np.testing.assert_allclose([one.cosine for one in near.pairs], [one.cosine for one in exact.pairs], atol=1e-5)
        assert (exact.recall, near.recall) == (None, 1.0)
    done = invoke("neighbours", "--duplicates", "--index", "--config", project.root)
    assert (done.exit_code, "it found the nearest of 100%" in done.stdout) == (1, True), done.output
    assert invoke("neighbours", near.pairs[0].clip.clip_id, "--index", "--config", project.root).exit_code == 2


def test_index_of_many_cells_misses_few_of_the_nearest_and_tells_no_wrong_cosine(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs the extra `index`")
    draw = np.random.default_rng(0)
    looks = draw.standard_normal((30, 300)) * np.arange(1, 301) ** -0.5
    features = looks[np.arange(9_000) // 300] + 0.5 * draw.standard_normal((9_000, 300)) * np.arange(1, 301) ** -0.5
    rows = [
        Row(r.video_sha256, r.start_us, r.end_us, one, r.timestamps_us)
        for r, one in zip(make_rows(len(features)), features.astype(np.float16), strict=True)
    ]
    write(tmp_path, rows, of=space())
    directions = Directions(FeatureCache.open(tmp_path), names(rows), space().fingerprint)
    recording, everyone = np.arange(9_000) // 300, np.arange(9_000)
    queries = draw.permutation(everyone)[:500]

    def allowed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return recording[one, None] != recording[other]

    found, cosines = likely_nearest(directions, queries, everyone, allowed=allowed, alike=recording)
    exact = nearest(directions, queries, everyone, top=1, allowed=allowed)[1]
    assert (recording[found[:, 0]] != recording[queries]).all()
    np.testing.assert_allclose(
        cosines[:, 0], np.einsum("nd,nd->n", directions.of(queries), directions.of(found[:, 0])), atol=1e-5
    )
    assert (cosines >= exact - 1e-5).mean() > 0.9


@pytest.mark.parametrize(("stride_us", "found"), [(3_000_000, 8), (1_500_000, 0)])
def test_a_few_overlapping_clips_that_change_slowly_alike_make_no_copy(
    tmp_path: Path, stride_us: int, found: int
) -> None:
    draw = np.random.default_rng(0)
    changes = np.cumsum(draw.standard_normal((8, WIDTH)), axis=0)
    starts_us = stride_us * np.tile(np.arange(8), 2)
    rows = [
        Row(digest(recording), start, start + 3_000_000, feature.astype(np.float16), start + np.arange(4))
        for recording, start, feature in zip(
            ["a"] * 8 + ["b"] * 8, starts_us.tolist(), np.concatenate([changes, changes + 20]), strict=True
        )
    ]
    write(tmp_path, rows)
    directions = Directions(FeatureCache.open(tmp_path), names(rows), space().fingerprint)
    recording = np.repeat([0, 1], 8)
    clips = Clips(directions, recording, starts_us, starts_us + 3_000_000, rank=recording)
    assert len(copied_recordings(clips, by_index=False)) == found


def test_confusions_differ_in_targets_and_show_no_test_clip_and_no_clip_twice(project: Project) -> None:
    _planted(project)
    found = confusions(project, top=15)
    assert found.pairs
    shown = [clip for pair in found.pairs for clip in (pair.clip, pair.other)]
    assert len({clip.clip_id for clip in shown}) == len(shown)
    assert {clip.split for clip in shown} <= {"train", "validation"}
    assert all(pair.clip.targets != pair.other.targets for pair in found.pairs)
    assert all(pair.clip.recording != pair.other.recording for pair in found.pairs)
    cosines = [pair.cosine for pair in found.pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert "for annotators" in invoke("neighbours", "--confusions", "--config", project.root).stdout


def test_neighbours_of_a_clip_leave_out_the_same_moment_and_do_not_tell_what_is_on_in_test(project: Project) -> None:
    _planted(project)
    clips = read_table(project.clips).clips
    found = neighbours(project, clips[3].clip_id, top=len(clips))
    others = {pair.other.clip_id for pair in found.pairs}
    assert not others & {clip.clip_id for clip in clips[2:5]}
    assert len(others) == len(clips) - 3
    for row in found.to_mapping()["pairs"]:
        assert (row["other_on"] == "not told") == (row["other_split"] == "test")
    listed = invoke("neighbours", clips[3].clip_id, "--config", project.root, "--top", 2).stdout
    assert "re-identify" in listed
    assert found.pairs[0].other.clip_id in listed


def test_what_names_no_clip_or_no_vector_is_refused_in_words(project: Project) -> None:
    _planted(project)
    with pytest.raises(ClipTableError, match="that has a feature"):
        neighbours(project, "S0.mp4")
    assert invoke("neighbours", "--config", project.root).exit_code == 2
    assert invoke("neighbours", "x", "--duplicates", "--config", project.root).exit_code == 2
    rows = [Row(r.video_sha256, r.start_us, r.end_us, np.stack([r.feature] * 2), r.timestamps_us) for r in make_rows(2)]
    frames = space(pooling="frames")
    write(project.root / "frames", rows, of=frames)
    with pytest.raises(SettingsError, match="one vector a clip"):
        Directions(FeatureCache.open(project.root / "frames"), names(rows), frames.fingerprint)
