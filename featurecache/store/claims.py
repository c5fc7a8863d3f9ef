"""Who is working on what: hints that keep processes with one list from computing the same recording twice.

A claim is a file in `claims/`, named by a digest of the recording and holding the claimer's name. `link` makes
it, which is atomic on NFS too; where the file system has no hard links (exFAT, some SMB shares), the exclusive
creation of the file does. It counts while its holder touches it, judged by the file server's own clock;
one whose process is gone from this machine counts no longer, so that a killed run can be started again at
once. Only effort hangs on claims: where two processes both believe they hold one, rows are computed twice and
readers show one of them. So there is nothing to lock, and nothing that can be left behind for good. A process
that slept through its lease finds another name in the claim, or none: it then holds nothing, and touches nothing.
"""

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import Self

from featurecache.errors import CacheReadError
from featurecache.store import files, format

LEASE_S = 120.0
"""A claim that was not touched for so long is anybody's."""

_TOUCHES_PER_LEASE = 6


class Claims:
    """The claims of one process on one feature space; a context manager that gives them back.

    Args:
        space_folder: `.../spaces/<name>`.
        lease_s: See `LEASE_S`.
        hidden: Whether the claims are hidden files in that very folder instead of files in its `claims/`.
    """

    def __init__(self, space_folder: Path, *, lease_s: float = LEASE_S, hidden: bool = False) -> None:
        self._folder = space_folder if hidden else space_folder / "claims"
        self._prefix = "." if hidden else ""
        self._lease_s = lease_s
        self._name = format.new_segment_id().encode()
        self._held: set[Path] = set()
        self._asked: set[Path] = set()  # the last one: it may be there when an interruption comes before it is held
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def take(self, video_sha256: str) -> bool:
        """Claims a recording.

        Returns:
            Whether this process holds the claim now; False while another one is working on the recording, and once the
            claims were given back, which a thread that still asks need not know.

        Raises:
            OSError: If the folder cannot be written.
        """
        target = self._folder / f"{self._prefix}{hashlib.sha256(f'claim {video_sha256}'.encode()).hexdigest()[:32]}"
        with self._lock:
            if self._stop.is_set():
                return False
            if target in self._held:
                return True
            files.make_folder(self._folder, exist_ok=True)
            mine = self._folder / f".{format.new_segment_id()}.tmp"
            files.write_new(mine, self._name)
            self._asked = {target}
            try:
                if not files.link(mine, target, self._name) and not self._inherit(mine, target):
                    return False
            finally:
                files.remove_file(mine)
            self._held.add(target)
            if not self._keeper.is_alive():
                self._keeper.start()
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        with self._lock:  # a thread may be taking one
            for target in self._held | self._asked:
                with contextlib.suppress(OSError, CacheReadError):
                    if files.read_file(target) == self._name:
                        files.remove_file(target)
            self._held.clear()

    def _inherit(self, mine: Path, target: Path) -> bool:
        """Takes over a claim that counts no longer; `mine` was just made, so its time is the server's present."""
        try:
            holder = files.read_file(target).decode("ascii", "replace")
            age_s = files.file_status(mine).st_mtime - files.file_status(target).st_mtime
        except FileNotFoundError:
            return files.link(mine, target, self._name)
        if not maker_is_gone(holder) and age_s < self._lease_s:
            return False
        files.replace(mine, target)
        return files.read_file(target) == self._name

    def _keep(self) -> None:
        while not self._stop.wait(self._lease_s / _TOUCHES_PER_LEASE):
            with self._lock:
                self._held = {target for target in self._held if self._keeps(target)}

    def _keeps(self, target: Path) -> bool:
        """Touches a claim that is still this process's own; False where it is not."""
        try:
            return files.touch_own(target, self._name)
        except FileNotFoundError:
            return False
        except (OSError, CacheReadError):
            return True  # the disk does not answer: the lease runs on, and the next touch will tell


def maker_is_gone(name: str) -> bool | None:
    """Whether the process that made a name by `new_segment_id` is no more; None where another machine made it."""
    made = format.SEGMENT_ID.fullmatch(name.removeprefix(".").removesuffix(".tmp"))
    if made is None or not format.names_this_machine(made["machine"]):
        return None
    return not files.process_lives(int(made["pid"]))
