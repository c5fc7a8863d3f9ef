"""Seconds, bouts and first starts of each activity, annotated beside predicted: the page's first tables, and a CSV.

Only time that was scored, and annotated where there is an annotation, is counted on either side
(`Timeline.compared_us`), so that the two columns speak of the same time. The page shows sessions that no training saw;
the CSV has all recordings with a timeline. What annotators agree on, where two annotated the same recordings, is the
ceiling.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.csv_fields import csv_bytes, guard_cell
from heads.report.documents import Document, Run, number
from heads.report.figures import Figure, keep, per_class, plain
from heads.report.names import ShownNames, last_part
from heads.report.timelines import Timeline, total_us
from heads.timelines.activity import Activity, LimitsOfAgreement, activity_of, limits_of_agreement, together

_COLUMNS = (
    *("level", "session", "recording", "split", "label", "compared_s"),
    *("annotated_s", "predicted_s", "difference_s"),
    *("annotated_bouts", "predicted_bouts"),
    *("annotated_first_start_s", "predicted_first_start_s"),
    *("annotated_median_between_starts_s", "predicted_median_between_starts_s"),
)


@dataclass(frozen=True)
class Row:
    """One activity of one recording or session.

    Attributes:
        session: Group of recordings; "" where unknown.
        recording: The recording; None for all of the session's together.
        split: "train", "validation", "test", or "" where unknown.
        label: The activity.
        compared_s: Time that counts.
        annotated: By the annotator; None where nobody annotated.
        predicted: By the model.
    """

    session: str
    recording: str | None
    split: str
    label: str
    compared_s: float
    annotated: Activity | None
    predicted: Activity


def activity_rows(timelines: Sequence[Timeline]) -> list[Row]:
    """The rows of every recording, then of every session whose recordings are all annotated, or none of them."""
    of_recordings = [
        Row(
            one.session,
            one.recording,
            one.split,
            label,
            total_us(one.compared_us) / 1e6,
            None if one.annotated is None else activity_of(one.annotated.get(label, []), one.compared_us),
            activity_of(one.predicted.get(label, []), one.compared_us),
        )
        for one in timelines
        for label in one.labels
    ]
    by_session: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in of_recordings:
        if row.session:
            by_session[row.session, row.split, row.label].append(row)
    of_sessions = []
    for (session, split, label), rows in by_session.items():
        annotated = [row.annotated for row in rows if row.annotated is not None]
        if annotated and len(annotated) < len(rows):
            rows = [row for row in rows if row.annotated is not None]
        of_sessions.append(
            Row(
                session,
                None,
                split,
                label,
                sum(row.compared_s for row in rows),
                together(annotated) if annotated else None,
                together([row.predicted for row in rows]),
            )
        )
    return [*of_recordings, *of_sessions]


def activities_csv(rows: Sequence[Row], names: ShownNames) -> bytes:
    """The rows as CSV; recordings and sessions without folders, text guarded against formulas."""
    table: list[Sequence[object]] = [_COLUMNS]
    for row in rows:
        sides = (row.annotated, row.predicted)
        seconds = [None if side is None else side.seconds for side in sides]
        difference = None if seconds[0] is None else row.predicted.seconds - seconds[0]
        table.append(
            [
                "session" if row.recording is None else "recording",
                guard_cell(last_part(row.session)),
                "" if row.recording is None else guard_cell(names[row.recording]),
                row.split,
                guard_cell(row.label),
                *map(_seconds, (row.compared_s, *seconds, difference)),
                *("" if side is None else side.bouts for side in sides),
                *(_seconds(None if side is None else side.first_s) for side in sides),
                *(_seconds(None if side is None else side.median_between_starts_s) for side in sides),
            ]
        )
    return csv_bytes(table)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def activities_content(
    rows: Sequence[Row], best: Run | None, agreement: Document, names: ShownNames, figures: dict[str, Figure]
) -> dict[str, Any]:
    """What the activities section shows: annotated recordings of the test split, or of any split where it has none."""
    annotated = [row for row in rows if row.annotated is not None]
    shown = [row for row in annotated if row.split == "test"] or annotated
    sessions = [row for row in shown if row.recording is None] or shown
    labels = list(dict.fromkeys(row.label for row in shown))
    scores = best.timelines.get("scores") if best is not None else None
    return {
        "activity_split": "test" if shown and shown[0].split == "test" else "",
        "activities": [_summary(label, sessions, scores, agreement, figures, at) for at, label in enumerate(labels)],
        "first_starts": [first for label in labels if (first := _first_starts(label, shown)) is not None],
        "activity_sessions": [_shown(row, names) for row in sessions],
        "activity_recordings": [_shown(row, names) for row in shown if row.recording is not None],
        "has_ceiling": isinstance(agreement.get("per_class"), Mapping),
    }


def _summary(
    label: str,
    sessions: Sequence[Row],
    scores: object,
    agreement: Document,
    figures: dict[str, Figure],
    at: int,
) -> dict[str, Any]:
    """A label over all sessions, with its picture."""
    own = [row for row in sessions if row.label == label]
    pairs = [(row.annotated, row.predicted) for row in own if row.annotated is not None]
    theirs, ours = [one.seconds for one, _ in pairs], [one.seconds for _, one in pairs]
    limits = limits_of_agreement(theirs, ours)
    return {
        "label": label,
        "seconds": (sum(theirs), sum(ours)),
        "bouts": (sum(one.bouts for one, _ in pairs), sum(one.bouts for _, one in pairs)),
        "limits": limits,
        "kappa": number(per_class(scores, label).get("kappa")) if isinstance(scores, Mapping) else None,
        "ceiling": number(per_class(agreement, label).get("kappa")),
        "figure_id": keep(
            figures, f"agreement-{at}", _agreement_figure([row.session for row in own], theirs, ours, limits)
        ),
    }


def _first_starts(label: str, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Time from a recording's start to a label's first bout; None where no recording has one on either side.

    Differences are means over the recordings of a session, so that sessions are compared.
    """
    pairs = [
        (row.session or row.recording or "", row.annotated.first_s, row.predicted.first_s)
        for row in rows
        if row.label == label and row.recording is not None and row.annotated is not None
    ]
    both = [(session, theirs, ours) for session, theirs, ours in pairs if theirs is not None and ours is not None]
    if all(theirs is None and ours is None for _, theirs, ours in pairs):
        return None
    by_session: dict[str, list[float]] = defaultdict(list)
    for session, theirs, ours in both:
        by_session[session].append(ours - theirs)
    differences = [float(np.mean(own)) for own in by_session.values()]
    return {
        "label": label,
        "medians": [float(np.median([pair[side] for pair in both])) if both else None for side in (1, 2)],
        "limits": limits_of_agreement([0.0] * len(differences), differences),
        "both": len(both),
        "alone": [
            sum(theirs is not None and ours is None for _, theirs, ours in pairs),
            sum(theirs is None and ours is not None for _, theirs, ours in pairs),
        ],
    }


def _shown(row: Row, names: ShownNames) -> dict[str, Any]:
    sides = (row.annotated, row.predicted)
    return {
        "session": last_part(row.session),
        "recording": None if row.recording is None else names[row.recording],
        "label": row.label,
        "compared": row.compared_s,
        "seconds": [side and side.seconds for side in sides],
        "bouts": [side and side.bouts for side in sides],
        "first": [side and side.first_s for side in sides],
        "between": [side and side.median_between_starts_s for side in sides],
    }


def _agreement_figure(
    sessions: Sequence[str], annotated: Sequence[float], predicted: Sequence[float], limits: LimitsOfAgreement | None
) -> Figure | None:
    """Bland and Altman's picture: each session's difference over its mean, with mean difference and limits."""
    if limits is None:
        return None
    means = [(one + other) / 2 for one, other in zip(annotated, predicted, strict=True)]
    differences = [other - one for one, other in zip(annotated, predicted, strict=True)]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": differences,
        "text": [plain(last_part(session)) for session in sessions],
        "marker": {"color": "@c0", "size": 8},
        "hovertemplate": "%{text}: mean of both %{x:.1f} s, predicted minus annotated %{y:+.1f} s<extra></extra>",
    }
    lines = ((limits.mean, "solid"), (limits.limits[0], "dot"), (limits.limits[1], "dot"))
    shapes = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": y,
            "y1": y,
            "line": {"color": "@c1", "width": 1.5, "dash": dash},
        }
        for y, dash in lines
    ]
    layout = {
        "height": 230,
        "margin": {"l": 54, "r": 10, "t": 14, "b": 38},
        "xaxis": {"title": {"text": "mean of both (s)", "standoff": 4}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "predicted - annotated (s)", "standoff": 4}, "zeroline": True},
        "shapes": shapes,
        "showlegend": False,
    }
    return {"data": [points], "layout": layout}
