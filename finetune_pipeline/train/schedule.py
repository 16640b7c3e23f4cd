"""Order, batches and learning rate: pure functions of the seed and the step, so that a resumed training is the same."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.train.tokenize import Encoded


def total_steps(rows: int, rules: Train) -> int:
    """Optimizer steps in all; at least one."""
    return max(1, round(math.ceil(rows / rules.batch_size) * rules.num_epochs))


def batch_at(step: int, rows: int, rules: Train) -> list[int]:
    """The rows (by place) of optimizer step `step`; every epoch has an order of its own."""
    per_epoch = math.ceil(rows / rules.batch_size)
    epoch, place = divmod(step, per_epoch)
    batch: list[int] = _order(rows, rules.seed, epoch)[
        place * rules.batch_size : (place + 1) * rules.batch_size
    ].tolist()
    return batch


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> Any:
    """A permutation of the rows, [rows]; made once an epoch, since a million rows take too long for every step."""
    import numpy as np

    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(rows)


def rate_at(step: int, total: int, rules: Train) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, SGDR, 2017)."""
    warm = max(1, round(rules.warmup_ratio * total))
    if step < warm:
        return rules.learning_rate * (step + 1) / warm
    return rules.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def pieces(batch: Sequence[Encoded], prefix: int, limit: int) -> list[list[Encoded]]:
    """The batch in pieces of at most `limit` tokens, shared prefix included; a row that is longer stands alone."""
    made: list[list[Encoded]] = []
    room = 0
    for row in sorted(batch, key=lambda r: len(r.ids)):
        own = len(row.ids) - prefix
        if not made or own > room:
            made.append([])
            room = limit - prefix
        made[-1].append(row)
        room -= own
    return made
