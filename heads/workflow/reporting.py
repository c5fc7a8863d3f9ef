"""The report of a project: what `featurecache report` calls."""

import logging
import os
from pathlib import Path

from featurecache.clips.drift import check_table
from featurecache.errors import UsageError
from featurecache.project.settings import Project
from heads.report import Report, write_report

_log = logging.getLogger(__name__)


def report(
    project: Project, *, with_frames: bool = False, predictions: Path | None = None, out: Path | None = None
) -> Report:
    """Writes every run, the search, the timelines and the cache into one HTML file.

    Args:
        project: The project; anything that is not made yet is said on the page.
        with_frames: Whether frames of the largest differences are in the page.
        predictions: The folder of predicted timelines; None: the project's.
        out: The HTML file; None: `runs/report.html`.

    Raises:
        UsageError: If `out` names no .html file.
        OSError: If `predictions` is named and no folder, or the file cannot be written.
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out must name an .html file, but it is {str(out)!r}. Write e.g. report.html.")
    if predictions is not None:
        os.scandir(predictions).close()  # a folder that is named must be there
    _log.debug("reading runs, timelines and the cache ...", extra={"is_wait": True})
    check_table(project, use="nothing")
    return write_report(project, out, predictions=predictions, with_frames=with_frames)
