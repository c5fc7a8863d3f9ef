"""What happens when in a drawn recording, and what an annotator would write down.

A script is five tracks of segments that run at the same time: the baby, its limbs, whoever stands
at the head, whoever stands at the torso, and a bystander. One person stands at the head, so suction
and ventilation never overlap.

Every activity has a hard negative that is *the same drawing with the clock stopped*: both are a point
of one cycle, and only an active segment's cycle turns. So one frame cannot tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LABELS = ("baby_visible", "ventilation", "stimulation", "suction")

ACTIVE = frozenset({"ventilating", "bag_test", "suctioning", "rubbing", "wiping", "kicking", "reaching"})
"""Behaviours whose cycle turns. All others stand still."""

SHORTEST_S = 1.0  # of a segment that follows another one in the same stay

LABEL_OF = {
    "lying": "baby_visible",
    "ventilating": "ventilation",
    "rubbing": "stimulation",
    "suctioning": "suction",
}
"""Behaviour -> the label that an annotator gives it. All other behaviours are unlabelled."""

HEAD_WHEN_LYING = {"away": 0.20, "mask_still": 0.28, "ventilating": 0.36, "tube_still": 0.08, "suctioning": 0.08}
TORSO_WHEN_LYING = {"away": 0.26, "hand_still": 0.28, "rubbing": 0.34, "wiping": 0.12}
HEAD_WHEN_ABSENT = {"away": 0.65, "bag_test": 0.35}
TORSO_WHEN_ABSENT = {"away": 0.5, "wiping": 0.5}
ALONE = {"away": 1.0}


@dataclass(frozen=True, slots=True)
class Segment:
    """One behaviour from `start_s` to `end_s`.

    Attributes:
        start_s: Seconds from the recording's start.
        end_s: Exclusive.
        behaviour: A name from this module's tables.
        rate_hz: Cycles per second; 0 for behaviours that stand still.
        phase: Where in the cycle the segment begins, in [0, 1).
    """

    start_s: float
    end_s: float
    behaviour: str
    rate_hz: float
    phase: float


@dataclass(frozen=True)
class Script:
    """Everything that happens in one recording. Each track covers [0, duration_s) without gaps."""

    duration_s: float
    baby: tuple[Segment, ...]
    limbs: tuple[Segment, ...]
    head: tuple[Segment, ...]
    torso: tuple[Segment, ...]
    bystander: tuple[Segment, ...]

    def labelled(self) -> list[tuple[float, float, str]]:
        """The annotator's intervals (start_s, end_s, label), by time then label."""
        tracks = (*self.baby, *self.head, *self.torso)
        return sorted((s.start_s, s.end_s, LABEL_OF[s.behaviour]) for s in tracks if s.behaviour in LABEL_OF)

    def share(self, behaviours: Sequence[str], start_s: float, end_s: float) -> float:
        """Share of [start_s, end_s) during which any track shows one of `behaviours` of a single track."""
        tracks = (*self.baby, *self.limbs, *self.head, *self.torso, *self.bystander)
        covered = sum(
            max(0.0, min(s.end_s, end_s) - max(s.start_s, start_s)) for s in tracks if s.behaviour in behaviours
        )
        return covered / (end_s - start_s)


def write_script(rng: np.random.Generator, duration_s: float) -> Script:
    """Draw a script. The baby comes, is treated, may be covered for a while, and may leave.

    Args:
        rng: Source of all choices.
        duration_s: Length of the recording.

    Returns:
        A script whose tracks cover the recording.
    """
    baby = _baby_track(rng, duration_s)
    head: list[Segment] = []
    torso: list[Segment] = []
    limbs: list[Segment] = []
    for stay in baby:
        span = (stay.start_s, stay.end_s)
        if stay.behaviour == "lying":
            head += _fill(rng, *span, HEAD_WHEN_LYING, (3.5, 10.0))
            torso += _fill(rng, *span, TORSO_WHEN_LYING, (3.5, 10.0))
            limbs += _fill(rng, *span, {"resting": 0.75, "kicking": 0.25}, (3.0, 8.0))
        elif stay.behaviour == "absent":
            head += _fill(rng, *span, HEAD_WHEN_ABSENT, (3.0, 8.0))
            torso += _fill(rng, *span, TORSO_WHEN_ABSENT, (3.0, 8.0))
            limbs += _fill(rng, *span, {"resting": 1.0}, (8.0, 8.0))
        else:
            head += _fill(rng, *span, ALONE, (8.0, 8.0))
            torso += _fill(rng, *span, {"away": 0.5, "hand_still": 0.5}, (3.0, 8.0))
            limbs += _fill(rng, *span, {"resting": 1.0}, (8.0, 8.0))
    bystander = _fill(rng, 0.0, duration_s, {"away": 0.7, "reaching": 0.3}, (4.0, 10.0))
    return Script(duration_s, tuple(baby), tuple(limbs), tuple(head), tuple(torso), tuple(bystander))


def _baby_track(rng: np.random.Generator, duration_s: float) -> list[Segment]:
    """Absent, lying, perhaps covered, lying, perhaps absent again."""
    arrival = duration_s * rng.uniform(0.06, 0.22)
    leaving = duration_s * (rng.uniform(0.85, 0.96) if rng.random() < 0.5 else 1.0)
    cuts = [(0.0, "absent"), (arrival, "lying")]
    if rng.random() < 0.6:
        covered = arrival + (leaving - arrival) * rng.uniform(0.2, 0.7)
        cuts += [(covered, "covered"), (covered + duration_s * rng.uniform(0.08, 0.16), "lying")]
    cuts += [(leaving, "absent"), (duration_s, "absent")]
    return [Segment(start, end, what, 0.0, 0.0) for (start, what), (end, _) in pairwise(cuts) if end > start]


def _fill(
    rng: np.random.Generator, start_s: float, end_s: float, weights: dict[str, float], length_s: tuple[float, float]
) -> list[Segment]:
    """Segments from `start_s` to `end_s`; a behaviour never follows itself unless it is the only one."""
    names = list(weights)
    segments: list[Segment] = []
    while start_s < end_s:
        chances = np.array([weights[name] for name in names])
        if segments and len(names) > 1:
            chances[names.index(segments[-1].behaviour)] = 0.0
        behaviour = names[int(rng.choice(len(names), p=chances / chances.sum()))]
        stop_s = start_s + rng.uniform(*length_s)
        if end_s - stop_s < SHORTEST_S:
            stop_s = end_s
        rate_hz = float(rng.uniform(0.7, 1.3)) if behaviour in ACTIVE else 0.0
        segments.append(Segment(start_s, stop_s, behaviour, rate_hz, float(rng.random())))
        start_s = stop_s
    return segments
