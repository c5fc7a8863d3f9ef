"""The command line as tests call it, in this process."""

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

import cli


def invoke(*arguments: object) -> Result:
    """One command: its exit code and what it printed."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def run(*arguments: object, code: int = 0) -> dict[str, Any]:
    """One command with --json, which must end with `code`: its document."""
    done = invoke(*arguments, "--json")
    assert done.exit_code == code, done.output
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document
