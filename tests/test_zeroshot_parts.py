"""What zero-shot methods are made of: lists that rules allow, prompts as files, choices out-of-fold, controls."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import FeatureCacheError, SettingsError
from heads.zeroshot.choosing import choose
from heads.zeroshot.controls import controls_document, other_sessions_clips
from heads.zeroshot.lists import MOST_LISTS, Rules, allowed_lists, check_rules, read_list
from heads.zeroshot.prompts import read_list_prompt, read_questions, unread_files, write_defaults

LABELS = ("baby_visible", "ventilation", "suction")
RULES = Rules((("ventilation", "suction"),), {"ventilation": ("baby_visible",), "suction": ("baby_visible",)})


def test_lists_that_break_a_rule_are_not_allowed_and_all_others_are() -> None:
    assert allowed_lists(LABELS, RULES) == {
        "none": (0, 0, 0),
        "baby visible": (1, 0, 0),
        "baby visible, ventilation": (1, 1, 0),
        "baby visible, suction": (1, 0, 1),
    }
    assert len(allowed_lists(LABELS, Rules())) == 8
    assert allowed_lists(LABELS[1:], RULES.among(LABELS[1:])) == {
        "none": (0, 0),
        "ventilation": (1, 0),
        "suction": (0, 1),
    }


WRONG_LABELS = {
    "a comma": (("a, b", "c"), Rules(), r"'a, b' holds a comma"),
    "alike when said": (("baby_visible", "Baby visible"), Rules(), r"sounds like 'baby_visible'"),
    "none": (("None",), Rules(), r"what an empty list is called"),
    "too many lists": (tuple(map(str, range(11))), Rules(), rf"at most {MOST_LISTS} allowed lists.*11 labels"),
    "a label that no list has": (("a", "b"), Rules((("a", "b"),), {"a": ("b",)}), r"leave 'a' in none"),
}


@pytest.mark.parametrize(("labels", "rules", "said"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_no_list_can_tell_apart_are_refused(labels: tuple[str, ...], rules: Rules, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        allowed_lists(labels, rules)


def test_a_rule_of_a_label_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"zeroshot\.implies must name labels.*'sution'"):
        check_rules(Rules((), {"ventilation": ("sution",)}), LABELS)


ANSWERS = {
    "Ventilation , BABY visible.": ({"ventilation", "baby_visible"}, (), True),
    "none": (set(), (), True),
    "None.": (set(), (), True),
    "no": (set(), ("no",), False),
    "": (set(), (), False),
    "baby visible, a nurse, cpr": ({"baby_visible"}, ("a nurse", "cpr"), False),
    "baby visible, baby visible": ({"baby_visible"}, (), False),
    "suction": ({"suction"}, (), False),
    "none, baby visible": ({"baby_visible"}, ("none",), False),
    "baby visible, ventilation, suction": (set(LABELS), (), False),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_a_free_answer_is_read_for_what_it_names_and_is_valid_only_as_an_allowed_list(text: str) -> None:
    on, hallucinated, is_valid = ANSWERS[text]
    read = read_list(text, LABELS, RULES, has_ended=True)
    assert (set(read.on), read.hallucinated, read.is_valid) == (on, hallucinated, is_valid)
    assert not read_list(text, LABELS, RULES, has_ended=False).is_valid
    assert read.is_parsable == (bool(on) or text.lower().startswith("none"))


def _write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / "zs-b" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_file_holds_several_wordings_and_questions_for_the_opposite(tmp_path: Path) -> None:
    text = "<video>\nIs {label} seen?\n---\n<video>\nDo you see {label}?\n--- not\n<video>\nIs {label} absent?\n"
    found = read_questions(_write(tmp_path, baby_visible=text), ["baby_visible"], ())
    assert [(one.wording, one.is_negated, one.prompt) for one in found] == [
        (0, False, "<video>\nIs baby visible seen?"),
        (1, False, "<video>\nDo you see baby visible?"),
        (0, True, "<video>\nIs baby visible absent?"),
    ]


WRONG_PROMPTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a label without a file": (
        lambda folder: _write(folder, suction="<video> ?"),
        r"ventilation has none: there is no",
    ),
    "an empty file": (lambda folder: _write(folder, ventilation=" \n"), r"ventilation\.txt must hold a question"),
    "an unknown placeholder": (
        lambda folder: _write(folder, ventilation="<video> {labell} ?"),
        r"ventilation\.txt must be of \{label\}, but it has \{labell\}",
    ),
    "a recording's name": (
        lambda folder: _write(folder, ventilation="<video> Is it S01_a?"),
        r"must not name a recording.*'S01_a'",
    ),
}


@pytest.mark.parametrize(("make", "said"), WRONG_PROMPTS.values(), ids=WRONG_PROMPTS)
def test_prompts_that_cannot_be_asked_are_named(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureCacheError, match=said):
        read_questions(make(tmp_path), ["ventilation"], ["x/S01_a.mp4", "video.mp4"])


def test_a_file_of_prompts_whose_name_is_no_label_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = _write(tmp_path, suction="<video> ?", suctoin="<video> ?", ventilation="<video> ?")
    (folder / "zs-b" / "suction.txt~").write_text("an editor's backup")
    said = unread_files(folder, "zs-b", ["suction", "ventilation"])
    assert said == ["prompts/zs-b/suctoin.txt is not read: it is no label; nearest: suction"]
    write_defaults(tmp_path, "zsc-co", LABELS, ("<video> ", ""))
    assert not unread_files(tmp_path, "zsc-co", LABELS)
    (tmp_path / "zsc-co" / "suction.txt").write_text("<video> ?")
    assert unread_files(tmp_path, "zsc-co", LABELS) == [
        "prompts/zsc-co/suction.txt is not read: zsc-co reads prompt.txt alone"
    ]


def test_default_prompts_name_labels_and_rules_and_are_never_written_over(tmp_path: Path) -> None:
    assert len(write_defaults(tmp_path, "zsc-co", LABELS, ("USER: <video>\n", " ASSISTANT:"))) == 1
    prompt = read_list_prompt(tmp_path, LABELS, RULES, ())
    assert prompt.startswith("USER: <video>\nWhich of these activities take place in this video: baby visible, ventil")
    assert "Only one of ventilation and suction takes place at a time. With ventilation there is always baby" in prompt
    assert prompt.endswith(" ASSISTANT:")
    assert not write_defaults(tmp_path, "zsc-co", LABELS, ("", ""))
    assert len(write_defaults(tmp_path, "zs-b", ["a/b"], ("<video> ", ""))) == 1
    assert len(read_questions(tmp_path, ["a/b"], ())) == 3


def test_the_wording_of_a_clip_is_chosen_without_its_session(tmp_path: Path) -> None:
    """Each session has its own best wording; a choice that saw the clip's session would take it."""
    draw = np.random.default_rng(0)
    sessions = np.repeat(np.array(["A", "B", "C", "D"]), 25)
    Y = (draw.random((100, 1)) < 0.5).astype(np.int8)
    noise = draw.random((4, 100, 1))
    candidates = np.where((sessions == np.array(["A", "B", "C", "D"])[:, None])[..., None], 0.1 + 0.8 * Y, noise)
    choice = choose(Y, candidates, sessions, jointly=False)
    own = np.concatenate([candidates[at, sessions == session] for at, session in enumerate(["A", "B", "C", "D"])])
    assert not np.isclose(choice.out_of_fold, own).all(axis=1).any()
    clear = np.stack([noise[0], 0.1 + 0.8 * Y])
    assert choose(Y, clear, sessions, jointly=True).of_label.tolist() == [1]


def test_a_label_without_a_second_wording_never_takes_it() -> None:
    Y = np.array([[1, 0], [0, 1]] * 10, np.int8)
    first, second = np.full((20, 2), 0.5), np.where(Y == 1, 0.9, 0.1)
    second[:, 1] = np.nan
    choice = choose(Y, np.stack([first, second]), np.repeat(np.array(["A", "B"]), 10), jointly=False)
    assert choice.of_label.tolist() == [1, 0]
    assert np.isnan(choice.f1[1, 1])


def test_controls_tell_a_score_that_follows_the_video_from_one_that_does_not() -> None:
    draw = np.random.default_rng(1)
    Y = (draw.random((120, 2)) < 0.4).astype(np.int8)
    sessions = np.repeat(np.array(list("ABCDEF")), 20)
    clips = [f"{ord(session):016x}-{k % 20 * 3}-{k % 20 * 3 + 3}" for k, session in enumerate(sessions)]
    thresholds = np.array([0.5, 0.5])
    seeing = controls_document(
        Y, Y.astype(float), thresholds, sessions, clips, labels=["a", "b"], black=np.array([0.0, 0.0])
    )
    assert seeing["answers"] == 1.0
    assert seeing["another_session"]["highest"] < 0.6
    assert seeing["black_video"] == 0.0
    assert seeing["onsets"]["a"]["mean_change"] == 1.0
    assert seeing["onsets"]["a"]["onsets"] == sum(
        Y[k, 0] < Y[k + 1, 0] for k in range(119) if sessions[k] == sessions[k + 1]
    )
    guessing = controls_document(Y, np.ones((120, 2)), thresholds, sessions, clips, labels=["a", "b"])
    assert guessing["answers"] == guessing["always_yes"] == guessing["another_session"]["lowest"]
    assert guessing["constant"] == ["a", "b"]


def test_another_sessions_clip_is_never_of_the_same_session() -> None:
    sessions = np.array(["A", "A", "B", "C"])
    for rows in other_sessions_clips(sessions, seed=0, times=5):
        assert (sessions[rows] != sessions).all()
    assert other_sessions_clips(sessions[:2], seed=0, times=5) == []
