"""Boxes by recordings' names: which one the cache notes, after an import, a renaming and a withdrawal."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheFormatError, OutdatedTableError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project, open_project
from featurecache.store import forget, gc
from featurecache.store.boxes import StoredBoxes
from featurecache.store.exchange import export_features, import_features
from featurecache.terminal.extraction import plan_lines
from tests.cache_samples import digest, make_rows, space, write
from tests.commands import invoke
from tests.exchange_samples import seal
from tests.extraction_samples import extracted
from tests.projects import edit

CROP = {"*a*": [0.25, 0.5, 0.5, 0.5], "*b*": [0.0, 0.0, 0.5, 1.0]}
WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture
def cropped(tmp_path: Path) -> Path:
    """A cache of frames that were cut by the names of two recordings, each box noted."""
    path = tmp_path / "cropped"
    write(path, [*make_rows(6), *make_rows(3, "b")], of=space(preprocessing={"crop": CROP}))
    for name in "ab":
        StoredBoxes(path, CROP).note(digest(name), CROP[f"*{name}*"])
    return path


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_boxes_of_recordings_are_known_after_import_and_none_of_a_withdrawn_one_comes_back(
    cropped: Path, tmp_path: Path, suffix: str
) -> None:
    export_features(cropped, tmp_path / f"x{suffix}")
    new = tmp_path / "new"
    for _ in range(2):
        import_features(new, tmp_path / f"x{suffix}")
        stored = StoredBoxes(new, CROP)
        assert [stored.noted(digest(name)) for name in "ab"] == list(CROP.values())
        assert stored.is_other(digest("a"), WHOLE)
        assert not stored.is_other(digest("a"), CROP["*a*"])
    copied = (new / "boxes").glob("*")
    kept = {note.name: note.read_bytes() for note in copied}
    forget(new, digest("b"))
    import_features(new, tmp_path / f"x{suffix}")
    StoredBoxes(new, CROP).note(digest("b"), WHOLE)  # by a run that began before the withdrawal
    assert [StoredBoxes(new, CROP).noted(digest(name)) for name in "ab"] == [CROP["*a*"], None]
    for name, note in kept.items():
        (new / "boxes" / name).write_bytes(note)
    gc(new, apply=True)
    assert len(list((new / "boxes").iterdir())) == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([[0.1, 0.1, 0.5, 0.5]] * 9, "not one of its crop's for each recording"),
        ([CROP["*a*"]] * 5 + [CROP["*b*"]] * 4, "not one of its crop's for each recording"),
        ([[np.inf, 0.0, 0.5, 1.0]] * 9, "not one of its crop's for each recording"),
        ([0.5] * 9, r"its box are float64 of shape \(9,\)"),
        ([[0, 0, 1, 1]] * 9, "its box are int64"),
        ([WHOLE] * 9, "are of the box .* in the file and of the box .* in the cache"),
        ([[np.nan] * 4] * 9, "are of a box that is not noted in the file and of the box"),
    ],
)
def test_import_refuses_boxes_that_no_recording_has_or_that_mix_two_crops(
    cropped: Path, tmp_path: Path, box: list[object], message: str
) -> None:
    export_features(cropped, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["box"]
        file["box"] = box
    seal(tmp_path / "x.h5")
    before = sorted(cropped.rglob("*"))
    with pytest.raises(CacheFormatError, match=message) as refused:
        import_features(cropped, tmp_path / "x.h5")
    assert "\n" not in str(refused.value)
    assert sorted(cropped.rglob("*")) == before


def test_extract_ends_with_3_and_names_recordings_whose_stored_features_are_of_another_box(project: Project) -> None:
    edit(project.path, "frames = 4", 'frames = 4\ncrop = { "S*" = [0.25, 0.5, 0.5, 0.5], "T*" = [0.0, 0.0, 0.5, 1.0] }')
    assert extracted(open_project(project.root)) == 24
    for name in ("T1.mp4", "U1.mp4"):  # another box, and none
        next(project.videos.glob("?1.mp4")).rename(project.videos / name)
        result = invoke("extract", "--config", project.root, "--json")
        document = json.loads(result.stdout)
        assert (result.exit_code, document["failed"], document["without_their_box"]) == (3, [], [name])
        assert name in result.stderr
        table = read_table(project.clips)
        renamed = ClipTable((), [replace(one, recording=one.recording.replace("S1.mp4", name)) for one in table.clips])
        with pytest.raises(OutdatedTableError, match=f"those of {name} are of another name's"):
            RecordingBoxes(open_project(project.root)).refuse_others(renamed)
    project.clips.write_text(project.clips.read_text().replace("S1.mp4", name))
    for arguments in (["train"], ["neighbours", "--confusions"]):
        refused = invoke(*arguments, "--config", project.root)
        assert refused.exit_code == 1
        assert f"those of {name} are of another name's" in refused.stderr


def test_names_whose_boxes_are_all_of_whole_frames_refuse_no_features(project: Project) -> None:
    assert extracted(project) == 24
    edit(project.path, "frames = 4", 'frames = 4\ncrop = { "*" = [0, 0, 1, 1] }')
    assert plan_extraction(open_project(project.root)).mismatch.renamed == ()


def test_a_recording_that_was_renamed_to_another_box_is_named_and_never_mixes_two_crops(project: Project) -> None:
    boxes = '{ "S*" = [0.25, 0.5, 0.5, 0.5], "T*" = [0.0, 0.0, 0.5, 1.0] }'
    edit(project.path, "frames = 4", f"frames = 4\ncrop = {boxes}")
    cropped = open_project(project.root)
    (project.videos / "S0.mp4").rename(project.videos / "T0.mp4")  # before anything of it is there
    assert extracted(cropped, limit=22) == 22
    (project.videos / "S1.mp4").rename(project.videos / "T1.mp4")
    (project.videos / "S5.mp4").rename(project.videos / "T5.mp4")
    plan = plan_extraction(cropped)
    assert plan.mismatch.renamed == ("T1.mp4", "T5.mp4")
    assert "features of T1.mp4, T5.mp4 are of another box, that of an earlier name" in " ".join(
        map(str, plan_lines(plan))
    )
    assert {one.recording for one in plan.failures} == {"S5.mp4"}, "its other clips are there"
    assert (
        "of another box of features.crop, of the name that it had. Give it that name again" in plan.failures[0].reason
    )
    (project.videos / "T5.mp4").rename(project.videos / "S5.mp4")
    assert extracted(cropped) == 2
    table = read_table(project.clips)
    named = [replace(one, recording=one.recording.replace("S0", "T0")) for one in table.clips]
    RecordingBoxes(cropped).refuse_others(ClipTable((), named))
    renamed = [replace(one, recording=one.recording.replace("S1", "T1")) for one in named]
    for clips, name in ((table.clips, "S0"), (renamed, "T1")):
        with pytest.raises(
            OutdatedTableError, match=rf"those of {name}.mp4 are of another name's. .* featurecache clips"
        ):
            RecordingBoxes(cropped).refuse_others(ClipTable((), clips))
    notes = list((project.cache / "boxes").iterdir())
    assert len(notes) == 6
    forget(project.cache, clips[0].content)
    notes = list((project.cache / "boxes").iterdir())
    assert len(notes) == 5, "nothing stays of a withdrawn recording"
    shutil.move(project.cache / "boxes", project.root / "noted")
    assert len(plan_extraction(cropped).mismatch.renamed) == 5, "a box that is not noted may be any"
    shutil.move(project.root / "noted", project.cache / "boxes")
    export_features(project.cache, project.root / "features.npz")
    shutil.rmtree(project.cache)
    import_features(project.cache, project.root / "features.npz")
    assert plan_extraction(cropped).mismatch.renamed == ("T1.mp4",)


def test_boxes_for_all_frames_and_by_size_keep_the_feature_spaces_that_they_had(project: Project) -> None:
    made = {}
    for crop in ("[0.25, 0.1, 0.5, 0.8]", '{ "176x96" = [0.25, 0.1, 0.5, 0.8], "640x480" = [0.0, 0.0, 1.0, 1.0] }'):
        edit(project.path, "frames = 4", f"frames = 4\ncrop = {crop}")
        (space,) = project_spaces(open_project(project.root))[1].values()
        made[crop[0]] = space.inputs["preprocessing"]["crop"]
        edit(project.path, f"frames = 4\ncrop = {crop}", "frames = 4")
    assert made == {"[": [0.25, 0.1, 0.5, 0.8], "{": {"176x96": [0.25, 0.1, 0.5, 0.8]}}
