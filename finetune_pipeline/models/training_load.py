"""What one forward and backward pass has to compute: the numbers that memory and time of a training depend on. Pure.

Load.of(tree.lengths, tree.above, learned)           # of a packed batch, or of rows one by one
load = Load(tokens=1096, keys=2840, pairs=98_000, learned=469)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData


@dataclass(frozen=True)
class Load(JobData):
    """Of one pass. `tokens`: that pass the layers; `keys`: summed over the segments of the batch, the tokens that the
    segment attends to; `pairs`: of a token and one that it attends to, without windows; `learned`: tokens with logits;
    `general`: those of them that belong to the general texts (train/replay.py)."""

    tokens: float
    keys: float
    pairs: float
    learned: float
    general: float = 0.0

    @staticmethod
    def of(lengths: Sequence[int], above: Sequence[int], learned: int, general: int = 0) -> Load:
        """Of segments with `lengths` tokens each, behind `above` tokens each."""
        pairs = sum(own * (own + 1) / 2 + own * before for own, before in zip(lengths, above, strict=True))
        return Load(sum(lengths), sum(lengths) + sum(above), pairs, learned, general)

    @staticmethod
    def sum(loads: Iterable[Load]) -> Load:
        loads = list(loads)
        fields = ("tokens", "keys", "pairs", "learned", "general")
        return Load(*(float(sum(getattr(load, name) for load in loads)) for name in fields))

    def times(self, factor: float) -> Load:
        return Load(*(factor * value for value in (self.tokens, self.keys, self.pairs, self.learned, self.general)))


NOTHING = Load(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainingLoads(JobData):
    """Of a whole training. `steps`: of all optimizer steps, forward and backward; `frozen`: what of them passes the
    layers below the trained ones, whose output for a row is kept (train/packing.py); `validation`: of all validations,
    forward; `base`: what the model before training computes, forward: reference likelihoods and general texts."""

    steps: Load
    frozen: Load
    validation: Load = NOTHING
    base: Load = NOTHING
