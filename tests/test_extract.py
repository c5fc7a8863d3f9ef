"""Extraction of a project: right features, nothing twice, nothing stale, one bad file never stops the rest."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import zarr
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaNextVideoForConditionalGeneration

from featurecache import FeatureCache
from featurecache.backbones import open_backbone
from featurecache.clips.clip import clip_id
from featurecache.clips.csv_file import read_table
from featurecache.errors import CacheNotFoundError, ChangedFeaturesError, FingerprintMismatchError, SettingsError
from featurecache.extraction.leases import acquire
from featurecache.extraction.pipeline import extract
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project, open_project
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, Row
from featurecache.store.claims import Claims
from featurecache.video.sampling import read_clips
from tests.make_videos import write_video
from tests.projects import failed_clip_ids, make_project, make_table
from tests.tiny_models import IMAGE_PX, change_weights, plain_processor

PROMPT = "user: describe the hand . <video>"


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    project = make_project(tmp_path / "project", tiny_model)
    make_table(project)
    return project


def _extract(project: Project, **options) -> int:
    plan = plan_extraction(project, **options)
    return run_plan(project, plan).progress.extracted


def _plain_states(path: Path, model: Path, start_us: int, end_us: int, frames: int) -> list[torch.Tensor]:
    """The naive recipe: decode everything, pick frames by timestamp, whole model, mask; every layer's, each (S, D)."""
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        zero = (container.start_time or 0) / 1e6
    times = [(start_us + (k + 0.5) * (end_us - start_us) / frames) / 1e6 + zero for k in range(frames)]
    chosen = np.stack([[image for at, image in pictures if at <= time][-1] for time in times])
    processor = plain_processor(model)
    plain = LlavaNextVideoForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    video = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    inputs = processor(text=[PROMPT], videos=[video], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states
    return [at[0, inputs["input_ids"][0] == processor.video_token_id] for at in states]


def test_cached_features_equal_the_plain_forward(project: Project, tiny_model: Path) -> None:
    assert _extract(project) == 24
    clips = read_table(project.clips).clips
    X = FeatureCache.open(project.cache).load([clip.clip_id for clip in clips])
    assert X.shape == (24, 32)
    assert X.dtype == np.float32
    for row in (0, 5, 10, 23):
        clip = clips[row]
        plain = _plain_states(project.videos / clip.recording, tiny_model, clip.start_us, clip.end_us, 4)[-1].mean(0)
        assert np.abs(X[row] - plain.numpy()).max() <= 1e-5


EVERY_KIND = ("vision/mean", "layer_0/tokens", "layer_1/motion", "final/frames", "final/mean", "final/last")


def _keep(project: Project, *names: str) -> Project:
    """The same project, keeping other features."""
    settings = project.root / "featurecache.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("select = ")]
    place = lines.index("[features]") + 1
    settings.write_text("\n".join([*lines[:place], f"select = {list(names)}", *lines[place:]]) + "\n")
    return open_project(project.root)


def _held(project: Project) -> dict[str, int]:
    """Rows on disk of each feature space, repeated ones counted."""
    held: dict[str, int] = {}
    for path in project.cache.glob("spaces/*/segments/0*"):
        inputs = json.loads((path.parents[1] / "zarr.json").read_text())["attributes"]["featurecache"]["inputs"]
        name = f"{inputs['tap']}/{inputs['pooling']}"
        held[name] = held.get(name, 0) + zarr.open_group(path, mode="r")["key"].shape[0]
    return held


def test_one_pass_fills_every_kept_feature_with_what_the_plain_forward_gives(
    project: Project, tiny_model: Path
) -> None:
    project = _keep(project, *EVERY_KIND)
    assert _extract(project) == 24
    assert _held(project) == dict.fromkeys(EVERY_KIND, 24)
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
    assert _extract(project, limit=5) == 5
    wider = _keep(project, "final/mean", "vision/mean")
    plan = plan_extraction(wider)
    assert (plan.todo, plan.present) == (24, 0)
    assert sum(clip.wanted == ("vision/mean",) for clips in plan.work for clip in clips) == 5
    assert run_plan(wider, plan).progress.extracted == 24
    assert _held(wider) == {"final/mean": 24, "vision/mean": 24}
    assert plan_extraction(wider).todo == plan_extraction(_keep(project, "final/mean")).todo == 0


def test_tokens_are_stored_in_bfloat16_and_forecast_when_pooled_features_are_stored_in_float16(
    project: Project,
) -> None:
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace('stored_dtype = "float32"', 'stored_dtype = "float16"'))
    both = _keep(project, "layer_1/tokens", "layer_1/mean")
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
        plan_extraction(_keep(project, "layer_7/mean"))


def _overlapping(project: Project) -> Project:
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace("stride_s = 1", "stride_s = 0.2"))
    project = open_project(project.root)
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
    fit = backbone.inputs.frame_resize.picture
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


def test_stored_clips_are_computed_again_and_agree_when_a_run_goes_on(project: Project) -> None:
    project = _keep(project, *EVERY_KIND)
    assert run_plan(project, plan_extraction(project, limit=6)).checked == 0
    assert run_plan(project, plan_extraction(project, limit=6)).checked == 2
    (project.videos / "S0.mp4").unlink()
    assert run_plan(project, plan_extraction(project)).checked in (1, 2)


@pytest.mark.parametrize("what", ["values", "frames", "tokens"])
def test_a_run_stops_before_it_writes_when_a_stored_clip_comes_out_otherwise(project: Project, what: str) -> None:
    project = _keep(project, "final/mean", "final/tokens")
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
    held = _held(project)
    with pytest.raises(ChangedFeaturesError, match=r"Go back to|PyAV version") as caught:
        run_plan(project, plan_extraction(project))
    name = {"values": "final/mean", "frames": "us and is now", "tokens": "final/tokens"}[what]
    assert name in str(caught.value)
    assert read_table(project.clips).clips[0].clip_id[16:] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _held(project) == held


def test_storage_adds_its_rounding_only_when_features_are_stored_in_float16(tmp_path: Path, tiny_model: Path) -> None:
    full = make_project(tmp_path / "a", tiny_model, sessions=3)
    make_table(full)
    _extract(full)
    settings = (full.root / "featurecache.toml").read_text()
    (full.root / "featurecache.toml").write_text(
        settings.replace('stored_dtype = "float32"', 'stored_dtype = "float16"')
    )
    half = open_project(full.root)
    assert _extract(half) == 12
    cache = FeatureCache.open(full.cache)
    ids = [clip.clip_id for clip in read_table(full.clips).clips]
    by_dtype = {space.stored_dtype: cache.load(ids, space=space.fingerprint) for space in cache.spaces}
    assert by_dtype["float16"].dtype == np.float16
    # Batches may be made up differently in the two runs, which moves float32 by its own rounding.
    half_a_step = np.spacing(np.abs(by_dtype["float16"])).astype(np.float32) / 2
    assert (np.abs(by_dtype["float16"].astype(np.float32) - by_dtype["float32"]) <= half_a_step + 1e-5).all()


def test_second_extraction_opens_no_video_and_no_weights_when_all_is_there(project: Project) -> None:
    time.sleep(2.1)  # younger files are hashed again, since a write in the same tick of the clock would not show
    _extract(project)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    plan = plan_extraction(project)
    done = run_plan(project, plan)
    assert (plan.todo, plan.present, done.progress.total) == (0, 24, 0)
    assert not [path for path in opened if path.endswith((".mp4", ".safetensors"))]
    assert plan.table is not None
    assert "rows" not in vars(plan.table), "a record for each clip was made: millions of them fill the memory"


def test_features_are_found_again_when_a_recording_is_renamed(project: Project) -> None:
    _extract(project)
    (project.videos / "S0.mp4").rename(project.videos / "renamed.mp4")
    labels = project.root / "labels.csv"
    labels.write_text(labels.read_text().replace("S0.mp4", "renamed.mp4"))
    make_table(project)
    assert plan_extraction(project).todo == 0


def test_relabelling_costs_no_extraction(project: Project) -> None:
    _extract(project)
    labels = project.root / "labels.csv"
    labels.write_text(
        labels.read_text()
        .replace(",ventilation", ",x")
        .replace(",stimulation", ",ventilation")
        .replace(",x", ",stimulation")
    )
    before = project.clips.read_bytes()
    make_table(project)
    assert project.clips.read_bytes() != before
    assert plan_extraction(project).todo == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("frames = 4", "frames = 8"),
        ("the hand", "the baby"),
        ('dtype = "float32"\nst', 'dtype = "bfloat16"\nst'),
        ("[features]", '[features]\nresize = "pad"'),
    ],
    ids=["frames", "prompt", "dtype", "resize"],
)
def test_extraction_starts_anew_when_a_setting_changes_values(project: Project, old: str, new: str) -> None:
    _extract(project)
    settings = project.root / "featurecache.toml"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))
    assert plan_extraction(open_project(project.root)).todo == 24


def test_extraction_starts_anew_when_the_weights_change(project: Project, tiny_model: Path, tmp_path: Path) -> None:
    from tests.tiny_models import make_llava_next_video

    _extract(project)
    other = make_llava_next_video(tmp_path / "other", seed=1)
    settings = project.root / "featurecache.toml"
    settings.write_text(
        settings.read_text().replace(str(tiny_model), str(shutil.copytree(tiny_model, tmp_path / "copy")))
    )
    assert plan_extraction(open_project(project.root)).todo == 0
    shutil.copy(other / "model.safetensors", tmp_path / "copy")
    assert plan_extraction(open_project(project.root)).todo == 24


def test_nothing_is_stored_when_the_weights_change_between_plan_and_run(
    project: Project, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace(str(tiny_model), str(model)))
    changed = open_project(project.root)
    plan = plan_extraction(changed)
    change_weights(model)
    with pytest.raises(FingerprintMismatchError, match=r"backbone\.weights\.model\.safetensors changed in between"):
        run_plan(changed, plan)
    assert not changed.cache.exists()


def test_features_do_not_depend_on_batch_size_decoders_or_words_behind_the_video(
    project: Project, tmp_path: Path
) -> None:
    _extract(project)
    ids = [clip.clip_id for clip in read_table(project.clips).clips]
    X = FeatureCache.open(project.cache).load(ids)
    shutil.rmtree(project.cache)
    settings = project.root / "featurecache.toml"
    text = settings.read_text().replace("<video>", "<video> what happens here ?")
    settings.write_text(text + "[extract]\nbatch_size = 7\ndecoders = 3\n")
    assert _extract(open_project(project.root)) == 24
    assert np.abs(FeatureCache.open(project.cache).load(ids) - X).max() <= 1e-5


def test_damaged_recordings_cost_their_clips_only(project: Project) -> None:
    data = (project.videos / "S1.mp4").read_bytes()
    torn = write_video(
        project.videos / "torn.mp4", count=40, fps=5, options={"g": "5"}, container_options={"movflags": "faststart"}
    )
    (project.videos / "empty.mp4").write_bytes(b"")
    write_video(project.videos / "strip.mp4", count=10, fps=5, size=(1024, 16))
    make_table(project)
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) * 3 // 5])
    make_table(project)
    (project.videos / "S2.mp4").unlink()
    (project.videos / "S3.mp4").write_bytes(data)
    plan = plan_extraction(project)
    done = run_plan(project, plan)
    reasons = {failure.recording: failure.reason for failure in done.failures}
    assert set(reasons) == {"torn.mp4", "S2.mp4", "S3.mp4", "strip.mp4"}
    assert "not in the folder" in reasons["S2.mp4"]
    assert "same content as S1.mp4" in reasons["S3.mp4"]
    assert "within 20 to 1, but they are 1024 x 16 px" in reasons["strip.mp4"]
    torn_clips = [clip for clip in read_table(project.clips).clips if clip.recording == "torn.mp4"]
    failed = failed_clip_ids(project)
    assert 0 < sum(clip.clip_id in failed for clip in torn_clips) < len(torn_clips) == 8
    assert done.progress.extracted == 16 + sum(clip.clip_id not in failed for clip in torn_clips)
    assert plan_extraction(project).todo == done.progress.failed, "what could not be decoded is tried again"
    assert project.failures.stat().st_mode & 0o777 == 0o600


def test_a_clip_fails_when_its_frames_are_not_those_of_an_earlier_extraction(project: Project) -> None:
    plan = plan_extraction(project, limit=3)
    (clips,) = plan.work
    other = FeatureSpace({**plan.space.inputs, "prefix_token_ids": [1]})
    with CacheWriter(project.cache, other, {}) as writer:
        for start, end in (clip.span for clip in clips):
            shift = 200_000 if start == 1_000_000 else 0
            times = np.array([start, start + 200_000, start + 600_000, start + 800_000 - shift])
            writer.add(Row(clips[0].recording.sha256, start, end, np.arange(32.0) + start, times))
    done = run_plan(project, plan)
    assert [
        (failure.start_us, "frame 3 lies at 1800000 us and lay at 1600000 us" in failure.reason)
        for failure in done.failures
    ] == [(1_000_000, True)]
    assert done.progress.extracted == 2


def test_limit_bounds_the_clips_of_a_run(project: Project) -> None:
    assert _extract(project, limit=5) == 5
    assert _extract(project, limit=5) == 5
    assert plan_extraction(project).present == 10


def test_cache_holds_no_name_and_no_path(project: Project, tiny_model: Path) -> None:
    _extract(project)
    for path in project.cache.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
        if path.is_file():
            data = path.read_bytes()
            for secret in (b"S0", b".mp4", str(project.root).encode(), str(tiny_model).encode()):
                assert secret not in data, (path, secret)


def test_non_finite_features_fail_their_clip_with_a_reason(project: Project, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(Path(project.settings.features.model), tmp_path / "broken")
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if key.endswith("model.norm.weight"))
    weights[name][3] = torch.finfo(torch.float32).max  # finite, its products are not
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text().replace(project.settings.features.model, str(model)))
    broken = open_project(project.root)
    done = run_plan(broken, plan_extraction(broken, limit=3))
    assert (done.progress.extracted, done.progress.failed) == (0, 3)
    assert all("finite" in failure.reason for failure in done.failures)


def test_no_decoder_outlives_a_run_that_fails(project: Project) -> None:
    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_plan(project, plan_extraction(project), on_progress=stop)
    assert threading.active_count() == before
    assert plan_extraction(project).present == 4, "the batch that was computed is saved on the way out"
    assert _extract(project) == 20


def test_processes_started_alike_share_the_list_and_compute_nothing_twice(project: Project) -> None:
    plan = plan_extraction(project)  # digests are remembered, so that both begin at once
    command = [sys.executable, "-m", "cli", "extract", "--config", str(project.root), "--json"]
    both = [
        subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    reports = []
    for process in both:
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        reports.append(json.loads(out))
    assert sum(report["extracted"] for report in reports) == 24
    assert plan_extraction(project).todo == 0
    (space,) = FeatureCache.open(project.cache).spaces
    assert space.rows == 24
    held = sum(zarr.open_group(path, mode="r")["key"].shape[0] for path in project.cache.glob("spaces/*/segments/0*"))
    assert held == 24
    assert not list(project.cache.glob("spaces/*/claims/*"))
    assert plan.space.fingerprint == space.fingerprint


def test_processes_that_keep_different_features_compute_none_twice(project: Project) -> None:
    """Their lists overlap in one feature; neither waits for the other."""
    plan_extraction(project)
    base = (project.root / "featurecache.toml").read_text()
    keeps = {"one": ["final/mean", "vision/mean"], "other": ["layer_1/mean", "final/mean"]}
    for name, keep in keeps.items():
        (project.root / f"{name}.toml").write_text(base.replace("[features]", f"[features]\nselect = {keep}"))
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "cli", "extract", "--config", str(project.root / f"{name}.toml"), "--json"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in keeps
    ]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for name in keeps:  # what was left to the other is there by now, or is done now
        other = open_project(project.root / f"{name}.toml")
        run_plan(other, plan_extraction(other))
    assert _held(project) == {"final/mean": 24, "vision/mean": 24, "layer_1/mean": 24}
    assert not list(project.cache.glob("spaces/*/claims/*"))


def test_a_recording_is_left_to_the_process_that_claims_it_while_it_lives(project: Project) -> None:
    plan = plan_extraction(project)
    sha256 = plan.work[0][0].recording.sha256
    code = (
        "import sys, time\n"
        "from featurecache.store import CacheWriter\n"
        "from featurecache.spec import FeatureSpace\n"
        "import json\n"
        "writer = CacheWriter(sys.argv[1], FeatureSpace(json.loads(sys.argv[2])), {})\n"
        "print(writer.claim(sys.argv[3]), flush=True)\n"
        "time.sleep(60)\n"
    )
    arguments = [str(project.cache), json.dumps(plan.space.inputs), sha256]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        done = run_plan(project, plan)
        assert (done.progress.extracted, done.progress.elsewhere) == (20, 4)
        other.kill()
    again = run_plan(project, plan_extraction(project))
    assert (again.progress.extracted, again.progress.elsewhere) == (4, 0), (
        "the claim of a killed process counts no longer"
    )


def test_a_recording_is_deferred_whole_and_what_is_free_of_it_is_acquired_at_the_last_try(project: Project) -> None:
    project = _keep(project, "final/mean", "vision/mean", "layer_1/mean")
    plan = plan_extraction(project)
    clips = plan.work[0]
    order = sorted(plan.spaces, key=lambda name: plan.spaces[name].fingerprint)

    def claim(*names: str, again: bool = False) -> set[str] | None:
        """The features that a new process gets of the first recording, with these held by another."""
        with ExitStack() as stack:
            others, ours = (
                {n: stack.enter_context(CacheWriter(project.cache, s, {})) for n, s in plan.spaces.items()}
                for _ in range(2)
            )
            assert all(others[name].claim(clips[0].recording.sha256) for name in names)
            found = acquire(clips, ours, is_last_try=again)
            assert found is None or [clip.span for clip in found] == [clip.span for clip in clips]
            return None if found is None else {name for clip in found for name in clip.wanted}

    assert claim() == set(order)
    assert claim(order[0]) is None
    assert claim(order[0], again=True) == set(order[1:])
    assert claim(order[1]) == {order[0], order[2]}
    assert claim(*order) is claim(*order, again=True) is None


def test_a_claim_of_another_machine_ends_with_its_lease(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    with Claims(tmp_path / "space") as first:
        assert first.take("a" * 64)
        assert first.take("a" * 64), "one's own claim"
        (claim,) = (tmp_path / "space/claims").iterdir()
        claim.write_text("01795313882948605292-elsewhere.73bf134d-32373-d026ecb11973eafb")
        with Claims(tmp_path / "space") as second:
            assert not second.take("a" * 64)
            os.utime(claim, (time.time() - 121, time.time() - 121))
            assert second.take("a" * 64)
            assert second.take("b" * 64)
            assert claim.read_text() != "01795313882948605292-elsewhere.73bf134d-32373-d026ecb11973eafb"
        assert not claim.exists()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_extraction_goes_on_where_it_was_when_it_is_killed(project: Project, sent: signal.Signals) -> None:
    settings = project.root / "featurecache.toml"
    settings.write_text(settings.read_text() + "[extract]\nbatch_size = 1\n")
    slow = (
        "import sys, time, cli\n"
        "from featurecache.store import CacheWriter\n"
        "add = CacheWriter.add\n"
        "def slowly(self, row):\n"
        "    add(self, row)\n"
        "    self.commit()\n"
        "    time.sleep(0.2)\n"
        "CacheWriter.add = slowly\n"
        f"sys.argv = ['featurecache', 'extract', '--config', {str(project.root)!r}]\n"
        "cli.main()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True
    )
    while _present(project) < 3 and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(sent)
    _, said = running.communicate(timeout=300)
    saved = _present(project)
    assert 3 <= saved < 24
    if sent != signal.SIGKILL:
        assert running.returncode == 130
        assert "interrupted" in said
        assert "Traceback" not in said
    assert _extract(project) == 24 - saved
    ids = [clip.clip_id for clip in read_table(project.clips).clips]
    assert len(FeatureCache.open(project.cache).load(ids)) == 24


def _present(project: Project) -> int:
    try:
        spaces = FeatureCache.open(project.cache).spaces
    except CacheNotFoundError:
        return 0
    return spaces[0].rows if spaces else 0


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_extraction_uses_no_network(project: Project) -> None:
    """In a network namespace without any interface, everything works."""
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not allow network namespaces")
    command = ["unshare", "-rn", sys.executable, "-m", "cli", "extract", "--config", str(project.root), "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"extracted": 24' in done.stdout
