"""Cells: seconds and text come back exactly."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.csv_fields import format_seconds, guard_cell, parse_seconds, unguard_cell


@given(st.integers(-(10**17), 10**17))
def test_seconds_come_back_exactly(time_us: int) -> None:
    text = format_seconds(time_us)
    assert parse_seconds(text) == time_us
    assert Decimal(text) * 1_000_000 == time_us
    assert not text.endswith(".")
    assert "." not in text or text[-1] != "0"


@pytest.mark.parametrize(
    ("text", "time_us"),
    [("3", 3_000_000), ("4.50", 4_500_000), ("0.040", 40_000), ("3.", 3_000_000), ("1.0000000", 10**6)],
)
def test_parse_seconds_accepts_plain_decimals(text: str, time_us: int) -> None:
    assert parse_seconds(text) == time_us


@pytest.mark.parametrize(
    "text", ["", "1,5", "1e3", "nan", "0.0000001", " 1", "1 ", "+1", "\u0661", "04.mai", "1.5.2", ".5"]
)
def test_parse_seconds_refuses_everything_else(text: str) -> None:
    with pytest.raises(ValueError, match="seconds must"):
        parse_seconds(text)


@given(st.text(alphabet="'=+-@\t\rab") | st.text())
def test_guarded_text_comes_back_and_is_no_formula(text: str) -> None:
    cell = guard_cell(text)
    assert unguard_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or cell[1:].replace(".", "", 1).isdecimal()


def test_a_negative_number_stays_a_number() -> None:
    assert [guard_cell(text) for text in ("-0.0812", "-3", "-3-1", "-1e3*2", "-.5")] == [
        "-0.0812",
        "-3",
        "'-3-1",
        "'-1e3*2",
        "'-.5",
    ]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_a_cell_that_begins_with_a_sign_of_either_width_is_no_formula(sign: str) -> None:
    assert guard_cell(f"{sign}1+1") == f"'{sign}1+1"
    assert unguard_cell(guard_cell(f"{sign}1+1")) == f"{sign}1+1"
