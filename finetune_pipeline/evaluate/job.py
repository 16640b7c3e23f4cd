"""The process that evaluates a tuned model: `python -m finetune_pipeline.evaluate.job <job.json>`.

The description is an EvaluationRequest: the model answers the test rows (baseline/job.py), and two measures need it in
memory as well. Each finished measure is written to `<partial>/<measure>.json`, so that a killed job resumes after it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from finetune_pipeline.backends import worker
from finetune_pipeline.baseline.answering import AnswerCounts, AnswerRequest
from finetune_pipeline.baseline.job import answer, answerer_of, load_model
from finetune_pipeline.evaluate import general_ability
from finetune_pipeline.evaluate.general_ability import GeneralLosses
from finetune_pipeline.evaluate.memorization import MAX_ROWS, MemorizationLosses
from finetune_pipeline.evaluate.request import GENERAL, MEMORIZATION, EvaluationRequest
from finetune_pipeline.inference.answerer import LocalModel
from finetune_pipeline.inference.likelihood import fitting, losses
from finetune_pipeline.inference.loading import Loaded, base_only
from finetune_pipeline.models.device import fast_bf16
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import write_atomic

SEED = 19  # of the rows whose losses memorization compares


def run(request: EvaluationRequest, report: Reporter) -> AnswerCounts:
    """Answer what is not answered yet, and measure what is declared."""
    answers = request.answers
    if answers.provider is not None:  # an API gives no likelihoods, so nothing else can be measured
        return answer(answers, answerer_of(answers, report), report)
    loaded = load_model(answers, report)
    counts = answer(answers, LocalModel(loaded, answers.task.answer), report)
    partial = request.answers.partial
    if request.general:
        _once(partial / GENERAL, lambda: _general(loaded, report))
    if request.memorization:
        _once(partial / MEMORIZATION, lambda: _memorization(loaded, request.answers, report))
    return counts


def _general(loaded: Loaded, report: Reporter) -> GeneralLosses:
    rows = fitting(loaded, general_ability.conversations(general_ability.prompts()), "general texts", report)
    bf16 = fast_bf16()
    tuned = losses(loaded, rows, "general ability, tuned", report, bf16)
    with base_only(loaded) as base:
        return {"base": losses(base, rows, "general ability, base", report, bf16), "tuned": tuned}


def _memorization(loaded: Loaded, request: AnswerRequest, report: Reporter) -> MemorizationLosses:
    train, test = request.rows("train"), request.rows("test")
    rng = random.Random(SEED)
    count = min(len(train), len(test), MAX_ROWS)
    samples = {"train": rng.sample(train, count), "test": rng.sample(test, count)}
    system = request.task.prompt.system
    rows = {
        f"{split}/{row.id}": (row.chat(system), row.completion) for split, sample in samples.items() for row in sample
    }
    measured = losses(loaded, rows, "memorization", report, fast_bf16())
    train_losses, test_losses = (
        [loss for key, loss in measured.items() if key.startswith(f"{split}/")] for split in samples
    )
    return {"train": train_losses, "test": test_losses}


def _once(path: Path, measure: Callable[[], GeneralLosses | MemorizationLosses]) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(measure()))


if __name__ == "__main__":
    worker.main(run, EvaluationRequest)
