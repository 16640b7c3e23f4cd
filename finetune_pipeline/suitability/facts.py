"""Collect what is known about the task: settings of the declaration, and statistics of the cleaned rows. Pure.

facts = collect_facts(rows, raw_rows=912, dropped={"contradiction": 14}, task=task, count_tokens=counter)
facts.prompt_tokens        31.4 (mean)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from finetune_pipeline.clean.answers import parse
from finetune_pipeline.config import AnswerFormat, Baseline, Task
from finetune_pipeline.records import Example, content_id, dumps

MEASURED_ROWS = 2000  # token counts are means over at most this many rows: the standard error is then 2-3 %
CLOSED_VALUES = 50  # a JSON field with at most this many distinct values is a choice, not free text


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows are counts, `*_tokens` means per row (`system_tokens`: of the one system prompt), shares are from 0 to 1.

    `distinct_completions` counts distinct completions; `closed_fields` of `fields` JSON fields take few values;
    `train_share` of the usable rows is trained on, the others are validation and test; `shots` is the number of
    examples in the few-shot prompt of the comparison.
    """

    raw: int
    usable: int
    contradictory: int
    answer_format: str
    distinct_completions: int
    fields: int
    closed_fields: int
    system_tokens: float
    prompt_tokens: float
    completion_tokens: float
    train_share: float = 1.0
    shots: int = Baseline().shots

    @property
    def tuned_prompt_tokens(self) -> float:
        """Tokens of a prompt for the tuned model: the system prompt and the row's prompt."""
        return self.system_tokens + self.prompt_tokens

    @property
    def few_shot_prompt_tokens(self) -> float:
        """Tokens of a prompt for a model that is not tuned: the same, with `shots` examples."""
        return self.tuned_prompt_tokens + self.shots * (self.prompt_tokens + self.completion_tokens)

    @property
    def row_tokens(self) -> float:
        """Tokens of a training row: system prompt, prompt and completion."""
        return self.tuned_prompt_tokens + self.completion_tokens


def collect_facts(
    rows: Sequence[Example],
    raw_rows: int,
    dropped: Mapping[str, int],
    task: Task,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> Facts:
    """Facts about the cleaned `rows`; `dropped`: rows that cleaning dropped, by reason; `count_tokens`: the number of
    tokens of each text."""
    measured = sample(rows)
    closed, fields = closed_fields([row.completion for row in rows], task.answer)
    prompts = ["\n".join(turn["content"] for turn in row.chat("")) for row in measured]
    return Facts(
        raw=raw_rows,
        usable=len(rows),
        contradictory=dropped.get("contradiction", 0),
        answer_format=task.answer.format,
        distinct_completions=len({row.completion for row in rows}),
        fields=fields,
        closed_fields=closed,
        system_tokens=float(count_tokens([task.prompt.system])[0]) if task.prompt.system else 0.0,
        prompt_tokens=fmean(count_tokens(prompts)) if prompts else 0.0,
        completion_tokens=fmean(count_tokens([row.completion for row in measured])) if measured else 0.0,
        train_share=1.0 - task.split.test - task.split.validation,
        shots=task.baseline.shots,
    )


def sample(rows: Sequence[Example]) -> list[Example]:
    """The rows whose tokens are counted: the same ones in every run, whatever their order."""
    return sorted(rows, key=lambda row: content_id(row.id))[:MEASURED_ROWS]


def closed_fields(completions: Sequence[str], spec: AnswerFormat) -> tuple[int, int]:
    """The number of JSON fields that take few values, and the number of all fields; (0, 0) for other formats.
    Completions that do not parse are skipped here: the quality gate counts them."""
    if spec.format != "json":
        return 0, 0
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for completion in completions:
        for name, value in _fields(completion, spec).items():
            values[name][dumps(value)] += 1
    return sum(len(counts) <= CLOSED_VALUES for counts in values.values()), len(values)


def _fields(completion: str, spec: AnswerFormat) -> Mapping[str, Any]:
    try:
        value = parse(completion, spec)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
