"""What a linear head uses of a clip: parts that add up to its log odds, files, pictures, and heads without a map."""

import csv
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from featurecache import FeatureCache, extract
from featurecache.clips.csv_file import read_table
from featurecache.errors import BundleError, ClipTableError, MissingFeaturesError, UnreadableVideoError
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.models import Front, LinearHead, MLPHead
from heads.settings import HeadSettings
from heads.workflow.mapping import map_clip, picture_of
from tests.commands import invoke, run
from tests.projects import LABELS, make_project, make_table


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Two recordings of two clips with means, motion and tokens of each."""
    select = 'select = ["final/mean", "final/motion", "final/tokens"]'
    root = tmp_path_factory.mktemp("maps") / "project"
    project = make_project(root, tiny_model, sessions=2, clips=2, features=select)
    make_table(project)
    extract(project)
    for inputs in ("final/mean", "final/mean+final/motion"):
        _save(project, inputs, HeadSettings(inputs=inputs))
    return project


def _save(project: Project, inputs: str, settings: HeadSettings, *, hidden: bool = False) -> Path:
    spaces = project_spaces(project)[1]
    model = project_spaces(project)[0]
    width = model.taps["final"].width
    parts = inputs.split("+")
    torch.manual_seed(0)
    front = Front(width * len(parts), part_widths=[width] * len(parts))
    front.mean.normal_()
    front.scale.uniform_(0.5, 2)
    head = MLPHead(front, len(LABELS), hidden_widths=[4]) if hidden else LinearHead(front, len(LABELS))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    used = tuple(spaces[name] for name in parts)
    bundle = Bundle(head, LABELS, np.array([0.5, 0.5]), settings, used, tool_versions())
    folder = project.runs / inputs.replace("/", "-") / settings.kind / settings.normalization
    save_bundle(bundle, folder)
    return folder


@pytest.mark.parametrize("inputs", ["final/mean", "final/mean+final/motion"])
def test_parts_of_tokens_add_up_to_the_log_odds_of_the_clip_and_are_weights_times_token(
    project: Project, inputs: str
) -> None:
    folder = _save(project, inputs, HeadSettings(inputs=inputs))
    clip = read_table(project.clips).clips[1]
    found = map_clip(project, clip.clip_id, bundle=folder, feature="final/mean")
    from heads.bundle import load_bundle

    bundle, cache = load_bundle(folder), FeatureCache.open(project.cache)
    X = np.concatenate([cache.load([clip.clip_id], *name.split("/")) for name in inputs.split("+")], axis=-1)
    score = bundle.scores(X, fingerprint=bundle.fingerprint)[0]
    np.testing.assert_allclose(found.log_odds, np.log(score / (1 - score)), atol=1e-4)
    np.testing.assert_allclose(found.rounding, 0, atol=1e-4)
    tokens = cache.load([clip.clip_id], "final", "tokens")[0].astype(np.float64)  # (S, D)
    state = {name: tensor.double().numpy() for name, tensor in bundle.head.state_dict().items()}
    own = slice(0, tokens.shape[1])
    weights = state["output.weight"][:, own] / state["front.scale"][own]
    expected = (tokens - state["front.mean"][own]) @ weights.T / len(tokens)
    np.testing.assert_allclose(found.parts.reshape(expected.shape), expected, atol=1e-9)
    assert found.parts.shape[0] == 4
    assert (abs(found.others).max() > 1e-3) == ("motion" in inputs)


def test_files_of_a_map_hold_every_token_and_no_frame_unless_asked(project: Project) -> None:
    clip = read_table(project.clips).clips[0]
    document = run(
        "maps", clip.clip_id, "--bundle", _save(project, "final/mean", HeadSettings()), "--config", project.root
    )
    folder = project.runs / "maps" / clip.clip_id
    assert {path.name for path in folder.iterdir()} == {"map.csv", "map.json"}
    assert json.loads((folder / "map.json").read_text()) == document
    with (folder / "map.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for label in LABELS:
        added = sum(float(row[label]) for row in rows)
        assert added == pytest.approx(sum(document["labels"][label]["steps"]), abs=1e-4)
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 1
    assert {(row["row"], row["column"]) for row in rows} == {
        (str(r), str(c)) for r in range(2) for c in range(2)
    } or len({(row["row"], row["column"]) for row in rows}) == len(rows) // 4
    assert (folder / "map.csv").stat().st_mode & 0o777 == 0o600


def test_pictures_are_drawn_of_the_recording_that_was_extracted_and_of_no_other(project: Project) -> None:
    clip = read_table(project.clips).clips[2]
    folder = _save(project, "final/mean", HeadSettings())
    found = map_clip(project, clip.clip_id, bundle=folder, with_frames=True)
    assert {path.name for path in found.pictures.values()} == {"label-1.jpg", "label-2.jpg"}
    assert {path.name for path in found.folder.glob("*.jpg")} == {"label-1.jpg", "label-2.jpg"}
    assert not list(map_clip(project, clip.clip_id, bundle=folder).folder.glob("*.jpg"))
    video = project.videos / clip.recording
    kept = video.read_bytes()
    try:
        video.write_bytes((project.videos / "S0.mp4").read_bytes())
        with pytest.raises(UnreadableVideoError, match="missing or another"):
            map_clip(project, clip.clip_id, bundle=folder, with_frames=True)
    finally:
        video.write_bytes(kept)


def test_a_picture_is_red_where_a_patch_raises_the_score_and_blue_where_it_lowers_it() -> None:
    frames = np.full((4, 64, 64, 3), 128, np.uint8)
    parts = np.zeros((4, 16))
    parts[1, 4 * 0 + 3], parts[2, 4 * 2 + 1] = 1.0, -1.0  # step 1: top right; step 2: third row, second column
    with av.open(io.BytesIO(picture_of(frames, parts))) as file:
        pixels = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert pixels.shape == (160, 4 * 160, 3)
    red, blue = pixels[..., 0] - pixels[..., 2] > 60, pixels[..., 2] - pixels[..., 0] > 60
    assert abs(np.argwhere(red).mean(axis=0) - [20, 160 + 140]).max() < 4
    assert abs(np.argwhere(blue).mean(axis=0) - [100, 2 * 160 + 60]).max() < 4


def test_heads_without_an_exact_map_and_clips_without_tokens_are_refused_in_words(project: Project) -> None:
    clip_id = read_table(project.clips).clips[0].clip_id
    hidden = _save(project, "final/mean", HeadSettings(kind="mlp", hidden_width=4), hidden=True)
    unit = _save(project, "final/mean", HeadSettings(normalization="l2"))
    motion = _save(project, "final/motion", HeadSettings(inputs="final/motion"))
    for folder, why in ((hidden, "kind mlp"), (unit, "unit length"), (motion, "reads no mean")):
        with pytest.raises(BundleError, match=why):
            map_clip(project, clip_id, bundle=folder)
    linear = _save(project, "final/mean", HeadSettings())
    with pytest.raises(ClipTableError, match="is none"):
        map_clip(project, "x", bundle=linear)
    for space in (project.cache / "spaces").glob("final-tokens-*"):
        space.rename(project.root / space.name)
    try:
        with pytest.raises(MissingFeaturesError, match="final/tokens"):
            map_clip(project, clip_id, bundle=linear)
    finally:
        for space in project.root.glob("final-tokens-*"):
            space.rename(project.cache / "spaces" / space.name)
    assert invoke("maps", clip_id, "--bundle", hidden, "--config", project.root).exit_code == 1
