"""Extraction of what is missing alone: found again, never stale, and one bad file never stops the rest."""

import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import FingerprintMismatchError
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project, open_project
from featurecache.spec import FeatureSpace
from featurecache.store import CacheWriter, Row
from tests.extraction_samples import extracted
from tests.make_videos import write_video
from tests.projects import edit, edited, failed_clip_ids, make_table
from tests.tiny_models import change_weights


def test_second_extraction_opens_no_video_and_no_weights_when_all_is_there(project: Project) -> None:
    time.sleep(2.1)  # younger files are hashed again, since a write in the same tick of the clock would not show
    extracted(project)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    plan = plan_extraction(project)
    done = run_plan(project, plan)
    assert (plan.todo, plan.present, done.progress.total) == (0, 24, 0)
    assert not [path for path in opened if path.endswith((".mp4", ".safetensors"))]
    assert plan.table is not None
    assert "rows" not in vars(plan.table), "a record for each clip was made: millions of them fill the memory"


def test_features_are_found_again_when_a_recording_is_renamed(project: Project) -> None:
    extracted(project)
    (project.videos / "S0.mp4").rename(project.videos / "renamed.mp4")
    edit(project.root / "labels.csv", "S0.mp4", "renamed.mp4")
    make_table(project)
    assert plan_extraction(project).todo == 0


def test_relabelling_costs_no_extraction(project: Project) -> None:
    extracted(project)
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


def test_extraction_starts_anew_when_a_setting_changes_values(project: Project) -> None:
    extracted(project)
    for old, new in (
        ("frames = 4", "frames = 8"),
        ("the hand", "the baby"),
        ('dtype = "float32"\nst', 'dtype = "bfloat16"\nst'),
        ("[features]", '[features]\nresize = "pad"'),
    ):
        assert plan_extraction(edited(project, old, new)).todo == 24, new
        edit(project.path, new, old)
    assert plan_extraction(open_project(project.root)).todo == 0


def test_extraction_starts_anew_when_the_weights_change(project: Project, tiny_model: Path, tmp_path: Path) -> None:
    from tests.tiny_models import make_llava_next_video

    extracted(project)
    other = make_llava_next_video(tmp_path / "other", seed=1)
    copied = edited(project, str(tiny_model), str(shutil.copytree(tiny_model, tmp_path / "copy")))
    assert plan_extraction(copied).todo == 0
    shutil.copy(other / "model.safetensors", tmp_path / "copy")
    assert plan_extraction(copied).todo == 24


def test_nothing_is_stored_when_the_weights_change_between_plan_and_run(
    project: Project, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    changed = edited(project, str(tiny_model), str(model))
    plan = plan_extraction(changed)
    change_weights(model)
    with pytest.raises(FingerprintMismatchError, match=r"backbone\.weights\.model\.safetensors changed in between"):
        run_plan(changed, plan)
    assert not changed.cache.exists()


def test_features_do_not_depend_on_batch_size_decoders_or_words_behind_the_video(
    project: Project, tmp_path: Path
) -> None:
    extracted(project)
    ids = [clip.clip_id for clip in read_table(project.clips).clips]
    X = FeatureCache.open(project.cache).load(ids)
    shutil.rmtree(project.cache)
    edit(project.path, "[features]", "[extract]\nbatch_size = 7\ndecoders = 3\n[features]")
    assert extracted(edited(project, "<video>", "<video> what happens here ?")) == 24
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
    assert extracted(project, limit=5) == 5
    assert extracted(project, limit=5) == 5
    assert plan_extraction(project).present == 10


def test_cache_holds_no_name_and_no_path(project: Project, tiny_model: Path) -> None:
    extracted(project)
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
    broken = edited(project, project.settings.features.model, str(model))
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
    assert extracted(project) == 20
