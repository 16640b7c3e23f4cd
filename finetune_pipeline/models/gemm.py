"""How fast this device multiplies matrices: the peak that the speed of a training is compared with.

gflops("cpu", bf16=True)        # 847.2: 10^9 operations per second
"""

from __future__ import annotations

import time

from finetune_pipeline.models.device import synchronize

SECONDS = 0.5
MIN_PRODUCTS = 5  # however long they take
ROWS = 512  # about the tokens of a training step
WIDTH = {"cpu": 1536, "cuda": 8192}


def gflops(device: str, bf16: bool, seconds: float = SECONDS) -> float:
    """Speed of the product of a step's tokens with a weight matrix, in 10^9 floating-point operations per second.

    On a processor the time is CPU time per thread, so that other load on the machine does not make it look slow.
    """
    import torch

    width = WIDTH[device]
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(rows, width, device=device, dtype=dtype) for rows in (ROWS, width))
    clock, threads = (time.perf_counter, 1) if device == "cuda" else (time.process_time, torch.get_num_threads())

    def multiply() -> None:
        left @ right
        synchronize()

    multiply()  # the first call starts the threads
    count, start, end = 0, clock(), time.perf_counter() + seconds
    while time.perf_counter() < end or count < MIN_PRODUCTS:
        multiply()
        count += 1
    return 2 * ROWS * width * width * count * threads / (clock() - start) / 1e9
