"""Files for this user alone, and memory that no crash writes to disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.make_videos import write_video


def test_a_crash_dumps_no_core_once_a_recording_was_opened(tmp_path: Path) -> None:
    """Probing stands for whatever decodes: all of it opens recordings at one place."""
    video = write_video(tmp_path / "a.mp4", count=5)
    code = (
        "import os, resource; from pathlib import Path; from featurecache.video.probing import probe; "
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)); "
        f"probe(Path({str(video)!r})); os.abort()"
    )
    root = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)})
    _, status = os.waitpid(child.pid, 0)
    child.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == [video]
