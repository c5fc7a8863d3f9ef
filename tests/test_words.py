"""Words: text vectors and logits against the plain models, `zeroshot text` and `find` in a project."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace
from torch import Tensor
from transformers import (
    CLIPModel,
    PeAudioVideoModel,
    PeVideoModel,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipModel,
    VideoPrismClipModel,
    XCLIPModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches
from typer.testing import CliRunner

import cli
from featurecache import FeatureCache, find, open_project
from featurecache.annotations import predicted_intervals, read_csv, read_eaf
from featurecache.backbones import open_backbone, open_inputs
from featurecache.backbones.text_tower import TextTower
from featurecache.clips.csv_file import read_table
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from featurecache.extraction.words import ProjectWords
from featurecache.files import sha256_of_file
from featurecache.project.settings import Project
from featurecache.spec import canonical_json, json_object, sealed, unsealed
from featurecache.video.sampling import ClipFrames, read_clips
from heads import load_bundle
from tests.plain_forward import text_inputs, whole_model
from tests.projects import LABELS, make_project, make_table
from tests.tiny_families import (
    make_clip,
    make_clip_vision,
    make_dinov2,
    make_pe_audio_video,
    make_pe_video,
    make_siglip,
    make_siglip2,
    make_videoprism_lvt,
    make_xclip,
)
from tests.tiny_models import pixels_of

TEXTS = ["a photo of ventilation", "Hands on a chest", "something else"]
WHOLE: dict[str, tuple[Callable[..., Path], Any]] = {
    "clip": (make_clip, CLIPModel),
    "siglip": (make_siglip, SiglipModel),
    "siglip2": (make_siglip2, Siglip2Model),
    "xclip": (make_xclip, XCLIPModel),
    "videoprism": (make_videoprism_lvt, VideoPrismClipModel),
    "pe_video": (make_pe_video, PeVideoModel),
    "pe_audio_video": (make_pe_audio_video, PeAudioVideoModel),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {name: make(root / name) for name, (make, _) in WHOLE.items()}


def _plain(name: str, folder: Path, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Text vectors (Q, D), of X-CLIP (B, Q, D), and of B clips (B, T, 3, px, px) the mean of frames' logits (B, Q)."""
    model = whole_model(WHOLE[name][1], folder)
    with torch.no_grad():
        if name.startswith("pe_"):
            out = getattr(model, "video_model", model)(pixel_values_videos=pixels, **text_inputs(folder, TEXTS))
            return out.text_video_embeds, out.logits_video_text
        if name == "siglip2":
            patches = torch.stack([convert_image_to_patches(frame, 8) for frame in pixels.flatten(0, 1)])
            shapes = torch.tensor([[4, 4]]).expand(len(patches), -1)
            out = model(
                **text_inputs(folder, TEXTS),
                pixel_values=patches,
                spatial_shapes=shapes,
                pixel_attention_mask=torch.ones(patches.shape[:2]),
            )
            return out.text_embeds, out.logits_per_image.unflatten(0, pixels.shape[:2]).mean(dim=1)
        if name == "xclip":
            out = model(pixel_values=pixels, **text_inputs(folder, TEXTS))
            return out.text_embeds, out.logits_per_video
        if name == "videoprism":
            out = model(pixel_values_videos=pixels, **text_inputs(folder, TEXTS))
            return out.text_embeds, out.video_embeds @ out.text_embeds.T
        out = model(pixel_values=pixels.flatten(0, 1), **text_inputs(folder, TEXTS))
    return out.text_embeds, out.logits_per_image.unflatten(0, pixels.shape[:2]).mean(dim=1)


@pytest.mark.parametrize("name", WHOLE)
def test_vectors_and_logits_equal_those_of_the_plain_model(folders: dict[str, Path], name: str) -> None:
    pixels = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = TextTower(folders[name])
    ours, (scale, bias) = tower.embed(TEXTS), tower.scale_and_bias
    plain, logits = _plain(name, folders[name], pixels)
    assert (plain[0] - plain[1]).norm() > 0.03
    backbone = open_backbone(
        open_inputs(folders[name], prompt="", frames=4, resize="model"), dtype="float32", device="cpu"
    )
    taps = ["joint", *(["prompted"] if tower.is_prompted else [])]
    encoded = backbone.encode_frames(pixels.flatten(0, 1), taps).unflatten(0, (3, 4))
    states = dict(backbone.states(encoded, taps))
    joint = states["joint"].tokens.mean(dim=(1, 2))
    if tower.generator is not None:  # each clip has texts of its own
        clips = states["prompted"].tokens[:, 0]
        assert torch.equal(clips[:, 0], joint)
        without, ours = torch.nn.functional.normalize(ours, dim=1), tower.generator(ours, clips)
        assert (ours - without).norm(dim=2).min() > 0.1
        assert (ours[0] - ours[1]).norm(dim=1).min() > 0.1
    assert (ours - plain).abs().max() <= 1e-5
    assert (scale * (joint[:, None] * ours).sum(dim=2) + bias - logits).abs().max() <= 1e-5


def test_fingerprint_of_words_changes_with_weights_and_tokenizer_but_not_with_the_processor(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def identity(folder: Path) -> dict[str, Any]:
        return TextTower(folder).identity(sha256_of_file)

    base = identity(folders["clip"])
    assert json.loads(json.dumps(base)) == base
    assert identity(make_clip(tmp_path / "other", seed=1)) != base
    copy = shutil.copytree(folders["clip"], tmp_path / "copy")
    (copy / "preprocessor_config.json").write_text((copy / "preprocessor_config.json").read_text() + "\n")
    assert identity(copy) == base
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    assert identity(copy) != base


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_dinov2, "'dinov2'"),
        (make_clip_vision, "'clip_vision_model'"),
    ],
)
def test_a_model_whose_texts_have_no_vector_of_their_own_is_refused_by_name(
    tmp_path: Path, make: Any, why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"need a model with a text tower.*{why}"):
        TextTower(make(tmp_path / "model"))


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_words_for_siglip_are_spelled_as_the_classes_of_its_tokenizers_do(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    text = "  Hands,  on a CHEST: "
    folder = shutil.copytree(folders[name], tmp_path / "model")
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.normalizer = Replace("_", "_")  # a vocabulary that knows capitals
    encoder.save(str(folder / "tokenizer.json"))
    plain = "hands on a chest"  # as its class spells it, which needs sentencepiece
    if name == "siglip2":
        plain = Siglip2Tokenizer().backend_tokenizer.normalizer[0].normalize_str(text)
    assert TextTower(folder).token_ids([text]) == [encoder.encode(plain).ids]
    own = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**own, "do_lower_case": False}))
    assert TextTower(folder).token_ids([text]) != [encoder.encode(plain).ids]


def test_texts_that_are_too_long_or_empty_are_refused_and_never_cut_off(folders: dict[str, Path]) -> None:
    for text, count in (("video " * 9, 9), (" ", 0)):
        with pytest.raises(SettingsError, match=rf"must have 1 to 8 of the model's tokens, but .* has {count}"):
            TextTower(folders["videoprism"]).embed([text])


@pytest.mark.parametrize(
    ("spoil", "error", "found"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), ModelNotFoundError, "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), UnsupportedModelError, "no pad_token"),
        (lambda folder: _smaller_vocabulary(folder), UnsupportedModelError, "makes token 13 where the text tower"),
    ],
    ids=["no tokenizer", "nothing to fill up with", "another model's tokenizer"],
)
def test_a_folder_whose_tokenizer_does_not_serve_is_refused(
    folders: dict[str, Path], tmp_path: Path, spoil: Any, error: type[Exception], found: str
) -> None:
    folder = shutil.copytree(folders["siglip"], tmp_path / "model")
    spoil(folder)
    with pytest.raises(error, match=found):
        TextTower(folder).embed(TEXTS)


def _smaller_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 12
    (folder / "config.json").write_text(json.dumps(config))


def _project(tmp_path: Path, model: Path) -> Project:
    project = make_project(tmp_path / "project", model, sessions=5, features='select = ["final/mean"]')
    make_table(project)
    return project


def _run(project: Project, *arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli.app, [*arguments, "--config", str(project.root), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_zeroshot_text_scores_clips_as_the_plain_model_does_and_joins_the_other_runs(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    project = _project(tmp_path, folders[name])
    planned = _run(project, "zeroshot", "text", "--dry-run")
    assert planned["todo"] == 20
    assert planned["forecast"] is not None
    assert not (project.state / "words").exists()
    for label, words in zip(LABELS, TEXTS, strict=False):
        (project.prompts / "text" / f"{label}.txt").write_text(f"{words}\n--- not\n{TEXTS[2]}\n")
    report = _run(project, "zeroshot", "text", *(("--devices", "cpu,cpu") if name == "siglip" else ()))
    assert report["asked"] == 20
    assert report["audit"]["n_clips"] == 20
    assert report["controls"]["black_video"] is not None
    assert [one["label"] for one in report["audit"]["words"]] == list(LABELS)

    bundle = load_bundle(project.runs / "zeroshot-text" / "bundle")
    assert bundle.method == "ZS-Text"
    assert bundle.words is not None
    clip = read_table(project.clips).clips[3]
    (read,) = read_clips(project.videos / clip.recording, [(clip.start_us, clip.end_us)], 4)
    assert isinstance(read, ClipFrames)
    backbone = open_backbone(
        open_inputs(folders[name], prompt="", frames=4, resize="model"), dtype="float32", device="cpu"
    )
    _, logits = _plain(name, folders[name], pixels_of(backbone, read.stacked)[None])
    expected = logits[0, :2] if name == "siglip" else logits[0, :2] - logits[0, 2]
    X = FeatureCache.open(project.cache).load([clip.clip_id], "joint", "mean")
    with torch.no_grad():
        assert (bundle.head(torch.from_numpy(X))[0] - expected).abs().max() <= 1e-5

    _run(project, "evaluate", str(project.runs / "zeroshot-text" / "bundle"))
    compared = _run(project, "compare")
    assert [row["method"] for row in compared["rows"]] == ["ZS-Text"]
    _run(project, "report")
    again = _run(project, "zeroshot", "text")
    assert again["asked"] == 0
    assert again["controls"] == report["controls"]
    if name == "clip":  # a run about some labels alone is scored on them
        fewer = _run(project, "zeroshot", "text", "--labels", LABELS[0])
        assert list(_run(project, "evaluate", fewer["bundle"])["per_class"]) == [LABELS[0]]


def test_zeroshot_text_needs_no_label_and_takes_any_words(folders: dict[str, Path], tmp_path: Path) -> None:
    project = _project(tmp_path, folders["siglip"])
    settings = project.root / "featurecache.toml"
    settings.write_text(
        settings.read_text().replace("annotations =", "# annotations =").replace("labels =", "# labels =")
    )
    make_table(open_project(project.root))
    report = _run(open_project(project.root), "zeroshot", "text", "--labels", "hands,chest")
    assert report["labels"] == ["hands", "chest"]
    assert load_bundle(Path(report["bundle"])).labels == ("hands", "chest")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a photo", "must have words for when the label is off"),
        ("<video> a photo\n--- not\na video", "words must stand alone"),
        ("a photo " * 50 + "\n--- not\na video", "1 to 77 of the model's tokens"),
        ("--- not\na video", "must hold a question"),
    ],
)
def test_zeroshot_text_refuses_words_that_cannot_be_scored_before_anything_is_computed(
    folders: dict[str, Path], tmp_path: Path, text: str, found: str
) -> None:
    project = _project(tmp_path, folders["clip"])
    for label in LABELS:
        path = project.prompts / "text" / f"{label}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert found in " ".join(_run(project, "zeroshot", "text", code=1).split())
    assert not project.cache.exists()


def test_vectors_are_remembered_and_computed_again_where_the_memo_is_damaged(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", folders["siglip"], sessions=1)
    first = ProjectWords(project).vectors(TEXTS)
    (memo,) = (project.state / "words").iterdir()
    assert not any(word in memo.read_text() for text in TEXTS for word in text.split() if len(word) > 4)
    assert memo.stat().st_mode & 0o777 == 0o600
    whole = memo.read_bytes()
    known = unsealed(json_object(whole))
    other = {text: [0.5] * len(vector) for text, vector in known["vectors"].items()}
    memo.write_text(canonical_json(sealed({**known, "vectors": other})))
    assert (ProjectWords(project).vectors(TEXTS) == 0.5).all()  # it is read, and no tower asked
    memo.write_bytes(whole)
    for content in (memo.read_text(), memo.read_text().replace("0.1", "0.2", 1), "{"):
        memo.write_text(content)
        assert np.array_equal(ProjectWords(project).vectors(TEXTS), first)


@pytest.fixture(scope="module")
def searchable(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of overlapping clips whose joint embeddings are cached."""
    root = tmp_path_factory.mktemp("find") / "project"
    project = make_project(root, folders["siglip"], sessions=3, features='select = ["joint/mean", "joint/frames"]')
    settings = root / "featurecache.toml"
    settings.write_text(settings.read_text().replace("stride_s = 1", "stride_s = 0.5"))
    project = open_project(root)
    make_table(project)
    _run(project, "extract")
    return project


def test_find_lists_the_clips_nearest_to_the_words_none_overlapping_a_better_one(
    folders: dict[str, Path], searchable: Project
) -> None:
    cache, clips = FeatureCache.open(searchable.cache), read_table(searchable.clips).clips
    frames = cache.load([clip.clip_id for clip in clips], "joint", "frames")
    by_hand = frames @ TextTower(folders["siglip"]).embed(["hands on chest"])[0].numpy()  # (N, T)
    best = max(clips, key=lambda clip: by_hand[clips.index(clip)].mean())
    found = find(searchable, "hands on chest", top=5)
    assert found.searched == len(clips) > 15
    assert len(found.hits) == 5
    assert found.hits[0].clip_id == best.clip_id
    assert found.hits[0].similarity == pytest.approx(by_hand[clips.index(best)].mean(), abs=1e-5)
    assert [hit.similarity for hit in found.hits] == sorted((hit.similarity for hit in found.hits), reverse=True)
    every = find(searchable, "hands on chest", top=1000).hits
    for one, other in itertools.combinations(every, 2):
        assert one.recording != other.recording or one.end_us <= other.start_us or other.end_us <= one.start_us


def test_hits_become_a_table_of_annotations_or_predicted_elan_files_and_replace_nothing(
    searchable: Project, tmp_path: Path
) -> None:
    document = _run(searchable, "find", "hands on chest", "--top", "6", "--out", str(tmp_path / "hits.csv"))
    table = read_csv(tmp_path / "hits.csv")
    assert len(table.rows) == 6 == len(document["hits"])
    assert {row.label for row in table.rows} == {"hands on chest"}
    document = _run(searchable, "find", "hands on chest", "--top", "6", "--out", str(tmp_path / "hits.eaf"))
    recordings = sorted({hit["recording"] for hit in document["hits"]})
    assert [Path(path).name for path in document["written"]] == [f"hits.{one}.predicted.eaf" for one in recordings]
    shown = [one for path in document["written"] for one in predicted_intervals(read_eaf(Path(path)), time_origin_ms=0)]
    assert len(shown) == 6
    assert {one.label for one in shown} == {"hands on chest"}
    for name in ("hits.csv", "hits.eaf"):
        assert "must not replace another" in _run(searchable, "find", "a", "--out", str(tmp_path / name), code=1)


def test_find_says_what_to_do_when_it_cannot_search(folders: dict[str, Path], tmp_path: Path) -> None:
    project = _project(tmp_path, folders["siglip"])
    for _ in range(2):  # without a cache, and without this feature in it
        assert "to be searched by words, but none has. Add" in " ".join(_run(project, "find", "hands", code=1).split())
        _run(project, "extract")
    assert "go into a .csv or an .eaf" in _run(project, "find", "hands", "--out", "hits.txt", code=2)
