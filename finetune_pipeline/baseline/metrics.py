"""The table of metrics: each compares a row's completion with a model's answer. A new metric is one entry of METRICS.

    Metric("exact", "Exact", exact)                    # the mean over the test rows, for every answer format
    Metric("macro_f1", "Macro F1", label_pair, combine=macro_f1, formats=("label",))
    score(example, answer, spec)                       # Score(exact=True, valid=True, fields={"intent": True}, ...)

report.json holds every metric of every variant that applies to the task's answer format, and report.html shows a column
for it. `exact` and `valid` are stored for each row in scores.jsonl as well: the release decision reads them there.

*Exact*: the answer means the same as the completion. It is read leniently (`clean.answers.lenient`: a Markdown fence,
words around the one object, case and end marks of a label do not count), by the same reader for every variant, the
tuned model included: a prompted model must not lose rows to a form that any caller would correct. Order of keys,
spacing, and 1 against 1.0 do not count; everything else does. *Valid*: the answer has the declared format without any
such correction (`clean.answers.parse`, the strict check of cleaning and serving). A *field* is right when its value is,
also in an answer that breaks the schema elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from finetune_pipeline.clean.answers import lenient, load, parse, problem
from finetune_pipeline.config import AnswerFormat, FormatName
from finetune_pipeline.records import Answer, Example, Score

FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 without values."""
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is the key in report.json, `title` the column in report.html.

    `value` maps (completion, answer text, answer format) to the value of one row, and `combine` the values of all test
    rows to the figure of a variant. `formats` are the answer formats to which the metric applies.
    """

    name: str
    title: str
    value: Callable[[str, str, AnswerFormat], Any]
    combine: Callable[[Sequence[Any]], float] = mean
    higher_is_better: bool = True
    formats: tuple[FormatName, ...] = FORMATS

    def figure(self, completions: Sequence[str], answers: Sequence[str], spec: AnswerFormat) -> float:
        """The figure of a variant, from the completions and its answers in the same order of rows."""
        pairs = zip(completions, answers, strict=True)
        return self.combine([self.value(completion, answer, spec) for completion, answer in pairs])


def exact(completion: str, answer: str, spec: AnswerFormat) -> bool:
    """Whether the answer, read leniently, means the same as the completion."""
    text = lenient(answer, spec)
    return problem(text, spec) is None and canonical(parse(text, spec)) == canonical(parse(completion, spec))


def valid(completion: str, answer: str, spec: AnswerFormat) -> bool:
    """Whether the answer has the declared format as it is."""
    return problem(answer, spec) is None


def label_pair(completion: str, answer: str, spec: AnswerFormat) -> tuple[str, str]:
    """The true label and the one that was answered, read leniently."""
    return completion.strip(), lenient(answer, spec)


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """The mean F1 score of the labels that occur among the completions: every label counts the same, however rare."""
    from sklearn.metrics import f1_score

    if not pairs:
        return 0.0
    true, answered = ([pair[i] for pair in pairs] for i in (0, 1))
    return float(f1_score(true, answered, labels=sorted(set(true)), average="macro", zero_division=0.0))


EXACT = Metric("exact", "Exact", exact)
VALID = Metric("valid", "Valid format", valid)
METRICS: tuple[Metric, ...] = (
    EXACT,
    VALID,
    Metric("macro_f1", "Macro F1", label_pair, combine=macro_f1, formats=("label",)),
)


def score(example: Example, answer: Answer, spec: AnswerFormat) -> Score:
    """One answer against the completion of its row."""
    completion = example.completion
    return Score(
        example.id,
        answer.variant,
        EXACT.value(completion, answer.text, spec),
        VALID.value(completion, answer.text, spec),
        _fields(completion, lenient(answer.text, spec)) if spec.format == "json" else {},
        spec.slice_of(completion),
    )


def score_all(rows: Sequence[Example], answers: Sequence[Answer], spec: AnswerFormat) -> list[Score]:
    """The score of every answer, in the answers' order."""
    by_id = {row.id: row for row in rows}
    return [score(by_id[answer.id], answer, spec) for answer in answers]


def canonical(value: Any) -> str:
    """One spelling for all values that mean the same: sorted keys, no spaces, whole numbers without a point."""
    return json.dumps(_whole_numbers(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    return [_whole_numbers(item) for item in value] if isinstance(value, list) else value


def _fields(completion: str, answer: str) -> dict[str, bool]:
    """Field of the completion -> whether the answer has its value."""
    answered = json_object(answer)
    return {
        name: name in answered and canonical(answered[name]) == canonical(value)
        for name, value in json_object(completion).items()
    }


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; an empty one where there is none."""
    try:
        value = load(text.strip())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
