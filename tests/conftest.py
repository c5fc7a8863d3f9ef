"""Fixtures that many tests share, and surroundings that are the same wherever the tests run.

The number of threads decides the order of sums, and the terminal's width and colours what the commands print; child
processes inherit both. Recordings are the same bytes in every run (`make_videos.py`), and so are clip ids and splits.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from featurecache.project.settings import Project, open_project

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
# Idle threads leave the cores to each other, as under the command line.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random-weight LLaVA-NeXT-Video."""
    from tests.tiny_models import make_llava_next_video

    return make_llava_next_video(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that gives several captions."""
    from tests.asked_models import make_llava_next_video

    return make_llava_next_video(tmp_path_factory.mktemp("captions") / "model", seed=7)


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of four language model layers, for adapters above some of them."""
    from tests.tiny_models import make_llava_next_video

    return make_llava_next_video(tmp_path_factory.mktemp("deep"), layers=4)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A small project with its clips.csv, for `project`."""
    from tests.projects import make_project, make_table

    project = make_project(tmp_path_factory.mktemp("made") / "project", tiny_model)
    make_table(project)
    return project.root


@pytest.fixture
def project(made_once: Path, tmp_path: Path) -> Project:
    """A small project where nothing is extracted yet, to change; many modules have one of their own."""
    return open_project(Path(shutil.copytree(made_once, tmp_path / "project")))


@pytest.fixture(scope="session")
def tuned_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project taken through clips, extract and tune, for `tuned`."""
    from tests.commands import run
    from tests.projects import make_project

    project = make_project(tmp_path_factory.mktemp("tuned") / "project", tiny_model, sessions=7)
    for command in (["clips"], ["extract"], ["tune", "--trials", 4]):
        run(*command, "--config", project.root)
    return project.root


@pytest.fixture
def tuned(tuned_once: Path, tmp_path: Path) -> Path:
    """A project after clips, extract and tune, to change; its recordings keep their times and remembered digests."""
    return Path(shutil.copytree(tuned_once, tmp_path / "project"))


@pytest.fixture(scope="session")
def written_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything that a report shows, and its report; tests change copies."""
    from tests.report_samples import report_on, write_project

    root = write_project(tmp_path_factory.mktemp("report") / "project")
    report_on(root)
    return root


@pytest.fixture
def reported(written_report: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written_report, tmp_path / "project"))


@pytest.fixture(scope="session")
def drawn_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings of every kind: `tests.video_samples.KINDS`."""
    from tests.video_samples import write_kinds

    return write_kinds(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def grouped_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings with frames that need not be decoded: `tests.video_samples.GROUPED`."""
    from tests.video_samples import write_groups

    return write_groups(tmp_path_factory.mktemp("grouped"))


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    """A project of three recordings with a bundle that was never trained, for predictions into other folders."""
    from tests.prediction_samples import make_bundle
    from tests.projects import make_project

    project = make_project(tmp_path_factory.mktemp("predict") / "project", tiny_model, sessions=3, clips=4)
    make_bundle(project, project.runs / "tune" / "bundle")
    return project


@pytest.fixture(scope="session")
def six_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four recordings of 6 s."""
    from tests.make_videos import write_video

    folder = tmp_path_factory.mktemp("recordings") / "videos"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"S{number}.mp4", count=30, fps=5, metadata={"comment": f"take {number}"})
    return folder


@pytest.fixture
def annotated(tmp_path: Path, six_seconds: Path) -> Any:
    """A project of them, to which a test adds annotations."""
    from tests.annotated_projects import AnnotatedProject

    return AnnotatedProject(tmp_path, six_seconds)


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders of tiny vision encoders, one of each family."""
    from tests.tiny_families import FAMILIES

    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name.replace(" ", "-")) for name, make in FAMILIES.items()}


@pytest.fixture(scope="session")
def family_backbones(family_folders: dict[str, Path]) -> dict[str, Any]:
    """Each opened once, for tests that leave the weights alone."""
    from tests.family_samples import open_family

    return {name: open_family(folder) for name, folder in family_folders.items()}


@pytest.fixture
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk: the tests of durability keep their own record of what was synced."""
    from tests.cache_samples import FaultyOs, fails_with, file_system

    with file_system(FaultyOs(-1, fails_with(errno.EIO))):
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache of eight rows in four segments; some modules have one of their own."""
    from tests.cache_samples import make_rows, write

    write(tmp_path / "cache", make_rows(8), max_rows=2)
    return tmp_path / "cache"


@pytest.fixture
def checkpointed(tmp_path: Path) -> Path:
    """A cache of forty rows in forty segments, and a checkpoint of them."""
    from tests.cache_samples import make_rows, write

    write(tmp_path / "cache", make_rows(40), max_rows=1)
    [_] = (tmp_path / "cache").glob("spaces/*/index/*.npz")
    return tmp_path / "cache"


@pytest.fixture
def make_eaf(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ELAN file of `tests.eaf_samples.eaf_text`'s arguments, and gives its path."""
    from tests.eaf_samples import eaf_text

    def write(body: str = "", slots: str = "", name: str = "a.eaf", **more: str) -> Path:
        path = tmp_path / name
        path.write_text(eaf_text(body, slots, **more), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table of annotations, text or bytes, and gives its path."""

    def write(text: str | bytes, encoding: str = "utf-8") -> Path:
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, with what its console and its network said; skips where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver on this machine (apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()
