import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.files import quiet_loading
from featurecache.errors import ModelNotFoundError, UnsafeFileError, UnsupportedModelError
from featurecache.files import sha256_of_file
from tests.hostile_models import HOSTILE, edit, make_hostile, split_weights
from tests.tiny_families import (
    make_clip,
    make_dinov2,
    make_siglip,
    make_timesformer,
    make_videomae,
    make_vjepa2_pretrained,
)
from tests.tiny_models import make_llava_next_video
from tests.tiny_video_language import make_llava_onevision

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def refusals(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What opening each hostile folder raised in one process with limits: (name of the error, message)."""
    folders = make_hostile(tiny_model, tmp_path_factory.mktemp("hostile"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_models", *map(str, folders.values())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(folders), f"it ended with {done.returncode} at {list(folders)[len(found)]}: {done.stderr}"
    return dict(zip(folders, found, strict=True))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folder_is_one_named_error_within_thirty_seconds_and_two_gigabytes(
    refusals: dict[str, tuple[str, str]], case: str
) -> None:
    _, kind, file, wrong = HOSTILE[case]
    raised, message = refusals[case]
    assert raised == kind, message
    assert file in message
    assert wrong in message
    assert "\n" not in message


def identity(folder: Path) -> dict[str, Any]:
    inputs = open_inputs(folder, prompt="user: hand <video>", frames=4, resize="model")
    return inputs.identity("final", "float32", sha256_of_file)


def states(folder: Path) -> torch.Tensor:
    inputs = open_inputs(folder, prompt="user: hand <video>", frames=4, resize="model")
    backbone: Any = open_backbone(inputs, dtype="float32", device="cpu")
    pictures = torch.arange(4 * inputs.image_px**2 * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
    pixels = backbone.normalize(pictures.reshape(4, inputs.image_px, inputs.image_px, 3))
    ((_, found),) = backbone.states(backbone.encode_frames(pixels, ["final"])[None], ["final"])
    return found.tokens


def test_fingerprint_of_an_ordinary_folder_names_its_one_file_of_weights(tiny_model: Path) -> None:
    digest = sha256_of_file(tiny_model / "model.safetensors")
    assert identity(tiny_model)["backbone"]["weights"] == {"model.safetensors": digest}


def test_file_of_weights_that_is_not_loaded_changes_no_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert identity(folder) == identity(tiny_model)


@pytest.mark.parametrize("second", ["model-00002-of-00002.safetensors", "more/weights.safetensors"])
def test_shards_give_the_features_of_one_file_and_all_are_in_the_fingerprint(
    tiny_model: Path, tmp_path: Path, second: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    split_weights(folder, {"model-00002-of-00002.safetensors": second})
    weights = identity(folder)["backbone"]["weights"]
    assert weights == {name: sha256_of_file(folder / name) for name in ("model-00001-of-00002.safetensors", second)}
    assert torch.equal(states(folder), states(tiny_model))


def test_snapshot_of_the_hub_cache_opens_though_its_files_are_links(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "04a83e0"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_model, repository / "blobs")
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    assert identity(snapshot) == identity(tiny_model)
    assert torch.equal(states(snapshot), states(tiny_model))


def test_chat_template_that_never_ends_is_never_rendered(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    endless = "{% for one in range(10**15) %}{{ one }}{% endfor %}"
    edit(folder / "tokenizer_config.json", lambda made: made.update(chat_template=endless))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": endless}))
    (folder / "chat_template.jinja").write_text(endless)
    assert torch.equal(states(folder), states(tiny_model))


def test_tower_that_is_told_to_answer_with_tuples_gives_the_same_features(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    edit(folder / "config.json", lambda config: config["vision_config"].update(return_dict=False))
    assert torch.equal(states(folder), states(tiny_model))


def test_features_of_the_towers_embedding_need_no_layer_of_it(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    layers = json.loads((folder / "config.json").read_text())["vision_config"]["num_hidden_layers"]
    edit(folder / "config.json", lambda config: config.update(vision_feature_layer=-layers - 1))
    by_the_end = states(folder)
    edit(folder / "config.json", lambda config: config.update(vision_feature_layer=0))
    assert torch.equal(states(folder), by_the_end)


def test_processor_of_frames_that_no_memory_holds_is_refused_where_the_model_takes_any_size(tmp_path: Path) -> None:
    folder = make_dinov2(tmp_path / "model")
    side = {"height": 64_792, "width": 64_792}
    edit(folder / "preprocessor_config.json", lambda made: made.update(size={"shortest_edge": 64_792}, crop_size=side))
    with pytest.raises(UnsupportedModelError, match=r"preprocessor_config\.json says size = "):
        open_inputs(folder, prompt="", frames=2, resize="model")


def test_videomae_whose_table_of_positions_takes_minutes_is_refused(tmp_path: Path) -> None:
    folder = make_videomae(tmp_path / "model")
    edit(folder / "config.json", lambda config: config.update(image_size=2048, patch_size=16, num_frames=1024))
    edit(folder / "preprocessor_config.json", lambda made: made.update(size=2048, crop_size=2048))
    with pytest.raises(UnsupportedModelError, match="positions must be at most"):
        open_inputs(folder, prompt="", frames=1024, resize="model")


@pytest.mark.parametrize(
    ("make", "name", "other"),
    [
        (make_llava_next_video, "vision_tower.vision_model.encoder", "vision_tower.encoder"),
        (make_llava_onevision, "language_model.model.layers", "model.language_model.model.layers"),
        (make_clip, "vision_model.encoder", "encoder"),
        (make_siglip, "vision_model.encoder", "encoder"),
        (make_dinov2, "dinov2.encoder", "encoder"),
        (make_timesformer, "timesformer.encoder", "encoder"),
        (make_videomae, "videomae.encoder", "encoder"),
        (make_vjepa2_pretrained, "encoder", "vjepa2.encoder"),
    ],
)
def test_weight_that_is_there_under_the_names_of_two_revisions_is_refused(
    make: Callable[[Path], Path], name: str, other: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    first = next(one for one in sorted(weights) if one.startswith(f"{name}."))
    second = other + first.removeprefix(name)
    save_file({**weights, second: torch.zeros_like(weights[first])}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsafeFileError) as caught:
        states(folder)
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_weight_beyond_the_range_of_float16_is_named_with_the_dtypes_that_hold_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"][0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    inputs = open_inputs(folder, prompt="<video>", frames=2, resize="model")
    open_backbone(inputs, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelNotFoundError, match=r'features\.dtype = "bfloat16" or "float32"'):
        open_backbone(inputs, dtype="float16", device="cpu")


def test_nothing_is_fetched_while_a_model_opens(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with quiet_loading(tiny_model, "model"), pytest.raises(OfflineModeIsEnabled):
        get_session().get("https://huggingface.co/api/models/gpt2")
    assert constants.HF_HUB_OFFLINE is False
