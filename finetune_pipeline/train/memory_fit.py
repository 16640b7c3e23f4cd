"""Fit a training into the memory of its device, before the first step: checkpointing, and smaller micro-batches.

    rules = fit_to_memory(forward, architecture, rules, rows, general, report, ranks)    # sets forward.checkpointing

The memory model (models/training_memory.py) decides: `train.gradient_checkpointing: auto` turns checkpointing on only
where the declared micro-batch would not fit otherwise; where even that is not enough, the micro-batch gets smaller. A
GPU also reports when its memory runs out, and the step is computed again in smaller parts (loop.py); a process on a CPU
is killed, so there the prediction is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.device import kind, reachable_mb, uses_bf16
from finetune_pipeline.models.training_fit import fit
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.models.training_memory import Setting
from finetune_pipeline.records import Reporter
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.schedule import largest_steps, rows_at
from finetune_pipeline.train.tokenize import TokenizedExample

LOOKED_AT = 8  # batches: the one with the most tokens need not have the largest pass


def fit_to_memory(
    forward: Forward,
    architecture: Architecture,
    rules: Train,
    rows: Sequence[TokenizedExample],
    general: Sequence[TokenizedExample],
    report: Reporter,
    ranks: Ranks = ALONE,
    sharded: bool = False,
) -> Train:
    """`rules` with the largest `max_tokens_per_batch` that fits, as declared where possible; turns on the checkpointing
    of `forward`. `rows`: all training rows; `general`: the general texts of a step; `sharded`: whether
    the ranks share the weights. ModelError where checkpointing is declared and impossible."""
    largest, longest, parts = largest_pass(forward, rows, general, rules)
    devices = ranks.size if sharded else 1
    setting = Setting(kind(), uses_bf16(rules.precision), forward.name, devices=devices, parts=parts)
    able = forward.can_checkpoint()
    if rules.gradient_checkpointing is True and not able:
        raise ModelError(
            "gradient checkpointing is not possible for this base model", "set `train.gradient_checkpointing: auto`"
        )
    tried = rules if able else rules.model_copy(update={"gradient_checkpointing": False})
    available = -ranks.max(-reachable_mb(ranks.size_here))  # the least of all machines, so that all decide alike
    found = fit(architecture, tried, setting, largest, longest, available)
    forward.checkpointing = found.checkpointing
    need = f"it needs about {found.memory.total_mb:,.0f} MB of {available:,.0f} MB"
    if found.checkpointing and rules.gradient_checkpointing == "auto":
        report.log(f"gradient checkpointing is on, because the training would not fit into the memory without: {need}")
    if found.verdict == "TOO BIG":
        report.log(f"the training may run out of memory: {need} even in the smallest parts")
    if found.tokens >= largest.tokens:
        return rules
    tokens = max(64, int(found.tokens))
    report.log(f"at most {tokens} tokens at once, so that the training fits into the memory: {need}")
    return rules.model_copy(update={"max_tokens_per_batch": tokens})


def largest_pass(
    forward: Forward, rows: Sequence[TokenizedExample], general: Sequence[TokenizedExample], rules: Train
) -> tuple[Load, Load, int]:
    """The load of the largest pass of the training, that of the longest row alone, and the micro-batches of the batch
    with the largest pass. General texts are in its first pass (loop.py)."""
    found: list[tuple[Load, int]] = []
    for batch in largest_batches(rows, rules):
        parts = forward.micro_batches(batch, rules.max_tokens_per_batch)
        loads = [forward.load([*parts[0], *general], len(general)), *(forward.load(part) for part in parts[1:])]
        found.append((max(loads, key=lambda load: load.tokens), len(parts)))
    largest, count = max(found, key=lambda each: each[0].tokens)
    longest = max(rows, key=lambda row: row.tokens)
    return largest, forward.load([longest, *general], len(general)), count


def largest_batches(rows: Sequence[TokenizedExample], rules: Train) -> list[list[TokenizedExample]]:
    """The batches of the training with the most tokens, the largest first: the order of the rows is known. Where rows
    are padded, the one with the longest row may take the most memory: it is among them."""
    tokens = [row.tokens for row in rows]
    steps = largest_steps(tokens, rules, LOOKED_AT)
    steps += largest_steps([each * (each == max(tokens)) for each in tokens], rules)
    return [rows_at(step, rows, rules) for step in steps]
