"""The storage of a search: Optuna's journal file in the run's folder, safe to kill and to open again.

Notable choices: one process at a time holds the study (a lock the system frees when the process dies); opening
repairs what a kill can leave behind: a half-written last line, and trials still marked running (which would
mislead the sampler for ever). Lines survive a kill as soon as they are written; only `sync` forces them onto the
disk, once a batch, because forcing each of the sixteen lines of a trial took longer than training it. A study
remembers what it was started with, its signature, and is resumed with nothing else. optuna-dashboard opens the journal
as it is.

Each trial has a sampler of its own, seeded by the study's seed and the trial's place: how many were started before it.
An interrupted trial is restarted at its place and with its settings, at most twice: what kills its process shall not
do so for ever.

What this is not: a study that several processes work on.
"""

import json
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import StudyError
from featurecache.files import private_folder
from featurecache.spec import flatten

JOURNAL_NAME, LOCK_NAME, STUDY_NAME = "study.journal", "study.lock", "tune"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MOST_TRIES = 3
"""Attempts at a trial that is interrupted each time."""

SOLVER, COMBINATION, CHOSEN = "solver", "combination", "chosen"
"""Notes of a trial: who fits it; which combination a convex one is; the settings chosen inside it."""
AGAIN = "again"
"""The number of the interrupted trial that this one restarts."""
COUNTS, OWN = "session_counts", "own_counts"
"""Of a convex trial: out-of-fold confusion counts of its grid's points per session, (G, M, 3, C), and of the head that
was chosen, (M, 3, C)."""
_DIGESTS = {
    "data": "the clips, their labels, targets or features",
    "clips": "the clips or their targets",
    "fingerprints": "how the features are computed",
    "model": "the model, or how it reads clips",
}
"""Fields of a signature that are digests, in words: nobody can put them back by hand."""
EPOCHS, DIVERGED = "epochs_kept", "diverged_in_epoch"
"""Of a trial trained by AdamW: the epochs behind its head; the epoch where it diverged."""


class _Journal(JournalFileBackend):
    """Optuna's journal file, written without its lock file (the study's is held) and without forcing each line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends one line per record."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(lines.encode())
        except OSError:
            os.truncate(self._path, size)  # a half-written line would spoil the next one
            raise


class OpenStudy:
    """A study in one process' hands.

    Args:
        study: The study.
        folder: The run's folder.

    Attributes:
        study: The study.
    """

    def __init__(self, study: optuna.Study, folder: Path) -> None:
        self.study = study
        self._folder = folder

    def ask(self, seed: int) -> tuple[optuna.Trial, int]:
        """The next trial, a queued one first, with Optuna's univariate TPE and the constant liar.

        Args:
            seed: The study's seed.

        Returns:
            The trial, and its place.
        """
        trial = self.study.ask()
        number = trial.user_attrs.get(AGAIN, trial.number)
        known = self.study.get_trials(deepcopy=False)
        place = sum(one.number < number for one in known if AGAIN not in one.user_attrs)
        of_trial = int(np.random.SeedSequence((seed, place)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the constant liar has been experimental since 2021
            self.study.sampler = optuna.samplers.TPESampler(seed=of_trial, multivariate=False, constant_liar=True)
        return trial, place

    def sync(self) -> None:
        """Forces all that was written onto the disk."""
        with (self._folder / JOURNAL_NAME).open("rb") as file:
            os.fsync(file.fileno())


def interrupted_trial(known: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The first trial whose attempts were all interrupted and that may be restarted: the attempt that came furthest."""
    tries: dict[int, list[FrozenTrial]] = {}
    for trial in known:
        tries.setdefault(trial.user_attrs.get(AGAIN, trial.number), []).append(trial)
    for of_trial in tries.values():
        if len(of_trial) < MOST_TRIES and all(trial.state == TrialState.FAIL for trial in of_trial):
            return max(of_trial, key=lambda trial: len(trial.params))
    return None


@contextmanager
def open_study(folder: Path, signature: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> Iterator[OpenStudy]:
    """The study of a folder, made or resumed; trials that are running at the end are marked failed.

    Args:
        folder: The run's folder; made if absent.
        signature: JSON-ready mapping of all that the study's scores depend on.
        pruner: Optuna's pruner.

    Yields:
        The study, of which no trial is running.

    Raises:
        StudyError: If another process has it open, it was started with something else, or its journal is damaged.
    """
    private_folder(folder)
    with _held(folder), quiet_optuna():
        journal = folder / JOURNAL_NAME
        _repair(journal)
        try:
            storage = optuna.storages.JournalStorage(_Journal(journal))
            study = optuna.create_study(
                storage=storage, study_name=STUDY_NAME, direction="maximize", pruner=pruner, load_if_exists=True
            )
            study.get_trials(deepcopy=False)
        except OSError:  # the disk's own error, which names itself: the journal may be whole
            raise
        except Exception as error:  # Optuna replays what it reads unchecked: ValueError, KeyError, AssertionError, ...
            raise StudyError(
                f"a study's journal must be readable, but {journal} is damaged ({brief(error)}). "
                "Restore it, or move it away to start over."
            ) from error
        _check_signature(study, signature, folder)
        _fail_running(study)
        try:
            yield OpenStudy(study, folder)
        finally:
            _fail_running(study)


def brief(error: Exception) -> str:
    """What Optuna raised, in one line; an assertion of it may say nothing but its name."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK_NAME, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise StudyError(
            f"one process at a time may search in a folder, but another is searching in {folder}. "
            "Wait for it, or stop it."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def quiet_optuna(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """Keeps off stderr what Optuna notes below a level, as that a study is new."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _repair(journal: Path) -> None:
    """Makes the journal if absent; cuts a last line without an end."""
    descriptor = os.open(journal, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _check_signature(study: optuna.Study, signature: Mapping[str, Any], folder: Path) -> None:
    """Notes what a new study is started with; refuses one that was started with something else."""
    stored = study.user_attrs.get("signature", {} if study.get_trials(deepcopy=False) else None)
    if stored is None:
        study.set_user_attr("signature", dict(signature))
    elif stored != signature:
        then, now = flatten(stored), flatten(signature)
        names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        found = [_DIGESTS.get(name.partition(".")[0]) for name in names]
        words = dict.fromkeys(
            digest or f"{name} (then {_short(then.get(name))}, now {_short(now.get(name))})"
            for name, digest in zip(names, found, strict=True)
        )
        back = "Start" if any(found) else "Put them back, or start"
        free = next(path for at in count(1) if not (path := folder.with_name(f"{folder.name}-{at}")).exists())
        raise StudyError(
            f"a search resumes only with what it started with, but these have changed since {folder} was started: "
            f"{'; '.join(words)}. {back} a new search, after: {shlex.join(['mv', str(folder), str(free)])}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _fail_running(study: optuna.Study) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
