"""Annotations as people keep them: what is read, what is asked, what is left out, and what each rule does to clips."""

import os
from pathlib import Path
from typing import Any

import pytest

from featurecache.annotations import Interval, write_eaf
from featurecache.clips.inventory import make_table, survey
from featurecache.errors import AnnotationError
from featurecache.project.settings import open_project
from featurecache.setup.proposal import propose
from featurecache.workflow.clips import make_clips
from tests.make_videos import write_video

SECOND = 1_000_000
END = "</ANNOTATION_DOCUMENT>"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of 6 s."""
    folder = tmp_path_factory.mktemp("recordings") / "videos"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"S{number}.mp4", count=30, fps=5, metadata={"comment": f"take {number}"})
    return folder


class Kept:
    """A project's folder: annotations are added, settings written, and clips made."""

    def __init__(self, root: Path, videos: Path) -> None:
        self.root, self.videos = root, videos
        (root / "notes").mkdir()

    def eaf(self, name: str, tiers: dict[str, list[tuple[float, float, str]]], media: str | None = None) -> Path:
        """An `.eaf` whose annotations have values, as ELAN writes it."""
        from featurecache.annotations import eaf_bytes, new_document, read_eaf

        path = self.root / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document = new_document(name, media_name=media or f"{name.split('_')[0].split('.')[0]}.mp4")
        text = eaf_bytes(document).decode()
        slots, body, number = "", "", 0
        for tier, items in tiers.items():
            cells = ""
            for start_s, end_s, value in items:
                number += 1
                for at, time_s in enumerate((start_s, end_s)):
                    slots += f'<TIME_SLOT TIME_SLOT_ID="s{number}.{at}" TIME_VALUE="{round(1000 * time_s)}"/>'
                cells += (
                    f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="n{number}" TIME_SLOT_REF1="s{number}.0" '
                    f'TIME_SLOT_REF2="s{number}.1"><ANNOTATION_VALUE>{value}</ANNOTATION_VALUE>'
                    "</ALIGNABLE_ANNOTATION></ANNOTATION>"
                )
            body += f'<TIER LINGUISTIC_TYPE_REF="interval" TIER_ID="{tier}">{cells}</TIER>'
        head, tail = text.split("<TIME_ORDER", 1)
        tail = tail.split(">", 1)[1].removeprefix("</TIME_ORDER>")
        path.write_text(f"{head}<TIME_ORDER>{slots}</TIME_ORDER>{body}{tail}", encoding="utf-8")
        read_eaf(path)
        return path

    def csv(self, text: str, name: str = "labels.csv") -> Path:
        path = self.root / "notes" / name
        path.write_text(text, encoding="utf-8")
        return path

    def open(self, data: str, clips: str = "", place: str = "notes") -> Any:
        (self.root / "featurecache.toml").write_text(
            f'[data]\nvideos = "{self.videos}"\nannotations = "{place}"\n{data}\n'
            f'[clips]\nlength_s = 1\nstride_s = 1\n{clips}\n[features]\nmodel = "demo"\n'
        )
        return open_project(self.root)

    def targets(self, data: str, clips: str = "", place: str = "notes", recording: str = "S0.mp4") -> list[Any]:
        """The targets of a recording's clips: a number for one label, else a tuple."""
        project = self.open(data, clips, place)
        rows = [clip.targets for clip in make_table(project, survey(project))[0].clips if clip.recording == recording]
        return [row[0] if len(row) == 1 else row for row in rows]

    def propose(self, place: str = "notes") -> Any:
        return propose(self.root / "new", videos=self.videos, annotations=self.root / place, model="demo")


@pytest.fixture
def kept(tmp_path: Path, recordings: Path) -> Kept:
    return Kept(tmp_path, recordings)


def every(kept: Kept, tiers: dict[str, list[tuple[float, float, str]]]) -> None:
    for number in range(4):
        kept.eaf(f"S{number}.eaf", tiers)


# --- values that say absence ----------------------------------------------------------------------

YES_NO = [(0, 2, "0"), (2, 4, "1"), (4, 6, "0")]


def test_a_value_that_may_say_absence_is_asked_about_and_never_a_positive(kept: Kept) -> None:
    every(kept, {"Goal": YES_NO})
    with pytest.raises(AnnotationError, match=r'mapping\."Goal" = \{ "0" = "", "1" = "Goal" \}'):
        kept.targets('labels = ["Goal"]')
    assert kept.targets('labels = ["Goal"]\nmapping.Goal = { "0" = "", "1" = "Goal" }') == [0, 0, 1, 1, 0, 0]
    assert kept.targets('labels = ["Goal"]\nmapping.Goal = { "*" = "Goal" }') == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("other", ["x", "left"])
@pytest.mark.parametrize("absent", ["No", "absent", "FALSE", "none", " no\u00a0"])
def test_every_usual_word_for_absence_is_asked_about(kept: Kept, absent: str, other: str) -> None:
    kept.eaf("S0.eaf", {"Goal": [(0, 2, absent), (2, 4, other)]})
    with pytest.raises(AnnotationError, match="may say absence"):
        kept.targets('labels = ["Goal"]')


def test_yes_and_no_of_several_tiers_are_not_merged_into_labels(kept: Kept) -> None:
    every(kept, {name: [(0, 2, "Yes"), (2, 4, "No")] for name in ("A", "B", "C")})
    with pytest.raises(AnnotationError, match=r"tier 'A' .* So do 'B', 'C'"):
        kept.targets('labels_from = "values"\nlabels = ["Yes", "No"]')


def test_a_value_that_the_mapping_does_not_name_is_asked_about(kept: Kept) -> None:
    every(kept, {"Hand": [(0, 2, "left"), (2, 4, "both")]})
    with pytest.raises(AnnotationError, match=r"tier 'Hand' has 'both' besides.*\"both\" = \"Hand both\""):
        kept.targets('labels = ["Hand left"]\nmapping.Hand = { left = "Hand left" }')


def test_init_proposes_which_values_mean_absence_and_clips_follow_it(kept: Kept) -> None:
    hand = [(0, 1, "left"), (1, 2, "right"), (2, 3, "none")]
    every(kept, {"Goal": YES_NO, "Rest": [(1, 2, "")], "Turn": [(1, 2, "")], "Hand": hand})
    data = open_project(kept.propose().path).settings.data
    assert data.mapping == {
        "Goal": {"0": "", "1": "Goal"},
        "Hand": {"left": "Hand left", "none": "", "right": "Hand right"},
    }
    assert set(data.labels) == {"Rest", "Turn", "Goal", "Hand left", "Hand right"}
    found = survey(open_project(kept.root / "new"))
    assert Interval(2 * SECOND, 4 * SECOND, "Goal") in found.intervals["S0.mp4"]
    assert Interval(0, 2 * SECOND, "Goal") not in found.intervals["S0.mp4"]


# --- spellings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", ["toux force\u0301e", "toux\u00a0forc\u00e9e", "toux forc\u00e9e ", "toux\u200b forc\u00e9e\ufeff"]
)
@pytest.mark.parametrize("how", ["tiers", "values", "table"])
def test_spellings_that_nobody_can_tell_apart_are_one_label(kept: Kept, other: str, how: str) -> None:
    spelt = ["toux forc\u00e9e", other]
    if how == "table":
        kept.csv("recording,start_s,end_s,label\n" + "".join(f"S{n}.mp4,1,3,{spelt[n % 2]}\n" for n in range(4)))
    for number in range(4 if how != "table" else 0):
        name, value = (spelt[number % 2], "") if how == "tiers" else ("acts", spelt[number % 2])
        kept.eaf(f"S{number}.eaf", {name: [(1, 3, value)]})
    data = f'labels = ["toux forc\u00e9e"]\nlabels_from = "{"values" if how == "values" else "tiers"}"'
    for recording in ("S0.mp4", "S1.mp4"):
        assert kept.targets(data, recording=recording) == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("other", ["Suction", "suc-tion", "SUCTION", "suktion", "suctions", "sucttion"])
def test_spellings_that_differ_by_little_are_asked_about_and_either_answer_is_taken(kept: Kept, other: str) -> None:
    for number in range(4):
        kept.eaf(f"S{number}.eaf", {other if number % 2 else "suction": [(1, 3, "")]})
    with pytest.raises(AnnotationError, match=rf'{other}.*add under \[data\]: rename\."{other}" = "suction"'):
        kept.targets('labels = ["suction"]')
    one = f'labels = ["suction"]\nrename."{other}" = "suction"'
    assert kept.targets(one, recording="S1.mp4") == [0, 1, 1, 0, 0, 0]
    two = f'labels = ["suction"]\nrename."{other}" = "{other}"'
    assert kept.targets(two, recording="S1.mp4") == [0] * 6


VOCABULARY = (
    '<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="coded" TIME_ALIGNABLE="true" CONTROLLED_VOCABULARY_REF="v"/>'
    '<CONTROLLED_VOCABULARY CV_ID="v"><CV_ENTRY_ML CVE_ID="e1"><CVE_VALUE LANG_REF="eng">left</CVE_VALUE>'
    '<CVE_VALUE LANG_REF="deu">links</CVE_VALUE></CV_ENTRY_ML></CONTROLLED_VOCABULARY></ANNOTATION_DOCUMENT>'
)


def test_values_of_one_entry_of_a_vocabulary_are_read_by_its_id_and_asked_about_in_two_languages(kept: Kept) -> None:
    for number, value in enumerate(("left", "", "left", "left")):
        path = kept.eaf(f"S{number}.eaf", {"hand": [(1, 2, value), (4, 5, value)]})
        text = path.read_text().replace('TYPE_REF="interval"', 'TYPE_REF="coded"')
        path.write_text(text.replace("TIME_SLOT_REF1", 'CVE_REF="e1" TIME_SLOT_REF1').replace(END, VOCABULARY))
    by_values = 'labels_from = "values"\nlabels = ["left"]'
    assert kept.targets(by_values, recording="S1.mp4") == [0, 1, 0, 0, 1, 0]
    path.write_text(path.read_text().replace("VALUE>left</ANNOTATION", "VALUE>links</ANNOTATION"))
    with pytest.raises(AnnotationError, match=r'one spelling.*rename\."links" = "left"'):
        kept.targets(by_values)


def test_labels_that_a_digit_a_first_letter_or_a_short_word_tells_apart_are_not_asked_about(kept: Kept) -> None:
    names = ["hand 1", "hand 2", "walking", "talking", "grasp L", "grasp R", "on", "off"]
    every(kept, {name: [(1, 3, "")] for name in names})
    assert len(kept.targets('labels = ["hand 1", "walking", "grasp L", "on"]')) == 6


# --- unannotated time -----------------------------------------------------------------------------


def test_a_file_without_an_annotation_leaves_its_recording_unlabelled_unless_it_says_otherwise(kept: Kept) -> None:
    for number in range(4):
        kept.eaf(f"S{number}.eaf", {"a": [(1, 3, "")] if number else [], "b": []})
    assert kept.targets('labels = ["a"]') == [None] * 6
    assert "S0.eaf has no annotation" in survey(kept.open('labels = ["a"]')).notes[0]
    assert kept.targets('labels = ["a"]\nempty_files = "negative"') == [0] * 6


def test_a_file_whose_read_tier_is_empty_is_negative_where_others_are_annotated(kept: Kept) -> None:
    for number in range(4):
        kept.eaf(f"S{number}.eaf", {"a": [(1, 3, "")] if number else [], "b": [(0, 1, "")]})
    assert kept.targets('labels = ["a"]\ntiers = ["a"]') == [0] * 6


def test_time_behind_the_last_annotation_is_unlabelled_where_settings_say_so(kept: Kept) -> None:
    every(kept, {"a": [(1, 2, "")], "b": [(3, 3, "")]})
    assert kept.targets('labels = ["a"]') == [0, 1, 0, 0, 0, 0]
    until = 'labels = ["a"]\nunannotated_time = "until_last_annotation"'
    assert kept.targets(until) == [0, 1, 0, None, None, None]
    made = make_clips(kept.open(until))
    assert "up to its last annotation" in made.rules[0]
    assert {one.counts_as for one in made.unannotated} == {"both"}


def test_clips_says_how_unannotated_time_is_read_and_counts_it(kept: Kept) -> None:
    every(kept, {"a": [(1, 2, "")]})
    made = make_clips(kept.open('labels = ["a"]'))
    assert made.rules[0].startswith("time without an annotation is negative in an annotated recording")
    assert made.rules[2].startswith("20 clips of 4 recordings are negative since nothing is annotated in them")
    (first, *_) = made.unannotated
    assert (first.seconds, first.longest_s, first.negative_clips) == (5, 4, 5)
    assert any("nothing annotated in a long end" in line for line in made.audit.warnings)


def test_init_proposes_a_tier_that_marks_what_was_annotated_as_the_annotated_span(kept: Kept) -> None:
    every(kept, {"a": [(1, 2, "")], "annotated": [(0, 4, "")], "baby_visible": [(0, 3, "")]})
    data = open_project(kept.propose().path).settings.data
    assert (data.annotated_span, data.labels) == ("annotated", ("a", "baby_visible"))


# --- points and short annotations -----------------------------------------------------------------


def test_annotations_of_no_duration_are_counted_and_min_overlap_takes_them_in(kept: Kept) -> None:
    for number in range(4):
        kept.eaf(f"S{number}.eaf", {"kick": [(2, 2, ""), (3.5, 3.54, "")] + [(4, 5, "")] * (number == 1)})
    made = make_clips(kept.open('labels = ["kick"]'))
    (lost,) = made.lost
    assert (lost.points, lost.short, lost.of) == (4, 4, 9)
    assert any("kick: 8 of 9 annotations mark no clip (4 of no duration" in line for line in made.audit.warnings)
    assert kept.targets('labels = ["kick"]') == [0] * 6
    assert kept.targets('labels = ["kick"]', 'min_overlap = "any"') == [0, 0, 1, 1, 0, 0]
    assert kept.targets('labels = ["kick"]', 'min_overlap = "0.04 s"') == [0, 0, 0, 1, 0, 0]
    assert kept.targets('labels = ["kick"]', "min_overlap = 0.05") == [0] * 6


def test_annotations_outside_of_the_annotated_time_are_not_called_too_short(kept: Kept) -> None:
    every(kept, {"a": [(0, 1, ""), (4, 5, ""), (7, 9, "")], "watched": [(0, 3, "")]})
    made = make_clips(kept.open('labels = ["a"]\nannotated_span = "watched"'))
    assert [(one.short, one.outside, one.of) for one in made.lost] == [(0, 8, 12)]
    (told,) = (line for line in made.audit.warnings if "mark no clip" in line)
    assert told.endswith("mark no clip (8 outside of the time that counts as annotated, or of the video).")


def test_a_label_that_never_lasts_stops_nothing_and_is_told_with_the_setting_that_takes_it(kept: Kept) -> None:
    every(kept, {"kick": [(2, 2, "")]})
    (told, *_) = make_clips(kept.open('labels = ["kick"]')).audit.warnings
    assert "4 of 4 annotations mark no clip (4 of no duration)" in told
    assert 'min_overlap = "0.2 s" or "any"' in told
    assert kept.targets('labels = ["kick"]', 'min_overlap = "any"') == [0, 0, 1, 0, 0, 0]


# --- names, files, rows ---------------------------------------------------------------------------


def test_one_reversed_annotation_leaves_out_itself_and_is_listed(kept: Kept) -> None:
    every(kept, {"a": [(1, 2, "")]})
    kept.eaf("S0.eaf", {"a": [(1, 2, ""), (5, 4, "")]})
    found = survey(kept.open('labels = ["a"]'))
    assert found.intervals["S0.mp4"] == [Interval(SECOND, 2 * SECOND, "a")]
    assert [item.name for item in found.unusable] == ["S0.eaf"]
    assert "starts at 5000 ms and ends at 4000 ms" in found.unusable[0].reason


def test_eaf_files_are_found_in_any_case_and_one_may_be_named_alone(kept: Kept) -> None:
    kept.eaf("S0.EAF", {"a": [(1, 2, "")]})
    assert survey(kept.open('labels = ["a"]')).intervals.keys() == {"S0.mp4"}
    assert survey(kept.open('labels = ["a"]', place="notes/S0.EAF")).intervals.keys() == {"S0.mp4"}


def test_an_eaf_that_annotates_nothing_tells_which_names_were_looked_for(kept: Kept) -> None:
    kept.eaf("S0.eaf", {"a": [(1, 2, "")]})
    kept.eaf("S01.eaf", {"a": [(1, 2, "")]}, media="D:/data/S01.mpg")
    (item,) = survey(kept.open('labels = ["a"]')).unusable
    assert item.reason.startswith("it annotates none of the recordings; none is called S01.mpg, S01. The nearest is S")


@pytest.mark.parametrize("name", ["S0", "s0.MP4", "D:\\data\\S0.mp4", "S0.avi", "S0.eaf"])
def test_names_in_a_table_match_as_loosely_as_those_in_an_eaf(kept: Kept, name: str) -> None:
    kept.csv(f"recording,start_s,end_s,label\n{name},1,2,a\nS1.mp4,1,2,a\nS9.mp4,1,2,a\n")
    found = survey(kept.open('labels = ["a"]', place="notes/labels.csv"))
    assert found.intervals["S0.mp4"] == [Interval(SECOND, 2 * SECOND, "a")]
    (item,) = found.unusable
    assert "'S9.mp4' annotate none of the recordings. The nearest is" in item.reason


def test_absence_in_a_table_with_a_column_of_values_is_no_positive(kept: Kept) -> None:
    rows = "".join(f"S{n}.mp4,0,2,Goal,0\nS{n}.mp4,2,4,Goal,1\n" for n in range(4))
    kept.csv("recording,start_s,end_s,label,value\n" + rows)
    found = survey(open_project(kept.propose("notes/labels.csv").path))
    assert found.intervals["S0.mp4"] == [Interval(2 * SECOND, 4 * SECOND, "Goal")]


def test_init_proposes_no_label_of_which_the_annotations_say_only_that_it_is_absent(kept: Kept) -> None:
    every(kept, {"Look": [(0, 2, "yes"), (3, 4, "no")], "Cry": [(0, 1, "no"), (2, 3, "no")]})
    next_entry = 'yes</CVE_VALUE></CV_ENTRY_ML><CV_ENTRY_ML CVE_ID="e2"><CVE_VALUE LANG_REF="eng">no'
    vocabulary = VOCABULARY.replace('left</CVE_VALUE><CVE_VALUE LANG_REF="deu">links', next_entry)
    for path in (kept.root / "notes").iterdir():
        path.write_text(path.read_text().replace('TYPE_REF="interval"', 'TYPE_REF="coded"').replace(END, vocabulary))
    project = open_project(kept.propose().path)
    assert project.settings.data.labels == ("Look",)
    assert make_clips(project).audit.labels[0].positives


def test_init_takes_sessions_of_a_table_that_names_recordings_loosely_and_tells_of_a_gap(kept: Kept) -> None:
    rows = [f"S{n},1,2,{label},P{n % 2}" for n, label in enumerate(("a", "None", "a", "b"))]
    kept.csv("\n".join(["recording,start_s,end_s,label,session", *rows]))
    found = kept.propose()
    data = open_project(found.path).settings.data
    assert data.session_from == "column"
    assert data.labels == ("a", "b")
    assert any("without 'None', taken to say that nothing happens" in note for note in found.notes)
    found.path.unlink()
    kept.csv("\n".join(["recording,start_s,end_s,label,session", *rows])[:-2])
    (told,) = (note for note in kept.propose().notes if note.startswith("sessions: "))
    assert "the table's session column is not used, since it names no session of S3.mp4: fill it in" in told


def test_init_proposes_the_columns_of_an_export_and_clips_reads_it(kept: Kept) -> None:
    rows = "".join(f"{tier}\t1000\t{3000}\t\tS{n}.eaf\n" for n in range(4) for tier in ("a", "b"))
    kept.csv("Tier\tBegin Time - msec\tEnd Time - msec\tAnnotation\tFile\n" + rows, "export.txt")
    path = kept.propose().path
    data = open_project(path).settings.data
    assert (data.columns.start, data.columns.unit, data.columns.recording) == ("Begin Time - msec", "ms", "File")
    assert survey(open_project(path)).intervals["S2.mp4"] == [
        Interval(SECOND, 3 * SECOND, "a"),
        Interval(SECOND, 3 * SECOND, "b"),
    ]


def test_tables_next_to_eaf_files_are_not_passed_over_in_silence(kept: Kept) -> None:
    kept.eaf("S0.eaf", {"a": [(1, 2, "")]})
    kept.csv("recording,start_s,end_s,label\nS1.mp4,1,2,a\n", "others.csv")
    kept.csv("Ask Anna about\nsession 3\n", "remarks.txt")
    for notes in (kept.propose().notes, survey(kept.open('labels = ["a"]')).notes):
        assert [note for note in notes if note.startswith("others.csv: not read, since there are .eaf files")]
        assert not any("remarks" in note for note in notes)


def test_a_pipe_called_as_an_annotation_file_is_left_out_and_not_waited_for(kept: Kept) -> None:
    every(kept, {"a": [(1, 2, "")]})
    os.mkfifo(kept.root / "notes" / "S4.eaf")
    (left_out,) = make_clips(kept.open('labels = ["a"]')).unusable
    assert "must be a plain file" in left_out.reason


def test_a_folder_of_one_table_for_each_recording_is_read(kept: Kept) -> None:
    for number in range(4):
        kept.csv("Behavior,Start (s),Stop (s)\na,1,2\n", f"S{number}.csv")
    assert survey(open_project(kept.propose().path)).intervals.keys() == {f"S{n}.mp4" for n in range(4)}


# --- two annotators -------------------------------------------------------------------------------


def test_two_annotators_are_both_kept_and_the_settings_say_which_one_trains(kept: Kept) -> None:
    for number in range(4):
        kept.eaf(f"S{number}_anna.eaf", {"a": [(1, 3, "")]})
    kept.eaf("S0_bert.eaf", {"a": [(2, 4, "")]})
    with pytest.raises(AnnotationError, match=r"'S0\.mp4' has S0_anna\.eaf and S0_bert\.eaf.*Set annotators"):
        kept.targets('labels = ["a"]')
    told = 'labels = ["a"]\nannotators = "{}"'
    assert kept.targets(told.format("anna")) == [0, 1, 1, 0, 0, 0]
    assert kept.targets(told.format("Bert")) == [0, 0, 1, 1, 0, 0]
    assert kept.targets(told.format("Bert"), recording="S1.mp4") == [0, 1, 1, 0, 0, 0], "who annotated it alone counts"
    assert kept.targets(told.format("union")) == [0, 1, 1, 1, 0, 0]
    assert kept.targets(told.format("intersection")) == [0, 0, 1, 0, 0, 0]
    with pytest.raises(AnnotationError, match="'carl' fits 0 of them"):
        kept.targets(told.format("carl"))
    assert len(survey(kept.open(told.format("union"))).accounts["S0.mp4"]) == 2


def test_a_table_may_name_its_annotators(kept: Kept) -> None:
    rows = "S0.mp4,1,3,a,anna\nS0.mp4,2,4,a,bert\n" + "".join(f"S{n}.mp4,1,2,a,anna\n" for n in (1, 2, 3))
    kept.csv("recording,start_s,end_s,label,annotator\n" + rows)
    assert kept.targets('labels = ["a"]\nannotators = "bert"') == [0, 0, 1, 1, 0, 0]


def test_annotations_written_by_this_toolkit_need_no_setting(kept: Kept) -> None:
    for number in range(4):
        write_eaf(kept.root / f"notes/S{number}.eaf", [Interval(SECOND, 2 * SECOND, "a")], media_name=f"S{number}.mp4")
    found = survey(kept.open('labels = ["a"]'))
    assert (found.notes, found.unusable) == ((), ())
