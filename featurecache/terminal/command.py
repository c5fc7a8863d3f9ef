"""A command of the command line: its surroundings, and how it ends.

Named errors become one line on stderr, and a document with `--json`. `cli.py`, `cache_commands.py` and
`map_commands.py` alone use this.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import typer

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.spelling import visible
from featurecache.terminal.loading import slow_imports_told
from featurecache.terminal.screen import Screen, waits_on_stderr, warn_in_one_line
from featurecache.terminal.text import Piece, system_error

if TYPE_CHECKING:
    from featurecache.project.settings import Project

DONE, FAILED, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Idle threads of the model sleep and leave their cores to the decoders: 5 times faster on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}
P = ParamSpec("P")


def added(group: typer.Typer, name: str, *, example: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Adds a command that returns an exit code; named errors become one line on stderr.

    Args:
        group: Whose command it is.
        name: As typed.
        example: A use of it, shown below its help.
    """

    def decorate(function: Callable[P, int]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            os.environ |= _ENVIRONMENT
            if not kwargs.get("allow_download"):
                os.environ["HF_HUB_OFFLINE"] = "1"
            signal.signal(signal.SIGTERM, _interrupt)
            try:
                with warn_in_one_line(), waits_on_stderr(), slow_imports_told():
                    code = function(*args, **kwargs)
            except UsageError as error:
                raise typer.BadParameter(visible(str(error))) from error
            except FeatureCacheError as error:
                _fail(error, str(error), as_json=bool(kwargs.get("as_json")))
            except OSError as error:
                _fail(error, system_error(error), as_json=bool(kwargs.get("as_json")))
            except KeyboardInterrupt:
                print("interrupted: what was saved stays, and running again resumes from there.", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None
            raise typer.Exit(code)

        return group.command(name, epilog=f"Example: {example}")(run)

    return decorate


def project_of(config: Path) -> "Project":
    """Opens the project that a command works in; what reads settings is loaded here, not by `--help`."""
    from featurecache.project.settings import open_project

    return open_project(config)


def finish(screen: Screen, found: Any, pieces: Iterable[Piece], *, code: int = DONE) -> int:
    """Shows what a call returned, and prints it as a document.

    Args:
        screen: Where the pieces go.
        found: What the call returned: a dataclass, or an object with `to_mapping`.
        pieces: What people see of it.
        code: The exit code, which is returned.
    """
    screen.show(pieces)
    print_document(screen, document(found))
    return code


def document(found: Any) -> dict[str, Any]:
    """What a call returned, as the JSON document that `--json` prints."""
    return dict(found.to_mapping() if hasattr(found, "to_mapping") else dataclasses.asdict(found))


def print_document(screen: Screen, document: Mapping[str, Any]) -> None:
    """The command's result, on stdout; with `--json` alone."""
    if screen.as_json:
        print(json.dumps(document, indent=1, default=str))


def print_version(wanted: bool) -> None:
    """Prints the version and ends, where it was asked for."""
    if wanted:
        from featurecache import __version__

        print(f"featurecache {__version__}")
        raise typer.Exit(DONE)


def _fail(error: Exception, message: str, *, as_json: bool) -> NoReturn:
    if as_json and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"error": {"kind": type(error).__name__, "message": message}}))
    print(f"error: {visible(message)}", file=sys.stderr)
    raise typer.Exit(FAILED)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
