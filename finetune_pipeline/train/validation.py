"""The task's score during training: some validation rows are answered, and the share of right answers is returned.

    score = scorer(model, base, validation, spec, report)      # None where it says nothing
    score()                                                     # 0.84

The loss says how likely the right answer is, not whether it is given. The rows are drawn once, answered greedily in the
precision of the training, and read as in evaluation (baseline/metrics.py). Free text has no single right answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from finetune_pipeline.baseline.metrics import exact
from finetune_pipeline.inference.generate import Generation, encode, generate
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.model_family import within_limit
from finetune_pipeline.models.device import autocast, release_memory, uses_bf16
from finetune_pipeline.records import Example, Reporter, Silent
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.method import Base
from finetune_pipeline.train.spec import TrainingSpec

BATCH = 32
LENGTH_FACTOR = 1.2  # an answer may be this much longer than the longest completion


class _Uninterrupted(Silent):
    """Shows the progress of the answers and does not stop them: a training stops before a step, where it can be
    resumed, and all of its processes together."""

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self._report.progress(what, done, total, **figures)


def scorer(
    model: Any, base: Base, rows: Sequence[Example], spec: TrainingSpec, report: Reporter, ranks: Ranks = ALONE
) -> Callable[[], float] | None:
    """The function that scores the model as it is when it is called. None for free text, without rows, or where
    `train.validation.generate_rows` is 0."""
    count = spec.rules.validation.generate_rows
    if ranks.sharded:  # every token of an answer is a pass, of which each rank would compute another number
        report.log("with sharded weights, no validation rows are answered")
        return None
    if not count or spec.answer.format == "text":
        return None
    sample = random.Random(spec.rules.seed).sample(list(rows), min(count, len(rows)))
    loaded = Loaded(model, base.tokenizer, base.end_ids)
    chats = {row.id: row.chat(spec.system) for row in sample}
    tokens = base.tokenizer([row.completion for row in sample], add_special_tokens=False)["input_ids"] if sample else []
    longest = max(map(len, tokens), default=0)
    settings = Generation("validation", max(int(longest * LENGTH_FACTOR), longest + 2), BATCH)
    fitting = within_limit(
        chats,
        lambda key: len(encode(base.tokenizer, chats[key])) + settings.max_new_tokens,
        model.config,
        "validation rows",
        report,
    )
    if not fitting:
        return None
    expected = {row.id: row.completion for row in sample if row.id in fitting}
    own = {key: chats[key] for key in list(fitting)[ranks.rank :: ranks.size]}

    def score() -> float:
        with autocast(uses_bf16(spec.rules.precision)):
            answers = generate(loaded, own, spec.answer, settings, report=_Uninterrupted(report)) if own else []
        release_memory()  # of keys and values: the steps need other sizes
        right = [exact(expected[answer.id], answer.text, spec.answer) for answer in answers]
        return ranks.sum([sum(right)])[0] / len(expected)

    return score
