"""How well a training uses its device: its useful work per second, as a share of the speed of a matrix product.

    share = PeakShare.measure(forward, architecture, rules, bf16)
    share(rows, seconds)         # 0.57, of a step with these rows

Useful work as in models/training_work.py; the speed is measured once, beside the training (models/gemm.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.device import kind
from finetune_pipeline.models.gemm import gflops
from finetune_pipeline.models.training_load import NOTHING
from finetune_pipeline.models.training_work import step_flops
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.tokenize import TokenizedExample


@dataclass(frozen=True)
class PeakShare:
    """`peak`: operations per second of all `processes` together."""

    forward: Forward
    architecture: Architecture
    rules: Train
    peak: float

    @staticmethod
    def measure(
        forward: Forward, architecture: Architecture, rules: Train, bf16: bool, processes: int = 1
    ) -> PeakShare:
        return PeakShare(forward, architecture, rules, processes * 1e9 * _gflops(kind(), bf16))

    def __call__(self, rows: Sequence[TokenizedExample], seconds: float) -> float:
        """Share of the peak of a step that took `seconds`. The layers below the trained ones, whose output is kept from
        the first epoch on, are not counted."""
        load = self.forward.load(rows, padding=False)
        return step_flops(self.architecture, self.rules, [load], frozen=NOTHING) / seconds / self.peak


@functools.cache
def _gflops(device: str, bf16: bool) -> float:
    return gflops(device, bf16)
