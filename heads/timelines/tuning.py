"""Timeline settings chosen by held-out scores of recordings, and the `timeline.json` that keeps them with a bundle.

An exhaustive grid in units of the clip length, scored by segment F1 (mean over IoU 0.1, 0.25, 0.5 and the labels).
One set of settings serves all labels: validation has few events of a rare label, and settings of its own would be
picked by luck. The grid is small for the same reason: on the demo's ten held-out sessions, divided at random 120 times
for each stride, what it picks scored .622, .642, .625 on the unseen ones at strides of 3, 1.5 and 1 s (untuned: .624,
.632, .618), and a grid up to twice the duration .611, .621, .608. Of equally good ones the earlier wins, and the grid
begins with what alters the scores least. The score of the chosen settings is the best of many on the data that chose
them, and so optimistically biased; the test recordings are not an argument here.

`timeline.json` holds `format`, the fields of `TunedTimeline` and a digest of all; loading checks each. Without the
file, `default_settings` serve.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from featurecache.annotations import Interval
from featurecache.clips.clip import union_of
from featurecache.errors import BundleError, TrainingDataError
from featurecache.files import write_private
from featurecache.spec import json_object, sealed, unsealed
from heads.timelines.scores import event_counts, events, match_events, mean_segment_f1, overlapping
from heads.timelines.timeline import (
    Smoothing,
    Spans,
    TimelineSettings,
    default_settings,
    on_spans,
    smoothed_runs,
)

FORMAT = 3
"""Version of `timeline.json`; 2 named the held-out score `validation_segment_f1`, 1 had no digest of itself."""
NAME = "timeline.json"

_SMOOTHINGS: tuple[tuple[Smoothing, float], ...] = (
    *(("none", 0.0),),
    *(("mean", clips) for clips in (1.0, 2.0)),
    *(("median", clips) for clips in (1.0, 2.0)),
)
_HYSTERESES = (0.0, 0.25, 0.5)
_GAPS = _DURATIONS = (0.0, 0.5, 1.0)

Rows = npt.NDArray[np.int64]
"""Disjoint spans in order, shape (n, 2)."""


@dataclass(frozen=True, eq=False)
class ScoredRecording:
    """A recording with clip scores and the annotation that they are held against.

    Attributes:
        spans_us: The scored clips, shape (N, 2).
        scores: Their probabilities, shape (N, C).
        annotated: Its intervals, of any label.
        within: Time that was annotated, `[start_us, end_us)`.
    """

    spans_us: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating]
    annotated: Sequence[Interval]
    within: Spans


@dataclass(frozen=True)
class TunedTimeline:
    """What a search found.

    Attributes:
        settings: The best.
        segment_f1: Their score on the recordings that chose them, by the held-out scores of clips that did.
        untuned_segment_f1: That of `default_settings`.
        n_recordings: Number of recordings that the settings were chosen on.
        length_us: Length of the clips that were scored.
        stride_us: From one clip's start to the next one's.
    """

    settings: TimelineSettings
    segment_f1: float
    untuned_segment_f1: float
    n_recordings: int
    length_us: int
    stride_us: int


def tune_timeline(
    recordings: Sequence[ScoredRecording],
    *,
    labels: Sequence[str],
    thresholds: npt.NDArray[np.floating],
    length_us: int,
    stride_us: int,
) -> TunedTimeline:
    """Searches the settings of highest segment F1 on recordings with held-out scores.

    Rules of labels that exclude each other are no setting, and not applied here.

    Args:
        recordings: Recordings with an annotation and held-out scores.
        labels: Names of the C labels.
        thresholds: The bundle's, shape (C,).
        length_us: Length of a clip; the grid's unit.
        stride_us: From one clip's start to the next one's; only noted.

    Raises:
        TrainingDataError: If no recording has an event of any label.
    """
    if not any(events(one.annotated, label, union_of(one.within)) for one in recordings for label in labels):
        raise TrainingDataError(
            f"timeline settings need an annotated event of a label, but the {len(recordings)} recordings with held-out "
            "scores have none. Annotate activity in a session that is not test."
        )
    axis = _OneAxis.of(recordings, labels)
    scored: dict[TimelineSettings, float] = {}
    for (smoothing, window), hysteresis in product(_SMOOTHINGS, _HYSTERESES):
        raw = axis.raw_spans(recordings, thresholds, smoothing, round(window * length_us), hysteresis)
        for gap, duration in product(_GAPS, _DURATIONS):
            settings = TimelineSettings(
                smoothing, round(window * length_us), hysteresis, round(duration * length_us), round(gap * length_us)
            )
            scored[settings] = axis.segment_f1(raw, settings.max_gap_us, settings.min_duration_us)
    best = max(scored, key=scored.__getitem__)
    untuned = scored[default_settings(length_us)]
    return TunedTimeline(best, scored[best], untuned, len(recordings), length_us, stride_us)


@dataclass(frozen=True, eq=False)
class _RawSpans:
    """One label's spans before gaps and durations, shape (n, 2), and which are the first of their run, (n,)."""

    spans: Rows
    is_first: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _OneAxis:
    """All recordings one after the other on one time axis, so that a setting is scored with a few array operations.

    Attributes:
        shifts: Where each recording begins.
        scope: Compared time, shape (n, 2).
        annotated: Each label's annotated events within it.
    """

    shifts: list[int]
    scope: Rows
    annotated: list[Rows]

    @classmethod
    def of(cls, recordings: Sequence[ScoredRecording], labels: Sequence[str]) -> "_OneAxis":
        scopes = [union_of(one.within) for one in recordings]
        ends = [max(int(one.spans_us.max()), *(end for _, end in one.within), 0) for one in recordings]
        shifts = [0, *accumulate(end + 1 for end in ends)][:-1]  # recordings never touch

        def joined(of_recordings: Iterable[Spans]) -> Rows:
            return np.concatenate([_rows(spans) + shift for spans, shift in zip(of_recordings, shifts, strict=True)])

        each = list(zip(recordings, scopes, strict=True))
        annotated = [joined(events(one.annotated, label, scope) for one, scope in each) for label in labels]
        return cls(shifts, joined(scopes), annotated)

    def raw_spans(
        self,
        recordings: Sequence[ScoredRecording],
        thresholds: npt.NDArray[np.floating],
        smoothing: Smoothing,
        smoothing_us: int,
        hysteresis: float,
    ) -> list[_RawSpans]:
        """What each label's scores give."""
        runs = [
            (run, shift)
            for one, shift in zip(recordings, self.shifts, strict=True)
            for run in smoothed_runs(one.spans_us, one.scores, smoothing, smoothing_us)
        ]
        found = []
        for at in range(len(self.annotated)):
            parts = [_rows(on_spans(run, at, thresholds[at], hysteresis)) + shift for run, shift in runs]
            first = [np.arange(len(part)) == 0 for part in parts]
            found.append(_RawSpans(np.concatenate(parts), np.concatenate(first)))
        return found

    def segment_f1(self, raw: Sequence[_RawSpans], max_gap_us: int, min_duration_us: int) -> float:
        """Of these spans with their gaps closed, and short ones dropped then."""
        counts = []
        for of_label, annotated in zip(raw, self.annotated, strict=True):
            spans = of_label.spans
            starts = np.flatnonzero(
                of_label.is_first | (np.append(0, spans[1:, 0] - spans[:-1, 1])[: len(spans)] > max_gap_us)
            )
            closed = np.stack(
                [spans[starts, 0], spans[np.append(starts[1:], len(spans))[: len(starts)] - 1, 1]], axis=1
            )
            kept = closed[closed[:, 1] - closed[:, 0] >= min_duration_us]
            i, j = overlapping(kept, self.scope)
            ours = np.stack(
                [np.maximum(kept[i, 0], self.scope[j, 0]), np.minimum(kept[i, 1], self.scope[j, 1])], axis=1
            )
            counts.append(event_counts(match_events(annotated, ours), len(annotated), len(ours)))
        return mean_segment_f1(np.stack(counts, axis=-1))


def _rows(spans: Spans) -> Rows:
    return np.array(spans, np.int64).reshape(-1, 2)


def save_timeline(tuned: TunedTimeline, bundle: Path) -> None:
    """Writes `timeline.json` into a bundle's folder, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    document = sealed({"format": FORMAT, **dataclasses.asdict(tuned)})
    write_private(bundle / NAME, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def load_timeline(bundle: Path) -> TunedTimeline | None:
    """The tuned settings of a bundle's folder; None where none were tuned.

    Raises:
        BundleError: If the file is damaged or of another format.
    """
    path = bundle / NAME
    try:
        data = path.read_bytes()
        document = json_object(data)
        if (found := document.get("format", FORMAT)) not in (FORMAT, FORMAT - 1):
            raise _damaged(path, f"its format is {found!r}, not {FORMAT}")
        fields = dict(unsealed(document))
        if found < FORMAT:
            fields["segment_f1"] = fields.pop("validation_segment_f1")
        return TypeAdapter(TunedTimeline).validate_json(json.dumps(fields), strict=True)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise (error if isinstance(error, BundleError) else _damaged(path, str(error))) from error


def _damaged(path: Path, found: str) -> BundleError:
    return BundleError(
        f"{NAME} of a bundle must be as it was written, but {path} is not: {found}. "
        "Remove it to predict with the defaults, or tune again."
    )
