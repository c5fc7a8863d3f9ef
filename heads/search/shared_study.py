"""A study in a PostgreSQL database, which several processes on any machines work on at once.

Notable choices:

- Asking for a trial goes under one advisory lock of the database: whoever holds it counts the trials, so that all
  processes together ask for as many as wanted and no trial twice. The lock falls when its holder's connection does.
- Optuna beats a heart for `optimize` alone, not for asked trials. So each process has a thread that beats for all
  trials it works on, the first time before it lets the lock go. A trial whose heart stopped, or that has none though
  nobody holds the lock, is failed by whoever asks next, and begun again by the search as any interrupted one.
- A process that was thought dead and comes back may end its trial, but that no longer counts.

What this is not: a place for features or heads; each process has them in its own project.
"""

import hashlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState

from featurecache.errors import StudyError
from featurecache.files import private_folder
from heads.search.study import SHARED_COPY_NAME, OpenStudy, check_beginning, copy_study, held, quiet_optuna

if TYPE_CHECKING:
    import psycopg

HEARTBEAT_S = 10
BEATS = "beats"
"""Says that a trial has a heart; Optuna takes one that never beat for alive."""
_STALE_AFTER = 6  # heartbeats


class SharedStudy(OpenStudy):
    """A study that others may work on too.

    Args:
        study: The study.
        storage: Where it lies.
        folder: The run's folder.
        connection: For the lock.
        heartbeat_s: Seconds between two heartbeats.
    """

    is_shared = True

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.RDBStorage,
        folder: Path,
        connection: "psycopg.Connection[Any]",
        heartbeat_s: int,
    ) -> None:
        super().__init__(study, folder)
        self._storage = storage
        self._connection = connection
        self._heartbeat_s = heartbeat_s
        self._own: dict[int, int] = {}  # number of a trial -> its id
        self._own_lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """As the base."""
        with _locked(self._connection, self.study.study_name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if BEATS not in trial.user_attrs:  # its process died while it asked: whoever asks holds the lock
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            yield

    def writing(self) -> AbstractContextManager[None]:
        """As the base."""
        return held(self._folder, wait=True)

    def ask(self) -> optuna.Trial:
        """As the base; its heart beats before anybody else may take it for dead."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used", UserWarning)
            trial = self.study.ask()
        self._storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(BEATS, True)
        with self._own_lock:
            self._own[trial.number] = trial._trial_id
        return trial

    def tell(self, trial: optuna.Trial, value: float | None, state: TrialState) -> None:
        """As the base."""
        with self._own_lock:
            self._own.pop(trial.number, None)
        self.study.tell(trial, value, state=state, skip_if_finished=True)

    def keep_copy(self) -> None:
        """As the base."""
        copy_study(self.study, self._folder / SHARED_COPY_NAME)

    def wait(self) -> None:
        """As the base."""
        self._stopped.wait(self._heartbeat_s)

    def sync(self) -> None:
        """Nothing: the database has it."""

    def close(self) -> None:
        """Stops the heart and fails the trials that this process leaves behind."""
        self._stopped.set()
        self._thread.join()
        for number in list(self._own):
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            with self._own_lock:
                ids = list(self._own.values())
            for trial_id in ids:
                try:
                    self._storage.record_heartbeat(trial_id)
                except StorageInternalError:
                    break  # the database is away; the next beat tries again, and others decide by its absence


@contextmanager
def open_shared_study(
    folder: Path,
    began_with: Mapping[str, Any],
    pruner: optuna.pruners.BasePruner,
    *,
    url: str,
    name: str,
    heartbeat_s: int = HEARTBEAT_S,
) -> Iterator[SharedStudy]:
    """A study of a database, made or joined.

    Args:
        folder: The run's folder; made if absent.
        began_with: JSON-ready mapping of all that the study's scores depend on.
        pruner: Optuna's pruner.
        url: `postgresql://user:password@host/database`.
        name: Of the study.
        heartbeat_s: Seconds between heartbeats; after six without one a process counts as dead.

    Raises:
        StudyError: If the URL is of another database, the package for it is missing, the server does not answer, or
            the study began with something else.
    """
    if urlsplit(url).scheme != "postgresql":
        raise StudyError(
            "a shared study must lie in PostgreSQL, postgresql://user:password@host/database, but the storage given "
            f"begins with {url.split(':')[0]!r}. Give such an address, or leave it out to keep the study in its folder."
        )
    try:
        import psycopg
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise StudyError(
            f"a shared study must have the package {error.name}, but it is not installed. "
            "Install it: pip install 'featurecache[postgresql]'."
        ) from error
    private_folder(folder)
    where = f"{urlsplit(url).hostname or 'local'}{urlsplit(url).path}"
    try:
        with psycopg.connect(url, autocommit=True) as connection, quiet_optuna():
            with _locked(connection, name):
                storage = _storage(url, heartbeat_s)
            try:
                with _locked(connection, name):
                    study = optuna.create_study(
                        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
                    )
                    check_beginning(study, began_with, f"study {name!r} of {where}")
                shared = SharedStudy(study, storage, folder, connection, heartbeat_s)
                try:
                    yield shared
                finally:
                    shared.close()
            finally:
                storage.remove_session()
                storage.engine.dispose()
    except (psycopg.Error, SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise StudyError(
            f"the database of a shared study must answer, but {where} gave: {reason}. "
            "Check the server and the address; finished trials are kept, so run again."
        ) from error


def _storage(url: str, heartbeat_s: int) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=heartbeat_s,
            grace_period=_STALE_AFTER * heartbeat_s,
        )


@contextmanager
def _locked(connection: "psycopg.Connection[Any]", name: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"featurecache study {name}".encode()).digest()[:8], "big", signed=True)
    connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (key,))
