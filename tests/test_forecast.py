import dataclasses
from pathlib import Path

import pytest

from featurecache.backbones import open_inputs
from featurecache.backbones.cost import clip_cost
from featurecache.errors import SettingsError
from featurecache.extraction.forecast import Forecast, device_memory, forecast_plan
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.extraction.speed import time_parts
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from tests.projects import make_project, make_table
from tests.tiny_families import FAMILIES, FRAMES


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("project"), tiny_model)
    make_table(made)
    return made


@pytest.fixture(scope="module")
def plan(project: Project) -> Plan:
    return plan_extraction(project)


def carried_out(project: Project, **extract: int | str) -> Project:
    settings = project.settings
    changed = dataclasses.replace(settings, extract=dataclasses.replace(settings.extract, **extract))
    return dataclasses.replace(project, settings=changed)


def foresee(plan: Plan, project: Project, *, decoders: int = 2) -> Forecast:
    return forecast_plan(carried_out(project, device="cpu", batch_size=2, decoders=decoders), plan)


def test_forecast_is_of_the_plan_and_of_the_models_arithmetic(plan: Plan, project: Project) -> None:
    found = foresee(plan, project)
    cost = clip_cost(plan.model.open(), ["final"])
    assert found.clips == plan.todo > 0
    assert found.tflop_per_clip == pytest.approx(cost.flop / 1e12)
    assert [part.name for part in found.parts] == [part.name for part in cost.parts]
    assert found.bytes_of == plan.bytes_of == {"final/mean": plan.bytes_to_write}
    assert found.memory.batch_size == 2
    assert found.memory.fits


def test_forecast_gives_a_range_that_its_stages_bound(plan: Plan, project: Project) -> None:
    found = foresee(plan, project)
    assert found.decode_s is not None
    stages = (found.model_s, found.preprocess_s, found.decode_s)
    assert all(seconds > 0 for seconds in stages)
    assert max(stages) <= found.shortest_s <= found.longest_s == pytest.approx(sum(stages) + found.model_s)
    assert found.limit == ("decoding" if found.decode_s + found.preprocess_s > found.model_s else "model")


def test_forecast_counts_shared_frames_once(plan: Plan, project: Project) -> None:
    def model_over_clip(found: Forecast) -> float:
        return found.model_s / found.clips / sum(part.seconds for part in found.parts)

    assert model_over_clip(foresee(plan, project)) == pytest.approx(1)
    shared = foresee(dataclasses.replace(plan, shared_frames=0.5), project)
    per_frame = sum(part.seconds for part in shared.parts if part.per_frame)
    share = per_frame / sum(part.seconds for part in shared.parts)
    assert share > 0
    assert model_over_clip(shared) == pytest.approx(1 - share / 2)


def test_forecast_divides_decoding_among_decoders_but_no_recording(plan: Plan, project: Project) -> None:
    alone = dataclasses.replace(plan, work=plan.work[:1])
    found = foresee(alone, project, decoders=8)
    assert found.decode_s is not None
    assert found.video_per_decoder is not None
    last_s = max(clip.end_us for clip in alone.work[0]) / 1e6
    assert found.decode_s == pytest.approx(last_s / found.video_per_decoder)


def test_forecast_says_so_when_no_clip_can_be_decoded(plan: Plan, project: Project, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    work = tuple(
        tuple(dataclasses.replace(clip, recording=dataclasses.replace(clip.recording, path=broken)) for clip in clips)
        for clips in plan.work
    )
    found = foresee(dataclasses.replace(plan, work=work), project)
    assert found.decode_s is None
    assert "broken.mp4" in found.decode_problem
    assert found.longest_s >= found.shortest_s > 0


def test_forecast_is_of_the_deepest_tap_that_is_lacking(plan: Plan, project: Project) -> None:
    spaces = {"final/mean": FeatureSpace({**plan.space.inputs, "tap": "vision"})}
    found = foresee(dataclasses.replace(plan, spaces=spaces), project)
    assert [part.name for part in found.parts] == ["vision tower"]


def test_device_memory_grows_with_the_batch_and_the_dtype(plan: Plan) -> None:
    cost = clip_cost(plan.model.open(), ["final"])

    def memory(dtype: str, batch_size: int) -> tuple[int, int]:
        found = device_memory(plan.model.open(), cost, dtype=dtype, device="cpu", batch_size=batch_size)
        return found.weights_bytes, found.batch_bytes

    weights, batch = memory("bfloat16", 1)
    assert memory("float32", 1) == (2 * weights, 2 * batch)
    assert memory("bfloat16", 3) == (weights, 3 * batch)


def test_device_memory_does_not_fit_when_less_is_free(plan: Plan) -> None:
    inputs = plan.model.open()
    found = device_memory(inputs, clip_cost(inputs, ["final"]), dtype="float32", device="cpu", batch_size=1)
    needed = found.weights_bytes + found.batch_bytes
    assert dataclasses.replace(found, free_bytes=needed).fits
    assert not dataclasses.replace(found, free_bytes=needed - 1).fits
    assert dataclasses.replace(found, free_bytes=None).fits


@pytest.mark.parametrize("family", ["timesformer", "videomae"])
def test_time_parts_times_attention_of_any_square(family: str, tmp_path: Path) -> None:
    inputs = open_inputs(FAMILIES[family](tmp_path), prompt="<video>", frames=FRAMES, resize="crop")
    for part in time_parts(clip_cost(inputs, ["final"]).parts, dtype="float32", device="cpu", batch_size=1):
        assert part.tflop > 0
        assert part.seconds > 0


def test_forecast_refuses_a_device_that_is_not_here(plan: Plan, project: Project) -> None:
    with pytest.raises(SettingsError, match=r"the device must be one of this machine, but it is 'cuda:7'"):
        forecast_plan(carried_out(project, device="cuda:7"), plan)
