"""The report page of the evaluation: escaped, one file, with figures and cases."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, cast

from finetune_pipeline.evaluate.report import EvalReport, headline, page, select_cases
from finetune_pipeline.records import ServedVersion
from finetune_pipeline_tests.baseline.test_report import HEADING, TESTS, report, simulated

VARIANTS = ("zero_shot", "few_shot", "classical", "tuned")


COST = {
    "currency": "EUR",
    "per_1000": {"tuned": 1.5, "zero_shot": 2},
    "requests_per_day": 10,
    "prompted_price": 0.6,
    "by_token": [],
}


def evaluated(*variants: str, **parts: Any) -> EvalReport:
    return cast(EvalReport, {**report(*variants), "cost": COST, **parts})


FULL = evaluated(
    *VARIANTS,
    general={"texts": 60, "base": 2.0, "tuned": 2.1, "rise": 0.05},
    memorization={"auc": 0.52, "interval": [0.4, 0.6], "train_rows": 12},
)


def html_of(evaluation: EvalReport) -> str:
    answers, scores = simulated(*evaluation["variants"])
    return page(HEADING, evaluation, select_cases(TESTS, answers, scores, evaluation["best_prompted"]))


def test_text_of_persons_and_models_is_escaped() -> None:
    html = html_of(FULL)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 50


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = html_of(FULL)
    assert not re.search(r"(src|href)=|@import|url\(|https?:", html)
    assert "prefers-color-scheme: dark" in html


def test_figures_and_cases_of_both_kinds_are_on_the_page() -> None:
    html = html_of(FULL)
    assert "The tuned model has 9 of 12 (75 %; 95 % interval 42.8 % to 94.5 %) test rows exactly right." in html
    assert html.count('class="case"') == 3 + 9
    assert "(+5.0 %; lower is better)" in html
    assert "EUR per 1000 answers" in html
    assert "1.500" in html


def test_the_live_version_is_named() -> None:
    live = evaluated(*VARIANTS, "champion", champion=asdict(ServedVersion(3, "9be0", "3fa9", "77c1", 20)))
    assert "Live version 3 has 0 of 12 (0 %;" in headline(live)


def test_without_a_prompted_variant_the_page_has_no_comparison_with_one() -> None:
    html = html_of(evaluated("tuned"))
    assert "Best prompt" not in html
    assert "best prompt" not in headline(evaluated("tuned"))
    assert "Side effects" not in html
