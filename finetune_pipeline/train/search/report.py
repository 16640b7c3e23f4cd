"""report.html of a search: what was compared, on which rows, and how the trials did. One page that loads nothing.

    html = page(Heading("support_tickets", "SmolLM2-135M-Instruct", at), result)

Every figure is in search.json; only the geometry of the charts (SVG) is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.statistics.formatting import percent
from finetune_pipeline.train.search.choice import cost, loss_of
from finetune_pipeline.train.search.spec import SearchResult, TrialRecord

WIDTH, HEIGHT, MARGIN = 340, 190, 46  # of a chart, in SVG units
METRICS = {"loss": "validation loss", "score": "right answers", "reward_accuracy": "reward accuracy"}


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above the figures. `base`: the base model's name; `made_at`: UTC, ISO 8601."""

    task: str
    base: str
    made_at: str


@dataclass(frozen=True, slots=True)
class Point:
    """A trial in a chart, in SVG units; `kind`: its state, or "best"."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """The validation losses of a trial at its checks: SVG points "x,y x,y …"."""

    points: str
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with the texts at the ends of its axes."""

    title: str
    left: str
    right: str
    bottom: str
    top: str
    points: tuple[Point, ...] = ()
    lines: tuple[Line, ...] = ()


def page(heading: Heading, result: SearchResult) -> str:
    """The whole page; without a search, one sentence."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune_pipeline.train.search", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "number": number, "value": value_text}
    text: str = environment.get_template("report.html.j2").render(
        heading=heading,
        result=result,
        states=result.states(),
        lead=headline(result),
        metric=METRICS[result.metric],
        names=parameter_names(result),
        ranked=ranked(result),
        begins_as_declared=bool(result.as_declared) and result.as_declared.items() <= result.trials[0].values.items(),
        charts=[*parameter_charts(result), *check_chart(result)],
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
    )
    return text


def headline(result: SearchResult) -> str:
    """The result in a few sentences."""
    best = result.best_trial
    if best is None:
        return "The task declares no search: the training uses the settings of `train` as they are declared."
    shown = ", ".join(f"{name} {value_text(value)}" for name, value in best.values.items())
    states, sentences = result.states(), []
    sentences.append(f"Trial {best.number} of {len(result.trials)} is the best by {METRICS[result.metric]}: {shown}.")
    sentences.append(
        f"{states['complete']} trials were completed, {states['pruned']} ended early because they were worse than "
        f"others, {states['failed']} failed."
    )
    if result.limited:
        sentences.append("The search ended at its limit of hours.")
    return " ".join(sentences)


def ranked(result: SearchResult) -> list[TrialRecord]:
    """The best first: completed trials by the metric, then pruned ones by their last loss, then failed ones."""
    order = {"complete": 0, "pruned": 1, "failed": 2}

    def key(trial: TrialRecord) -> tuple[int, float, float]:
        by = cost(trial, result.metric) if trial.state == "complete" else loss_of(trial)
        return order[trial.state], by, loss_of(trial)

    return sorted(result.trials, key=lambda trial: (trial.number != result.best, *key(trial)))


def parameter_names(result: SearchResult) -> list[str]:
    return list(dict.fromkeys(name for trial in result.trials for name in trial.values))


def parameter_charts(result: SearchResult) -> list[Chart]:
    """For each parameter, its values against the validation loss; those of failed trials are not shown."""
    shown = [trial for trial in result.trials if trial.loss is not None and math.isfinite(trial.loss)]
    if len(shown) < 2:
        return []
    top, bottom = _limits([trial.loss or 0.0 for trial in shown])
    charts = []
    for name in parameter_names(result):
        places, left, right = _places(result, shown, name)
        points = [
            Point(x, _down(trial.loss or 0.0, bottom, top), _kind(trial, result), _title(trial, result))
            for trial, x in zip(shown, places, strict=True)
        ]
        charts.append(Chart(name, left, right, number(bottom), number(top), tuple(points)))
    return charts


def check_chart(result: SearchResult) -> list[Chart]:
    """The validation loss of every trial at its checks; none where there is a single check."""
    shown = [trial for trial in result.trials if len(trial.checks) > 1 and all(map(math.isfinite, trial.checks))]
    if not shown:
        return []
    top, bottom = _limits([loss for trial in shown for loss in trial.checks])
    longest = max(len(trial.checks) for trial in shown)
    lines = []
    for trial in sorted(shown, key=lambda trial: trial.number == result.best):  # the best one is drawn last
        places = [(_across(n / (longest - 1)), _down(loss, bottom, top)) for n, loss in enumerate(trial.checks)]
        points = " ".join(f"{x},{y}" for x, y in places)
        lines.append(Line(points, _kind(trial, result), _title(trial, result)))
    title = "at each check, evenly over the steps"
    return [Chart(title, "first check", "end", number(bottom), number(top), lines=tuple(lines))]


def _places(result: SearchResult, shown: Sequence[TrialRecord], name: str) -> tuple[list[float], str, str]:
    """The horizontal places of the trials by their values, and the texts at the ends of the axis: numbers by size,
    others one beside the other."""
    values = [trial.values.get(name) for trial in shown]
    if all(isinstance(value, int | float) for value in values):
        numbers: list[float] = [float(value) for value in values if value is not None]
        low, high = min(numbers), max(numbers)
        scale = math.log if name in result.logarithmic and low > 0 else float
        span = scale(high) - scale(low) or 1.0
        return [_across((scale(x) - scale(low)) / span) for x in numbers], value_text(low), value_text(high)
    texts = [value_text(value) for value in values]
    kinds = sorted(set(texts))
    last = max(1, len(kinds) - 1)
    return [_across(kinds.index(text) / last) for text in texts], kinds[0], kinds[-1] if len(kinds) > 1 else ""


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """The losses at the top and at the bottom of a chart. The few very bad ones are drawn at the top, so that the
    others can be told apart."""
    ordered = sorted(losses)
    low, middle = ordered[0], ordered[len(ordered) // 2]
    return min(ordered[-1], middle + 4 * (middle - low)) if middle > low else ordered[-1], low


def _across(share: float) -> float:
    return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)


def _down(loss: float, bottom: float, top: float) -> float:
    share = min(1.0, (loss - bottom) / (top - bottom)) if top > bottom else 0.0
    return round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN), 1)


def _kind(trial: TrialRecord, result: SearchResult) -> str:
    return "best" if trial.number == result.best else trial.state


def _title(trial: TrialRecord, result: SearchResult) -> str:
    values = ", ".join(f"{name} {value_text(value)}" for name, value in trial.values.items())
    return f"trial {trial.number} ({_kind(trial, result)}): loss {number(trial.loss)}; {values}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def value_text(value: Any) -> str:
    """A value of a parameter: a number, the names of the sources that are left out, or all layers."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "all"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
