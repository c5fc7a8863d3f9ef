"""A PostgreSQL server of a test's own: Debian's binaries, an empty database in a temporary folder, one Unix socket.

It listens on no network. The server refuses to run as root, so root runs it as another user; the folder is that
user's then.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HOMES = "/usr/lib/postgresql/*/bin"


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a database; the server lives as long as the context."""
    homes = sorted(Path("/").glob(_HOMES[1:]), key=lambda path: int(path.parent.name))
    if not homes:
        pytest.skip(f"there is no PostgreSQL server at {_HOMES} (Debian: apt-get install postgresql)")
    user = pwd.getpwuid(os.geteuid())
    if user.pw_uid == 0:
        user = next((one for one in map(_user, ("postgres", "nobody")) if one is not None), user)
        if user.pw_uid == 0:
            pytest.skip("a PostgreSQL server does not run as root, and there is no user postgres or nobody")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 bytes
    try:
        if os.geteuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)
        made = _run(homes[-1] / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "--no-sync", user=user)
        if made.returncode:
            pytest.skip(f"initdb gave: {made.stderr.strip()}")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        _control(homes[-1], folder, user, "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            _control(homes[-1], folder, user, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _control(home: Path, folder: Path, user: pwd.struct_passwd, *arguments: str) -> None:
    done = _run(home / "pg_ctl", "-D", folder / "data", "-w", *arguments, user=user)
    assert done.returncode == 0, done.stderr


def _run(*command: object, user: pwd.struct_passwd) -> "subprocess.CompletedProcess[str]":
    rights = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile("w+") as errors:  # a server would keep a pipe open
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            **rights,  # type: ignore[call-overload]
        )
        errors.seek(0)
        done.stderr = errors.read()
    return done
