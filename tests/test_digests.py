"""The digest memo by itself: how it is used for recordings is in test_recordings."""

import hashlib
import json
from pathlib import Path

import pytest

from featurecache.video.digests import DigestMemo


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_sha256_is_that_of_the_content_with_and_without_a_place(weights: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(b"weights").hexdigest()
    for place in (None, tmp_path / "memo.json", tmp_path / "memo.json"):
        memo = DigestMemo(place)
        assert memo.sha256(weights) == expected
        memo.save()
    [entry] = json.loads((tmp_path / "memo.json").read_bytes())["files"].values()
    assert entry["sha256"] == expected


def test_recall_gives_facts_only_to_the_source_that_learned_them(weights: Path, tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "memo.json")
    memo.sha256(weights)
    assert memo.recall(weights, "probe 1") is None
    memo.remember(weights, "probe 1", {"width": 3})
    assert memo.recall(weights, "probe 1") == {"width": 3}
    assert memo.recall(weights, "probe 2") is None


def test_remember_refuses_when_the_file_has_changed(weights: Path) -> None:
    memo = DigestMemo(None)
    memo.sha256(weights)
    weights.write_bytes(b"other weights")
    with pytest.raises(OSError, match="changed while it was read"):
        memo.remember(weights, "probe", {})


def test_sha256_follows_links_to_their_content(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    link = tmp_path / "snapshot"
    link.symlink_to(weights)
    memo = DigestMemo(None)
    assert memo.sha256(link) == hashlib.sha256(b"weights").hexdigest()
    link.unlink()
    link.symlink_to(tmp_path / "other")
    assert memo.sha256(link) == hashlib.sha256(b"other").hexdigest()


def test_save_keeps_the_memo_when_nothing_was_learned(weights: Path, tmp_path: Path) -> None:
    DigestMemo(tmp_path / "memo.json").save()
    assert list(tmp_path.iterdir()) == [weights]
