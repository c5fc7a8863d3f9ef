import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile_models import HOSTILE, make_hostile

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def refusals(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What opening each hostile folder raised in one process with limits: (name of the error, message)."""
    folders = make_hostile(tiny_model, tmp_path_factory.mktemp("hostile"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_models", *map(str, folders.values())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(folders), f"it ended with {done.returncode} at {list(folders)[len(found)]}: {done.stderr}"
    return dict(zip(folders, found, strict=True))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folder_is_one_named_error_within_thirty_seconds_and_two_gigabytes(
    refusals: dict[str, tuple[str, str]], case: str
) -> None:
    _, kind, file, wrong = HOSTILE[case]
    raised, message = refusals[case]
    assert raised == kind, message
    assert file in message
    assert wrong in message
    assert "\n" not in message
