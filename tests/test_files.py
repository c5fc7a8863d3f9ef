"""Files for this user alone, and memory that no crash writes to disk."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_crash_dumps_no_core_once_that_is_forbidden(tmp_path: Path) -> None:
    code = (
        "import os, resource; from featurecache.files import forbid_core_dumps; "
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)); "
        "forbid_core_dumps(); os.abort()"
    )
    root = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)})
    _, status = os.waitpid(child.pid, 0)
    child.returncode = status
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []
