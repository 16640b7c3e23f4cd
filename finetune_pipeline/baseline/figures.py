"""The figures of a variant in report.json: shares with exact intervals, metrics, fields, slices, tokens and seconds.

    variant_figures(rows, answers, scores, spec)
    # {"rows": 104, "exact": 0.71, "interval": [0.61, 0.80], "valid": 0.99, "metrics": {"macro_f1": 0.68}, ...}

Intervals are exact binomial ones (Clopper and Pearson 1934) at 95 %; each holds for its variant alone. Whether one
variant is *better* than another on the same rows is a paired question: the release decision tests it (McNemar).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypedDict

from finetune_pipeline.baseline.metrics import EXACT, METRICS, VALID, Metric, mean
from finetune_pipeline.baseline.prompts import PROMPTED
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Example, Score
from finetune_pipeline.statistics.proportion import clopper_pearson

CONFIDENCE = 0.95


class SliceFigures(TypedDict):
    """One slice of the test rows: `exact` from 0 to 1, with its interval."""

    rows: int
    exact: float
    interval: list[float]


class VariantFigures(TypedDict):
    """One variant in report.json. Shares from 0 to 1, `interval` of `exact` at 95 %; `metrics`: the other entries of
    the table of metrics that apply, by name; seconds and tokens are means per answer."""

    rows: int
    exact: float
    interval: list[float]
    valid: float
    metrics: dict[str, float]
    fields: dict[str, float]
    slices: dict[str, SliceFigures]
    finished: float
    seconds_per_answer: float
    prompt_tokens: float
    completion_tokens: float


def variant_figures(
    rows: Mapping[str, Example],
    answers: Sequence[Answer],
    scores: Sequence[Score],
    spec: AnswerFormat,
    metrics: Sequence[Metric] = METRICS,
) -> VariantFigures:
    """The figures of one variant from its answers and scores. `rows`: the test rows by id."""
    slices: dict[str, list[bool]] = defaultdict(list)
    fields: dict[str, list[bool]] = defaultdict(list)
    for score in scores:
        if score.slice:
            slices[score.slice].append(score.exact)
        for name, right in score.fields.items():
            fields[name].append(right)
    overall = _slice([score.exact for score in scores])
    return {
        **overall,
        "valid": _mean([score.valid for score in scores]),
        "metrics": _metrics(rows, answers, spec, metrics),
        "fields": {name: _mean(right) for name, right in fields.items()},
        "slices": {name: _slice(slices[name]) for name in sorted(slices)},
        "finished": _mean([answer.finished for answer in answers]),
        "seconds_per_answer": _mean([answer.seconds for answer in answers]),
        "prompt_tokens": _mean([answer.prompt_tokens for answer in answers]),
        "completion_tokens": _mean([answer.completion_tokens for answer in answers]),
    }


def _metrics(
    rows: Mapping[str, Example], answers: Sequence[Answer], spec: AnswerFormat, metrics: Sequence[Metric]
) -> dict[str, float]:
    """The metrics that apply, without the two that are shares of the scores."""
    applicable = [metric for metric in metrics if metric not in (EXACT, VALID) and spec.format in metric.formats]
    completions, texts = [rows[answer.id].completion for answer in answers], [answer.text for answer in answers]
    return {metric.name: round(metric.figure(completions, texts, spec), 6) for metric in applicable}


def _slice(right: Sequence[bool]) -> SliceFigures:
    return {"rows": len(right), "exact": _mean(right), "interval": interval(sum(right), len(right))}


def best_prompted(exact: Mapping[str, float]) -> str | None:
    """The prompted variant with the highest share of exact answers, of equals the simplest; None if there is none.

    `exact`: the share of each variant, from 0 to 1."""
    return max((name for name in PROMPTED if name in exact), key=lambda name: exact[name], default=None)


def interval(right: int, rows: int) -> list[float]:
    """The exact 95 % interval of the share `right` of `rows`."""
    return [round(bound, 6) for bound in clopper_pearson(right, rows, CONFIDENCE)]


def _mean(values: Sequence[float]) -> float:
    return round(mean(values), 6)
