"""Recordings to review, with timelines made by hand, and the page's server; run as a program, a server to kill."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heads.review.recordings import Reviewable
from heads.review.server import ReviewServer
from tests.make_videos import write_video

LABELS = ("ventilation", "suction")
HOSTILE_NAME = "S3 <img src=x onerror=document.title=1>.avi"
SECOND_US = 1_000_000
DURATION_US = 20 * SECOND_US
SUGGESTED = {"S1.mp4": [(2, 12, 20)], HOSTILE_NAME: [(1, 8, 12), (3, 0, 4)]}
"""Recording -> rank, start and end in seconds."""

RETRAINED = {
    "before": {"macro_f1": 0.5, "macro_f1_ci95": [0.4, 0.6]},
    "after": {"macro_f1": 0.75, "macro_f1_ci95": None},
    "comparison": {"difference": 0.25, "difference_ci95": [0.1, 0.4], "p_value": 0.01, "n_sessions": 6},
    "clips": 120,
    "sessions": 6,
    "reviewed_clips": 14,
}


def reviewables(root: Path, *, better: bool = False) -> list[Reviewable]:
    """An annotated recording that a browser plays, one of the test split, and one in a codec that no browser plays."""
    root.mkdir(parents=True, exist_ok=True)
    annotated = {"ventilation": [[2, 6]], "suction": [[9, 11]]}
    made = []
    for at, (name, codec, split) in enumerate(
        [("S1.mp4", "libx264", "train"), ("S2.mp4", "libx264", "test"), (HOSTILE_NAME, "mpeg4", "")]
    ):
        path = root / name
        if not path.exists():
            write_video(path, count=200, fps=10, codec=codec, size=(320, 180), metadata={"comment": name})
        if better and name == "S1.mp4":  # what the annotator says
            predicted = {label: [[*span, 0.9] for span in spans] for label, spans in annotated.items()}
        else:
            predicted = {"ventilation": [[2, 7, 0.9], [12, 15, 0.7]], "suction": [[16, 18, 0.6]]}
        document = _timeline(f"{at:016x}", name, predicted, annotated if split else None)
        suggested = [(rank, start * SECOND_US, end * SECOND_US) for rank, start, end in SUGGESTED.get(name, ())]
        made.append(Reviewable(f"{at:016x}", name, path, f"session {at}", split, 10.0, document, suggested))
    return made


def _timeline(content: str, name: str, predicted: dict[str, Any], annotated: Any) -> dict[str, Any]:
    def in_us(spans: dict[str, Any]) -> dict[str, Any]:
        return {
            label: [[start * SECOND_US, end * SECOND_US, *rest] for start, end, *rest in own]
            for label, own in spans.items()
        }

    spans = [(at, at + 1) for at in range(20)]
    scores = {
        label: [0.8 if any(start < at + 1 and at < end for start, end, _ in own) else 0.2 for at, _ in spans]
        for label, own in predicted.items()
    }
    return {
        "recording": {"name": name, "content": content, "duration_us": DURATION_US},
        "labels": list(LABELS),
        "thresholds": dict.fromkeys(LABELS, 0.5),
        "clips": {
            "length_us": SECOND_US,
            "spans_us": [[start * SECOND_US, end * SECOND_US] for start, end in spans],
            "scores": scores,
        },
        "scored_us": [[0, DURATION_US]],
        "predicted": in_us(predicted),
        "annotated": None if annotated is None else in_us(annotated),
        "annotated_us": None if annotated is None else [[0, DURATION_US]],
    }


def make_server(root: Path) -> ReviewServer:
    """The server of a folder's recordings, whose reviews lie in `reviewed`."""
    return ReviewServer(
        reviewables(root),
        folder=root / "reviewed",
        copies=root / "copies",
        reviewer="anna",
        report=root / "report.html",
        retrain=lambda: (reviewables(root, better=True), RETRAINED),
    )


@contextmanager
def served(root: Path) -> Iterator[ReviewServer]:
    """Such a server that answers."""
    server = make_server(root)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.close()


if __name__ == "__main__":
    killed = make_server(Path(sys.argv[1]))
    sys.stdout.write(f"{killed.address}\n")
    sys.stdout.flush()
    killed.serve()
