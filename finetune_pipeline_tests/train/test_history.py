"""What a finished training says of itself: overfitting is named, the kept step is judged, and charts show the steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune_pipeline.train.assets import evaluate_training
from finetune_pipeline.train.charts import MAX_POINTS, Line, chart, thinned
from finetune_pipeline.train.checkpoint import HistoryLine
from finetune_pipeline.train.history import describe, overfits_from
from finetune_pipeline.train.history_page import charts, loss_chart, page
from finetune_pipeline.train.spec import TrainingResult

SVG = "{http://www.w3.org/2000/svg}"
RESULT = TrainingResult(
    mlflow_run_id="r1",
    mlflow_experiment_id="1",
    method="lora",
    objective="sft",
    forward="packed",
    steps=40,
    kept_step=20,
    skipped_steps=0,
    seconds=3.5,
    tokens_per_second=900.0,
    rows=700,
    loss_first=3.0,
    loss_last=0.2,
    validation_loss_start=3.0,
    validation_loss=1.0,
    validation_score=0.8,
    validation_reward_accuracy=None,
    general_divergence=0.01,
    resumed_at=0,
    trainable_parameters=4000,
    precision="fp32",
    shared_prefix_tokens=20,
    supervised_tokens=8000,
    peak_mb=512,
    validation_loss_last=1.5,
    overfits_from=20,
)


def history(validation: dict[int, float], losses: Any = lambda step: 3.0 / step, steps: int = 40) -> list[HistoryLine]:
    lines: list[HistoryLine] = [{"step": 0, "validation_loss": 3.0}]
    for step in range(1, steps + 1):
        line: HistoryLine = {"step": step, "loss": losses(step), "learning_rate": 0.001, "tokens_per_second": 900.0}
        if step in validation:
            line |= {"validation_loss": validation[step], "validation_score": 0.5}
        lines.append(line)
    return lines


RISES = {10: 2.0, 20: 1.0, 30: 1.2, 40: 1.5}


def test_overfitting_is_named_with_its_first_step() -> None:
    assert overfits_from(history(RISES)) == 20
    assert overfits_from(history({10: 2.0, 20: 1.5, 30: 1.2, 40: 1.0})) is None, "lowest at the end"
    assert overfits_from(history(RISES, lambda step: 1.0 + 0.1 * step)) is None, "the training loss rose as well"
    assert overfits_from(history({40: 1.0})) is None, "one validation"
    assert overfits_from([]) is None


def test_a_training_stopped_by_steps_without_loss_has_no_verdict_on_overfitting() -> None:
    lines = history(RISES)
    for line in lines[21:]:
        line.pop("loss", None)
    assert overfits_from(lines) is None


def test_the_gate_judges_the_kept_step_and_names_the_overfitting() -> None:
    verdict = evaluate_training(RESULT, "d1")
    assert verdict.passed, "the weights of step 20 are the result, whatever came after them"
    fell, overfitting = verdict.checks[1:]
    assert (fell.passed, fell.observed, fell.value) == (True, "1.000 at the kept step 20", 1.0)
    assert (overfitting.passed, overfitting.severity, overfitting.value) == (False, "warning", 1.5)
    assert "overfits from step 20 on" in verdict.summary and "the weights of step 20 were kept" in verdict.summary
    assert verdict.summary.startswith("validation loss 3.000 to 1.000 in 20 steps")

    last = evaluate_training(replace(RESULT, kept_step=40, validation_loss=1.5), "d1")
    assert "`train.validation.keep: last`" in last.summary
    worse = evaluate_training(replace(RESULT, validation_loss=3.1), "d1")
    assert not worse.passed and not worse.checks[1].passed
    fine = evaluate_training(replace(RESULT, overfits_from=None, kept_step=40, validation_loss_last=1.0), "d1")
    assert all(check.passed for check in fine.checks) and "overfit" not in fine.summary
    assert describe(replace(RESULT, overfits_from=None)) == ""


def test_the_page_shows_every_figure_that_was_measured() -> None:
    html = page("<b>parcels</b>", RESULT, history(RISES))
    assert "<b>" not in html and "<script" not in html and "http" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "It overfits from step 20 on" in html and "20 (kept)" in html and html.count("<svg") == 4
    without = [line for line in history(RISES) if line.pop("tokens_per_second", None) or True]
    assert len(charts(without)) == 3


def test_a_chart_is_small_well_formed_and_within_its_frame() -> None:
    svg = loss_chart(history({n: 1.0 + n / 1000 for n in range(5, 2000, 5)}, steps=2000), kept_step=5)
    root = ElementTree.fromstring(str(svg))  # noqa: S314 (our own SVG)
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [MAX_POINTS] * 3 and len(svg) < 40_000
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for point in (point for points in lines for point in points):
        x, y = map(float, point.split(","))
        assert 0 <= x <= width and 0 <= y <= height
    assert any(text.text == "kept: step 5" for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize("lines", [[], [{"step": 0, "validation_loss": 1.0}], [{"step": 1, "loss": math.nan}]])
def test_nothing_is_drawn_without_two_points(lines: Any) -> None:
    assert str(loss_chart(lines)) == ""


def test_equal_values_have_a_scale_and_titles_are_no_markup() -> None:
    svg = chart("<a>", [Line("a", '"<b>', [(1, 2.0), (2, 2.0)])])
    ElementTree.fromstring(str(svg))  # noqa: S314 (our own SVG)
    assert "<a>" not in svg and "<b>" not in svg and "nan" not in svg


def test_first_and_last_point_stay() -> None:
    points = [(n, float(n)) for n in range(1001)]
    thin = thinned(points)
    assert (thin[0], thin[-1], len(thin)) == (points[0], points[-1], MAX_POINTS)
