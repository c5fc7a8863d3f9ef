"""Fixtures that many tests share, and threads that leave the cores to each other, as under the command line."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random-weight LLaVA-NeXT-Video."""
    from tests.tiny_models import make_llava_next_video

    return make_llava_next_video(tmp_path_factory.mktemp("model"))
