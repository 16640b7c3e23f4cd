"""Compare answers with references: pure functions from values to records.

    score(example, answer, spec)             # Score(exact=True, valid=True, fields={"intent": True}, slice="refund")
    variant(scores, answers)                 # one entry of report.json: shares, intervals, fields, slices, tokens, time

An answer is *exact* when it means the same as the reference. It is read leniently (`clean.answers.lenient`: a Markdown
fence, words around the one object, case and end marks of a label are no mistakes), by the same reader for every
variant, the tuned model included: a prompted model must not lose rows to form that any caller would put right. Order
of keys, spacing and 1 against 1.0 do not count; everything else does. An answer is *valid* when it is so as it stands
(`clean.answers.parse`, the strict check of cleaning and serving); the share of valid answers is reported beside the
share of exact ones. A field is right when its value is, also in an answer that breaks the schema elsewhere.

Intervals are exact binomial ones (Clopper and Pearson 1934) at 95 %; each holds for its variant alone. Whether one
variant is *better* than another on the same rows is another question, which the release decision answers (McNemar).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from finetune_pipeline.clean.answers import lenient, load, parse, problem
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Example, Score
from finetune_pipeline.statistics.proportion import clopper_pearson

CONFIDENCE = 0.95


class SliceFigures(TypedDict):
    rows: int
    exact: float
    interval: list[float]


class VariantFigures(TypedDict):
    """One variant in report.json. Shares from 0 to 1, `interval` at 95 %, seconds and tokens as means per answer."""

    rows: int
    exact: float
    interval: list[float]
    valid: float
    fields: dict[str, float]
    slices: dict[str, SliceFigures]
    finished: float
    seconds_per_answer: float
    prompt_tokens: float
    completion_tokens: float


PROMPTED = ("zero_shot", "few_shot", "few_shot_retrieved")


def score(example: Example, answer: Answer, spec: AnswerFormat) -> Score:
    """One answer against the reference of its row."""
    said = lenient(answer.text, spec)
    valid = problem(answer.text, spec) is None
    exact = problem(said, spec) is None and canonical(parse(said, spec)) == canonical(_reference(example, spec))
    fields = _fields(example, said, spec)
    return Score(example.id, answer.variant, exact, valid, fields, spec.slice_of(example.completion))


def canonical(value: Any) -> str:
    """One spelling for all that means the same: sorted keys, no spaces, whole numbers without a point."""
    return json.dumps(_whole(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _reference(example: Example, spec: AnswerFormat) -> Any:
    """The reference as a value. Cleaning lets nothing else through than what `parse` reads."""
    return parse(example.completion, spec)


def _fields(example: Example, text: str, spec: AnswerFormat) -> dict[str, bool]:
    if spec.format != "json":
        return {}
    said = _object(text)
    return {
        name: name in said and canonical(said[name]) == canonical(value)
        for name, value in _object(example.completion).items()
    }


def _object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; an empty one where there is none."""
    try:
        value = load(text.strip())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def variant(scores: Sequence[Score], answers: Sequence[Answer]) -> VariantFigures:
    """What report.json says of one variant."""
    rows = len(scores)
    exact = sum(s.exact for s in scores)
    slices: dict[str, list[bool]] = defaultdict(list)
    fields: dict[str, list[bool]] = defaultdict(list)
    for each in scores:
        if each.slice:
            slices[each.slice].append(each.exact)
        for name, right in each.fields.items():
            fields[name].append(right)
    return {
        "rows": rows,
        "exact": _share(exact, rows),
        "interval": interval(exact, rows),
        "valid": _share(sum(s.valid for s in scores), rows),
        "fields": {name: _share(sum(right), len(right)) for name, right in fields.items()},
        "slices": {name: _slice(slices[name]) for name in sorted(slices)},
        "finished": _share(sum(a.finished for a in answers), len(answers)),
        "seconds_per_answer": _mean(a.seconds for a in answers),
        "prompt_tokens": _mean(a.prompt_tokens for a in answers),
        "completion_tokens": _mean(a.completion_tokens for a in answers),
    }


def _slice(right: Sequence[bool]) -> SliceFigures:
    return {
        "rows": len(right),
        "exact": _share(sum(right), len(right)),
        "interval": interval(sum(right), len(right)),
    }


def best_prompted(exact: Mapping[str, float]) -> str | None:
    """The prompted variant with the highest share of exact answers, of equals the simplest; None if there is none.

    `exact`: the share of each variant, from 0 to 1."""
    return max((name for name in PROMPTED if name in exact), key=lambda name: exact[name], default=None)


def interval(right: int, rows: int) -> list[float]:
    return [round(bound, 6) for bound in clopper_pearson(right, rows, CONFIDENCE)]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 6) if listed else 0.0
