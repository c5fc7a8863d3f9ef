"""Extraction on a Ray cluster, an extra: an actor for each GPU, or for each processor where there is none.

Ray places the actors and notices dead nodes; which recording is whose is settled by the claims in the cache, as
everywhere, so that all nodes must see the project's folder, the recordings and the model at the same paths. Names,
counts and reasons travel through Ray, frames and features never do. A Ray that is started here listens on loopback
alone, asks for a token that lives as long as it does, and reports its use to nobody.

Not here: who does what, and what becomes of the dead (`pool.py`).
"""

import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError, SettingsError
from featurecache.extraction.pipeline import Extraction, Progress, WorkerCrash
from featurecache.extraction.plan import Plan
from featurecache.project.settings import Project
from featurecache.store.claims import LEASE_S
from featurecache.workers.messages import decode_report, decode_share, encode_report, encode_share
from featurecache.workers.pool import Tell, run_pool, run_share, shares

_LOCAL_CPUS = 2
_OBJECT_STORE_BYTES = 100 << 20  # nothing large travels
_POLL_S = 1.0
_LAST_WORD_S = 10.0
_PLACED_WITHIN_S = 120.0
_PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its switch for listening on loopback only, on Linux too
    "RAY_AUTH_MODE": "token",
}


def extract_on_ray(
    config: Path,
    project: Project,
    plan: Plan,
    *,
    address: str,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Computes what the plan found missing, with an actor for each GPU of a Ray cluster.

    Args:
        config: The project, as for `open_project`: every actor reads it.
        project: The same, read.
        plan: What is missing; at least one clip.
        address: `local` starts a Ray on this machine, `auto` finds the running one; else `HOST:PORT` of a cluster.
        on_progress: Called with everybody's progress together.

    Raises:
        SettingsError: If Ray is not installed or not at the address.
        WorkerDiedError: If clips are left that no actor survived to compute.
        FeatureCacheError: As `run_plan`, from the first actor that raised it.
    """
    with _connected(address) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        kind, count = ("cuda", gpus) if gpus else ("cpu", int(ray.cluster_resources().get("CPU", 1)))
        told = shares(config.absolute(), project, plan, devices=[kind] * count)
        of_name = {f"Ray actor {number}": encode_share(share) for number, share in enumerate(told, 1)}
        needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}

        def start(name: str, tell: Tell) -> _Actor:
            return _Actor(ray, name, of_name[name], needs, tell)

        return run_pool(project, plan, list(of_name), start, lease_s=LEASE_S, on_progress=on_progress)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected; one that was started here ends with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with ExitStack() as stack:
        where = stack.enter_context(_on_this_machine()) if address == "local" else {}
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            import ray

            ray.init(address=address, configure_logging=False, log_to_driver=False, **where)
        except ImportError as error:
            raise SettingsError(
                "--ray needs the package ray, but it is not installed. Install it: pip install 'featurecache[ray]'."
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"--ray must be local, auto or the HOST:PORT of a running cluster, but {address!r} gave: "
                f"{str(error).splitlines()[0]} Start one: ray start --head; or let this machine do alone: --ray local."
            ) from error
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray puts a handler of its own there
        yield ray


@contextmanager
def _on_this_machine() -> Iterator[dict[str, Any]]:
    """How to start a Ray that nobody else can reach; its folder is gone after the block."""
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in _PRIVATE.items()):
        raise SettingsError(
            "a Ray that keeps to this machine must be set up before the package is loaded, but ray is imported "
            "already. Import it later, or start your own Ray and pass address='auto'."
        )
    os.environ |= _PRIVATE
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray opens its own folder to everybody; the one around it keeps it shut.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield {
            "num_cpus": _LOCAL_CPUS,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": f"{folder}/s",
        }


class _Remote:
    """What runs inside an actor, in two threads: one that works, one that answers."""

    def __init__(self) -> None:
        self._latest = b""
        self._stopped = threading.Event()

    def ready(self) -> int:
        """Its process."""
        return os.getpid()

    def run(self, told: bytes) -> bytes:
        """Works on a share; returns the last report."""
        try:
            return encode_report(run_share(decode_share(told), on_progress=self._note))
        except (FeatureCacheError, OSError) as error:
            return encode_report(error)

    def progress(self) -> bytes:
        """The latest progress; empty before the first."""
        return self._latest

    def stop(self) -> None:
        """Ends the work after the batch that runs; what is gathered is saved."""
        self._stopped.set()

    def _note(self, now: Progress) -> None:
        self._latest = encode_report(now)
        if self._stopped.is_set():
            raise InterruptedError("the extraction was stopped")


class _Actor:
    """A worker in a Ray actor; see `Worker`."""

    def __init__(self, ray: Any, name: str, told: bytes, needs: dict[str, int], tell: Tell) -> None:
        self._ray, self._name, self._told, self._tell = ray, name, told, tell
        self._actor = ray.remote(_Remote).options(max_concurrency=2, **needs).remote()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def stop(self) -> None:
        self._actor.stop.remote()

    def join(self, timeout_s: float) -> None:
        self._listener.join(max(0.0, timeout_s))

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._listener.join(_LAST_WORD_S)

    def _listen(self) -> None:
        ray = self._ray
        try:
            ray.get(self._actor.ready.remote(), timeout=_PLACED_WITHIN_S)
            last = self._actor.run.remote(self._told)
            while not ray.wait([last], timeout=_POLL_S)[0]:
                if latest := ray.get(self._actor.progress.remote()):
                    self._tell(decode_report(latest))
            self._tell(decode_report(ray.get(last)))
        except ray.exceptions.GetTimeoutError:
            self._tell(WorkerCrash(self._name, f"found no place in the cluster within {_PLACED_WITHIN_S:.0f} s"))
        except ray.exceptions.RayError as error:
            self._tell(WorkerCrash(self._name, f"died: {str(error).splitlines()[0]}"))
