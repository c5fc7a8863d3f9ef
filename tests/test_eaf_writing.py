"""ELAN files that are written: nothing of the annotators' is lost, and ELAN's schema is kept."""

import os
import stat

import pympi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.annotations import (
    Interval,
    LabelRule,
    MediaMatch,
    add_tier,
    marks,
    matching_recordings,
    read_eaf,
    resolve_times,
    save_eaf,
    write_eaf,
)
from featurecache.errors import AnnotationError, OutputExistsError
from featurecache.spelling import plain_name
from tests.eaf_samples import SECOND, assert_schema_order, content, same_content, tier_text


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
    assert marks(document, LabelRule(), time_origin_ms=match.time_origin_ms).intervals == wanted
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


def test_add_tier_refuses_when_tier_is_the_annotators(make_eaf):
    document = read_eaf(make_eaf(tier_text("vent")))
    with pytest.raises(AnnotationError, match="a new tier must have a new name, but 'vent' exists"):
        add_tier(document, "vent", [], time_origin_ms=0)


def test_add_tier_keeps_times_of_untimed_slots_when_new_slots_fall_between(make_eaf, tmp_path):
    path = make_eaf(
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


@settings(max_examples=25, deadline=None)
@given(wanted=disjoint(XML_TEXT), origin_ms=st.integers(-(10**7), 10**7))
def test_write_eaf_round_trips_when_origin_is_any(tmp_path_factory, wanted, origin_ms):
    path = tmp_path_factory.mktemp("eaf") / "v.eaf"
    shift_us = max(0, 1000 * origin_ms)
    wanted = [Interval(i.start_us + shift_us, i.end_us + shift_us, i.label) for i in wanted]
    write_eaf(path, wanted, media_name="v.mp4", time_origin_ms=origin_ms)
    document = read_eaf(path)
    assert [media.time_origin_ms for media in document.media] == [origin_ms]
    read = sorted({Interval(i.start_us, i.end_us, name) for i in wanted if (name := plain_name(i.label))})
    assert marks(document, LabelRule(), time_origin_ms=origin_ms).intervals == read
