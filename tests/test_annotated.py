"""Annotations as people keep them: unannotated time, short annotations, names and files, and their rules."""

import os

import pytest

from featurecache.annotations import Interval, write_eaf
from featurecache.clips.inventory import take_inventory
from featurecache.errors import AnnotationError
from featurecache.project.settings import open_project
from featurecache.workflow.clips import make_clips
from tests.annotated_projects import END, SECOND, VOCABULARY, AnnotatedProject, every

# --- unannotated time -----------------------------------------------------------------------------


def test_a_file_without_an_annotation_leaves_its_recording_unlabelled_unless_it_says_otherwise(
    annotated: AnnotatedProject,
) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}.eaf", {"a": [(1, 3, "")] if number else [], "b": []})
    assert annotated.targets('labels = ["a"]') == [None] * 6
    assert "S0.eaf has no annotation" in take_inventory(annotated.open('labels = ["a"]')).notes[0]
    assert annotated.targets('labels = ["a"]\nempty_files = "negative"') == [0] * 6


def test_a_file_whose_read_tier_is_empty_is_negative_where_others_are_annotated(annotated: AnnotatedProject) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}.eaf", {"a": [(1, 3, "")] if number else [], "b": [(0, 1, "")]})
    assert annotated.targets('labels = ["a"]\ntiers = ["a"]') == [0] * 6


def test_time_behind_the_last_annotation_is_unlabelled_where_settings_say_so(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(1, 2, "")], "b": [(3, 3, "")]})
    assert annotated.targets('labels = ["a"]') == [0, 1, 0, 0, 0, 0]
    until = 'labels = ["a"]\nunannotated_time = "until_last_annotation"'
    assert annotated.targets(until) == [0, 1, 0, None, None, None]
    made = make_clips(annotated.open(until))
    assert "up to its last annotation" in made.rules[0]
    assert {one.counts_as for one in made.unannotated} == {"both"}


def test_clips_says_how_unannotated_time_is_read_and_counts_it(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(1, 2, "")]})
    made = make_clips(annotated.open('labels = ["a"]'))
    assert made.rules[0].startswith("time without an annotation is negative in an annotated recording")
    assert made.rules[2].startswith("20 clips of 4 recordings are negative since nothing is annotated in them")
    (first, *_) = made.unannotated
    assert (first.seconds, first.longest_s, first.negative_clips) == (5, 4, 5)
    assert any("nothing annotated in a long end" in line for line in made.audit.warnings)


def test_init_proposes_a_tier_that_marks_what_was_annotated_as_the_annotated_span(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(1, 2, "")], "annotated": [(0, 4, "")], "baby_visible": [(0, 3, "")]})
    data = open_project(annotated.propose().path).settings.data
    assert (data.annotated_span, data.labels) == ("annotated", ("a", "baby_visible"))


# --- points and short annotations -----------------------------------------------------------------


def test_annotations_of_no_duration_are_counted_and_min_overlap_takes_them_in(annotated: AnnotatedProject) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}.eaf", {"kick": [(2, 2, ""), (3.5, 3.54, "")] + [(4, 5, "")] * (number == 1)})
    made = make_clips(annotated.open('labels = ["kick"]'))
    (lost,) = made.lost
    assert (lost.points, lost.short, lost.of) == (4, 4, 9)
    assert any("kick: 8 of 9 annotations mark no clip (4 of no duration" in line for line in made.audit.warnings)
    assert annotated.targets('labels = ["kick"]') == [0] * 6
    assert annotated.targets('labels = ["kick"]', 'min_overlap = "any"') == [0, 0, 1, 1, 0, 0]
    assert annotated.targets('labels = ["kick"]', 'min_overlap = "0.04 s"') == [0, 0, 0, 1, 0, 0]
    assert annotated.targets('labels = ["kick"]', "min_overlap = 0.05") == [0] * 6


def test_annotations_outside_of_the_annotated_time_are_not_called_too_short(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(0, 1, ""), (4, 5, ""), (7, 9, "")], "watched": [(0, 3, "")]})
    made = make_clips(annotated.open('labels = ["a"]\nannotated_span = "watched"'))
    assert [(one.short, one.outside, one.of) for one in made.lost] == [(0, 8, 12)]
    (told,) = (line for line in made.audit.warnings if "mark no clip" in line)
    assert told.endswith("mark no clip (8 outside of the time that counts as annotated, or of the video).")


def test_a_label_that_never_lasts_stops_nothing_and_is_told_with_the_setting_that_takes_it(
    annotated: AnnotatedProject,
) -> None:
    every(annotated, {"kick": [(2, 2, "")]})
    (told, *_) = make_clips(annotated.open('labels = ["kick"]')).audit.warnings
    assert "4 of 4 annotations mark no clip (4 of no duration)" in told
    assert 'min_overlap = "0.2 s" or "any"' in told
    assert annotated.targets('labels = ["kick"]', 'min_overlap = "any"') == [0, 0, 1, 0, 0, 0]


# --- names, files, rows ---------------------------------------------------------------------------


def test_one_reversed_annotation_leaves_out_itself_and_is_listed(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(1, 2, "")]})
    annotated.eaf("S0.eaf", {"a": [(1, 2, ""), (5, 4, "")]})
    found = take_inventory(annotated.open('labels = ["a"]'))
    assert found.intervals["S0.mp4"] == [Interval(SECOND, 2 * SECOND, "a")]
    assert [item.name for item in found.unusable] == ["S0.eaf"]
    assert "starts at 5000 ms and ends at 4000 ms" in found.unusable[0].reason


def test_eaf_files_are_found_in_any_case_and_one_may_be_named_alone(annotated: AnnotatedProject) -> None:
    annotated.eaf("S0.EAF", {"a": [(1, 2, "")]})
    assert take_inventory(annotated.open('labels = ["a"]')).intervals.keys() == {"S0.mp4"}
    assert take_inventory(annotated.open('labels = ["a"]', place="notes/S0.EAF")).intervals.keys() == {"S0.mp4"}


def test_an_eaf_that_annotates_nothing_tells_which_names_were_looked_for(annotated: AnnotatedProject) -> None:
    annotated.eaf("S0.eaf", {"a": [(1, 2, "")]})
    annotated.eaf("S01.eaf", {"a": [(1, 2, "")]}, media="D:/data/S01.mpg")
    (item,) = take_inventory(annotated.open('labels = ["a"]')).unusable
    assert item.reason.startswith("it annotates none of the recordings; none is called S01.mpg, S01. The nearest is S")


@pytest.mark.parametrize("name", ["S0", "s0.MP4", "D:\\data\\S0.mp4", "S0.avi", "S0.eaf"])
def test_names_in_a_table_match_as_loosely_as_those_in_an_eaf(annotated: AnnotatedProject, name: str) -> None:
    annotated.csv(f"recording,start_s,end_s,label\n{name},1,2,a\nS1.mp4,1,2,a\nS9.mp4,1,2,a\n")
    found = take_inventory(annotated.open('labels = ["a"]', place="notes/labels.csv"))
    assert found.intervals["S0.mp4"] == [Interval(SECOND, 2 * SECOND, "a")]
    (item,) = found.unusable
    assert "'S9.mp4' annotate none of the recordings. The nearest is" in item.reason


def test_absence_in_a_table_with_a_column_of_values_is_no_positive(annotated: AnnotatedProject) -> None:
    rows = "".join(f"S{n}.mp4,0,2,Goal,0\nS{n}.mp4,2,4,Goal,1\n" for n in range(4))
    annotated.csv("recording,start_s,end_s,label,value\n" + rows)
    found = take_inventory(open_project(annotated.propose("notes/labels.csv").path))
    assert found.intervals["S0.mp4"] == [Interval(2 * SECOND, 4 * SECOND, "Goal")]


def test_init_proposes_no_label_of_which_the_annotations_say_only_that_it_is_absent(
    annotated: AnnotatedProject,
) -> None:
    every(annotated, {"Look": [(0, 2, "yes"), (3, 4, "no")], "Cry": [(0, 1, "no"), (2, 3, "no")]})
    next_entry = 'yes</CVE_VALUE></CV_ENTRY_ML><CV_ENTRY_ML CVE_ID="e2"><CVE_VALUE LANG_REF="eng">no'
    vocabulary = VOCABULARY.replace('left</CVE_VALUE><CVE_VALUE LANG_REF="deu">links', next_entry)
    for path in (annotated.root / "notes").iterdir():
        path.write_text(path.read_text().replace('TYPE_REF="interval"', 'TYPE_REF="coded"').replace(END, vocabulary))
    project = open_project(annotated.propose().path)
    assert project.settings.data.labels == ("Look",)
    assert make_clips(project).audit.labels[0].positives


def test_init_takes_sessions_of_a_table_that_names_recordings_loosely_and_tells_of_a_gap(
    annotated: AnnotatedProject,
) -> None:
    rows = [f"S{n},1,2,{label},P{n % 2}" for n, label in enumerate(("a", "None", "a", "b"))]
    annotated.csv("\n".join(["recording,start_s,end_s,label,session", *rows]))
    found = annotated.propose()
    data = open_project(found.path).settings.data
    assert data.session_from == "column"
    assert data.labels == ("a", "b")
    assert any("without 'None', taken to say that nothing happens" in note for note in found.notes)
    found.path.unlink()
    annotated.csv("\n".join(["recording,start_s,end_s,label,session", *rows])[:-2])
    (told,) = (note for note in annotated.propose().notes if note.startswith("sessions: "))
    assert "the table's session column is not used, since it names no session of S3.mp4: fill it in" in told


def test_init_proposes_the_columns_of_an_export_and_clips_reads_it(annotated: AnnotatedProject) -> None:
    rows = "".join(f"{tier}\t1000\t{3000}\t\tS{n}.eaf\n" for n in range(4) for tier in ("a", "b"))
    annotated.csv("Tier\tBegin Time - msec\tEnd Time - msec\tAnnotation\tFile\n" + rows, "export.txt")
    path = annotated.propose().path
    data = open_project(path).settings.data
    assert (data.columns.start, data.columns.unit, data.columns.recording) == ("Begin Time - msec", "ms", "File")
    assert take_inventory(open_project(path)).intervals["S2.mp4"] == [
        Interval(SECOND, 3 * SECOND, "a"),
        Interval(SECOND, 3 * SECOND, "b"),
    ]


def test_tables_next_to_eaf_files_are_not_passed_over_in_silence(annotated: AnnotatedProject) -> None:
    annotated.eaf("S0.eaf", {"a": [(1, 2, "")]})
    annotated.csv("recording,start_s,end_s,label\nS1.mp4,1,2,a\n", "others.csv")
    annotated.csv("Ask Anna about\nsession 3\n", "remarks.txt")
    for notes in (annotated.propose().notes, take_inventory(annotated.open('labels = ["a"]')).notes):
        assert [note for note in notes if note.startswith("others.csv: not read, since there are .eaf files")]
        assert not any("remarks" in note for note in notes)


def test_a_pipe_called_as_an_annotation_file_is_left_out_and_not_waited_for(annotated: AnnotatedProject) -> None:
    every(annotated, {"a": [(1, 2, "")]})
    os.mkfifo(annotated.root / "notes" / "S4.eaf")
    (left_out,) = make_clips(annotated.open('labels = ["a"]')).unusable
    assert "must be a plain file" in left_out.reason


def test_a_folder_of_one_table_for_each_recording_is_read(annotated: AnnotatedProject) -> None:
    for number in range(4):
        annotated.csv("Behavior,Start (s),Stop (s)\na,1,2\n", f"S{number}.csv")
    assert take_inventory(open_project(annotated.propose().path)).intervals.keys() == {f"S{n}.mp4" for n in range(4)}


# --- two annotators -------------------------------------------------------------------------------


def test_two_annotators_are_both_kept_and_the_settings_say_which_one_trains(annotated: AnnotatedProject) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}_anna.eaf", {"a": [(1, 3, "")]})
    annotated.eaf("S0_bert.eaf", {"a": [(2, 4, "")]})
    with pytest.raises(AnnotationError, match=r"'S0\.mp4' has S0_anna\.eaf and S0_bert\.eaf.*Set annotators"):
        annotated.targets('labels = ["a"]')
    told = 'labels = ["a"]\nannotators = "{}"'
    assert annotated.targets(told.format("anna")) == [0, 1, 1, 0, 0, 0]
    assert annotated.targets(told.format("Bert")) == [0, 0, 1, 1, 0, 0]
    assert annotated.targets(told.format("Bert"), recording="S1.mp4") == [0, 1, 1, 0, 0, 0], (
        "who annotated it alone counts"
    )
    assert annotated.targets(told.format("union")) == [0, 1, 1, 1, 0, 0]
    assert annotated.targets(told.format("intersection")) == [0, 0, 1, 0, 0, 0]
    with pytest.raises(AnnotationError, match="'carl' fits 0 of them"):
        annotated.targets(told.format("carl"))
    assert len(take_inventory(annotated.open(told.format("union"))).accounts["S0.mp4"]) == 2


def test_a_table_may_name_its_annotators(annotated: AnnotatedProject) -> None:
    rows = "S0.mp4,1,3,a,anna\nS0.mp4,2,4,a,bert\n" + "".join(f"S{n}.mp4,1,2,a,anna\n" for n in (1, 2, 3))
    annotated.csv("recording,start_s,end_s,label,annotator\n" + rows)
    assert annotated.targets('labels = ["a"]\nannotators = "bert"') == [0, 0, 1, 1, 0, 0]


def test_annotations_written_by_this_toolkit_need_no_setting(annotated: AnnotatedProject) -> None:
    for number in range(4):
        write_eaf(
            annotated.root / f"notes/S{number}.eaf", [Interval(SECOND, 2 * SECOND, "a")], media_name=f"S{number}.mp4"
        )
    found = take_inventory(annotated.open('labels = ["a"]'))
    assert (found.notes, found.unusable) == ((), ())
