"""Which recording an ELAN file annotates, by its media descriptors, and on which clock."""

import pytest

from featurecache.annotations import (
    MediaMatch,
    matching_recordings,
    read_eaf,
)
from featurecache.errors import AnnotationError


def media_header(*media: tuple[str, str | None, int]) -> str:
    out = ""
    for url, relative, origin in media:
        out += f'<MEDIA_DESCRIPTOR MEDIA_URL="{url}" MIME_TYPE="video/mp4" TIME_ORIGIN="{origin}"'
        out += f' RELATIVE_MEDIA_URL="{relative}"/>' if relative is not None else "/>"
    return f"<HEADER>{out}</HEADER>"


@pytest.mark.parametrize(
    ("url", "relative"),
    [
        ("file:///C:/Users/me/my%20rec%20%231.mp4", None),
        ("file:///C:/Users/me/my rec #1.mp4", "./my rec #1.mp4"),
        (r"C:\Users\me\my rec #1.mp4", None),
        ("file:///moved/elsewhere.mp4", r".\videos\my rec #1.mp4"),
        ("file:/Users/me/MY REC #1.MP4", ""),
        ("../../../etc/my rec #1.mp4", None),
    ],
)
def test_matching_recordings_compares_file_names_when_urls_come_from_elsewhere(make_eaf, url, relative):
    path = make_eaf(header=media_header((url, relative, 250)), name="notes.eaf")
    found = matching_recordings(read_eaf(path), path, ["my rec #1.mp4", "s1/other.mp4", "rec #1.mp4"])
    assert found == (MediaMatch("my rec #1.mp4", 250),)


def test_matching_recordings_finds_name_when_percent_sign_is_literal_or_accents_are_decomposed(make_eaf):
    path = make_eaf(header=media_header(("50%20off.mp4", None, 0), ("e\u0301.mp4", None, 7)))
    assert matching_recordings(read_eaf(path), path, ["50%20off.mp4", "\u00e9.mp4"]) == (
        MediaMatch("50%20off.mp4", 0),
        MediaMatch("\u00e9.mp4", 7),
    )


def test_matching_recordings_never_opens_paths_when_they_point_outside(make_eaf):
    path = make_eaf(header=media_header(("file:///etc/shadow", "../../../../etc/shadow", 0)), name="b.eaf")
    assert matching_recordings(read_eaf(path), path, ["a.mp4"]) == ()


def test_matching_recordings_gives_each_its_origin_when_cameras_differ(make_eaf):
    path = make_eaf(header=media_header(("left.mp4", None, 0), ("right.mp4", None, 1200), ("sound.wav", None, 3)))
    document = read_eaf(path)
    assert matching_recordings(document, path, ["right.mp4", "left.mp4"]) == (
        MediaMatch("left.mp4", 0),
        MediaMatch("right.mp4", 1200),
    )
    assert matching_recordings(document, path, ["right.mp4"]) == (MediaMatch("right.mp4", 1200),)


def test_matching_recordings_uses_own_stem_when_no_descriptor_matches(make_eaf):
    path = make_eaf(header=media_header(("old name.mpg", None, 40)), name="baby.07.eaf")
    document = read_eaf(path)
    assert matching_recordings(document, path, ["s/baby.07.mp4", "baby.mp4"]) == (MediaMatch("s/baby.07.mp4", 40),)
    bare = make_eaf(header="<HEADER/>", name="baby.08.eaf")
    assert matching_recordings(read_eaf(bare), bare, ["baby.08.mp4"]) == (MediaMatch("baby.08.mp4", 0),)
    assert matching_recordings(document, path, []) == ()


def test_matching_recordings_uses_folders_when_file_names_repeat(make_eaf, tmp_path):
    recordings = ["s1/cam.mp4", "s2/cam.mp4"]
    path = make_eaf(header=media_header(("file:///D:/study/s2/cam.mp4", "./cam.mp4", 0)))
    assert matching_recordings(read_eaf(path), path, recordings) == (MediaMatch("s2/cam.mp4", 0),)
    (tmp_path / "s1").mkdir()
    inside = make_eaf(header=media_header(("cam.mp4", "./cam.mp4", 0)), name="s1/cam.eaf")
    assert matching_recordings(read_eaf(inside), inside, recordings) == (MediaMatch("s1/cam.mp4", 0),)
    unclear = make_eaf(header=media_header(("cam.mp4", None, 0)))
    with pytest.raises(AnnotationError, match=r"one recording, but 'cam\.mp4' fits s1/cam\.mp4, s2/cam\.mp4"):
        matching_recordings(read_eaf(unclear), unclear, recordings)


@pytest.mark.parametrize(
    ("url", "own", "recording"),
    [
        ("file:///D:/study/s4/CAM9.MP4", "s4.eaf", "s5/CAM9.MP4"),
        ("file:///D:/study/s4/cam1/CAM9.MP4", "x.eaf", "s5/cam1/CAM9.MP4"),
        ("file:///D:/study/s4/CAM9.MP4", "CAM9.eaf", "s5/CAM9.MP4"),
        ("file:///D:/anna/CAM9.avi", "x.eaf", "bert/CAM9.MP4"),
        (r"s4\CAM9.MP4", "x.eaf", "s5/CAM9.MP4"),
        ("CAM9.MP4", "s4/x.eaf", "s5/CAM9.MP4"),
        ("file:///D:/study/s4/CAM9.MP4", "s5.eaf", "s5/CAM9.MP4"),
    ],
)
def test_annotations_of_another_session_are_not_applied_to_a_recording_of_the_same_name(
    make_eaf, tmp_path, url, own, recording
):
    (tmp_path / "s4").mkdir()
    for relative in (None, "./CAM9.MP4"):
        path = make_eaf(header=media_header((url, relative, 0)), name=own)
        with pytest.raises(AnnotationError, match=r"is not .*CAM9\.MP4"):
            matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"])
    with pytest.raises(AnnotationError, match=r'is not .*CAM9\.MP4\. If it is.* media_folders = "ignored"'):
        matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"])
    (match,) = matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"], ignore_folders=True)
    assert match.recording == recording
    assert match.by in ("name", "stem", "path")


@pytest.mark.parametrize("own", ["s5/x.eaf", "s5.eaf"])
def test_an_eaf_filed_under_the_session_annotates_its_recording_wherever_it_was_played_from(make_eaf, tmp_path, own):
    (tmp_path / "s5").mkdir()
    path = make_eaf(header=media_header(("file:///C:/Users/me/Desktop/CAM9.MP4", "./CAM9.MP4", 0)), name=own)
    assert [match.by for match in matching_recordings(read_eaf(path), path, ["s5/CAM9.MP4"])] == ["path"]


def test_a_converted_recording_is_matched_by_its_stem_and_the_picture_gives_the_origin(make_eaf):
    path = make_eaf(
        header=media_header(("file:///D:/data/S1.wav", None, 70), ("file:///D:/data/S1.mpg", None, 40)).replace(
            'video/mp4" TIME_ORIGIN="70', 'audio/x-wav" TIME_ORIGIN="70'
        ),
        name="S1_coderA.eaf",
    )
    assert matching_recordings(read_eaf(path), path, ["S1.mp4", "S10.mp4"]) == (MediaMatch("S1.mp4", 40),)
    with pytest.raises(AnnotationError, match=r"'S1' fits S1\.mov, S1\.mp4"):
        matching_recordings(read_eaf(path), path, ["S1.mp4", "S1.mov"])


def test_an_old_eaf_names_its_media_in_the_header_and_one_without_media_may_bear_a_coders_name(make_eaf):
    old = make_eaf(header='<HEADER MEDIA_FILE="C:\\data\\S2.mpg" TIME_UNITS="milliseconds"/>', name="x.eaf")
    assert matching_recordings(read_eaf(old), old, ["S1.mp4", "S2.mp4"]) == (MediaMatch("S2.mp4", 0),)
    bare = make_eaf(header="<HEADER/>", name="S1_coderA.eaf")
    assert matching_recordings(read_eaf(bare), bare, ["S1.mp4", "S1_coder.mp4"]) == (MediaMatch("S1.mp4", 0),)
    part = make_eaf(header="<HEADER/>", name="S1_2.eaf")
    assert matching_recordings(read_eaf(part), part, ["S1.mp4"]) == (), "the annotation of an absent recording S1_2"
    other = make_eaf(header=media_header(("S1_b.mp4", None, 0)), name="S1_b.eaf")
    assert matching_recordings(read_eaf(other), other, ["S1.mp4"]) == ()


def test_matching_recordings_refuses_when_origins_of_one_recording_differ(make_eaf):
    path = make_eaf(header=media_header(("a.mp4", None, 0), ("x/a.mp4", None, 9)))
    with pytest.raises(AnnotationError, match=r"one time origin, but 'a\.mp4' gets \[0, 9\] ms"):
        matching_recordings(read_eaf(path), path, ["a.mp4"])
    renamed = make_eaf(header=media_header(("x.mp4", None, 0), ("y.mp4", None, 9)))
    with pytest.raises(AnnotationError, match=r"one time origin, but 'a\.mp4' gets \[0, 9\] ms"):
        matching_recordings(read_eaf(renamed), renamed, ["a.mp4"])
