"""Makes ELAN files: a new document, and tiers of intervals in a new or an existing one.

Schema order and unique identifiers are kept, time slots stay sorted. The time origin is subtracted
here, as `labels` adds it: annotation time = media time - origin. ELAN counts milliseconds, so times are
rounded to the nearest one. An annotator's tier is never touched: a tier that exists is refused.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent

from featurecache.annotations.document import EafDocument
from featurecache.annotations.eaf import save_eaf
from featurecache.annotations.interval import Interval

_TIER_TYPE = "interval"
_AFTER_TIERS = (
    "LINGUISTIC_TYPE",
    "LOCALE",
    "LANGUAGE",
    "CONSTRAINT",
    "CONTROLLED_VOCABULARY",
    "LEXICON_REF",
    "REF_LINK_SET",
    "EXTERNAL_REF",
)
# The sentences are ELAN's own, spelling included.
_CONSTRAINTS = {
    "Time_Subdivision": (
        "Time subdivision of parent annotation's time interval, no time gaps allowed within this interval"
    ),
    "Symbolic_Subdivision": (
        "Symbolic subdivision of a parent annotation. Annotations refering to the same parent are ordered"
    ),
    "Symbolic_Association": "1-1 association with a parent annotation",
    "Included_In": "Time alignable annotations within the parent annotation's time interval, gaps are allowed",
}
_XSI = "{http://www.w3.org/2001/XMLSchema-instance}"


def write_eaf(
    path: Path,
    intervals: Sequence[Interval],
    *,
    media_name: str,
    time_origin_ms: int = 0,
    tiers: Sequence[str] | None = None,
    replace: bool = False,
) -> None:
    """Write a new ELAN file with one tier per label; each annotation's value is its label, too.

    Args:
        path: The file to make, mode 0600.
        intervals: In media time, any order.
        media_name: The recording's file name, as posix path.
        time_origin_ms: Where annotation time zero lies on the recording's clock.
        tiers: Names of all tiers in their order, also of those that stay empty; default: the labels, sorted.
        replace: Whether a file that is already there may be replaced.

    Raises:
        OutputExistsError: If the file is there and `replace` is false.
        AnnotationError: If an interval cannot be written, or its label is not among `tiers`.
    """
    labels = sorted({interval.label for interval in intervals})
    names = labels if tiers is None else list(tiers)
    document = new_document(path.name, media_name=media_name, time_origin_ms=time_origin_ms)
    if missing := [label for label in labels if label not in names]:
        raise document.error(f"every label must have a tier, but {missing[0]!r} is not in tiers. Add it there.")
    for name in names:
        own = [interval for interval in intervals if interval.label == name]
        add_tier(document, name, own, time_origin_ms=time_origin_ms)
    indent(document.root, "    ")
    save_eaf(document, path, replace=replace)


def new_document(name: str, *, media_name: str, mime_type: str = "video/mp4", time_origin_ms: int = 0) -> EafDocument:
    """An EAF 3.0 document without tiers.

    Args:
        name: The file's name, for messages.
        media_name: The recording's file name, as posix path.
        mime_type: Of the recording.
        time_origin_ms: Where annotation time zero lies on the recording's clock.
    """
    root = Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "",
            "DATE": datetime.now(UTC).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            f"{_XSI}noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    media = SubElement(
        header,
        "MEDIA_DESCRIPTOR",
        MEDIA_URL=media_name,
        MIME_TYPE=mime_type,
        RELATIVE_MEDIA_URL=f"./{media_name}",
    )
    if time_origin_ms:
        media.set("TIME_ORIGIN", str(time_origin_ms))
    SubElement(root, "TIME_ORDER")
    for stereotype, description in _CONSTRAINTS.items():
        SubElement(root, "CONSTRAINT", DESCRIPTION=description, STEREOTYPE=stereotype)
    return EafDocument(name, root)


def add_tier(document: EafDocument, name: str, intervals: Sequence[Interval], *, time_origin_ms: int) -> None:
    """Add an independent tier; each interval becomes an annotation whose value is its label.

    Args:
        document: Changed in place; nothing that it holds is altered, but for the counter of identifiers.
        name: The new tier's name.
        intervals: In media time, any order, not overlapping (ELAN cannot show overlaps on one tier).
        time_origin_ms: The origin of the media descriptor whose clock the intervals are on.

    Raises:
        AnnotationError: If the tier exists, or an interval overlaps another, is shorter than a
            millisecond, or lies before annotation time zero.
    """
    if name in document.tiers:
        raise document.error(f"a new tier must have a new name, but {name!r} exists. Choose another name.")
    spans_ms = [_span_ms(document, name, interval, time_origin_ms) for interval in sorted(intervals)]
    for (_, end_ms, label), (start_ms, _, other) in pairwise(spans_ms):
        if start_ms < end_ms:
            raise document.error(
                f"intervals on tier {name!r} must not overlap, but {label!r} ends at {end_ms} ms and {other!r} "
                f"starts at {start_ms} ms. Merge them, or give each label its own tier."
            )

    annotation_ids = _new_ids(document, "a", len(spans_ms))
    slot_ids = _new_ids(document, "ts", 2 * len(spans_ms))
    tier = Element("TIER", LINGUISTIC_TYPE_REF=_tier_type(document), TIER_ID=name)
    slots = []
    for index, (start_ms, end_ms, label) in enumerate(spans_ms):
        first, second = slot_ids[2 * index], slot_ids[2 * index + 1]
        slots += [(start_ms, first), (end_ms, second)]
        alignable = SubElement(
            SubElement(tier, "ANNOTATION"),
            "ALIGNABLE_ANNOTATION",
            ANNOTATION_ID=annotation_ids[index],
            TIME_SLOT_REF1=first,
            TIME_SLOT_REF2=second,
        )
        SubElement(alignable, "ANNOTATION_VALUE").text = label
    _insert(document.root, tier, before=_AFTER_TIERS)
    _insert_slots(document, slots)
    if annotation_ids:
        _set_last_used_id(document, int(annotation_ids[-1][1:]))


def _span_ms(document: EafDocument, tier: str, interval: Interval, time_origin_ms: int) -> tuple[int, int, str]:
    start_ms = (interval.start_us + 500) // 1000 - time_origin_ms
    end_ms = (interval.end_us + 500) // 1000 - time_origin_ms
    what = f"interval {interval.label!r} at {interval.start_us / 1e6:.3f} s on tier {tier!r}"
    if end_ms <= start_ms:
        raise document.error(f"an interval must last a millisecond, but {what} does not. Drop or merge it.")
    if start_ms < 0:
        raise document.error(
            f"annotation time cannot be negative, but {what} lies before the time origin ({time_origin_ms} ms). "
            "Lower the origin, or cut the interval."
        )
    return start_ms, end_ms, interval.label


def _new_ids(document: EafDocument, prefix: str, count: int) -> list[str]:
    # The schema wants identifiers of all kinds to be unique together: other tools name time slots as they like.
    taken = [value for element in document.root.iter() for value in element.attrib.values()]
    numbers = [int(found[1]) for text in taken if (found := re.fullmatch(f"{prefix}([0-9]{{1,15}})", text))]
    if prefix == "a" and (last := _last_used_id(document)) is not None and (last.text or "").strip().isdecimal():
        numbers.append(int(last.text or "0"))
    first = max(numbers, default=0) + 1
    return [f"{prefix}{first + index}" for index in range(count)]


def _last_used_id(document: EafDocument) -> Element | None:
    return document.root.find("HEADER/PROPERTY[@NAME='lastUsedAnnotationId']")


def _set_last_used_id(document: EafDocument, number: int) -> None:
    counter = _last_used_id(document)
    if counter is None:
        header = document.root.find("HEADER")
        if header is None:
            raise document.error("an ELAN file must have a HEADER, but this one has none. Repair or re-export it.")
        counter = SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId")
    counter.text = str(number)


def _tier_type(document: EafDocument) -> str:
    """A type for independent tiers without a vocabulary, made if need be."""
    types = {element.get("LINGUISTIC_TYPE_ID"): element for element in document.root.iterfind("LINGUISTIC_TYPE")}
    number, name = 1, _TIER_TYPE
    while name in types:
        if types[name].get("TIME_ALIGNABLE") == "true" and not {"CONSTRAINTS", "CONTROLLED_VOCABULARY_REF"} & set(
            types[name].attrib
        ):
            return name
        number += 1
        name = f"{_TIER_TYPE}-{number}"
    new = Element("LINGUISTIC_TYPE", GRAPHIC_REFERENCES="false", LINGUISTIC_TYPE_ID=name, TIME_ALIGNABLE="true")
    _insert(document.root, new, before=_AFTER_TIERS[1:])
    return name


def _insert(root: Element, new: Element, *, before: Sequence[str]) -> None:
    indent(new, "    ", level=1)
    new.tail = "\n    "
    places = [index for index, element in enumerate(root) if element.tag in before]
    root.insert(places[0] if places else len(root), new)


def _insert_slots(document: EafDocument, slots: Sequence[tuple[int, str]]) -> None:
    """Merge new slots into the sorted order; slots without a time stay with the one before them."""
    order = document.root.find("TIME_ORDER")
    if order is None:
        raise document.error("an ELAN file must have a TIME_ORDER, but this one has none. Repair or re-export it.")
    groups: list[tuple[int, list[Element]]] = [(-1, [])]
    for element in order:
        value = element.get("TIME_VALUE")
        if value is None:
            groups[-1][1].append(element)
        else:
            groups.append((int(value), [element]))
    running, starts = -1, []
    for time_ms, _ in groups:
        running = max(running, time_ms)
        starts.append(running)
    inserted: dict[int, list[Element]] = {}
    for time_ms, slot in sorted(slots):
        element = Element("TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(time_ms))
        element.tail = "\n        "
        inserted.setdefault(bisect_right(starts, time_ms) - 1, []).append(element)
    order[:] = [element for index, (_, group) in enumerate(groups) for element in (*group, *inserted.get(index, ()))]
