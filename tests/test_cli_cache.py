"""The commands of the cache: heal, why, forget, export and import."""

import json
import re
import shutil
from pathlib import Path

from tests.commands import invoke, run
from tests.projects import damage_a_segment, edit


def test_cache_heals_after_damage(tuned: Path) -> None:
    damage_a_segment(tuned)
    assert invoke("cache", "verify", "--config", tuned).exit_code == 0, "a quick check reads records and sizes"
    assert invoke("cache", "verify", "--deep", "--config", tuned).exit_code == 1
    repaired = json.loads(invoke("cache", "repair", "--config", tuned, "--json").stdout)
    assert len(repaired["set_aside"]) == 1
    assert len(repaired["lost"]) == 28
    assert json.loads(invoke("extract", "--config", tuned, "--json").stdout)["extracted"] == 28
    assert invoke("cache", "verify", "--deep", "--config", tuned).exit_code == 0
    listed = json.loads(invoke("cache", "gc", "--quarantine", "--config", tuned, "--json").stdout)
    assert len(listed["garbage"]) == 1
    assert len(list(tuned.glob("features.zarr/spaces/*/quarantine/*"))) == 1
    assert invoke("cache", "gc", "--quarantine", "--apply", "--config", tuned).exit_code == 0
    assert not list(tuned.glob("features.zarr/spaces/*/quarantine/*"))
    assert "merged" in run("cache", "compact", "--config", tuned)
    assert invoke("cache", "verify", "--deep", "--config", tuned).exit_code == 0


def test_cache_why_names_the_input_that_differs(tuned: Path) -> None:
    clip = (tuned / "clips.csv").read_text().splitlines()[1].split(",")[0]
    assert "found" in invoke("cache", "why", clip, "--config", tuned).stdout
    edit(tuned / "featurecache.toml", "frames = 4", "frames = 8")
    reasons = json.loads(invoke("cache", "why", clip, "--config", tuned, "--json").stdout)["reasons"]
    assert re.search(r"computed otherwise: sampling\.frames: settings 8, cache 4\.$", reasons[0])
    edit(tuned / "featurecache.toml", "frames = 8", "frames = 4")
    other = json.loads(
        invoke("cache", "why", clip.replace("-0-1000000", "-500000-1500000"), "--config", tuned, "--json").stdout
    )
    assert "at other times" in other["reasons"][0]
    edit(tuned / "featurecache.toml", "length_s = 1", "length_s = 2")
    drifted = invoke("cache", "why", clip, "--config", tuned)
    assert "clips.length_s was 1.0 and is 2.0" in drifted.stderr
    unknown = json.loads(invoke("cache", "why", f"{'0' * 16}-0-1000000", "--config", tuned, "--json").stdout)
    assert "anything of this recording" in unknown["reasons"][0]
    assert invoke("cache", "why", "S0.mp4", "--config", tuned).exit_code == 1


def test_cache_forget_removes_a_recording_by_its_name(tuned: Path) -> None:
    lines = (tuned / "clips.csv").read_text().splitlines()
    content = next(line for line in lines if ",S3.mp4," in line)[:16]
    assert json.loads(invoke("cache", "forget", "S3.mp4", "--config", tuned, "--json").stdout)["rows"] == 4
    held = b"".join(path.read_bytes() for path in (tuned / "features.zarr").rglob("*") if path.is_file())
    assert bytes.fromhex(content) not in held
    assert content.encode() not in held
    left = json.loads(invoke("extract", "--dry-run", "--config", tuned, "--json").stdout)
    assert left["todo"] == 0, "a withdrawn recording is not extracted again"
    assert "Did you mean 'S3.mp4'" in invoke("cache", "forget", "S3.mp5", "--config", tuned).stderr
    mistyped = invoke("cache", "forget", "0123456789abcdef", "--config", tuned)
    assert "nothing here is known to be of this recording" in " ".join(mistyped.output.split()), mistyped.output


def test_export_comes_back_as_it_was(tuned: Path, tmp_path: Path) -> None:
    def held() -> list[tuple[str, int]]:
        spaces = json.loads(invoke("cache", "info", "--config", tuned, "--json").stdout)["spaces"]
        return [(one["fingerprint"], one["rows"]) for one in spaces]

    before = held()
    assert before
    assert invoke("cache", "export", tmp_path / "features.h5", "--config", tuned).exit_code == 0
    shutil.rmtree(tuned / "features.zarr")
    assert invoke("cache", "import", tmp_path / "features.h5", "--config", tuned).exit_code == 0
    assert held() == before
    assert json.loads(invoke("extract", "--config", tuned, "--json").stdout)["todo"] == 0


def test_import_lists_withdrawn_recordings_that_it_left_out_and_ends_with_3(tuned: Path, tmp_path: Path) -> None:
    assert invoke("cache", "export", tmp_path / "features.h5", "--config", tuned).exit_code == 0
    assert invoke("cache", "forget", "S3.mp4", "--config", tuned).exit_code in (0, 1)
    done = invoke("cache", "import", tmp_path / "features.h5", "--config", tuned)
    assert (done.exit_code, "left out 4 features of 1 withdrawn recording:" in done.stderr) == (3, True), done.output
    document = json.loads(invoke("cache", "import", tmp_path / "features.h5", "--config", tuned, "--json").stdout)
    [(content, rows)] = document["withdrawn"]
    assert rows == 4
    assert content in done.output
