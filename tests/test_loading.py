"""From table and cache to arrays: clips that touch what scores them are purged, failed ones left out and counted."""

import dataclasses

import numpy as np
import pytest

from featurecache import FeatureCache
from featurecache.clips.clip import Clip, ClipTable
from featurecache.errors import MissingFeaturesError, TrainingDataError
from featurecache.extraction.failures import KnownFailures
from featurecache.spec import FeatureSpace
from heads.loading import load_all_splits, load_split
from tests.cache_samples import make_rows, names, space, values, write

SPACE = space()
SPACES = {"final/mean": SPACE}
ROWS = make_rows(8) + make_rows(2, "b")
SPLITS = ("train", "train", "train", "validation", "validation", "test", "", "train", "train", "train")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    root = tmp_path_factory.mktemp("cache") / "features.zarr"
    write(root, ROWS)
    return FeatureCache.open(root)


def table(splits: tuple[str, ...] = SPLITS) -> ClipTable:
    """Ten touching clips of one recording, and two of another; clip 0 is on."""
    clips = [
        Clip(name, row.video_sha256[:8], row.video_sha256[:8], split, row.start_us, row.end_us, (int(number == 0),))
        for number, (name, row, split) in enumerate(zip(names(ROWS), ROWS, splits, strict=True))
    ]
    return ClipTable(("x",), tuple(clips))


def test_load_split_purges_training_clips_that_touch_clips_that_score_them(cache: FeatureCache) -> None:
    loaded = load_split(table(), "train", cache, SPACES)
    kept = [0, 1, 7, 8, 9]
    assert loaded.data.clip_ids == tuple(names(ROWS)[row] for row in kept)
    np.testing.assert_array_equal(loaded.data.of("final/mean").X, values(ROWS)[kept])
    assert loaded.data.Y.ravel().tolist() == [1, 0, 0, 0, 0]
    assert (loaded.purged, loaded.left_out) == (1, 0)
    assert load_split(table(), "validation", cache, SPACES).purged == 1
    assert load_split(table(), "test", cache, SPACES).purged == 0


GONE = dataclasses.replace(table().clips[0], clip_id="f" * 16 + "-0-3000000")
"""A labelled training clip that the cache lacks."""


def test_load_split_leaves_out_clips_that_the_cache_lacks_for_a_known_reason_and_no_others(cache: FeatureCache) -> None:
    with_gone = ClipTable(("x",), (*table().clips, GONE))
    known = {(GONE.clip_id, SPACE.fingerprint): "torn", (names(ROWS)[0], SPACE.fingerprint): "the cache has it by now"}
    loaded = load_split(with_gone, "train", cache, SPACES, known=KnownFailures(known))
    assert (loaded.left_out, loaded.purged, len(loaded.data.clip_ids)) == (1, 1, 5)
    for unknown in (KnownFailures(), KnownFailures({(GONE.clip_id, "another feature space"): "torn"})):
        with pytest.raises(MissingFeaturesError):
            load_split(with_gone, "train", cache, SPACES, known=unknown)


def test_load_split_leaves_out_clips_that_a_needed_space_lacks_though_it_is_not_read(cache: FeatureCache) -> None:
    tokens = FeatureSpace({**SPACE.inputs, "pooling": "tokens"})
    known = KnownFailures({(names(ROWS)[0], tokens.fingerprint): "torn"})
    assert load_split(table(), "train", cache, SPACES, known=known).left_out == 0
    assert load_split(table(), "train", cache, SPACES, known=known, needed=[tokens]).left_out == 1


def test_load_split_says_what_was_purged_when_nothing_is_left(cache: FeatureCache) -> None:
    splits = ("train", "test", "train", "test", *[""] * 6)
    with pytest.raises(TrainingDataError, match="0 labelled clips besides 2 that touch clips which score them"):
        load_split(table(splits), "train", cache, SPACES)


def test_load_split_points_to_the_list_of_failures_when_all_clips_failed(cache: FeatureCache) -> None:
    known = KnownFailures({(GONE.clip_id, SPACE.fingerprint): "torn"})
    with pytest.raises(TrainingDataError, match=r"1 labelled clips? and features of none\. See failed_clips\.csv"):
        load_split(ClipTable(("x",), (GONE,)), "train", cache, SPACES, known=known)


def test_load_all_splits_purges_nothing_and_leaves_out_what_has_no_split(cache: FeatureCache) -> None:
    loaded = load_all_splits(table(), cache, SPACES)
    assert len(loaded.data.clip_ids) == 9
    assert names(ROWS)[6] not in loaded.data.clip_ids
