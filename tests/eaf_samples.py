"""ELAN files as text, and what reading them says, for tests of annotations."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import parse

from featurecache.annotations import (
    read_eaf,
    resolve_times,
)

SHARED = Path(__file__).parents[1].parent / "shared/data/eaf"


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real files are not on this machine")


SHARED_FILES = ["childproject_example.eaf", "pympi_sample_2.8.eaf", "speach_blank.eaf", "speach_test.eaf"]


HEADER = '<HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="a.mp4" MIME_TYPE="video/mp4"/></HEADER>'


TYPES = """
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="root" TIME_ALIGNABLE="true"/>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="sub" TIME_ALIGNABLE="true" CONSTRAINTS="Time_Subdivision"/>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="in" TIME_ALIGNABLE="true" CONSTRAINTS="Included_In"/>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="one" TIME_ALIGNABLE="false" CONSTRAINTS="Symbolic_Association"/>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="parts" TIME_ALIGNABLE="false" CONSTRAINTS="Symbolic_Subdivision"/>
"""


def eaf_text(body: str = "", slots: str = "", header: str = HEADER, version: str = "3.0") -> str:
    """An ELAN file; `slots` is e.g. "t1=0 t2 t3=900", a slot without "=" having no time."""
    order = ""
    for slot in slots.split():
        name, _, value = slot.partition("=")
        order += f'<TIME_SLOT TIME_SLOT_ID="{name}"' + (f' TIME_VALUE="{value}"' if value else "") + "/>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT AUTHOR="" DATE="2020-01-01T00:00:00Z" '
        f'FORMAT="{version}" VERSION="{version}">{header}<TIME_ORDER>{order}</TIME_ORDER>{body}{TYPES}'
        "</ANNOTATION_DOCUMENT>"
    )


def tier_text(name: str, *annotations: str, kind: str = "root", parent: str | None = None) -> str:
    """A tier; an annotation is "id start end value" or "id ->reference[<-previous] value"."""
    out = f'<TIER TIER_ID="{name}" LINGUISTIC_TYPE_REF="{kind}"' + (f' PARENT_REF="{parent}"' if parent else "") + ">"
    for annotation in annotations:
        name, first, *rest = annotation.split(" ")
        if first.startswith("->"):
            reference, _, previous = first[2:].partition("<-")
            out += f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{reference}"'
            out += f' PREVIOUS_ANNOTATION="{previous}">' if previous else ">"
            out += f"<ANNOTATION_VALUE>{' '.join(rest)}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
        else:
            out += f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="{first}" '
            out += f'TIME_SLOT_REF2="{rest[0]}"><ANNOTATION_VALUE>{" ".join(rest[1:])}</ANNOTATION_VALUE>'
            out += "</ALIGNABLE_ANNOTATION></ANNOTATION>"
    return out + "</TIER>"


def spans_ms(path: Path) -> dict[str, tuple[float, float]]:
    return {a.annotation_id: (a.start_us / 1000, a.end_us / 1000) for a in resolve_times(read_eaf(path))}


def content(element: Element) -> tuple:
    """Everything an element says: tag, attributes, text, children, and the text behind it."""
    return (element.tag, dict(element.attrib), element.text, [content(child) for child in element], element.tail)


def same_content(one: Path, other: Path) -> bool:
    return content(parse(one).getroot()) == content(parse(other).getroot())


SECOND = 1_000_000


SCHEMA_ORDER = [
    "LICENSE",
    "HEADER",
    "TIME_ORDER",
    "TIER",
    "LINGUISTIC_TYPE",
    "LOCALE",
    "LANGUAGE",
    "CONSTRAINT",
    "CONTROLLED_VOCABULARY",
    "LEXICON_REF",
    "REF_LINK_SET",
    "EXTERNAL_REF",
]


def assert_schema_order(root: Element) -> None:
    """Top-level order, required attributes and references of the EAF 3.0 schema."""
    places = [SCHEMA_ORDER.index(str(element.tag)) for element in root if isinstance(element.tag, str)]
    assert places == sorted(places)
    assert {"AUTHOR", "DATE", "VERSION"} <= root.attrib.keys()
    types = {e.get("LINGUISTIC_TYPE_ID") for e in root.iter("LINGUISTIC_TYPE")}
    slots = [e.get("TIME_SLOT_ID") for e in root.iter("TIME_SLOT")]
    assert len(slots) == len(set(slots))
    for tier in root.iter("TIER"):
        assert tier.get("LINGUISTIC_TYPE_REF") in types
    for annotation in root.iter("ALIGNABLE_ANNOTATION"):
        assert {annotation.get("TIME_SLOT_REF1"), annotation.get("TIME_SLOT_REF2")} <= set(slots)
        assert [child.tag for child in annotation] == ["ANNOTATION_VALUE"]
        assert re.fullmatch(r"[A-Za-z_][\w.-]*", annotation.attrib["ANNOTATION_ID"])
