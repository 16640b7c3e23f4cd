"""What is known about the job: the declaration's answers, and figures of the cleaned rows. Pure.

    facts = gather(rows, raw_rows=912, dropped=Counter(contradiction=14), declared=task, count=token_counter(folder))
    facts.prompt_tokens        31.4 (mean)

What it is not: the judgment of these facts (rules.py), or what they cost (estimates.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from finetune_pipeline.clean.answers import parse
from finetune_pipeline.config import AnswerFormat, Task
from finetune_pipeline.records import Example, content_id, dumps

MEASURED_ROWS = 2000  # token counts are means over at most this many rows: a mean of 2000 is known to 2-3 %
CLOSED_VALUES = 50  # a JSON field with at most this many different values is a choice, not free text
SHOTS = 4  # examples in the prompt that is compared: the default of `baseline.shots`


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows are counts, `*_tokens` means per row (`system_tokens` of the one system prompt), shares lie in 0..1.

    `distinct_answers` counts different answers; `closed_fields` of `fields` JSON fields take few values; `train_share`
    of the usable rows is trained on, the others are validation and test.
    """

    raw: int
    usable: int
    contradictory: int
    format: str
    distinct_answers: int
    fields: int
    closed_fields: int
    system_tokens: float
    prompt_tokens: float
    completion_tokens: float
    train_share: float = 1.0

    @property
    def tuned_prompt(self) -> float:
        """Tokens of a prompt for the tuned model: system prompt and question."""
        return self.system_tokens + self.prompt_tokens

    @property
    def few_shot_prompt(self) -> float:
        """Tokens of the prompt that would do the job without tuning: the same with `SHOTS` examples in it."""
        return self.tuned_prompt + SHOTS * (self.prompt_tokens + self.completion_tokens)

    @property
    def row_tokens(self) -> float:
        return self.tuned_prompt + self.completion_tokens


def gather(
    rows: Sequence[Example],
    raw_rows: int,
    dropped: Mapping[str, int],
    declared: Task,
    count: Callable[[Sequence[str]], list[int]],
) -> Facts:
    """Figures of the cleaned `rows`; `dropped` counts the cleaning's drops by reason; `count` gives tokens of texts."""
    measured = sorted(rows, key=lambda row: content_id(row.id))[:MEASURED_ROWS]
    closed, fields = closed_fields([row.completion for row in rows], declared.answer)
    prompts = ["\n".join(turn["content"] for turn in row.chat("")) for row in measured]
    return Facts(
        raw=raw_rows,
        usable=len(rows),
        contradictory=sum(n for reason, n in dropped.items() if reason.startswith("contradict")),
        format=declared.answer.format,
        distinct_answers=len({row.completion for row in rows}),
        fields=fields,
        closed_fields=closed,
        system_tokens=float(count([declared.prompt.system])[0]) if declared.prompt.system else 0.0,
        prompt_tokens=fmean(count(prompts)) if prompts else 0.0,
        completion_tokens=fmean(count([row.completion for row in measured])) if measured else 0.0,
        train_share=1.0 - declared.split.test - declared.split.validation,
    )


def closed_fields(answers: Sequence[str], spec: AnswerFormat) -> tuple[int, int]:
    """How many fields of the JSON answers take few values, of how many there are; (0, 0) for other formats. Answers
    that do not parse are passed over: the quality gate counts them."""
    if spec.format != "json":
        return 0, 0
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        for name, value in _fields(answer, spec).items():
            values[name][dumps(value)] += 1
    return sum(len(found) <= CLOSED_VALUES for found in values.values()), len(values)


def _fields(answer: str, spec: AnswerFormat) -> Mapping[str, Any]:
    try:
        value = parse(answer, spec)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
