"""Extraction on the devices of one machine: a process for each, which sees that device alone.

A process is told its share in one line of JSON on stdin and answers in lines of JSON on stdout; what libraries write
to stdout goes to stderr. Processes have sessions of their own, so that Ctrl-C reaches the parent alone, which lets
them save what they have; stdin is never closed before, so that a process whose parent was killed sees its end and
stops too.

Not here: who does what, and what becomes of the dead (`pool.py`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn, cast

from featurecache.errors import FeatureCacheError, SettingsError
from featurecache.extraction.pipeline import Extraction, Progress, WorkerCrash
from featurecache.extraction.plan import Plan
from featurecache.project.settings import Project
from featurecache.workers.messages import (
    Report,
    Share,
    decode_report,
    decode_share,
    encode_report,
    encode_share,
)
from featurecache.workers.pool import Tell, run_pool, run_share, shares

_INTERRUPTED = 130


@dataclass(frozen=True)
class Device:
    """A device that one process gets.

    Attributes:
        name: For people, one of its own.
        kind: "cuda" or "cpu".
        environment: What makes the process see this device alone, or take its share of the cores.
    """

    name: str
    kind: str
    environment: Mapping[str, str]


def find_devices(text: str) -> tuple[Device, ...]:
    """The devices that a text names: `all` visible GPUs, some of them as `0,1`, or processors as `cpu,cpu`.

    Raises:
        SettingsError: If there is no such device, or a GPU is named twice.
    """
    import torch

    return choose_devices(text, gpus=torch.cuda.device_count(), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


def choose_devices(text: str, *, gpus: int, visible: str | None) -> tuple[Device, ...]:
    """As `find_devices`, of so many GPUs, named in CUDA_VISIBLE_DEVICES where that is set."""
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    parts = [part.strip() for part in text.split(",")]
    chosen = [str(number) for number in range(gpus)] if parts == ["all"] else parts
    wrong = [part for part in chosen if part != "cpu" and not (part.isdecimal() and int(part) < gpus)]
    twice = [part for part in chosen if part != "cpu" and chosen.count(part) > 1]
    if wrong or twice or not chosen:
        found = (
            f"{text!r} names {wrong[0]!r}" if wrong else f"{text!r} names {twice[0]!r} twice" if twice else "none is"
        )
        raise SettingsError(
            f"--devices must name GPUs of the {gpus} that are visible, each once, or cpu, but {found}. "
            "Write all, a list such as 0,1, or cpu,cpu."
        )
    cores = str(max(1, (os.cpu_count() or 1) // max(1, chosen.count("cpu"))))
    return tuple(
        Device(f"cpu process {number}", "cpu", {"OMP_NUM_THREADS": cores, "CUDA_VISIBLE_DEVICES": ""})
        if part == "cpu"
        else Device(f"GPU {part}", "cuda", {"CUDA_VISIBLE_DEVICES": names[int(part)]})
        for number, part in enumerate(chosen, 1)
    )


def extract_on_devices(
    config: Path,
    project: Project,
    plan: Plan,
    *,
    devices: Sequence[Device],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Extraction:
    """Computes what the plan found missing, with one process for each device.

    Args:
        config: The project, as for `open_project`: every process reads it.
        project: The same, read.
        plan: What is missing; at least one clip.
        devices: One process each; of more devices than recordings some are left idle.
        on_progress: Called with everybody's progress together.

    Raises:
        WorkerDiedError: If clips are left that no process survived to compute.
        FeatureCacheError: As `run_plan`, from the first process that raised it.
    """
    told = shares(config, project, plan, devices=[device.kind for device in devices])
    of_name = {device.name: (device, share) for device, share in zip(devices, told, strict=False)}

    def start(name: str, tell: Tell) -> _Process:
        device, share = of_name[name]
        return _Process(device, share, tell)

    return run_pool(project, plan, list(of_name), start, on_progress=on_progress)


class _Process:
    """A worker in a process of this machine; see `Worker`."""

    def __init__(self, device: Device, share: Share, tell: Tell) -> None:
        self._name, self._tell = device.name, tell
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as it; it.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **device.environment},
            start_new_session=True,
        )
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        with contextlib.suppress(BrokenPipeError):  # then the listener tells of its crash
            self._stdin.write(encode_share(share))
            self._stdin.flush()

    def stop(self) -> None:
        self._process.terminate()

    def join(self, timeout_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, timeout_s))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def _listen(self) -> None:
        last: Report | None = None
        with cast(IO[bytes], self._process.stdout) as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    last = decode_report(line)
                    if isinstance(last, Progress):
                        self._tell(last)
        code = self._process.wait()
        if last is None or isinstance(last, Progress):
            last = WorkerCrash(
                self._name, f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
            )
        self._tell(last)


def main() -> None:
    """The process itself: reads its share, works, tells, and ends with its parent."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as reports:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        share = decode_share(sys.stdin.buffer.readline())
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        threading.Thread(target=_end_with_parent, daemon=True).start()

        def tell(report: Report) -> None:
            with contextlib.suppress(BrokenPipeError):  # the parent is gone, and this process soon is
                reports.write(encode_report(report))
                reports.flush()

        try:
            tell(run_share(share, on_progress=tell))
        except (FeatureCacheError, OSError) as error:
            tell(error)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the saving short
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
