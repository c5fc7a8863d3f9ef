"""An ELAN document: the XML tree as the carrier, and typed views over it.

The tree is the document; what callers need from it (media, tiers, annotations, slots) is computed on
demand. So a rewrite carries every element, attribute, text and comment that was read, whether or not
this toolkit knows its meaning. Times here are the file's own milliseconds; `timing` resolves them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from featurecache.errors import AnnotationError

_INTEGER = re.compile(r"-?[0-9]{1,15}")
_SCHEME_OF_RELATIVE = re.compile(r"^file:/(?=\.\.?/)")


@dataclass(frozen=True, slots=True)
class MediaDescriptor:
    """One media file of a document, as the file names it.

    `time_origin_ms` is where the document's time zero lies on the media's clock:
    media time = annotation time + origin.
    """

    media_url: str
    relative_media_url: str | None
    mime_type: str
    time_origin_ms: int


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier, with the constraint and the controlled vocabulary of its linguistic type, where it has them."""

    name: str
    parent: str | None
    constraint: str | None
    vocabulary: str | None
    element: Element


@dataclass(frozen=True, slots=True)
class RawAnnotation:
    """An annotation as the file holds it, its times unresolved.

    Alignable annotations have both slots; reference annotations have `reference`, and `previous`
    where they follow another one in a symbolic subdivision.
    """

    annotation_id: str
    tier: str
    value: str
    start_slot: str | None = None
    end_slot: str | None = None
    reference: str | None = None
    previous: str | None = None


class EafDocument:
    """An ELAN document: the XML tree, and typed views of it.

    Attributes:
        name: The file's name, for messages.
        root: The `ANNOTATION_DOCUMENT` element.
        before: Comments and processing instructions in front of the root.
        after: The same, behind it.
    """

    def __init__(
        self, name: str, root: Element, before: tuple[Element, ...] = (), after: tuple[Element, ...] = ()
    ) -> None:
        self.name = name
        self.root = root
        self.before = before
        self.after = after

    def error(self, message: str) -> AnnotationError:
        """An AnnotationError that names this file."""
        return AnnotationError(f"{self.name}: {message}")

    def attribute(self, element: Element, name: str) -> str:
        """A required attribute of an element.

        Raises:
            AnnotationError: If it is missing.
        """
        value = element.get(name)
        if value is None:
            shown = " ".join(f'{key}="{text}"' for key, text in element.attrib.items())
            raise self.error(
                f"every {element.tag} must have {name}, but <{element.tag} {shown}> has none. Repair or re-export it."
            )
        return value

    def milliseconds(self, text: str, what: str) -> int:
        """An integer attribute, e.g. a time.

        Raises:
            AnnotationError: If it is no integer.
        """
        if not _INTEGER.fullmatch(text.strip()):
            raise self.error(f"{what} must be whole milliseconds, but it is {text[:40]!r}. Repair or re-export it.")
        return int(text)

    @property
    def format_version(self) -> str:
        """The `FORMAT` attribute (older files: `VERSION`)."""
        return self.root.get("FORMAT") or self.root.get("VERSION") or ""

    @property
    def media(self) -> tuple[MediaDescriptor, ...]:
        """The media descriptors, in file order; without one, the media file that older files name in the header."""
        found = tuple(
            MediaDescriptor(
                media_url=self.attribute(element, "MEDIA_URL"),
                relative_media_url=relative_url(element),
                mime_type=element.get("MIME_TYPE", ""),
                time_origin_ms=self.milliseconds(element.get("TIME_ORIGIN", "0"), "TIME_ORIGIN"),
            )
            for element in self.root.iterfind("HEADER/MEDIA_DESCRIPTOR")
        )
        header = self.root.find("HEADER")
        older = "" if found or header is None else header.get("MEDIA_FILE", "").strip()
        return (MediaDescriptor(older, None, "", 0),) if older else found

    @property
    def slots_ms(self) -> dict[str, int | None]:
        """Time slots in file order; None for one without a time."""
        slots: dict[str, int | None] = {}
        for element in self.root.iterfind("TIME_ORDER/TIME_SLOT"):
            slot = self.attribute(element, "TIME_SLOT_ID")
            if slot in slots:
                raise self.error(f"time slots must be unique, but {slot} occurs twice. Repair or re-export the file.")
            value = element.get("TIME_VALUE")
            slots[slot] = None if value is None else self.milliseconds(value, f"the time of slot {slot}")
        return slots

    @property
    def tiers(self) -> dict[str, Tier]:
        """Tiers by name, in file order."""
        types = {element.get("LINGUISTIC_TYPE_ID"): element.attrib for element in self.root.iterfind("LINGUISTIC_TYPE")}
        tiers: dict[str, Tier] = {}
        for element in self.root.iterfind("TIER"):
            name = self.attribute(element, "TIER_ID")
            if name in tiers:
                raise self.error(f"tier names must be unique, but {name!r} occurs twice. Rename one of them in ELAN.")
            kind = types.get(element.get("LINGUISTIC_TYPE_REF"), {})
            tiers[name] = Tier(
                name,
                element.get("PARENT_REF"),
                kind.get("CONSTRAINTS"),
                kind.get("CONTROLLED_VOCABULARY_REF"),
                element,
            )
        return tiers

    @property
    def vocabularies(self) -> dict[str, tuple[str, ...]]:
        """The values of each controlled vocabulary that the file itself holds, by its id."""
        found = {}
        for element in self.root.iterfind("CONTROLLED_VOCABULARY"):
            entries = [*element.iterfind("CV_ENTRY"), *element.iterfind("CV_ENTRY_ML/CVE_VALUE")]
            values = [(entry.text or "").strip() for entry in entries]
            found[self.attribute(element, "CV_ID")] = tuple(dict.fromkeys(value for value in values if value))
        return found

    @property
    def vocabulary_entries(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """What a vocabulary's entry is called in each of its languages, by the ids of the vocabulary and the entry."""
        return {
            (self.attribute(element, "CV_ID"), self.attribute(entry, "CVE_ID")): tuple(
                value.text.strip() for value in entry.iterfind("CVE_VALUE") if value.text and value.text.strip()
            )
            for element in self.root.iterfind("CONTROLLED_VOCABULARY")
            for entry in element.iterfind("CV_ENTRY_ML")
        }

    def raw_annotations(self, tier: Tier) -> Iterator[RawAnnotation]:
        """The annotations of a tier, in file order; one whose value is an entry of a vocabulary alone has its name.

        Raises:
            AnnotationError: If one lacks an identifier or a reference that its kind needs.
        """
        entries = self.vocabulary_entries if tier.vocabulary else {}
        for element in tier.element.iterfind("ANNOTATION/*"):
            names = entries.get((tier.vocabulary or "", element.get("CVE_REF", "")), ())
            value = _value(element) or (names[0] if names else "")
            if element.tag == "ALIGNABLE_ANNOTATION":
                yield RawAnnotation(
                    self.attribute(element, "ANNOTATION_ID"),
                    tier.name,
                    value,
                    start_slot=self.attribute(element, "TIME_SLOT_REF1"),
                    end_slot=self.attribute(element, "TIME_SLOT_REF2"),
                )
            elif element.tag == "REF_ANNOTATION":
                yield RawAnnotation(
                    self.attribute(element, "ANNOTATION_ID"),
                    tier.name,
                    value,
                    reference=self.attribute(element, "ANNOTATION_REF"),
                    previous=element.get("PREVIOUS_ANNOTATION"),
                )


def relative_url(descriptor: Element) -> str | None:
    """A media descriptor's path relative to its document; ELAN's older formats write `file:/./` in front of it."""
    url = descriptor.get("RELATIVE_MEDIA_URL")
    return None if url is None else _SCHEME_OF_RELATIVE.sub("", url)


def _value(annotation: Element) -> str:
    value = annotation.find("ANNOTATION_VALUE")
    if value is None:
        return ""
    # Not findtext, which ends at a comment; not itertext, which includes it.
    return (value.text or "") + "".join(child.tail or "" for child in value)
