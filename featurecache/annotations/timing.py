"""When each annotation of an ELAN document happens, in microseconds of annotation time.

- An alignable annotation has two time slots. Slots without a time are spread evenly between their
  neighbours in the chain of annotations that share slots on one tier, as ELAN does; where the chain
  does not reach two times (and on independent tiers), between their neighbours in the file's time order.
- A reference annotation has its parent annotation's time, to any depth. On a Symbolic_Subdivision tier
  a chain of PREVIOUS_ANNOTATION divides the parent's time evenly, in order.

Interpolated times are whole microseconds where ELAN truncates to milliseconds. The time origin is not
applied here. An annotation whose time is wrong or cannot be told is left out, with what depends on it; the others stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featurecache.annotations.document import EafDocument, RawAnnotation, Tier


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation with its time, `[start_us, end_us)` of annotation time; the two may be equal."""

    annotation_id: str
    tier: str
    value: str
    start_us: int
    end_us: int


def resolve_times(document: EafDocument) -> list[Annotation]:
    """All annotations with their times.

    Args:
        document: An ELAN document.

    Returns:
        Annotations in file order, times in microseconds of annotation time. Annotations of no duration are
        among them; those of `untimed` are not.

    Raises:
        AnnotationError: If identifiers repeat, or tiers or subdivisions do not form trees. The message names tier and
            annotation.
    """
    return _resolve(document)[0]


def untimed(document: EafDocument) -> list[str]:
    """Why annotations are left out, a sentence for each: it ends before it starts, or its time cannot be told.

    Raises:
        AnnotationError: As `resolve_times`.
    """
    return _resolve(document)[1]


def _resolve(document: EafDocument) -> tuple[list[Annotation], list[str]]:
    tiers = document.tiers
    raw_by_tier = {name: list(document.raw_annotations(tier)) for name, tier in tiers.items()}
    everything = [raw for annotations in raw_by_tier.values() for raw in annotations]
    by_id: dict[str, RawAnnotation] = {}
    for raw in everything:
        if raw.annotation_id in by_id:
            raise document.error(f"annotation ids must be unique, but {_shown(raw)} repeats one. Re-export the file.")
        by_id[raw.annotation_id] = raw

    times = _slot_times(document, tiers, raw_by_tier)
    spans: dict[str, tuple[int, int]] = {}
    faults: dict[str, str] = {}
    for raw in everything:
        if raw.reference is None:
            fault = _align(raw, times, spans)
            if fault:
                faults[raw.annotation_id] = fault
    chains = _subdivisions(document, tiers, by_id)
    for raw in everything:
        _resolve_reference(raw, by_id, chains, spans, faults)
    timed = [
        Annotation(raw.annotation_id, raw.tier, raw.value, *spans[raw.annotation_id])
        for raw in everything
        if raw.annotation_id in spans
    ]
    return timed, [faults[raw.annotation_id] for raw in everything if raw.annotation_id in faults]


def _shown(raw: RawAnnotation) -> str:
    return f"annotation {raw.annotation_id} on tier {raw.tier!r}"


# --- alignable annotations ------------------------------------------------------------------------


def _slot_times(
    document: EafDocument, tiers: dict[str, Tier], raw_by_tier: dict[str, list[RawAnnotation]]
) -> dict[str, int]:
    """Every slot's time in microseconds, as far as it can be told."""
    slots = document.slots_ms
    times = {slot: 1000 * value for slot, value in slots.items() if value is not None}
    if len(times) == len(slots):
        return times
    for name in _parents_first(document, tiers):
        if tiers[name].parent is not None:
            for chain in _chains([raw for raw in raw_by_tier[name] if raw.start_slot is not None]):
                _interpolate(chain, times)
    _interpolate(list(slots), times)
    return times


def _parents_first(document: EafDocument, tiers: dict[str, Tier]) -> list[str]:
    ordered: dict[str, None] = {}
    for name in tiers:
        path: dict[str, None] = {}
        current: str | None = name
        while current is not None and current not in ordered:
            if current in path:
                raise document.error(
                    f"tiers must form a tree, but {current!r} is its own ancestor. Re-export the file."
                )
            if current not in tiers:
                raise document.error(
                    f"a tier's parent must exist, but tier {next(reversed(path))!r} names {current!r}. "
                    "Re-export the file."
                )
            path[current] = None
            current = tiers[current].parent
        ordered.update(dict.fromkeys(reversed(path)))
    return list(ordered)


def _chains(annotations: Sequence[RawAnnotation]) -> Iterable[list[str]]:
    """Runs of slots that successive annotations of one tier share: each one's end is the next one's start."""
    following = {str(raw.start_slot): str(raw.end_slot) for raw in annotations}
    ends = set(following.values())
    for start in [slot for slot in following if slot not in ends]:
        chain = [start]
        while chain[-1] in following:
            chain.append(following.pop(chain[-1]))
        yield chain


def _interpolate(slots: Sequence[str], times: dict[str, int]) -> None:
    """Give the slots between two timed ones evenly spaced times; leave those at an open end."""
    run: list[str] = []
    left: int | None = None
    for slot in slots:
        right = times.get(slot)
        if right is None:
            run.append(slot)
            continue
        if left is not None:
            for position, unaligned in enumerate(run, start=1):
                times[unaligned] = left + (right - left) * position // (len(run) + 1)
        run, left = [], right


def _align(raw: RawAnnotation, times: dict[str, int], spans: dict[str, tuple[int, int]]) -> str | None:
    """Adds the span of an alignable annotation, or says what is wrong with its times."""
    ends = []
    for slot in (raw.start_slot, raw.end_slot):
        if slot not in times:
            return (
                f"every annotation must have a time, but slot {slot} of {_shown(raw)} has none and no timed "
                "neighbours. Align it in ELAN."
            )
        ends.append(times[slot])
    start_us, end_us = ends
    if end_us < start_us:
        return (
            f"an annotation must not end before it starts, but {_shown(raw)} starts at {start_us / 1000:g} ms and "
            f"ends at {end_us / 1000:g} ms. Correct it in ELAN."
        )
    spans[raw.annotation_id] = (start_us, end_us)
    return None


# --- reference annotations ------------------------------------------------------------------------


def _subdivisions(
    document: EafDocument, tiers: dict[str, Tier], by_id: dict[str, RawAnnotation]
) -> dict[str, tuple[int, int]]:
    """Position and length of the chain for each annotation of a Symbolic_Subdivision tier."""
    members = [
        raw
        for raw in by_id.values()
        if raw.reference is not None and tiers[raw.tier].constraint == "Symbolic_Subdivision"
    ]
    following: dict[str, RawAnnotation] = {}
    for raw in members:
        if raw.previous is None:
            continue
        previous = by_id.get(raw.previous)
        if previous is None or previous.reference != raw.reference or previous.tier != raw.tier:
            raise document.error(
                f"PREVIOUS_ANNOTATION must name one on the same tier with the same parent, but {_shown(raw)} "
                f"names {raw.previous}. Re-export the file."
            )
        if raw.previous in following:
            raise document.error(
                f"only one annotation can follow another, but {_shown(raw)} and "
                f"{following[raw.previous].annotation_id} both follow {raw.previous}. Re-export the file."
            )
        following[raw.previous] = raw

    places: dict[str, tuple[int, int]] = {}
    for head in members:
        if head.previous is None:
            chain = [head]
            while (after := following.get(chain[-1].annotation_id)) is not None:
                chain.append(after)
            places.update((raw.annotation_id, (position, len(chain))) for position, raw in enumerate(chain))
    for raw in members:
        if raw.annotation_id not in places:
            raise document.error(
                f"a chain of PREVIOUS_ANNOTATION must begin somewhere, but that of {_shown(raw)} is a circle. "
                "Re-export the file."
            )
    return places


def _resolve_reference(
    raw: RawAnnotation,
    by_id: dict[str, RawAnnotation],
    places: dict[str, tuple[int, int]],
    spans: dict[str, tuple[int, int]],
    faults: dict[str, str],
) -> None:
    """Adds the span of `raw` and of every annotation that it depends on, or what is wrong with each of them."""
    path: dict[str, RawAnnotation] = {}
    current = raw
    while current.annotation_id not in spans:
        if current.annotation_id in faults:
            for each in path.values():
                faults[each.annotation_id] = (
                    f"a referred annotation must have a time, but that of {_shown(each)} is left out. Correct it first."
                )
            return
        parent = by_id.get(str(current.reference))
        if current.annotation_id in path:
            faults[current.annotation_id] = (
                f"references must end at an aligned annotation, but those of {_shown(current)} form a circle. "
                "Re-export the file."
            )
            del path[current.annotation_id]
        elif parent is None:
            faults[current.annotation_id] = (
                f"a referred annotation must exist, but {_shown(current)} refers to {current.reference}. "
                "Re-export the file."
            )
        else:
            path[current.annotation_id] = current
            current = parent
    start_us, end_us = spans[current.annotation_id]
    for child in reversed(path.values()):
        position, count = places.get(child.annotation_id, (0, 1))
        duration_us = end_us - start_us
        start_us, end_us = (
            start_us + duration_us * position // count,
            start_us + duration_us * (position + 1) // count,
        )
        spans[child.annotation_id] = (start_us, end_us)
