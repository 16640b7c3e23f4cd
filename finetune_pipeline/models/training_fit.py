"""Whether a training fits into a memory: FITS, TIGHT or TOO BIG, and with what micro-batch and checkpointing. Pure.

    fit(architecture, Train(method="lora"), Setting("cuda"), load, longest, available_mb=85_520)
    # Fit("FITS", checkpointing=False, tokens=4096.0, memory=Memory(…))

What is declared is tried first; then gradient checkpointing, if `train.gradient_checkpointing` is "auto"; then smaller
micro-batches, down to the longest row alone, which cannot be divided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.trained_weights import METHODS, Method
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.models.training_memory import Memory, Setting, training_memory

Verdict = Literal["FITS", "TIGHT", "TOO BIG"]
# Of the available memory: what a prediction may miss by, and what other programs may take meanwhile
ROOM = 0.85


@dataclass(frozen=True)
class Fit(JobData):
    """`tokens`: of the largest pass; `memory`: what it then needs."""

    verdict: Verdict
    checkpointing: bool
    tokens: float
    memory: Memory


def verdict_of(need_mb: float, available_mb: float) -> Verdict:
    if need_mb <= ROOM * available_mb:
        return "FITS"
    return "TIGHT" if need_mb <= available_mb else "TOO BIG"


def fit(
    architecture: Architecture, rules: Train, setting: Setting, load: Load, longest: Load, available_mb: float
) -> Fit:
    """The first way in which the training fits; where none does, the one that needs the least memory. `load`: the
    largest pass as declared; `longest`: that of the longest row alone."""
    tried: list[Fit] = []
    for checkpointing, part in _ways(rules, load, longest):
        parts = setting.parts if part is load else max(2, setting.parts)
        here = replace(setting, checkpointing=checkpointing, parts=parts)
        memory = training_memory(architecture, rules, here, part)
        tried.append(Fit(verdict_of(memory.total_mb, available_mb), checkpointing, part.tokens, memory))
        if tried[-1].verdict == "FITS":
            return tried[-1]
    tight = [each for each in tried if each.verdict == "TIGHT"]
    return tight[0] if tight else min(tried, key=lambda each: each.memory.total_mb)


def fits_by_method(
    architecture: Architecture,
    rules: Train,
    setting: Setting,
    load: Load,
    longest: Load,
    available_mb: float,
    sharded: Collection[Method] = (),
) -> dict[str, Fit]:
    """`fit` for every method, the other settings as they are; `sharded`: the methods with which `setting.devices` share
    the weights."""
    found: dict[str, Fit] = {}
    for method in METHODS:
        here = setting if method in sharded else replace(setting, devices=1)
        found[method] = fit(
            architecture, rules.model_copy(update={"method": method}), here, load, longest, available_mb
        )
    return found


def fitting_adapter(fits: Mapping[str, Fit]) -> Method | None:
    """The adapter that fits: LoRA rather than QLoRA, which takes more time; one that is tight where none has room."""
    adapters: tuple[Method, ...] = ("lora", "qlora")
    for verdict in ("FITS", "TIGHT"):
        for method in adapters:
            if fits[method].verdict == verdict:
                return method
    return None


def largest_tokens(
    architecture: Architecture, rules: Train, setting: Setting, load: Load, longest: Load, available_mb: float
) -> int | None:
    """The largest `train.max_tokens_per_batch` that fits, rounded down to a multiple of 64; None where not even the
    longest row does. The memory of a pass grows with its tokens: the largest is found by bisection."""

    def fits(tokens: float) -> bool:
        part = load.times(tokens / load.tokens) if load.tokens else load
        return training_memory(architecture, rules, setting, part).total_mb <= ROOM * available_mb

    low, high = longest.tokens, 2.0**20
    if not fits(low):
        return None
    while high - low > 32:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(64, int(low) // 64 * 64)


def _ways(rules: Train, load: Load, longest: Load) -> Iterator[tuple[bool, Load]]:
    declared = rules.gradient_checkpointing
    checkpointing = [False, True] if declared == "auto" else [bool(declared)]
    for each in checkpointing:
        yield each, load
    share = 0.5
    while load.tokens * share > longest.tokens:
        yield checkpointing[-1], load.times(share)
        share /= 2
    if longest.tokens < load.tokens:
        yield checkpointing[-1], longest
