"""Devices: which one a setting means, what it computes in, and how it says that its memory is not enough.

Features and heads are computed on CPUs and on CUDA GPUs (torch names ROCm's alike). Others are refused: nobody has
compared their features with a CPU's, and feature spaces do not name the device.

Not here: how much memory is free or needed (`featurecache.extraction.forecast`).
"""

import errno

from featurecache.errors import SettingsError

# How allocators, BLAS, convolutions and drivers say it. Libraries without room for their workspace say that they cannot
# start, or that they find no engine.
_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "allocfailed",
    "cublas_status_not_initialized",
    "unable to find an engine",
    "out_of_device_memory",
    "out_of_host_memory",
    "out_of_resources",
    "invalid buffer size",
)


def device_of(setting: str) -> str:
    """The torch device that a setting means: `auto` is the GPU where there is one.

    Raises:
        SettingsError: If it is neither a CPU nor a CUDA GPU, or is not in this machine.
    """
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(setting)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(
            f"the device must be auto, cpu, cuda or cuda:N, but it is {setting!r}. "
            'Set extract.device = "cpu": features of other devices were never compared with those of a CPU.'
        )
    if device.type == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise SettingsError(
            f"the device must be one of this machine, but it is {setting!r} and torch {torch.__version__} sees "
            f'{count} CUDA GPUs. Set extract.device = "cpu", or install the driver and a build of torch for this GPU.'
        )
    return setting


def lacks_bfloat16(device: str) -> str:
    """The name of a GPU that can only emulate bfloat16 (V100, T4, RTX 20); empty for every other device."""
    import torch

    if torch.device(device).type != "cuda" or torch.version.hip:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"


def check_dtype(dtype: str, device: str) -> None:
    """Refuses a dtype that a device does not compute in.

    Raises:
        SettingsError: If it is bfloat16, and the GPU can only emulate it.
    """
    if dtype == "bfloat16" and (name := lacks_bfloat16(device)):
        raise SettingsError(
            f"features.dtype must be one that the GPU computes in, but {name} has no bfloat16. Set features.dtype = "
            '"float16" to extract, or "float32" where adapters or a TimeSformer are to be trained on it too.'
        )


def use_full_float32() -> None:
    """Turns TF32 off in this process: its products keep 10 bits and move float32 features by more than 1e-5."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of a device or of the machine, was not enough."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
