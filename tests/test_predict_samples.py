"""Recordings and a bundle that scores samples of several clips to a table of scores."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli import app
from featurecache import FeatureCache
from featurecache.clips.clip import clip_id
from featurecache.errors import BundleError, ClipTableError, OutputExistsError, UsageError
from featurecache.extraction.spaces import project_spaces
from featurecache.files import sha256_of_file
from featurecache.project.settings import Project
from heads.bundle import Bundle, load_bundle, save_bundle, tool_versions
from heads.clip_rule import ClipRule
from heads.models import AttentionHead, Front, LinearHead, part_weights
from heads.samples.joining import joined
from heads.settings import HeadSettings
from heads.terminal.predictions import predictions
from heads.workflow.predicting import Predictions, predict
from heads.workflow.predicting_samples import PredictedSamples
from tests.make_videos import write_video
from tests.projects import LABELS

SECOND = 1_000_000
GROUPS = ClipRule(SECOND, SECOND, SECOND // 2, "recording", 3, ())
CAMERAS = ClipRule(SECOND, SECOND, SECOND // 2, "moment", roles=("front", "top"))
EVENTS = ClipRule(SECOND, SECOND, SECOND // 2, "event", roles=("before", "after"))


def bundle_of(project: Project, folder: Path, rule: ClipRule, inputs: str = "final/mean") -> Path:
    """A head that was never trained: one that weighs parts, or a linear one on joined parts."""
    space = next(iter(project_spaces(project)[1].values()))
    torch.manual_seed(0)
    front = Front(32) if inputs == "final/mean" else Front(66, part_widths=[32, 32, 1, 1])
    head = AttentionHead(front, 2) if inputs == "final/mean" else LinearHead(front, 2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=3)
    settings = HeadSettings(kind="attention" if inputs == "final/mean" else "linear", inputs=inputs)
    save_bundle(Bundle(head, LABELS, np.array([0.5, 0.4]), settings, (space,), tool_versions(), clips=rule), folder)
    return folder


def scored(found: Predictions) -> PredictedSamples:
    assert found.samples is not None
    return found.samples


def ids_of(path: Path, count: int = 4) -> list[str]:
    return [clip_id(sha256_of_file(path), start * SECOND, (start + 1) * SECOND) for start in range(count)]


def test_groups_of_a_new_recording_are_scored_as_the_head_scores_them_and_weights_stand_beside(
    bundled: Project, tmp_path: Path
) -> None:
    folder, out = bundle_of(bundled, tmp_path / "bundle", GROUPS), tmp_path / "out"
    found = scored(predict(bundled, [bundled.videos / "S0.mp4"], bundle=folder, out=out))
    ids, bundle, cache = ids_of(bundled.videos / "S0.mp4"), load_bundle(folder), FeatureCache.open(bundled.cache)
    assert [sample.clip_ids for sample in found.samples] == [tuple(ids[:3]), tuple(ids[3:])]
    X = np.full((2, 3, 32), np.nan, np.float32)
    X[0], X[1, 0] = cache.load(ids[:3]), cache.load(ids[3:])[0]
    np.testing.assert_allclose(found.scores, bundle.scores(X, fingerprint=bundle.fingerprint), rtol=1e-6)
    rows = list(csv.reader((out / "predictions.csv").read_text().splitlines()))
    assert rows[0][:5] == ["sample", "clips", "absent", "could_not_be_extracted", "fitted_on"]
    assert rows[0][5:] == ["score ventilation", "on ventilation", "score stimulation", "on stimulation"]
    assert rows[1][:5] == ["S0.mp4 from 0 s", "+".join(ids[:3]), "0", "0", "0"]
    assert [row[6::2] for row in rows[1:]] == (found.scores >= [0.5, 0.4]).astype(int).astype(str).tolist()
    weights = list(csv.reader((out / "part_weights.csv").read_text().splitlines()))
    assert [row[1] for row in weights[1:]] == ids
    own = part_weights(bundle.head, X)
    assert [float(row[2]) for row in weights[1:]] == pytest.approx([*own[0, :, 0], 1.0], abs=1e-4)
    document = json.loads((out / "predictions.json").read_text())
    assert (document["kind"], document["samples"][1]["parts"]) == ("featurecache samples", ids[3:])


def test_a_table_of_scores_that_somebody_changed_is_not_replaced(bundled: Project, tmp_path: Path) -> None:
    folder, out = bundle_of(bundled, tmp_path / "bundle", GROUPS), tmp_path / "out"
    for name in ("S0.mp4", "S1.mp4"):
        predict(bundled, [bundled.videos / name], bundle=folder, out=out)
    table = out / "predictions.csv"
    assert "S1.mp4" in table.read_text()
    table.write_text(table.read_text() + "mine\n")
    with pytest.raises(OutputExistsError, match=r"predictions\.csv is not as predict wrote it"):
        predict(bundled, [bundled.videos / "S0.mp4"], bundle=folder, out=out)
    assert table.read_text().endswith("mine\n")


def test_cameras_that_start_together_are_one_sample_and_one_that_is_not_there_is_absent(
    bundled: Project, tmp_path: Path
) -> None:
    pattern = dataclasses.replace(bundled.settings.data, session_from="pattern", session_pattern="^([A-Z]+)")
    own = dataclasses.replace(bundled, settings=dataclasses.replace(bundled.settings, data=pattern))
    paths = [tmp_path / f"{name}.mp4" for name in ("A_front", "A_top", "B_top", "C_side", "7_top")]
    for number, path in enumerate(paths):
        write_video(path, count=10, fps=5, metadata={"comment": f"camera {number}"})
    folder = bundle_of(own, tmp_path / "bundle", CAMERAS, "concat(final/mean)")
    found = predict(own, paths, bundle=folder, out=tmp_path / "out")
    assert (found.failed[0].name, "the pattern" in found.failed[0].reason) == ("7_top.mp4", True)
    assert [(one.name, one.reason) for one in found.failed[1:]] == [
        ("C_side.mp4", "its camera 'side' is none of the bundle's: front, top; rename it")
    ]
    front, top, alone = (ids_of(path, 2) for path in paths[:3])
    assert [sample.parts for sample in scored(found).samples] == [
        *zip(front, top, strict=True),
        *(("", one) for one in alone),
    ]
    X = np.full((1, 2, 32), np.nan, np.float32)
    X[0, 1] = FeatureCache.open(own.cache).load(alone[:1])[0]
    bundle = load_bundle(folder)
    expected = bundle.scores(joined(X, "concat"), fingerprint=bundle.fingerprint)
    np.testing.assert_allclose(scored(found).scores[2:3], expected, rtol=1e-6)
    shown = [piece for piece in predictions(found) if not isinstance(piece, str)]
    assert any("C_side.mp4" in str(piece) for piece in shown)
    assert found.is_partial, "a recording without a sample is told by the exit code"


HEADER = "sample,part,role,order,note\n"


def bundle_with_pairs(project: Project, folder: Path) -> Path:
    return bundle_of(project, folder, EVENTS, "concat(final/mean)")


def test_samples_that_need_an_annotation_come_in_a_table(bundled: Project, tmp_path: Path) -> None:
    folder, ids = bundle_with_pairs(bundled, tmp_path / "bundle"), ids_of(bundled.videos / "S0.mp4")
    recordings = [bundled.videos / "S0.mp4", bundled.videos / "S1.mp4"]
    with pytest.raises(BundleError, match=r"before and after an event, which nobody .* predict --samples FILE\.$"):
        predict(bundled, recordings, bundle=folder, out=tmp_path / "out")
    table = tmp_path / "new.csv"
    table.write_text(
        f"{HEADER}=cmd(),{ids[0]},before,1,x\n=cmd(),{ids[2]},after,2,y\nq,,before,1,\nq,{ids[3]},after,2,\n"
    )
    found = predict(bundled, recordings, bundle=folder, out=tmp_path / "out", samples=table)
    assert [(one.name, one.parts) for one in scored(found).samples] == [
        ("=cmd()", (ids[0], ids[2])),
        ("q", ("", ids[3])),
    ]
    assert (tmp_path / "out/predictions.csv").read_text().splitlines()[1].startswith("'=cmd(),")
    assert [(one.name, one.reason) for one in found.failed] == [("S1.mp4", "no sample of new.csv has a clip of it")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            "p,ffffffffffffffff-0-1000000,before,1,",
            "line 2, column part: .* a clip_id of the recordings that are given",
        ),
        ("p,{0}-0-2000000,before,1,", "line 2, column part: .* of the bundle's length"),
        ("p,{0}-9000000-10000000,before,1,", "line 2, column part: "),
        ("p,{0}-00-1000000,before,1,", "line 2, column part: "),
        ("p,{0}-0-1000000,during,1,", "line 2, column role: .* one of the bundle's, before, after, but it is 'during'"),
        ("p,{0}-0-1000000,,1,", "line 2, column role: .* one of the bundle's, before, after, but it is ''"),
        ("p,,before,1,", "line 2, column part: a sample must have a clip"),
    ],
)
def test_a_table_that_does_not_fit_the_recordings_or_the_bundle_is_refused_by_line(
    bundled: Project, tmp_path: Path, row: str, words: str
) -> None:
    folder, path, table = bundle_with_pairs(bundled, tmp_path / "b"), bundled.videos / "S0.mp4", tmp_path / "new.csv"
    table.write_text(HEADER + row.format(ids_of(path)[0].partition("-")[0]) + "\n")
    with pytest.raises(ClipTableError, match=words):
        predict(bundled, [path], bundle=folder, out=tmp_path / "out", samples=table)


def test_what_cannot_be_extracted_is_a_lost_part_or_no_score_and_the_exit_code_tells(
    bundled: Project, tmp_path: Path
) -> None:
    folder, path = bundle_with_pairs(bundled, tmp_path / "bundle"), bundled.videos / "S0.mp4"
    torn, ids = tmp_path / "torn.mp4", ids_of(path)
    torn.write_bytes(b"no video")
    gone = ids_of(torn, 2)
    table, out = tmp_path / "new.csv", tmp_path / "out"
    table.write_text(
        f"{HEADER}p,{ids[0]},before,1,\np,{gone[1]},after,2,\nq,{gone[0]},before,1,\nr,{ids[1]},after,2,\n"
    )
    options = ["--bundle", str(folder), "--samples", str(table), "--out", str(out), "--config", str(bundled.root)]
    done = CliRunner().invoke(app, ["predict", str(path), str(torn), *options, "--json"])
    assert done.exit_code == 3, done.output
    document = json.loads(done.stdout)["samples"]
    assert [(one["sample"], one["absent"], one["could_not_be_extracted"]) for one in document["samples"]] == [
        ("p", 0, 1),
        ("r", 1, 0),
    ]
    assert [one["sample"] for one in document["unscored"]] == ["q"]
    assert "no score: q: none of its parts could be extracted" in " ".join(done.stderr.split())


def test_samples_that_the_bundle_was_fitted_on_are_marked(bundled: Project, tmp_path: Path) -> None:
    folder, path = bundle_of(bundled, tmp_path / "bundle", GROUPS), bundled.videos / "S0.mp4"
    seen = {ids_of(path)[0][:16]: [(0, SECOND)]}
    save_bundle(dataclasses.replace(load_bundle(folder), fitted_on=seen), folder)
    assert scored(predict(bundled, [path], bundle=folder, out=tmp_path / "out")).seen == {"S0.mp4 from 0 s"}


def test_what_does_not_fit_a_bundle_of_samples_is_said_before_any_work(bundled: Project, tmp_path: Path) -> None:
    paths, out = [bundled.videos / "S0.mp4"], tmp_path / "out"
    folder = bundle_of(bundled, tmp_path / "bundle", GROUPS)
    with pytest.raises(UsageError, match="Leave out --stride"):
        predict(bundled, paths, bundle=folder, out=out, stride_s=1.0)
    with pytest.raises(UsageError, match="scores clips"):
        predict(bundled, paths, out=out, samples=tmp_path / "new.csv")
    for unknown in ({"roles": None}, {"most_clips": None}):
        old = bundle_of(bundled, tmp_path / "old", dataclasses.replace(GROUPS, **unknown))
        with pytest.raises(BundleError, match=r"an earlier version trained it\. Train it again"):
            predict(bundled, paths, bundle=old, out=out)
        shutil.rmtree(old)
    with pytest.raises(ClipTableError, match=r"new.csv does not exist. Write it, with columns sample, part"):
        predict(bundled, paths, bundle=folder, out=out, samples=tmp_path / "new.csv")
    wide = bundle_of(bundled, tmp_path / "wide", GROUPS, "concat(final/mean)")
    (unscored,) = scored(predict(bundled, paths, bundle=wide, out=out)).unscored
    assert unscored.reason == "it has 3 parts, and the bundle reads 2 side by side"


def test_a_bundle_is_not_used_where_roles_stand_in_another_order() -> None:
    swapped = dataclasses.replace(CAMERAS, roles=("top", "front"))
    with pytest.raises(
        BundleError, match=r"their roles were front, top and are top, front\. Make samples with the same"
    ):
        swapped.check_fitted(CAMERAS)
    swapped.check_fitted(dataclasses.replace(CAMERAS, roles=None))  # of an earlier version, which did not keep them
    assert ClipRule.from_mapping(CAMERAS.to_mapping()) == CAMERAS
    assert set(dataclasses.replace(GROUPS, samples="none", most_clips=None, roles=None).to_mapping()) == {
        "length_us",
        "stride_us",
        "min_overlap_us",
    }, "a bundle of clips keeps the document, and so the digest, that it had"
