"""Fixtures that many tests share, and surroundings that are the same wherever the tests run.

The number of threads decides the order of sums, and the terminal's width and colours what the commands print; child
processes inherit both. Recordings are the same bytes in every run (`make_videos.py`), and so are clip ids and splits.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

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
