"""Fixtures that many tests share: one thread for torch, and a tiny random backbone."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random-weight LLaVA-NeXT-Video."""
    from tests.tiny_models import make_llava_next_video

    return make_llava_next_video(tmp_path_factory.mktemp("model"))
