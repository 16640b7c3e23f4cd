"""Where bf16 is fast: on GPUs that have it, and on processors with AVX512-BF16 or AMX.

Elsewhere bf16 is emulated: on an AVX512 Xeon without it a matrix product ran at 32 GFLOP/s in bf16, 143 in fp32.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def fast_bf16() -> bool:
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = CPUINFO.read_text("utf-8") if CPUINFO.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def name_of(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def autocast(bf16: bool) -> Any:
    """The context in which a training computes: matrix products in bf16, or all in fp32."""
    import torch

    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16) if bf16 else nullcontext()
