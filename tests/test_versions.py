"""Which versions of transformers are taken."""

import tomllib
from pathlib import Path

import pytest

from featurecache.backbones import find_model, open_inputs
from featurecache.backbones.versions import NEWEST, OLDEST, require_tested_transformers
from featurecache.errors import UntestedVersionError


def install(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the metadata of another version of transformers in front of the installed one's."""
    metadata = folder / f"transformers-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("version", ["4.57.6", "5.22.2", "5.25.0", "5.40.1", "6.0.0.dev0", "unknown"])
def test_a_version_nobody_compared_is_refused_with_the_command_for_one(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(version, tmp_path, monkeypatch)
    with pytest.raises(UntestedVersionError, match=rf"but {version} is installed.*pip install") as caught:
        open_inputs(find_model("demo"), prompt="<video>", frames=2, resize="model")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("version", ["5.23.0", "5.23.7", "5.24.0", "5.24.1"])
def test_every_patch_of_a_compared_version_is_taken(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(version, tmp_path, monkeypatch)
    require_tested_transformers()


def test_pip_installs_the_versions_that_are_taken() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (asked,) = (one for one in project["dependencies"] if one.startswith("transformers"))
    assert asked == f"transformers>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"
