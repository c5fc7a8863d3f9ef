"""A project on a vision encoder, from recordings to a trained head: overlapping clips, several selected features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from featurecache import FeatureCache
from featurecache.backbones import open_backbone, open_inputs
from featurecache.clips.csv_file import read_table
from featurecache.project.features import FeatureSettings
from featurecache.project.settings import open_project
from featurecache.setup.proposal import propose
from featurecache.video.sampling import ClipFrames, read_clips
from tests.commands import run
from tests.make_videos import write_video
from tests.projects import make_project, make_table
from tests.tiny_families import make_clip, make_timesformer
from tests.tiny_models import pixels_of

KEPT = ["final/mean", "layer_1/frames", "final/cls", "layer_2/motion"]


def test_init_proposes_the_frames_that_a_clip_encoder_was_made_for(tmp_path: Path) -> None:
    model = make_timesformer(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", count=10, fps=5)
    found = propose(tmp_path / "new", videos=tmp_path / "videos", annotations=None, model=str(model))
    wanted = json.loads((model / "config.json").read_text())["num_frames"]
    assert open_project(found.path).settings.features.frames == wanted != FeatureSettings("demo").frames
    assert not [line for line in found.warnings if line.startswith("model")]


@pytest.mark.parametrize("make", [make_clip, make_timesformer], ids=["frame encoder", "clip encoder"])
def test_project_goes_from_recordings_to_a_head_when_the_model_is_a_vision_encoder(tmp_path: Path, make: Any) -> None:
    model = make(tmp_path / "model")
    project = make_project(tmp_path / "project", model, sessions=5, features=f"select = {KEPT}")
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace("stride_s = 1", "stride_s = 0.5"))
    project = open_project(project.root)
    make_table(project)
    run("extract", "--config", project.root)
    clips = read_table(project.clips).clips
    assert len(clips) > 30
    cache = FeatureCache.open(project.cache)
    ids = [clip.clip_id for clip in clips]
    stored = {kept: cache.load(ids, *kept.split("/")) for kept in KEPT}
    assert {kept: X.shape[1:] for kept, X in stored.items()} == dict(
        zip(KEPT, [(24,), (4, 24), (24,), (24,)], strict=True)
    )

    backbone = open_backbone(open_inputs(model, prompt="", frames=4, resize="crop"), dtype="float32", device="cpu")
    for row in (0, 1, 17, len(clips) - 1):
        clip = clips[row]
        (read,) = read_clips(project.videos / clip.recording, [(clip.start_us, clip.end_us)], 4)
        assert isinstance(read, ClipFrames)
        encoded = backbone.encode_frames(pixels_of(backbone, read.stacked), ["layer_1", "layer_2", "final"])
        states = dict(backbone.states(encoded[None], ["layer_1", "layer_2", "final"]))
        by_hand = {
            "final/mean": states["final"].tokens.mean(dim=(1, 2)),
            "layer_1/frames": states["layer_1"].tokens.mean(dim=2),
            "final/cls": states["final"].cls.mean(dim=1),
            "layer_2/motion": states["layer_2"].tokens.mean(dim=2).diff(dim=1).abs().mean(dim=1),
        }
        for kept, feature in by_hand.items():
            assert (torch.from_numpy(stored[kept][row]) - feature[0]).abs().max() <= 1e-5, (kept, row)

    run("train", "--config", project.root)
    assert (project.runs / "train" / "bundle").is_dir()
