"""Values that say absence, and spellings of labels: what is asked about, what is one label, what is not."""

import pytest

from featurecache.annotations import Interval
from featurecache.clips.inventory import take_inventory
from featurecache.errors import AnnotationError
from featurecache.project.settings import open_project
from tests.annotated_projects import END, SECOND, VOCABULARY, AnnotatedProject, every

# --- values that say absence ----------------------------------------------------------------------


YES_NO = [(0, 2, "0"), (2, 4, "1"), (4, 6, "0")]


def test_a_value_that_may_say_absence_is_asked_about_and_never_a_positive(annotated: AnnotatedProject) -> None:
    every(annotated, {"Goal": YES_NO})
    with pytest.raises(AnnotationError, match=r'mapping\."Goal" = \{ "0" = "", "1" = "Goal" \}'):
        annotated.targets('labels = ["Goal"]')
    assert annotated.targets('labels = ["Goal"]\nmapping.Goal = { "0" = "", "1" = "Goal" }') == [0, 0, 1, 1, 0, 0]
    assert annotated.targets('labels = ["Goal"]\nmapping.Goal = { "*" = "Goal" }') == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("other", ["x", "left"])
@pytest.mark.parametrize("absent", ["No", "absent", "FALSE", "none", " no\u00a0"])
def test_every_usual_word_for_absence_is_asked_about(annotated: AnnotatedProject, absent: str, other: str) -> None:
    annotated.eaf("S0.eaf", {"Goal": [(0, 2, absent), (2, 4, other)]})
    with pytest.raises(AnnotationError, match="may say absence"):
        annotated.targets('labels = ["Goal"]')


def test_yes_and_no_of_several_tiers_are_not_merged_into_labels(annotated: AnnotatedProject) -> None:
    every(annotated, {name: [(0, 2, "Yes"), (2, 4, "No")] for name in ("A", "B", "C")})
    with pytest.raises(AnnotationError, match=r"tier 'A' .* So do 'B', 'C'"):
        annotated.targets('labels_from = "values"\nlabels = ["Yes", "No"]')


def test_a_value_that_the_mapping_does_not_name_is_asked_about(annotated: AnnotatedProject) -> None:
    every(annotated, {"Hand": [(0, 2, "left"), (2, 4, "both")]})
    with pytest.raises(AnnotationError, match=r"tier 'Hand' has 'both' besides.*\"both\" = \"Hand both\""):
        annotated.targets('labels = ["Hand left"]\nmapping.Hand = { left = "Hand left" }')


def test_init_proposes_which_values_mean_absence_and_clips_follow_it(annotated: AnnotatedProject) -> None:
    hand = [(0, 1, "left"), (1, 2, "right"), (2, 3, "none")]
    every(annotated, {"Goal": YES_NO, "Rest": [(1, 2, "")], "Turn": [(1, 2, "")], "Hand": hand})
    data = open_project(annotated.propose().path).settings.data
    assert data.mapping == {
        "Goal": {"0": "", "1": "Goal"},
        "Hand": {"left": "Hand left", "none": "", "right": "Hand right"},
    }
    assert set(data.labels) == {"Rest", "Turn", "Goal", "Hand left", "Hand right"}
    found = take_inventory(open_project(annotated.root / "new"))
    assert Interval(2 * SECOND, 4 * SECOND, "Goal") in found.intervals["S0.mp4"]
    assert Interval(0, 2 * SECOND, "Goal") not in found.intervals["S0.mp4"]


# --- spellings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", ["toux force\u0301e", "toux\u00a0forc\u00e9e", "toux forc\u00e9e ", "toux\u200b forc\u00e9e\ufeff"]
)
@pytest.mark.parametrize("how", ["tiers", "values", "table"])
def test_spellings_that_nobody_can_tell_apart_are_one_label(annotated: AnnotatedProject, other: str, how: str) -> None:
    spelt = ["toux forc\u00e9e", other]
    if how == "table":
        annotated.csv("recording,start_s,end_s,label\n" + "".join(f"S{n}.mp4,1,3,{spelt[n % 2]}\n" for n in range(4)))
    for number in range(4 if how != "table" else 0):
        name, value = (spelt[number % 2], "") if how == "tiers" else ("acts", spelt[number % 2])
        annotated.eaf(f"S{number}.eaf", {name: [(1, 3, value)]})
    data = f'labels = ["toux forc\u00e9e"]\nlabels_from = "{"values" if how == "values" else "tiers"}"'
    for recording in ("S0.mp4", "S1.mp4"):
        assert annotated.targets(data, recording=recording) == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("other", ["Suction", "suc-tion", "SUCTION", "suktion", "suctions", "sucttion"])
def test_spellings_that_differ_by_little_are_asked_about_and_either_answer_is_taken(
    annotated: AnnotatedProject, other: str
) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}.eaf", {other if number % 2 else "suction": [(1, 3, "")]})
    with pytest.raises(AnnotationError, match=rf'{other}.*add under \[data\]: rename\."{other}" = "suction"'):
        annotated.targets('labels = ["suction"]')
    one = f'labels = ["suction"]\nrename."{other}" = "suction"'
    assert annotated.targets(one, recording="S1.mp4") == [0, 1, 1, 0, 0, 0]
    two = f'labels = ["suction"]\nrename."{other}" = "{other}"'
    assert annotated.targets(two, recording="S1.mp4") == [0] * 6


def test_values_of_one_entry_of_a_vocabulary_are_read_by_its_id_and_asked_about_in_two_languages(
    annotated: AnnotatedProject,
) -> None:
    for number, value in enumerate(("left", "", "left", "left")):
        path = annotated.eaf(f"S{number}.eaf", {"hand": [(1, 2, value), (4, 5, value)]})
        text = path.read_text().replace('TYPE_REF="interval"', 'TYPE_REF="coded"')
        path.write_text(text.replace("TIME_SLOT_REF1", 'CVE_REF="e1" TIME_SLOT_REF1').replace(END, VOCABULARY))
    by_values = 'labels_from = "values"\nlabels = ["left"]'
    assert annotated.targets(by_values, recording="S1.mp4") == [0, 1, 0, 0, 1, 0]
    path.write_text(path.read_text().replace("VALUE>left</ANNOTATION", "VALUE>links</ANNOTATION"))
    with pytest.raises(AnnotationError, match=r'one spelling.*rename\."links" = "left"'):
        annotated.targets(by_values)


def test_labels_that_a_digit_a_first_letter_or_a_short_word_tells_apart_are_not_asked_about(
    annotated: AnnotatedProject,
) -> None:
    names = ["hand 1", "hand 2", "walking", "talking", "grasp L", "grasp R", "on", "off"]
    every(annotated, {name: [(1, 3, "")] for name in names})
    assert len(annotated.targets('labels = ["hand 1", "walking", "grasp L", "on"]')) == 6
