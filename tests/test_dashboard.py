"""optuna-dashboard on the journal that a search leaves: the command of the README starts and lists the study."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import optuna
import pytest

from heads.search.study import JOURNAL_NAME, open_study

DASHBOARD = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(DASHBOARD is None, reason="optuna-dashboard is not installed (pip install featurecache[dashboard])")
def test_dashboard_lists_the_study_of_a_search(tmp_path: Path) -> None:
    assert re.search(rf"optuna-dashboard runs/tune/{re.escape(JOURNAL_NAME)}", (ROOT / "README.md").read_text())
    with open_study(tmp_path, {"seed": 0}, optuna.pruners.NopPruner()) as opened:
        trial = opened.study.ask()
        opened.study.tell(trial, trial.suggest_float("learning_rate", 1e-5, 0.1))
    journal = (tmp_path / JOURNAL_NAME).read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(DASHBOARD), str(tmp_path / JOURNAL_NAME), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            studies = json.loads(_get(f"http://127.0.0.1:{port}/api/studies", server))
        finally:
            server.terminate()
    assert [one["study_name"] for one in studies["study_summaries"]] == ["tune"]
    assert (tmp_path / JOURNAL_NAME).read_bytes() == journal  # looking changes nothing


def _get(url: str, server: "subprocess.Popen[bytes]") -> bytes:
    """The answer, once the server is up."""
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except (URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("optuna-dashboard did not answer")
