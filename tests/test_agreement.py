"""Agreement of two annotation files: put on one clock, compared where both annotated."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from featurecache.annotations import Interval, LabelRule, add_predictions, read_eaf, save_eaf, write_eaf
from featurecache.errors import AnnotationError
from heads.timelines.agreement import agreement

SECOND = 1_000_000
LABELS = ("ventilation", "suction")


def spans(*pairs, label="ventilation"):
    return [Interval(start * SECOND, end * SECOND, label) for start, end in pairs]


def file(folder: Path, name: str, intervals, *, media="S01.mp4", origin_ms=0, tiers=LABELS) -> Path:
    path = folder / name
    write_eaf(path, intervals, media_name=media, time_origin_ms=origin_ms, tiers=tiers)
    return path


def compare(first: Path, second: Path, **options):
    rule = LabelRule(tiers=options.pop("tiers", ()), span=options.pop("annotated_span", None))
    return agreement(first, second, **{"labels": LABELS, "rule": rule, **options})


def test_agreement_is_whole_when_two_clocks_tell_the_same(tmp_path):
    own = spans((5, 10), (20, 30)) + spans((6, 8), label="suction")
    found = compare(file(tmp_path, "a.eaf", own), file(tmp_path, "b.eaf", own, origin_ms=2_500))
    assert found["segment_f1"] == {"0.10": 1, "0.25": 1, "0.50": 1}
    assert {own["kappa"] for own in found["per_class"].values()} == {1.0}
    assert found["disagreements"] == []
    assert found["compared_us"] == [[0, 30 * SECOND]]


def test_agreement_names_what_each_side_has_alone(tmp_path):
    found = compare(
        file(tmp_path, "a.eaf", spans((5, 10), (20, 30))), file(tmp_path, "b.eaf", spans((5, 10), (22, 31)))
    )
    assert [(one["start_us"] // SECOND, one["end_us"] // SECOND, one["kind"]) for one in found["disagreements"]] == [
        (20, 22, "missed"),
        (30, 31, "extra"),
    ]
    assert found["timelines"][1]["ventilation"] == [[5 * SECOND, 10 * SECOND], [22 * SECOND, 31 * SECOND]]
    # Both 13 s, first alone 2, second alone 1, neither 15 of 31.
    expected = 15 / 31 * 14 / 31 + 16 / 31 * 17 / 31
    assert found["per_class"]["ventilation"]["kappa"] == pytest.approx((28 / 31 - expected) / (1 - expected))


def test_agreement_compares_only_what_both_marked_as_annotated(tmp_path):
    def marked(*pairs):
        return spans(*pairs, label="annotated")

    tiers = (*LABELS, "annotated")
    first = file(tmp_path, "a.eaf", spans((5, 10), (50, 60)) + marked((0, 40)), tiers=tiers)
    second = file(tmp_path, "b.eaf", spans((5, 10)) + marked((4, 30)), tiers=tiers)
    found = compare(first, second, annotated_span="annotated")
    assert found["compared_us"] == [[4 * SECOND, 30 * SECOND]]
    assert found["segment_f1"]["0.50"] == 1


def test_agreement_reads_predicted_tiers_of_a_prediction(tmp_path):
    first = file(tmp_path, "S01.eaf", spans((5, 10)))
    document = read_eaf(first)
    add_predictions(document, {"ventilation": [Interval(6 * SECOND, 10 * SECOND, "0.9")]}, time_origin_ms=0)
    second = tmp_path / "S01.predicted.eaf"
    save_eaf(document, second)
    found = compare(first, second, tiers=LABELS)["per_class"]["ventilation"]
    assert found["onset_error_s"]["median"] == 1
    assert found["events_predicted"] == 1


def test_agreement_compares_every_label_when_none_is_named(tmp_path):
    path = file(tmp_path, "a.eaf", spans((5, 10)))
    assert compare(path, path, labels=())["labels"] == ["ventilation"]


def test_agreement_refuses_files_of_two_recordings(tmp_path):
    first = file(tmp_path, "a.eaf", spans((5, 10)))
    second = file(tmp_path, "b.eaf", spans((5, 10)), media="S02.mp4")
    with pytest.raises(AnnotationError, match=r"a.eaf is of S01.mp4 and b.eaf of S02.mp4"):
        compare(first, second)


def test_agreement_refuses_when_no_label_of_the_project_is_in_either_file(tmp_path):
    path = file(tmp_path, "a.eaf", spans((5, 10)))
    with pytest.raises(AnnotationError, match=r"which has walking, but a.eaf and a.eaf have ventilation\. Correct"):
        compare(path, path, labels=("walking",))


def test_agreement_refuses_a_prediction_without_predicted_tiers(tmp_path):
    first, second = (file(tmp_path, name, spans((5, 10))) for name in ("a.eaf", "a.predicted.eaf"))
    with pytest.raises(AnnotationError, match=r"a\.predicted\.eaf has ventilation, suction\. Rename"):
        compare(first, second)


def test_agreement_refuses_when_nothing_is_annotated(tmp_path):
    path = file(tmp_path, "a.eaf", [])
    with pytest.raises(AnnotationError, match="share annotated time"):
        compare(path, path)


def test_agreement_command_shows_kappa_and_where_they_differ(tmp_path):
    (tmp_path / "featurecache.toml").write_text(
        '[data]\nvideos = "v"\nlabels = ["ventilation", "suction"]\n[features]\nmodel = "demo"\n'
    )
    first = file(tmp_path, "a.eaf", spans((5, 10), (20, 30)))
    second = file(tmp_path, "b.eaf", spans((5, 10)))
    done = CliRunner().invoke(app, ["agreement", str(first), str(second), "--config", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "kappa" in done.output
    assert "20.0 to 30.0 s: ventilation in a.eaf alone" in done.output


def test_agreement_needs_no_project_and_reads_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file(tmp_path, "a.eaf", spans((5, 10), (20, 30)), media="D:/x/S01.mpg")
    (tmp_path / "b.csv").write_text("video;Onset (ms);Offset (ms);code\nS01;5000;10000;ventilation\n")
    done = CliRunner().invoke(app, ["agreement", "a.eaf", "b.csv", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["labels"] == ["ventilation"]
    assert [(one["start_us"], one["end_us"]) for one in found["disagreements"]] == [(20 * SECOND, 30 * SECOND)]
    (warning,) = found["warnings"]
    assert warning.startswith("'suction' is in a.eaf alone, so all of it counts as disagreement")


def test_agreement_of_two_tables_is_over_all_recordings_that_both_annotate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = "recording,start_s,end_s,label\n"
    (tmp_path / "a.csv").write_text(head + "S1.mp4,0,10,a\nS2.mp4,0,10,a\nS3.mp4,0,10,a\n")
    (tmp_path / "b.csv").write_text(head + "S1.avi,0,10,a\nS2.mp4,5,10,a\n")
    found = agreement(Path("a.csv"), Path("b.csv"))
    assert [one["recording"] for one in found["recordings"]] == ["S1.mp4", "S2.mp4"]
    assert found["per_class"]["a"]["duration_annotated_s"] == 20
    assert found["per_class"]["a"]["duration_predicted_s"] == 15


def test_agreement_is_over_all_doubly_annotated_recordings_of_a_project(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "elan").mkdir()
    for number in range(3):
        (tmp_path / f"videos/S{number}.mp4").touch()
        file(tmp_path / "elan", f"S{number}_anna.eaf", spans((5, 10)), media=f"S{number}.mp4")
    for number in range(2):
        file(tmp_path / "elan", f"S{number}_bert.eaf", spans((5 + number, 10)), media=f"S{number}.mp4")
    (tmp_path / "featurecache.toml").write_text(
        '[data]\nvideos = "videos"\nannotations = "elan"\nlabels = ["ventilation"]\n[features]\nmodel = "demo"\n'
    )
    done = CliRunner().invoke(app, ["agreement", "--json", "--config", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["recording"] for one in found["recordings"]] == ["S0.mp4", "S1.mp4"]
    assert found["per_class"]["ventilation"]["onset_error_s"] == {"median": 0.5, "mean_absolute": 0.5}
    assert [(one["recording"], one["start_us"]) for one in found["disagreements"]] == [("S1.mp4", 5 * SECOND)]
    assert json.loads((tmp_path / "runs/agreement.json").read_text()) == found
    for path in (tmp_path / "elan").glob("*_bert.eaf"):
        path.unlink()
    done = CliRunner().invoke(app, ["agreement", "--config", str(tmp_path)])
    assert done.exit_code == 1
    assert "two people annotated" in done.output
