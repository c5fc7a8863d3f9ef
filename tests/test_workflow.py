"""The way from recordings to timelines through the library alone, as a notebook takes it, and each guard on it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from featurecache import FeatureCache, extract, make_clips, make_demo, open_project
from featurecache.clips.csv_file import read_table
from featurecache.errors import (
    BundleError,
    ClipTableError,
    MissingFeaturesError,
    OutdatedTableError,
    SettingsError,
    TimelineError,
    UsageError,
)
from featurecache.extraction.failures import known_failures
from featurecache.project.settings import Project
from featurecache.spec import sealed
from heads import evaluate, evaluate_bundle, finetune_lora, leave_one_session_out, load_bundle, predict, train, tune
from heads.clip_rule import ClipRule
from heads.loading import load_split
from heads.timelines.tuning import load_timeline
from heads.workflow import report
from heads.workflow.evaluating import with_details
from heads.workflow.training import TrainedRun
from tests.projects import failed_clip_ids


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, TrainedRun]:
    """A small demo, extracted and tuned once, with a damaged recording; tests that change it work on copies."""
    project = make_demo(tmp_path_factory.mktemp("made") / "demo", sessions=8, recordings_per_session=1)
    make_clips(project)
    trains = next(clip for clip in read_table(project.clips).clips if clip.split == "train").recording
    content = bytearray((project.videos / trains).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    (project.videos / trains).write_bytes(content)
    assert not make_clips(project).unusable
    assert {one.recording for one in extract(project).failed} == {trains}
    return project, tune(project, trials=6)


@pytest.fixture
def project(made: tuple[Project, TrainedRun], tmp_path: Path) -> Project:
    return open_project(Path(shutil.copytree(made[0].root, tmp_path / "demo")))


def swap_splits(project: Project, first: str, second: str) -> None:
    text = project.clips.read_text().replace(f",{first},", ",other,").replace(f",{second},", f",{first},")
    project.clips.write_text(text.replace(",other,", f",{second},"))


def looks(project: Project) -> int:
    log = project.runs / "test_looks.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_notebook_goes_from_the_demo_to_timelines_as_the_commands_do(
    made: tuple[Project, TrainedRun], project: Project, tmp_path: Path
) -> None:
    run = made[1]
    assert json.loads((run.folder / "best.json").read_text()) == run.best
    assert run.timeline is not None
    scores = evaluate(project)
    assert json.loads((project.runs / "tune/test_metrics.json").read_text()) == scores.metrics
    assert (scores.looks, looks(project), scores.bundles[0].method) == (1, 1, "FT-LC")
    assert scores.all_positive["macro_f1"] is not None
    told = []
    trained = train(project, on_data=told.append)
    assert told[0].splits["train"].left_out == len(failed_clip_ids(project)), "clips that could not be extracted"
    selected = project.settings.features.select
    assert trained.best["inputs"] == selected[0]
    assert set(run.best["inputs"].split("+")) <= set(selected)
    both = evaluate(project, against=trained.bundle)
    assert both.comparison is not None
    assert both.looks == 2
    path = next(project.videos.rglob("*.mp4"))
    ((timeline, files),) = predict(project, [path], out=tmp_path / "out").written
    assert timeline.tuned
    assert files.eaf.exists()
    assert report(project).methods


def test_a_bundle_is_refused_on_sessions_that_trained_it_whoever_asks(project: Project) -> None:
    swap_splits(project, "train", "test")
    with pytest.raises(BundleError, match=r"sessions that it has not seen, but \d of the test split \(.*or tune"):
        evaluate(project)
    bundle = load_bundle(project.runs / "tune/bundle")
    table, cache, known = read_table(project.clips), FeatureCache.open(project.cache), known_failures(project)
    own = load_split(table, "test", cache, bundle.selected, known=known).data
    with pytest.raises(BundleError, match="sessions that it has not seen"):
        evaluate_bundle(
            bundle,
            own.of(bundle.settings.inputs),
            split="test",
            fingerprint=bundle.fingerprint,
            log=project.runs / "test_looks.jsonl",
        )
    assert looks(project) == 0


def test_a_bundle_is_refused_on_the_rest_of_a_session_of_which_another_stretch_trained_it(project: Project) -> None:
    clips = read_table(project.clips).clips
    first = next(clip for clip in clips if clip.split == "train")
    document = project.runs / "tune/bundle/bundle.json"
    bundle = json.loads(document.read_text())
    bundle["fitted_on"][first.content] = [[first.start_us, first.end_us]]
    document.write_text(json.dumps(sealed({name: value for name, value in bundle.items() if name != "sha256"})))
    lines = project.clips.read_text().splitlines()
    for at, line in enumerate(lines):
        cells = line.split(",")
        if cells[2] == first.session:
            targets = [""] * (len(cells) - 6) if cells[0] == first.clip_id else cells[6:]
            lines[at] = ",".join([*cells[:3], "test", *cells[4:6], *targets])
    project.clips.write_text("\n".join(lines) + "\n")
    with pytest.raises(BundleError, match=rf"not seen, but 1 of the test split \({first.session}\)"):
        evaluate(project)


def test_a_bundle_keeps_its_own_clips_and_is_refused_on_others(project: Project, tmp_path: Path) -> None:
    path = next(project.videos.rglob("*.mp4"))
    own = project.settings.clips
    assert load_bundle(project.runs / "tune/bundle").clips == ClipRule(own.length_us, own.stride_us, own.min_overlap_us)

    def changed(**clips: object) -> Project:
        settings = dataclasses.replace(project.settings, clips=dataclasses.replace(own, **clips))
        return dataclasses.replace(project, settings=settings)

    longer = changed(length_s=2 * own.length_s)
    ((timeline, _),) = predict(longer, [path], out=tmp_path / "out").written
    assert timeline.length_us == own.length_us
    assert timeline.stride_us == own.length_us // 2
    for other in (longer, changed(stride_s=2 * own.stride_s), changed(min_overlap="any")):
        with pytest.raises(OutdatedTableError, match=r"was .* and is"):
            evaluate(other)
    project.table_record.unlink()  # a table that somebody else made, as far as anybody can tell
    with pytest.raises(OutdatedTableError, match=r"length_s is .* and clip .* lasts"):
        train(longer)
    make_clips(longer, force=True)
    line = rf"Set length_s = {float(own.length_s):g} under \[clips\]"
    for act in (evaluate, leave_one_session_out, lambda one: finetune_lora(one, dry_run=True)):
        with pytest.raises(BundleError, match=f"length was .* and is .*{line}"):
            act(longer)
    assert looks(project) == 0


def test_evaluate_takes_no_look_at_other_labels_or_by_rules_of_unknown_ones(project: Project) -> None:
    rules = {"exclusive": (("suction", "x"),)}
    ruled = dataclasses.replace(project, settings=dataclasses.replace(project.settings, timeline=rules))
    before = {path: path.stat().st_mtime_ns for path in project.runs.rglob("*")}
    for act in (evaluate, train, tune, lambda one: predict(one, [])):
        with pytest.raises(TimelineError, match=r"'x' is none of .*\. Correct exclusive"):
            act(ruled)
    assert {path: path.stat().st_mtime_ns for path in project.runs.rglob("*")} == before
    for wrong in ("x=0.1", "suction", "suction=1", "suction=often", "=0.1"):
        with pytest.raises(UsageError, match=r"a prevalence must be .*--prevalence baby_visible=0\.05"):
            evaluate(project, prevalence=[wrong])
    project.clips.write_text(project.clips.read_text().replace(",suction", ",aspiration", 1))
    for refused in (evaluate, leave_one_session_out):
        with pytest.raises(BundleError, match="own labels"):
            refused(project)
    assert looks(project) == 0


def test_a_split_that_cuts_sessions_is_refused_unless_forced_and_then_said_in_every_document(project: Project) -> None:
    project.clips.write_text(project.clips.read_text().replace(",train,", ",test,", 1))
    for act in (train, tune, evaluate):
        with pytest.raises(ClipTableError, match="allow_clip_level"):
            act(project)
    splits = dataclasses.replace(project.settings.splits, allow_clip_level=True)
    forced = dataclasses.replace(project, settings=dataclasses.replace(project.settings, splits=splits))
    told = []
    run = train(forced, on_data=told.append)
    assert told[0].splits["train"].purged == 1
    for document in (run.best, run.metrics):
        assert (document["split_level"], document["purged_clips"]["train"]) == ("clip", 1)
    assert "splits cut sessions" in evaluate(forced, run.bundle).metrics["split_warning"]


def test_training_refuses_features_that_the_project_does_not_make_or_the_cache_lacks(project: Project) -> None:
    section = {"inputs": "vision/mean"}
    other = dataclasses.replace(project, settings=dataclasses.replace(project.settings, train=section))
    with pytest.raises(SettingsError, match=r"must be features that features\.select selects"):
        train(other)
    for segments in (project.cache / "spaces").glob("*/segments"):
        shutil.rmtree(segments)
    with pytest.raises(MissingFeaturesError, match="featurecache extract"):
        train(project)


def test_options_that_exclude_each_other_are_refused_before_any_work(project: Project) -> None:
    with pytest.raises(UsageError, match="Leave one out"):
        extract(project, devices="cpu", ray="local")
    with pytest.raises(UsageError, match="stride"):
        predict(project, [], stride_s=-1)
    with pytest.raises(UsageError, match=r"\.html"):
        report(project, out=project.clips)
    bundle = project.runs / "tune/bundle"
    with pytest.raises(BundleError, match="run folders of their own"):
        evaluate(project, bundle, against=bundle)


def test_leaving_sessions_out_counts_as_a_look_and_a_dry_run_of_adapters_trains_nothing(project: Project) -> None:
    scores = leave_one_session_out(project)
    assert (scores.metrics["n_sessions"], scores.metrics["looks"], looks(project)) == (8, 1, 1)
    planned = finetune_lora(project, dry_run=True)
    assert planned.run is None
    assert planned.extraction_forecast is not None
    assert not (project.runs / "lora").exists()


def test_a_bundle_appears_whole_with_its_timeline_settings(
    made: tuple[Project, TrainedRun], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("heads.workflow.training.tune_on_held_out", stop)
    for act in (train, lambda one: tune(one, trials=6)):
        with pytest.raises(KeyboardInterrupt):
            act(project)
    assert not (project.runs / "train" / "bundle").exists(), "one without its settings would predict otherwise"
    assert load_timeline(project.runs / "tune" / "bundle") == made[1].timeline, "the earlier bundle is still whole"


def test_what_evaluate_found_besides_stays_where_compare_writes_the_same_scores(tmp_path: Path) -> None:
    path, scores = tmp_path / "test_metrics.json", {"per_class": {"a": {"f1": 0.1}}, "per_session": []}
    details = {"overlap_sensitivity": [{"share": 0.5}]}
    assert with_details(path, scores) == scores
    path.write_text(json.dumps({**scores, **details, "looks": 1}))
    assert with_details(path, {**scores, "looks": 2}) == {**scores, **details, "looks": 2}
    other = {**scores, "per_class": {"a": {"f1": 0.2}}}
    assert with_details(path, other) == other
