"""The report page of the baselines: escaped, one file, a column for every metric."""

from __future__ import annotations

import re
from typing import Any

from finetune_pipeline.baseline.report import Heading, compile_report, headline, page
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Score
from finetune_pipeline_tests.artifacts import example

EVIL = '<script>alert("x")</script>'
SPEC = AnswerFormat(format="label", labels=(f"right {EVIL}", "wrong"))
HEADING = Heading(f"task {EVIL}", EVIL, "tiny", "2026-01-05T10:00:00+00:00")
TESTS = [example(str(i), f"prompt {i} {EVIL}", f"right {EVIL}") for i in range(12)]


def simulated(*variants: str) -> tuple[list[Answer], list[Score]]:
    """Answers and scores of 12 rows: the tuned model has the first 9 right, the other variants none."""
    answers = [Answer(t.id, name, f"{name} answers {EVIL}", 100, 20, 0.1) for name in variants for t in TESTS]
    scores = [
        Score(t.id, name, name == "tuned" and i < 9, True, {EVIL: True}, f"slice {EVIL}")
        for name in variants
        for i, t in enumerate(TESTS)
    ]
    return answers, scores


def report(*variants: str) -> Any:
    return compile_report(TESTS, *simulated(*variants), variants, SPEC, 30)


def test_text_of_persons_and_models_is_escaped() -> None:
    html = page(HEADING, report("zero_shot", "few_shot", "classical"))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 5


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = page(HEADING, report("zero_shot"))
    assert not re.search(r"(src|href)=|@import|url\(|https?:", html)
    assert "prefers-color-scheme: dark" in html


def test_the_page_has_a_column_for_every_metric() -> None:
    html = page(HEADING, report("zero_shot"))
    assert all(f'<th class="n">{title}</th>' in html for title in ("Exact", "Valid format", "Macro F1"))


def test_baselines_have_no_cases_and_no_side_effects() -> None:
    html = page(HEADING, report("zero_shot"))
    assert 'class="case"' not in html
    assert "Side effects" not in html
    assert "before any training" in html


def test_without_a_prompted_variant_there_is_no_best_prompt() -> None:
    classical = report("classical")
    assert classical["best_prompted"] is None
    assert headline(classical).startswith("The classical model has 0 of 12 (0 %;")
