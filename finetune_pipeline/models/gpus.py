"""GPUs that a training may run on, besides the device at hand: memory, and speed in bf16.

    GPUS["h100"]        # Gpu("NVIDIA H100 SXM 80 GB", memory_mb=85520, tflops=989)

Memory as `nvidia-smi` shows it (MiB, here in 10^6 bytes); dense bf16 operations without sparsity, accumulated in fp32.
Sources: NVIDIA's data sheets and architecture white papers (Ampere GA102, Ada, A10, L4, L40S, A100, H100, H200,
HGX B200); data sheets that name the speed with sparsity are halved. Prices differ by provider and month: they are
declared (`suitability.gpu_per_hour`).
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.config import GpuName

COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Gpu:
    """`memory_mb`: in 10^6 bytes; `tflops`: 10^12 operations per second."""

    name: str
    memory_mb: float
    tflops: float


def _gpu(name: str, mib: int, tflops: float) -> Gpu:
    return Gpu(name, round(mib * 1024**2 / 1e6), tflops)


GPUS: dict[GpuName, Gpu] = {
    "l4": _gpu("NVIDIA L4 24 GB", 23034, 121),
    "a10": _gpu("NVIDIA A10 24 GB", 23028, 125),
    "rtx3090": _gpu("NVIDIA RTX 3090 24 GB", 24576, 71),
    "rtx4090": _gpu("NVIDIA RTX 4090 24 GB", 24564, 165),
    "l40s": _gpu("NVIDIA L40S 48 GB", 46068, 362),
    "a100-40": _gpu("NVIDIA A100 40 GB", 40960, 312),
    "a100-80": _gpu("NVIDIA A100 80 GB", 81920, 312),
    "h100": _gpu("NVIDIA H100 SXM 80 GB", 81559, 989),
    "h200": _gpu("NVIDIA H200 141 GB", 143771, 989),
    "b200": _gpu("NVIDIA B200 180 GB", 183359, 2250),
}
