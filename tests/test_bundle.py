"""Bundles: bit-equal after a round trip, refused when damaged or foreign."""

import dataclasses
import hashlib
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurecache.errors import BundleError, FingerprintMismatchError
from featurecache.spec import FeatureSpace, sealed
from heads.bundle import Bundle, load_bundle, save_bundle, tool_versions
from heads.models import AttentionHead, Front, LinearHead
from heads.settings import HeadSettings
from tests.bundle_samples import LABELS, MOTION, SPACE, features, make_bundle


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_bundle_is_bit_equal_when_loaded_again(tmp_path: Path, kind: str) -> None:
    bundle = make_bundle(kind)
    save_bundle(bundle, tmp_path / "runs" / "bundle")
    loaded = load_bundle(tmp_path / "runs" / "bundle")
    X = features()
    scores = bundle.scores(X, fingerprint=SPACE.fingerprint)
    assert (loaded.scores(X, fingerprint=SPACE.fingerprint) == scores).all()
    assert (loaded.thresholds == bundle.thresholds).all()
    assert (loaded.labels, loaded.settings, loaded.digest) == (bundle.labels, bundle.settings, bundle.digest)
    assert loaded.fingerprint == SPACE.fingerprint
    assert (loaded.calibration.apply(scores) == bundle.calibration.apply(scores)).all()
    assert loaded.versions == bundle.versions
    assert loaded.fitted_on == bundle.fitted_on
    assert sorted(path.name for path in (tmp_path / "runs").rglob("*")) == ["bundle", "bundle.json", "head.safetensors"]


def test_bundle_is_for_its_owner_alone(tmp_path: Path) -> None:
    save_bundle(make_bundle(), tmp_path / "bundle")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "bundle", *tmp_path.glob("*/*"))}
    assert modes == {"bundle": 0o700, "bundle.json": 0o600, "head.safetensors": 0o600}


def test_save_bundle_replaces_the_one_that_is_there(tmp_path: Path) -> None:
    save_bundle(make_bundle(seed=1), tmp_path / "bundle")
    save_bundle(make_bundle(seed=2), tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").digest == make_bundle(seed=2).digest != make_bundle(seed=1).digest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_save_bundle_leaves_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    save_bundle(make_bundle(seed=1), tmp_path / "bundle")
    broken = dataclasses.replace(make_bundle(seed=2), thresholds=np.array([0.5, np.nan, 0.5]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_bundle(broken, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").digest == make_bundle(seed=1).digest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_scores_are_refused_when_features_are_of_another_space() -> None:
    bundle = make_bundle()
    other = FeatureSpace({**SPACE.inputs, "prompt": "other"})
    with pytest.raises(FingerprintMismatchError, match=other.fingerprint[:16]):
        bundle.scores(features(), fingerprint=other.fingerprint)
    with pytest.raises(BundleError, match=r"shape \(N, 10\), but have \(30, 9\)"):
        bundle.scores(features()[:, :9], fingerprint=SPACE.fingerprint)


def test_bundle_reads_several_feature_spaces_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = LinearHead(Front(10, unit_length=True, components=3, part_widths=[4, 6]), 3)
    torch.nn.init.normal_(head.output.weight)
    torch.nn.init.normal_(head.front.axes)
    settings = HeadSettings(inputs="final/mean+final/motion", normalization="l2", components=5)  # 3 were to be had
    thresholds = np.full(3, 0.5)
    bundle = Bundle(head, LABELS, thresholds, settings, (SPACE, MOTION), tool_versions())
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert list(loaded.selected) == ["final/mean", "final/motion"]
    fingerprint = f"{SPACE.fingerprint}+{MOTION.fingerprint}"
    assert (
        loaded.scores(features(), fingerprint=fingerprint) == bundle.scores(features(), fingerprint=fingerprint)
    ).all()
    with pytest.raises(FingerprintMismatchError, match=f"those of final/motion .* are of {SPACE.fingerprint[:16]}"):
        loaded.scores(features(), fingerprint=f"{SPACE.fingerprint}+{SPACE.fingerprint}")
    with pytest.raises(FingerprintMismatchError, match="1 feature spaces are given where it reads final/mean"):
        loaded.scores(features(), fingerprint=SPACE.fingerprint)


def test_bundle_takes_features_of_frames_for_kinds_that_read_them() -> None:
    settings = HeadSettings(kind="attention", inputs="final/frames")
    space = FeatureSpace({**SPACE.inputs, "pooling": "frames"})
    bundle = Bundle(AttentionHead(Front(10), 3), LABELS, np.full(3, 0.5), settings, (space,), tool_versions())
    assert bundle.scores(features().reshape(6, 5, 10), fingerprint=space.fingerprint).shape == (6, 3)
    with pytest.raises(BundleError, match=r"shape \(N, T, 10\), but have \(30, 10\)"):
        bundle.scores(features(), fingerprint=space.fingerprint)


def set_key(name: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        document = json.loads((path / "bundle.json").read_text())
        del document["sha256"]
        (path / "bundle.json").write_text(json.dumps(sealed(document | {name: value})))

    return damage


def set_inputs(name: str, **changes: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        record = json.loads((path / "bundle.json").read_text())["inputs"]
        record[name]["feature_inputs"] |= changes
        set_key("inputs", record)(path)

    return damage


def drop_key(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        document = json.loads((path / "bundle.json").read_text())
        del document[name], document["sha256"]
        (path / "bundle.json").write_text(json.dumps(sealed(document)))

    return damage


def put(old: str, new: str) -> Callable[[Path], None]:
    """Other bytes in the document, whose digest stays."""

    def damage(path: Path) -> None:
        text = (path / "bundle.json").read_text()
        assert old in text
        (path / "bundle.json").write_text(text.replace(old, new, 1))

    return damage


def set_tensor(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    """Another tensor, with a document that vouches for it."""

    def damage(path: Path) -> None:
        save_file({**load_file(path / "head.safetensors"), name: value}, path / "head.safetensors")
        set_key("head_sha256", hashlib.sha256((path / "head.safetensors").read_bytes()).hexdigest())(path)

    return damage


def flip_bit(path: Path) -> None:
    data = bytearray((path / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "head.safetensors").write_bytes(bytes(data))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no document": (lambda path: (path / "bundle.json").unlink(), "No such file"),
    "no head": (lambda path: (path / "head.safetensors").unlink(), "No such file"),
    "not JSON": (
        lambda path: (path / "bundle.json").write_text("{"),
        r"bundle\.json: it is damaged \(not JSON\)\. Train",
    ),
    "not UTF-8": (lambda path: (path / "bundle.json").write_bytes(b"\xff\xfe{}"), "damaged"),
    "a list": (lambda path: (path / "bundle.json").write_text("[]"), "no JSON object"),
    "other format": (set_key("format", 2), "bundle format 4 or 5, but it is 2. Use the version that wrote it"),
    "no format": (put('"format"', '"fosmat"'), "the sha256 that it states"),
    "flipped bit": (flip_bit, "does not have the sha256"),
    "other threshold": (put("0.", "0.1"), "the sha256 that it states"),
    "other label": (put(f'"{LABELS[0]}"', f'"{LABELS[0][:-1]}q"'), "the sha256 that it states"),
    "no digest": (put('"sha256"', '"sha257"'), "the sha256 that it states"),
    "other space": (set_inputs("final/mean", model="x"), "not those of its feature_inputs"),
    "other tap": (set_inputs("final/mean", tap="layer_3"), "not those of its feature_inputs"),
    "other inputs": (set_key("settings", {**HeadSettings(inputs="a/b").to_mapping()}), "its head reads a/b"),
    "rule of no label": (set_key("exclusive", [["x", LABELS[0]]]), "'x' is none of"),
    "other parts": (set_key("part_widths", [4, 6]), "part_widths are .* where 1 parts make 10"),
    "temperature of 0": (set_key("calibration", {"temperatures": [0, 1, 1], "offsets": [0, 0, 0]}), "a temperature"),
    "calibration of fewer": (set_key("calibration", {"temperatures": [1], "offsets": [0]}), "the calibration is"),
    "labels twice": (set_key("labels", ["a", "b", "a"]), "not different names"),
    "label too few": (set_key("labels", ["a", "b"]), "not one in"),
    "labels no text": (set_key("labels", [1, 2, 3]), "not different names"),
    "threshold range": (set_key("thresholds", [0.5, 1.5, 0.5]), "not one in"),
    "threshold text": (set_key("thresholds", ["x", "y", "z"]), "ValueError"),
    "unknown setting": (set_key("settings", {**HeadSettings().to_mapping(), "x": 1}), "these differ: x"),
    "setting range": (set_key("settings", {**HeadSettings().to_mapping(), "epochs": 0}), "epochs must be"),
    "other width": (set_key("feature_width", 11), "size mismatch"),
    "giant width": (set_key("feature_width", 10**13), "size mismatch"),
    "width no number": (set_key("feature_width", "wide"), "damaged"),
    "clips no whole time": (set_key("clips", {"length_us": 1.5, "stride_us": 1, "min_overlap_us": 1}), "damaged"),
    "clips of nothing": (set_key("clips", {"length_us": 0, "stride_us": 1, "min_overlap_us": 1}), "damaged"),
    "clips with a part missing": (set_key("clips", {"length_us": 1}), "damaged"),
    "other kind": (set_key("settings", HeadSettings(kind="mlp").to_mapping()), "damaged"),
    "no versions": (drop_key("versions"), "KeyError"),
    "no settings": (drop_key("settings"), "KeyError"),
    "NaN weight": (set_tensor("output.bias", torch.full((3,), float("nan"))), "not finite"),
    "half weight": (set_tensor("output.bias", torch.zeros(3, dtype=torch.float16)), "not finite float32"),
    "more tensors": (set_tensor("surprise", torch.zeros(3)), "surprise"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_load_bundle_refuses_a_folder_when_it_is_damaged(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    save_bundle(make_bundle(), tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / "bundle")


def test_load_bundle_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No such file.*featurecache tune"):
        load_bundle(tmp_path / "none")


def test_load_bundle_names_the_bundle_when_given_its_run(tmp_path: Path) -> None:
    save_bundle(make_bundle(), tmp_path / "tune" / "bundle")
    with pytest.raises(BundleError, match=re.escape(f"Name {tmp_path / 'tune' / 'bundle'}.")):
        load_bundle(tmp_path / "tune")
