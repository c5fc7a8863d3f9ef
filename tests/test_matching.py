"""Annotations of single recordings are those that `clips` finds for the whole project."""

import dataclasses
import unicodedata
from pathlib import Path

import pytest

from featurecache.annotations import Interval, write_eaf
from featurecache.clips.inventory import take_inventory
from featurecache.clips.matching import annotated_spans, find_annotations
from featurecache.project.settings import Project, open_project
from tests.make_videos import write_video
from tests.projects import write_labels

SECOND = 1_000_000
OWN = [Interval(SECOND, 2 * SECOND, "ventilation")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for number, name in enumerate(("S1/cam.mp4", "S2/cam.mp4", "S3.mp4")):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, count=5, fps=5, metadata={"comment": str(number)})
    (tmp_path / "elan").mkdir()
    (tmp_path / "featurecache.toml").write_text(
        '[data]\nvideos = "videos"\nannotations = "elan"\nlabels = ["ventilation"]\n[features]\nmodel = "demo"\n'
    )
    return open_project(tmp_path)


def annotate(project: Project, name: str, media: str, **options: object) -> None:
    path = project.root / "elan" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eaf(path, OWN, media_name=media, **options)


def test_find_annotations_agrees_with_the_inventory_when_names_repeat_in_folders(project: Project) -> None:
    annotate(project, "one.eaf", "../videos/S1/cam.mp4")
    annotate(project, "S2/cam.eaf", "cam.mp4", time_origin_ms=700)
    annotate(project, "S3.eaf", "renamed.mp4")
    names = ["S1/cam.mp4", "S2/cam.mp4", "S3.mp4"]
    found = find_annotations(project, names)
    assert {name: list(one.intervals) for name, one in found.of.items()} == take_inventory(project).intervals
    assert found.of["S2/cam.mp4"].time_origin_ms == 700
    assert found.of["S2/cam.mp4"].eaf == project.root / "elan" / "S2" / "cam.eaf"
    assert found.left_out == ()


def test_find_annotations_matches_recordings_elsewhere_by_their_own_name(project: Project) -> None:
    annotate(project, "new.eaf", "new.mp4")
    annotate(project, "S3.eaf", "S3.mp4")
    assert set(find_annotations(project, ["new.mp4"]).of) == {"new.mp4"}


def test_find_annotations_ignores_predictions(project: Project) -> None:
    annotate(project, "S3.eaf", "S3.mp4")
    annotate(project, "S3.predicted.eaf", "S3.mp4")
    assert find_annotations(project, ["S3.mp4"]).refused == {}


def test_find_annotations_lists_a_document_that_fits_several_recordings(project: Project) -> None:
    annotate(project, "unclear.eaf", "cam.mp4")
    annotate(project, "S3.eaf", "S3.mp4")
    found = find_annotations(project, ["S1/cam.mp4", "S3.mp4"])
    assert set(found.of) == {"S3.mp4"}
    assert [one.name for one in found.left_out] == ["unclear.eaf"]


def test_find_annotations_reads_tables_in_either_form_of_accented_letters(project: Project) -> None:
    forms = [unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD")]
    data = dataclasses.replace(project.settings.data, annotations=Path("labels.csv"))
    table = Project(project.root, dataclasses.replace(project.settings, data=data))
    for written, asked in (forms, forms[::-1]):
        write_labels(project.root / "labels.csv", {written: OWN})
        assert find_annotations(table, [asked]).of[asked].intervals == tuple(OWN)


def test_annotated_spans_are_the_marked_ones_where_settings_name_a_mark(project: Project) -> None:
    annotate(project, "S3.eaf", "S3.mp4")
    found = find_annotations(project, ["S3.mp4"]).of["S3.mp4"]
    data = project.settings.data
    marked, other = (dataclasses.replace(data, annotated_span=name) for name in ("ventilation", "annotated"))
    until_last = dataclasses.replace(data, unannotated_time="until_last_annotation")
    assert annotated_spans(found, data, 9 * SECOND) == [(0, 9 * SECOND)]
    assert annotated_spans(found, until_last, 9 * SECOND) == [(0, 2 * SECOND)]
    assert annotated_spans(found, marked, 9 * SECOND) == [(SECOND, 2 * SECOND)]
    assert annotated_spans(found, other, 9 * SECOND) == []
