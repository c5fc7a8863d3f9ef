"""Small files of real repositories, as they were published, around tiny weights: each opens, or is refused rightly.

FEATURECACHE_WRITE_TABLE=1 python -m pytest tests/test_real_layouts.py    # writes docs/backbones.md's table anew
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurecache.errors import FeatureCacheError
from tests import tiny_families, tiny_models, tiny_video_language
from tests.plain_forward import decoded, extracted, plain
from tests.published_layouts import BOUND, DOCS, PROCESSOR_FILES, lay_out

HUB = Path(__file__).parents[1].parent / "shared/data/hub"
FOLDERS = sorted(HUB.iterdir()) if HUB.exists() else []

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the small files of real repositories are not on this machine")

MAKERS: list[tuple[str, Callable[[Path], Path], int]] = [
    ("llava-hf__LLaVA-NeXT-Video", tiny_models.make_llava_next_video, tiny_models.IMAGE_PX),
    ("llava-hf__llava-onevision", tiny_video_language.make_llava_onevision, 40),
    ("Qwen__Qwen2.5-VL", tiny_video_language.make_qwen2_5_vl, tiny_families.IMAGE_PX),
    ("Qwen__Qwen3-VL", tiny_video_language.make_qwen3_vl, tiny_families.IMAGE_PX),
    ("HuggingFaceTB__SmolVLM2", tiny_video_language.make_smolvlm, tiny_families.IMAGE_PX),
    ("InternVL3.5", tiny_video_language.make_internvl, tiny_families.IMAGE_PX),
    ("facebook__timesformer", tiny_families.make_timesformer, tiny_families.IMAGE_PX),
    ("timesformer", tiny_families.make_timesformer, tiny_families.IMAGE_PX),
    ("MCG-NJU__videomae", tiny_families.make_videomae_pretrained, tiny_families.IMAGE_PX),
    ("onnx-tiny__tiny-random-VideoMAE", tiny_families.make_videomae_pretrained, tiny_families.IMAGE_PX),
    ("openai__clip", tiny_families.make_clip, tiny_families.IMAGE_PX),
    ("microsoft__xclip", tiny_families.make_xclip, tiny_families.IMAGE_PX),
    ("google__siglip", tiny_families.make_siglip, tiny_families.IMAGE_PX),
    ("facebook__dinov3", tiny_families.make_dinov3, tiny_families.IMAGE_PX),
    ("optimum-intel-internal-testing__tiny-random-dinov-3", tiny_families.make_dinov3, tiny_families.IMAGE_PX),
    ("facebook__dinov2", tiny_families.make_dinov2, tiny_families.IMAGE_PX),
]
"""Beginning of a folder's name, what makes a tiny model of that family, and its frames' size."""

REFUSED = {
    "llava-hf__LLaVA-NeXT-Video-7B-32K-hf__fine-tune_2025-08_transformers-4.53": "quantised",
    "llava-hf__LLaVA-NeXT-Video-7B-hf__b44ecd2_2024-06_commit3": "Take a later revision",
    "llava-hf__LLaVA-NeXT-Video-7B-hf__6e24044_2024-07": r"config\.json is not .*line 42 column",
}
OTHER_FAMILIES = {
    "OpenGVLab__VideoMAEv2-Base__0e826d7_2025": "auto_map",
    "microsoft__BiomedCLIP-PubMedBERT_256-vit_base_patch16_224__main_2024": "laid out for open_clip",
    "microsoft__BiomedCLIP-PubMedBERT_256-vit_base_patch16_224__2584124_older": "laid out for open_clip",
}
SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "image_size", "patch_size", "num_frames", "tubelet_size", "projection_dim", "projection_size"),
    *("decoder_hidden_size", "decoder_intermediate_size", "decoder_num_attention_heads", "decoder_num_hidden_layers"),
    *("num_register_tokens", "image_token_index", "video_token_index", "max_position_embeddings", "head_dim"),
}


def _shrunk(published: dict[str, Any], tiny: dict[str, Any]) -> dict[str, Any]:
    """A published config with the sizes of a tiny one."""
    mixed = {**published, **{key: tiny[key] for key in SIZES & tiny.keys()}}
    nested = {key for key in published if isinstance(published[key], dict) and isinstance(tiny.get(key), dict)}
    return mixed | {key: _shrunk(published[key], tiny[key]) for key in nested}


def _small_frames(settings: Any, px: int) -> Any:
    """A published processor's settings whose frames have this size."""
    nested = {
        key: _small_frames(settings[key], px) for key in ("image_processor", "video_processor") if key in settings
    }
    if nested:
        return {**settings, **nested}
    if "merge_size" in settings and "size" not in settings:  # bounds on the pixels of a frame
        return {**settings, "patch_size": 8, "min_pixels": 256, "max_pixels": 2304}
    if "merge_size" in settings:  # bounds on the pixels of a video of four frames, and patches as in the small models
        return {**settings, "patch_size": 8, "size": {"longest_edge": 4 * px**2, "shortest_edge": 256}}
    sizes = {key: settings[key] for key in ("size", "crop_size", "max_image_size") if settings.get(key)}
    if not sizes:
        return settings
    if (
        settings.get("do_center_crop") and "size" in sizes
    ):  # X-CLIP's file leaves it to the class, whose default is the size it names
        sizes.setdefault("crop_size", sizes["size"])
    largest = sizes.get("crop_size") or sizes.get("max_image_size") or sizes["size"]
    full = largest if isinstance(largest, int) else next(iter(largest.values()))

    def scaled(size: Any) -> Any:
        return {key: one * px // full for key, one in size.items()} if isinstance(size, dict) else size * px // full

    return {**settings, **{key: scaled(size) for key, size in sizes.items()}}


def _make(source: Path, folder: Path) -> Path:
    """A tiny model's folder with every small file of a published one but the vocabulary."""
    make, px = next((make, px) for start, make, px in MAKERS if source.name.startswith(start))
    make(folder)
    tiny = json.loads((folder / "config.json").read_text())
    names = [name for name in PROCESSOR_FILES if (source / name).exists()]
    if any(name != "processor_config.json" for name in names):
        lay_out(folder, {name: _small_frames(json.loads((source / name).read_text()), px) for name in names})
    for path in source.iterdir():
        if path.name in names or path.is_dir() or path.name.startswith(("tokenizer", "special_tokens", "added_tokens")):
            continue
        shutil.copy(path, folder / path.name)
    try:
        published = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError:
        return folder
    (folder / "config.json").write_text(json.dumps(_shrunk(published, tiny)))
    return folder


BEGIN, END = "<!-- made by tests/test_real_layouts.py -->\n", "<!-- end of repositories -->"
OURS = [source for source in FOLDERS if any(source.name.startswith(start) for start, _, _ in MAKERS)]


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, str]]:
    """The table's rows by folder, written into the documentation at the end where that is asked for."""
    found: dict[str, str] = {}
    yield found
    if os.environ.get("FEATURECACHE_WRITE_TABLE") and len(found) == len(OURS):
        text = DOCS.read_text()
        head = "| repository, revision or copy | opens | largest difference |\n| --- | --- | --- |\n"
        table = head + "".join(f"{found[source.name]}\n" for source in OURS)
        DOCS.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table + text[text.index(END) :])


def _row(source: Path, outcome: str) -> str:
    """A line of the table; a folder is called `organisation__name__revision`."""
    *place, revision = source.name.split("__")
    return f"| `{'/'.join(place)}`, {revision.replace('_', ' ')} | {outcome} |"


@pytest.mark.parametrize("source", OURS, ids=lambda path: path.name)
def test_real_layouts_open_and_equal_the_plain_forward(source: Path, tmp_path: Path, rows: dict[str, str]) -> None:
    folder = _make(source, tmp_path)
    if source.name in REFUSED:
        with pytest.raises(FeatureCacheError, match=REFUSED[source.name]):
            extracted(folder, decoded())
        rows[source.name] = _row(source, "no: refused by name | -")
    else:
        ours, reference = (found(folder, decoded())["final"] for found in (extracted, plain))
        assert ours.shape == reference.shape
        assert reference.std() > 0.1
        assert (ours - reference).abs().max() <= BOUND
        close = (ours - reference).abs().max() <= 1e-6
        rows[source.name] = _row(source, f"yes | below {'1e-6' if close else '1e-5'}")
    if not os.environ.get("FEATURECACHE_WRITE_TABLE"):
        named = _row(source, "").rstrip("| ")
        told = [line for line in DOCS.read_text().splitlines() if line.startswith(f"{named} |")]
        assert told in ([], [rows[source.name]]), "the table must not say otherwise"


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_real_folders_of_other_families_are_refused_by_what_they_are(name: str) -> None:
    with pytest.raises(FeatureCacheError, match=OTHER_FAMILIES[name]):
        extracted(HUB / name, decoded())
