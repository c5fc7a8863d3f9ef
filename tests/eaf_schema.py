"""What the EAF 3.0 schema asks of a document, written down anew, as the schema itself is not ours to ship.

The content of each element in its order, its attributes, their types, and which identifiers must exist. Where the
environment names the official schema, tests hold both against each other:

    FEATURECACHE_EAF_SCHEMA=/path/to/EAFv3.0.xsd     (published at www.mpi.nl/tools/elan/; also in pympi-ling's source)
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

CONTENT = {
    "ANNOTATION_DOCUMENT": "LICENSE* HEADER TIME_ORDER TIER* LINGUISTIC_TYPE* LOCALE* LANGUAGE* CONSTRAINT* "
    "CONTROLLED_VOCABULARY* LEXICON_REF* REF_LINK_SET* EXTERNAL_REF*",
    "HEADER": "MEDIA_DESCRIPTOR* LINKED_FILE_DESCRIPTOR* PROPERTY*",
    "TIME_ORDER": "TIME_SLOT*",
    "TIER": "ANNOTATION*",
    "ANNOTATION": "(ALIGNABLE_ANNOTATION|REF_ANNOTATION)",
    "ALIGNABLE_ANNOTATION": "ANNOTATION_VALUE",
    "REF_ANNOTATION": "ANNOTATION_VALUE",
    "CONTROLLED_VOCABULARY": "DESCRIPTION* CV_ENTRY_ML*",
    "CV_ENTRY_ML": "CVE_VALUE+",
    "REF_LINK_SET": "(CROSS_REF_LINK|GROUP_REF_LINK)*",
}
"""Children in order; an element that is not named has none."""

_OF_ANNOTATION = "ANNOTATION_ID:ID EXT_REF?:IDREFS LANG_REF?:IDREF CVE_REF?"
_OF_LINK = "REF_LINK_ID:ID REF_LINK_NAME? EXT_REF?:IDREFS LANG_REF?:IDREF CVE_REF? REF_TYPE?"
ATTRIBUTES = {
    "ANNOTATION_DOCUMENT": "DATE:dateTime AUTHOR VERSION FORMAT?",
    "LICENSE": "LICENSE_URL?",
    "HEADER": "MEDIA_FILE? TIME_UNITS?:units",
    "MEDIA_DESCRIPTOR": "MEDIA_URL RELATIVE_MEDIA_URL? MIME_TYPE TIME_ORIGIN?:long EXTRACTED_FROM?",
    "LINKED_FILE_DESCRIPTOR": "LINK_URL RELATIVE_LINK_URL? MIME_TYPE TIME_ORIGIN?:long ASSOCIATED_WITH?",
    "PROPERTY": "NAME?",
    "TIME_SLOT": "TIME_SLOT_ID:ID TIME_VALUE?:unsignedInt",
    "TIER": "TIER_ID PARTICIPANT? ANNOTATOR? LINGUISTIC_TYPE_REF DEFAULT_LOCALE?:IDREF PARENT_REF? EXT_REF?:IDREF "
    "LANG_REF?:IDREF",
    "ALIGNABLE_ANNOTATION": f"{_OF_ANNOTATION} TIME_SLOT_REF1:IDREF TIME_SLOT_REF2:IDREF SVG_REF?",
    "REF_ANNOTATION": f"{_OF_ANNOTATION} ANNOTATION_REF:IDREF PREVIOUS_ANNOTATION?:IDREF",
    "LINGUISTIC_TYPE": "LINGUISTIC_TYPE_ID TIME_ALIGNABLE?:boolean CONSTRAINTS?:IDREF GRAPHIC_REFERENCES?:boolean "
    "CONTROLLED_VOCABULARY_REF? EXT_REF?:IDREF LEXICON_REF?:IDREF",
    "LOCALE": "LANGUAGE_CODE:ID COUNTRY_CODE? VARIANT?",
    "LANGUAGE": "LANG_ID:ID LANG_DEF? LANG_LABEL?",
    "CONSTRAINT": "STEREOTYPE:ID DESCRIPTION?",
    "CONTROLLED_VOCABULARY": "CV_ID EXT_REF?:IDREF",
    "DESCRIPTION": "LANG_REF:IDREF",
    "CV_ENTRY_ML": "CVE_ID EXT_REF?:IDREF",
    "CVE_VALUE": "LANG_REF:IDREF DESCRIPTION?",
    "LEXICON_REF": "LEX_REF_ID:ID NAME TYPE URL LEXICON_ID LEXICON_NAME DATCAT_ID? DATCAT_NAME?",
    "REF_LINK_SET": "LINK_SET_ID:ID LINK_SET_NAME? EXT_REF?:IDREFS LANG_REF?:IDREF CV_REF?",
    "CROSS_REF_LINK": f"REF1:IDREF REF2:IDREF DIRECTIONALITY? {_OF_LINK}",
    "GROUP_REF_LINK": f"REFS:IDREFS {_OF_LINK}",
    "EXTERNAL_REF": "EXT_REF_ID:ID TYPE:external VALUE",
}
"""Attributes and their types; those with "?" are optional, those without a type are any text."""

TYPES = {
    "dateTime": r"-?\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?",
    "units": "NTSC-frames|PAL-frames|milliseconds",
    "long": r"[+-]?\d{1,18}",
    "unsignedInt": r"\d{1,10}",
    "boolean": "true|false|0|1",
    "external": "iso12620|ecv|cve_id|lexen_id|resource_url",
    "ID": r"[^\W\d][\w.\-]*",
    "IDREF": r"[^\W\d][\w.\-]*",
    "IDREFS": r"[^\W\d][\w.\-]*( [^\W\d][\w.\-]*)*",
}

KEYS = [
    ("TIER", "TIER_ID", [("TIER", "PARENT_REF")]),
    ("LINGUISTIC_TYPE", "LINGUISTIC_TYPE_ID", [("TIER", "LINGUISTIC_TYPE_REF")]),
    ("CONTROLLED_VOCABULARY", "CV_ID", [("LINGUISTIC_TYPE", "CONTROLLED_VOCABULARY_REF")]),
    ("LEXICON_REF", "LEX_REF_ID", [("LINGUISTIC_TYPE", "LEXICON_REF")]),
    ("REF_ANNOTATION", "ANNOTATION_ID", [("REF_ANNOTATION", "PREVIOUS_ANNOTATION")]),
    (
        "TIME_SLOT",
        "TIME_SLOT_ID",
        [("ALIGNABLE_ANNOTATION", "TIME_SLOT_REF1"), ("ALIGNABLE_ANNOTATION", "TIME_SLOT_REF2")],
    ),
    (
        "LANGUAGE",
        "LANG_ID",
        [(tag, "LANG_REF") for tag in ("TIER", "ALIGNABLE_ANNOTATION", "CVE_VALUE", "DESCRIPTION")],
    ),
]
"""Element and attribute whose values are unique, and who refers to them."""


def official_schema() -> Path | None:
    """Where the official schema lies, if the environment names it and it is there."""
    named = Path(os.environ.get("FEATURECACHE_EAF_SCHEMA") or "nowhere")
    return named if named.is_file() and named.stat().st_size else None


def violations(root: Element) -> list[str]:
    """What a document breaks of the schema, in words; empty where it is valid."""
    return [*_structure(root), *_identifiers(root)]


def _structure(root: Element) -> Iterator[str]:
    if root.tag != "ANNOTATION_DOCUMENT":
        yield f"the root is {root.tag}"
    for element in root.iter():
        if not isinstance(element.tag, str):  # a comment
            continue
        children = [child.tag for child in element if isinstance(child.tag, str)]
        order = re.sub(r"[A-Z_]+", lambda match: f"(?:{match[0]},)", CONTENT.get(element.tag, "")).replace(" ", "")
        if not re.fullmatch(order, "".join(f"{tag}," for tag in children)):
            yield f"{element.tag} holds {' '.join(children)[:200]}"
        allowed = dict(_attributes(element.tag))
        for name, (kind, is_required) in allowed.items():
            value = element.get(name)
            if value is None and is_required:
                yield f"{element.tag} lacks {name}"
            elif value is not None and kind and not re.fullmatch(TYPES[kind], value.strip()):
                yield f"{element.tag} {name} is {value!r}, no {kind}"
        for name in element.attrib:
            if name not in allowed and not name.startswith("{http://www.w3.org/2001/XMLSchema-instance}"):
                yield f"{element.tag} has {name}"


def _attributes(tag: str) -> Iterator[tuple[str, tuple[str, bool]]]:
    for item in ATTRIBUTES.get(tag, "").split():
        name, _, kind = item.partition(":")
        yield name.rstrip("?"), (kind, not name.endswith("?"))


def _identifiers(root: Element) -> Iterator[str]:
    typed = [
        (kind, value)
        for element in root.iter()
        if isinstance(element.tag, str)
        for name, (kind, _) in _attributes(element.tag)
        if (value := element.get(name)) is not None
    ]
    identifiers = [value for kind, value in typed if kind == "ID"]
    known = set(identifiers)
    if len(known) < len(identifiers):
        yield f"{len(identifiers) - len(known)} identifiers repeat"
    for kind, value in typed:
        for reference in value.split() if kind in ("IDREF", "IDREFS") else ():
            if reference not in known:
                yield f"nothing has the identifier {reference!r}"
    for tag, attribute, referring in KEYS:
        keys = [element.get(attribute) for element in root.iter(tag)]
        unique = set(keys)
        if len(unique) < len(keys):
            yield f"a {attribute} repeats"
        for other, name in referring:
            for element in root.iter(other):
                if (value := element.get(name)) is not None and value not in unique:
                    yield f"{other} refers to {value!r}, and no {tag} has it"
