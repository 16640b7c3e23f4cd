"""The device that models are computed on, and the precision: the only module that asks torch about either.

    kind()                       # "cuda" or "cpu"
    uses_bf16("auto")            # training: True where bf16 is fast; "bf16" and "fp32" are used as declared
    inference_dtype("auto")      # answers: torch.bfloat16 on a GPU, torch.float32 on a CPU
    free_mb()                    # 79120.4, of the GPU; on a CPU of the machine
    with PeakDeviceMemory() as peak:
        ...                      # peak.mb
    out_of_memory(error)         # whether an exception says that the device has no memory left

bf16 is fast on GPUs with bf16 and on CPUs with AVX512-BF16 or AMX. Elsewhere it is emulated: on an AVX512 Xeon without
it, a matrix product ran at 32 GFLOP/s in bf16, 143 in fp32. Answers have a rule of their own (`inference_dtype`): on a
CPU they are computed in fp32, also where bf16 is fast, because in bf16 an answer depends on the other sequences of its
batch; on a GPU in bf16, because fp32 takes twice the memory and many times as long (docs/decisions.md).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from finetune_pipeline.backends.peak_memory import PeakMemory
from finetune_pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
# What torch's allocators, cuBLAS and the operating system say; the texts of a CPU are RuntimeErrors without a class.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def kind() -> str:
    """The device type: "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def uses_bf16(precision: str) -> bool:
    """Whether training with this `train.precision` ("auto", "bf16" or "fp32") uses bf16 on this machine."""
    return precision == "bf16" or (precision == "auto" and fast_bf16())


def fast_bf16() -> bool:
    """Whether this machine has instructions for bf16."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = CPUINFO.read_text("utf-8") if CPUINFO.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def name_of(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def device_name() -> str:
    """The name of the GPU, as its driver says it; "processor" for a CPU."""
    import torch

    return torch.cuda.get_device_name() if kind() == "cuda" else "processor"


def autocast(bf16: bool) -> Any:
    """A context manager: matrix products in bf16 if `bf16`, else everything in fp32."""
    import torch

    return torch.autocast(kind(), torch.bfloat16) if bf16 else nullcontext()


def inference_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and activations in evaluation and serving, for `serve.precision`. "auto": bf16 on a GPU that
    has it, else fp32."""
    import torch

    bf16 = precision == "bf16" or (precision == "auto" and kind() == "cuda" and fast_bf16())
    return torch.bfloat16 if bf16 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """ "bf16" or "fp32"."""
    import torch

    return name_of(dtype == torch.bfloat16)


def free_mb() -> float:
    """Free memory of the device in MB (10^6 bytes). On a GPU, blocks that torch keeps for reuse count as free."""
    import torch

    if kind() == "cpu":
        return float(psutil.virtual_memory().available) / 1e6
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return float(torch.cuda.mem_get_info()[0] + kept) / 1e6


def reachable_mb(processes: int = 1) -> float:
    """Memory of the device in MB that this process could hold all in all: what is free, and what it holds already. On a
    CPU, so many `processes` share it; each has a GPU of its own."""
    import torch

    if kind() == "cuda":
        return free_mb() + float(torch.cuda.memory_allocated()) / 1e6
    return (free_mb() + psutil.Process().memory_info().rss / 1e6) / processes


def total_mb() -> float:
    """Memory of the device in MB (10^6 bytes)."""
    import torch

    return float(psutil.virtual_memory().total if kind() == "cpu" else torch.cuda.mem_get_info()[1]) / 1e6


def synchronize() -> None:
    """Wait until the device has computed everything that was queued; a GPU computes while Python goes on."""
    import torch

    if kind() == "cuda":
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Measure the peak of a GPU from here: the comparison of forward passes in fp32 (train/forward_check.py) does with
    less memory where there is less, so it is no need of the training."""
    import torch

    if kind() == "cuda":
        torch.cuda.reset_peak_memory_stats()


def release_memory() -> None:
    """Return the memory of deleted models and tensors to the device, so that others can use it."""
    import gc

    import torch

    gc.collect()  # a model and peft's wrapper refer to each other
    if kind() == "cuda":
        torch.cuda.empty_cache()
    else:
        _trim_heap()


def _trim_heap() -> None:
    """glibc keeps what a job has freed (backends/local.py); blocks of another size do not fit into its gaps."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be allocated, on a GPU or a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def memory_error(what: str, hint: str) -> ModelError:
    """The error for `what` that did not fit into the device's memory."""
    return ModelError(f"{what} does not fit into the memory of the {kind()} ({free_mb():.0f} MB are free)", hint)


class PeakDeviceMemory:
    """A block's peak memory of the device. `mb`: MB (10^6 bytes) of torch's tensors on a GPU, since the block began; on
    a CPU resident memory of this process and its descendants."""

    def __init__(self) -> None:
        self._process = PeakMemory()

    def __enter__(self) -> PeakDeviceMemory:
        import torch

        if kind() == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._process.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.__exit__(kind, error, at)

    @property
    def mb(self) -> float:
        import torch

        return float(torch.cuda.max_memory_allocated()) / 1e6 if kind() == "cuda" else self._process.mb

    @property
    def process_mb(self) -> float:
        """Peak of the process's resident memory, on a GPU as well."""
        return self._process.mb
