import dataclasses
import os
import re
import stat
from collections import Counter
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

import pympi
import pytest
from defusedxml.ElementTree import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.annotations import (
    Interval,
    MediaMatch,
    add_tier,
    intervals,
    matching_recordings,
    propose_labels,
    read_csv,
    read_eaf,
    resolve_times,
    save_eaf,
    untimed,
    write_csv,
    write_eaf,
)
from featurecache.annotations.columns import recognise
from featurecache.annotations.table import header_of
from featurecache.errors import AnnotationError, OutputExistsError, UnsafeFileError
from featurecache.spelling import plain_name

SHARED = Path(__file__).parents[1].parent / "shared/data/eaf"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real files are not on this machine")
SHARED_FILES = ["childproject_example.eaf", "pympi_sample_2.8.eaf", "speach_blank.eaf", "speach_test.eaf"]
SECOND = 1_000_000

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


@pytest.fixture
def make(tmp_path):
    def write(body="", slots="", name="a.eaf", **kwargs):
        path = tmp_path / name
        path.write_text(eaf_text(body, slots, **kwargs), encoding="utf-8")
        return path

    return write


def spans_ms(path: Path) -> dict[str, tuple[float, float]]:
    return {a.annotation_id: (a.start_us / 1000, a.end_us / 1000) for a in resolve_times(read_eaf(path))}


def content(element: Element) -> tuple:
    """Everything an element says: tag, attributes, text, children, and the text behind it."""
    return (element.tag, dict(element.attrib), element.text, [content(child) for child in element], element.tail)


def same_content(one: Path, other: Path) -> bool:
    return content(parse(one).getroot()) == content(parse(other).getroot())


# --- real files -----------------------------------------------------------------------------------


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
    assert intervals(back, labels_from="values", tiers=["predicted"], time_origin_ms=0) == new
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


# --- reading: hostile and broken files ------------------------------------------------------------

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


def test_read_eaf_refuses_when_media_are_beyond_any_reason(make):
    path = make(header="<HEADER>" + '<MEDIA_DESCRIPTOR MEDIA_URL="a"/>' * 1001 + "</HEADER>")
    with pytest.raises(UnsafeFileError, match="more than 1000 media files, but it names 1001"):
        read_eaf(path)


def test_read_eaf_takes_linear_time_when_tiers_nest_without_end(make):
    tiers = "".join(tier_text(f"n{i}", kind="sub", parent=f"n{i + 1}") for i in range(20_000)) + tier_text("n20000")
    assert len(read_eaf(make(tiers, "s")).tiers) == 20_001


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


# --- times ----------------------------------------------------------------------------------------


def test_resolve_times_spreads_slots_evenly_when_subdivisions_nest(make):
    path = make(
        # children stand in front of their parents, on purpose
        tier_text("c", "a5 s2 s4 ", "a6 s4 s3 ", kind="sub", parent="b")
        + tier_text("b", "a2 t1 s2 ", "a3 s2 s3 ", "a4 s3 t2 ", kind="sub", parent="a")
        + tier_text("a", "a1 t1 t2 "),
        "t1=1000 s2 s3 s4 t2=4000",
    )
    assert spans_ms(path) == {
        "a1": (1000, 4000),
        "a2": (1000, 2000),
        "a3": (2000, 3000),
        "a4": (3000, 4000),
        "a5": (2000, 2500),
        "a6": (2500, 3000),
    }


def test_resolve_times_uses_tier_chain_when_other_slots_stand_between(make):
    # o1 and o2 belong to another tier and must not shift the chain's halves.
    path = make(
        tier_text("a", "a1 t1 t2 ")
        + tier_text("b", "a2 t1 s ", "a3 s t2 ", kind="sub", parent="a")
        + tier_text("o", "a4 o1 o2 "),
        "t1=0 o1=100 s o2=200 t2=1000",
    )
    assert spans_ms(path)["a2"] == (0, 500)


def test_resolve_times_uses_time_order_when_independent_tier_has_untimed_slots(make):
    path = make(tier_text("a", "a1 t1 s1 ", "a2 s2 t2 "), "t1=0 s1 s2 t2=900")
    assert spans_ms(path) == {"a1": (0, 300), "a2": (600, 900)}


def test_resolve_times_is_whole_microseconds_when_parts_do_not_divide(make):
    path = make(
        tier_text("a", "a1 t1 t2 ") + tier_text("b", "p ->a1 ", "q ->a1<-p ", "r ->a1<-q ", kind="parts"), "t1=0 t2=100"
    )
    by_id = {a.annotation_id: (a.start_us, a.end_us) for a in resolve_times(read_eaf(path))}
    assert by_id["p"] == (0, 33_333)
    assert by_id["q"] == (33_333, 66_666)
    assert by_id["r"] == (66_666, 100_000)


def test_resolve_times_takes_parents_time_when_references_are_deep(make):
    depth = 3000  # recursion would break
    refs = "".join(tier_text(f"n{i}", f"r{i} ->{'a1' if i == 0 else f'r{i - 1}'} x", kind="one") for i in range(depth))
    spans = spans_ms(make(refs + tier_text("a", "a1 t1 t2 "), "t1=5 t2=9"))
    assert set(spans.values()) == {(5, 9)}
    assert len(spans) == depth + 1


def test_resolve_times_divides_again_when_part_of_subdivision_is_parent(make):
    path = make(
        tier_text("m", "x ->q ", "y ->q<-x ", kind="parts", parent="w")
        + tier_text("w", "q ->a1<-p ", "p ->a1 ", kind="parts", parent="a")
        + tier_text("a", "a1 t1 t2 "),
        "t1=0 t2=800",
    )
    assert spans_ms(path) == {"a1": (0, 800), "p": (0, 400), "q": (400, 800), "x": (400, 600), "y": (600, 800)}


@pytest.mark.parametrize(
    ("body", "slots", "message"),
    [
        (tier_text("a", "a1 t1 t9 "), "t1=0", "slot t9 of annotation a1 on tier 'a' has none"),
        (tier_text("a", "a1 t1 t2 "), "t1=0 t2", "slot t2 of annotation a1 on tier 'a' has none"),
        (tier_text("a", "a1 t1 t2 "), "t1=9 t2=5", "annotation a1 on tier 'a' starts at 9 ms and ends at 5 ms"),
        (tier_text("b", "r ->gone ", kind="one"), "", "annotation r on tier 'b' refers to gone"),
        (tier_text("b", "r ->r ", kind="one"), "", "those of annotation r on tier 'b' form a circle"),
    ],
)
def test_one_annotation_without_a_time_is_left_out_and_the_others_stay(make, body, slots, message):
    document = read_eaf(make(body + tier_text("good", "g g1 g2 "), f"g1=0 g2=7 {slots}"))
    assert [annotation.annotation_id for annotation in resolve_times(document)] == ["g"]
    (reason,) = untimed(document)
    assert re.search(message, reason)


def test_what_depends_on_an_annotation_without_a_time_is_left_out_with_it(make):
    body = (
        tier_text("a", "a1 t1 t2 ", "a2 t1 t3 ")
        + tier_text("b", "p ->a1 ", "q ->a1<-p ", "ok ->a2 ", kind="parts", parent="a")
        + tier_text("c", "x ->p ", "y ->x ", "l ->m ", "m ->l ", kind="one")
    )
    document = read_eaf(make(body, "t1=9 t2=5 t3=20"))
    assert [annotation.annotation_id for annotation in resolve_times(document)] == ["a2", "ok"]
    assert len(untimed(document)) == 7


@pytest.mark.parametrize(
    ("body", "slots", "message"),
    [
        (tier_text("a", "a1 t1 t2 ", "a1 t1 t2 "), "t1=0 t2=5", "unique, but annotation a1 on tier 'a'"),
        (
            tier_text("a", "a1 t1 t2 ") + tier_text("b", "p ->a1<-q ", "q ->a1<-p ", kind="parts"),
            "t1=0 t2=5",
            "annotation p on tier 'b' is a circle",
        ),
        (
            tier_text("a", "a1 t1 t2 ") + tier_text("b", "p ->a1 ", "q ->a1<-p ", "r ->a1<-p ", kind="parts"),
            "t1=0 t2=5",
            "annotation r on tier 'b' and q both follow p",
        ),
        (
            tier_text("a", "a1 t1 t2 ") + tier_text("b", "q ->a1<-gone ", kind="parts"),
            "t1=0 t2=5",
            "annotation q on tier 'b' names gone",
        ),
        (tier_text("b", kind="sub", parent="gone"), "s", "tier 'b' names 'gone'"),
        (tier_text("b", kind="sub", parent="c") + tier_text("c", parent="b"), "s", "'b' is its own ancestor"),
        ('<TIER TIER_ID="a"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="x"/></ANNOTATION></TIER>', "", "ANNOTATION_REF"),
    ],
)
def test_read_eaf_names_tier_and_annotation_when_times_are_inconsistent(make, body, slots, message):
    with pytest.raises(AnnotationError, match=r"a\.eaf: .*" + message):
        read_eaf(make(body, slots))


# --- labels ---------------------------------------------------------------------------------------


def test_intervals_takes_tier_names_when_labels_come_from_tiers(make):
    document = read_eaf(
        make(
            tier_text("vent", "a1 t1 t2 ") + tier_text("suck", "a2 t2 t3 mild") + tier_text("empty"),
            "t1=0 t2=1000 t3=2500",
        )
    )
    assert intervals(document, labels_from="tiers", time_origin_ms=0) == [
        Interval(0, SECOND, "vent"),
        Interval(SECOND, 2_500_000, "suck"),
    ]
    assert intervals(document, labels_from="tiers", tiers=["empty"], time_origin_ms=0) == []


def test_intervals_strips_values_and_drops_nothing_else_when_labels_come_from_values(make):
    document = read_eaf(
        make(tier_text("acts", "a1 t1 t2  vent ", "a2 t2 t3 ", "a3 t2 t2 blink"), "t1=0 t2=1000 t3=2500")
    )
    assert intervals(document, labels_from="values", tiers=["acts"], time_origin_ms=0) == [Interval(0, SECOND, "vent")]


def test_intervals_adds_origin_and_cuts_at_zero_when_media_began_elsewhere(make):
    document = read_eaf(make(tier_text("x", "a1 t1 t2 ", "a2 t2 t3 "), "t1=0 t2=1000 t3=2500"))
    assert intervals(document, labels_from="tiers", time_origin_ms=500) == [
        Interval(500_000, 1_500_000, "x"),
        Interval(1_500_000, 3 * SECOND, "x"),
    ]
    assert intervals(document, labels_from="tiers", time_origin_ms=-1500) == [Interval(0, SECOND, "x")]


def test_intervals_suggests_nearest_name_when_tier_does_not_exist(make):
    document = read_eaf(make(tier_text("ventilation") + tier_text("suction")))
    with pytest.raises(AnnotationError, match=r"'suktion' does not\. Did you mean 'suction'"):
        intervals(document, labels_from="tiers", tiers=["suktion"], time_origin_ms=0)


def test_propose_labels_says_tiers_when_each_tier_is_one_activity(make):
    body = (
        tier_text("vent", "a1 t1 t2 ", "a2 t1 t2 ")
        + tier_text("suck", "a3 t1 t2 yes")
        + tier_text("note", "a4 t1 t2 baby cries")
    )
    proposal = propose_labels([read_eaf(make(body, "t1=0 t2=9"))])
    assert proposal.labels_from == "tiers"
    assert proposal.labels == ("vent", "suck", "note")
    assert "its name the label" in proposal.reason


def test_propose_labels_says_values_when_one_tier_repeats_a_few(make):
    codes = [f"a{i} t1 t2 {'vent' if i % 2 else 'suck'}" for i in range(8)]
    text = [f"b{i} t1 t2 remark number {i} about what happened" for i in range(8)]
    proposal = propose_labels([read_eaf(make(tier_text("acts", *codes) + tier_text("notes", *text), "t1=0 t2=9"))])
    assert (proposal.labels_from, proposal.tiers, proposal.labels) == ("values", ("acts",), ("suck", "vent"))
    assert "1 tier holds 2 short values" in proposal.reason


def test_propose_labels_says_values_when_several_people_share_a_vocabulary(make):
    tiers = "".join(
        tier_text(f"person{p}", *(f"{p}-{i} t1 t2 {'vent' if i % 2 else 'suck'}" for i in range(6))) for p in range(4)
    )
    proposal = propose_labels([read_eaf(make(tiers, "t1=0 t2=9"))])
    assert (proposal.labels_from, proposal.labels) == ("values", ("suck", "vent"))


def test_propose_labels_says_tiers_when_each_tier_has_its_own_vocabulary(make):
    tiers = "".join(tier_text(f"activity{p}", *(f"{p}-{i} t1 t2 way{p}{i % 2}" for i in range(6))) for p in range(4))
    assert propose_labels([read_eaf(make(tiers, "t1=0 t2=9"))]).labels_from == "tiers"


def test_propose_labels_looks_at_all_documents_when_one_alone_misleads(make):
    first = read_eaf(make(tier_text("acts", "a1 t1 t2 vent"), "t1=0 t2=9", name="1.eaf"))
    rest = [
        read_eaf(make(tier_text("acts", f"a1 t1 t2 {v}"), "t1=0 t2=9", name="2.eaf")) for v in ("suck", "vent", "suck")
    ]
    assert propose_labels([first]).labels_from == "tiers"
    assert propose_labels([first, *rest]).labels_from == "values"


@needs_shared
def test_propose_labels_prefers_controlled_vocabularies_when_real_transcripts_repeat_words():
    proposal = propose_labels([read_eaf(SHARED / "childproject_example.eaf")])
    assert proposal.labels_from == "values"
    assert proposal.tiers == ("lex@CHI", "xds@FA1", "xds@UC2", "xds@FA2", "xds@UC1", "mwu@CHI", "xds@UC3")
    assert proposal.labels == ("1", "A", "C", "M", "U", "W"), "0 says that there is no lexical item"


def test_propose_labels_refuses_when_nothing_is_annotated(make):
    with pytest.raises(AnnotationError, match="at least one annotation, but 1 files have none"):
        propose_labels([read_eaf(make(tier_text("x")))])


# --- media ----------------------------------------------------------------------------------------


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
def test_matching_recordings_compares_file_names_when_urls_come_from_elsewhere(make, url, relative):
    path = make(header=media_header((url, relative, 250)), name="notes.eaf")
    found = matching_recordings(read_eaf(path), path, ["my rec #1.mp4", "s1/other.mp4", "rec #1.mp4"])
    assert found == (MediaMatch("my rec #1.mp4", 250),)


def test_matching_recordings_finds_name_when_percent_sign_is_literal_or_accents_are_decomposed(make):
    path = make(header=media_header(("50%20off.mp4", None, 0), ("e\u0301.mp4", None, 7)))
    assert matching_recordings(read_eaf(path), path, ["50%20off.mp4", "\u00e9.mp4"]) == (
        MediaMatch("50%20off.mp4", 0),
        MediaMatch("\u00e9.mp4", 7),
    )


def test_matching_recordings_never_opens_paths_when_they_point_outside(make):
    path = make(header=media_header(("file:///etc/shadow", "../../../../etc/shadow", 0)), name="b.eaf")
    assert matching_recordings(read_eaf(path), path, ["a.mp4"]) == ()


def test_matching_recordings_gives_each_its_origin_when_cameras_differ(make):
    path = make(header=media_header(("left.mp4", None, 0), ("right.mp4", None, 1200), ("sound.wav", None, 3)))
    document = read_eaf(path)
    assert matching_recordings(document, path, ["right.mp4", "left.mp4"]) == (
        MediaMatch("left.mp4", 0),
        MediaMatch("right.mp4", 1200),
    )
    assert matching_recordings(document, path, ["right.mp4"]) == (MediaMatch("right.mp4", 1200),)


def test_matching_recordings_uses_own_stem_when_no_descriptor_matches(make):
    path = make(header=media_header(("old name.mpg", None, 40)), name="baby.07.eaf")
    document = read_eaf(path)
    assert matching_recordings(document, path, ["s/baby.07.mp4", "baby.mp4"]) == (MediaMatch("s/baby.07.mp4", 40),)
    bare = make(header="<HEADER/>", name="baby.08.eaf")
    assert matching_recordings(read_eaf(bare), bare, ["baby.08.mp4"]) == (MediaMatch("baby.08.mp4", 0),)
    assert matching_recordings(document, path, []) == ()


def test_matching_recordings_uses_folders_when_file_names_repeat(make, tmp_path):
    recordings = ["s1/cam.mp4", "s2/cam.mp4"]
    path = make(header=media_header(("file:///D:/study/s2/cam.mp4", "./cam.mp4", 0)))
    assert matching_recordings(read_eaf(path), path, recordings) == (MediaMatch("s2/cam.mp4", 0),)
    (tmp_path / "s1").mkdir()
    inside = make(header=media_header(("cam.mp4", "./cam.mp4", 0)), name="s1/cam.eaf")
    assert matching_recordings(read_eaf(inside), inside, recordings) == (MediaMatch("s1/cam.mp4", 0),)
    unclear = make(header=media_header(("cam.mp4", None, 0)))
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
    ],
)
def test_annotations_of_another_session_are_not_applied_to_a_recording_of_the_same_name(
    make, tmp_path, url, own, recording
):
    (tmp_path / "s4").mkdir()
    for relative in (None, "./CAM9.MP4"):
        path = make(header=media_header((url, relative, 0)), name=own)
        with pytest.raises(AnnotationError, match=r"is not .*CAM9\.MP4"):
            matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"])
    with pytest.raises(AnnotationError, match=r'is not .*CAM9\.MP4\. If it is.* media_folders = "ignored"'):
        matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"])
    (match,) = matching_recordings(read_eaf(path), path, [recording, "s1/CAM1.MP4"], ignore_folders=True)
    assert (match.recording, match.by) in ((recording, "name"), (recording, "stem"))


@pytest.mark.parametrize("own", ["s5/x.eaf", "s5.eaf"])
def test_an_eaf_filed_under_the_session_annotates_its_recording_wherever_it_was_played_from(make, tmp_path, own):
    (tmp_path / "s5").mkdir()
    path = make(header=media_header(("file:///C:/Users/me/Desktop/CAM9.MP4", "./CAM9.MP4", 0)), name=own)
    assert [match.by for match in matching_recordings(read_eaf(path), path, ["s5/CAM9.MP4"])] == ["path"]


def test_a_converted_recording_is_matched_by_its_stem_and_the_picture_gives_the_origin(make):
    path = make(
        header=media_header(("file:///D:/data/S1.wav", None, 70), ("file:///D:/data/S1.mpg", None, 40)).replace(
            'video/mp4" TIME_ORIGIN="70', 'audio/x-wav" TIME_ORIGIN="70'
        ),
        name="S1_coderA.eaf",
    )
    assert matching_recordings(read_eaf(path), path, ["S1.mp4", "S10.mp4"]) == (MediaMatch("S1.mp4", 40),)
    with pytest.raises(AnnotationError, match=r"'S1' fits S1\.mov, S1\.mp4"):
        matching_recordings(read_eaf(path), path, ["S1.mp4", "S1.mov"])


def test_an_old_eaf_names_its_media_in_the_header_and_one_without_media_may_bear_a_coders_name(make):
    old = make(header='<HEADER MEDIA_FILE="C:\\data\\S2.mpg" TIME_UNITS="milliseconds"/>', name="x.eaf")
    assert matching_recordings(read_eaf(old), old, ["S1.mp4", "S2.mp4"]) == (MediaMatch("S2.mp4", 0),)
    bare = make(header="<HEADER/>", name="S1_coderA.eaf")
    assert matching_recordings(read_eaf(bare), bare, ["S1.mp4", "S1_coder.mp4"]) == (MediaMatch("S1.mp4", 0),)
    other = make(header=media_header(("S1_b.mp4", None, 0)), name="S1_b.eaf")
    assert matching_recordings(read_eaf(other), other, ["S1.mp4"]) == ()


def test_matching_recordings_refuses_when_origins_of_one_recording_differ(make):
    path = make(header=media_header(("a.mp4", None, 0), ("x/a.mp4", None, 9)))
    with pytest.raises(AnnotationError, match=r"one time origin, but 'a\.mp4' gets \[0, 9\] ms"):
        matching_recordings(read_eaf(path), path, ["a.mp4"])
    renamed = make(header=media_header(("x.mp4", None, 0), ("y.mp4", None, 9)))
    with pytest.raises(AnnotationError, match=r"one time origin, but 'a\.mp4' gets \[0, 9\] ms"):
        matching_recordings(read_eaf(renamed), renamed, ["a.mp4"])


# --- writing ELAN ---------------------------------------------------------------------------------

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


def test_write_eaf_subtracts_origin_when_media_began_earlier(tmp_path):
    path = tmp_path / "v.eaf"
    wanted = [Interval(2 * SECOND, 3 * SECOND, "vent"), Interval(2_500_000, 4 * SECOND, "suck")]
    write_eaf(path, wanted, media_name="s1/v 1.mp4", time_origin_ms=1500, tiers=["vent", "none", "suck"])

    document = read_eaf(path)
    assert list(document.tiers) == ["vent", "none", "suck"]
    assert document.slots_ms == {"ts1": 500, "ts3": 1000, "ts2": 1500, "ts4": 2500}
    assert_schema_order(document.root)
    (match,) = matching_recordings(document, path, ["s1/v 1.mp4", "s2/v 1.mp4"])
    assert match == MediaMatch("s1/v 1.mp4", 1500)
    assert intervals(document, labels_from="tiers", time_origin_ms=match.time_origin_ms) == wanted
    theirs = pympi.Eaf(str(path))
    assert theirs.get_annotation_data_for_tier("vent") == [(500, 1500, "vent")]
    assert theirs.get_annotation_data_for_tier("none") == []
    assert theirs.get_linked_files()[0]["TIME_ORIGIN"] == "1500"


def test_write_eaf_is_private_and_replaces_only_when_told(tmp_path):
    path = tmp_path / "v.eaf"
    old = os.umask(0)
    try:
        write_eaf(path, [], media_name="v.mp4")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"v\.eaf exists"):
        write_eaf(path, [Interval(0, SECOND, "x")], media_name="v.mp4")
    assert path.read_bytes() == before
    write_eaf(path, [Interval(0, SECOND, "x")], media_name="v.mp4", replace=True)
    assert list(read_eaf(path).tiers) == ["x"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([Interval(0, SECOND, "x")], "'x' at 0.000 s on tier 'x' lies before the time origin .500 ms"),
        ([Interval(SECOND, SECOND + 400, "x")], "must last a millisecond, but interval 'x' at 1.000 s"),
        ([Interval(SECOND, 3 * SECOND, "x"), Interval(2 * SECOND, 4 * SECOND, "x")], "tier 'x' must not overlap"),
        ([Interval(SECOND, 2 * SECOND, "y")], "'y' is not in tiers"),
    ],
)
def test_write_eaf_names_interval_when_it_cannot_be_written(tmp_path, bad, message):
    with pytest.raises(AnnotationError, match=message):
        write_eaf(tmp_path / "v.eaf", bad, media_name="v.mp4", time_origin_ms=500, tiers=["x"])
    assert list(tmp_path.iterdir()) == []


def test_save_eaf_refuses_when_text_cannot_stand_in_xml(tmp_path):
    with pytest.raises(AnnotationError, match=r"characters that XML allows, but '\\x00'"):
        write_eaf(tmp_path / "v.eaf", [Interval(0, SECOND, "a\0b")], media_name="v.mp4")


def test_add_tier_refuses_when_tier_is_the_annotators(make):
    document = read_eaf(make(tier_text("vent")))
    with pytest.raises(AnnotationError, match="a new tier must have a new name, but 'vent' exists"):
        add_tier(document, "vent", [], time_origin_ms=0)


def test_add_tier_keeps_times_of_untimed_slots_when_new_slots_fall_between(make, tmp_path):
    path = make(
        tier_text("a", "a1 t1 t2 ") + tier_text("b", "a2 t1 s ", "a3 s t2 ", kind="sub", parent="a"), "t1=0 s t2=1000"
    )
    document = read_eaf(path)
    before = resolve_times(document)
    add_tier(document, "new", [Interval(400_000, 500_000, "x")], time_origin_ms=0)
    assert resolve_times(document)[: len(before)] == before
    assert list(document.slots_ms) == ["t1", "s", "ts1", "ts2", "t2"]


ODD = """<?xml version="1.0" encoding="UTF-8"?>
<?xml-stylesheet href="x.xsl"?>
<!-- in front of the root -->
<ANNOTATION_DOCUMENT AUTHOR="A &amp; B" DATE="2012-01-01T00:00:00Z" FORMAT="2.7" VERSION="2.7"
  UNKNOWN="a&#10;b&#9;&quot;">
  <LICENSE LICENSE_URL="u">free &lt;text&gt;</LICENSE>
  <HEADER MEDIA_FILE="m" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="v.mp4" MIME_TYPE="video/mp4" TIME_ORIGIN="-40" EXTRACTED_FROM="w.mp4"/>
    <LINKED_FILE_DESCRIPTOR LINK_URL="l" MIME_TYPE="t" TIME_ORIGIN="7" ASSOCIATED_WITH="v.mp4"/>
    <PROPERTY NAME="p"> kept </PROPERTY><PROPERTY/>
  </HEADER>
  <TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="9"/><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="007"/></TIME_ORDER>
  <TIER TIER_ID=" spaced " LINGUISTIC_TYPE_REF="l" PARTICIPANT="P" ANNOTATOR="X" DEFAULT_LOCALE="en" LANG_REF="eng">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2"
      CVE_REF="c" EXT_REF="e">
      <ANNOTATION_VALUE><![CDATA[<b>]]> line&#13;
two \U0001f476 <!-- inside -->three</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <?odd instruction?>
  </TIER>
  <LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="l" TIME_ALIGNABLE="true" LEXICON_REF="x"/>
  <LOCALE LANGUAGE_CODE="en" COUNTRY_CODE="US" VARIANT=""/>
  <CONTROLLED_VOCABULARY CV_ID="old" DESCRIPTION="d"><CV_ENTRY DESCRIPTION="e">v</CV_ENTRY></CONTROLLED_VOCABULARY>
  <LEXICON_REF LEX_REF_ID="x" NAME="n" TYPE="t" URL="u" LEXICON_ID="i" LEXICON_NAME="n" DATCAT_ID="d" DATCAT_NAME="n"/>
  <REF_LINK_SET LINK_SET_ID="s"><CROSS_REF_LINK REF_LINK_ID="r" REF1="a1" REF2="a1"/></REF_LINK_SET>
  <EXTERNAL_REF EXT_REF_ID="e" TYPE="ecv" VALUE="file:///etc/passwd"/>
  <FROM_THE_FUTURE x:y="1" xmlns:x="urn:x"><x:z/></FROM_THE_FUTURE>
</ANNOTATION_DOCUMENT>
<!-- behind -->
"""


def test_save_eaf_loses_nothing_when_file_is_odd(tmp_path):
    path, back = tmp_path / "odd.eaf", tmp_path / "back.eaf"
    path.write_text(ODD, encoding="utf-8")
    document = read_eaf(path)
    save_eaf(document, back)
    assert same_content(path, back)
    again = read_eaf(back)
    assert content(document.root) == content(again.root)  # with comments and instructions
    for side in ("before", "after"):
        assert [content(e) for e in getattr(again, side)] == [content(e) for e in getattr(document, side)]
    assert [len(document.before), len(document.after)] == [2, 1]
    assert [a.value for a in resolve_times(again)] == ["<b> line\r\ntwo \U0001f476 three"]
    for kept in ("<!-- inside -->", "<?odd instruction?>", "<!-- behind -->", "<?xml-stylesheet "):
        assert kept in back.read_text(encoding="utf-8")
    save_eaf(again, tmp_path / "third.eaf")
    assert (tmp_path / "third.eaf").read_bytes() == back.read_bytes()


XML_TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="".join(map(chr, range(32))) + "\ufffe\uffff"),
    min_size=1,
    max_size=12,
)


def disjoint(labels):
    """Lists of intervals, on whole milliseconds, of which no two of one label overlap."""

    def build(parts):
        out, clock = [], 0
        for gap_ms, length_ms, label in parts:
            out.append(Interval(1000 * (clock + gap_ms), 1000 * (clock + gap_ms + length_ms), label))
            clock += gap_ms + length_ms
        return sorted(out)

    return st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 90_000), labels), max_size=8).map(build)


@settings(max_examples=60, deadline=None)
@given(wanted=disjoint(XML_TEXT), origin_ms=st.integers(-(10**7), 10**7))
def test_write_eaf_round_trips_when_origin_is_any(tmp_path_factory, wanted, origin_ms):
    path = tmp_path_factory.mktemp("eaf") / "v.eaf"
    shift_us = max(0, 1000 * origin_ms)
    wanted = [Interval(i.start_us + shift_us, i.end_us + shift_us, i.label) for i in wanted]
    write_eaf(path, wanted, media_name="v.mp4", time_origin_ms=origin_ms)
    document = read_eaf(path)
    assert [media.time_origin_ms for media in document.media] == [origin_ms]
    read = sorted({Interval(i.start_us, i.end_us, plain_name(i.label)) for i in wanted})
    assert intervals(document, labels_from="tiers", time_origin_ms=origin_ms) == read


# --- CSV ------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


HEAD = "recording,start_s,end_s,label\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "a b.mp4,1.5,2.25,vent\n",
        "\ufeff" + HEAD.replace("\n", "\r\n") + "\r\n , , ,\r\na b.mp4, 1.5 ,2.250000, vent\r\n\r\n",
        "recording;start_s;end_s;label\na b.mp4;1,5;2,25;vent",
        "recording\tstart_s\tend_s\tlabel\na b.mp4\t1,50\t2,25\tvent\n",
        "recording;start_s;end_s;label;;\na b.mp4;1.5;2.25;vent;;\n",
        'Label,"end_s",START_S,recording,note\nvent,"2.25",1.5,"a b.mp4","x, y"\n',
    ],
)
def test_read_csv_reads_when_spreadsheets_write_it_their_way(table, text):
    assert read_csv(table(text)).intervals == {"a b.mp4": (Interval(1_500_000, 2_250_000, "vent"),)}


def test_read_csv_reads_sessions_and_recordings_where_nothing_happens(table):
    found = read_csv(
        table(
            "recording,start_s,end_s,label,session\n"
            's\\a.mp4,0,1,"vent, hard",one\ns/a.mp4,0,1,vent,\nb.mp4,,,,two\n-c.mp4,0,.1,\'=x,\n'
        )
    )
    assert found.intervals == {
        "s/a.mp4": (Interval(0, SECOND, "vent"), Interval(0, SECOND, "vent, hard")),
        "b.mp4": (),
        "-c.mp4": (Interval(0, 100_000, "=x"),),
    }
    assert found.sessions == {"s/a.mp4": "one", "b.mp4": "two"}


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [
        ("0.1", 100_000),
        ("0.30000000000000004", 300_000),
        ("12.", 12 * SECOND),
        ("999999999999.999999", 999999999999999999),
    ],
)
def test_read_csv_is_exact_when_floats_would_round(table, seconds, microseconds):
    (interval,) = read_csv(table(f"{HEAD}a.mp4,0,{seconds},x\n")).intervals["a.mp4"]
    assert interval.end_us == microseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a header, but it is empty"),
        ("recording,start,end,label\n", r'line 1: the header must name .* start_s is missing .*start = "start"'),
        ("a.mp4,0,1,vent\n", "line 1: the first line must name the columns, .*e.g. 'recording,start_s,end_s,label'"),
        ("a.mp4,x,y,vent\n", "line 1: the header must name .*Begin the file with recording,start_s,end_s,label"),
        ("recording,start_s,end_s,label,label\n", "line 1: .*label occurs 2 times"),
        (HEAD + 'a.mp4,0,1,"vent\n', "line 2: a table must be well-formed CSV"),
        (HEAD + 'a.mp4,0,1,"v"ent\n', "line 2: a table must be well-formed CSV"),
        ((HEAD + "a.mp4,0,1,\u00e9\n").encode("latin-1"), "line 2: a table must be UTF-8 or UTF-16, but byte 0xe9"),
        (HEAD + "a.mp4,0,1,x" + 300 * " " + "\0\n", "line 2: a table must be text, but it holds a zero byte"),
        (
            HEAD.replace("\n", ",session\n") + "a.mp4,0,1,x,one\na.mp4,2,3,x,two\n",
            "line 3: a recording must belong to one session, but 'a.mp4' is in 'one' and 'two'",
        ),
    ],
)
def test_read_csv_names_line_and_value_when_table_is_wrong(table, text, message):
    with pytest.raises(AnnotationError, match=r"labels\.csv.*" + message):
        read_csv(table(text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,0,1", r"a row must have as many fields as the header \(4\), but this one has 3"),
        ("a.mp4,0,1,vent,hard", "a row must have as many fields"),
        ("a.mp4,2,1,vent", "end_s must not lie before start_s, but 1 lies before 2"),
        ("a.mp4,-1,1,vent", "start_s must be seconds .* it is '-1'"),
        ("a.mp4,0,nan,vent", "end_s must be seconds .* it is 'nan'"),
        ("a.mp4,0,1e3,vent", ".*it is '1e3'"),
        ("a.mp4,0,00:61:02,vent", ".*it is '00:61:02'"),
        ("a.mp4,,1,vent", "start_s must be seconds .* it is ''"),
        ("a.mp4,0,1,", "every interval must have a label"),
        (",0,1,vent", "every row must name its recording"),
        ('a.mp4,0,"1,5",vent', "end_s must have a decimal point where commas separate"),
    ],
)
def test_one_bad_row_leaves_out_one_row_and_no_other(table, row, message):
    found = read_csv(table(f"{HEAD}b.mp4,0,1,vent\n{row}\nc.mp4,0,1,vent\n"))
    assert list(found.intervals) == ["b.mp4", "c.mp4"], "a recording whose rows are all bad is not annotated"
    (reason,) = found.left_out
    assert re.match(f"line 3: {message}", reason)


def test_a_table_with_two_decimal_marks_is_not_guessed_at(table):
    found = read_csv(table("recording;start_s;end_s;label\na;0,5;1;x\na;0;1.500;x\na;1.234,5;9;x\n"))
    assert len(found.rows) == 1
    assert "one decimal mark, but end_s is '1.500'" in found.left_out[0]
    assert "it is '1.234,5'" in found.left_out[1]


def test_a_row_that_ends_where_it_begins_is_a_point(table):
    found = read_csv(table(HEAD + "a.mp4,1,1,kick\n"))
    assert [(row.start_us, row.end_us) for row in found.rows] == [(SECOND, SECOND)]
    assert found.intervals == {"a.mp4": ()}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_read_csv_reads_what_excel_saves(table, encoding, line_end):
    text = line_end.join(["sep=;", "recording;start_s;end_s;label", "a.mp4;1,5;0:00:02,25;v\u00e9nt", ""])
    assert read_csv(table(text, encoding)).intervals == {"a.mp4": (Interval(1_500_000, 2_250_000, "v\u00e9nt"),)}


def test_read_csv_separates_by_what_excels_first_line_names(table):
    text = "sep=|\nrecording|start_s|end_s|label\na.mp4|1,5|2|x, y; z\n"
    assert read_csv(table(text)).intervals == {"a.mp4": (Interval(1_500_000, 2 * SECOND, "x, y; z"),)}


EXPORTS = {
    "elan": "Tier\tParticipant\tBegin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tBegin Time - msec\t"
    "End Time - hh:mm:ss.ms\tEnd Time - ss.msec\tEnd Time - msec\tAnnotation\tFile\n"
    "vent\tP\t00:00:01.500\t1.5\t1500\t00:00:02.250\t2.25\t2250\thard\tS1.eaf\n",
    "elan milliseconds": "Tier\tBegin Time - msec\tEnd Time - msec\tAnnotation\tFile\nvent\t1500\t2250\t\tS1.eaf\n",
    "elan in french": "Tier\tTemps de départ - ss.msec\tTemps de fin - ss.msec\tAnnotation\tFile\n"
    "vent\t1.5\t2.25\t\tS1.eaf\n",
    "spreadsheet in german": "Video;Beginn;Ende;Aktivität\nS1;00:00:01,5;00:00:02,25;vent\n",
    "boris aggregated": "Observation id\tObservation date\tSubject\tBehavior\tBehavior type\tStart (s)\tStop (s)\t"
    "Duration (s)\tMedia file name\nobs1\t2020\tbaby\tvent\tSTATE\t1.5\t2.25\t0.75\tS1.mp4\n",
    "boris tabular": "Observation id,Source,Subject,Behavior,Behavior type,Time,Comment\n"
    "obs1,player #1:videos/S1.mp4,baby,vent,START,1.500,\nobs1,player #1:videos/S1.mp4,nurse,vent,START,3,\n"
    "obs1,player #1:videos/S1.mp4,baby,vent,STOP,2.250,\nobs1,player #1:videos/S1.mp4,nurse,vent,STOP,4,\n",
    "older boris": "Observation id\tobs1\n\nMedia file(s)\n\nPlayer #1\tvideos/S1.mp4\n\n"
    "Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus\n"
    "1.5\tvideos/S1.mp4\t10\t25\tbaby\tvent\t\t\tSTART\n2.25\tvideos/S1.mp4\t10\t25\tbaby\tvent\t\t\tSTOP\n",
    "milliseconds": "video,start_ms,end_ms,activity\nS1,1500,2250,vent\n",
    "microseconds": "video,start_us,end_us,activity\nS1,1500000,2250000,vent\n",
    "minutes": "Video,Start (min),End (min),Label\nS1,0.025,0.0375,vent\n",
    "no-break spaces": "video,start (s),end (s),label\nS1,\u00a01.5,2.25\u00a0,vent\n",
    "duration": "file;Onset;Duration;Code\nS1;1,5;0,75;vent\n",
}


@pytest.mark.parametrize("text", EXPORTS.values(), ids=EXPORTS)
def test_exports_of_other_programs_are_read_by_the_columns_that_their_header_proposes(table, text):
    path = table(text)
    columns = recognise(header_of(path))
    assert columns is not None
    found = read_csv(path, columns)
    assert found.left_out == ()
    first = found.rows[0]
    assert (first.start_us, first.end_us, first.label) == (1_500_000, 2_250_000, "vent")
    assert "S1" in first.recording
    with pytest.raises(AnnotationError, match=r"Add under \[data\]: columns = \{"):
        read_csv(path)


@pytest.mark.parametrize(
    ("rate", "cell", "time_us"),
    [
        (25, "0:00:01:12", 1_480_000),
        (50, "01:00:00:49", 3_600_980_000),
        (29.97, "00:00:01:00", 1_001_000),
        (29.97, "00:01:00;02", 60_060_000),
        (29.97, "01:00:00;00", 3_599_996_400),
        (23.976, "00:00:01:12", 1_501_500),
        (12.5, "00:00:00:05", 400_000),
        (5, "00:00:01:02", 1_400_000),
    ],
)
def test_timecodes_of_frames_are_read_by_the_rate_that_the_settings_name(table, rate, cell, time_us):
    path = table(f"Tier\tBegin Time - hh:mm:ss:ff\tEnd Time - hh:mm:ss:ff\tFile\nvent\t{cell}\t{cell}\tS1.eaf\n")
    columns = recognise(header_of(path))
    assert columns is not None
    (reason,) = read_csv(path, columns).left_out
    assert "Set columns.frame_rate under [data]" in reason
    assert read_csv(path, dataclasses.replace(columns, frame_rate=rate)).rows[0].start_us == time_us
    few = read_csv(path, dataclasses.replace(columns, frame_rate=2)).left_out
    assert bool(few) == (int(cell[-2:]) > 1)
    assert all("count frames from 0 to 1 at columns.frame_rate = 2" in reason for reason in few)


def test_numbers_of_frames_are_no_seconds(table):
    path = table("recording,start_frame,end_frame,label\nS1,30,45,vent\n")
    columns = recognise(header_of(path))
    assert columns is not None
    assert "Set columns.frame_rate under [data]" in read_csv(path, columns).left_out[0]
    row = read_csv(path, dataclasses.replace(columns, frame_rate=29.97)).rows[0]
    assert (row.start_us, row.end_us) == (1_001_000, 1_501_500)


def test_no_advice_renames_a_time_of_another_unit_to_seconds(table):
    with pytest.raises(AnnotationError, match="bring 'start_ms' to seconds and call it start_s"):
        read_csv(table("recording,start_ms,end_s,label\nS1,1000,2,vent\n"))


def test_a_table_with_a_column_for_each_tier_says_how_to_export_it_again(table):
    text = "Begin Time - ss.msec\tEnd Time - ss.msec\tvent\tsuction\tFile\n1.0\t4.0\tx\t\tS1.eaf\n"
    with pytest.raises(AnnotationError, match="If 'vent, suction' are tiers, export again without a column for each"):
        read_csv(table(text))


def test_a_table_without_names_of_columns_says_that_they_are_missing(table):
    found = r"line 1: the first line must name the columns, .* for each of its 4 columns"
    with pytest.raises(AnnotationError, match=found):
        read_csv(table("vent\t00:00:01.500\t00:00:02.250\thard\nvent\t00:00:03.000\t00:00:04.000\t\n"))


def test_events_that_begin_and_never_end_are_left_out_and_told(table):
    text = "Media file name,Behavior,Behavior type,Time\n" + "".join(
        f"S1.mp4,{row}\n"
        for row in ("a,STOP,1", "a,START,2", "a,START,3", "a,STOP,4", "b,START,5", "k,POINT,6", "k,X,7")
    )
    path = table(text)
    found = read_csv(path, recognise(header_of(path)))
    assert [(row.label, row.start_us // SECOND, row.end_us // SECOND) for row in found.rows] == [
        ("a", 3, 4),
        ("k", 6, 6),
    ]
    assert [reason.split(":")[0] for reason in found.left_out] == ["line 2", "line 4", "line 8", "line 6"]


def test_write_csv_guards_cells_when_spreadsheet_would_run_them(tmp_path):
    path = tmp_path / "out.csv"
    labels = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "'=a", "''=a", "'a", "a=b"]
    wanted = {"-v.mp4": [Interval(i, i + 1, label) for i, label in enumerate(labels)]}
    write_csv(path, wanted)
    text = path.read_bytes().decode()
    assert not re.search(r'(^|,|\n)"?[=+\-@\t\r]', text)
    assert read_csv(path).intervals == {"-v.mp4": tuple(wanted["-v.mp4"])}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutputExistsError):
        write_csv(path, wanted)
    write_csv(path, {}, replace=True)
    assert read_csv(path).intervals == {}


def test_write_csv_refuses_when_reading_back_would_fail(tmp_path):
    for bad in (Interval(-1, 1, "x"), Interval(1, 1, "x"), Interval(0, 1, "")):
        with pytest.raises(AnnotationError, match=r"'a\.mp4' has Interval"):
            write_csv(tmp_path / "out.csv", {"a.mp4": [bad]})


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\\"), min_size=1, max_size=12).filter(
    lambda cell: cell == cell.strip(" ") and cell.strip()
)
SPANS = st.tuples(st.integers(0, 10**12), st.integers(1, 10**10)).map(lambda t: (t[0], t[0] + t[1]))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.dictionaries(CELL, st.sets(st.builds(lambda s, x: Interval(*s, x), SPANS, CELL), max_size=4), max_size=4),
    session=st.none() | CELL,
)
def test_write_csv_round_trips_when_cells_are_any_text(tmp_path_factory, rows, session):
    path = tmp_path_factory.mktemp("csv") / "out.csv"
    wanted = {recording: tuple(sorted(own)) for recording, own in rows.items()}
    sessions = None if session is None else dict.fromkeys(wanted, session)
    write_csv(path, wanted, sessions=sessions)
    back = read_csv(path)
    assert back.intervals == wanted
    assert back.sessions == (sessions or {})
