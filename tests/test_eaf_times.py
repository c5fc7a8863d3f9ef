"""Times of ELAN's annotations: slots without a time, subdivisions, and what is inconsistent."""

import re

import pytest

from featurecache.annotations import (
    read_eaf,
    resolve_times,
    untimed,
)
from featurecache.errors import AnnotationError
from tests.eaf_samples import spans_ms, tier_text


def test_resolve_times_spreads_slots_evenly_when_subdivisions_nest(make_eaf):
    path = make_eaf(
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


def test_resolve_times_uses_tier_chain_when_other_slots_stand_between(make_eaf):
    # o1 and o2 belong to another tier and must not shift the chain's halves.
    path = make_eaf(
        tier_text("a", "a1 t1 t2 ")
        + tier_text("b", "a2 t1 s ", "a3 s t2 ", kind="sub", parent="a")
        + tier_text("o", "a4 o1 o2 "),
        "t1=0 o1=100 s o2=200 t2=1000",
    )
    assert spans_ms(path)["a2"] == (0, 500)


def test_resolve_times_uses_time_order_when_independent_tier_has_untimed_slots(make_eaf):
    path = make_eaf(tier_text("a", "a1 t1 s1 ", "a2 s2 t2 "), "t1=0 s1 s2 t2=900")
    assert spans_ms(path) == {"a1": (0, 300), "a2": (600, 900)}


def test_resolve_times_is_whole_microseconds_when_parts_do_not_divide(make_eaf):
    path = make_eaf(
        tier_text("a", "a1 t1 t2 ") + tier_text("b", "p ->a1 ", "q ->a1<-p ", "r ->a1<-q ", kind="parts"), "t1=0 t2=100"
    )
    by_id = {a.annotation_id: (a.start_us, a.end_us) for a in resolve_times(read_eaf(path))}
    assert by_id["p"] == (0, 33_333)
    assert by_id["q"] == (33_333, 66_666)
    assert by_id["r"] == (66_666, 100_000)


def test_resolve_times_takes_parents_time_when_references_are_deep(make_eaf):
    depth = 3000  # recursion would break
    refs = "".join(tier_text(f"n{i}", f"r{i} ->{'a1' if i == 0 else f'r{i - 1}'} x", kind="one") for i in range(depth))
    spans = spans_ms(make_eaf(refs + tier_text("a", "a1 t1 t2 "), "t1=5 t2=9"))
    assert set(spans.values()) == {(5, 9)}
    assert len(spans) == depth + 1


def test_resolve_times_divides_again_when_part_of_subdivision_is_parent(make_eaf):
    path = make_eaf(
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
def test_one_annotation_without_a_time_is_left_out_and_the_others_stay(make_eaf, body, slots, message):
    document = read_eaf(make_eaf(body + tier_text("good", "g g1 g2 "), f"g1=0 g2=7 {slots}"))
    assert [annotation.annotation_id for annotation in resolve_times(document)] == ["g"]
    (reason,) = untimed(document)
    assert re.search(message, reason)


def test_what_depends_on_an_annotation_without_a_time_is_left_out_with_it(make_eaf):
    body = (
        tier_text("a", "a1 t1 t2 ", "a2 t1 t3 ")
        + tier_text("b", "p ->a1 ", "q ->a1<-p ", "ok ->a2 ", kind="parts", parent="a")
        + tier_text("c", "x ->p ", "y ->x ", "l ->m ", "m ->l ", kind="one")
    )
    document = read_eaf(make_eaf(body, "t1=9 t2=5 t3=20"))
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
def test_read_eaf_names_tier_and_annotation_when_times_are_inconsistent(make_eaf, body, slots, message):
    with pytest.raises(AnnotationError, match=r"a\.eaf: .*" + message):
        read_eaf(make_eaf(body, slots))
