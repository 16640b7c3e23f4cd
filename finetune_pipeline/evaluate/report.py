"""report.json and report.html of the evaluation: the baselines' report with the tuned model and the live version.

    {"rows": 104, "best_prompted": "few_shot", "max_new_tokens": 53,
     "variants": {"few_shot": {...}, "champion": {...}, "tuned": {"rows": 104, "exact": 0.71, ...}},
     "champion": {"version": 3, "adapter": "9be0…", ...},
     "general": {"texts": 260, "base": 1.9, "tuned": 2.0, "rise": 0.05},
     "memorization": {"auc": 0.53, "interval": [0.43, 0.63], ...},
     "cost": {"currency": "USD", "per_1000": {"tuned": 1.0, ...}, ...}}

The page shows what was compared and on how many rows; every figure on it is in report.json. Whether the difference is
worth a release is decided in release/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired

from finetune_pipeline.baseline.report import BaselineReport, Heading, best_prompt_result, render, variant_result
from finetune_pipeline.baseline.variants import CHAMPION, CLASSICAL, TUNED
from finetune_pipeline.evaluate.champion import served_version
from finetune_pipeline.evaluate.cost import CostFigures
from finetune_pipeline.evaluate.general_ability import GeneralFigures
from finetune_pipeline.evaluate.memorization import MemorizationFigures
from finetune_pipeline.records import Answer, Example, Score

MAX_CASES = 10  # rows of each kind on the page


class EvalReport(BaselineReport):
    """report.json. `champion` has the fields of a ServedVersion (`champion.served_version` reads them), and is absent
    where nothing is live; `general` and `memorization` where they are not declared (`general` also where the model can
    read no text as a whole). `precision`: what the tuned model computed in, "bf16" or "fp32"; absent where a provider
    computed. `not_measured`: "general" and "memorization" -> why they cannot be measured at all."""

    cost: CostFigures
    precision: NotRequired[str]
    champion: NotRequired[dict[str, Any]]
    general: NotRequired[GeneralFigures]
    memorization: NotRequired[MemorizationFigures]
    not_measured: NotRequired[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Case:
    """One test row: its prompt and completion, the tuned model's answer, and that of the best prompt."""

    id: str
    prompt: str
    completion: str
    tuned: str
    prompted: str


@dataclass(frozen=True, slots=True)
class Cases:
    """The first rows, in the test's order, that the tuned model has wrong, and that it has right and the best prompt
    has wrong."""

    wrong: tuple[Case, ...]
    better: tuple[Case, ...]


def page(heading: Heading, report: EvalReport, cases: Cases) -> str:
    """report.html of the evaluation."""
    shown = (report["best_prompted"], CLASSICAL, CHAMPION, TUNED)
    return render(
        "finetune_pipeline.evaluate",
        "eval_report.html.j2",
        heading,
        report,
        headline(report),
        shown,
        cost=report["cost"],
        general=report.get("general"),
        memorization=report.get("memorization"),
        not_measured=report.get("not_measured", {}),
        cases=cases,
    )


def headline(report: EvalReport) -> str:
    """The result in a few sentences, without a decision."""
    live = served_version(report.get("champion"))
    sentences = [*variant_result(report, TUNED, "The tuned model"), *best_prompt_result(report)]
    if live:
        sentences += variant_result(report, CHAMPION, f"Live version {live.version}")
    return " ".join([*sentences, *variant_result(report, CLASSICAL, "The classical model")])


def select_cases(
    tests: Sequence[Example], answers: Sequence[Answer], scores: Sequence[Score], best_prompted: str | None
) -> Cases:
    """The rows that the page shows, MAX_CASES of each kind at most."""
    text = {(answer.variant, answer.id): answer.text for answer in answers}
    right = {(score.variant, score.id): score.exact for score in scores}

    def case(row: Example) -> Case:
        prompted = text.get((best_prompted, row.id), "") if best_prompted else ""
        return Case(row.id, row.prompt, row.completion, text[TUNED, row.id], prompted)

    wrong = [row for row in tests if not right[TUNED, row.id]]
    better = [
        row for row in tests if best_prompted and right[TUNED, row.id] and right.get((best_prompted, row.id)) is False
    ]
    return Cases(tuple(map(case, wrong[:MAX_CASES])), tuple(map(case, better[:MAX_CASES])))
