"""Operations of care and exchange that are killed, or whose disk is full, sick or read-only."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featurecache.errors import CacheReadError, CacheWriteError
from featurecache.store import compact, gc
from featurecache.store.exchange import export_features
from tests.cache_samples import FaultyOs, fails_with, file_system, make_rows, segments, serves, write
from tests.crash_store import CARE, check_interrupted, check_run_again, leftovers, prepared

pytestmark = pytest.mark.usefixtures("unsynced")
ROOT = Path(__file__).parents[1]
POINTS = {"import": 4}  # of each operation, where it fails; an import starts a process each time


def test_fault_31_care_killed_at_any_operation_loses_nothing_and_leaves_nothing_when_run_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_store", "care", str(tmp_path), "97"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == list(CARE)
    for name, one in found.items():
        assert one["killed"] > 2, name
        assert one["bad"] == [], name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", CARE)
def test_care_whose_disk_fails_loses_nothing_says_so_in_one_line_and_can_be_run_again(
    tmp_path: Path, operation: str, code: int
) -> None:
    root, at_once, after = prepared(tmp_path, operation)
    begun, counted = root.rename(tmp_path / "begun"), FaultyOs(-1, fails_with(0))
    shutil.copytree(begun, root)
    with file_system(counted):
        CARE[operation](root)
    told, full = [], []
    for at in range(0, len(counted.calls), 1 + len(counted.calls) // POINTS.get(operation, 12)):
        shutil.rmtree(root)
        shutil.copytree(begun, root)
        with file_system(FaultyOs(at, fails_with(code))):
            try:
                CARE[operation](root)
            except (CacheWriteError, CacheReadError) as error:
                told.append(str(error))
                full.append(isinstance(error, CacheWriteError) and code == errno.ENOSPC)
        check_interrupted(root, at_once)
        check_run_again(root, operation, after)
    assert told
    assert not any("\n" in one or errno.errorcode[code] not in one for one in told)
    assert ["The disk is full" in one for one in told] == full


class FullDisk(FaultyOs):
    def write(self, file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_gc_frees_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    write(tmp_path / "cache", make_rows(8), max_rows=2)
    compact(tmp_path / "cache")
    with file_system(FullDisk(-1, fails_with(0))):
        with pytest.raises(CacheWriteError, match="The disk is full"):
            write(tmp_path / "cache", make_rows(9))
        assert len(gc(tmp_path / "cache", apply=True, grace_s=0)) == 4
    assert len(segments(tmp_path / "cache")) == 1
    assert leftovers(tmp_path / "cache") == []
    serves(tmp_path / "cache", make_rows(8))


@pytest.mark.parametrize("suffix", ["h5", "npz"])
def test_an_export_that_finds_no_space_ends_in_one_line_and_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    """A process of its own, whose files may not grow beyond so many bytes: HDF5 itself does not survive that."""
    write(tmp_path / "cache", make_rows(400))
    export_features(tmp_path / "cache", target := tmp_path / f"x.{suffix}")
    size = target.stat().st_size
    target.unlink()
    code = (
        "import resource, sys; from featurecache.errors import CacheWriteError\n"
        "from featurecache.store.exchange import export_features\n"
        "for limit in map(int, sys.argv[3:]):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: export_features(*sys.argv[1:3])\n"
        "    except CacheWriteError as error: print(error)\n"
    )
    limits = [str(size * part // 8) for part in range(8)]
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(target), *limits]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.startswith(f"the export {target} must be writable") for line in done.stdout.splitlines()] == [True] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    export_features(tmp_path / "cache", target)
    assert target.stat().st_size == size
