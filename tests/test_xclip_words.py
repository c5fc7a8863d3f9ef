"""Words for X-CLIP, whose texts' vectors depend on the clip: a run in a project against the plain model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import XCLIPModel

from featurecache import FeatureCache, find, open_project
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.text_tower import TextTower
from featurecache.clips.csv_file import read_table
from featurecache.errors import BundleError, UnsupportedModelError
from featurecache.extraction.words import ProjectWords
from featurecache.project.settings import Project
from featurecache.spec import sealed, unsealed
from featurecache.video.sampling import ClipFrames, read_clips
from heads import load_bundle
from heads.workflow.retraining import retrain
from heads.zeroshot.words import prepare_words, words_prior
from tests.commands import invoke, run
from tests.plain_forward import text_inputs, whole_model
from tests.projects import LABELS, edit, make_project, make_table
from tests.tiny_families import make_xclip
from tests.tiny_models import pixels_of

TEXTS = ["a photo of ventilation", "Hands on a chest", "something else"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_xclip(tmp_path_factory.mktemp("xclip") / "model")


@pytest.fixture(scope="module")
def prompted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of X-CLIP, stored as by default, with a run of words; one label has two wordings."""
    project = make_project(
        tmp_path_factory.mktemp("xclip") / "project", model, sessions=5, features='select = ["joint/mean"]'
    )
    edit(project.path, 'stored_dtype = "float32"', "")
    project = open_project(project.root)
    make_table(project)
    (project.prompts / "text").mkdir(parents=True)
    for label, words in zip(LABELS, (f"{TEXTS[0]}\n---\n{TEXTS[1]}", TEXTS[1]), strict=True):
        (project.prompts / "text" / f"{label}.txt").write_text(f"{words}\n--- not\n{TEXTS[2]}\n")
    report = run("zeroshot", "text", "--config", project.root)
    assert report["controls"]["black_video"] is not None
    assert set(report["controls"]["candidates"]) == {"ensemble", "wording 1", "wording 2"}
    return project


def test_each_wording_for_xclip_gets_the_clips_prompt_before_wordings_are_averaged(
    model: Path, prompted: Project
) -> None:
    clip = read_table(prompted.clips).clips[3]
    (read,) = read_clips(prompted.videos / clip.recording, [(clip.start_us, clip.end_us)], 4)
    assert isinstance(read, ClipFrames)
    backbone = open_backbone(open_inputs(model, prompt="", frames=4, resize="model"), dtype="float32", device="cpu")
    pixels = pixels_of(backbone, read.stacked)[None]
    with torch.no_grad():
        out = whole_model(XCLIPModel, model)(pixel_values=pixels, **text_inputs(model, TEXTS))
    first, second, other = out.text_embeds[0]
    both = first + second
    scale = TextTower(model).scale_and_bias[0]
    expected = [scale * out.video_embeds[0] @ (words - other) for words in (both / both.norm(), first, second)]

    cached = FeatureCache.open(prompted.cache).load([clip.clip_id], "prompted", "tokens")
    X = torch.from_numpy(cached).view(torch.bfloat16).float()
    words = prepare_words(ProjectWords(prompted), prompted.prompts, LABELS, [])
    scores = words.candidates({"prompted": X.numpy()})
    got = [float(one[0, 0]) for one in scores.values()]
    assert got == pytest.approx([float(torch.sigmoid(one)) for one in expected], abs=2e-2)  # stored in bfloat16
    assert np.isnan(scores["wording 2"][0, 1])
    encoded = backbone.encode_frames(pixels[0], ["prompted"])[None]
    ((_, states),) = backbone.states(encoded, ["prompted"])
    exact = words.candidates({"prompted": states.tokens[:, 0].numpy()})
    assert [float(one[0, 0]) for one in exact.values()] == pytest.approx(
        [float(torch.sigmoid(one)) for one in expected], abs=1e-5
    )
    bundle = load_bundle(prompted.runs / "zeroshot-text" / "bundle")
    chosen = json.loads((prompted.runs / "zeroshot-text" / "best.json").read_text())["controls"]["chosen"]
    at = ["ensemble", "wording 1", "wording 2"].index(chosen[LABELS[0]])
    assert bundle.scores(X.numpy(), fingerprint=bundle.fingerprint)[0, 0] == pytest.approx(got[at], abs=1e-6)


def test_commands_take_a_run_of_xclips_words_or_say_in_a_line_why_not(prompted: Project, tmp_path: Path) -> None:
    bundle = str(prompted.runs / "zeroshot-text" / "bundle")
    at = ("--config", prompted.root)
    run("evaluate", bundle, *at)
    recording = str(prompted.videos / "S0.mp4")
    written = run("predict", recording, "--bundle", bundle, "--out", tmp_path / "out", *at)["written"]
    assert [one["failed_clips"] for one in written] == [0]
    for arguments, why in (
        (("shortcuts", "--bundle", bundle), "reads no mean"),
        (("maps", read_table(prompted.clips).clips[0].clip_id, "--bundle", bundle), "reads no mean"),
        (("evaluate", bundle, "--leave-one-session-out"), "is of ZS-Text, which fits none"),
    ):
        assert why in " ".join(invoke(*arguments, *at).output.split())
    with pytest.raises(BundleError, match="is of ZS-Text"):
        retrain(prompted, Path(bundle))
    found = find(prompted, TEXTS[0], top=1000)
    assert found.searched == 20
    X = FeatureCache.open(prompted.cache).load([hit.clip_id for hit in found.hits], "prompted", "tokens")
    clips, tower = torch.from_numpy(X).view(torch.bfloat16).float(), TextTower(Path(prompted.settings.features.model))
    assert tower.generator is not None
    by_hand = (tower.generator(tower.embed(TEXTS[:1]), clips)[:, 0] * clips[:, 0]).sum(dim=1)
    assert [hit.similarity for hit in found.hits] == pytest.approx(by_hand.tolist(), abs=1e-5)


def test_a_head_that_starts_at_xclips_words_starts_at_texts_without_a_clips_prompt(
    model: Path, prompted: Project
) -> None:
    tower = TextTower(model)
    first, second, other = torch.nn.functional.normalize(tower.embed(TEXTS), dim=1).double().numpy()
    both = (first + second) / np.linalg.norm(first + second)
    prior = words_prior(prompted, LABELS, [])
    assert prior is not None
    expected = [tower.scale_and_bias[0] * (words - other) for words in (both, second)]
    np.testing.assert_allclose(prior.weights, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_layers", 10**9), ("prompt_layers", 1), ("prompt_num_attention_heads", 3), ("text_eps", -1)],
)
def test_a_bundle_whose_generator_is_not_as_stated_is_refused(
    prompted: Project, tmp_path: Path, name: str, value: int
) -> None:
    folder = shutil.copytree(prompted.runs / "zeroshot-text" / "bundle", tmp_path / "bundle")
    document = unsealed(json.loads((folder / "bundle.json").read_text()))
    document["words"]["generator"][name] = value
    (folder / "bundle.json").write_text(json.dumps(sealed(document)))
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(folder)


@pytest.mark.parametrize(("field", "found"), [("mit_hidden_size", "mit_hidden_size = 8"), ("projection_dim", "= 8")])
def test_a_model_whose_parts_are_of_other_widths_is_refused(
    model: Path, tmp_path: Path, field: str, found: str
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (config["vision_config"] if field.startswith("mit") else config)[field] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=found):
        open_inputs(folder, prompt="", frames=4, resize="model")
