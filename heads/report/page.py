"""The page: one HTML file from what was read, with its figures, its style and its program inside.

Notable choices: Jinja escapes everything that comes from outside, and characters that would act or cannot be seen are
written as escapes; the two JSON blocks are escaped so that no text can end them. The Content-Security-Policy forbids
every connection and names the page's two programs by their sha256, so that no other could run. Recordings and sessions
are named without their folders.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from featurecache.spelling import visible
from heads.report.activities import Row, activities_content
from heads.report.documents import Documents
from heads.report.figures import Figure
from heads.report.frames import Thumbnail
from heads.report.learning import learning_content
from heads.report.maps import MapPicture, maps_content
from heads.report.names import ShownNames
from heads.report.provenance_view import provenance_content, search_content
from heads.report.scores_view import labels_content, methods_content
from heads.report.searching import DrawnSearch
from heads.report.summary import Summary, best_run, extent
from heads.report.timelines import Difference, Timeline
from heads.report.timelines_view import clock, drawn_timelines, timeline_scores_content, timelines_content

_SECTIONS = (
    ("summary", "Summary"),
    ("activities", "Activities"),
    ("methods", "Methods"),
    ("labels", "Labels"),
    ("search", "Search"),
    ("training", "Training"),
    ("timelines", "Timelines"),
    ("provenance", "Provenance"),
)


def render_page(
    documents: Documents,
    searches: Sequence[DrawnSearch],
    timelines: Sequence[Timeline],
    found: Sequence[Difference],
    thumbnails: Sequence[Thumbnail],
    maps: Sequence[MapPicture],
    rows: Sequence[Row],
    summary: Summary,
    names: ShownNames,
    *,
    project: str,
    features: Mapping[str, Any],
    made_at: str,
) -> bytes:
    """The page as UTF-8.

    Args:
        documents: The documents that the project has on disk.
        searches: The searches, drawn.
        timelines: Recordings with predictions, in the page's order.
        found: Their differences, the longest first.
        thumbnails: Frames of the first of them; empty unless asked for.
        maps: Pictures of what heads use; empty unless asked for.
        rows: What each activity took in them.
        summary: The summary at the top of the page.
        names: What recordings are called.
        project: The project's name.
        features: Settings of `[features]`.
        made_at: When, in words.
    """
    figures: dict[str, Figure] = {}
    parts = files("heads.report") / "parts"
    own = ("report.js", "look.css", "report.css")
    report_js, look, css = ((parts / name).read_text(encoding="utf-8") for name in own)
    plotly_js = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    content = {
        **activities_content(rows, best_run(documents.runs), documents.agreement, names, figures),
        **methods_content(documents, figures),
        **labels_content(documents, figures),
        **search_content(searches, figures),
        **learning_content(documents, figures),
        **timeline_scores_content(best_run(documents.runs), documents.agreement),
        **timelines_content(timelines, found, thumbnails, names),
        **maps_content(maps, names),
        **provenance_content(documents, names, features),
        # Their lines isolate names, with characters that `_seen` would show; names in them were made visible before.
        "summary": replace(
            summary, findings=tuple(map(escape, summary.findings)), cautions=tuple(map(escape, summary.cautions))
        ),
        "project": project,
        "extent": extent(documents.table, documents.sources),
        "looks": documents.looks.total,
        "sections": _SECTIONS,
        "made_at": made_at,
        "version": version("featurecache"),
        "policy": _policy(plotly_js, report_js),
        "css": Markup(look + css),  # noqa: S704 - our own files, as are the two programs
        "plotly_js": Markup(plotly_js),  # noqa: S704
        "report_js": Markup(report_js),  # noqa: S704
        "figures_json": _json_block(figures),
        "timelines_json": _json_block(drawn_timelines(timelines, found, names)),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False, finalize=_seen)
    environment.filters["clock"] = clock
    page = environment.from_string((parts / "report.html").read_text(encoding="utf-8")).render(content)
    return page.encode("utf-8", errors="replace")


def _seen(value: object) -> object:
    """What the page writes for a value: text from outside with what would act, or cannot be seen, as escapes."""
    return visible(value) if type(value) is str else value


def _policy(*programs: str) -> str:
    hashes = (base64.b64encode(hashlib.sha256(program.encode()).digest()).decode() for program in programs)
    scripts = " ".join(f"'sha256-{one}'" for one in hashes)
    # Plotly sets styles of its own, and makes pictures for saving from the page itself.
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json_block(value: object) -> Markup:
    """JSON that can stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - escaped here
