"""Batches and learning rate of every optimizer step, as functions of seed and step: a resumed training is the same.

batch_at(0, 12, Train(batch_size=4))         # [9, 5, 0, 3]: indices of the rows
learning_rate_at(40, 94, Train(learning_rate=2e-4))            # 0.000133
largest_steps(tokens, rules)                 # [31]: the step whose rows have the most tokens
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from finetune_pipeline.config import Train

Row = TypeVar("Row")


def total_steps(rows: int, rules: Train) -> int:
    """The number of optimizer steps; at least one."""
    return max(1, round(steps_per_epoch(rows, rules) * rules.num_epochs))


def steps_per_epoch(rows: int, rules: Train) -> int:
    """The number of batches that all rows make; the last one may be smaller."""
    return math.ceil(rows / rules.batch_size)


def batch_at(step: int, rows: int, rules: Train) -> list[int]:
    """The indices of the rows of an optimizer step; every epoch has another order."""
    per_epoch = steps_per_epoch(rows, rules)
    epoch, batch = divmod(step, per_epoch)
    start = batch * rules.batch_size
    indices: list[int] = _order(rows, rules.seed, epoch)[start : start + rules.batch_size].tolist()
    return indices


def rows_at(step: int, rows: Sequence[Row], rules: Train) -> list[Row]:
    """The rows of an optimizer step."""
    return [rows[index] for index in batch_at(step, len(rows), rules)]


def largest_steps(tokens: Sequence[int], rules: Train, count: int = 1) -> list[int]:
    """The optimizer steps whose batches have the most tokens, the largest first; `tokens`: of every row."""
    import numpy as np

    rows, total = len(tokens), total_steps(len(tokens), rules)
    per_epoch, values = steps_per_epoch(rows, rules), np.asarray(tokens)
    sums = []
    for epoch in range(math.ceil(total / per_epoch)):
        starts = np.arange(0, rows, rules.batch_size)
        sums.append(np.add.reduceat(values[_order(rows, rules.seed, epoch)], starts))
    every = np.concatenate(sums)[:total]
    found: list[int] = np.argsort(-every, kind="stable")[:count].tolist()
    return found


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> Any:
    """A permutation [rows]; cached, because a million rows take too long to permute in every step."""
    import numpy as np

    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(rows)


def learning_rate_at(step: int, total: int, rules: Train) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, SGDR, 2017)."""
    peak, warmup = peak_learning_rate(rules), max(1, round(rules.warmup_ratio * total))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def peak_learning_rate(rules: Train) -> float:
    """The highest rate of a training. ValueError where its default was not filled in (train/defaults.py)."""
    if rules.learning_rate is None:
        raise ValueError("train.learning_rate is not known: fill in the defaults (train/defaults.py)")
    return rules.learning_rate


def validates_at(step: int, rows: int, rules: Train) -> bool:
    """Whether the validation loss is measured after this many steps: `train.validation.per_epoch` times an epoch."""
    per_epoch, total = steps_per_epoch(rows, rules), total_steps(rows, rules)
    count = min(rules.validation.per_epoch, per_epoch)
    _, within = divmod(step - 1, per_epoch)
    return step == total or (within + 1) * count // per_epoch > within * count // per_epoch
