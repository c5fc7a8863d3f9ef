"""Links from a document to media files, so that ELAN opens what we write with the recording that was read.

ELAN looks at the absolute path first, then at the one relative to the document. It writes paths as they are, without
percent-encoding, and so does this.
"""

import mimetypes
import os
import posixpath
from pathlib import Path
from xml.etree.ElementTree import Element

from featurecache.annotations.document import EafDocument, relative_url
from featurecache.annotations.eaf_writer import new_document
from featurecache.annotations.media import is_audio, same_name
from featurecache.csv_fields import UNWRITABLE


def linked_document(
    path: Path,
    recording: Path,
    *,
    document: EafDocument | None = None,
    source: Path | None = None,
    time_origin_ms: int = 0,
) -> EafDocument:
    """A document that is about to be written, linked to its recording.

    Args:
        path: The file to be written.
        recording: The file that was read.
        document: The annotator's document, which is changed in place; None for a new one.
        source: The file that `document` was read from; where unknown, its links stay.
        time_origin_ms: As `link_media`.
    """
    if document is None:
        link = Path(os.path.relpath(recording.absolute(), path.parent.absolute())).as_posix()
        return new_document(path.name, media_name=link, mime_type=mimetypes.guess_type(recording.name)[0] or "video/*")
    if source is not None:
        link_media(document, recording, path.parent, time_origin_ms=time_origin_ms, source=source)
    return document


def link_media(document: EafDocument, recording: Path, folder: Path, *, time_origin_ms: int, source: Path) -> None:
    """Lets a document's media descriptor name the recording that was read; one is added where none is of it.

    Args:
        document: Changed in place. Links to other media stay; relative ones are seen from `folder` then.
        recording: The file that was read.
        folder: Where the document will lie.
        time_origin_ms: The time origin that the annotations of the recording have in the document.
        source: The file that the document was read from.
    """
    header = document.root.find("HEADER")
    if header is None:  # the reader refuses such a document
        return
    elements = header.findall("MEDIA_DESCRIPTOR")
    for element in elements:
        _rebase(element, source.parent, folder)
    own = _descriptor_of(document, elements, recording.name, time_origin_ms)
    if own is None:
        own = Element("MEDIA_DESCRIPTOR", {"MIME_TYPE": "video/*"})
        header.insert(0, own)
    if mime_type := mimetypes.guess_type(recording.name)[0]:
        own.set("MIME_TYPE", mime_type)
    relative, absolute = _relative(recording, folder), recording.absolute().as_posix()
    relative = recording.name if UNWRITABLE.search(relative) else relative
    own.set("RELATIVE_MEDIA_URL", relative)
    own.set("MEDIA_URL", relative if UNWRITABLE.search(absolute) else f"file://{absolute}")


def _descriptor_of(document: EafDocument, elements: list[Element], name: str, time_origin_ms: int) -> Element | None:
    """The descriptor of the recording: by its file name, then without suffix, then any picture of that origin."""
    known = list(zip(elements, document.media, strict=True)) if elements else []
    pictures = [(element, media) for element, media in known if not is_audio(media)]
    for by_stem in (False, True):
        for element, media in pictures:
            urls = filter(None, (media.media_url, media.relative_media_url))
            if any(same_name(name, url, by_stem=by_stem) for url in urls):
                return element
    return next((element for element, media in pictures if media.time_origin_ms == time_origin_ms), None)


def _rebase(element: Element, source: Path, folder: Path) -> None:
    url = relative_url(element)
    if url and "\\" not in url and "://" not in url and not posixpath.isabs(url):
        element.set("RELATIVE_MEDIA_URL", _relative(source / url, folder))


def _relative(path: Path, folder: Path) -> str:
    link = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    return link if link.startswith("../") else f"./{link}"
