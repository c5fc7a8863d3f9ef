"""The report: one self-contained HTML file of every run, every label, the search, the timelines and the cache.

It reads the documents that the commands leave on disk and no other module's objects, so it can be made at any time
and of anything: what is not there yet is said on the page, with the command that makes it. Recordings are named by
their file, without folders; frames are in it only when asked for. The page asks nobody for anything: its
Content-Security-Policy forbids every connection.

Figures are plotly's, which Optuna draws with too (MIT, 4.8 MB inside the page; Bokeh would do, but would be a second
library beside Optuna's). What this is not: scores of its own. It draws what `*_metrics.json`, the study and the
predictions say.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.workflow.withdrawal import MAPS
from heads.report.activities import activities_csv, activity_rows
from heads.report.documents import TIMELINES_NAME, Run, has_scores, number, read_documents
from heads.report.figures import row_names
from heads.report.frames import thumbnails
from heads.report.learning import learning_problem
from heads.report.maps import read_maps
from heads.report.names import ShownNames
from heads.report.page import render_page
from heads.report.searching import draw_searches
from heads.report.summary import best_run, summarize
from heads.report.timelines import differences, in_order, read_timelines
from heads.runs import METRICS_NAMES


@dataclass(frozen=True)
class Report:
    """What a report holds.

    Attributes:
        path: The file.
        activities: The table of seconds, bouts and first starts; None where no recording has a timeline.
        size_bytes: Size of the page.
        methods: Name of a method -> its metrics on the test split, in the order of the paper's Table 1.
        recordings: Recordings with a timeline.
        differences: Number of stretches in which only one of annotator and model has a label.
        frames: Number of pictures of recordings that the page holds.
        problems: Files that could not be read, and why.
    """

    path: Path
    activities: Path | None
    size_bytes: int
    methods: Mapping[str, Mapping[str, Any]]
    recordings: int
    differences: int
    frames: int
    problems: tuple[str, ...]


def write_report(
    project: Project, out: Path | None = None, *, predictions: Path | None = None, with_frames: bool = False
) -> Report:
    """Writes the report; anything it reads may be missing.

    Args:
        project: The project; settings of `[features]` are shown as they are but for the folders of a model.
        out: The HTML file; the table of activities goes beside it, as `<name>.activities.csv`. None:
            `runs/report.html`.
        predictions: The folder of predicted timelines, looked through with its subfolders; None: the project's.
        with_frames: Put a frame of each of the largest differences into the page, and the pictures of `maps`.

    Raises:
        OSError: If it cannot be written.
    """
    out = project.runs / "report.html" if out is None else out
    features, documents = asdict(project.settings.features), read_documents(project)
    folder = project.predictions if predictions is None else predictions
    timelines, unread = read_timelines(folder, best_run(documents.runs), documents.table)
    found = differences(timelines)
    pictures, not_pictured = (
        thumbnails(found, project.videos, project.settings.features.crop, project.digest_memo)
        if with_frames
        else ([], [])
    )
    maps, not_mapped = read_maps(project.runs / MAPS) if with_frames else ([], [])
    searches, damaged = draw_searches(documents.runs)
    tested = [run for run in documents.runs if has_scores(run.test)]
    not_shown = [f"{run.name}/{why}" for run in documents.runs for why in _not_shown(run)]
    documents = documents.with_problems([*unread, *damaged, *not_shown, *not_pictured, *not_mapped])
    ordered = in_order(timelines)
    of_maps, of_failures = (one.recording for one in maps), (recording for recording, _ in documents.failures)
    names = ShownNames([*(one.recording for one in ordered), *of_maps, *of_failures])
    rows = activity_rows(ordered)
    page = render_page(
        documents,
        searches,
        ordered,
        found,
        pictures,
        maps,
        rows,
        summarize(documents, timelines, found),
        names,
        project=project.root.resolve().name,
        features=features,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    private_folder(out.parent)
    write_private(out, page)
    table = out.with_name(f"{out.stem}.activities.csv") if rows else None
    if table is not None:
        write_private(table, activities_csv(rows, names))
    return Report(
        path=out,
        activities=table,
        size_bytes=len(page),
        methods=dict(zip(row_names(tested), (run.test for run in tested), strict=True)),
        recordings=len(timelines),
        differences=len(found),
        frames=len(pictures) + len(maps),
        problems=documents.problems,
    )


def _not_shown(run: Run) -> list[str]:
    """Documents of a run that can be read, but do not say what the page would show of them; and why."""
    metrics = {
        "test_metrics.json": run.test,
        METRICS_NAMES.get(str(run.best.get("scored")), METRICS_NAMES["validation"]): run.validation,
        "leave_one_session_out_metrics.json": run.each_session,
    }
    why = [f"{name}: its scores are not all numbers" for name, one in metrics.items() if one and not has_scores(one)]
    if run.best and not isinstance(run.best.get("settings"), Mapping):
        why.append("best.json: it has no settings")
    if run.bundle and not isinstance(run.bundle.get("labels"), list):
        why.append("bundle/bundle.json: it has no labels")
    if run.comparison and number(run.comparison.get("difference")) is None:
        why.append("test_comparison.json: its difference is not a number")
    if run.timelines and not isinstance(run.timelines.get("recordings"), list):
        why.append(f"{TIMELINES_NAME}: it has no list of recordings")
    if run.learning and (reason := learning_problem(run.learning)):
        why.append(f"learning.json: {reason}")
    return why


__all__ = ["Report", "write_report"]
