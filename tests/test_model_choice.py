"""Which model `init` proposes where none is named."""

import shutil
from pathlib import Path

import pytest

from featurecache.setup.model_choice import ModelHere, choose, choose_model
from tests.tiny_families import make_dinov2
from tests.tiny_video_language import make_smolvlm

GIB = 1024**3
HERE = [
    ModelHere("/models/7b", "llava_next_video", 13 * GIB),
    ModelHere("/models/256m", "smolvlm", GIB // 2),
    ModelHere("/models/dinov2", "dinov2", GIB // 6),
]


@pytest.mark.parametrize(
    ("here", "on_gpu", "gib", "name"),
    [
        (HERE, True, 40, "/models/7b"),
        (HERE, True, 12, "/models/256m"),
        (HERE, False, 64, "/models/256m"),
        (HERE[2:], True, 40, "/models/dinov2"),
        (HERE[:1], True, 12, "Qwen/Qwen3-VL-2B-Instruct"),
        ([], True, 80, "llava-hf/LLaVA-NeXT-Video-7B-hf"),
        ([], True, 4, "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
        ([], False, 512, "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
    ],
    ids=str,
)
def test_the_proposed_model_fits_into_the_memory_and_answers_questions_where_it_can(
    here: list[ModelHere], on_gpu: bool, gib: int, name: str
) -> None:
    found, why = choose(here, on_gpu=on_gpu, memory_bytes=gib * GIB)
    assert found == name
    assert name in why
    assert f"{gib} GiB" in why


def test_models_are_found_beside_the_project_and_in_the_cache_and_broken_ones_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "models--group--frames"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    make_dinov2(cache / "snapshots" / "abc")
    assert choose_model(tmp_path / "new")[0] == "group/frames"
    good = make_smolvlm(tmp_path / "models" / "small")
    broken = shutil.copytree(good, tmp_path / "models" / "broken")
    (broken / "model.safetensors").unlink()
    assert choose_model(tmp_path / "new")[0] == str(good)
