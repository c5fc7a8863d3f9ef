"""ELAN files: everything in them is found, and hostile or broken ones are refused with a name and a place."""

import os
from collections import Counter
from itertools import pairwise

import pympi
import pytest

from featurecache.annotations import Interval, LabelRule, add_tier, marks, read_eaf, resolve_times, save_eaf
from featurecache.errors import AnnotationError, UnsafeFileError
from tests.eaf_samples import (
    SECOND,
    SHARED,
    SHARED_FILES,
    assert_schema_order,
    content,
    eaf_text,
    needs_shared,
    same_content,
    tier_text,
)


@needs_shared
@pytest.mark.parametrize(
    ("name", "version", "tiers", "annotations", "references", "untimed_slots"),
    [
        ("childproject_example.eaf", "3.0", 13, 712, 416, 0),
        ("pympi_sample_2.8.eaf", "2.8", 6, 8778, 3990, 1572),
        ("speach_blank.eaf", "3.0", 1, 0, 0, 0),
        ("speach_test.eaf", "3.0", 5, 43, 20, 0),
    ],
)
def test_read_eaf_finds_everything_when_file_is_real(name, version, tiers, annotations, references, untimed_slots):
    document = read_eaf(SHARED / name)
    raw = [annotation for tier in document.tiers.values() for annotation in document.raw_annotations(tier)]
    assert document.format_version == version
    assert len(document.tiers) == tiers
    assert len(raw) == len(resolve_times(document)) == annotations
    assert sum(annotation.reference is not None for annotation in raw) == references
    assert sum(value is None for value in document.slots_ms.values()) == untimed_slots
    assert len(document.media) == 1


@needs_shared
@pytest.mark.parametrize("name", SHARED_FILES)
def test_resolve_times_agrees_with_pympi_where_pympi_can_read(name):
    ours = Counter(
        (a.tier, a.start_us // 1000, a.end_us // 1000, a.value) for a in resolve_times(read_eaf(SHARED / name))
    )
    theirs = pympi.Eaf(str(SHARED / name))
    compared = 0
    for tier in theirs.get_tier_names():
        try:
            annotations = theirs.get_annotation_data_for_tier(tier)
        except (KeyError, TypeError):
            continue  # pympi cannot follow a reference into a time-aligned child tier, nor a slot without a time
        constraint = theirs.get_parameters_for_linguistic_type(
            theirs.get_parameters_for_tier(tier)["LINGUISTIC_TYPE_REF"]
        ).get("CONSTRAINTS")
        if constraint == "Symbolic_Subdivision" or tier == "words-pos":
            continue  # pympi gives every part its parent's whole time
        for start, end, value, *_ in annotations:
            if start is not None and end is not None:
                assert ours[(tier, start, end, value)] > 0, (tier, start, end, value)
                compared += 1
    assert compared == {SHARED_FILES[0]: 712, SHARED_FILES[1]: 2823, SHARED_FILES[2]: 0, SHARED_FILES[3]: 31}[name]


@needs_shared
def test_resolve_times_follows_reference_when_parent_is_time_aligned_child_tier():
    annotations = resolve_times(read_eaf(SHARED / "speach_test.eaf"))
    chunks = [(a.start_us, a.end_us) for a in annotations if a.tier == "Person1 (Chunk)"]
    languages = [(a.start_us, a.end_us) for a in annotations if a.tier == "Person1 (ChunkLanguage)"]
    assert len(chunks) == 12
    assert languages == chunks


@needs_shared
def test_resolve_times_divides_parents_when_real_slots_have_no_time():
    annotations = resolve_times(read_eaf(SHARED / "pympi_sample_2.8.eaf"))
    texts = [(a.start_us, a.end_us) for a in annotations if a.tier == "text"]
    for tier in ("words-timesub", "words-symsub"):
        words = [(a.start_us, a.end_us) for a in annotations if a.tier == tier]
        for index, text in enumerate(texts):
            parts = words[5 * index : 5 * index + 5]
            assert (parts[0][0], parts[-1][1]) == text
            assert all(end == start for (_, end), (start, _) in pairwise(parts))
            assert all(start < end for start, end in parts)


@needs_shared
@pytest.mark.parametrize("name", SHARED_FILES)
def test_save_eaf_loses_nothing_when_file_is_real(name, tmp_path):
    save_eaf(read_eaf(SHARED / name), tmp_path / name)
    assert same_content(SHARED / name, tmp_path / name)


@needs_shared
@pytest.mark.parametrize("name", SHARED_FILES)
def test_add_tier_keeps_everything_else_when_file_is_real(name, tmp_path):
    document = read_eaf(SHARED / name)
    before = {tier: [a for a in resolve_times(document) if a.tier == tier] for tier in document.tiers}
    new = [Interval(1_500_000, 2_250_000, "0.93"), Interval(4 * SECOND, 5 * SECOND, "0.51")]
    add_tier(document, "predicted", new, time_origin_ms=0)
    save_eaf(document, tmp_path / name)

    back = read_eaf(tmp_path / name)
    assert marks(back, LabelRule("values", ("predicted",)), time_origin_ms=0).intervals == new
    for tier, annotations in before.items():
        assert [a for a in resolve_times(back) if a.tier == tier] == annotations
    old, root = read_eaf(SHARED / name).root, back.root
    for tag in ("LICENSE", "LOCALE", "LANGUAGE", "CONSTRAINT", "CONTROLLED_VOCABULARY", "EXTERNAL_REF"):
        assert [content(e) for e in old.iter(tag)] == [content(e) for e in root.iter(tag)]
    assert [e.get("TIER_ID") for e in root.iter("TIER")] == [*before, "predicted"]
    assert_schema_order(root)
    times = [int(e.attrib["TIME_VALUE"]) for e in root.iter("TIME_SLOT") if "TIME_VALUE" in e.attrib]
    assert times == sorted(times)
    old_ids = [e.get("ANNOTATION_ID") for e in old.iter() if e.get("ANNOTATION_ID")]
    new_ids = [e.get("ANNOTATION_ID") for e in root.iter() if e.get("ANNOTATION_ID")]
    assert len(set(new_ids)) == len(new_ids) == len(old_ids) + 2


BILLION_LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "prolog",
    [
        BILLION_LAUGHS,
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1/x"> %a;]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">',
        "<!DOCTYPE ANNOTATION_DOCUMENT>",
    ],
)
def test_read_eaf_refuses_when_document_type_is_declared(tmp_path, prolog):
    path = tmp_path / "hostile.eaf"
    path.write_text(eaf_text().replace("<ANNOTATION_DOCUMENT", prolog + "<ANNOTATION_DOCUMENT", 1))
    with pytest.raises(UnsafeFileError, match=r"hostile\.eaf: .* must not declare a document type"):
        read_eaf(path)


def test_read_eaf_refuses_when_elements_nest_deeper_than_any_elan_file(tmp_path):
    path = tmp_path / "deep.eaf"
    path.write_text("<ANNOTATION_DOCUMENT>" + "<A>" * 100_000)
    with pytest.raises(UnsafeFileError, match=r"deep\.eaf: elements must not nest deeper than 64"):
        read_eaf(path)


def test_read_eaf_refuses_when_media_are_beyond_any_reason(make_eaf):
    path = make_eaf(header="<HEADER>" + '<MEDIA_DESCRIPTOR MEDIA_URL="a"/>' * 1001 + "</HEADER>")
    with pytest.raises(UnsafeFileError, match="more than 1000 media files, but it names 1001"):
        read_eaf(path)


def test_read_eaf_takes_linear_time_when_tiers_nest_without_end(make_eaf):
    tiers = "".join(tier_text(f"n{i}", kind="sub", parent=f"n{i + 1}") for i in range(20_000)) + tier_text("n20000")
    assert len(read_eaf(make_eaf(tiers, "s")).tiers) == 20_001


def test_read_eaf_refuses_when_file_is_too_large_or_not_plain(tmp_path):
    large = tmp_path / "large.eaf"
    with large.open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(UnsafeFileError, match="must not exceed 50 MB"):
        read_eaf(large)
    os.mkfifo(tmp_path / "pipe.eaf")
    with pytest.raises(UnsafeFileError, match="plain file"):
        read_eaf(tmp_path / "pipe.eaf")
    with pytest.raises(AnnotationError, match=r"readable.*none\.eaf"):
        read_eaf(tmp_path / "none.eaf")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.eaf, line 1: .*well-formed"),
        (b"<ANNOTATION_DOCUMENT>\n<HEADER>\n</ANNOTATION_DOCUMENT>", "x.eaf, line 3: .*mismatched tag"),
        (eaf_text().encode()[:-30], "x.eaf, line .*well-formed"),
        (eaf_text().replace("a.mp4", "\u00e9").encode("latin-1"), "x.eaf, line 2: .*UTF-8, but byte 0xe9"),
        (eaf_text().encode("utf-16"), "x.eaf, line 1: .*UTF-8"),
        (eaf_text().replace("UTF-8", "ISO-8859-1").encode(), "x.eaf, line 1: .*it says 'ISO-8859-1'"),
        (b"\xef\xbb\xbf" + eaf_text().replace("UTF-8", "latin1").encode(), "line 1: .*it says 'latin1'"),
        (eaf_text().replace("a.mp4", "&nbsp;").encode(), "x.eaf, line 2: .*undefined entity"),
        (b"<html/>", "root must be ANNOTATION_DOCUMENT, but it is html"),
        (eaf_text(version="4.0").encode(), "format must be 2.x or 3.x, but it is '4.0'"),
        (eaf_text(header="").encode(), "must have a HEADER"),
        (eaf_text(header='<HEADER TIME_UNITS="PAL-frames"/>').encode(), "TIME_UNITS must be milliseconds"),
        (eaf_text(slots="t1=1,5").encode(), "slot t1 must be whole milliseconds, but it is '1,5'"),
        (eaf_text(slots="t1=" + "9" * 5000).encode(), "slot t1 must be whole milliseconds"),
        (eaf_text(slots="t1=1 t1=2").encode(), "time slots must be unique, but t1"),
        (eaf_text("<TIER/>").encode(), "every TIER must have TIER_ID"),
        (eaf_text(tier_text("x") + tier_text("x")).encode(), "tier names must be unique, but 'x'"),
    ],
)
def test_read_eaf_names_file_and_place_when_file_is_broken(tmp_path, data, message):
    path = tmp_path / "x.eaf"
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=message):
        read_eaf(path)


@pytest.mark.parametrize("version", ["2.7", "2.8", "3.0"])
def test_read_eaf_reads_when_format_is_known_and_bom_leads(tmp_path, version):
    path = tmp_path / "x.eaf"
    path.write_bytes(b"\xef\xbb\xbf" + eaf_text(tier_text("\u65e5"), version=version).encode())
    assert list(read_eaf(path).tiers) == ["\u65e5"]
