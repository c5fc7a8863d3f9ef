"""Tables of annotations: spreadsheets, exports of other programs, and rows that are wrong."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.annotations import (
    Interval,
    read_csv,
)
from featurecache.annotations.columns import recognise
from featurecache.annotations.table import header_of
from featurecache.errors import AnnotationError
from tests.eaf_samples import SECOND
from tests.projects import write_labels

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
def test_read_csv_reads_when_spreadsheets_write_it_their_way(make_table, text):
    assert read_csv(make_table(text)).intervals == {"a b.mp4": (Interval(1_500_000, 2_250_000, "vent"),)}


def test_read_csv_reads_sessions_and_recordings_where_nothing_happens(make_table):
    found = read_csv(
        make_table(
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
def test_read_csv_is_exact_when_floats_would_round(make_table, seconds, microseconds):
    (interval,) = read_csv(make_table(f"{HEAD}a.mp4,0,{seconds},x\n")).intervals["a.mp4"]
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
def test_read_csv_names_line_and_value_when_table_is_wrong(make_table, text, message):
    with pytest.raises(AnnotationError, match=r"labels\.csv.*" + message):
        read_csv(make_table(text))


def test_two_spellings_of_a_session_are_one_session(make_table):
    rows = "a.mp4,0,1,x,P1\na.mp4,2,3,x,p1 \n"
    assert read_csv(make_table(HEAD.replace("\n", ",session\n") + rows)).sessions == {"a.mp4": "P1"}


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
def test_one_bad_row_leaves_out_one_row_and_no_other(make_table, row, message):
    found = read_csv(make_table(f"{HEAD}b.mp4,0,1,vent\n{row}\nc.mp4,0,1,vent\n"))
    assert list(found.intervals) == ["b.mp4", "c.mp4"], "a recording whose rows are all bad is not annotated"
    (reason,) = found.left_out
    assert re.match(f"line 3: {message}", reason)


def test_a_table_with_two_decimal_marks_is_not_guessed_at(make_table):
    found = read_csv(make_table("recording;start_s;end_s;label\na;0,5;1;x\na;0;1.500;x\na;1.234,5;9;x\n"))
    assert len(found.rows) == 1
    assert "one decimal mark, but end_s is '1.500'" in found.left_out[0]
    assert "it is '1.234,5'" in found.left_out[1]


def test_a_row_that_ends_where_it_begins_is_a_point(make_table):
    found = read_csv(make_table(HEAD + "a.mp4,1,1,kick\n"))
    assert [(row.start_us, row.end_us) for row in found.rows] == [(SECOND, SECOND)]
    assert found.intervals == {"a.mp4": ()}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_read_csv_reads_what_excel_saves(make_table, encoding, line_end):
    text = line_end.join(["sep=;", "recording;start_s;end_s;label", "a.mp4;1,5;0:00:02,25;v\u00e9nt", ""])
    assert read_csv(make_table(text, encoding)).intervals == {"a.mp4": (Interval(1_500_000, 2_250_000, "v\u00e9nt"),)}


def test_read_csv_separates_by_what_excels_first_line_names(make_table):
    text = "sep=|\nrecording|start_s|end_s|label\na.mp4|1,5|2|x, y; z\n"
    assert read_csv(make_table(text)).intervals == {"a.mp4": (Interval(1_500_000, 2 * SECOND, "x, y; z"),)}


EXPORTS = {
    "elan": "Tier\tParticipant\tBegin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tBegin Time - msec\t"
    "End Time - hh:mm:ss.ms\tEnd Time - ss.msec\tEnd Time - msec\tAnnotation\tFile\n"
    "vent\tP\t00:00:01.500\t1.5\t1500\t00:00:02.250\t2.25\t2250\thard\tS1.eaf\n",
    "elan milliseconds": "Tier\tBegin Time - msec\tEnd Time - msec\tAnnotation\tFile\nvent\t1500\t2250\t\tS1.eaf\n",
    "elan's csv": '"Tier","Begin Time - msec","End Time - msec","Annotation","File",\n"vent",1500,2250,"","S1.eaf"\n',
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
    "in German": "Zeile\tAnfangszeit - ss.msec\tEndzeit - ss.msec\tAnnotation\tDatei\nvent\t1.5\t2.25\t\tS1.eaf\n",
    "in Italian": "Livello\tInizio - msec\tFine - msec\tAnnotazione\tFile\nvent\t1500\t2250\tsì\tS1.eaf\n",
    "duration": "file;Onset;Duration;Code\nS1;1,5;0,75;vent\n",
}


@pytest.mark.parametrize("text", EXPORTS.values(), ids=EXPORTS)
def test_exports_of_other_programs_are_read_by_the_columns_that_their_header_proposes(make_table, text):
    path = make_table(text)
    columns = recognise(header_of(path))
    assert columns is not None
    found = read_csv(path, columns)
    assert found.left_out == ()
    first = found.rows[0]
    assert (first.start_us, first.end_us, first.label) == (1_500_000, 2_250_000, "vent")
    assert "S1" in first.recording
    with pytest.raises(AnnotationError, match=r"Add under \[data\]: columns = \{"):
        read_csv(path)


BORIS = "Observation id,Source,Time offset (s),Media duration (s),Behavior,Start (s),Stop (s),Media file name\n"
OLDER_BORIS = "Time,Media file path,Total length,Behavior,Status\n"


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (BORIS + "o1,player #1:S1.mp4,12.0,60.000,vent,12.5,15,S1.mp4\n", [(0.5, 3)]),
        (BORIS + "o1,player #1:S1.mp4|player #2:T1.mp4,-2,60.000|60.000,vent,1,15,S1.mp4\n", [(3, 17)]),
        (BORIS + "o1,player #1:S1.mp4,NA,60.000,vent,1,15,S1.mp4\n", "time offset must be seconds"),
        (BORIS + "o1,player #1:S1.mp4,1e999999999,60.000,vent,1,15,S1.mp4\n", "time offset must be seconds"),
        (BORIS + "o1,player #1:S1.mp4,5,60.000,vent,1,15,S1.mp4\n", "must not lie before the time offset of 5 s"),
        (BORIS + "o1,player #1:S1.mp4;S2.mp4,0,180;360,vent,227,253,S2.mp4\n", "media files of this observation"),
        (
            "Observation id,Media file,Total length,Behavior,Start (s),Stop (s)\n"
            "o1,S1.mp4,540,vent,1,2\no1,S2.mp4,540,vent,227,253\n",
            "media files of this observation",
        ),
        (
            "Observation id,Media file,Total length,Behavior,Start (s),Stop (s)\n"
            "o1,S1.mp4,180,vent,1,2\no2,S2.mp4,360,vent,227,253\n",
            [(1, 2), (227, 253)],
        ),
        ("Video,Total length,Label,Start,End\nS1,60,vent,1,2\nS2,60,vent,3,4\n", [(1, 2), (3, 4)]),
        (
            f"Observation id,o1\nPlayer #1,S1.mp4\nTime offset (s),7.5\n{OLDER_BORIS}"
            "8,S1.mp4,60,vent,START\n9,S1.mp4,60,vent,STOP\n",
            [(0.5, 1.5)],
        ),
        (
            f"Observation id,o1\nPlayer #1,S1.mp4\nPlayer #1,S2.mp4\n{OLDER_BORIS}"
            "200,S2.mp4,540,vent,START\n201,S2.mp4,540,vent,STOP\n",
            "media files of this observation",
        ),
        (
            '"#file:///D:/S1.wav -- offset: 90, duration: 1"\nTier\tBegin Time - msec\tEnd Time - msec\na\t0\t9\n',
            [(0, 0.009)],
        ),
    ],
)
def test_times_of_exports_that_count_from_elsewhere_are_brought_to_the_recordings_start_or_left_out(
    make_table, text, times
):
    path = make_table(text)
    found = read_csv(path, recognise(header_of(path)))
    if isinstance(times, str):
        assert found.rows == ()
        assert all(times in reason for reason in found.left_out)
    else:
        assert [(row.start_us / SECOND, row.end_us / SECOND) for row in found.rows] == times


def test_an_elan_export_of_a_shifted_video_asks_for_the_eaf(make_table):
    shifted = '"#file:///D:/S1.mp4 -- offset: 5000, duration: 00:01:00.000 / 60.000 / 60000, ms per sample: 40.0"\n'
    path = make_table(shifted + "Tier\tBegin Time - ss.msec\tEnd Time - ss.msec\nvent\t1\t2\n")
    with pytest.raises(AnnotationError, match=r"line 1: .* ELAN shifts the video by 5000 ms.* Give the .eaf"):
        read_csv(path, recognise(header_of(path)))


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
def test_timecodes_of_frames_are_read_by_the_rate_that_the_settings_name(make_table, rate, cell, time_us):
    path = make_table(f"Tier\tBegin Time - hh:mm:ss:ff\tEnd Time - hh:mm:ss:ff\tFile\nvent\t{cell}\t{cell}\tS1.eaf\n")
    columns = recognise(header_of(path))
    assert columns is not None
    (reason,) = read_csv(path, columns).left_out
    assert "Set columns.frame_rate under [data]" in reason
    assert read_csv(path, dataclasses.replace(columns, frame_rate=rate)).rows[0].start_us == time_us
    few = read_csv(path, dataclasses.replace(columns, frame_rate=2)).left_out
    assert bool(few) == (int(cell[-2:]) > 1)
    assert all("count frames from 0 to 1 at columns.frame_rate = 2" in reason for reason in few)


def test_numbers_of_frames_are_no_seconds(make_table):
    path = make_table("recording,start_frame,end_frame,label\nS1,30,45,vent\n")
    columns = recognise(header_of(path))
    assert columns is not None
    assert "Set columns.frame_rate under [data]" in read_csv(path, columns).left_out[0]
    row = read_csv(path, dataclasses.replace(columns, frame_rate=29.97)).rows[0]
    assert (row.start_us, row.end_us) == (1_001_000, 1_501_500)


def test_no_advice_renames_a_time_of_another_unit_to_seconds(make_table):
    with pytest.raises(AnnotationError, match="bring 'start_ms' to seconds and call it start_s"):
        read_csv(make_table("recording,start_ms,end_s,label\nS1,1000,2,vent\n"))


def test_a_table_with_a_column_for_each_tier_says_how_to_export_it_again(make_table):
    text = "Begin Time - ss.msec\tEnd Time - ss.msec\tvent\tsuction\tFile\n1.0\t4.0\tx\t\tS1.eaf\n"
    with pytest.raises(AnnotationError, match="If 'vent, suction' are tiers, export again without a column for each"):
        read_csv(make_table(text))


def test_a_table_that_one_separator_reads_is_not_called_malformed_for_another(make_table):
    with pytest.raises(AnnotationError, match="the header must name recording, start_s, end_s, label"):
        read_csv(make_table('metadata_id,file_list,temporal_coordinates\n"1_a","[""S1.mp4""]","[3.0,9.0]"\n'))


def test_a_table_without_names_of_columns_says_that_they_are_missing(make_table):
    found = r"line 1: the first line must name the columns, .* for each of its 4 columns"
    with pytest.raises(AnnotationError, match=found):
        read_csv(make_table("vent\t00:00:01.500\t00:00:02.250\thard\nvent\t00:00:03.000\t00:00:04.000\t\n"))


def test_events_that_begin_and_never_end_are_left_out_and_told(make_table):
    text = "Media file name,Behavior,Behavior type,Time\n" + "".join(
        f"S1.mp4,{row}\n"
        for row in ("a,STOP,1", "a,START,2", "a,START,3", "a,STOP,4", "b,START,5", "k,POINT,6", "k,X,7")
    )
    path = make_table(text)
    found = read_csv(path, recognise(header_of(path)))
    assert [(row.label, row.start_us // SECOND, row.end_us // SECOND) for row in found.rows] == [
        ("a", 3, 4),
        ("k", 6, 6),
    ]
    assert [reason.split(":")[0] for reason in found.left_out] == ["line 2", "line 4", "line 8", "line 6"]


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\\"), min_size=1, max_size=12).filter(
    lambda cell: cell == cell.strip(" ") and cell.strip()
)
SPANS = st.tuples(st.integers(0, 10**12), st.integers(1, 10**10)).map(lambda t: (t[0], t[0] + t[1]))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.dictionaries(CELL, st.sets(st.builds(lambda s, x: Interval(*s, x), SPANS, CELL), max_size=4), max_size=4),
    session=st.none() | CELL,
)
def test_read_csv_reads_any_text_that_is_quoted_and_guarded(tmp_path_factory, rows, session):
    path = tmp_path_factory.mktemp("csv") / "out.csv"
    wanted = {recording: tuple(sorted(own)) for recording, own in rows.items()}
    sessions = None if session is None else dict.fromkeys(wanted, session)
    write_labels(path, wanted, sessions=sessions)
    back = read_csv(path)
    assert back.intervals == wanted
    assert back.sessions == (sessions or {})
