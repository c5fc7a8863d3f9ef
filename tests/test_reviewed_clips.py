"""Reviews in the clip table: what they label, and that what was made with predictions in sight never scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurecache.annotations.reviews import How, Mark, review_path, save_review
from featurecache.clips.annotated import read_files
from featurecache.clips.clip import Clip
from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.clips.label_counts import LabelSources
from featurecache.clips.record import read_record
from featurecache.errors import AnnotationError, OutdatedTableWarning, TrainingDataError
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import Project
from featurecache.terminal.clips import label_audit
from featurecache.workflow.clips import MadeClips, make_clips
from featurecache.workflow.withdrawal import withdraw
from heads.report.summary import extent
from heads.runs import HeldOut
from heads.scoring.cross_fitting import leave_one_session_out
from heads.workflow.data import clips_seen
from tests.make_videos import write_video
from tests.projects import LABELS, make_project

SECOND_US = 1_000_000
Reviewing = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Six annotated sessions of six clips, and a seventh that nobody annotated."""
    made = make_project(tmp_path / "study", Path("unused"), clips=6)
    write_video(made.videos / "new.mp4", count=30, fps=5, metadata={"comment": "new"})
    make_clips(made)
    return made


@pytest.fixture
def reviewing(project: Project) -> Reviewing:
    """Saves a review: ventilation is on from 1 to 3 s, and 0 to 4 s are reviewed."""

    def write(
        name: str, *, blind: bool = False, how: How = "accepted", stretch: bool = True, content: str = "", at: str = ""
    ) -> Path:
        marks = [Mark(SECOND_US, 3 * SECOND_US, "ventilation", how, "anna", at)]
        if stretch:
            marks.append(Mark(0, 4 * SECOND_US, "", "reviewed", "anna", at))
        path = review_path(project.root / "reviewed", name, blind=blind)
        own = content or next(iter(clips_of(project, name))).content
        save_review(path, marks, labels=LABELS, recording=project.videos / name, content=own, author="anna", version="")
        return path

    return write


def clips_of(project: Project, name: str) -> list[Clip]:
    return [clip for clip in read_table(project.clips).clips if clip.recording == name]


def in_split(project: Project, split: str) -> str:
    return next(clip.recording for clip in read_table(project.clips).clips if clip.split == split)


def splits_of(project: Project) -> dict[str, str]:
    return {clip.recording: clip.split for clip in read_table(project.clips).clips}


def told(made: MadeClips) -> str:
    return "; ".join(f"{one.name}: {one.reason}" for one in made.unusable)


REVIEWED = [(0, 0), (1, 0), (1, 0), (0, 0)]


def test_reviewed_stretch_is_labelled_and_the_rest_stays_unlabelled(project: Project, reviewing: Reviewing) -> None:
    before = splits_of(project)
    reviewing("new.mp4")
    make_clips(project)
    assert [clip.targets for clip in clips_of(project, "new.mp4")] == [(None, None)] * 6  # reviews are asked for
    make_clips(project, with_reviewed=True)
    found = clips_of(project, "new.mp4")
    assert [clip.targets for clip in found] == [*REVIEWED, (None, None), (None, None)]
    assert {clip.split for clip in found} == {"train"}
    after = splits_of(project)
    assert {name: split for name, split in after.items() if name != "new.mp4"} == {
        name: split for name, split in before.items() if name != "new.mp4"
    }


def test_review_counts_within_its_stretches_and_the_annotator_elsewhere(project: Project, reviewing: Reviewing) -> None:
    name = in_split(project, "train")
    before = [clip.targets for clip in clips_of(project, name)]
    reviewing(name)
    make_clips(project, with_reviewed=True)
    assert [clip.targets for clip in clips_of(project, name)] == [*REVIEWED, *before[4:]]
    make_clips(project)
    assert [clip.targets for clip in clips_of(project, name)] == before


def test_only_a_blind_review_labels_the_test_split(project: Project, reviewing: Reviewing) -> None:
    name = in_split(project, "test")
    before = [clip.targets for clip in clips_of(project, name)]
    reviewing(name)
    made = make_clips(project, with_reviewed=True)
    assert [clip.targets for clip in clips_of(project, name)] == before
    assert f"review of {name}: its session is of the test split" in told(made)
    reviewing(name, blind=True, how="added")
    made = make_clips(project, with_reviewed=True)
    assert [clip.targets for clip in clips_of(project, name)] == [*REVIEWED, *before[4:]]
    assert "review it blind" not in told(made)
    assert splits_of(project)[name] == "test"
    assert clips_seen(project, read_table(project.clips)) == frozenset()


def test_clips_of_a_review_with_predictions_in_sight_are_known(project: Project, reviewing: Reviewing) -> None:
    reviewing("new.mp4")
    make_clips(project, with_reviewed=True)
    table = read_table(project.clips)
    assert clips_seen(project, table) == {clip.clip_id for clip in clips_of(project, "new.mp4")[:4]}
    record = read_record(project.table_record)
    assert list(record.seen.values()) == [[(0, 4 * SECOND_US)]]
    assert not record.without(next(iter(record.seen)) + "0" * 48, lambda _: False).seen
    make_clips(project)
    assert clips_seen(project, read_table(project.clips)) == frozenset()


def test_clips_labelled_in_sight_are_known_without_the_record_of_the_table(
    project: Project, reviewing: Reviewing
) -> None:
    path = reviewing("new.mp4")
    make_clips(project, with_reviewed=True)
    project.table_record.unlink()
    known = {clip.clip_id for clip in clips_of(project, "new.mp4")[:4]}
    assert clips_seen(project, read_table(project.clips)) == known
    path.write_text("no ELAN file")
    with pytest.raises(AnnotationError):
        clips_seen(project, read_table(project.clips))


def test_labels_of_a_restored_table_are_not_those_that_its_record_tells(project: Project, reviewing: Reviewing) -> None:
    reviewing("new.mp4")
    make_clips(project, with_reviewed=True)
    with_reviews = project.clips.read_bytes()
    make_clips(project)  # the record is of a table without reviews now
    project.clips.write_bytes(with_reviews)
    known = {clip.clip_id for clip in clips_of(project, "new.mp4")[:4]}
    assert clips_seen(project, read_table(project.clips)) == known
    assert clips_seen(project, read_table(project.clips).of_labels(LABELS[:1])) == known


def test_edit_of_another_recording_makes_no_unused_review_count(project: Project, reviewing: Reviewing) -> None:
    name, other = in_split(project, "test"), in_split(project, "train")
    reviewing(name)
    make_clips(project, with_reviewed=True)  # which leaves that review out
    lines = project.clips.read_text().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if f",{other}," in line)
    del lines[at]
    project.clips.write_text("".join(lines))
    assert clips_seen(project, read_table(project.clips)) == frozenset()


def test_table_tells_how_many_labels_are_of_annotators_of_reviews_and_merely_accepted(
    project: Project, reviewing: Reviewing
) -> None:
    at = "2026-11-30T17:00:00+00:00"
    reviewing("new.mp4", at=at)
    reviewing(in_split(project, "train"), how="corrected", at=at)
    reviewing(in_split(project, "test"), blind=True, how="added", at=at)
    assert make_clips(project).audit.sources == LabelSources(annotators=36)
    found = make_clips(project, with_reviewed=True).audit
    # In two clips something was corrected; all else of both reviews stayed as predicted.
    assert found.sources == LabelSources(annotators=28, blind=4, in_sight=8, accepted=6)
    assert read_record(project.table_record).sources == found.sources
    words = "28 by annotators, 4 by blind review, 8 by review with predictions in sight, of which 6 merely accepted"
    assert f"labelled {words}" in list(label_audit(found))
    assert words in extent(read_table(project.clips), found.sources)


def test_reviewed_end_in_which_nothing_happens_is_no_forgotten_one(project: Project) -> None:
    content = clips_of(project, "new.mp4")[0].content
    path = review_path(project.root / "reviewed", "new.mp4", blind=True)
    marks = [Mark(0, SECOND_US, "ventilation", "added"), Mark(0, 6 * SECOND_US, "", "reviewed")]
    save_review(
        path, marks, labels=LABELS, recording=project.videos / "new.mp4", content=content, author="anna", version=""
    )
    warnings = make_clips(project, with_reviewed=True).audit.warnings
    assert not [line for line in warnings if "annotated_span" in line]


def test_review_follows_its_renamed_recording_and_one_without_recording_is_named(
    project: Project, reviewing: Reviewing
) -> None:
    reviewing("new.mp4")
    path = reviewing("S0.mp4", content="f" * 16)
    path.rename(path.with_name("far.mp4.reviewed.eaf"))
    (project.videos / "new.mp4").rename(project.videos / "other.mp4")
    made = make_clips(project, with_reviewed=True)
    assert [clip.targets for clip in clips_of(project, "other.mp4")][:4] == REVIEWED
    assert "review of far.mp4: no usable recording of that content in the videos folder; add the video" in told(made)


@pytest.mark.parametrize("is_after", [False, True])
def test_blind_review_is_independent_unless_predictions_were_seen_before(
    project: Project, reviewing: Reviewing, is_after: bool
) -> None:
    name = in_split(project, "train")
    reviewing(name, at="2026-11-30T17:00:00+00:00")
    reviewing(name, blind=True, how="added", at=f"2026-11-30T{18 if is_after else 16}:00:00+00:00")
    made = make_clips(project, with_reviewed=True)
    assert [clip.targets for clip in clips_of(project, name)][:4] == REVIEWED
    seen = {clip.clip_id for clip in clips_of(project, name)[:4]} if is_after else set()
    assert clips_seen(project, read_table(project.clips)) == seen
    assert ("it is not blind there" in told(made)) == is_after


def test_commands_tell_when_a_review_of_the_table_has_changed(project: Project, reviewing: Reviewing) -> None:
    path = reviewing("new.mp4")
    check_table(project, use="targets")  # a table without reviews: those that come are not told
    make_clips(project, with_reviewed=True)
    check_table(project, use="targets")
    path.write_bytes(path.read_bytes().replace(b"accepted by", b"corrected by"))
    with pytest.warns(OutdatedTableWarning, match=r"reviews: 1 changed .*clips --with-reviewed"):
        check_table(project, use="targets")
    assert any("held reviews, this one does not" in one for one in make_clips(project).audit.warnings)


def test_review_of_a_withdrawn_recording_is_named(project: Project, reviewing: Reviewing) -> None:
    path = reviewing("new.mp4")
    (project.videos / "new.mp4").unlink()
    report = withdraw(project, clips_of(project, "new.mp4")[0].content, everything=True)
    found = dict(report.remaining)[path.relative_to(project.root).as_posix()]
    assert found == "its annotations, or they name it: remove them"


def test_review_among_annotations_is_none_of_them(project: Project, reviewing: Reviewing) -> None:
    documents, _, unread = read_files(reviewing("new.mp4").parent, ColumnSettings())
    assert not documents
    assert [one.name for one in unread] == ["new.mp4.reviewed.eaf"]
    assert "--with-reviewed" in unread[0].reason


def test_review_that_cannot_be_used_is_named(project: Project, reviewing: Reviewing) -> None:
    reviewing("new.mp4", stretch=False)
    reviewing("S0.mp4", content="f" * 16)
    reviewing("S1.mp4").write_text("no ELAN file")
    made = make_clips(project, with_reviewed=True)
    assert "review of new.mp4: no stretch of it is marked as reviewed" in told(made)
    assert "S0.mp4.reviewed.eaf: it was made of another video of the same name, which is gone" in told(made)
    assert "S1.mp4.reviewed.eaf" in told(made)


def test_out_of_fold_scores_leave_out_what_was_labelled_in_sight_of_predictions() -> None:
    ids = ("a", "b", "c")
    held_out = HeldOut(
        "out-of-fold", np.array([[0.1], [0.9], [0.4]]), np.array([[0], [1], [1]]), np.array(["S"] * 3), ids
    )
    left = held_out.without({"c"})
    assert left.clip_ids == ("a", "b")
    assert left.scores.tolist() == [[0.1], [0.9]]
    assert left.Y.tolist() == [[0], [1]]
    with pytest.raises(TrainingDataError, match="without sight of predictions"):
        held_out.without(ids)


def test_leave_one_session_out_trains_on_such_clips_and_does_not_score_them() -> None:
    draw = np.random.default_rng(0)
    Y = draw.integers(0, 2, (60, 2))
    sessions = np.repeat([f"S{at}" for at in range(6)], 10)
    ids = [f"{at:016x}-0-1000000" for at in range(60)]
    trained: list[int] = []

    def fit_scores(train: np.ndarray, _: np.ndarray, learnable: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        trained.append(len(train))
        return draw.random((len(held_out), int(learnable.sum())))

    scored = leave_one_session_out(fit_scores, Y, sessions, labels=LABELS, clip_ids=ids, seen=set(ids[50:]))
    assert (scored["n_clips"], scored["n_sessions"]) == (50, 5)
    assert set(trained) == {50}
