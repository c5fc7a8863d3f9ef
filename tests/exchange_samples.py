"""Files of features to import: exports, those made by others, and seals of edited ones."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.store.proof import digest_of, proof_notes
from tests.cache_samples import (
    digest,
    make_rows,
    names,
    write,
)

RECORDINGS = {digest(name)[:16]: digest(name) for name in "ab"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "cache", [*make_rows(6), *make_rows(3, "b")], max_rows=4)
    return tmp_path / "cache"


def all_names() -> list[str]:
    return names([*make_rows(6), *make_rows(3, "b")])


def made_by_others(path: Path, features: np.ndarray, clip_ids: list[str]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, features=features, clip_id=np.array(clip_ids))
    else:
        with h5py.File(path, "w") as file:
            file["features"], file["clip_id"] = features, clip_ids
    return path


def seal(path: Path) -> None:
    """Let an edited export prove what it holds now."""
    with h5py.File(path, "r+") as file:
        texts = {name: text for name, text in file.attrs.items() if not name.startswith("proof")}
        file.attrs.update(proof_notes({name: digest_of(found[()]) for name, found in file.items()}, texts))
