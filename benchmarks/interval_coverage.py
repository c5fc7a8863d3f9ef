"""How often the 95% intervals hold the truth, and how wide they are, on studies drawn from populations that are known.

    OMP_NUM_THREADS=1 python -m benchmarks.interval_coverage [--quick]

Four kinds of populations, 4 labels on in 50, 25, 15 and 10% of the clips, found in 90 to 55% and falsely in 10 to 5%:

- `even`: sessions of 60 clips that hardly differ (standard deviation .2 on the logit scale);
- `strong`: sessions that differ (1.0) in how often a label is on, is found and is falsely found, half of it in common
  to all labels;
- `rare`: as strong with .6, and the rarest label is absent from 60% of the sessions;
- `unequal`: as strong with .6, and sessions of 10 to some 400 clips (log-normal, standard deviation .6).

For each and 5 to 24 sessions, 40,000 studies are drawn (the bootstrap has the first 1,000 of them). The truth is the
population's macro-F1 over the labels that have a positive clip in the study. `below` is the share of studies whose
truth lies below the interval, `above` above it. The width is the mean one, over that of an oracle's interval, which
knows how far estimates lie from the truth: twice 1.96 root mean squares of it. Student's t of six sessions alone makes
it 1.25.

The ways: `product` (`heads/scoring/intervals.py`), `bootstrap` (percentiles of 500 resamples of sessions, expanded for
few of them, over the labels a resample has) and `jackknife` (delete one session, Student's t, macro-F1 itself). Then
the product's interval of the rarest label's F1, and of the difference of two heads that are alike in truth.
"""

import argparse
import json
import math
import os
import platform
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, t

from benchmarks.targets import Target, judged
from heads.scoring.intervals import macro_f1_difference, macro_f1_interval
from heads.scoring.metrics import f1_scores, macro_over_labels

SEED = 20_261_130
SESSIONS = (5, 6, 8, 12, 24)
PREVALENCE = np.array([0.5, 0.25, 0.15, 0.1])
FOUND = np.array([0.9, 0.75, 0.65, 0.55])
FALSE = np.array([0.1, 0.08, 0.06, 0.05])
SPREAD = {"even": 0.2, "strong": 1.0, "rare": 0.6, "unequal": 0.6}
KINDS = tuple(SPREAD)
RESAMPLES, RESAMPLED_STUDIES = 500, 1000
POPULATION = 200_000
Floats = np.ndarray


def drawn_studies(
    random: np.random.Generator, kind: str, studies: int, sessions: int, *, heads: int = 1
) -> list[np.ndarray]:
    """Counts of studies by heads of the same law on the same clips, each (studies, M, 3, C)."""
    spread, shape = SPREAD[kind], (studies, sessions, len(PREVALENCE))
    prevalence = expit(logit(PREVALENCE) + spread * random.normal(size=shape))
    if kind == "rare":
        prevalence[..., -1] *= random.random(shape[:2]) < 0.4
    clips = np.full((*shape[:2], 1), 60)
    if kind == "unequal":
        clips = np.maximum(10, 60 * np.exp(0.6 * random.normal(size=clips.shape))).astype(int)
    positives = random.binomial(clips, prevalence)
    common = random.normal(size=(*shape[:2], 1))
    found = []
    for _ in range(heads):
        missing, alarms = (
            spread * (common + random.normal(size=shape)) / math.sqrt(2) for _ in ("missing", "false alarms")
        )
        true_positives = random.binomial(positives, expit(logit(FOUND) - missing))
        false_positives = random.binomial(clips - positives, expit(logit(FALSE) + alarms))
        found.append(np.stack([true_positives, false_positives, positives - true_positives], axis=-2))
    return found


def bootstrap(random: np.random.Generator, counts: np.ndarray) -> Floats:
    """Expanded percentiles of resampled sessions (Hesterberg 2015): (studies, M, 3, C) -> (studies, 2)."""
    sessions = counts.shape[1]
    drawn = random.multinomial(sessions, np.full(sessions, 1 / sessions), size=RESAMPLES)
    tail = norm.cdf(-t.ppf(0.975, sessions - 1) * math.sqrt(sessions / (sessions - 1)))
    ends = []
    for study in counts:
        values = macro_over_labels(f1_scores(np.tensordot(drawn, study, axes=1)))
        ends.append(np.nanquantile(values, [tail, 1 - tail]))
    return np.array(ends)


def jackknife(counts: np.ndarray) -> Floats:
    """Macro-F1 and Student's t of the spread without each session: (studies, M, 3, C) -> (studies, 2)."""
    sessions, total = counts.shape[1], counts.sum(axis=1)
    value = macro_over_labels(f1_scores(total))
    without = macro_over_labels(f1_scores(total[:, None] - counts))
    error = np.sqrt((sessions - 1) ** 2 / sessions * without.var(axis=1, ddof=1))
    return value[:, None] + np.array([-1, 1]) * t.ppf(0.975, sessions - 1) * error[:, None]


def cell(ends: Floats, truth: Floats, error: Floats) -> dict[str, float]:
    """Coverage, both misses and relative width of intervals (studies, 2)."""
    below, above = (truth < ends[:, 0]).mean(), (truth > ends[:, 1]).mean()
    oracle = 2 * 1.96 * math.sqrt((error**2).mean())
    return {
        "coverage": 1 - below - above,
        "below": below,
        "above": above,
        "width": float((ends[:, 1] - ends[:, 0]).mean()) / oracle,
    }


def measured(kind: str, sessions: int, studies: int) -> dict[str, dict[str, float]]:
    """Each way's figures on studies of one kind and size."""
    random = np.random.default_rng((SEED, KINDS.index(kind), sessions))
    (population,) = drawn_studies(random, kind, 1, POPULATION)
    of_label = f1_scores(population[0].sum(axis=0))  # (C,)
    ours, theirs = drawn_studies(random, kind, studies, sessions, heads=2)
    found = f1_scores(ours.sum(axis=1))  # (studies, C)
    truth = macro_over_labels(np.where(np.isnan(found), np.nan, of_label))
    error = macro_over_labels(found) - truth
    ways = {
        "product": macro_f1_interval(ours),
        "bootstrap": bootstrap(random, ours[:RESAMPLED_STUDIES]),
        "jackknife": jackknife(ours),
    }
    figures = {name: cell(ends, truth[: len(ends)], error) for name, ends in ways.items()}
    has_rarest = ~np.isnan(found[:, -1])
    rarest = macro_f1_interval(ours[has_rarest][..., -1:])
    figures["rarest label"] = cell(rarest, np.full(len(rarest), of_label[-1]), found[has_rarest, -1] - of_label[-1])
    difference, ends, _ = macro_f1_difference(ours, theirs)
    figures["difference"] = cell(ends, np.zeros(studies), difference)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300 studies a cell instead of 40,000")
    options = parser.parse_args()
    studies = 300 if options.quick else 40_000
    figures: dict[str, Any] = {
        f"{kind}, {sessions} sessions": measured(kind, sessions, studies) for kind in KINDS for sessions in SESSIONS
    }
    enough = [one for name, one in figures.items() if "5 sessions" not in name]
    lowest = min(one["product"]["coverage"] for one in enough)
    widest = max(one["product"]["width"] for one in enough)
    targets: list[Target] = [
        ("lowest coverage of the product's interval, 6 sessions or more", lowest, 0.93, 0.86, "higher"),
        ("its widest mean width over the oracle's, 6 sessions or more", widest, 1.25, 1.5, "lower"),
    ]
    document = {
        "benchmark": "interval coverage",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "figures": {
            name: {way: {key: round(value, 3) for key, value in one.items()} for way, one in ways.items()}
            for name, ways in figures.items()
        },
        "targets": judged(targets, quick=options.quick),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
