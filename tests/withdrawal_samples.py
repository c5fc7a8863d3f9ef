"""What a cache holds of a recording that is withdrawn."""

import shutil
from pathlib import Path

from featurecache.store import (
    Row,
    format,
    layout,
)
from tests.cache_samples import (
    digest,
    make_rows,
    segments,
    space,
    write,
)

GONE = "withdrawn"


def traces(root: Path, recording: str, rows: list[Row]) -> list[str]:
    """Files that hold anything of a recording: its digest in bytes or text, a key, a feature."""
    needles = [bytes.fromhex(digest(recording)), digest(recording).encode(), digest(recording)[:16].encode()]
    for row in rows:
        needles += [row.feature.tobytes(), row.feature.tobytes()[:16]]
        needles += [format.row_key(space().fingerprint, row.video_sha256, row.start_us, row.end_us)]
    return [
        f"{path}: {needle[:8]!r}"
        for path in root.rglob("*")
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]


def write_mixed(root: Path) -> Path:
    """Rows of a recording that stays and one that goes, mixed in every segment of a new cache."""
    mixed = [row for pair in zip(make_rows(6), make_rows(6, GONE), strict=True) for row in pair]
    write(root, mixed, max_rows=4)
    return root


def space_folder(root: Path) -> Path:
    return segments(root)[0].parents[1]


def half_removed_space(root: Path) -> None:
    copy = root / f".{format.new_segment_id()}{layout.TRASH}"
    shutil.copytree(space_folder(root), copy)
    (copy / "zarr.json").unlink()


def copied_segment(root: Path) -> None:
    shutil.copytree(segments(root)[0], segments(root)[0].with_name(f".{segments(root)[0].name}.Xy8f3a"))


def copied_features(root: Path) -> None:
    """A copy program's unfinished file, of features alone."""
    whole = segments(root)[0] / "features" / "c.0.0"
    whole.with_name(".c.0.0.Xy8f3a").write_bytes(whole.read_bytes()[:-7])
