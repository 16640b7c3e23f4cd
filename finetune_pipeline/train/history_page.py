"""The history of a training as charts: training.html of the `adapter` artifact, and one SVG for Dagster.

    (folder / "training.html").write_text(page("support_tickets", result, history))
    svg = loss_chart(history, kept_step=74)

One file, without scripts and without anything from the internet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from finetune_pipeline.train.charts import Line, Points, chart
from finetune_pipeline.train.checkpoint import HistoryLine
from finetune_pipeline.train.history import describe
from finetune_pipeline.train.spec import TrainingResult

SMOOTHING = 0.9  # of the moving average of the loss
SCORES = {"validation_score": "right answers", "validation_reward_accuracy": "reward accuracy"}


def page(task: str, training: TrainingResult, history: Sequence[HistoryLine]) -> str:
    """training.html."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("finetune_pipeline.train", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text: str = environment.get_template("training.html.j2").render(
        task=task,
        training=training,
        overfitting=describe(training),
        charts=charts(history, training.kept_step),
        validated=[line for line in history if "validation_loss" in line],
        skipped=[line["step"] for line in history if "skipped" in line],
    )
    return text


def charts(history: Sequence[HistoryLine], kept_step: int | None = None) -> list[Markup]:
    """One chart each for the losses, the scores, the speed and the learning rate, as far as they were measured."""
    shown = [
        loss_chart(history, kept_step),
        chart("Share of validation rows", _lines(history, SCORES), kept_step),
        chart("Computed tokens per second", _lines(history, {"tokens_per_second": ""}), kept_step),
        chart("Share of the device's peak for matrix products", _lines(history, {"peak_share": ""}), kept_step),
        chart("Learning rate", _lines(history, {"learning_rate": ""}), kept_step),
    ]
    return [each for each in shown if each]


def loss_chart(history: Sequence[Mapping[str, Any]], kept_step: int | None = None) -> Markup:
    """Training loss (of each step, and its moving average) and validation loss; "" where neither was measured."""
    raw, validation = _points(history, "loss"), _points(history, "validation_loss")
    lines = [
        Line("raw", "", raw),
        Line("a", "training loss, smoothed", _smoothed(raw)),
        Line("b", "validation loss", validation),
    ]
    return chart("Loss", [line for line in lines if line.points], kept_step)


def _lines(history: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Line]:
    """A line for each of the figures that was measured."""
    found = [(title, points) for name, title in names.items() if (points := _points(history, name))]
    return [Line(css, title, points) for css, (title, points) in zip("ab", found, strict=False)]


def _points(history: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(int(line["step"]), float(line[name])) for line in history if name in line and math.isfinite(line[name])]


def _smoothed(points: Points) -> Points:
    smooth, mean = list[tuple[int, float]](), points[0][1] if points else 0.0
    for step, value in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth.append((step, mean))
    return smooth
