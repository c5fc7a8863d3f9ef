"""Devices: what a setting means, what is refused, and how memory errors are told from others."""

import errno

import pytest
import torch

from featurecache.backbones import open_backbone, open_inputs
from featurecache.device import check_dtype, device_of, is_out_of_memory, lacks_bfloat16
from featurecache.errors import LowMemoryWarning, SettingsError
from heads.engines.fallback import first_that_fits
from heads.engines.fitting import fit_head
from heads.settings import HeadSettings
from tests.learning_samples import make_clips


@pytest.mark.parametrize("name", ["mps", "xpu", "mps:0", "meta", "tpu", "gpu", "", "cuda:x", "cpu,cpu"])
def test_a_device_whose_features_were_never_compared_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"must be auto, cpu, cuda or cuda:N, but it is .*Set extract\.device"):
        device_of(name)


def test_a_gpu_that_is_not_here_is_refused_with_the_number_that_is() -> None:
    with pytest.raises(SettingsError, match=r"'cuda:99' and torch .* sees \d+ CUDA GPUs"):
        device_of("cuda:99")


def test_a_cpu_has_one_name() -> None:
    assert device_of("cpu") == device_of("cpu:0") == "cpu"
    assert device_of("auto") in ("cpu", "cuda")


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda:99"])
@pytest.mark.parametrize("settings", [HeadSettings(solver="convex"), HeadSettings(epochs=1)], ids=["convex", "adamw"])
def test_heads_refuse_the_devices_that_extraction_refuses(device: str, settings: HeadSettings) -> None:
    data = make_clips(sessions=3)
    with pytest.raises(SettingsError, match="the device must be"):
        fit_head(data.X, data.Y, settings, device=device)


@pytest.mark.parametrize(
    ("capability", "refused"), [((7, 0), True), ((7, 5), True), ((8, 0), False), ((8, 9), False), ((12, 0), False)]
)
def test_bfloat16_is_refused_on_a_gpu_that_only_emulates_it(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    assert bool(lacks_bfloat16("cuda:0")) == refused
    for dtype in ("float16", "float32"):
        check_dtype(dtype, "cuda:0")
    if refused:
        with pytest.raises(SettingsError, match=r'Some GPU .*has no bfloat16.*"float16" to extract, or "float32"'):
            check_dtype("bfloat16", "cuda:0")
    else:
        check_dtype("bfloat16", "cuda:0")


def test_bfloat16_is_taken_on_a_cpu() -> None:
    assert not lacks_bfloat16("cpu")
    check_dtype("bfloat16", "cpu")


def test_float32_features_are_computed_without_tf32_whatever_the_process_set_before(tiny_model) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    inputs = open_inputs(tiny_model, prompt="<video>", frames=4, resize="crop")
    open_backbone(inputs, dtype="float32", device="cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("miopenStatusAllocFailed"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("Invalid buffer size: 20.00 GB"),
        RuntimeError("Failed to allocate private MTLBuffer for size 1024"),
        RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    ],
    ids=str,
)
def test_memory_that_is_not_enough_is_known_by_what_devices_and_libraries_say(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_work_continues_with_less_and_says_so_when_memory_is_not_enough() -> None:
    def too_large() -> int:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    attempts = [("cuda with 16", too_large), ("cuda with 4", too_large), ("cpu with 4", lambda: 7)]
    with pytest.warns(LowMemoryWarning) as said:
        assert first_that_fits(attempts) == 7
    assert [str(one.message).partition("Continuing with ")[2] for one in said] == ["cuda with 4.", "cpu with 4."]
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"), pytest.warns(LowMemoryWarning):
        first_that_fits(attempts[:2])


def test_errors_that_are_not_about_memory_end_the_work_at_once() -> None:
    def wrong() -> int:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        first_that_fits([("cuda", wrong), ("cpu", lambda: 7)])
