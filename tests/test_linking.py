"""Links to recordings: a prediction opens in ELAN with the file that was read, wherever it and the annotations lie."""

from pathlib import Path

import pytest

from featurecache.annotations import EafDocument, MediaDescriptor, eaf_bytes, link_media, new_document, read_eaf


def linked(
    document: EafDocument, recording: Path, folder: Path, *, source: Path | None = None, time_origin_ms: int = 0
) -> tuple[MediaDescriptor, ...]:
    """The media of a document that was linked, written and read again."""
    link_media(document, recording, folder, source=source or folder / "x.eaf", time_origin_ms=time_origin_ms)
    folder.mkdir(exist_ok=True)
    (folder / "x.eaf").write_bytes(eaf_bytes(document))
    return read_eaf(folder / "x.eaf").media


def with_media(*urls: tuple[str, str | None, str, int]) -> EafDocument:
    document = new_document("S1.eaf", media_name="x")
    header = document.root.find("HEADER")
    assert header is not None
    template = header.find("MEDIA_DESCRIPTOR")
    assert template is not None
    header.remove(template)
    for url, relative, mime_type, origin in urls:
        element = template.__copy__()
        element.attrib = {"MEDIA_URL": url, "MIME_TYPE": mime_type, "TIME_ORIGIN": str(origin)}
        if relative:
            element.set("RELATIVE_MEDIA_URL", relative)
        header.append(element)
    return document


@pytest.mark.parametrize("name", ["S1.mp4", "Café 1 & co.mp4"])
def test_the_recording_is_linked_by_its_absolute_and_its_relative_path(tmp_path: Path, name: str) -> None:
    recording = tmp_path / "videos" / name
    document = with_media((f"file:///D:/old/{name}", f"../old/{name}", "video/mpeg", 0))
    (media,) = linked(document, recording, tmp_path / "out")
    assert media == MediaDescriptor(f"file://{recording}", f"../videos/{name}", "video/mp4", 0)


def test_the_descriptor_of_the_recording_is_linked_and_other_cameras_and_sound_stay(tmp_path: Path) -> None:
    document = with_media(
        ("file:///D:/S1.wav", "../S1.wav", "audio/x-wav", 7),
        ("file:///D:/S1_cam2.mpg", "file:/./S1_cam2.mpg", "video/mpeg", 9),
        ("file:///D:/s1.MPG", None, "video/mpeg", 500),
    )
    source = tmp_path / "elan" / "coder" / "S1.eaf"
    sound, other, own = linked(document, tmp_path / "S1.mp4", tmp_path / "out", source=source, time_origin_ms=500)
    assert own == MediaDescriptor(f"file://{tmp_path}/S1.mp4", "../S1.mp4", "video/mp4", 500)
    assert (sound.media_url, sound.relative_media_url) == ("file:///D:/S1.wav", "../elan/S1.wav")
    assert (other.media_url, other.relative_media_url) == ("file:///D:/S1_cam2.mpg", "../elan/coder/S1_cam2.mpg")


def test_a_document_without_media_gets_the_recordings(tmp_path: Path) -> None:
    (media,) = linked(with_media(), tmp_path / "out" / "S1.mp4", tmp_path / "out")
    assert media == MediaDescriptor(f"file://{tmp_path}/out/S1.mp4", "./S1.mp4", "video/mp4", 0)
