"""What a project has on disk, read for the report: every file may be missing, and none is changed.

A file that is there but cannot be read is named under `problems` and left out, so that one damaged run does not cost
the report of the others. Numbers are validated where they are shown, not here.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from featurecache import FeatureCache
from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.clips.label_counts import LabelSources
from featurecache.clips.record import read_record
from featurecache.errors import CacheFormatError, CacheNotFoundError, CacheReadError, ClipTableError
from featurecache.errors import FingerprintMismatchError as WrongRecordError
from featurecache.extraction.failures import read_rows
from featurecache.project.settings import Project
from featurecache.spec import json_object
from featurecache.store.index import Damage
from featurecache.store.view import Space
from heads.evaluation_log import EvaluationLog, read_evaluation_log
from heads.methods import FT_C_LORA, TIMESFORMER, ZS_B, ZS_TEXT, ZSC_CO, ZSC_J, method_of_head, rank_of
from heads.runs import METRICS_NAMES
from heads.search.study import JOURNAL_NAME
from heads.settings import HeadKind

Document = Mapping[str, Any]

TIMELINES_NAME = "test_timelines.json"

_METHOD_OF_FOLDER = {
    "lora": FT_C_LORA,
    "timesformer": TIMESFORMER,
    "zeroshot-zs-b": ZS_B,
    "zeroshot-zsc-co": ZSC_CO,
    "zeroshot-zsc-j": ZSC_J,
    "zeroshot-text": ZS_TEXT,
}


@dataclass(frozen=True, eq=False)
class Run:
    """One folder of `runs/`. Documents that are not there are empty.

    Attributes:
        name: The folder's name.
        method: The paper's name of the method.
        best: `best.json`.
        validation: `out_of_fold_metrics.json`; of a fine-tuned backbone `validation_metrics.json`.
        test: `test_metrics.json`.
        each_session: `leave_one_session_out_metrics.json`.
        comparison: `test_comparison.json`: this run against another one.
        bundle: `bundle/bundle.json`.
        looks: Number of test-set evaluations of this bundle.
        journal: The search's journal, where there is one.
        timelines: `test_timelines.json`: scored timelines of the test split's recordings.
        learning: `learning.json`: scores after each epoch.
    """

    name: str
    method: str
    best: Document
    validation: Document
    test: Document
    each_session: Document
    comparison: Document
    bundle: Document
    looks: int
    journal: Path | None
    timelines: Document
    learning: Document


@dataclass(frozen=True)
class Documents:
    """Everything the report is made of but the timelines.

    Attributes:
        runs: In the order of the paper's Table 1.
        looks: The log of test-set evaluations.
        table: The clip table, None where there is none.
        spaces: The cache's feature spaces.
        damage: What is damaged in the cache.
        failures: Recording and reason -> clips that could not be extracted.
        problems: Files that could not be read, and why.
        agreement: `agreement.json`: annotators against each other.
        compared: `compare.json`: all runs in one evaluation.
        sources: Who labelled the clips of the table when it was made.
    """

    runs: tuple[Run, ...]
    looks: EvaluationLog
    table: ClipTable | None
    spaces: tuple[Space, ...]
    damage: tuple[Damage, ...]
    failures: Mapping[tuple[str, str], int]
    problems: tuple[str, ...]
    agreement: Document
    compared: Document
    sources: LabelSources

    def with_problems(self, more: Sequence[str]) -> "Documents":
        """The same with more files that could not be read."""
        return replace(self, problems=(*self.problems, *more))


def read_documents(project: Project) -> Documents:
    """Reads what is there."""
    runs, problems = project.runs, list[str]()
    looks = _read_evaluation_log(runs / "test_looks.jsonl", problems)
    folders = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    agreement = read_json(runs / "agreement.json", problems)
    found = [run for folder in folders if (run := _read_run(folder, looks, problems)) is not None]
    spaces, damage = _read_cache(project.cache, problems)
    return Documents(
        runs=tuple(sorted(found, key=lambda run: (rank_of(run.method), run.name))),
        looks=looks,
        table=_read_clips(project.clips, problems),
        spaces=spaces,
        damage=damage,
        failures=_read_failures(project.failures, problems),
        problems=tuple(problems),
        agreement=agreement,
        compared=read_json(runs / "compare.json", problems),
        sources=read_record(project.table_record).sources,
    )


def read_json(path: Path, problems: list[str]) -> Document:
    """A JSON object; empty where there is no such file, or none that says anything, which goes into `problems`."""
    try:
        document = json_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name}: {_why(error)}")
        return {}
    if not document:
        problems.append(f"{path.parent.name}/{path.name}: it holds an empty JSON object")
    return document


def number(value: object) -> float | None:
    """A finite number, or None for whatever else a document holds there."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def unit_of(metrics: Document) -> str:
    """What was scored: "clip", or "sample" of several."""
    return "sample" if metrics.get("unit") == "sample" else "clip"


def has_scores(metrics: Document) -> bool:
    """Whether metrics can be set beside others: an F1 of each label, macro-F1 and its interval, numbers or null."""
    per_class, interval = metrics.get("per_class"), metrics.get("macro_f1_ci95")
    if not isinstance(per_class, dict) or not all(isinstance(scores, dict) for scores in per_class.values()):
        return False
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        return False
    values = [metrics.get("macro_f1"), *(scores.get("f1") for scores in per_class.values())]
    return all(value is None or number(value) is not None for value in values) and None not in map(
        number, interval or ()
    )


def _read_run(folder: Path, looks: EvaluationLog, problems: list[str]) -> Run | None:
    is_cross_validated = (folder / METRICS_NAMES["out-of-fold"]).exists()
    best, validation, test, each_session, comparison, bundle, timelines, learning = (
        read_json(folder / name, problems)
        for name in (
            "best.json",
            METRICS_NAMES["out-of-fold" if is_cross_validated else "validation"],
            "test_metrics.json",
            "leave_one_session_out_metrics.json",
            "test_comparison.json",
            "bundle/bundle.json",
            TIMELINES_NAME,
            "learning.json",
        )
    )
    journal = path if (path := folder / JOURNAL_NAME).exists() else None
    if not (best or validation or test or each_session or bundle or learning or journal):
        return None
    return Run(
        folder.name,
        _method(folder.name, best),
        best,
        validation,
        test,
        each_session,
        comparison,
        bundle,
        looks.by_bundle.get(str(bundle.get("sha256")), 0),
        journal,
        timelines,
        learning,
    )


def _method(folder: str, best: Document) -> str:
    """The paper's name of a run's method, by its folder or its head; the folder's name where that says nothing."""
    for prefix, method in _METHOD_OF_FOLDER.items():
        if folder == prefix or folder.startswith(f"{prefix}-"):
            return method
    settings = best.get("settings")
    kind, prior = (settings.get("kind"), settings.get("prior")) if isinstance(settings, Mapping) else (None, None)
    if kind not in get_args(HeadKind):
        return folder
    return method_of_head(kind, "words" if prior == "words" else "none")  # type: ignore[arg-type]


def _read_evaluation_log(path: Path, problems: list[str]) -> EvaluationLog:
    try:
        found = read_evaluation_log(path)
    except OSError as error:
        problems.append(f"{path.name}: {_why(error)}")
        return EvaluationLog(0, {}, 0)
    if found.unreadable:
        problems.append(
            f"{path.name}: {found.unreadable} of its lines cannot be read, and each counts as a test-set evaluation"
        )
    return found


def _read_clips(path: Path, problems: list[str]) -> ClipTable | None:
    try:
        return read_table(path, allow_clip_level=True)  # the report says so instead of refusing
    except FileNotFoundError:
        return None
    except (ClipTableError, OSError) as error:
        if path.exists():
            problems.append(f"{path.name}: {_why(error)}")
        return None


def _read_cache(path: Path, problems: list[str]) -> tuple[tuple[Space, ...], tuple[Damage, ...]]:
    try:
        cache = FeatureCache.open(path)
        return cache.spaces, cache.damage
    except CacheNotFoundError:
        return (), ()
    except (CacheFormatError, CacheReadError, WrongRecordError) as error:
        problems.append(f"{path.name}: {_why(error)}")
        return (), ()


def _read_failures(path: Path, problems: list[str]) -> dict[tuple[str, str], int]:
    try:
        rows = read_rows(path)
    except (OSError, ClipTableError) as error:
        problems.append(f"{path.name}: {_why(error)}")
        return {}
    clips = {clip.clip_id: clip for clip in rows.values()}  # one for all the feature spaces that lack it
    return dict(Counter((clip.recording, clip.reason) for clip in clips.values()))


def _why(error: Exception) -> str:
    """The reason without the path that the system's errors carry."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
