import io
import json
import os
import pickle
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli import app
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.conversion import convert_weights
from featurecache.backbones.pickled_weights import RefusedError, read_tensors
from featurecache.errors import (
    FeatureCacheError,
    ModelNotFoundError,
    OutputExistsError,
    UnsafeFileError,
    UnsupportedModelError,
)
from featurecache.files import sha256_of_file
from tests.tiny_families import make_timesformer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_timesformer(tmp_path_factory.mktemp("sound") / "model")


def pickled(sound: Path, folder: Path) -> dict[str, torch.Tensor]:
    """A copy of a model as it was published before safetensors: pytorch_model.bin alone."""
    shutil.copytree(sound, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def states(folder: Path) -> torch.Tensor:
    inputs = open_inputs(folder, prompt="", frames=4, resize="model")
    backbone: Any = open_backbone(inputs, dtype="float32", device="cpu")
    pixels = torch.linspace(-1, 1, 4 * 3 * inputs.image_px**2).reshape(1, 4, 3, inputs.image_px, inputs.image_px)
    ((_, found),) = backbone.states(pixels, ["final"])
    return found.tokens


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_folder_with_a_pickle_alone_is_refused_with_the_command_that_converts_it_and_opens_after_it(
    sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    weights = pickled(sound, folder)
    digest = sha256_of_file(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=rf"featurecache model convert {folder}$"):
        states(folder)
    done = CliRunner().invoke(app, ["model", "convert", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    converted = folder / "model.safetensors"
    assert equal(load_file(converted), weights)
    assert json.loads(done.stdout) == {
        "read": {"pytorch_model.bin": digest},
        "written": {"model.safetensors": sha256_of_file(converted)},
    }
    record = json.loads((folder / "conversion.json").read_text())
    assert {key: record[key] for key in ("read", "written")} == json.loads(done.stdout)
    assert torch.equal(states(folder), states(sound))
    assert sha256_of_file(folder / "pytorch_model.bin") == digest
    assert converted.stat().st_mode == (folder / "pytorch_model.bin").stat().st_mode
    assert stat.S_IMODE((folder / "conversion.json").stat().st_mode) == 0o600
    with pytest.raises(OutputExistsError, match=r"has model\.safetensors"):
        convert_weights(folder)


def test_shards_are_converted_each_with_an_index_of_their_own(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights = pickled(sound, folder)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(weights)
    places = {}
    for number, held in enumerate((names[::2], names[1::2]), start=1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in held}, folder / shard)
        places |= dict.fromkeys(held, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    done = convert_weights(folder)
    assert list(done.written) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert torch.equal(states(folder), states(sound))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())


def test_shared_strided_and_half_precision_weights_come_out_whole(tmp_path: Path) -> None:
    table = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    weights = {
        "embedding": table,
        "head": table,
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0),
    }
    torch.save(weights, tmp_path / "pytorch_model.bin")
    convert_weights(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(9), tensor.detach().nan_to_num(9))


def test_weights_in_the_format_before_zip_files_are_read(sound: Path, tmp_path: Path) -> None:
    weights = load_file(sound / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert equal(read_tensors(tmp_path / "pytorch_model.bin"), weights)


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


def _compressed(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path.with_name("plain"))
    with zipfile.ZipFile(path.with_name("plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def _cut(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def _tar(path: Path) -> None:
    """As PyTorch wrote files before 0.1.10."""
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())


def _long_pickle_in_zip(path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, path.with_name("plain"))
    with zipfile.ZipFile(path.with_name("plain")) as plain, zipfile.ZipFile(path, "w") as made:
        for name in plain.namelist():
            made.writestr(name, _NOTHING if name.endswith("data.pkl") else plain.read(name))


_NOTHING = b"\x80\x02" + b"]" * 9_000_000 + b"."
"""A pickle of nine million empty lists, all but one thrown away."""

MORE_THAN_TENSORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save({"w": _Runs()}, path), "mkdir"),
    "code in a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"w": _Runs()}, protocol=2)), "mkdir"),
    "nested": (lambda path: torch.save({"state_dict": {"w": torch.ones(1)}}, path), "is a dict"),
    "list": (lambda path: torch.save([torch.ones(1)], path), "holds a list"),
    "one number shown many times": (
        lambda path: torch.save({"w": torch.zeros(1).expand(10**12)}, path),
        "4000000000000 bytes",
    ),
    "one storage under many names": (
        lambda path: torch.save(dict.fromkeys(map(str, range(5000)), torch.zeros(100_000)), path),
        "more than twice its size",
    ),
    "sparse": (lambda path: torch.save({"w": torch.eye(3).to_sparse()}, path), "sparse"),
    "complex": (lambda path: torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, path), "complex64"),
    "compressed": (_compressed, "compressed records"),
    "instructions that make nothing": (lambda path: path.write_bytes(_NOTHING), "takes more than 2,000,000 reads"),
    "such instructions in a zip file": (_long_pickle_in_zip, "its pickle has 9000003 bytes"),
    "tar": (_tar, "tar format"),
    "without numbers": (lambda path: torch.save({"w": torch.zeros(3, device="meta")}, path), "without numbers"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("case", MORE_THAN_TENSORS)
def test_pickle_of_more_than_tensors_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, wrong = MORE_THAN_TENSORS[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "pytorch_model.bin")
    with pytest.raises(RefusedError, match=wrong):
        read_tensors(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "it-ran").exists()


def _legacy(instructions: bytes) -> bytes:
    """A file in the format before zip files, whose tensors are made by these instructions."""
    header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(one, protocol=2) for one in header) + b"\x80\x02" + instructions


UNFIT: dict[str, tuple[Callable[[Path], object], type[FeatureCacheError], str]] = {
    "code": (lambda path: torch.save({"w": _Runs()}, path), UnsafeFileError, "mkdir"),
    "cut": (_cut, ModelNotFoundError, "cannot be read"),
    "lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"),
        ModelNotFoundError,
        "Git LFS pointer",
    ),
    "fifo": (os.mkfifo, UnsafeFileError, "is a FIFO"),
    "memory": (
        lambda path: path.write_bytes(_legacy(b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\xc0\x00\x85R.")),
        UnsafeFileError,
        "more memory than its size explains",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_pickle_is_one_named_error_and_nothing_is_written_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, error, wrong = UNFIT[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "pytorch_model.bin")
    with pytest.raises(error, match=wrong) as caught:
        convert_weights(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_modules_next_to_the_pickle_are_not_imported(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    pickled(sound, folder)
    for name in ("torch", "safetensors", "featurecache"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the folder was run')")
    monkeypatch.chdir(folder)
    convert_weights(Path())
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin", "shard.pt"])
def test_index_of_pickles_that_names_another_folder_or_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin\.index\.json must name"):
        convert_weights(tmp_path)


def test_two_pickles_that_would_get_one_name_are_refused_before_any_is_converted(tmp_path: Path) -> None:
    places = {"a": "pytorch_x.bin", "b": "x.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    for name in places.values():
        torch.save({}, tmp_path / name)
    with pytest.raises(UnsafeFileError, match=r"two become x\.safetensors"):
        convert_weights(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_folder_without_pickled_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="has neither"):
        convert_weights(tmp_path)


def open_clip_folder(folder: Path, *, pickled: bool = True, **vision: Any) -> torch.nn.Module:
    """BiomedCLIP laid out as published, its vision tower small; the tower as timm has it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    tower = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=12, num_classes=0
    ).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {f"visual.trunk.{name}": one for name, one in tower.state_dict().items()}
    weights |= {"visual.head.proj.weight": torch.randn(16, 24), "logit_scale": torch.tensor(4.0)}
    weights |= {"text.transformer.embeddings.word_embeddings.weight": torch.randn(30, 24)}
    folder.mkdir()
    if pickled:
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(weights, folder / "open_clip_model.safetensors")
    tower_config = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    text = {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "context_length": 256}
    model = {"embed_dim": 16, "vision_cfg": {**tower_config, **vision}, "text_cfg": text}
    statistics = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": statistics}))
    return tower


@pytest.mark.parametrize("pickled", [True, False])
def test_the_vision_tower_of_an_open_clip_model_is_converted_and_equals_timms(tmp_path: Path, pickled: bool) -> None:
    folder = tmp_path / "model"
    tower: Any = open_clip_folder(folder, pickled=pickled)
    with pytest.raises(FeatureCacheError, match=rf"laid out for open_clip.*featurecache model convert {folder};"):
        open_inputs(folder, prompt="", frames=2, resize="model")
    done = CliRunner().invoke(app, ["model", "convert", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    inputs = open_inputs(folder, prompt="", frames=2, resize="model")
    assert list(inputs.taps) == ["layer_0", "layer_1", "layer_2", "layer_3", "final"]
    assert inputs.image_px == 32
    backbone: Any = open_backbone(inputs, dtype="float32", device="cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = dict(backbone.states(backbone.encode_frames(pixels, list(inputs.taps))[None], list(inputs.taps)))
    with torch.no_grad():
        last, layers = tower.forward_intermediates(pixels, output_fmt="NLC", return_prefix_tokens=True)
    for depth, (patches, cls) in enumerate(layers, start=1):
        assert (found[f"layer_{depth}"].tokens[0] - patches).abs().max() <= 1e-5
        assert (found[f"layer_{depth}"].cls[0] - cls[:, 0]).abs().max() <= 1e-5
    assert last.std() > 0.1
    assert (found["final"].tokens[0] - last[:, 1:]).abs().max() <= 1e-5
    assert (found["final"].cls[0] - last[:, 0]).abs().max() <= 1e-5
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".tmp") == []


@pytest.mark.parametrize(
    "vision",
    [{"timm_model_name": "convnext_base"}, {"timm_pool": "avg"}, {"timm_proj": "mlp"}],
    ids=str,
)
def test_another_open_clip_model_is_refused_by_what_it_says_and_left_as_it_was(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    open_clip_folder(folder, pickled=False, **vision)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UnsupportedModelError, match=next(iter(vision.values()))):
        convert_weights(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
