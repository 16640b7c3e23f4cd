"""The device and the precision of training: bf16 is fast on GPUs with bf16 and on CPUs with AVX512-BF16 or AMX.

    uses_bf16("auto")      # True where bf16 is fast; "bf16" and "fp32" are used as declared

Elsewhere bf16 is emulated: on an AVX512 Xeon without it, a matrix product ran at 32 GFLOP/s in bf16, 143 in fp32.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


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
        return bool(torch.cuda.is_bf16_supported())
    flags = CPUINFO.read_text("utf-8") if CPUINFO.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def name_of(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def autocast(bf16: bool) -> Any:
    """A context manager: matrix products in bf16 if `bf16`, else everything in fp32."""
    import torch

    return torch.autocast(kind(), torch.bfloat16) if bf16 else nullcontext()


def free_cache() -> None:
    """Return cached, unused memory of the device to it, after an allocation has failed."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation on the device has failed; torch's allocator on a CPU raises a plain RuntimeError."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
