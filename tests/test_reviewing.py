"""The whole of a review, on real videos and a tiny real model: what the page shows, and training again on it."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("bottle", reason="the page needs the extra `review`")

from featurecache import extract, make_clips
from featurecache.annotations.reviews import Mark, review_path, save_review
from featurecache.clips.csv_file import read_table
from featurecache.errors import BundleError, FeatureCacheError, TrainingDataError, UsageError
from featurecache.project.settings import Project, open_project
from heads import compare, evaluate, finetune_lora, predict, train
from heads.bundle import load_bundle
from heads.workflow.retraining import retrain
from heads.workflow.reviewing import OpenReview, Reviewing, _retrained, _reviewable, review
from heads.workflow.suggesting import suggest
from tests.make_videos import write_video
from tests.projects import LABELS, make_project

SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Eight annotated sessions, a ninth that nobody annotated, and a recording from elsewhere; a head on them."""
    made = make_project(tmp_path_factory.mktemp("reviewing") / "study", tiny_model, sessions=8, clips=4)
    (made.root / "outside").mkdir()
    write_video(made.videos / "new.mp4", count=30, fps=5, metadata={"comment": "new"})
    outside = write_video(made.root / "outside" / "far.mp4", count=20, fps=5, metadata={"comment": "far"})
    make_clips(made)
    extract(made)
    run = train(made)
    predict(made, [outside], bundle=run.bundle)
    return made


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    return open_project(Path(shutil.copytree(trained.root, tmp_path / "study")))


def opened(project: Project, bundle: Path) -> tuple[OpenReview, Reviewing]:
    """The page as it opens, and what is left when it is ended at once."""
    pages: list[OpenReview] = []

    def end(page: OpenReview) -> None:
        pages.append(page)
        raise KeyboardInterrupt

    left = review(project, bundle, reviewer="anna", on_open=end)
    return pages[0], left


def save(project: Project, name: str, *, blind: bool = False) -> None:
    content = next(clip.content for clip in read_table(project.clips).clips if clip.recording == name)
    marks = [Mark(SECOND_US, 3 * SECOND_US, "ventilation", "accepted"), Mark(0, 4 * SECOND_US, "", "reviewed")]
    path = review_path(project.root / "reviewed", name, blind=blind)
    save_review(path, marks, labels=LABELS, recording=project.videos / name, content=content, author="anna", version="")


def test_page_has_every_recording_with_features_and_one_page_at_a_time(project: Project) -> None:
    bundle = project.runs / "train" / "bundle"
    page, left = opened(project, bundle)
    assert (page.recordings, page.left_out) == (10, ())  # of the table, and the one that predict found elsewhere
    assert (left.recordings, left.reviewed) == (10, 0)
    (project.predictions / "no.predicted.json").write_text('{"recording": {"content": "0123"}}')
    (project.predictions / "far.predicted.eaf").unlink()
    reasons = {one.name: one.reason for one in opened(project, bundle)[0].left_out}
    assert reasons.keys() == {"no.predicted.json", "far.predicted.json"}
    assert reasons["no.predicted.json"].startswith("it is no timeline")
    suggest(project)
    found, _ = _reviewable(project, bundle, load_bundle(bundle))
    assert {one.name: one.suggested for one in found if one.suggested} == {"new.mp4": [(1, 0, 6 * SECOND_US)]}
    save(project, "new.mp4", blind=True)
    assert opened(project, bundle)[1].reviewed == 1

    def again(_: OpenReview) -> None:
        with pytest.raises(UsageError, match="one page at a time"):
            opened(project, bundle)
        raise KeyboardInterrupt

    review(project, bundle, on_open=again)


def test_what_could_not_be_saved_is_said_before_the_page_opens(project: Project) -> None:
    bundle = project.runs / "train" / "bundle"
    with pytest.raises(UsageError, match="--reviewer"):
        review(project, bundle, reviewer="an\x01na", on_open=lambda _: pytest.fail("the page is open"))
    long = project.videos / f"{'n' * 225}.mp4"
    (project.videos / "new.mp4").rename(long)
    make_clips(project)
    (left_out,) = opened(project, bundle)[0].left_out
    assert left_out.name == long.name
    assert "5 bytes too long" in left_out.reason


def test_retraining_learns_from_reviews_and_scores_without_them(project: Project) -> None:
    bundle = project.runs / "train" / "bundle"
    save(project, "new.mp4")
    made = retrain(project, bundle)
    table = read_table(project.clips)
    independent = [
        clip for clip in table.clips if clip.labelled and clip.split != "test" and clip.recording != "new.mp4"
    ]
    assert made.result["reviewed_clips"] == 4
    assert made.result["clips"] == len(independent)
    assert made.result["sessions"] == len({clip.session for clip in independent})
    for side in ("before", "after"):
        assert 0 <= made.result[side]["macro_f1"] <= 1
    assert made.result["comparison"]["difference"] == pytest.approx(
        made.result["after"]["macro_f1"] - made.result["before"]["macro_f1"]
    )
    assert made.bundle == project.runs / "review" / "bundle"
    new = load_bundle(made.bundle)
    assert any(content == next(c.content for c in table.clips if c.recording == "new.mp4") for content in new.fitted_on)
    assert opened(project, made.bundle)[0].recordings == 10


def test_page_shows_sessions_that_trained_by_their_out_of_fold_scores_after_retraining(project: Project) -> None:
    save(project, "new.mp4")
    shown, _ = _retrained(project, project.runs / "train" / "bundle")
    bundle = project.runs / "review" / "bundle"
    fitted, _ = _reviewable(project, bundle, load_bundle(bundle))
    scores = [{one.name: (one.split, one.timeline["clips"]["scores"]) for one in side} for side in (shown, fitted)]
    assert scores[0].keys() == scores[1].keys()
    for name, (split, found) in scores[0].items():
        is_fitted = split in ("train", "validation") and name != "new.mp4"
        assert (found != scores[1][name][1]) == is_fitted


def test_evaluate_refuses_clips_labelled_in_sight_that_were_moved_to_the_test_split(project: Project) -> None:
    save(project, "new.mp4")
    make_clips(project, with_reviewed=True)
    rows = project.clips.read_text().splitlines(keepends=True)
    project.clips.write_text("".join(row.replace(",train,", ",test,") if "new.mp4" in row else row for row in rows))
    with pytest.raises(TrainingDataError, match=r"in sight of them label 4 of new\.mp4"):
        evaluate(project, project.runs / "train" / "bundle")
    with pytest.raises(FeatureCacheError, match=r"in sight of them label 4 of new\.mp4"):
        compare(project)


def test_clips_labelled_in_sight_of_predictions_end_no_fine_tuning(project: Project) -> None:
    bundle = project.runs / "train" / "bundle"
    before = finetune_lora(project, bundle, dry_run=True).plan
    validation = {clip.recording for clip in read_table(project.clips).clips if clip.split == "validation"}
    names = sorted(validation)
    save(project, names[0])
    make_clips(project, with_reviewed=True)
    after = finetune_lora(project, bundle, dry_run=True).plan
    assert (after.train_clips, after.validation_clips) == (before.train_clips, before.validation_clips - 4)
    for name in names[1:]:
        save(project, name)
    make_clips(project, with_reviewed=True)
    with pytest.raises(TrainingDataError, match="labelled without sight of predictions"):
        finetune_lora(project, bundle, dry_run=True)


def test_retraining_without_a_review_says_so(project: Project) -> None:
    with pytest.raises(TrainingDataError, match="nothing was reviewed"):
        retrain(project, project.runs / "train" / "bundle")


def test_retraining_refuses_a_bundle_that_fits_no_head(project: Project) -> None:
    with pytest.raises(BundleError):
        retrain(project, project.runs / "none" / "bundle")
