from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from finetune_pipeline.evaluate.metrics import best_prompted, variant
from finetune_pipeline.evaluate.report import Facts, headline, page
from finetune_pipeline.records import Answer, Score
from finetune_pipeline_tests.artifacts import example

EVIL = '<script>alert("x")</script>'


def facts(*names: str, **measures: Any) -> Facts:
    tests = [example(str(i), f"question {i} {EVIL}", f"right {EVIL}") for i in range(12)]
    answers = [Answer(t.id, name, f"{name} says {EVIL}", 100, 20, 0.1) for name in names for t in tests]
    scores = [
        Score(t.id, name, name == "tuned" and i < 9, True, {EVIL: True}, f"slice {EVIL}")
        for name in names
        for i, t in enumerate(tests)
    ]
    variants = {
        name: variant([s for s in scores if s.variant == name], [a for a in answers if a.variant == name])
        for name in names
    }
    figures = {
        "rows": 12,
        "variants": variants,
        "best_prompted": best_prompted({name: figures["exact"] for name, figures in variants.items()}),
        "max_new_tokens": 30,
        "general": None,
        "memorization": None,
        "cost": None,
        **measures,
    }
    return Facts(f"task {EVIL}", EVIL, "tiny", "2026-01-05T10:00:00+00:00", figures, tests, answers, scores)


FULL = facts(
    "zero_shot",
    "few_shot",
    "classical",
    "tuned",
    general={"texts": 60, "base": 2.0, "tuned": 2.1, "rise": 0.05},
    memorization={"auc": 0.52, "interval": [0.4, 0.6], "train_rows": 12},
    cost={"currency": "EUR", "per_1000": {"tuned": 1.5, "zero_shot": 2}, "requests_per_day": 10, "prompted_price": 0.6},
)


def test_everything_a_person_or_a_model_wrote_is_escaped() -> None:
    html = page(FULL)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 50


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = page(FULL)
    assert not re.search(r"(src|href)=|@import|url\(|https?:", html)
    assert "prefers-color-scheme: dark" in html


def test_it_shows_figures_and_cases_of_both_kinds() -> None:
    html = page(FULL)
    assert "9 (75 %; 95 % interval 42.8 % to 94.5 %) of 12 test rows exactly right" in html
    assert html.count('class="case"') == 3 + 9
    assert "(+5.0 %; lower is better)" in html
    assert "EUR per 1000 answers" in html
    assert "1.500" in html


def test_a_baseline_has_no_cases_and_no_side_effects() -> None:
    html = page(facts("zero_shot"))
    assert 'class="case"' not in html
    assert "Side effects" not in html
    assert "before any training" in html


def test_without_a_prompted_variant_nothing_is_compared_with_one() -> None:
    html = page(facts("tuned"))
    assert "Best prompt" not in html
    assert "best prompt" not in headline(replace(FULL, figures=facts("tuned").figures).figures)
