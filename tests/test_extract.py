"""Features of a project: equal to the plain forward, each computed once, and checked against what is stored."""

import logging
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache import FeatureCache
from featurecache.backbones import open_backbone
from featurecache.clips.clip import clip_id
from featurecache.clips.csv_file import read_table
from featurecache.errors import ChangedFeaturesError, SettingsError
from featurecache.extraction.pipeline import extract
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from featurecache.spec import differences
from featurecache.store import CacheWriter, Row
from featurecache.terminal.extraction import plan_lines
from featurecache.video.sampling import read_clips
from tests.extraction_samples import extracted, rows_on_disk, selecting
from tests.make_videos import write_video
from tests.projects import edit, edited, make_project, make_table
from tests.tiny_models import IMAGE_PX, plain_processor

PROMPT = "user: describe the hand . <video>"


def _plain_states(
    path: Path, model: Path, start_us: int, end_us: int, frames: int, cut: tuple[slice, ...] = (), turns: int = 0
) -> list[torch.Tensor]:
    """The naive recipe: decode everything, pick frames by timestamp, whole model, mask; every layer's, each (S, D)."""
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        zero = (container.start_time or 0) / 1e6
    times = [(start_us + (k + 0.5) * (end_us - start_us) / frames) / 1e6 + zero for k in range(frames)]
    chosen = np.stack([[np.rot90(image, turns)[cut] for at, image in pictures if at <= time][-1] for time in times])
    processor = plain_processor(model)
    plain = LlavaNextVideoForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    video = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    inputs = processor(text=[PROMPT], videos=[video], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states
    return [at[0, inputs["input_ids"][0] == processor.video_token_id] for at in states]


def test_cached_features_equal_the_plain_forward(project: Project, tiny_model: Path) -> None:
    assert extracted(project) == 24
    clips = read_table(project.clips).clips
    X = FeatureCache.open(project.cache).load([clip.clip_id for clip in clips])
    assert X.shape == (24, 32)
    assert X.dtype == np.float32
    for row in (0, 5, 10, 23):
        clip = clips[row]
        plain = _plain_states(project.videos / clip.recording, tiny_model, clip.start_us, clip.end_us, 4)[-1].mean(0)
        assert np.abs(X[row] - plain.numpy()).max() <= 1e-5


def test_features_of_a_crop_are_those_of_frames_that_were_cut_by_hand_and_a_space_of_their_own(
    project: Project, tiny_model: Path
) -> None:
    (whole,) = project_spaces(project)[1].values()
    cropped = edited(project, "frames = 4", "frames = 4\ncrop = [0.25, 0.5, 0.5, 0.5]")
    (space,) = project_spaces(cropped)[1].values()
    assert differences(space, whole) == {"preprocessing.crop": ([0.25, 0.5, 0.5, 0.5], None)}
    assert extracted(cropped) == 24
    clip = read_table(project.clips).clips[5]
    X = FeatureCache.open(project.cache).load([clip.clip_id])
    path, (height, width) = project.videos / clip.recording, (96, 176)
    cut = slice(height // 2, height), slice(width // 4, 3 * width // 4)
    plain = _plain_states(path, tiny_model, clip.start_us, clip.end_us, 4, cut)[-1].mean(0)
    assert np.abs(X[0] - plain.numpy()).max() <= 1e-5
    all_of_it = edited(project, "crop = [0.25, 0.5, 0.5, 0.5]", "crop = [0.0, 0.0, 1.0, 1.0]")
    assert project_spaces(all_of_it)[1] == {"final/mean": whole}, "all of a frame is no crop"
    by_size = '{ "176x96" = [-0.0, 0, 1, 1] }'
    all_by_size = edited(project, "crop = [0.0, 0.0, 1.0, 1.0]", f"crop = {by_size}")
    assert project_spaces(all_by_size)[1] == {"final/mean": whole}, "nor is it by size"
    failures = plan_extraction(edited(project, by_size, "[-0.0, 0.0, 1.0, 0.02]")).failures
    assert {one.reason for one in failures} == {
        "the sides of features.crop must be within 20 to 1, but they are 176 x 2 px"
    }


def test_cameras_of_one_frame_size_are_cut_by_the_boxes_of_their_names(project: Project, tiny_model: Path) -> None:
    whole = ", ".join(f'"{pattern}" = [0, 0, 1, 1]' for pattern in ("S2*", "*3*", "S*3*"))
    boxes = f'{{ "s0.*" = [0.25, 0.5, 0.5, 0.5], "*1.mp4" = [0.0, 0.0, 0.5, 1.0], {whole} }}'
    cropped = edited(project, "frames = 4", f"frames = 4\ncrop = {boxes}")
    (space,) = project_spaces(cropped)[1].values()
    cuts = {"*1.mp4": [0.0, 0.0, 0.5, 1.0], "s0.*": [0.25, 0.5, 0.5, 0.5]}
    assert space.inputs["preprocessing"]["crop"] == cuts, "a box of all of a frame changes no feature"
    plan = plan_extraction(cropped)
    reasons = {one.recording: one.reason for one in plan.failures}
    assert "of S3.mp4 *3*, S*3* do. Name the recording as others are; or correct" in reasons["S3.mp4"]
    assert "of S4.mp4 of *1.mp4, *3*, S*3*, S2*, s0.* none does" in reasons["S4.mp4"]
    assert plan.mismatch.unclear == ("S3.mp4", "S4.mp4", "S5.mp4")
    assert extracted(cropped) == 12, "recordings without a box of their own are never taken whole"
    clips = {one.recording: one for one in read_table(project.clips).clips if one.start_us == 2_000_000}
    for name, cut in (
        ("S0.mp4", (slice(48, 96), slice(44, 132))),
        ("S1.mp4", (slice(0, 96), slice(0, 88))),
        ("S2.mp4", ()),
    ):
        clip = clips[name]
        plain = _plain_states(project.videos / name, tiny_model, clip.start_us, clip.end_us, 4, cut)[-1].mean(0)
        X = FeatureCache.open(project.cache).load([clip.clip_id])
        assert np.abs(X[0] - plain.numpy()).max() <= 1e-5, name


def test_a_turned_recording_is_cut_by_the_box_of_its_displayed_size(project: Project, tiny_model: Path) -> None:
    write_video(project.videos / "S0.mp4", count=20, fps=5, rotation=(90, False, False))
    boxes = '{ "96x176" = [0.25, 0.0, 0.75, 0.5], "640x481" = [0.0, 0.0, 0.5, 0.5] }'
    cropped = edited(project, "frames = 4", f"frames = 4\ncrop = {boxes}")
    make_table(cropped)
    plan = plan_extraction(cropped)
    assert (plan.mismatch.unused, plan.mismatch.boxless) == (("640x481",), {"176x96": 5})
    shown = " ".join(str(one) for one in plan_lines(plan))
    assert "no recording in use has frames of 640x481 px, which have a box" in shown
    assert "5 recordings of 176x96 px have no box and stay whole" in shown
    assert extracted(cropped) == 24
    clips = {one.recording: one for one in read_table(project.clips).clips if one.start_us == 2_000_000}
    for name, turns, cut in (("S0.mp4", 1, (slice(0, 88), slice(24, 96))), ("S1.mp4", 0, ())):
        clip = clips[name]
        plain = _plain_states(project.videos / name, tiny_model, clip.start_us, clip.end_us, 4, cut, turns)[-1].mean(0)
        X = FeatureCache.open(project.cache).load([clip.clip_id])
        assert np.abs(X[0] - plain.numpy()).max() <= 1e-5


EVERY_KIND = ("vision/mean", "layer_0/tokens", "layer_1/motion", "final/frames", "final/mean", "final/last")


def test_one_pass_fills_every_kept_feature_with_what_the_plain_forward_gives(
    project: Project, tiny_model: Path
) -> None:
    project = selecting(project, *EVERY_KIND)
    assert extracted(project) == 24
    assert rows_on_disk(project) == dict.fromkeys(EVERY_KIND, 24)
    cache = FeatureCache.open(project.cache)
    clip = read_table(project.clips).clips[7]
    found = {name: cache.load([clip.clip_id], *name.split("/"))[0] for name in EVERY_KIND}
    assert {name: row.shape for name, row in found.items()} == {
        "vision/mean": (24,),
        "layer_0/tokens": (16, 32),
        "layer_1/motion": (32,),
        "final/frames": (4, 32),
        "final/mean": (32,),
        "final/last": (32,),
    }
    states = _plain_states(project.videos / clip.recording, tiny_model, clip.start_us, clip.end_us, 4)
    frames = [at.unflatten(0, (4, 4)).mean(1) for at in states]
    assert np.abs(found["layer_0/tokens"] - states[0].numpy()).max() <= 1e-5
    assert np.abs(found["layer_1/motion"] - frames[1].diff(dim=0).abs().mean(0).numpy()).max() <= 1e-5
    assert np.abs(found["final/frames"] - frames[2].numpy()).max() <= 1e-5
    assert np.abs(found["final/mean"] - frames[2].mean(0).numpy()).max() <= 1e-5
    assert np.abs(found["final/last"] - states[2][-1].numpy()).max() <= 1e-5


def test_only_what_a_clip_lacks_is_computed_when_a_kept_feature_is_added(project: Project) -> None:
    assert extracted(project, limit=5) == 5
    wider = selecting(project, "final/mean", "vision/mean")
    plan = plan_extraction(wider)
    assert (plan.todo, plan.present) == (24, 0)
    assert sum(clip.wanted == ("vision/mean",) for clips in plan.work for clip in clips) == 5
    assert run_plan(wider, plan).progress.extracted == 24
    assert rows_on_disk(wider) == {"final/mean": 24, "vision/mean": 24}
    assert plan_extraction(wider).todo == plan_extraction(selecting(project, "final/mean")).todo == 0


def test_tokens_are_stored_in_bfloat16_and_forecast_when_pooled_features_are_stored_in_float16(
    project: Project,
) -> None:
    edit(project.path, 'stored_dtype = "float32"', 'stored_dtype = "float16"')
    both = selecting(project, "layer_1/tokens", "layer_1/mean")
    plan = plan_extraction(both, limit=3)
    run_plan(both, plan)
    spaces = {space.pooling: space for space in FeatureCache.open(both.cache).spaces}
    assert {name: (space.stored_dtype, space.row_shape) for name, space in spaces.items()} == {
        "tokens": ("bfloat16", (16, 32)),
        "mean": ("float16", (32,)),
    }
    assert plan.bytes_to_write == 3 * (16 * 32 * 2 + 32 * 2 + 2 * (76 + 8 * 4))
    cache = FeatureCache.open(both.cache)
    ids = cache.clip_ids("layer_1", "tokens")
    tokens = torch.from_numpy(cache.load(ids, "layer_1", "tokens")).view(torch.bfloat16).float()
    assert (tokens.mean(1).numpy() - cache.load(ids, "layer_1", "mean")).__abs__().max() < 0.01


def test_keep_is_refused_when_the_model_has_no_such_tap(project: Project) -> None:
    with pytest.raises(SettingsError, match=r"taps of this model, which are vision, layer_0, layer_1, final, but it"):
        plan_extraction(selecting(project, "layer_7/mean"))


def _overlapping(project: Project) -> Project:
    project = edited(project, "stride_s = 1", "stride_s = 0.2")
    project.clips.unlink()
    make_table(project)
    return project


def test_frames_of_overlapping_clips_are_computed_once_and_their_share_is_forecast(
    project: Project, tiny_model: Path
) -> None:
    project = _overlapping(project)
    plan = plan_extraction(project)
    done = run_plan(project, plan)
    # 16 clips of 4 frames in each recording of 20 frames, all of which are sampled
    assert plan.todo == done.progress.extracted == 6 * 16
    assert done.progress.shared_frames == pytest.approx(1 - 20 / 64)
    assert plan.shared_frames == pytest.approx(done.progress.shared_frames)
    cache = FeatureCache.open(project.cache)
    for clip in read_table(project.clips).clips[3:80:19]:
        states = _plain_states(project.videos / clip.recording, tiny_model, clip.start_us, clip.end_us, 4)
        assert np.abs(cache.load([clip.clip_id])[0] - states[-1].mean(0).numpy()).max() <= 1e-5


class PretendedDevice(TorchDispatchMode):
    """Memory of the CPU under another device's name; keeps what is moved there."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("meta"):
            self.moved.append(args[0].clone())
            return args[0].clone()
        return func(*args, **kwargs)


def test_every_device_gets_the_pixels_that_a_cpu_gets(project: Project) -> None:
    plan = plan_extraction(project)
    backbone = open_backbone(plan.model.open(), dtype="float32", device="cpu")
    fit = backbone.inputs.frame_resize.smaller
    expected = {
        frame.tobytes()
        for clips in plan.work
        for clip in read_clips(clips[0].recording.path, [clip.span for clip in clips], 4, fit=fit)
        for frame in clip.frames
    }
    with CacheWriter(project.cache, plan.spaces["final/mean"], {}) as writer, PretendedDevice() as device:
        done = extract(
            plan.work,
            backbone,
            {"final/mean": writer},
            batch_size=3,
            decoders=2,
            device="meta",
        )
    assert done.progress.extracted == 24
    assert {frames.shape[1:] for frames in device.moved} == {(IMAGE_PX, IMAGE_PX, 3)}
    assert {frame.numpy().tobytes() for frames in device.moved for frame in frames} == expected


def test_plan_forecasts_no_shared_frame_when_clips_do_not_overlap(project: Project) -> None:
    assert plan_extraction(project).shared_frames == 0
    assert plan_extraction(project, limit=1).shared_frames == 0


def test_stages_of_a_run_add_up(project: Project) -> None:
    seen = []
    done = run_plan(project, plan_extraction(project), on_progress=seen.append).progress
    assert 0 < done.waited_s + done.preprocess_s + done.model_s <= done.elapsed_s
    assert done.write_s > 0
    assert done.idle_share == pytest.approx(1 - done.model_s / done.elapsed_s)
    assert [now.total for now in seen] == [24] * len(seen)
    assert seen[-1].extracted == 24
    assert all(a.extracted <= b.extracted and a.model_s <= b.model_s for a, b in pairwise(seen))


def test_what_is_logged_counts_clips_and_names_no_recording(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    (project.videos / "S5.mp4").write_bytes(b"torn")
    with caplog.at_level(logging.DEBUG):
        run_plan(project, plan_extraction(project, limit=2))
    ours = "\n".join(one.getMessage() for one in caplog.records if one.name.startswith(("featurecache", "heads")))
    assert "extracting 2 clips of 1 recordings on cpu" in ours
    assert "2 clips extracted, 0 failed, 0 left to others" in ours
    assert not [secret for secret in ("S0", "S5", ".mp4", str(project.root)) if secret in ours]


def test_stored_clips_are_computed_again_and_agree_when_a_run_continues(project: Project) -> None:
    project = selecting(project, *EVERY_KIND)
    assert run_plan(project, plan_extraction(project, limit=6)).checked == 0
    assert run_plan(project, plan_extraction(project, limit=6)).checked == 2
    (project.videos / "S0.mp4").unlink()
    assert run_plan(project, plan_extraction(project)).checked in (1, 2)


@pytest.mark.parametrize("what", ["values", "frames", "tokens"])
def test_a_run_stops_before_it_writes_when_a_stored_clip_comes_out_otherwise(project: Project, what: str) -> None:
    project = selecting(project, "final/mean", "final/tokens")
    other = project.root / "other.zarr"
    run_plan(project, plan_extraction(project))
    project.cache.rename(other)
    cache = FeatureCache.open(other)
    plan = plan_extraction(project, limit=4)
    for name, space in plan.spaces.items():
        chosen = (space.tap, space.pooling, space.fingerprint)
        with CacheWriter(project.cache, space, {}) as writer:
            for (sha256, start, end), row in zip(
                cache.clips(*chosen), cache.load(cache.clip_ids(*chosen), *chosen), strict=True
            ):
                wrong = what == "values" or (what == "tokens" and name == "final/tokens")
                times = cache.timestamps_us([clip_id(sha256, start, end)], *chosen)[0]
                shift = 40_000 if what == "frames" else 0
                if start <= 1_000_000:
                    writer.add(Row(sha256, start, end, 1.02 * row if wrong else row, times + shift))
    held = rows_on_disk(project)
    with pytest.raises(ChangedFeaturesError, match=r"Go back to|PyAV version") as caught:
        run_plan(project, plan_extraction(project))
    name = {"values": "final/mean", "frames": "us and is now", "tokens": "final/tokens"}[what]
    assert name in str(caught.value)
    assert read_table(project.clips).clips[0].clip_id[16:] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert rows_on_disk(project) == held


def test_storage_adds_its_rounding_only_when_features_are_stored_in_float16(tmp_path: Path, tiny_model: Path) -> None:
    full = make_project(tmp_path / "a", tiny_model, sessions=3)
    make_table(full)
    extracted(full)
    half = edited(full, 'stored_dtype = "float32"', 'stored_dtype = "float16"')
    assert extracted(half) == 12
    cache = FeatureCache.open(full.cache)
    ids = [clip.clip_id for clip in read_table(full.clips).clips]
    by_dtype = {space.stored_dtype: cache.load(ids, space=space.fingerprint) for space in cache.spaces}
    assert by_dtype["float16"].dtype == np.float16
    # Batches may be made up differently in the two runs, which moves float32 by its own rounding.
    half_a_step = np.spacing(np.abs(by_dtype["float16"])).astype(np.float32) / 2
    assert (np.abs(by_dtype["float16"].astype(np.float32) - by_dtype["float32"]) <= half_a_step + 1e-5).all()
