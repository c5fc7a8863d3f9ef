"""Projects for the report's tests, written as the commands leave them on disk, without training or video."""

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from featurecache.clips.clip import Clip, ClipTable, clip_id
from featurecache.clips.csv_file import format_table
from featurecache.project.features import FeatureSettings
from featurecache.project.settings import DataSettings, Project, Settings
from heads.report import Report, write_report

LABELS = ("ventilation", "stimulation", "suction")
CLIP_US = 3_000_000

Spans = Mapping[str, Sequence[Sequence[Any]]]


def write_project(
    root: Path,
    *,
    labels: Sequence[str] = LABELS,
    recordings: Sequence[str] = ("S1/a.mp4", "S2/b.mp4", "S3/c.mp4"),
    clips: int = 40,
    trials: int = 12,
    split_of: Sequence[str] = ("train", "validation", "test"),
) -> Path:
    """Two runs with all their documents, a search, a clip table, looks, and predictions of every recording."""
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    table = make_table(labels, recordings, clips, split_of)
    (root / "clips.csv").write_bytes(format_table(table))
    for name, kind, noise in (("train", "mlp", 0.9), ("tune", "linear", 0.5)):
        write_run(root / "runs" / name, labels, kind=kind, noise=noise, draw=draw)
    write_study(root / "runs" / "tune" / "study.journal", trials)
    look = {
        "bundle": content_of("tune"),
        "sessions": ["of the test split"],
        "split": "test",
    }
    (root / "runs" / "test_looks.jsonl").write_text(json.dumps(look) + "\n" + json.dumps(look) + "\n")
    write_json(root / "runs" / "tune" / "test_timelines.json", {"scores": timeline_scores(labels), "recordings": []})
    for recording in recordings:
        own = [clip for clip in table.clips if clip.recording == recording]
        annotated = {
            label: [[clip.start_us, clip.end_us] for clip in own if clip.targets[at] == 1]
            for at, label in enumerate(labels)
        }
        predicted = {label: [shifted(span, draw) for span in spans[1:]] for label, spans in annotated.items()}
        write_prediction(root, recording, predicted, annotated, duration_us=clips * CLIP_US)
    return root


def make_table(labels: Sequence[str], recordings: Sequence[str], clips: int, split_of: Sequence[str]) -> ClipTable:
    """A clip table of made-up targets; a recording is a session."""
    draw = random.Random(0)
    rows = []
    for at, recording in enumerate(recordings):
        content = content_of(recording)
        for index in range(clips):
            span = (index * CLIP_US, (index + 1) * CLIP_US)
            targets = tuple(int(draw.random() < 0.6 / (1 + label)) for label in range(len(labels)))
            split = split_of[at % len(split_of)]
            rows.append(Clip(clip_id(content, *span), recording, f"session {at}", split, *span, targets))
    return ClipTable(tuple(labels), tuple(rows))


def write_run(folder: Path, labels: Sequence[str], *, kind: str, noise: float, draw: np.random.Generator) -> None:
    """best.json, bundle.json and the metrics of two splits."""
    best = {
        "value": 0.6,
        "settings": {"kind": kind, "learning_rate": 0.001, "positive_weight_exponent": [0.5] * len(labels)},
        "labels": list(labels),
        "fingerprint": "0" * 64,
        "seed": 0,
        "versions": {"featurecache": "0.1.0"},
        "trials": {"completed": 12, "pruned": 0},
        "importances": {"learning_rate": 0.625, "dropout": 0.375},
    }
    write_json(folder / "best.json", best)
    write_json(
        folder / "bundle" / "bundle.json",
        {"format": 4, "labels": list(labels), "thresholds": [0.4] * len(labels), "sha256": content_of(folder.name)},
    )
    for split in ("validation", "test"):
        Y = (draw.random((200, len(labels))) < 0.6 / (1 + np.arange(len(labels)))).astype(int)
        Y[0] = 1
        scores = 1 / (1 + np.exp(-(3 * (Y - 0.5) + 4 * noise * draw.normal(size=Y.shape))))
        write_json(folder / f"{split}_metrics.json", metrics_of(Y, scores, labels, split))


def metrics_of(Y: Any, scores: Any, labels: Sequence[str], split: str) -> dict[str, Any]:
    """The document of a split, by the product's own functions."""
    from heads.scoring.calibration import calibration_document
    from heads.scoring.curves import curves
    from heads.scoring.decision import decision_curves, prevalence_shift
    from heads.scoring.metrics import metrics_document

    sessions = np.array([f"session {at % 6}" for at in range(len(Y))])
    document = metrics_document(Y, scores, np.full(len(labels), 0.4), sessions, labels=labels, split=split)
    calibration = calibration_document(Y, scores, None, labels=labels)
    return document | {
        "curves": curves(Y, scores, labels=labels),
        "calibration": calibration,
        "decision_curves": decision_curves(Y, scores, labels=labels),
        "prevalence_shift": prevalence_shift(Y, scores >= 0.4, np.full(len(labels), 0.4), labels=labels),
        "overlap_sensitivity": [
            {
                "share": share,
                "own": share == 0,
                "macro_f1": 0.5,
                "macro_f1_ci95": [0.4, 0.6],
                "support": dict.fromkeys(labels, 9),
            }
            for share in (0.0, 0.5)
        ],
        "exclusive_violations": [{"labels": list(labels[:2]), "clips": 3, "of": 168}],
    }


def write_learning(folder: Path, epochs: int, kept: int) -> None:
    """Learning curves that fall on training clips and turn on validation."""
    rows = [
        {
            "epoch": epoch,
            "train_loss": 0.6 / (1 + epoch) if epoch else None,
            "validation_loss": 0.5 + 0.01 * (epoch - kept) ** 2,
            "validation_macro_f1": 0.7 - 0.02 * abs(epoch - kept),
        }
        for epoch in range(epochs + 1)
    ]
    write_json(folder / "learning.json", {"method": "FT-C-LoRA", "kept_epoch": kept, "epochs": rows})


def write_study(journal: Path, trials: int, *, numeric_choice: bool = False) -> None:
    """A study in Optuna's journal file, as a search leaves it."""

    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(study_name="tune", storage=storage, direction="maximize")
    draw = random.Random(0)
    for _ in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("learning_rate", 1e-5, 0.1, log=True)
        trial.suggest_float("dropout", 0.0, 0.5)
        trial.suggest_categorical("kind", ["linear", "mlp"])
        if numeric_choice:  # by which Optuna sorts the lines of its parallel coordinates
            trial.suggest_categorical("hidden_width", [64, 16, 32])
        study.tell(trial, 0.4 + 10 * rate / 3 + 0.05 * draw.random())


def write_prediction(
    root: Path, recording: str, predicted: Spans, annotated: Spans | None, *, duration_us: int, content: str = ""
) -> None:
    """The predicted timeline of a recording."""
    document = {
        "kind": "featurecache timeline",
        "format": 1,
        "recording": {"name": recording, "content": content or content_of(recording)[:16], "duration_us": duration_us},
        "labels": list(predicted),
        "scored_us": [[0, duration_us]],
        "predicted": predicted,
        "annotated": annotated,
        "annotated_us": None if annotated is None else [[0, duration_us]],
    }
    write_json(root / "predictions" / f"{recording}.predicted.json", document)


def timeline_scores(labels: Sequence[str]) -> dict[str, Any]:
    """Scores of two made-up timelines of two sessions, by the product's own functions."""
    from featurecache.annotations import Interval
    from heads.timelines.scores import compare_timelines, scores_document

    annotated = [Interval(0, 4_000_000, label) for label in labels]
    predicted = [Interval(1_000_000, 5_000_000, label) for label in labels]
    compared = compare_timelines(annotated, predicted, labels=labels, within=[(0, 9_000_000)])
    return scores_document([compared, compared], ["S1", "S2"], labels=labels)


def project_at(root: Path, **features: Any) -> Project:
    """Such a project with its settings."""
    settings = FeatureSettings(**{"model": "/models/secret/LLaVA", "prompt": "USER: <video>", **features})
    return Project(root, Settings(DataSettings(Path("videos")), settings))


def report_on(root: Path, out: Path | None = None, *, with_frames: bool = False, **features: Any) -> Report:
    """The report of such a project."""
    return write_report(project_at(root, **features), out, with_frames=with_frames)


def long_timeline(seed: int, *, hours: float, count: int, labels: Sequence[str] = LABELS) -> Spans:
    """Intervals spread over hours, `count` of each label."""
    draw = random.Random(seed)
    step = hours * 3600e6 / count
    return {
        label: [[int(at * step), int(at * step + step * (0.2 + 0.6 * draw.random())), 0.5] for at in range(count)]
        for label in labels
    }


def shifted(span: Sequence[int], draw: np.random.Generator) -> list[Any]:
    """An interval with its end moved a little, and a confidence."""
    start, end = span
    return [start, end - int(draw.integers(0, 900_000)), float(draw.random())]


def content_of(recording: str) -> str:
    """The digest that a recording's content would have."""
    return hashlib.sha256(recording.encode()).hexdigest()


def write_json(path: Path, document: Any) -> None:
    """A document of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


HOSTILE = '<script>alert("1")</script>'


RIGHT_TO_LEFT = "\u05d4\u05d7\u05d9\u05d9\u05d0\u05d4 \u202e\u2067"


class Page(HTMLParser):
    """What a browser would see: its elements with their attributes, its text, its two JSON blocks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.texts: list[str] = []
        self.blocks: dict[str, Any] = {}
        self._in: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in = (tag, dict(attributes))
        self.elements.append(self._in)

    def handle_data(self, data: str) -> None:
        tag, attributes = self._in
        if tag == "script" and attributes.get("type") == "application/json" and data.strip():
            self.blocks[str(attributes["id"])] = json.loads(data)
        elif tag not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
