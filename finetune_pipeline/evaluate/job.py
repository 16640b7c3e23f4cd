"""The process that loads the model once and answers everything: `python -m finetune_pipeline.evaluate.job <job.json>`.

    {"base": "…/models/SmolLM2…", "adapter": null, "split": "…/data_split/3fa9…", "partial": "…/partial/91c4…",
     "task": {…}, "variants": ["zero_shot", "few_shot", "few_shot_retrieved", "classical"], "max_new_tokens": 48,
     "general": false, "memorization": false}

Every answer is appended to `<partial>/answers.jsonl` when it is complete, every finished measure written to
`<partial>/<measure>.json`: a job that is killed goes on where it was. What is scored and shown is made from these files
(assets.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.config import Task, task_from
from finetune_pipeline.evaluate import classical, general_ability
from finetune_pipeline.evaluate.answer_log import AnswerFile
from finetune_pipeline.evaluate.memorization import MOST_ROWS
from finetune_pipeline.evaluate.metrics import PROMPTED
from finetune_pipeline.evaluate.prompts import Chat, prompts
from finetune_pipeline.inference.generate import Generation, encode, generate, label_choice
from finetune_pipeline.inference.likelihood import fitting, losses
from finetune_pipeline.inference.loading import Loaded, base_only, load
from finetune_pipeline.models.device import fast_bf16
from finetune_pipeline.records import Answer, Example, Reporter, read_jsonl
from finetune_pipeline.store import write_atomic

SEED = 19  # of the training rows that memorization looks at


def run(spec: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Answer what is not answered yet; gives the number of answers made and reused."""
    task = task_from(spec["task"], "the job's task")
    train, tests = _rows(spec, "train"), _rows(spec, "test")
    partial = Path(spec["partial"])
    file = AnswerFile(partial / "answers.jsonl")
    reused = len(file.answers)
    if reused:
        report.log(f"{reused} answers are there from before")
    if classical.VARIANT in spec["variants"] and classical.applies(task.answer):
        _classical(file, train, tests, task, report)
    loaded = load(Path(spec["base"]), Path(spec["adapter"]) if spec["adapter"] else None)
    for variant in (name for name in spec["variants"] if name != classical.VARIANT):
        _generate(variant, loaded, file, train, tests, task, spec["max_new_tokens"], report)
    if spec["general"]:
        _once(partial / "general.json", lambda: _general(loaded, report))
    if spec["memorization"]:
        _once(partial / "memorization.json", lambda: _memorization(loaded, train, tests, task, report))
    return {"answers": len(file.answers) - reused, "reused": reused}


def _rows(spec: Mapping[str, Any], side: str) -> list[Example]:
    return [Example.from_json(row) for row in read_jsonl(Path(spec["split"]) / f"{side}.jsonl")]


def _classical(file: AnswerFile, train: list[Example], tests: list[Example], task: Task, report: Reporter) -> None:
    if len(file.of(classical.VARIANT)) < len(tests):
        known = file.of(classical.VARIANT)
        for answer in classical.answers(train, tests, task.answer, report):
            if answer.id not in known:
                file.append(answer)
        report.progress(classical.VARIANT, len(tests), len(tests))


def _generate(
    variant: str,
    loaded: Loaded,
    file: AnswerFile,
    train: list[Example],
    tests: list[Example],
    task: Task,
    max_new_tokens: int,
    report: Reporter,
) -> None:
    known = file.of(variant)
    left = [row for row in tests if row.id not in known]
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def fits(chat: Chat) -> bool:
        return len(encode(loaded.tokenizer, chat)) + max_new_tokens <= context

    asked = prompts(variant, train, left, task.prompt.system, task.answer, task.baseline.shots, fits)
    how = Generation(variant, max_new_tokens, task.evaluate.batch_size)

    def keep(answer: Answer) -> None:
        file.append(answer)

    # the tuned model answers as it will be served; a prompted one is given the best chance (inference/label_choice.py)
    choice = label_choice(loaded, task.answer.labels) if variant in PROMPTED and task.answer.labels else None
    generate(loaded, asked, task.answer, how, keep, report, done=len(known), choice=choice)


def _general(loaded: Loaded, report: Reporter) -> dict[str, dict[str, float]]:
    rows = fitting(loaded, general_ability.conversations(general_ability.questions()), "general texts", report)
    bf16 = fast_bf16()
    tuned = losses(loaded, rows, "general ability, tuned", report, bf16)
    with base_only(loaded):
        return {"base": losses(loaded, rows, "general ability, base", report, bf16), "tuned": tuned}


def _memorization(
    loaded: Loaded, train: list[Example], tests: list[Example], task: Task, report: Reporter
) -> dict[str, list[float]]:
    dice = random.Random(SEED)
    count = min(len(train), len(tests), MOST_ROWS)
    sides = {"train": dice.sample(train, count), "test": dice.sample(tests, count)}
    rows = {
        f"{side}/{row.id}": (row.chat(task.prompt.system), row.completion)
        for side, some in sides.items()
        for row in some
    }
    found = losses(loaded, rows, "memorization", report, fast_bf16())
    return {side: [loss for key, loss in found.items() if key.startswith(f"{side}/")] for side in sides}


def _once(path: Path, measure: Callable[[], Any]) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(measure()))


if __name__ == "__main__":
    worker.main(run)
