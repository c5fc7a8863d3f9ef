"""Reads and rewrites ELAN files (`.eaf`, format 2.x and 3.x).

Files are hostile until read: a document type declaration (and with it every entity and external
reference), excessive size or depth, and encodings other than UTF-8 are refused. URLs inside the file
(media, schema, vocabularies) are text and never opened.

A file that is read and saved keeps every element, attribute, text, comment and processing
instruction. Namespace prefixes and the spelling of entities are the serialiser's.
"""

import re
import stat
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from featurecache.annotations.document import EafDocument
from featurecache.annotations.saving import save_private
from featurecache.annotations.timing import resolve_times
from featurecache.errors import AnnotationError, UnsafeFileError

MAX_FILE_BYTES = 50_000_000
MAX_DEPTH = 64
"""An `.eaf` is five elements deep."""
MAX_MEDIA = 1000
"""ELAN plays a handful at once."""

_DECLARED_ENCODING = re.compile(rb"""\A<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)["']""")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_eaf(path: Path) -> EafDocument:
    """Read an ELAN file.

    Args:
        path: The `.eaf` file. Nothing that it refers to is opened.

    Returns:
        The document, its identifiers and times checked.

    Raises:
        UnsafeFileError: If it is not a plain file, declares a document type, or is beyond the bounds above.
        AnnotationError: If it is unreadable, not UTF-8 XML, not an ELAN file, or inconsistent.
    """
    document = _parse(path.name, read_bounded(path))
    _check_header(document)
    _ = document.media
    resolve_times(document)
    return document


def save_eaf(document: EafDocument, path: Path, *, replace: bool = False) -> None:
    """Write a document back, losing nothing that was read.

    Args:
        document: What to write.
        path: The file to make, mode 0600.
        replace: Whether a file that is already there may be replaced.

    Raises:
        OutputExistsError: If the file is there and `replace` is false.
        AnnotationError: If a text holds a character that XML cannot carry.
    """
    save_private(path, eaf_bytes(document), replace=replace)


def eaf_bytes(document: EafDocument) -> bytes:
    """A document as the content of a file.

    Raises:
        AnnotationError: If a text holds a character that XML cannot carry.
    """
    pieces = [*document.before, document.root, *document.after]
    body = "\n".join(tostring(piece, encoding="unicode") for piece in pieces)
    if found := _NOT_XML.search(body):
        near = body[max(0, found.start() - 20) : found.start()]
        raise document.error(f"texts must be characters that XML allows, but {found[0]!r} follows {near!r}. Remove it.")
    # A raw carriage return can only stand in an element's text, where a reader would turn it into a line feed.
    body = body.replace("\r", "&#13;")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'.encode()


def read_bounded(path: Path) -> bytes:
    """The content of a plain file of at most MAX_FILE_BYTES.

    Raises:
        UnsafeFileError: If it is larger, or no plain file.
        AnnotationError: If it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(f"an annotation file must be a plain file, but {path} is not. Name a file.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AnnotationError(
            f"an annotation file must be readable, but {path} is not ({error.strerror}). Check its name and rights."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise UnsafeFileError(
            f"an annotation file must not exceed {MAX_FILE_BYTES // 10**6} MB, but {path} has "
            f"{max(status.st_size, len(data)) / 1e6:.1f} MB. Split it, or check what it is."
        )
    return data


class _DocumentBuilder(TreeBuilder):
    """Builds the tree with its comments, keeps what stands around the root, and bounds the depth."""

    def __init__(self) -> None:
        super().__init__(insert_comments=True, insert_pis=True)
        self.depth = 0
        self.root_seen = False
        self.before: list[Element] = []
        self.after: list[Element] = []

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self.depth += 1
        self.root_seen = True
        if self.depth > MAX_DEPTH:
            raise UnsafeFileError(f"elements must not nest deeper than {MAX_DEPTH}, but <{tag[:40]}> does")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)

    def comment(self, text: str | None, /) -> Element:
        return self._outside(super().comment(text))

    def pi(self, target: str, text: str | None = None, /) -> Element:
        return self._outside(super().pi(target, text))

    def _outside(self, element: Element) -> Element:
        if self.depth == 0:
            (self.after if self.root_seen else self.before).append(element)
        return element


def _parse(name: str, data: bytes) -> EafDocument:
    data = data.removeprefix(b"\xef\xbb\xbf")
    declared = _DECLARED_ENCODING.match(data)
    if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise AnnotationError(
            f"{name}, line 1: an .eaf file must be UTF-8, but it says {declared[1].decode('ascii', 'replace')!r}. "
            "Save it again in ELAN."
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{name}, line {line}: an .eaf file must be UTF-8, but byte 0x{data[error.start]:02x} is not. "
            "Save it again in ELAN."
        ) from error

    builder = _DocumentBuilder()
    parser = DefusedXMLParser(target=builder, encoding="utf-8", forbid_dtd=True)
    try:
        parser.feed(data)
        root = parser.close()
    except DefusedXmlException as error:
        raise UnsafeFileError(
            f"{name}: an .eaf file must not declare a document type or entities, but it does "
            f"({type(error).__name__}). Do not open it; ask where it comes from."
        ) from error
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name}: {error}. Do not open it; ask where it comes from.") from error
    except ParseError as error:
        line, column = error.position
        raise AnnotationError(
            f"{name}, line {line}: an .eaf file must be well-formed XML, but it breaks at column {column + 1} "
            f"({str(error).split(':')[0]}). Restore it from ELAN's backup (.eaf.001)."
        ) from error
    return EafDocument(name, root, tuple(builder.before), tuple(builder.after))


def _check_header(document: EafDocument) -> None:
    root = document.root
    if root.tag != "ANNOTATION_DOCUMENT":
        raise document.error(f"the root must be ANNOTATION_DOCUMENT, but it is {root.tag[:60]}. Is this an ELAN file?")
    version = document.format_version
    if version.split(".")[0] not in ("2", "3"):
        raise document.error(f"the format must be 2.x or 3.x, but it is {version[:20]!r}. Save it again in ELAN.")
    header = root.find("HEADER")
    if header is None:
        raise document.error("an ELAN file must have a HEADER, but this one has none. Repair or re-export it.")
    if (count := len(header.findall("MEDIA_DESCRIPTOR"))) > MAX_MEDIA:
        raise UnsafeFileError(
            f"{document.name}: an ELAN file must not name more than {MAX_MEDIA} media files, but it names {count}. "
            "Do not use it; ask where it comes from."
        )
    units = header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise document.error(f"TIME_UNITS must be milliseconds, but it is {units[:40]!r}. Save it again in ELAN.")
