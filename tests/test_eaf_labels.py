"""Labels from tiers or values of ELAN files, and which of both is proposed."""

import pytest

from featurecache.annotations import Interval, LabelRule, marks, propose_labels, read_eaf
from featurecache.errors import AnnotationError
from tests.eaf_samples import SECOND, SHARED, needs_shared, tier_text


def test_marks_takes_tier_names_when_labels_come_from_tiers(make_eaf):
    document = read_eaf(
        make_eaf(
            tier_text("vent", "a1 t1 t2 ") + tier_text("suck", "a2 t2 t3 mild") + tier_text("empty"),
            "t1=0 t2=1000 t3=2500",
        )
    )
    assert marks(document, LabelRule(), time_origin_ms=0).intervals == [
        Interval(0, SECOND, "vent"),
        Interval(SECOND, 2_500_000, "suck"),
    ]
    assert marks(document, LabelRule("tiers", ("empty",)), time_origin_ms=0).intervals == []


def test_marks_strips_values_and_drops_nothing_else_when_labels_come_from_values(make_eaf):
    document = read_eaf(
        make_eaf(tier_text("acts", "a1 t1 t2  vent ", "a2 t2 t3 ", "a3 t2 t2 blink"), "t1=0 t2=1000 t3=2500")
    )
    assert marks(document, LabelRule("values", ("acts",)), time_origin_ms=0).intervals == [Interval(0, SECOND, "vent")]


def test_marks_adds_origin_and_cuts_at_zero_when_media_began_elsewhere(make_eaf):
    document = read_eaf(make_eaf(tier_text("x", "a1 t1 t2 ", "a2 t2 t3 "), "t1=0 t2=1000 t3=2500"))
    assert marks(document, LabelRule(), time_origin_ms=500).intervals == [
        Interval(500_000, 1_500_000, "x"),
        Interval(1_500_000, 3 * SECOND, "x"),
    ]
    assert marks(document, LabelRule(), time_origin_ms=-1500).intervals == [Interval(0, SECOND, "x")]


def test_propose_labels_says_tiers_when_each_tier_is_one_activity(make_eaf):
    body = (
        tier_text("vent", "a1 t1 t2 ", "a2 t1 t2 ")
        + tier_text("suck", "a3 t1 t2 yes")
        + tier_text("note", "a4 t1 t2 baby cries")
    )
    proposal = propose_labels([read_eaf(make_eaf(body, "t1=0 t2=9"))])
    assert proposal.labels_from == "tiers"
    assert proposal.labels == ("vent", "suck", "note")
    assert "its name the label" in proposal.reason


def test_propose_labels_says_values_when_one_tier_repeats_a_few(make_eaf):
    codes = [f"a{i} t1 t2 {'vent' if i % 2 else 'suck'}" for i in range(8)]
    text = [f"b{i} t1 t2 remark number {i} about what happened" for i in range(8)]
    proposal = propose_labels([read_eaf(make_eaf(tier_text("acts", *codes) + tier_text("notes", *text), "t1=0 t2=9"))])
    assert (proposal.labels_from, proposal.tiers, proposal.labels) == ("values", ("acts",), ("suck", "vent"))
    assert "1 tier holds 2 short values" in proposal.reason


def test_propose_labels_says_values_when_several_people_share_a_vocabulary(make_eaf):
    tiers = "".join(
        tier_text(f"person{p}", *(f"{p}-{i} t1 t2 {'vent' if i % 2 else 'suck'}" for i in range(6))) for p in range(4)
    )
    proposal = propose_labels([read_eaf(make_eaf(tiers, "t1=0 t2=9"))])
    assert (proposal.labels_from, proposal.labels) == ("values", ("suck", "vent"))


def test_propose_labels_says_tiers_when_each_tier_has_its_own_vocabulary(make_eaf):
    tiers = "".join(tier_text(f"activity{p}", *(f"{p}-{i} t1 t2 way{p}{i % 2}" for i in range(6))) for p in range(4))
    assert propose_labels([read_eaf(make_eaf(tiers, "t1=0 t2=9"))]).labels_from == "tiers"


def test_propose_labels_looks_at_all_documents_when_one_alone_misleads(make_eaf):
    first = read_eaf(make_eaf(tier_text("acts", "a1 t1 t2 vent"), "t1=0 t2=9", name="1.eaf"))
    rest = [
        read_eaf(make_eaf(tier_text("acts", f"a1 t1 t2 {v}"), "t1=0 t2=9", name="2.eaf"))
        for v in ("suck", "vent", "suck")
    ]
    assert propose_labels([first]).labels_from == "tiers"
    assert propose_labels([first, *rest]).labels_from == "values"


@needs_shared
def test_propose_labels_prefers_controlled_vocabularies_when_real_transcripts_repeat_words():
    proposal = propose_labels([read_eaf(SHARED / "childproject_example.eaf")])
    assert proposal.labels_from == "values"
    assert proposal.tiers == ("lex@CHI", "xds@FA1", "xds@UC2", "xds@FA2", "xds@UC1", "mwu@CHI", "xds@UC3")
    assert proposal.labels == ("1", "A", "C", "M", "U", "W"), "0 says that there is no lexical item"


def test_propose_labels_refuses_when_nothing_is_annotated(make_eaf):
    with pytest.raises(AnnotationError, match="at least one annotation, but 1 file has none"):
        propose_labels([read_eaf(make_eaf(tier_text("x")))])
