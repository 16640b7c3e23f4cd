"""The machine that a benchmark runs on, for the line above its figures.

machine()      # "AMD EPYC 9B14 (bf16), 2 cores, Python 3.11.14"
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def machine() -> str:
    """Processor model, whether it computes bf16 natively (as models/device.py), cores and Python version."""
    lines = CPUINFO.read_text("utf-8").splitlines() if CPUINFO.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    bf16 = "bf16" if any("avx512_bf16" in line or "amx_bf16" in line for line in lines) else "no bf16"
    return f"{name} ({bf16}), {os.cpu_count()} cores, Python {platform.python_version()}"
