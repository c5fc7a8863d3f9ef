"""What to annotate next, for the annotators: a table, and an `.eaf` for each recording with a tier "please annotate".

Notable choices: what is suggested is unlabelled time of sessions that do not test; a test set whose stretches a model
chose would measure another question. Where the settings have an annotated span, which lets one stretch of a recording
be labelled and the rest not, stretches are suggested; elsewhere whole recordings, since whatever is not annotated in an
annotated recording is negative. Nothing of the annotators is touched: each call writes into a new folder, and readers
of annotations skip its files and tiers by their names.

What this is not: a promise that fewer minutes suffice. `benchmarks/RESULTS.md` says what orders were worth.
"""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.annotations import Interval, add_requests, linked_document, save_eaf
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.clips.matching import find_annotations
from featurecache.csv_fields import csv_bytes, format_seconds, guard_cell, parse_seconds, unguard_cell
from featurecache.errors import AnnotationError, FeatureCacheError, TrainingDataError, UsageError
from featurecache.extraction.failures import known_failures
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project
from featurecache.video.recordings import UnusableRecording
from featurecache.workflow.withdrawal import SUGGESTIONS
from heads.bundle import Bundle, load_bundle
from heads.data import row_blocks
from heads.loading import read_features
from heads.scoring.acquisition import label_doubt, suggested_order
from heads.workflow.data import own_table, tuned_bundle

Order = Literal["random", "doubt", "suggested"]
ORDERS: tuple[Order, ...] = get_args(Order)
COLUMNS = ("rank", "recording", "session", "start_s", "end_s", "doubt", "likely")
TABLE = "suggestions.csv"

_TINY = 1e-12


@dataclass(frozen=True)
class Stretch:
    """Unlabelled time of a recording that is to be annotated.

    Attributes:
        recording: Its recording.
        session: Its session.
        start_us: Start on the recording's clock.
        end_us: End, exclusive.
        doubt: Mean doubt of its clips in bits; None where no bundle was asked.
        likely: Labels that the bundle predicts somewhere in it.
    """

    recording: str
    session: str
    start_us: int
    end_us: int
    doubt: float | None = None
    likely: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestions:
    """What to annotate next.

    Attributes:
        order: How it was chosen.
        are_recordings: Whether whole recordings are meant, not stretches of them.
        stretches: In the order in which to annotate them.
        unlabelled_s: Seconds that could have been suggested.
        without_features: Unlabelled clips that could not be extracted, which doubt says nothing of.
        folder: The folder of the files.
        table: The CSV.
        documents: The `.eaf` files.
        left_out: Recordings without an `.eaf`, and why; annotation files that could not be read.
    """

    order: Order
    are_recordings: bool
    stretches: tuple[Stretch, ...]
    unlabelled_s: float
    without_features: int
    folder: Path
    table: Path
    documents: tuple[Path, ...]
    left_out: tuple[UnusableRecording, ...]


@dataclass(frozen=True, eq=False)
class _Unit:
    """Clips that follow each other in a recording and are annotated together or not at all."""

    clips: tuple[Clip, ...]

    def stretch(self, doubt: float | None = None, likely: tuple[str, ...] = ()) -> Stretch:
        first, last = self.clips[0], self.clips[-1]
        return Stretch(first.recording, first.session, first.start_us, last.end_us, doubt, likely)

    @property
    def seconds(self) -> float:
        return (self.clips[-1].end_us - self.clips[0].start_us) / 1e6


def suggest(
    project: Project,
    *,
    minutes: float = 10.0,
    order: Order = "random",
    stretch_s: float = 30.0,
    bundle: Path | None = None,
    seed: int = 0,
) -> Suggestions:
    """Chooses unlabelled time to annotate next, and writes it for the annotators into `suggestions/`.

    Args:
        project: The project.
        minutes: Time that can be annotated; the last stretch may exceed it.
        order: "random"; "doubt", the stretches that the bundle doubts most; "suggested", doubt and novelty, rare labels
            first, spread over sessions.
        stretch_s: Length of a stretch, where the settings have an annotated span.
        bundle: The bundle's folder; None: the one of `tune`. A random order needs none.
        seed: Of the random order.

    Raises:
        ClipTableError: If there is no sound clip table.
        TrainingDataError: If nothing is unlabelled.
        UsageError: If a bundle is named for a random order.
        BundleError: If the bundle is missing or damaged, or its labels are not the table's.
        MissingFeaturesError: If a clip is missing from the cache for no recorded reason.
        AnnotationError: If the settings' annotations are missing.
    """
    check_table(project, use="targets")
    if order == "random" and bundle is not None:
        raise UsageError("a random order asks no bundle, but one was named. Choose another order, or name no bundle.")
    head = None if order == "random" else load_bundle(bundle if bundle is not None else tuned_bundle(project))
    if head is None:
        table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    else:
        table = own_table(project, head)
    are_recordings = project.settings.data.annotated_span is None
    length_us = None if are_recordings else round(Decimal(str(stretch_s)) * 1_000_000)
    free = _units([clip for clip in table.clips if not clip.labelled and clip.split != "test"], length_us)
    if not free:
        raise TrainingDataError(
            "suggestions need unlabelled clips of sessions that do not test, but clips.csv has none. "
            + ("Add recordings and run: featurecache clips." if are_recordings else "Add recordings, or stop here.")
        )
    unlabelled_s, without = sum(unit.seconds for unit in free), 0
    if head is None:
        ranked = _within(free, np.random.default_rng(seed).permutation(len(free)).tolist(), minutes * 60)
        chosen = [free[at].stretch() for at in ranked]
    else:
        chosen, without = _by_doubt(project, head, table, free, length_us, minutes * 60, order)
    return _written(project, order, are_recordings, chosen, unlabelled_s, without)


def newest_suggestions(project: Project) -> dict[str, list[tuple[int, int, int]]]:
    """Recording -> stretches of the newest round: rank, start and end in microseconds; empty where there is none.

    Raises:
        AnnotationError: If its table was changed so that it cannot be read.
    """
    rounds = {path: path.parent.name.removeprefix("round-") for path in (project.root / SUGGESTIONS).glob(f"*/{TABLE}")}
    numbered = {path: int(number) for path, number in rounds.items() if number.isdecimal()}
    if not numbered:
        return {}
    path = max(numbered, key=numbered.__getitem__)
    found: dict[str, list[tuple[int, int, int]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                start_us, end_us = parse_seconds(row["start_s"]), parse_seconds(row["end_s"])
                if not 0 <= start_us < end_us:
                    raise ValueError(f"no stretch goes from {start_us} to {end_us} us")
                found.setdefault(unguard_cell(row["recording"]), []).append((int(row["rank"]), start_us, end_us))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise AnnotationError(
            f"suggestions must be as suggest wrote them, but {path} cannot be read ({type(error).__name__}: {error}). "
            "Run again: featurecache suggest."
        ) from error
    return found


def checked_order(name: str) -> Order:
    """The order of that name.

    Raises:
        UsageError: If there is none.
    """
    for order in ORDERS:
        if name == order:
            return order
    raise UsageError(f"the order must be one of {', '.join(ORDERS)}, but it is {name!r}. Choose one of these.")


def _units(clips: Sequence[Clip], length_us: int | None) -> list[_Unit]:
    """Runs of clips of a recording, in parts of at most so long where a length is given."""
    units: list[list[Clip]] = []
    for clip in clips:
        run = units[-1] if units else []
        goes_on = bool(run) and run[-1].recording == clip.recording and clip.start_us <= run[-1].end_us
        if goes_on and (length_us is None or clip.end_us - run[0].start_us <= length_us):
            run.append(clip)
        else:
            units.append([clip])
    return [_Unit(tuple(run)) for run in units]


def _within(units: Sequence[_Unit], ranked: Sequence[int], budget_s: float) -> list[int]:
    """The first of them, until the budget is used up; the last one may exceed it."""
    spent = itertools.accumulate((units[at].seconds for at in ranked), initial=0.0)
    return [at for at, before in zip(ranked, spent, strict=False) if before < budget_s]


def _by_doubt(
    project: Project,
    head: Bundle,
    table: ClipTable,
    free: Sequence[_Unit],
    length_us: int | None,
    budget_s: float,
    order: Order,
) -> tuple[list[Stretch], int]:
    """The chosen stretches, and how many clips have no feature."""
    labelled = [clip for clip in table.clips if clip.labelled and clip.split != "test"]
    cache, known = FeatureCache.open(project.cache), known_failures(project)
    ids = [clip.clip_id for unit in (*free, _Unit(tuple(labelled))) for clip in unit.clips]
    missing = known.missing(cache, ids, head.spaces)
    candidates = _units([clip for unit in free for clip in unit.clips if clip.clip_id not in missing], length_us)
    seen = _units([clip for clip in labelled if clip.clip_id not in missing], length_us)
    if not candidates:
        raise TrainingDataError(
            f"doubt needs features of unlabelled clips, but none of {len(ids) - len(labelled)} could be extracted. "
            "See failed_clips.csv, or take --order random."
        )
    places, scores = _places_and_scores(cache, head, [*seen, *candidates])
    probabilities = scores if head.calibration is None else head.calibration.apply(scores)
    positives = np.array([clip.targets for clip in labelled], np.int64).reshape(-1, len(head.labels)).sum(axis=0)
    before = sum(len(unit.clips) for unit in seen)
    of_clips = label_doubt(probabilities[before:], positives.tolist())
    on = head.predicted(scores[before:])
    borders = np.cumsum([0, *(len(unit.clips) for unit in candidates)])
    doubt = np.array([of_clips[start:end].mean() for start, end in itertools.pairwise(borders)])
    if order == "doubt":
        ranked = _within(candidates, np.argsort(-doubt, kind="stable").tolist(), budget_s)
    else:
        sessions = np.array([unit.clips[0].session for unit in candidates])
        seconds = np.array([unit.seconds for unit in candidates])
        vectors = _centred(places, len(seen))
        ranked = suggested_order(
            doubt, vectors[len(seen) :], vectors[: len(seen)], sessions, seconds, budget_s=budget_s
        )
    stretches = []
    for at in ranked:
        likely = np.any(on[borders[at] : borders[at + 1]], axis=0).tolist()
        stretches.append(candidates[at].stretch(float(doubt[at]), tuple(itertools.compress(head.labels, likely))))
    return stretches, sum(len(unit.clips) for unit in free) - sum(len(unit.clips) for unit in candidates)


def _places_and_scores(
    cache: FeatureCache, head: Bundle, units: Sequence[_Unit]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Mean features of U units, shape (U, D), and scores of all their N clips, shape (N, C), read once in blocks."""
    ids = [clip.clip_id for unit in units for clip in unit.clips]
    unit_of = np.repeat(np.arange(len(units)), [len(unit.clips) for unit in units])
    scores = np.empty((len(ids), len(head.labels)), np.float32)
    sums = np.zeros((len(units), head.feature_width))
    for rows in row_blocks(len(ids)):
        X = np.concatenate([read_features(cache, ids[rows], space) for space in head.spaces], axis=-1)
        scores[rows] = head.scores(X, fingerprint=head.fingerprint)
        vectors = X.astype(np.float64).reshape(len(X), -1, X.shape[-1]).mean(axis=1)  # frames: their mean
        np.add.at(sums, unit_of[rows], vectors)
    return sums / np.bincount(unit_of, minlength=len(units))[:, None], scores


def _centred(places: npt.NDArray[np.float64], seen: int) -> npt.NDArray[np.float32]:
    """Unit vectors from the mean of what was seen, or of all where nothing was."""
    vectors = places - places[: seen or None].mean(axis=0)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY), np.float32)


def _written(
    project: Project,
    order: Order,
    are_recordings: bool,
    chosen: Sequence[Stretch],
    unlabelled_s: float,
    without: int,
) -> Suggestions:
    annotations = find_annotations(project, list(dict.fromkeys(one.recording for one in chosen)))
    folder = _new_folder(project.root / SUGGESTIONS)
    documents, left_out = [], list(annotations.left_out)
    for name in dict.fromkeys(one.recording for one in chosen):
        path = (folder / name).with_suffix(".suggested.eaf")
        found = annotations.of.get(name)
        source = None if found is None else found.eaf
        origin_ms = 0 if found is None else found.time_origin_ms
        own = [
            Interval(one.start_us, one.end_us, f"{rank}: {', '.join(one.likely)}".removesuffix(": "))
            for rank, one in enumerate(chosen, start=1)
            if one.recording == name
        ]
        try:
            document = linked_document(
                path,
                project.videos / name,
                document=None if found is None else found.own_document(),
                source=source,
                time_origin_ms=origin_ms,
            )
            add_requests(document, own, time_origin_ms=origin_ms)
            private_folder(path.parent)
            save_eaf(document, path)
        except FeatureCacheError as error:
            left_out.append(UnusableRecording(name, str(error)))
        else:
            documents.append(path)
    table = folder / TABLE
    write_private(table, _as_csv(chosen))
    return Suggestions(
        order,
        are_recordings,
        tuple(chosen),
        unlabelled_s,
        without,
        folder,
        table,
        tuple(documents),
        tuple(left_out),
    )


def _new_folder(parent: Path) -> Path:
    """The first `round-1`, `round-2`, ... that is not there yet."""
    private_folder(parent)
    number = 1
    while True:
        folder = parent / f"round-{number}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
        else:
            return folder


def _as_csv(chosen: Sequence[Stretch]) -> bytes:
    rows = []
    for rank, one in enumerate(chosen, start=1):
        times = (format_seconds(one.start_us), format_seconds(one.end_us))
        doubt = "" if one.doubt is None else f"{one.doubt:.4f}"
        names = (guard_cell(one.recording), guard_cell(one.session))
        rows.append([rank, *names, *times, doubt, guard_cell("; ".join(one.likely))])
    return csv_bytes([COLUMNS, *rows])
