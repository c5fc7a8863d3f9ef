import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featurecache.errors import ProjectNotFoundError
from featurecache.project.settings import Project, find_project, open_project
from featurecache.setup.doctor import Check, examine, examine_machine
from featurecache.workflow.clips import make_clips
from tests.hostile_models import split_weights
from tests.make_videos import packet_places
from tests.projects import edited, make_project, make_table
from tests.tiny_families import make_siglip

HELD = ["network", "device", "model", "weights", "memory", "recordings", "decoding", "crop", "disk"]


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    return make_project(tmp_path / "project", model, sessions=3, clips=2)


def checks_of(project: Project) -> dict[str, Check]:
    return {check.name: check for check in examine(project)}


def model_of(project: Project) -> Path:
    return Path(project.settings.features.model)


def test_examine_finds_nothing_wrong_when_all_is_well(project: Project) -> None:
    found = checks_of(project)
    assert list(found) == HELD
    assert all(check.ok for check in found.values())
    assert "llava_next_video" in found["model"].found
    assert "1 file" in found["weights"].found
    assert "4 frames" in found["decoding"].found


def test_examine_shows_the_crop_box_and_what_the_processor_cuts_off_it(project: Project) -> None:
    found = checks_of(edited(project, "frames = 4", "frames = 4\ncrop = [0.25, 0.1, 0.5, 0.8]"))
    assert "25% to 75% of its width and 10% to 90% of its height" in found["crop box"].found
    assert "up to 14% of the box of 88x76 px in a frame of 176x96 px" in found["crop"].found
    by_size = checks_of(edited(project, "crop = [0.25", 'crop."176x96" = [0.25'))
    assert "of a frame of 176x96 px the model sees 25% to 75%" in by_size["crop box"].found
    assert by_size["crop"] == found["crop"]
    assert (by_size["crop box"].ok, by_size["crop box"].fix) == (True, "")
    by_name = checks_of(edited(project, 'crop."176x96"', 'crop."*.MP4"'))
    assert "of a frame of *.MP4 the model sees 25% to 75%" in by_name["crop box"].found
    assert (by_name["crop box"].ok, by_name["crop"]) == (True, found["crop"])
    unclear = checks_of(edited(project, 'crop."*.MP4"', 'crop."S0*"'))["crop box"]
    assert not unclear.ok
    assert "more than one, of the patterns fits S1.mp4, S2.mp4: no extraction" in unclear.found
    edited(project, 'crop."S0*"', 'crop."176x96"')
    mistyped = checks_of(edited(project, 'crop."176x96"', 'crop."176x97"'))["crop box"]
    assert "no recording in use has frames of 176x97 px, which have a box" in mistyped.found
    assert "of 176x96 px have no box and stay whole" in mistyped.found
    assert not mistyped.ok


def test_a_machine_is_checked_where_there_is_no_project_yet(tmp_path: Path) -> None:
    assert find_project(tmp_path) is None
    found = list(examine_machine(tmp_path))
    assert [check.name for check in found] == ["network", "device", "disk", "project"]
    assert all(check.ok for check in found)
    assert "featurecache init" in found[-1].fix


def test_a_project_that_is_named_and_absent_is_no_machine_to_check(tmp_path: Path) -> None:
    with pytest.raises(ProjectNotFoundError, match="none at"):
        find_project(tmp_path / "mistyped")


def test_examine_writes_nothing_but_what_it_remembers_of_files(project: Project) -> None:
    make_table(project)
    before = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    checks_of(project)
    after = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} <= {
        project.digest_memo,
        project.state / "models.json",
    }


def test_examine_knows_other_families(project: Project, tmp_path: Path) -> None:
    model = make_siglip(tmp_path / "siglip")
    found = checks_of(edited(project, str(model_of(project)), str(model)))
    assert found["model"].ok
    assert "siglip" in found["model"].found
    assert found["weights"].ok
    assert found["memory"].ok


def test_examine_names_the_known_architectures_when_it_is_another(project: Project) -> None:
    config = model_of(project) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt2"}))
    found = checks_of(project)
    assert not found["model"].ok
    assert "gpt2" in found["model"].found
    assert "llava_next_video" in found["model"].found
    assert found["model"].fix
    assert "weights" not in found
    assert found["decoding"].ok, "the recordings are looked at all the same"


def test_examine_finds_a_processor_that_asks_for_something_else(project: Project) -> None:
    path = model_of(project) / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["do_resize"] = False
    path.write_text(json.dumps(settings))
    found = checks_of(project)["model"]
    assert not found.ok
    assert "do_resize" in found.found
    assert found.fix.startswith("Use the processor files")


def test_examine_finds_weights_that_are_missing(project: Project) -> None:
    (model_of(project) / "model.safetensors").unlink()
    found = checks_of(project)["weights"]
    assert not found.ok
    assert "holds no weights" in found.found
    assert "hf download" in found.fix


def test_examine_finds_weights_that_were_cut_off(project: Project) -> None:
    path = model_of(project) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    found = checks_of(project)["weights"]
    assert not found.ok
    assert "model.safetensors is damaged or cut off" in found.found


def test_examine_takes_weights_in_several_files(project: Project) -> None:
    split_weights(model_of(project))
    assert checks_of(project)["weights"].found.startswith("2 files")


def test_examine_holds_files_against_the_index(project: Project) -> None:
    first, second = (model_of(project) / name for name in sorted(set(split_weights(model_of(project)).values())))
    kept = load_file(second)
    lost = sorted(kept)[0]
    save_file({name: kept[name] for name in kept if name != lost}, second, metadata={"format": "pt"})
    found = checks_of(project)["weights"]
    assert not found.ok
    assert found.found.startswith(str(second))
    assert f"it lacks 1 weights, e.g. {lost}" in found.found
    first.unlink()
    assert f"{first.name} is missing" in checks_of(project)["weights"].found
    (model_of(project) / "model.safetensors.index.json").write_text("{")
    assert "index.json of a model must be JSON" in checks_of(project)["weights"].found


def test_examine_finds_a_device_that_is_not_here(project: Project) -> None:
    found = checks_of(edited(project, "[features]", '[extract]\ndevice = "cuda:9"\n[features]'))
    assert not found["device"].ok
    assert "cuda:9" in found["device"].found
    assert 'extract.device = "cpu"' in found["device"].fix
    assert "memory" not in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="the memory of a GPU is another")
def test_examine_finds_a_batch_that_does_not_fit(project: Project) -> None:
    project = edited(project, "[features]", "[extract]\nbatch_size = 4096\n[features]")
    found = checks_of(edited(project, "frames = 4", "frames = 64"))["memory"]
    assert not found.ok
    assert "are free" in found.found
    assert "bfloat16" in found.fix


def test_examine_finds_a_config_that_is_of_a_far_larger_model(project: Project) -> None:
    config = model_of(project) / "config.json"
    larger = json.loads(config.read_text())
    larger["text_config"] |= {"num_hidden_layers": 1024, "hidden_size": 65536, "intermediate_size": 1 << 20}
    config.write_text(json.dumps(larger))
    found = checks_of(project)["memory"]
    assert not found.ok
    assert "asks for more than" in found.found
    assert "one revision" in found.fix


def test_examine_finds_a_recording_that_is_damaged_behind_its_first_picture(project: Project) -> None:
    path = min((project.root / "videos").iterdir())
    _, (begin, size), *_ = packet_places(path)
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    found = checks_of(project)
    assert found["recordings"].found.startswith("3 usable")
    assert not found["decoding"].ok
    assert "S0.mp4 (h264, 176 x 96): " in found["decoding"].found
    assert "ffmpeg" in found["decoding"].fix


def test_examine_holds_the_disk_against_the_plan(project: Project) -> None:
    assert "clips to do" not in checks_of(project)["disk"].found
    make_table(project)
    assert "6 clips to do need about" in checks_of(project)["disk"].found
    project.clips.write_text("no table")
    found = checks_of(project)["plan"]
    assert not found.ok
    assert found.fix


@pytest.mark.parametrize(
    ("file", "old", "new", "found", "fix"),
    [
        ("featurecache.toml", "length_s = 1", "length_s = 2", "clips.length_s was 1.0 and is 2.0", "Make it again: "),
        ("featurecache.toml", "'ventilation', ", "", "data.labels was", "Make it again: "),
        ("labels.csv", "S0.mp4", "S1.mp4", "annotations: 1 changed (labels.csv)", "To take that in: "),
    ],
)
def test_examine_says_what_changed_since_the_table_was_made(
    project: Project, file: str, old: str, new: str, found: str, fix: str
) -> None:
    make_clips(project)
    assert checks_of(project)["clip table"].ok
    path = project.root / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    check = checks_of(open_project(project.root))["clip table"]
    assert not check.ok
    assert found in check.found
    assert check.fix.startswith(f"{fix}featurecache clips")


def test_examine_says_what_words_behind_the_video_do(project: Project) -> None:
    found = checks_of(edited(project, "<video>", "<video> what happens here ?"))
    assert "what happens here ?" in found["prompt"].found
    assert "in front of <video>" in found["prompt"].fix
