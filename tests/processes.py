"""Commands in processes of their own that tests start, stop and kill: forked where everything is imported already.

The server that forks them imports once for all tests what takes each new interpreter seconds. It runs no thread, and
what it forks has nothing of the test's own process.
"""

import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["cli", "heads.workflow.zeroshot", "featurecache.backbones.llava_next_video"])


def start(*arguments: object, out: Path, save_each_s: float | None = None, log: Path | None = None) -> BaseProcess:
    """Starts a command of `featurecache` in a process of its own.

    Args:
        arguments: The command and its options.
        out: The file that gets what it prints on stdout; beside it `.err` gets stderr.
        save_each_s: Saves every row by itself, and rests for so many seconds after each.
        log: Where a line is written for each row that was saved so: feature space, recording and start.

    Returns:
        The process; its `exitcode` is the negative signal that ended it.
    """
    words = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(words, out, save_each_s, log))
    process.start()
    return process


def wait_for(process: BaseProcess) -> int:
    """Waits until a process has ended; its exit code, or the negative signal that ended it."""
    process.join(300)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode


def _run(arguments: list[str], out: Path, save_each_s: float | None, log: Path | None) -> None:
    import cli

    sys.argv = ["featurecache", *arguments]
    with out.open("w") as sys.stdout, out.with_suffix(".err").open("w") as sys.stderr:
        if save_each_s is not None:
            _save_slowly(save_each_s, log)
        cli.main()


def _save_slowly(rest_s: float, log: Path | None) -> None:
    from featurecache.store import CacheWriter, Row

    add = CacheWriter.add

    def slowly(self: CacheWriter, row: Row) -> None:
        add(self, row)
        self.commit()
        if log is not None:
            with log.open("a") as lines:
                lines.write(f"{self._fingerprint[:8]} {row.video_sha256[:16]} {row.start_us}\n")
        time.sleep(rest_s)

    CacheWriter.add = slowly  # type: ignore[method-assign]
