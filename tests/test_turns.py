"""Operations that look after one cache at the same time, and claims that others take over."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from featurecache.errors import CacheBusyError
from featurecache.store import compact, files, format, gc, turns
from featurecache.store.claims import Claims
from featurecache.store.turns import turn
from tests.cache_samples import FaultyOs, fails_with, file_system, make_rows, serves, write

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "cache", make_rows(4), max_rows=1)
    return tmp_path / "cache"


def test_an_operation_waits_for_the_one_before_it(root: Path) -> None:
    order = []

    def second() -> None:
        compact(root)
        order.append("second")

    with turn(root, "first"):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    serves(root, make_rows(4))
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_an_operation_that_waits_too_long_is_told_why(root: Path) -> None:
    raised = []

    def second() -> None:
        with (
            pytest.raises(CacheBusyError, match="another gc, compact, forget, repair or import") as caught,
            turn(root, "gc", patience_s=0.1),
        ):
            pass
        raised.append(caught.value)

    with turn(root, "first"):
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert raised


def test_an_operation_does_not_wait_for_a_process_that_is_gone(root: Path) -> None:
    code = f"""
import os, pathlib
from featurecache.store.turns import turn
with turn(pathlib.Path({str(root)!r}), "first"):
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
    assert [path for path in root.iterdir() if path.name.startswith(".")]
    with turn(root, "gc", patience_s=0):
        pass


def test_operations_of_several_processes_at_once_end_in_no_error_and_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.care_together", str(tmp_path), "2"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stdout + done.stderr


# --- claims -----------------------------------------------------------------------------------------


def test_a_heartbeat_does_not_keep_a_claim_that_another_process_took_over(tmp_path: Path) -> None:
    with Claims(tmp_path, lease_s=0.3) as slept:
        assert slept.take("a" * 64)
        (claim,) = (tmp_path / "claims").iterdir()
        theirs = format.new_segment_id().replace(format.this_machine(), "elsewhere.01234567")
        claim.with_name("theirs").write_text(theirs)
        claim.with_name("theirs").replace(claim)
        os.utime(claim, (1, 1))
        time.sleep(0.4)
        assert claim.stat().st_mtime == 1
        assert slept.take("a" * 64), "the other one has stopped touching it"
        assert claim.read_text() != theirs


def test_a_claim_is_given_back_when_an_interruption_comes_right_after_it(tmp_path: Path) -> None:
    class Interrupted(FaultyOs):
        def link(self, source: Path, target: Path) -> None:
            os.link(source, target)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Claims(tmp_path) as claims, file_system(Interrupted(-1, fails_with(0))):
        claims.take("a" * 64)
    assert not claims.take("b" * 64), "a thread that comes too late gets none"
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_claims_hold_where_the_file_system_has_no_hard_links(tmp_path: Path, code: int) -> None:
    class WithoutLinks(FaultyOs):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(code, os.strerror(code), str(source))

    with file_system(WithoutLinks(-1, fails_with(0))), Claims(tmp_path) as first:
        assert first.take("a" * 64)
        with Claims(tmp_path) as second:
            assert not second.take("a" * 64)
            assert second.take("b" * 64)
        assert first.take("b" * 64), "given back"
    assert list((tmp_path / "claims").iterdir()) == []


def test_the_clock_of_the_file_system_is_asked_by_a_file_that_does_not_stay(tmp_path: Path) -> None:
    assert abs(files.server_time(tmp_path, ".probe") - time.time()) < 5
    assert list(tmp_path.iterdir()) == []


def test_gc_lists_where_nothing_may_be_written(root: Path) -> None:
    compact(root)

    class ReadOnly(FaultyOs):
        def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT:
                raise OSError(errno.EROFS, "read-only")
            return os.open(path, flags, mode)

    with file_system(ReadOnly(-1, fails_with(0))):
        assert len(gc(root, grace_s=0)) == 4
    assert turns.PATIENCE_S > 0
