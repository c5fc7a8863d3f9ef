"""The files of a timeline: nothing of the annotator's lost, nothing of a person's replaced, valid for ELAN."""

import csv
import json
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pympi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.annotations import (
    Interval,
    add_predictions,
    eaf_bytes,
    new_document,
    predicted_intervals,
    read_csv,
    read_eaf,
    resolve_times,
)
from featurecache.errors import OutputExistsError
from heads.timelines.files import KIND, Timeline, timeline_document, write_timeline
from heads.timelines.timeline import PredictedInterval, TimelineSettings
from tests.eaf_schema import official_schema, violations

SHARED = Path(__file__).parents[1].parent / "shared/data/eaf"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real files are not on this machine")
SHARED_FILES = ["childproject_example.eaf", "pympi_sample_2.8.eaf", "speach_blank.eaf", "speach_test.eaf"]
SECOND = 1_000_000
PREDICTED = (
    PredictedInterval(1_500_000, 4_250_400, "ventilation", 0.874),
    PredictedInterval(3_000_000, 5_000_000, "suction", 0.61),
    PredictedInterval(6_000_000, 9_000_000, "ventilation", 0.5),
)


def timeline(*, recording="S01.mp4", predicted=PREDICTED, labels=("ventilation", "suction"), annotated=None):
    spans = np.array([(start, start + 3 * SECOND) for start in range(0, 8 * SECOND, 3 * SECOND // 2)], np.int64)
    return Timeline(
        recording=recording,
        content="0123456789abcdef",
        duration_us=10 * SECOND,
        labels=labels,
        thresholds=np.full(len(labels), 0.5),
        length_us=3 * SECOND,
        stride_us=3 * SECOND // 2,
        spans_us=spans,
        scores=np.tile(np.linspace(0, 1, len(spans))[:, None], (1, len(labels))).astype(np.float32),
        predicted=predicted,
        annotated=annotated,
        annotated_us=None if annotated is None else [(0, 10 * SECOND)],
        settings=TimelineSettings("mean", 3 * SECOND, 0.0, 0, 0),
        tuned=False,
        exclusive=[],
        calibrated=False,
        bundle="f" * 64,
    )


def write(folder, *, document=None, time_origin_ms=0, **changes):
    media = folder / "videos" / "S01.mp4"
    return write_timeline(
        timeline(**changes), folder / "out" / "S01", media=media, document=document, time_origin_ms=time_origin_ms
    )


def content(element: Element) -> tuple[object, ...]:
    """All that an element says, however it is indented."""
    return (
        element.tag,
        dict(element.attrib),
        (element.text or "").strip(),
        [content(child) for child in element],
    )


# --- the annotator's document ---------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", SHARED_FILES)
def test_write_timeline_loses_nothing_of_the_annotators_when_file_is_real(name, tmp_path):
    before = read_eaf(SHARED / name)
    files = write(tmp_path, document=read_eaf(SHARED / name))
    after = read_eaf(files.eaf)

    assert after.root.attrib == before.root.attrib
    assert after.media == before.media
    new_tiers = {"ventilation (predicted)", "suction (predicted)"}
    old, new = (
        [content(element) for element in document.root if element.get("TIER_ID") not in new_tiers]
        for document in (before, after)
    )
    header_before, header_after = (next(one for one in own if one[0] == "HEADER") for own in (old, new))
    counter = ("PROPERTY", {"NAME": "lastUsedAnnotationId"})
    assert header_after[:3] == header_before[:3]
    assert [one for one in header_after[3] if one[:2] != counter] == [
        one for one in header_before[3] if one[:2] != counter
    ]
    skipped = ("HEADER", "TIME_ORDER", "LINGUISTIC_TYPE")
    assert [one for one in new if one[0] not in skipped] == [one for one in old if one[0] not in skipped]
    types_before, types_after = ([one for one in own if one[0] == "LINGUISTIC_TYPE"] for own in (old, new))
    assert types_after[: len(types_before)] == types_before
    assert len(types_after) <= len(types_before) + 1
    slots_before, slots_after = (list(document.slots_ms.items()) for document in (before, after))
    kept = dict(slots_before)
    assert [(slot, time) for slot, time in slots_after if slot in kept] == slots_before  # in their order, too
    assert len(slots_after) == len(slots_before) + 2 * len(PREDICTED)
    assert [one for one in resolve_times(after) if one.tier not in new_tiers] == resolve_times(before)
    assert violations(fromstring(files.eaf.read_text())) == []


@needs_shared
@pytest.mark.parametrize("name", ["childproject_example.eaf", "pympi_sample_2.8.eaf", "speach_blank.eaf"])
def test_write_timeline_gives_tiers_that_pympi_reads_when_file_is_real(name, tmp_path):
    files = write(tmp_path, document=read_eaf(SHARED / name))
    back = pympi.Elan.Eaf(str(files.eaf))
    found = sorted(back.get_annotation_data_for_tier("ventilation (predicted)"))
    assert found == [(1500, 4250, "0.87"), (6000, 9000, "0.50")]


def test_write_timeline_makes_a_valid_document_that_links_the_recording_when_there_is_none(tmp_path):
    files = write(tmp_path)
    back = read_eaf(files.eaf)
    assert violations(back.root) == []
    assert back.format_version == "3.0"
    (media,) = back.media
    assert (files.eaf.parent / media.media_url).resolve() == (tmp_path / "videos" / "S01.mp4").resolve()
    assert media.mime_type == "video/mp4"
    assert predicted_intervals(back, time_origin_ms=0) == [
        Interval(1_500_000, 4_250_000, "ventilation"),
        Interval(3_000_000, 5_000_000, "suction"),
        Interval(6_000_000, 9_000_000, "ventilation"),
    ]


def test_write_timeline_subtracts_the_origin_and_cuts_at_annotation_time_zero(tmp_path):
    document = new_document("S01.eaf", media_name="S01.mp4", time_origin_ms=3_500)
    files = write(tmp_path, document=document, time_origin_ms=3_500)
    assert files.before_zero_us == 2_000_000 + 500_000
    found = pympi.Elan.Eaf(str(files.eaf)).get_annotation_data_for_tier("ventilation (predicted)")
    assert sorted(found) == [(0, 750, "0.87"), (2500, 5500, "0.50")]
    first, *_ = read_csv(files.csv).intervals["S01.mp4"]
    assert first.start_us == 1_500_000  # the table keeps all of it


def test_add_predictions_leaves_earlier_predictions_and_the_latest_are_read():
    document = new_document("a.eaf", media_name="a.mp4")
    add_predictions(document, {"a b": [Interval(0, SECOND, "0.9")]}, time_origin_ms=0)
    add_predictions(document, {"a b": [Interval(SECOND, 2 * SECOND, "0.8")]}, time_origin_ms=0)
    assert list(document.tiers) == ["a b (predicted)", "a b (predicted 2)"]
    assert predicted_intervals(document, time_origin_ms=0) == [Interval(SECOND, 2 * SECOND, "a b")]


def test_add_predictions_leaves_out_what_rounds_to_no_millisecond():
    document = new_document("a.eaf", media_name="a.mp4")
    add_predictions(document, {"a": [Interval(100, 400, "0.9"), Interval(600, 1_600, "0.9")]}, time_origin_ms=0)
    assert predicted_intervals(document, time_origin_ms=0) == [Interval(1_000, 2_000, "a")]


def test_add_predictions_takes_identifiers_that_nothing_else_has(tmp_path):
    """The schema's identifiers are unique over all kinds of elements; foreign tools name slots as they like."""
    document = new_document("a.eaf", media_name="a.mp4")
    add_predictions(document, {"first": [Interval(0, SECOND, "0.9")]}, time_origin_ms=0)
    text = eaf_bytes(document).decode().replace('"a1"', '"x1"').replace('"ts1"', '"a7"')
    (tmp_path / "a.eaf").write_text(text)
    document = read_eaf(tmp_path / "a.eaf")
    add_predictions(document, {"second": [Interval(SECOND, 2 * SECOND, "0.9")]}, time_origin_ms=0)
    assert violations(document.root) == []
    assert "a8" in eaf_bytes(document).decode()


# --- the schema -----------------------------------------------------------------------------------

BREAKS = [
    ("TIER_ID", "TIER_NAME"),
    ("<TIME_ORDER>", "<TIME_ORDER><TIER/>"),
    ('TIME_VALUE="1500"', 'TIME_VALUE="1.5"'),
    ('LINGUISTIC_TYPE_REF="', 'LINGUISTIC_TYPE_REF="x'),
    ('TIME_SLOT_ID="ts1"', 'TIME_SLOT_ID="ts2"'),
    ('TIME_SLOT_REF1="ts1"', 'TIME_SLOT_REF1="ts99"'),
    ('ANNOTATION_ID="a1"', 'ANNOTATION_ID="1"'),
    ('ANNOTATION_ID="a1"', 'ANNOTATION_ID="ts1"'),
    ("</HEADER>", "</HEADER><HEADER/>"),
    ('DATE="', 'DATE="x'),
    ("<ANNOTATION_VALUE>0.87</ANNOTATION_VALUE>", ""),
    ('TIME_ALIGNABLE="true"', 'TIME_ALIGNABLE="yes"'),
    ("MIME_TYPE", "MIMETYPE"),
]


@pytest.mark.parametrize(("old", "new"), BREAKS)
def test_violations_finds_what_is_broken(old, new, tmp_path):
    text = write(tmp_path).eaf.read_text()
    assert old in text
    assert violations(fromstring(text.replace(old, new, 1)))


def test_official_schema_agrees_with_ours(tmp_path):
    schema_path = official_schema()
    if schema_path is None:
        pytest.skip("FEATURECACHE_EAF_SCHEMA does not name the official EAFv3.0.xsd (see tests/eaf_schema.py)")
    schema = pytest.importorskip("xmlschema").XMLSchema(schema_path)
    valid = [write(tmp_path).eaf.read_text()]
    if SHARED.is_dir():
        for name in ("childproject_example.eaf", "speach_blank.eaf", "speach_test.eaf"):
            valid.append((SHARED / name).read_text())
            valid.append(write(tmp_path / name, document=read_eaf(SHARED / name)).eaf.read_text())
    for text in valid:
        assert schema.is_valid(text)
        assert violations(fromstring(text)) == []
    for old, new in BREAKS:
        assert not schema.is_valid(valid[0].replace(old, new, 1)), (old, new)


# --- the table and the document -------------------------------------------------------------------


def test_table_reads_back_and_names_an_empty_recording(tmp_path):
    files = write(tmp_path)
    assert read_csv(files.csv).intervals == {"S01.mp4": tuple(one.interval for one in PREDICTED)}
    empty = write(tmp_path / "empty", predicted=())
    assert read_csv(empty.csv).intervals == {"S01.mp4": ()}


@given(name=st.text("=+-@\t\r'ab", min_size=1, max_size=5), label=st.text("=+-@'ab", min_size=1, max_size=5))
def test_table_cells_are_never_formulas(tmp_path_factory, name, label):
    labels = (label,)
    one = PredictedInterval(0, SECOND, label, 0.5)
    folder = tmp_path_factory.mktemp("formulas")
    files = write(folder, recording=name, predicted=(one,), labels=labels)
    with files.csv.open(newline="") as file:
        for row in csv.reader(file):
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_document_has_the_shape_that_is_promised(tmp_path):
    annotated = [Interval(0, SECOND, "suction"), Interval(0, SECOND, "something else")]
    files = write(tmp_path, annotated=annotated)
    document = json.loads(files.json.read_text())
    assert document["kind"] == KIND
    assert document["recording"] == {"name": "S01.mp4", "content": "0123456789abcdef", "duration_us": 10_000_000}
    assert document["scored_us"] == [[0, 10_500_000]]
    assert document["predicted"]["ventilation"] == [[1_500_000, 4_250_400, 0.874], [6_000_000, 9_000_000, 0.5]]
    assert document["annotated"] == {"ventilation": [], "suction": [[0, SECOND]]}
    assert len(document["clips"]["scores"]["suction"]) == len(document["clips"]["spans_us"]) == 6
    assert set(document["files"]) == {"S01.predicted.eaf", "S01.predicted.csv"}
    assert timeline_document(timeline())["annotated"] is None


def test_files_are_for_this_user_alone(tmp_path):
    files = write(tmp_path)
    for path in (files.eaf, files.csv, files.json):
        assert path.stat().st_mode & 0o777 == 0o600


# --- what is replaced and what is not -------------------------------------------------------------


def test_write_timeline_replaces_its_own_files(tmp_path):
    write(tmp_path)
    files = write(tmp_path, predicted=PREDICTED[:1])
    assert len(read_csv(files.csv).intervals["S01.mp4"]) == 1


@pytest.mark.parametrize("suffix", ["eaf", "csv"])
def test_write_timeline_refuses_and_writes_nothing_when_a_person_changed_a_file(tmp_path, suffix):
    files = write(tmp_path)
    path = getattr(files, suffix)
    path.write_text(path.read_text().replace("0.87", "0.99"))
    before = {one: one.read_bytes() for one in (files.eaf, files.csv, files.json)}
    with pytest.raises(OutputExistsError, match=f"predicted.{suffix} is not as predict wrote it"):
        write(tmp_path, predicted=PREDICTED[:1])
    assert {one: one.read_bytes() for one in before} == before


def test_write_timeline_refuses_to_replace_the_predictions_of_another_video_of_the_same_name(tmp_path):
    files = write(tmp_path)
    files.json.write_text(files.json.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    before = {one: one.read_bytes() for one in (files.eaf, files.csv, files.json)}
    with pytest.raises(OutputExistsError, match="another video of the same name"):
        write(tmp_path)
    assert {one: one.read_bytes() for one in before} == before


@pytest.mark.parametrize("suffix", ["eaf", "csv", "json"])
def test_write_timeline_refuses_when_the_file_is_somebody_elses(tmp_path, suffix):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / f"S01.predicted.{suffix}"
    path.write_text("{}")
    with pytest.raises(OutputExistsError, match="Move it away"):
        write(tmp_path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_write_timeline_refuses_when_the_place_is_a_link(tmp_path):
    files = write(tmp_path)
    elsewhere = tmp_path / "mine.eaf"
    files.eaf.rename(elsewhere)
    files.eaf.symlink_to(elsewhere)
    with pytest.raises(OutputExistsError):
        write(tmp_path)


@pytest.mark.parametrize("written", [["json"], ["json", "eaf"]])
def test_write_timeline_resumes_when_it_was_killed_between_the_files(tmp_path, written):
    """The .json comes first: whatever of the others is old or new, the next run takes both for its own."""
    files = write(tmp_path)
    old = {suffix: getattr(files, suffix).read_bytes() for suffix in ("eaf", "csv", "json")}
    write(tmp_path, predicted=PREDICTED[:1])
    for suffix in {"eaf", "csv"} - set(written):
        getattr(files, suffix).write_bytes(old[suffix])
    again = write(tmp_path, predicted=PREDICTED[:2])
    assert len(read_csv(again.csv).intervals["S01.mp4"]) == 2
    for suffix in ("eaf", "csv"):  # killed the first time, when there was nothing yet
        getattr(files, suffix).unlink()
    assert write(tmp_path).eaf.exists()


def test_write_timeline_leaves_no_part_behind_when_writing_fails(tmp_path, monkeypatch):
    files = write(tmp_path)
    before = files.eaf.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, predicted=())
    assert files.eaf.read_bytes() == before
    assert sorted(one.name for one in files.eaf.parent.iterdir()) == sorted(
        one.name for one in (files.eaf, files.csv, files.json)
    )
